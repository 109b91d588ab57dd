//! The options that chat and plain completions share.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::structured::{Asked, Guided, ResponseFormat, StructuredOutputs, form};
use crate::request::{Ending, Sampling};

/// Stop texts taken in one request; OpenAI takes four.
const MOST_STOPS: usize = 16;

/// Bytes of one stop text.
pub const LONGEST_STOP: usize = 1_024;

/// Tokens of `stop_token_ids`.
const MOST_STOP_TOKENS: usize = 128;

/// Tokens of `logit_bias`: looked at for each token of the answer.
const MOST_BIASES: usize = 1_024;

/// Answers to one prompt, as OpenAI has it.
const MOST_CHOICES: u32 = 128;

/// Rivals reported beside each token, as OpenAI has it for chats.
const MOST_LOGPROBS: u32 = 20;

/// One text or several.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// `stream_options`.
#[derive(Clone, Debug, JsonSchema, Default, Deserialize)]
pub struct StreamOptions {
    /// Send a last chunk with the usage.
    pub include_usage: Option<bool>,
}

/// Options of a generation, as typed. The last group are vLLM's additions.
#[derive(Clone, Debug, JsonSchema, Default, Deserialize)]
pub struct Options {
    /// 0 to 2; 1 by default.
    pub temperature: Option<f32>,
    /// Above 0, up to 1.
    pub top_p: Option<f32>,
    /// Answers wanted; 1 by default.
    pub n: Option<u32>,
    /// Whether the answer comes as events.
    pub stream: Option<bool>,
    /// What the events hold.
    pub stream_options: Option<StreamOptions>,
    /// Texts that end the answer.
    pub stop: Option<OneOrMany>,
    /// Tokens that the answer may have.
    pub max_tokens: Option<u32>,
    /// -2 to 2.
    pub presence_penalty: Option<f32>,
    /// -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Start of the random numbers.
    pub seed: Option<i64>,
    /// Token numbers (as text) with what is added to their logits, -100 to 100.
    pub logit_bias: Option<HashMap<String, f32>>,

    /// Only so many of the likeliest tokens; 0 or -1 means all.
    pub top_k: Option<i64>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// 0.01 to 10.
    pub repetition_penalty: Option<f32>,
    /// Pass over the model's end tokens.
    pub ignore_eos: Option<bool>,
    /// Tokens that end the answer, besides the model's own.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Report log probabilities of the prompt's tokens, with so many rivals.
    pub prompt_logprobs: Option<u32>,
    /// Prompts are kept for reuse apart from those with another salt.
    pub cache_salt: Option<String>,
    /// The form of the answer.
    pub structured_outputs: Option<StructuredOutputs>,
    /// The form of the answer, under older names.
    #[serde(flatten)]
    pub guided: Guided,
}

/// A field that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidField {
    /// Its name.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
}

impl InvalidField {
    /// A field and what is wrong with it.
    pub fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self {
            field,
            message: message.into(),
        }
    }

    /// A field of which only the default is supported so far.
    #[must_use]
    pub fn unsupported(field: &'static str) -> Self {
        Self::new(field, format!("{field} is not supported yet"))
    }
}

fn within(
    field: &'static str,
    value: Option<f32>,
    default: f32,
    least: f32,
    most: f32,
) -> Result<f32, InvalidField> {
    let value = value.unwrap_or(default);
    if value >= least && value <= most {
        Ok(value)
    } else {
        Err(InvalidField::new(
            field,
            format!("{field} is {value}, expected {least} to {most}"),
        ))
    }
}

impl Options {
    /// How tokens of a model with this vocabulary are chosen; `seed` is used where the request names none.
    ///
    /// # Errors
    /// When a value is out of bounds.
    pub fn sampling(&self, seed: u64, vocabulary: usize) -> Result<Sampling, InvalidField> {
        let top_p = within("top_p", self.top_p, 1.0, 0.0, 1.0)?;
        if top_p == 0.0 {
            return Err(InvalidField::new(
                "top_p",
                "top_p is 0, expected more than 0",
            ));
        }
        let repetition = within(
            "repetition_penalty",
            self.repetition_penalty,
            1.0,
            0.01,
            10.0,
        )?;
        let top_k = match self.top_k {
            None | Some(-1) => 0,
            Some(value) => usize::try_from(value).map_err(|_| {
                InvalidField::new(
                    "top_k",
                    format!("top_k is {value}, expected 0 or more, or -1 for all"),
                )
            })?,
        };
        Ok(Sampling {
            temperature: within("temperature", self.temperature, 1.0, 0.0, 2.0)?,
            top_k,
            top_p,
            min_p: within("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            repetition,
            presence: within("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency: within("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?,
            bias: self.bias(vocabulary)?,
            seed: self
                .seed
                .map_or(seed, |seed| u64::from_le_bytes(seed.to_le_bytes())),
        })
    }

    fn bias(&self, vocabulary: usize) -> Result<Vec<(u32, f32)>, InvalidField> {
        let field = "logit_bias";
        let Some(asked) = &self.logit_bias else {
            return Ok(Vec::new());
        };
        if asked.len() > MOST_BIASES {
            let message = format!(
                "logit_bias has {} tokens, at most {MOST_BIASES} are taken",
                asked.len()
            );
            return Err(InvalidField::new(field, message));
        }
        let mut all = Vec::with_capacity(asked.len());
        for (name, bias) in asked {
            let token = name
                .parse()
                .ok()
                .filter(|token: &u32| (*token as usize) < vocabulary);
            let Some(token) = token else {
                let name: String = name.chars().take(40).collect();
                let message = format!(
                    "logit_bias names the token {name:?}, this model has 0 to {}",
                    vocabulary.saturating_sub(1)
                );
                return Err(InvalidField::new(field, message));
            };
            all.push((token, within(field, Some(*bias), 0.0, -100.0, 100.0)?));
        }
        // The same request is the same, whatever the order of its members.
        all.sort_unstable_by_key(|(token, _)| *token);
        Ok(all)
    }

    /// How many answers to one prompt are wanted, of the `most` that the server computes at once.
    ///
    /// # Errors
    /// When it is none or too many.
    pub fn choices(&self, most: usize) -> Result<usize, InvalidField> {
        let n = self.n.unwrap_or(1);
        let most = most.min(MOST_CHOICES as usize);
        if (1..=most).contains(&(n as usize)) {
            Ok(n as usize)
        } else {
            Err(InvalidField::new(
                "n",
                format!("n is {n}, expected 1 to {most}"),
            ))
        }
    }

    /// How many rivals are reported beside each token, under a name that the request may use.
    ///
    /// # Errors
    /// When they are too many.
    pub fn rivals(field: &'static str, count: Option<u32>) -> Result<Option<usize>, InvalidField> {
        match count {
            Some(count) if count > MOST_LOGPROBS => Err(InvalidField::new(
                field,
                format!("{field} is {count}, expected 0 to {MOST_LOGPROBS}"),
            )),
            other => Ok(other.map(|count| count as usize)),
        }
    }

    /// How many rivals are reported beside each token of the prompt.
    ///
    /// # Errors
    /// When they are too many, or the answer is streamed: no event has a place for them.
    pub fn prompt_rivals(&self) -> Result<Option<usize>, InvalidField> {
        let field = "prompt_logprobs";
        match Self::rivals(field, self.prompt_logprobs)? {
            Some(_) if self.streams() => Err(InvalidField::new(
                field,
                "prompt_logprobs cannot be streamed; leave out stream",
            )),
            other => Ok(other),
        }
    }

    /// The form of the answer; chats may name it in `response_format`, too.
    ///
    /// # Errors
    /// When several are named, one is not complete, or the answer could not end.
    pub fn form(&self, format: Option<&ResponseFormat>) -> Result<Option<Asked>, InvalidField> {
        let asked = form(format, self.structured_outputs.as_ref(), &self.guided)?;
        match &asked {
            Some(asked) if self.ignore_eos == Some(true) => Err(InvalidField::new(
                "ignore_eos",
                format!(
                    "ignore_eos is true, but an answer in the form of {} ends when it is complete",
                    asked.field
                ),
            )),
            _ => Ok(asked),
        }
    }

    /// When the answer ends, within `room` tokens; the server's own `stops` end it as well.
    ///
    /// # Errors
    /// When there are too many or too long stop texts.
    pub fn ending(&self, room: usize, stops: &[String]) -> Result<Ending, InvalidField> {
        let mut texts = match &self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(text)) => vec![text.clone()],
            Some(OneOrMany::Many(texts)) => texts.clone(),
        };
        if texts.len() > MOST_STOPS {
            let message = format!(
                "stop has {} texts, at most {MOST_STOPS} are taken",
                texts.len()
            );
            return Err(InvalidField::new("stop", message));
        }
        if let Some(text) = texts
            .iter()
            .find(|text| text.is_empty() || text.len() > LONGEST_STOP)
        {
            let message = format!(
                "stop has a text of {} bytes, expected 1 to {LONGEST_STOP}",
                text.len()
            );
            return Err(InvalidField::new("stop", message));
        }
        texts.extend_from_slice(stops);
        let tokens = self.stop_token_ids.clone().unwrap_or_default();
        if tokens.len() > MOST_STOP_TOKENS {
            let message = format!(
                "stop_token_ids has {} tokens, at most {MOST_STOP_TOKENS} are taken",
                tokens.len()
            );
            return Err(InvalidField::new("stop_token_ids", message));
        }
        Ok(Ending {
            most_tokens: room,
            texts,
            tokens,
            ignores_end_tokens: self.ignore_eos.unwrap_or(false),
        })
    }

    /// Tokens asked for, under a name that the request may use.
    ///
    /// # Errors
    /// When it is 0.
    pub fn tokens_asked(
        field: &'static str,
        value: Option<u32>,
    ) -> Result<Option<usize>, InvalidField> {
        match value {
            Some(0) => Err(InvalidField::new(
                field,
                format!("{field} is 0, expected at least 1"),
            )),
            other => Ok(other.map(|value| value as usize)),
        }
    }

    /// Whether the answer comes as events.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether the last event holds the usage.
    #[must_use]
    pub fn includes_usage(&self) -> bool {
        self.stream_options
            .as_ref()
            .and_then(|options| options.include_usage)
            .unwrap_or(false)
    }
}

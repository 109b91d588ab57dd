//! The options that chat and plain completions share.

use serde::Deserialize;

use crate::request::{Ending, Sampling};

/// Stop texts taken in one request; OpenAI takes four.
const MOST_STOPS: usize = 16;

/// Bytes of one stop text.
pub const LONGEST_STOP: usize = 1_024;

/// One text or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// `stream_options`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct StreamOptions {
    /// Send a last chunk with the usage.
    pub include_usage: Option<bool>,
}

/// Options of a generation, as typed. The last group are vLLM's additions.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Options {
    /// 0 to 2; 1 by default.
    pub temperature: Option<f32>,
    /// Above 0, up to 1.
    pub top_p: Option<f32>,
    /// Answers wanted; only 1 is supported.
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
    /// Not supported yet unless empty.
    pub logit_bias: Option<serde_json::Map<String, serde_json::Value>>,

    /// Only so many of the likeliest tokens; 0 or -1 means all.
    pub top_k: Option<i64>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// 0.01 to 10.
    pub repetition_penalty: Option<f32>,
    /// Pass over the model's end tokens.
    pub ignore_eos: Option<bool>,
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
    /// How tokens are chosen; `seed` is used where the request names none.
    ///
    /// # Errors
    /// When a value is out of bounds or asks for what is not supported.
    pub fn sampling(&self, seed: u64) -> Result<Sampling, InvalidField> {
        if self.n.is_some_and(|n| n != 1) {
            let n = self.n.unwrap_or_default();
            return Err(InvalidField::new(
                "n",
                format!("n is {n}, only 1 is supported"),
            ));
        }
        if self
            .logit_bias
            .as_ref()
            .is_some_and(|bias| !bias.is_empty())
        {
            return Err(InvalidField::unsupported("logit_bias"));
        }
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
            seed: self
                .seed
                .map_or(seed, |seed| u64::from_le_bytes(seed.to_le_bytes())),
        })
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
        Ok(Ending {
            most_tokens: room,
            texts,
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

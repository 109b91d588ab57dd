//! Log probabilities in the words of both APIs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::TokenLogprobs;
use crate::tokenizer::Tokenizer;

/// `logprobs` of a chat's choice.
#[derive(Clone, Debug, JsonSchema, Default, Serialize)]
pub struct ChatLogprobs {
    /// One entry a token.
    pub content: Vec<ChatLogprob>,
    /// Always absent.
    pub refusal: Option<()>,
}

/// A token with its rivals.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChatLogprob {
    /// The token itself.
    #[serde(flatten)]
    pub token: Scored,
    /// The likeliest tokens in its place.
    pub top_logprobs: Vec<Scored>,
}

/// A token and how likely it is.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Scored {
    /// Its text; the name of a control token.
    pub token: String,
    /// Natural logarithm of its probability, at least -9999.
    pub logprob: f32,
    /// The bytes of its text.
    pub bytes: Vec<u8>,
}

impl Scored {
    fn new(token: u32, logprob: f32, tokenizer: &Tokenizer) -> Self {
        let bytes = tokenizer.shown(token);
        Self {
            token: String::from_utf8_lossy(bytes).into_owned(),
            // JSON knows no infinity; OpenAI and vLLM write this number.
            logprob: logprob.max(-9_999.0),
            bytes: bytes.to_vec(),
        }
    }
}

impl ChatLogprobs {
    /// Of these tokens.
    #[must_use]
    pub fn new(tokens: &[TokenLogprobs], tokenizer: &Tokenizer) -> Self {
        let content = tokens
            .iter()
            .map(|found| ChatLogprob {
                token: Scored::new(found.token, found.logprob, tokenizer),
                top_logprobs: found
                    .top
                    .iter()
                    .map(|(token, logprob)| Scored::new(*token, *logprob, tokenizer))
                    .collect(),
            })
            .collect();
        Self {
            content,
            refusal: None,
        }
    }
}

/// `logprobs` of a plain completion's choice: four lists of one length.
#[derive(Clone, Debug, JsonSchema, Default, Serialize)]
pub struct TextLogprobs {
    /// Texts of the tokens.
    pub tokens: Vec<String>,
    /// Their log probabilities; none for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens in the place of each, by text.
    pub top_logprobs: Vec<Option<serde_json::Map<String, serde_json::Value>>>,
    /// Where each token's text begins, in characters.
    pub text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// Adds a token whose text begins at `offset`; returns where the next one begins.
    pub fn add(
        &mut self,
        token: u32,
        found: Option<&TokenLogprobs>,
        offset: usize,
        tokenizer: &Tokenizer,
    ) -> usize {
        let text = String::from_utf8_lossy(tokenizer.shown(token)).into_owned();
        let length = text.chars().count();
        self.tokens.push(text);
        self.text_offset.push(offset);
        self.token_logprobs
            .push(found.map(|found| found.logprob.max(-9_999.0)));
        self.top_logprobs.push(found.map(|found| {
            let own = (found.token, found.logprob);
            // The token itself is among them, as OpenAI has it.
            found
                .top
                .iter()
                .copied()
                .chain([own])
                .map(|(token, logprob)| {
                    let scored = Scored::new(token, logprob, tokenizer);
                    (scored.token, serde_json::Value::from(scored.logprob))
                })
                .collect()
        }));
        offset + length
    }
}

/// `prompt_logprobs` of one token, as vLLM has it: by token number; none for the first token.
pub type PromptLogprobs = Option<BTreeMap<u32, PromptLogprob>>;

/// A token in one place of the prompt.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct PromptLogprob {
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its place among all tokens; the likeliest has 1.
    pub rank: usize,
    /// Its text.
    pub decoded_token: String,
}

/// Of a whole prompt.
#[must_use]
pub fn prompt(tokens: &[Option<TokenLogprobs>], tokenizer: &Tokenizer) -> Vec<PromptLogprobs> {
    let one = |found: &TokenLogprobs| {
        let ranked = (1..)
            .zip(&found.top)
            .map(|(rank, (token, logprob))| (*token, *logprob, rank));
        ranked
            .chain([(found.token, found.logprob, found.rank)])
            .map(|(token, logprob, rank)| {
                let scored = Scored::new(token, logprob, tokenizer);
                let entry = PromptLogprob {
                    logprob: scored.logprob,
                    rank,
                    decoded_token: scored.token,
                };
                (token, entry)
            })
            .collect()
    };
    tokens.iter().map(|found| found.as_ref().map(one)).collect()
}

//! Text to tokens and forms to grammars, off the threads that serve connections, and the checks of what comes out.

use std::sync::Arc;

use super::Service;
use super::error::ApiError;
use crate::dialect::converted;
use crate::engine::Permit;
use crate::grammar::{Form, Grammar, Grammars, Thoughts};
use crate::openai::options::InvalidField;
use crate::prompt::Conversation;
use crate::request::{PromptPicture, PromptTooLong};
use crate::tokenizer::Prompt;

/// What became of a request before the engine sees it.
pub(super) struct Prepared {
    /// The prompt.
    pub(super) tokens: Vec<u32>,
    /// Its pictures.
    pub(super) pictures: Vec<PromptPicture>,
    /// The form of the answer.
    pub(super) grammar: Option<Grammar>,
    /// Whether the prompt has begun the model's thoughts.
    pub(super) thinking: bool,
}

/// Runs `work` on a blocking thread. The permit goes along and comes back, so that a client
/// that leaves meanwhile cannot begin more work than there are places.
pub(super) async fn prepare<T: Send + 'static>(
    service: &Arc<Service>,
    permit: Permit,
    work: impl FnOnce(&Service) -> Result<T, ApiError> + Send + 'static,
) -> Result<(T, Permit), ApiError> {
    let service = Arc::clone(service);
    tokio::task::spawn_blocking(move || Ok((work(&service)?, permit)))
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?
}

impl Service {
    /// A conversation to a prompt.
    pub(super) fn render(&self, conversation: Conversation) -> Result<Prompt, ApiError> {
        let template = self.template.as_ref().ok_or(ApiError::NoTemplate)?;
        self.check_length(
            conversation
                .messages
                .iter()
                .map(|message| message.content.as_str()),
        )?;
        let conversation = if template.dialect().tells_of_tools {
            conversation
        } else {
            converted(conversation)
        };
        Ok(template.render(&conversation, &self.tokenizer)?)
    }

    /// Refuses texts that cannot fit the context, whatever their tokens are, before work is spent on them.
    pub(super) fn check_length<'a>(
        &self,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), PromptTooLong> {
        let context = self.engine.limits().context_length;
        let bytes: usize = texts.into_iter().map(str::len).sum();
        let prompt = bytes.div_ceil(self.tokenizer.longest_token());
        if prompt >= context {
            return Err(PromptTooLong { prompt, context });
        }
        Ok(())
    }

    /// Compiles the form that a field asks for. Takes up to some hundred milliseconds.
    pub(super) fn compile(
        &self,
        field: &'static str,
        form: &Form,
        thoughts: Thoughts,
    ) -> Result<Grammar, ApiError> {
        let grammars = self.grammars.get_or_init(|| Grammars::new(&self.tokenizer));
        let compiled = grammars.as_ref().map_err(Clone::clone);
        let compiled = compiled.and_then(|grammars| grammars.compile(form, thoughts));
        compiled.map_err(|error| ApiError::form(field, &error))
    }

    /// Refuses prompts that the model cannot read.
    pub(super) fn check_tokens(
        &self,
        field: &'static str,
        prompt: &[u32],
    ) -> Result<(), InvalidField> {
        self.check_prompt(field, prompt, &[])
    }

    /// The same for a prompt with pictures, whose tokens stand for them.
    pub(super) fn check_prompt(
        &self,
        field: &'static str,
        prompt: &[u32],
        pictures: &[PromptPicture],
    ) -> Result<(), InvalidField> {
        if prompt.is_empty() {
            let message = format!("{field} is empty, expected at least one token");
            return Err(InvalidField::new(field, message));
        }
        let shown = |place: usize| pictures.iter().any(|picture| picture.position == place);
        let unknown = prompt
            .iter()
            .enumerate()
            .find(|(place, token)| **token as usize >= self.vocabulary && !shown(*place));
        match unknown {
            Some((_, token)) => Err(InvalidField::new(
                field,
                format!(
                    "{field} has token {token}, this model has 0 to {}",
                    self.vocabulary - 1
                ),
            )),
            None => Ok(()),
        }
    }
}

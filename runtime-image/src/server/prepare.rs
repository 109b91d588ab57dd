//! Text to tokens, off the threads that serve connections, and the checks of what comes out.

use std::sync::Arc;

use super::Service;
use super::error::ApiError;
use crate::engine::Permit;
use crate::openai::options::InvalidField;
use crate::request::PromptTooLong;

/// Runs `encode` on a blocking thread. The permit goes along and comes back, so that a client
/// that leaves meanwhile cannot begin more work than there are places.
pub(super) async fn prepare(
    service: &Arc<Service>,
    permit: Permit,
    encode: impl FnOnce(&Service) -> Result<Vec<u32>, ApiError> + Send + 'static,
) -> Result<(Vec<u32>, Permit), ApiError> {
    let service = Arc::clone(service);
    tokio::task::spawn_blocking(move || Ok((encode(&service)?, permit)))
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?
}

impl Service {
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

    /// Refuses prompts that the model cannot read.
    pub(super) fn check_tokens(
        &self,
        field: &'static str,
        prompt: &[u32],
    ) -> Result<(), InvalidField> {
        if prompt.is_empty() {
            let message = format!("{field} is empty, expected at least one token");
            return Err(InvalidField::new(field, message));
        }
        match prompt
            .iter()
            .find(|token| **token as usize >= self.vocabulary)
        {
            Some(token) => Err(InvalidField::new(
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

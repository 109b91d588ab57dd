//! A conversation's pictures: from their URLs to pixels, and the room that they leave.
//!
//! `data:` URLs are read; what lies elsewhere comes from the hosts that `serve` was told of, and from nowhere else.

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use super::Service;
use super::body::{LARGEST_BODY, Share};
use super::error::ApiError;
use super::lifecycle::{Lifecycle, Sight};
use crate::openai::chat::PictureUrl;
use crate::openai::options::InvalidField;
use crate::picture_hosts::FetchError;
use crate::pictures::PictureError;
use crate::request::PromptPicture;
use crate::step::BLOCK_TOKENS;

/// Pictures of one request that are fetched at the same time.
const FETCHED_TOGETHER: usize = 4;

/// A picture as a request shows it, fetched where it lies elsewhere.
pub(super) struct Shown {
    url: PictureUrl,
    /// Absent where the URL holds it.
    fetched: Option<Vec<u8>>,
}

const DATA: &str = "data:";

fn is_data(url: &str) -> bool {
    let scheme = url.get(..DATA.len());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(DATA))
}

/// Decodes a `data:` URL. What it says of its content is passed over: the content tells.
fn data(url: &str) -> Result<Vec<u8>, &'static str> {
    let (head, text) = url[DATA.len()..]
        .split_once(',')
        .ok_or("expected a comma before the data")?;
    if !head.to_ascii_lowercase().ends_with(";base64") {
        return Err("expected ;base64 before the data");
    }
    STANDARD
        .decode(text)
        .map_err(|_| "the data is no base64 (with padding, without white space)")
}

fn refused(url: &PictureUrl, detail: &str) -> ApiError {
    let PictureUrl { message, part, .. } = url;
    let message = format!("messages[{message}].content[{part}].image_url cannot be read: {detail}");
    InvalidField::new("messages", message).into()
}

impl Lifecycle {
    /// Fetches the pictures that lie elsewhere. Their bytes join the request's share, and are bounded as a body is.
    pub(super) async fn fetch_pictures(
        &self,
        urls: Vec<PictureUrl>,
        share: &mut Share,
    ) -> Result<Vec<Shown>, ApiError> {
        let deadline = Instant::now() + self.picture_timeout;
        let taken = Mutex::new((share, LARGEST_BODY));
        let take = |bytes: usize| {
            let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
            let left = taken.1.checked_sub(bytes);
            taken.1 = left.ok_or(FetchError::TooLarge(LARGEST_BODY))?;
            let grown = taken.0.grow(&self.body_budget, bytes);
            grown.map_err(|_| FetchError::Full)
        };
        let take = &take;
        let fetch = |url: PictureUrl| async move {
            if is_data(&url.url) {
                let fetched = None;
                return Ok(Shown { url, fetched });
            }
            let Some(hosts) = &self.picture_hosts else {
                let detail = "expected a data: URL; this server fetches no pictures";
                return Err(refused(&url, detail));
            };
            match hosts.fetch(&url.url, deadline, take).await {
                Ok(bytes) => {
                    let fetched = Some(bytes);
                    Ok(Shown { url, fetched })
                }
                Err(FetchError::Full) => Err(ApiError::BodiesFull),
                Err(error) => Err(refused(&url, &error.to_string())),
            }
        };
        let all = stream::iter(urls).map(fetch).buffered(FETCHED_TOGETHER);
        all.try_collect().await
    }
}

impl Service {
    /// Refuses pictures that memory has no room for, before any is fetched or decoded: each takes one tile at least.
    pub(super) fn check_room(&self, pictures: usize) -> Result<(), ApiError> {
        if let Some(sight) = self.sight.as_ref().filter(|_| pictures > 0) {
            sight.room(pictures, pictures * sight.facts.page_count(1))?;
        }
        Ok(())
    }

    /// Reads a conversation's pictures and finds their places in its prompt.
    pub(super) fn read_pictures(
        &self,
        shown: &[Shown],
        prompt: &[u32],
    ) -> Result<Vec<PromptPicture>, ApiError> {
        let Some(sight) = &self.sight else {
            return Ok(Vec::new());
        };
        if shown.is_empty() {
            return Ok(Vec::new());
        }
        let places = prompt.iter().enumerate();
        let places: Vec<usize> = places
            .filter(|(_, token)| **token == sight.facts.token)
            .map(|(place, _)| place)
            .collect();
        if places.len() != shown.len() {
            let message = format!(
                "messages has {} pictures, the model's chat template writes {} of them",
                shown.len(),
                places.len()
            );
            return Err(InvalidField::new("messages", message).into());
        }
        let read = |(position, Shown { url, fetched }): (usize, &Shown)| {
            let picture = match fetched {
                Some(bytes) => sight.preparation.read_picture(bytes),
                None => {
                    let bytes = data(&url.url).map_err(|detail| refused(url, detail))?;
                    sight.preparation.read_picture(&bytes)
                }
            };
            let picture = picture.map_err(|error| match error {
                PictureError::Full => ApiError::PicturesFull,
                error => refused(url, &error.to_string()),
            })?;
            Ok(PromptPicture { position, picture })
        };
        places.into_iter().zip(shown).map(read).collect()
    }

    /// Tokens that prompt and answer may have together beside these pictures.
    pub(super) fn context_beside(&self, pictures: &[PromptPicture]) -> Result<usize, ApiError> {
        let context = self.engine.limits().context_length;
        let Some(sight) = self.sight.as_ref().filter(|_| !pictures.is_empty()) else {
            return Ok(context);
        };
        let pages = |picture: &PromptPicture| sight.facts.page_count(picture.picture.tiles);
        let room = sight.room(pictures.len(), pictures.iter().map(pages).sum())?;
        Ok(context.min(room))
    }
}

impl Sight {
    /// Tokens that fit beside so many pages.
    fn room(&self, pictures: usize, pages: usize) -> Result<usize, InvalidField> {
        // One block for the tokens, and one that a copy may take.
        match self.blocks.checked_sub(pages + 1) {
            Some(blocks) if blocks > 0 => Ok(blocks * BLOCK_TOKENS),
            _ => {
                let message = format!(
                    "messages has {pictures} pictures, which take at least {pages} of the {} blocks that this server has for keys and values; send fewer or smaller ones",
                    self.blocks
                );
                Err(InvalidField::new("messages", message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_data_urls_are_read() {
        assert_eq!(data("data:image/png;base64,AAEC"), Ok(vec![0, 1, 2]));
        assert_eq!(data("DATA:;BASE64,"), Ok(Vec::new()));
        for url in [
            "data:",
            "data:image/png;base64",
            "data:image/png,AAEC",
            "data:;base64,AA",
            "data:;base64,A A=",
            "data:;base64,\u{1F600}",
        ] {
            assert!(data(url).is_err(), "{url}");
        }
        for url in ["", "data", "dätä:", "https://example.com/a.png", " data:"] {
            assert!(!is_data(url), "{url}");
        }
    }
}

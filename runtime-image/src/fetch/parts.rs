//! One large file over several connections: parts are asked for by ranges, a few ahead, and come out in order.
//!
//! Each part is whole in memory before it is handed on, so what is on the disk is always a beginning of the file without holes,
//! and a fetch that is killed goes on from there as from any other.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use futures::{Stream, StreamExt, stream};
use reqwest::Response;
use url::Url;

use super::buffers::{Buffer, Buffers, CONNECTIONS};
use super::download::{Answered, Download};
use super::pace::Pace;
use crate::hub::HubError;

/// Why a file does not come in parts.
#[derive(Debug)]
pub(super) enum Trouble {
    Hub(HubError),
    /// The hub has a file of another size.
    OtherSize(String),
    /// The hub answers a range with something else.
    NoRanges,
}

/// Where the bytes were found last, so that the hub itself is asked once for a file and not once for a part.
#[derive(Debug, Default)]
pub(super) struct Link(Mutex<Option<Url>>);

impl Link {
    fn get(&self) -> Option<Url> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, url: Option<Url>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = url;
    }
}

/// The parts of a file from a byte to its end, in order.
pub(super) fn parts<'a>(
    download: Download<'a>,
    link: &'a Link,
    rest: Range<u64>,
) -> impl Stream<Item = Result<Buffer, Trouble>> + 'a {
    let part_size = download.part_size;
    let ranges = rest
        .clone()
        .step_by(usize::try_from(part_size).unwrap_or(usize::MAX))
        .map(move |start| start..rest.end.min(start + part_size));
    stream::iter(ranges)
        .map(move |range| part(download, link, range))
        .buffered(CONNECTIONS)
}

async fn part(download: Download<'_>, link: &Link, range: Range<u64>) -> Result<Buffer, Trouble> {
    let buffers: &Buffers = download.buffers;
    let mut buffer = buffers.take().await;
    let length = usize::try_from(range.end - range.start).map_err(|_| Trouble::NoRanges)?;
    buffer.reserve_exact(length);
    let patience = download.hub.patience();
    let mut tries = patience.start();
    while buffer.len() < length {
        let from = range.start + buffer.len() as u64;
        let error = match ask(download, link, from..range.end).await? {
            Ok(response) => {
                let before = buffer.len();
                let end = read(
                    response,
                    &mut buffer,
                    length,
                    Pace::start(patience.0, Instant::now()),
                )
                .await;
                match end {
                    Ok(()) if buffer.len() == length => return Ok(buffer),
                    Ok(()) => {
                        tries.progressed_if(buffer.len() > before);
                        download.short(range.start + buffer.len() as u64)
                    }
                    Err(Broken::Cut(error)) => {
                        tries.progressed_if(buffer.len() > before);
                        download.cut(link.get().as_ref(), &error)
                    }
                    Err(Broken::TooSlow(why)) => download.slow(why),
                    Err(Broken::TooLong) => {
                        return Err(Trouble::OtherSize(format!(
                            "more came than the bytes {from} to {} that were asked for",
                            range.end - 1
                        )));
                    }
                }
            }
            Err(error) => error,
        };
        // Addresses on content hosts become too old; the hub gives a new one.
        link.set(None);
        tries.pause(error).await.map_err(Trouble::Hub)?;
    }
    Ok(buffer)
}

async fn ask(
    download: Download<'_>,
    link: &Link,
    range: Range<u64>,
) -> Result<Result<Response, HubError>, Trouble> {
    let asked = (range.start, Some(range.end - 1));
    match download.ask(link.get(), asked).await {
        Ok(Answered::Part(response)) => {
            if !download.hub.is_hub(response.url()) {
                link.set(Some(response.url().clone()));
            }
            Ok(Ok(response))
        }
        Ok(Answered::Whole(_)) => Err(Trouble::NoRanges),
        Ok(Answered::OtherSize(why)) => Err(Trouble::OtherSize(why)),
        Err(error) => Ok(Err(error)),
    }
}

enum Broken {
    Cut(reqwest::Error),
    TooSlow(String),
    TooLong,
}

/// Reads a body into what is free of the buffer.
async fn read(
    response: Response,
    buffer: &mut Buffer,
    length: usize,
    mut pace: Pace,
) -> Result<(), Broken> {
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(Broken::Cut)?;
        if piece.len() > length - buffer.len() {
            return Err(Broken::TooLong);
        }
        buffer.extend_from_slice(&piece);
        pace.count(piece.len(), Instant::now())
            .map_err(Broken::TooSlow)?;
    }
    Ok(())
}

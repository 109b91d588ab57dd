//! The architecture's name, from the beginning of the model's own files; a few kilobytes tell it, the weights stay where they are.
//!
//! Asking for a file's bytes has a second use: a gated repository may show its listing to everybody and refuse only its files,
//! and it is better to know before a volume is made.

use reqwest::StatusCode;
use serde::Deserialize;

use super::choice::Format;
use super::client::{read_beginning, read_body};
use super::error::HubError;
use super::huggingface::HuggingFace;
use super::listing::{RemoteFile, RepoPath, Snapshot};

/// `config.json` of the largest models is some ten kilobytes.
const CONFIG_LIMIT: usize = 1 << 20;

/// `general.architecture` is by custom the first key; what comes after 64 KiB is not worth reading.
const HEADER_LIMIT: usize = 64 << 10;

/// The longest name that is taken for one.
const NAME_LIMIT: usize = 128;

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architectures: Vec<String>,
}

/// What the model's own files call its architecture: `architectures[0]` of `config.json`, or `general.architecture` of a GGUF file.
///
/// # Errors
/// When the hub refuses the file or does not answer. Files that say nothing, or nothing readable, are no error.
pub async fn architecture(
    hub: &HuggingFace,
    snapshot: &Snapshot,
    format: Format,
    chosen: &[RemoteFile],
) -> Result<Option<String>, HubError> {
    let name = match format {
        Format::Ggufv2 => {
            let first = chosen
                .iter()
                .find(|file| file.path.as_str().to_ascii_lowercase().ends_with(".gguf"));
            let Some(file) = first else { return Ok(None) };
            gguf_architecture(&beginning(hub, snapshot, &file.path).await?)
        }
        _ => match snapshot
            .files
            .iter()
            .find(|file| file.path.as_str() == "config.json")
        {
            Some(file) => config_architecture(&config(hub, snapshot, &file.path).await?),
            None => {
                if let Some(file) = chosen.first() {
                    beginning(hub, snapshot, &file.path).await?;
                }
                None
            }
        },
    };
    Ok(name.filter(|name| is_name(name)))
}

async fn beginning(
    hub: &HuggingFace,
    snapshot: &Snapshot,
    path: &RepoPath,
) -> Result<Vec<u8>, HubError> {
    hub.patience()
        .ask(|| async {
            let response = hub
                .open(snapshot, path, Some((0, Some(HEADER_LIMIT as u64 - 1))))
                .await?;
            if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(Vec::new());
            }
            read_beginning(
                response,
                HEADER_LIMIT,
                &format!("read the beginning of {path}"),
            )
            .await
        })
        .await
}

async fn config(
    hub: &HuggingFace,
    snapshot: &Snapshot,
    path: &RepoPath,
) -> Result<Vec<u8>, HubError> {
    hub.patience()
        .ask(|| async {
            read_body(
                hub.open(snapshot, path, None).await?,
                CONFIG_LIMIT,
                "read config.json",
            )
            .await
        })
        .await
}

fn config_architecture(json: &[u8]) -> Option<String> {
    serde_json::from_slice::<Config>(json)
        .ok()?
        .architectures
        .into_iter()
        .next()
}

/// Reads metadata pairs up to `general.architecture`; gives up on the first thing that is not understood.
/// The layout is that of the GGUF specification: magic, version, two counts, then key, type and value of each pair, little-endian.
fn gguf_architecture(header: &[u8]) -> Option<String> {
    let mut header = Bytes(header);
    if header.take(4)? != b"GGUF" || !matches!(header.number(4)?, 2 | 3) {
        return None;
    }
    let _tensors = header.number(8)?;
    let pairs = header.number(8)?;
    for _ in 0..pairs {
        let key = header.text()?;
        let kind = header.number(4)?;
        if key == b"general.architecture" && kind == STRING {
            return String::from_utf8(header.text()?.to_vec()).ok();
        }
        header.skip(kind)?;
    }
    None
}

const STRING: u64 = 8;
const ARRAY: u64 = 9;

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count.try_into().ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, width: u64) -> Option<u64> {
        Some(
            self.take(width)?
                .iter()
                .rev()
                .fold(0, |number, &byte| number << 8 | u64::from(byte)),
        )
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.number(8)?;
        self.take(length)
    }

    fn skip(&mut self, kind: u64) -> Option<()> {
        match kind {
            STRING => drop(self.text()?),
            ARRAY => {
                let element = self.number(4)?;
                let count = self.number(8)?;
                match element {
                    // Each text takes at least its length's eight bytes, so the header's end bounds this.
                    STRING => (0..count).try_for_each(|_| self.text().map(drop))?,
                    _ => drop(self.take(count.checked_mul(width(element)?)?)?),
                }
            }
            _ => drop(self.take(width(kind)?)?),
        }
        Some(())
    }
}

/// Bytes of a plain value, by its type's number.
fn width(kind: u64) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_LIMIT).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Vec<u8> {
        [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
    }

    fn header(pairs: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = [
            b"GGUF".as_slice(),
            &3u32.to_le_bytes(),
            &0u64.to_le_bytes(),
            &(pairs.len() as u64).to_le_bytes(),
        ]
        .concat();
        for (key, kind, value) in pairs {
            bytes.extend([text(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        bytes
    }

    #[test]
    fn finds_the_architecture_behind_other_keys() {
        let array = [
            8u32.to_le_bytes().as_slice(),
            &2u64.to_le_bytes(),
            &text("a"),
            &text("bc"),
        ]
        .concat();
        let numbers = [6u32.to_le_bytes().as_slice(), &2u64.to_le_bytes(), &[0; 8]].concat();
        let bytes = header(&[
            ("general.alignment", 4, vec![32, 0, 0, 0]),
            ("tokens", 9, array),
            ("scores", 9, numbers),
            ("flag", 7, vec![1]),
            ("general.architecture", 8, text("llama")),
        ]);
        assert_eq!(gguf_architecture(&bytes).as_deref(), Some("llama"));
        for end in 0..bytes.len() {
            assert_eq!(gguf_architecture(&bytes[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn gives_up_on_lengths_beyond_the_header() {
        let endless = [8u32.to_le_bytes().as_slice(), &u64::MAX.to_le_bytes()].concat();
        assert_eq!(gguf_architecture(&header(&[("tokens", 9, endless)])), None);
        let overflowing = [12u32.to_le_bytes().as_slice(), &u64::MAX.to_le_bytes()].concat();
        assert_eq!(
            gguf_architecture(&header(&[("scores", 9, overflowing)])),
            None
        );
        assert_eq!(gguf_architecture(&header(&[("x", 99, vec![0; 8])])), None);
        assert_eq!(gguf_architecture(b"<html>"), None);
    }

    #[test]
    fn reads_the_first_architecture_of_a_config() {
        assert_eq!(
            config_architecture(
                br#"{"architectures":["MllamaForConditionalGeneration","x"],"y":1}"#
            )
            .as_deref(),
            Some("MllamaForConditionalGeneration")
        );
        for json in [
            br#"{}"#.as_slice(),
            br#"{"architectures":[]}"#,
            b"[",
            br#"{"architectures":"x"}"#,
        ] {
            assert_eq!(config_architecture(json), None);
        }
        assert!(!is_name("a b") && !is_name("") && !is_name(&"x".repeat(129)));
    }
}

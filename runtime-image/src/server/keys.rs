//! Who may ask: the keys of `--api-key-file`, read again while the process runs, and the check in front of every route.
//!
//! What cannot be read lets nobody in. Only digests of keys are kept, and no key ever goes into a log or an answer.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::App;
use super::error::ApiError;

/// Bytes of the file.
const LARGEST_FILE: u64 = 64 << 10;

/// Keys of the file.
const MOST_KEYS: usize = 256;

/// Bytes of one key: shorter ones can be guessed, longer ones are a mistake.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 8..=512;

/// Pause between two looks at the file. A mounted Secret changes by a swapped link, which a watch on the file would miss.
const PAUSE: Duration = Duration::from_secs(1);

/// Lines named in a log line about passed-over ones.
const LINES_NAMED: usize = 5;

type Digest = [u8; 32];

/// What the file held when it was last looked at.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Of the keys, each once.
    digests: Arc<[Digest]>,
    /// Numbers of lines that are no key.
    passed_over: Vec<usize>,
}

/// The keys that open the API.
pub struct ApiKeys {
    path: PathBuf,
    found: Mutex<Result<Found, String>>,
}

/// Answers 401 to every request without one of the keys, whatever its path and method.
pub(super) async fn require(State(app): State<App>, request: Request, next: Next) -> Response {
    match &app.keys {
        Some(keys) if !keys.open(request.headers()) => ApiError::Unauthorized.into_response(),
        _ => next.run(request).await,
    }
}

impl ApiKeys {
    /// Looks at the file for the first time.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let keys = Self {
            path: path.to_owned(),
            // Differs from all that a look can find, so the first one is logged.
            found: Mutex::new(Err(String::new())),
        };
        keys.look();
        keys
    }

    /// Looks at the file again and again.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PAUSE).await;
            let keys = Arc::clone(&self);
            // Looking does not panic, and after a missed look the next one comes.
            let _ = tokio::task::spawn_blocking(move || keys.look()).await;
        }
    }

    /// How many keys open the API now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.digests().len()
    }

    fn open(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|key| known(key, &self.digests()))
    }

    fn digests(&self) -> Arc<[Digest]> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found
            .as_ref()
            .map(|found| Arc::clone(&found.digests))
            .unwrap_or_default()
    }

    /// Takes over what the file holds now; says so if it is something else than before.
    fn look(&self) {
        let now = read(&self.path).and_then(|bytes| parse(&bytes));
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if *found != now {
            report(&self.path, &now);
            *found = now;
        }
    }
}

fn report(path: &Path, found: &Result<Found, String>) {
    let file = path.display();
    match found {
        Err(detail) => {
            tracing::warn!(%file, %detail, "cannot read the API keys: every request is refused until the file is mended");
        }
        Ok(found) => {
            if !found.passed_over.is_empty() {
                let lines = &found.passed_over[..found.passed_over.len().min(LINES_NAMED)];
                let (least, most) = (KEY_BYTES.start(), KEY_BYTES.end());
                tracing::warn!(%file, ?lines, count = found.passed_over.len(), "passed over lines that are no key: a key has {least} to {most} visible ASCII characters");
            }
            if found.digests.is_empty() {
                tracing::warn!(%file, "the file has no API key: every request is refused until it has one");
            } else {
                tracing::info!(%file, keys = found.digests.len(), "took over the API keys");
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    // A pipe would never end.
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(format!("it has more than {LARGEST_FILE} bytes"));
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Found, String> {
    let (mut digests, mut passed_over) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let key = line.trim_ascii();
        if key.is_empty() {
            continue;
        }
        if KEY_BYTES.contains(&key.len()) && key.iter().all(u8::is_ascii_graphic) {
            digests.push(Sha256::digest(key).into());
        } else {
            passed_over.push(number);
        }
    }
    digests.sort_unstable();
    digests.dedup();
    if digests.len() > MOST_KEYS {
        return Err(format!(
            "it has {} keys, at most {MOST_KEYS} are taken",
            digests.len()
        ));
    }
    Ok(Found {
        digests: digests.into(),
        passed_over,
    })
}

/// The key that a request shows. Two such headers show none: who sees only one of them must not see another one than we do.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let value = value.as_bytes();
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, key) = value.split_at(space);
    let key = key.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer") && KEY_BYTES.contains(&key.len())).then_some(key)
}

/// Compares with every key in the same time, wherever they differ: digests have one length and are looked at to their ends.
fn known(key: &[u8], digests: &[Digest]) -> bool {
    let shown: Digest = Sha256::digest(key).into();
    digests
        .iter()
        .fold(Choice::from(0), |found, digest| {
            found | digest.ct_eq(&shown)
        })
        .into()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn keys_stand_one_a_line_and_the_rest_is_passed_over() {
        let found = parse(
            b"\n  first-key \r\nshort\n\nsecond-key\nwith space\nfirst-key\n\xffbinary-key\n",
        )
        .expect("small");
        assert_eq!(found.digests.len(), 2);
        assert_eq!(found.passed_over, [3, 6, 8]);
        for (key, opens) in [
            ("first-key", true),
            ("second-key", true),
            ("first-ke", false),
            ("first-key2", false),
            ("short", false),
        ] {
            assert_eq!(known(key.as_bytes(), &found.digests), opens, "{key}");
        }
    }

    #[test]
    fn an_empty_file_opens_nothing_and_too_many_keys_are_refused() {
        assert_eq!(parse(b"").map(|found| found.digests.len()), Ok(0));
        let many: String = (0..=MOST_KEYS)
            .map(|n| format!("key-number-{n}\n"))
            .collect();
        assert!(parse(many.as_bytes()).is_err_and(|error| error.contains("257")));
    }

    #[test]
    fn only_one_bearer_header_shows_a_key() {
        let shown = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(shown(&["Bearer first-key"]), Some(b"first-key".to_vec()));
        assert_eq!(shown(&["bearer   first-key "]), Some(b"first-key".to_vec()));
        for values in [
            &[][..],
            &["first-key"],
            &["Bearer"],
            &["Bearer "],
            &["Basic first-key"],
            &["Bearerfirst-key"],
            &["Bearer first-key", "Bearer first-key"],
        ] {
            assert_eq!(shown(values), None, "{values:?}");
        }
    }

    #[test]
    fn what_is_no_readable_file_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(read(folder.path()), Err("it is no file".to_owned()));
        assert!(read(&folder.path().join("absent")).is_err());
        let large = folder.path().join("large");
        std::fs::write(&large, vec![b'a'; 64 << 10]).expect("writes");
        assert!(read(&large).is_ok());
        std::fs::write(&large, vec![b'a'; (64 << 10) + 1]).expect("writes");
        assert!(read(&large).is_err());
    }
}

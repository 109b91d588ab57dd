//! Who may ask: the keys of `--api-key-file`, read again while the process runs, and the check in front of every route.
//!
//! What cannot be read lets nobody in. Only digests of keys are kept, and no key ever goes into a log or an answer.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::App;
use super::error::ApiError;

/// Bytes of the file.
const LARGEST_FILE: u64 = 64 << 10;

/// Keys of the file.
const MOST_KEYS: usize = 256;

/// Bytes of one key: shorter ones can be guessed, longer ones are a mistake.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 8..=512;

/// Characters of a key's name.
const LONGEST_NAME: usize = 63;

/// Stands for the name of keys that have none.
const UNNAMED: &str = "unnamed";

/// Pause between two looks at the file. A mounted Secret changes by a swapped link, which a watch on the file would miss.
const PAUSE: Duration = Duration::from_secs(1);

/// Lines named in a log line about passed-over ones.
const LINES_NAMED: usize = 5;

type Digest = [u8; 32];

/// A key as far as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    digest: Digest,
    name: Arc<str>,
}

/// The name of the key that a request showed; absent where none is needed.
#[derive(Clone, Debug, Default)]
pub(super) struct Asker(pub(super) Option<Arc<str>>);

/// What the file held when it was last looked at.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Each once.
    keys: Arc<[Key]>,
    /// Numbers of lines that are no key.
    passed_over: Vec<usize>,
}

/// The keys that open the API.
pub struct ApiKeys {
    path: PathBuf,
    found: Mutex<Result<Found, String>>,
}

/// Answers 401 to every request without one of the keys, whatever its path and method.
pub(super) async fn require(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if let Some(keys) = &app.keys {
        let Some(name) = keys.open(request.headers()) else {
            return ApiError::Unauthorized.into_response();
        };
        request.extensions_mut().insert(Asker(Some(name)));
    }
    next.run(request).await
}

impl FromRequestParts<App> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
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
        self.keys().len()
    }

    /// The name of the key that a request shows, if it is one of these.
    fn open(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        known(bearer(headers)?, &self.keys())
    }

    fn keys(&self) -> Arc<[Key]> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found
            .as_ref()
            .map(|found| Arc::clone(&found.keys))
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
            if found.keys.is_empty() {
                tracing::warn!(%file, "the file has no API key: every request is refused until it has one");
            } else {
                tracing::info!(%file, keys = found.keys.len(), "took over the API keys");
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
    let (mut keys, mut passed_over) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        match key(line) {
            Some(key) => keys.push(key),
            None => passed_over.push(number),
        }
    }
    // Of a key that stands there twice the first name counts: this keeps the order of equal ones.
    keys.sort_by_key(|key| key.digest);
    keys.dedup_by_key(|key| key.digest);
    if keys.len() > MOST_KEYS {
        return Err(format!(
            "it has {} keys, at most {MOST_KEYS} are taken",
            keys.len()
        ));
    }
    Ok(Found {
        keys: keys.into(),
        passed_over,
    })
}

/// The key of a line: `KEY` or `NAME KEY`.
fn key(line: &[u8]) -> Option<Key> {
    let (name, key) = match line.iter().position(u8::is_ascii_whitespace) {
        None => (UNNAMED, line),
        Some(end) => {
            let (name, key) = line.split_at(end);
            let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
            let name = std::str::from_utf8(name)
                .ok()
                .filter(|name| name.len() <= LONGEST_NAME && name.as_bytes().iter().all(valid))?;
            (name, key.trim_ascii())
        }
    };
    let valid = KEY_BYTES.contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
    valid.then(|| Key {
        digest: Sha256::digest(key).into(),
        name: name.into(),
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
/// Only who shows one of the keys can learn by the time which one it is.
fn known(key: &[u8], keys: &[Key]) -> Option<Arc<str>> {
    let shown: Digest = Sha256::digest(key).into();
    let mut place = u32::MAX;
    for (number, key) in (0..).zip(keys) {
        place.conditional_assign(&number, key.digest.ct_eq(&shown));
    }
    let found = keys.get(usize::try_from(place).ok()?)?;
    Some(Arc::clone(&found.name))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn keys_stand_one_a_line_and_the_rest_is_passed_over() {
        let found = parse(
            b"\n  first-key \r\nshort\n\nsecond-key\nwith space\nfirst-key\n\xffbinary-key\nteam-a\t third-key\nteam-b second-key\nno/name fourth-key\na b fifth-key\n",
        )
        .expect("small");
        assert_eq!(found.keys.len(), 3);
        assert_eq!(found.passed_over, [3, 6, 8, 11, 12]);
        for (key, name) in [
            ("first-key", Some(UNNAMED)),
            ("second-key", Some(UNNAMED)),
            ("third-key", Some("team-a")),
            ("first-ke", None),
            ("first-key2", None),
            ("short", None),
            ("fourth-key", None),
            ("team-a third-key", None),
        ] {
            assert_eq!(known(key.as_bytes(), &found.keys).as_deref(), name, "{key}");
        }
    }

    #[test]
    fn an_empty_file_opens_nothing_and_too_many_keys_are_refused() {
        assert_eq!(parse(b"").map(|found| found.keys.len()), Ok(0));
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

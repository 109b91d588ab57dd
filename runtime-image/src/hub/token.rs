//! The hub's bearer token: read from a file, put into one header, shown to nobody.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use reqwest::header::HeaderValue;

/// More than any hub's token needs; a file beyond it is not a token.
const TOKEN_LIMIT: u64 = 8192;

/// A bearer token. It has no `Display`, and its `Debug` says only that there is one.
#[derive(Clone)]
pub struct Token(HeaderValue);

/// Whether there is a token, and if not, why not: the hub's refusal is explained with it.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// There is one.
    Given(Token),
    /// No token file was named.
    NotAsked,
    /// A token file was named and is not there: the Secret or its key is missing.
    Absent(PathBuf),
    /// The token file is there and holds nothing.
    Empty(PathBuf),
}

impl Token {
    /// The header's value that carries the token, marked sensitive so that no HTTP log shows it.
    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// The same as a cookie, where a cookie may hold it.
    pub(crate) fn cookie(&self, name: &str) -> Option<HeaderValue> {
        let token = self.0.to_str().ok()?.strip_prefix("Bearer ")?;
        if token.contains([';', ',', '"', '\\']) {
            return None;
        }
        let mut value = HeaderValue::from_str(&format!("{name}={token}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Credentials {
    /// Reads the token's file; white space around the token is not part of it.
    ///
    /// # Errors
    /// When the file is there and cannot be read, is too large, or holds characters that no header may carry.
    pub fn read(path: Option<&Path>) -> Result<Self, TokenError> {
        let Some(path) = path else {
            return Ok(Self::NotAsked);
        };
        let failed = |source| TokenError::Read {
            path: path.to_path_buf(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::Absent(path.to_path_buf()));
            }
            Err(error) => return Err(failed(error)),
        };
        let mut text = String::new();
        file.take(TOKEN_LIMIT + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::Empty(path.to_path_buf()));
        }
        if text.len() as u64 > TOKEN_LIMIT || text.contains(char::is_whitespace) || !text.is_ascii()
        {
            return Err(TokenError::NotAToken {
                path: path.to_path_buf(),
            });
        }
        Token::parse(text)
            .map(Self::Given)
            .ok_or_else(|| TokenError::NotAToken {
                path: path.to_path_buf(),
            })
    }

    /// The token, where there is one.
    pub fn token(&self) -> Option<&Token> {
        match self {
            Self::Given(token) => Some(token),
            Self::NotAsked | Self::Absent(_) | Self::Empty(_) => None,
        }
    }

    /// What to say to a person whose request the hub refused for want of rights.
    pub fn explain(&self) -> String {
        match self {
            Self::Given(_) => "the token in the Secret was refused: check that it is not expired and may read this repository".into(),
            Self::NotAsked => "no token given: put one into a Secret and name it in tokenSecretRef".into(),
            Self::Absent(path) => format!("no token given: {} is absent, so the Secret named in tokenSecretRef or its key does not exist", path.display()),
            Self::Empty(path) => format!("no token given: {} is empty, so the key of the Secret holds nothing", path.display()),
        }
    }
}

/// The token's file is there and of no use. Its content is never part of the message.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file could not be read.
    #[error("failed to read the hub's token from {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no token: more than {TOKEN_LIMIT} bytes, or characters that no token has; write the bare token into the Secret's key", path.display())]
    NotAToken {
        /// The file.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<Credentials, TokenError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, content).unwrap();
        Credentials::read(Some(&path))
    }

    #[test]
    fn shows_the_token_to_nobody() {
        let credentials = read(b" hf_verysecret\n").unwrap();
        assert_eq!(
            credentials.token().unwrap().header().to_str().unwrap(),
            "Bearer hf_verysecret"
        );
        let cookie = credentials.token().unwrap().cookie("session").unwrap();
        assert_eq!(cookie.to_str().unwrap(), "session=hf_verysecret");
        let shown = format!(
            "{credentials:?} {:?} {cookie:?} {}",
            credentials.token().unwrap().header(),
            credentials.explain()
        );
        assert!(!shown.contains("verysecret"), "{shown}");
    }

    #[test]
    fn tells_an_absent_token_from_an_empty_one() {
        assert!(matches!(
            Credentials::read(Some(Path::new("/nonexistent/token"))),
            Ok(Credentials::Absent(_))
        ));
        assert!(matches!(read(b"\n \n"), Ok(Credentials::Empty(_))));
        assert!(matches!(Credentials::read(None), Ok(Credentials::NotAsked)));
    }

    #[test]
    fn refuses_what_no_header_may_carry() {
        for content in [
            b"two words".as_slice(),
            b"a\nb",
            b"hf_\xc3\xbc",
            &[b'x'; 9000],
        ] {
            let error = read(content).unwrap_err();
            assert!(matches!(error, TokenError::NotAToken { .. }), "{error}");
        }
        assert!(matches!(read(b"hf_\xff"), Err(TokenError::Read { .. })));
    }
}

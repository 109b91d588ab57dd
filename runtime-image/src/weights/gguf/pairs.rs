//! What a GGUF file says of itself: values by their keys.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::header::Value;
use crate::weights::LoadError;

/// Values of one file, by their keys.
pub struct Pairs {
    path: PathBuf,
    pairs: HashMap<String, Value>,
}

impl Pairs {
    pub(super) fn new(path: &Path, pairs: HashMap<String, Value>) -> Self {
        Self {
            path: path.to_owned(),
            pairs,
        }
    }

    /// Takes out the values whose keys begin so.
    pub(super) fn take(&mut self, beginning: &str) -> Self {
        let taken = self.pairs.extract_if(|key, _| key.starts_with(beginning));
        Self::new(&self.path, taken.collect())
    }

    /// The file that errors name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key, if the file has it.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.pairs.get(key)
    }

    /// The text of a key.
    ///
    /// # Errors
    /// When the key is missing or no text.
    pub fn text(&self, key: &str) -> Result<&str, LoadError> {
        match self.value(key) {
            Some(Value::Text(text)) => Ok(text),
            Some(other) => Err(self.error(format!("{key} is {}, expected text", other.what()))),
            None => Err(self.error(format!("key {key} is missing"))),
        }
    }

    /// The whole number of a key, if the file has it.
    ///
    /// # Errors
    /// When it is no whole number.
    pub fn whole(&self, key: &str) -> Result<Option<u64>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Whole(value)) => u64::try_from(*value)
                .map(Some)
                .map_err(|_| self.error(format!("{key} is {value}, expected a number from 0 on"))),
            Some(other) => {
                let what = other.what();
                Err(self.error(format!("{key} is {what}, expected a whole number")))
            }
        }
    }

    /// An error of the file's description.
    pub(crate) fn error(&self, detail: String) -> LoadError {
        LoadError::Description {
            path: self.path.clone(),
            detail,
        }
    }
}

//! Short digests of plain data, for the names of children.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// Ten hexadecimal digits: 40 bits, so that a collision within one owner's children is out of reach.
const LENGTH: usize = 10;

/// Digest of a value's JSON form.
#[must_use]
pub fn of(value: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(value).expect("plain data of our own types is JSON");
    let hash = Sha256::digest(bytes);
    let mut text = String::with_capacity(LENGTH);
    for byte in hash.iter().take(LENGTH / 2) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

//! The body that every error carries.

use schemars::JsonSchema;
use serde::Serialize;

/// `{"error": {…}}`.
#[derive(Clone, Debug, JsonSchema, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// What went wrong.
#[derive(Clone, Debug, JsonSchema, PartialEq, Eq, Serialize)]
pub struct ErrorObject {
    /// For a person.
    pub message: String,
    /// The class of the error.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field that is wrong.
    pub param: Option<String>,
    /// For a program.
    pub code: Option<&'static str>,
}

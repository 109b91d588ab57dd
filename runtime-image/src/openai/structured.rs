//! What a request says about the form of its answer: OpenAI's `response_format`, and vLLM's names for everything else.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::options::InvalidField;
use crate::grammar::Form;

/// `response_format`.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// With `json_schema`.
    pub json_schema: Option<NamedSchema>,
}

/// The schema of a `response_format`. Answers always follow it: `strict` changes nothing.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct NamedSchema {
    /// For people.
    pub name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// A JSON Schema; any object where it is absent.
    pub schema: Option<Value>,
    /// Whether the schema must be followed; it is in any case.
    pub strict: Option<bool>,
}

/// vLLM's `structured_outputs`: exactly one of the members.
#[derive(Clone, Debug, JsonSchema, Default, Deserialize)]
pub struct StructuredOutputs {
    /// A JSON Schema, as an object or as text.
    pub json: Option<Value>,
    /// Any JSON object.
    pub json_object: Option<bool>,
    /// A regular expression that the whole answer matches.
    pub regex: Option<String>,
    /// Texts, one of which is the answer.
    pub choice: Option<Vec<String>>,
    /// A grammar: in Lark's notation with a rule `start`, or in GBNF with a rule `root`.
    pub grammar: Option<String>,
}

/// The same wishes under vLLM's older names.
#[derive(Clone, Debug, JsonSchema, Default, Deserialize)]
pub struct Guided {
    /// As `structured_outputs.json`.
    pub guided_json: Option<Value>,
    /// As `structured_outputs.regex`.
    pub guided_regex: Option<String>,
    /// As `structured_outputs.choice`.
    pub guided_choice: Option<Vec<String>>,
    /// As `structured_outputs.grammar`.
    pub guided_grammar: Option<String>,
}

/// A form and the field that asked for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The field.
    pub field: &'static str,
    /// The form.
    pub form: Form,
}

/// The one form that a request asks for.
///
/// # Errors
/// When it asks for several, or a field is incomplete.
pub fn form(
    format: Option<&ResponseFormat>,
    outputs: Option<&StructuredOutputs>,
    guided: &Guided,
) -> Result<Option<Asked>, InvalidField> {
    let mut all = Vec::new();
    if let Some(format) = format {
        all.extend(format.form()?.map(|form| Asked {
            field: "response_format",
            form,
        }));
    }
    if let Some(StructuredOutputs {
        json,
        json_object,
        regex,
        choice,
        grammar,
    }) = outputs
    {
        let field = "structured_outputs";
        let forms = [
            json.as_ref().map(|json| schema(field, json)).transpose()?,
            (*json_object == Some(true)).then_some(Form::Object),
            regex.clone().map(Form::Pattern),
            choice.clone().map(Form::Choice),
            grammar.clone().map(Form::Grammar),
        ];
        all.extend(
            forms
                .into_iter()
                .flatten()
                .map(|form| Asked { field, form }),
        );
    }
    let Guided {
        guided_json,
        guided_regex,
        guided_choice,
        guided_grammar,
    } = guided;
    let json = guided_json
        .as_ref()
        .map(|json| schema("guided_json", json))
        .transpose()?;
    let older = [
        ("guided_json", json),
        ("guided_regex", guided_regex.clone().map(Form::Pattern)),
        ("guided_choice", guided_choice.clone().map(Form::Choice)),
        ("guided_grammar", guided_grammar.clone().map(Form::Grammar)),
    ];
    all.extend(
        older
            .into_iter()
            .filter_map(|(field, form)| Some(Asked { field, form: form? })),
    );
    if all.len() > 1 {
        let message = format!(
            "{} asks for a form of the answer that {} names already; expected one",
            all[1].field, all[0].field
        );
        return Err(InvalidField::new(all[1].field, message));
    }
    Ok(all.pop())
}

impl ResponseFormat {
    fn form(&self) -> Result<Option<Form>, InvalidField> {
        let field = "response_format";
        match self.kind.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(Form::Object)),
            "json_schema" => match &self.json_schema {
                None => {
                    let message = "response_format.json_schema is missing, expected an object with the member schema";
                    Err(InvalidField::new(field, message))
                }
                Some(NamedSchema { schema: None, .. }) => Ok(Some(Form::Object)),
                Some(NamedSchema {
                    schema: Some(value),
                    ..
                }) => schema(field, value).map(Some),
            },
            other => {
                let other: String = other.chars().take(40).collect();
                let message = format!(
                    "response_format.type is {other:?}, expected text, json_object or json_schema"
                );
                Err(InvalidField::new(field, message))
            }
        }
    }
}

/// A schema is an object or a boolean; vLLM's clients also send it as text.
fn schema(field: &'static str, value: &Value) -> Result<Form, InvalidField> {
    match value {
        Value::Object(_) | Value::Bool(_) => Ok(Form::Schema(value.clone())),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(value @ (Value::Object(_) | Value::Bool(_))) => Ok(Form::Schema(value)),
            Ok(_) => Err(InvalidField::new(
                field,
                format!("{field} holds a text that is no JSON Schema"),
            )),
            Err(error) => Err(InvalidField::new(
                field,
                format!("{field} holds a text that is no JSON: {error}"),
            )),
        },
        _ => Err(InvalidField::new(
            field,
            format!("{field} holds no JSON Schema, expected an object"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Deserialize)]
    struct Body {
        response_format: Option<ResponseFormat>,
        structured_outputs: Option<StructuredOutputs>,
        #[serde(flatten)]
        guided: Guided,
    }

    fn asked(body: Value) -> Result<Option<Asked>, InvalidField> {
        let body: Body = serde_json::from_value(body).expect("of the right types");
        form(
            body.response_format.as_ref(),
            body.structured_outputs.as_ref(),
            &body.guided,
        )
    }

    #[test]
    fn each_name_asks_for_its_form() {
        let schema = json!({ "type": "integer" });
        for (body, field, form) in [
            (
                json!({ "response_format": { "type": "json_object" } }),
                "response_format",
                Form::Object,
            ),
            (
                json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema } } }),
                "response_format",
                Form::Schema(schema.clone()),
            ),
            (
                json!({ "structured_outputs": { "json": schema.to_string() } }),
                "structured_outputs",
                Form::Schema(schema.clone()),
            ),
            (
                json!({ "structured_outputs": { "regex": "a+" } }),
                "structured_outputs",
                Form::Pattern("a+".to_owned()),
            ),
            (
                json!({ "guided_choice": ["a"] }),
                "guided_choice",
                Form::Choice(vec!["a".to_owned()]),
            ),
            (
                json!({ "guided_grammar": "start: \"a\"" }),
                "guided_grammar",
                Form::Grammar("start: \"a\"".to_owned()),
            ),
        ] {
            assert_eq!(
                asked(body.clone()),
                Ok(Some(Asked { field, form })),
                "{body}"
            );
        }
        for none in [
            json!({}),
            json!({ "response_format": { "type": "text" } }),
            json!({ "structured_outputs": {} }),
        ] {
            assert_eq!(asked(none), Ok(None));
        }
    }

    #[test]
    fn two_forms_and_half_a_form_are_refused() {
        for (body, field) in [
            (
                json!({ "response_format": { "type": "json_object" }, "guided_regex": "a" }),
                "guided_regex",
            ),
            (
                json!({ "structured_outputs": { "regex": "a", "choice": ["a"] } }),
                "structured_outputs",
            ),
            (
                json!({ "response_format": { "type": "json_schema" } }),
                "response_format",
            ),
            (
                json!({ "response_format": { "type": "yaml" } }),
                "response_format",
            ),
            (json!({ "guided_json": "{" }), "guided_json"),
            (json!({ "guided_json": 7 }), "guided_json"),
        ] {
            assert_eq!(
                asked(body.clone()).expect_err("refused").field,
                field,
                "{body}"
            );
        }
    }
}

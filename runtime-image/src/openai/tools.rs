//! Functions that a model may call, and the calls that it makes.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::options::InvalidField;
use crate::dialect::Function;

/// Functions taken in one request, as OpenAI has it.
const MOST_TOOLS: usize = 128;

/// Characters of a function's name, as OpenAI has it.
const LONGEST_NAME: usize = 64;

/// One of `tools`.
#[derive(Clone, Debug, JsonSchema, Deserialize, Serialize)]
pub struct Tool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What may be called.
    pub function: FunctionDefinition,
}

/// What may be called. Templates show it to the model as it is.
#[derive(Clone, Debug, JsonSchema, Deserialize, Serialize)]
pub struct FunctionDefinition {
    /// Up to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What it is good for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON Schema of its arguments; none where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// Whether arguments must follow the schema. They do where a call is required; a call of the model's own accord may not.
    #[serde(skip_serializing)]
    pub strict: Option<bool>,
}

/// `tool_choice`.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"none\", \"auto\", \"required\" or an object that names a function"
)]
pub enum ToolChoice {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// This function.
    Named(NamedTool),
}

/// The function that must be called.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct NamedTool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Which.
    pub function: FunctionName,
}

/// A function's name.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct FunctionName {
    /// One of `tools`.
    pub name: String,
}

/// A call, in answers and in the messages of a conversation.
#[derive(Clone, Debug, JsonSchema, PartialEq, Eq, Deserialize, Serialize)]
pub struct ToolCall {
    /// `call_…`.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// What is called.
    pub function: FunctionCall,
}

/// A function and what it is called with.
#[derive(Clone, Debug, JsonSchema, PartialEq, Eq, Deserialize, Serialize)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// JSON as text.
    pub arguments: String,
}

/// A piece of a streamed call.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ToolCallDelta {
    /// Which of the calls, from 0.
    pub index: usize,
    /// In the call's first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In the call's first piece: `function`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// What is new.
    pub function: FunctionDelta,
}

/// What is new of a call.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct FunctionDelta {
    /// In the call's first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments' text.
    pub arguments: String,
}

fn function() -> String {
    "function".to_owned()
}

/// What a request wants of its tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Functions that the model is told of and whose calls count.
    pub offered: Vec<Function>,
    /// Functions one of which must be called; empty where nothing must.
    pub required: Vec<Function>,
}

/// Tools as templates show them to the model.
#[must_use]
pub fn shown(tools: &[Tool]) -> Vec<Value> {
    tools.iter().map(|tool| json!(tool)).collect()
}

/// What `tools` and `tool_choice` mean together.
///
/// # Errors
/// When a tool is no function, two have one name, or the choice names none of them.
pub fn wanted(tools: &[Tool], choice: Option<&ToolChoice>) -> Result<Wanted, InvalidField> {
    if tools.len() > MOST_TOOLS {
        let message = format!(
            "tools has {} entries, at most {MOST_TOOLS} are taken",
            tools.len()
        );
        return Err(InvalidField::new("tools", message));
    }
    let mut names = HashSet::new();
    let functions: Vec<Function> = tools
        .iter()
        .enumerate()
        .map(|(index, tool)| {
            let refuse = |what: String| Err(InvalidField::new("tools", format!("tools[{index}]{what}")));
            if tool.kind != "function" {
                let kind: String = tool.kind.chars().take(40).collect();
                return refuse(format!(".type is {kind:?}, expected \"function\""));
            }
            let name = &tool.function.name;
            let valid = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
            if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(valid) {
                let shown: String = name.chars().take(LONGEST_NAME).collect();
                return refuse(format!(
                    ".function.name is {shown:?}, expected 1 to {LONGEST_NAME} letters, digits, underscores and hyphens"
                ));
            }
            if !names.insert(name) {
                return refuse(format!(".function.name is {name:?}, which another tool has already"));
            }
            let nothing = json!({ "type": "object", "properties": {}, "additionalProperties": false });
            let parameters = match &tool.function.parameters {
                None | Some(Value::Null) => nothing,
                Some(Value::Object(members)) if members.is_empty() => nothing,
                Some(Value::Object(members)) => Value::Object(members.clone()),
                Some(_) => return refuse(".function.parameters is no JSON Schema, expected an object".to_owned()),
            };
            Ok(Function { name: name.clone(), parameters })
        })
        .collect::<Result<_, _>>()?;
    let none = |mode: &str| {
        if functions.is_empty() {
            let message = format!("tool_choice is {mode:?}, but tools is empty");
            return Err(InvalidField::new("tool_choice", message));
        }
        Ok(())
    };
    match choice {
        None => Ok(Wanted {
            offered: functions,
            required: Vec::new(),
        }),
        Some(ToolChoice::Mode(mode)) => match mode.as_str() {
            "none" => Ok(Wanted::default()),
            "auto" => Ok(Wanted {
                offered: functions,
                required: Vec::new(),
            }),
            "required" => {
                none(mode)?;
                Ok(Wanted {
                    offered: functions.clone(),
                    required: functions,
                })
            }
            other => {
                let other: String = other.chars().take(40).collect();
                let message = format!(
                    "tool_choice is {other:?}, expected \"none\", \"auto\", \"required\" or an object that names a function"
                );
                Err(InvalidField::new("tool_choice", message))
            }
        },
        Some(ToolChoice::Named(named)) => {
            let name = &named.function.name;
            let required: Vec<Function> = functions
                .iter()
                .filter(|function| function.name == *name)
                .cloned()
                .collect();
            if required.is_empty() {
                let name: String = name.chars().take(LONGEST_NAME).collect();
                let message =
                    format!("tool_choice names the function {name:?}, which is none of tools");
                return Err(InvalidField::new("tool_choice", message));
            }
            Ok(Wanted {
                offered: functions,
                required,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(names: &[&str]) -> Vec<Tool> {
        let tool = |name: &&str| json!({ "type": "function", "function": { "name": name } });
        serde_json::from_value(names.iter().map(tool).collect()).expect("tools")
    }

    fn choice(value: Value) -> Option<ToolChoice> {
        Some(serde_json::from_value(value).expect("a choice"))
    }

    fn names(functions: &[Function]) -> Vec<&str> {
        functions
            .iter()
            .map(|function| function.name.as_str())
            .collect()
    }

    #[test]
    fn the_choice_decides_what_is_offered_and_what_is_required() {
        let all = tools(&["f", "g"]);
        for (choice, offered, required) in [
            (None, vec!["f", "g"], vec![]),
            (choice(json!("auto")), vec!["f", "g"], vec![]),
            (choice(json!("none")), vec![], vec![]),
            (choice(json!("required")), vec!["f", "g"], vec!["f", "g"]),
            (
                choice(json!({ "type": "function", "function": { "name": "g" } })),
                vec!["f", "g"],
                vec!["g"],
            ),
        ] {
            let wanted = wanted(&all, choice.as_ref()).expect("valid");
            assert_eq!(
                (names(&wanted.offered), names(&wanted.required)),
                (offered, required)
            );
        }
    }

    #[test]
    fn tools_that_cannot_be_called_are_refused() {
        let refused = |tools: &[Tool], choice: Option<ToolChoice>| {
            wanted(tools, choice.as_ref()).expect_err("refused").field
        };
        assert_eq!(refused(&tools(&["f", "f"]), None), "tools");
        assert_eq!(refused(&tools(&["no name"]), None), "tools");
        assert_eq!(refused(&tools(&["f"; 129]), None), "tools");
        assert_eq!(refused(&[], choice(json!("required"))), "tool_choice");
        assert_eq!(
            refused(&tools(&["f"]), choice(json!("always"))),
            "tool_choice"
        );
        let named = choice(json!({ "type": "function", "function": { "name": "h" } }));
        assert_eq!(refused(&tools(&["f"]), named), "tool_choice");
    }
}

//! How a model writes calls of functions and its thoughts: told by its chat template, asked for by a grammar, read back from its text.

use serde_json::{Value, json};

use crate::grammar::Calls;
use crate::prompt::{Conversation, Message};

mod pythonic;
pub mod reader;

/// What ends a model's thoughts.
pub const THOUGHTS_END: &str = "</think>";

/// What begins them.
pub const THOUGHTS_BEGIN: &str = "<think>";

/// How calls are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// Hermes, Qwen 2.5 and 3: `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`, anywhere in the answer.
    Hermes,
    /// Llama 3.x: the whole answer is `{"name": …, "parameters": {…}}`, several with `; ` between them.
    Llama,
    /// Llama 3.2 and others whose template asks for it: the whole answer is a list of Python's calls, `[f(a=1), g(b="x")]`.
    Pythonic,
}

/// The words by which templates ask for calls in Python, as Meta's own prompts do: an example with made-up names.
const PYTHON_EXAMPLE: &str = "[func_name1(";

/// What a chat template tells about its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// How calls are written.
    pub notation: Notation,
    /// Whether the template tells the model of the functions; else the system message does.
    pub tells_of_tools: bool,
    /// Whether the model may think before it answers.
    pub thinks: bool,
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// A JSON Schema of its arguments.
    pub parameters: Value,
}

impl Dialect {
    /// Reads the signs of a template. Without any sign calls are written as Hermes does it, which many models have seen.
    #[must_use]
    pub fn of(template: &str) -> Self {
        let tells_of_tools = template.contains("tools");
        let llama = tells_of_tools
            && !template.contains("<tool_call>")
            && (template.contains("<|python_tag|>") || template.contains("\"parameters\""));
        Self {
            notation: if tells_of_tools && template.contains(PYTHON_EXAMPLE) {
                Notation::Pythonic
            } else if llama {
                Notation::Llama
            } else {
                Notation::Hermes
            },
            tells_of_tools,
            thinks: template.contains(THOUGHTS_END),
        }
    }

    /// The form of an answer that is nothing but calls.
    /// Where the model would write Python it is held to JSON: a schema says nothing about Python's literals.
    #[must_use]
    pub fn calls(self, functions: Vec<Function>, several: bool) -> Calls {
        let functions = functions
            .into_iter()
            .map(|function| (function.name, function.parameters))
            .collect();
        let (opening, closing, separator, arguments) = match self.notation {
            Notation::Hermes => ("<tool_call>\n", "\n</tool_call>", "\n", "arguments"),
            Notation::Llama | Notation::Pythonic => ("", "", "; ", "parameters"),
        };
        Calls {
            opening,
            closing,
            separator: several.then_some(separator),
            arguments,
            functions,
        }
    }

    /// What the system message tells of functions where the template does not: the words that Hermes' models know.
    #[must_use]
    pub fn note(tools: &[Value]) -> String {
        let tools: Vec<String> = tools.iter().map(Value::to_string).collect();
        let call = json!({ "name": "FUNCTION", "arguments": { "NAME": "VALUE" } });
        format!(
            "You can call functions. Their signatures, one a line, are:\n<tools>\n{}\n</tools>\n\
             To call one, answer with a JSON object of its name and arguments like this:\n<tool_call>\n{call}\n</tool_call>",
            tools.join("\n")
        )
    }
}

/// A conversation for a template that knows no tools: the system message tells of them, calls and their answers are text.
#[must_use]
pub fn converted(conversation: Conversation) -> Conversation {
    let Conversation {
        messages,
        tools,
        thinking,
    } = conversation;
    let mut messages: Vec<Message> = messages.into_iter().map(as_text).collect();
    if !tools.is_empty() {
        let note = Dialect::note(&tools);
        match messages.first_mut() {
            Some(first) if first.role == "system" => {
                first.content.push_str("\n\n");
                first.content.push_str(&note);
            }
            _ => messages.insert(0, Message::text("system", note)),
        }
    }
    Conversation {
        messages,
        tools: Vec::new(),
        thinking,
    }
}

/// Calls and answers of tools as the text that Hermes' models know.
fn as_text(mut message: Message) -> Message {
    for call in std::mem::take(&mut message.tool_calls) {
        if !message.content.is_empty() {
            message.content.push('\n');
        }
        message
            .content
            .push_str(&format!("<tool_call>\n{}\n</tool_call>", call["function"]));
    }
    if message.role == "tool" {
        let content = format!("<tool_response>\n{}\n</tool_response>", message.content);
        return Message::text("user", content);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_show_how_their_models_write() {
        for (template, notation, tells_of_tools, thinks) in [
            (
                "{% if tools %}{{ '<tool_call>' }}{% endif %}",
                Notation::Hermes,
                true,
                false,
            ),
            (
                "{% if tools %}{{ '<|python_tag|>' }}{% endif %}",
                Notation::Llama,
                true,
                false,
            ),
            (
                "{{ tools }}{{ '<tool_call>' }}{{ content.split('</think>') }}",
                Notation::Hermes,
                true,
                true,
            ),
            (
                "{{ tools }} in the format [func_name1(params_name1=params_value1), func_name2(params)]{{ '<|python_tag|>' }}",
                Notation::Pythonic,
                true,
                false,
            ),
            ("{{ messages }}", Notation::Hermes, false, false),
        ] {
            assert_eq!(
                Dialect::of(template),
                Dialect {
                    notation,
                    tells_of_tools,
                    thinks
                },
                "{template}"
            );
        }
    }
}

//! Bodies of requests, from JSON to what the engine is asked for, and forms of answers to grammars.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use chandler_runtime::dialect::{Dialect, converted};
use chandler_runtime::grammar::{Form, Grammars, Thoughts};
use chandler_runtime::openai::chat::{ChatRequest, Pictures};
use chandler_runtime::openai::completions::CompletionRequest;
use chandler_runtime::openai::options::Options;
use chandler_runtime::openai::tokens::{DetokenizeRequest, TokenizeRequest};
use chandler_runtime::openai::tools::{shown, wanted};
use chandler_runtime::prompt::{Conversation, Template};
use chandler_runtime::tokenizer::{Tokenizer, bytes_only};
use serde_json::{Value, json};

/// Control tokens of the template below.
const TURN: &str = "<|turn|>";
const END: &str = "<|end|>";

/// The first byte says to which path a body goes, the rest is the body.
pub(crate) fn request(bytes: &[u8]) -> bool {
    let Some((path, body)) = bytes.split_first() else {
        return false;
    };
    match path % 4 {
        0 => serde_json::from_slice(body).is_ok_and(chat),
        1 => serde_json::from_slice(body).is_ok_and(completion),
        2 => serde_json::from_slice(body)
            .is_ok_and(|mut body: TokenizeRequest| body.take_source().is_ok()),
        _ => serde_json::from_slice::<DetokenizeRequest>(body).is_ok(),
    }
}

/// What every path that generates does with its options.
fn options(options: &Options) -> bool {
    let sampling = options.sampling(1, 258);
    let choices = options.choices(4);
    let ending = options.ending(64, &[]);
    if let Ok(sampling) = &sampling {
        let Some(finite) = [sampling.temperature, sampling.repetition, sampling.top_p]
            .into_iter()
            .reduce(|a, b| a * b)
        else {
            return false;
        };
        assert!(finite.is_finite(), "{sampling:?}");
        assert!(
            sampling
                .bias
                .iter()
                .all(|(token, bias)| *token < 258 && bias.is_finite())
        );
    }
    sampling.is_ok() && choices.is_ok() && ending.is_ok()
}

fn chat(mut body: ChatRequest) -> bool {
    let valid = options(&body.options)
        && body.logprobs_asked().is_ok()
        && body.prompt_logprobs_asked().is_ok()
        && body.tokens_asked().is_ok()
        && body.options.form(body.response_format.as_ref()).is_ok();
    let tools = body.tools.take().unwrap_or_default();
    let wanted = wanted(&tools, body.tool_choice.as_ref());
    let none = Pictures {
        read: false,
        most: None,
    };
    let (Ok(wanted), Ok((messages, _))) = (wanted, body.take_conversation(none)) else {
        return false;
    };
    let turns = messages.len();
    let conversation = Conversation {
        messages,
        tools: if wanted.offered.is_empty() {
            Vec::new()
        } else {
            shown(&tools)
        },
        thinking: body
            .chat_template_kwargs
            .unwrap_or_default()
            .enable_thinking,
    };
    let (tokenizer, template) = model();
    // A template that knows tools, and one that must be told of them.
    let told = converted(conversation.clone());
    for (conversation, turns) in [(&conversation, turns), (&told, told.messages.len())] {
        let Ok(prompt) = template.render(conversation, tokenizer) else {
            return false;
        };
        let Ok(tokens) = tokenizer.encode(&prompt) else {
            return false;
        };
        // Whatever was typed, the prompt has the template's own control tokens and no other.
        let control = tokens.iter().filter(|token| **token >= 256).count();
        assert_eq!(control, 2 * turns + 1, "{:?}", prompt.text);
    }
    valid
}

/// Opens and ends each turn by a control token, and opens the answer's.
fn model() -> &'static (Tokenizer, Template) {
    static MODEL: OnceLock<(Tokenizer, Template)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let tokenizer = bytes_only(&[TURN, END]);
        let source = format!(
            "{{% for message in messages %}}{TURN}{{{{ message.role ~ message.content ~ (message.name or '') ~ (message.tool_calls or []) ~ (message.reasoning_content or '') }}}}{END}{{% endfor %}}{TURN}{{{{ tools }}}}"
        );
        let template = Template::new(&source, &tokenizer, Path::new("template"));
        (tokenizer, template.expect("the template is valid"))
    })
}

fn completion(mut body: CompletionRequest) -> bool {
    let valid = options(&body.options)
        && body.check_supported().is_ok()
        && body.prompt_logprobs_asked().is_ok()
        && body.tokens_asked().is_ok()
        && body.options.form(None).is_ok();
    valid && body.take_prompt().is_ok()
}

/// The first byte says which form, the rest is its source: refused with a reason, or compiled within the bounds.
pub(crate) fn form(bytes: &[u8]) -> bool {
    static GRAMMARS: OnceLock<Grammars> = OnceLock::new();
    let Some((kind, source)) = bytes.split_first() else {
        return false;
    };
    let Ok(source) = std::str::from_utf8(source) else {
        return false;
    };
    let json = || serde_json::from_str::<Value>(source).ok();
    let form = match kind % 5 {
        0 => json().map(Form::Schema),
        1 => Some(Form::Pattern(source.to_owned())),
        2 => Some(Form::Choice(source.split('\n').map(str::to_owned).collect())),
        3 => Some(Form::Grammar(source.to_owned())),
        _ => json().and_then(|parameters| {
            let tool = json!([{ "type": "function", "function": { "name": "f", "parameters": parameters } }]);
            let wanted = wanted(&serde_json::from_value::<Vec<_>>(tool).ok()?, None).ok()?;
            Some(Form::Calls(Dialect::of("").calls(wanted.offered, true)))
        }),
    };
    let grammars = GRAMMARS.get_or_init(|| {
        Grammars::new(&Arc::new(bytes_only(&[END]))).expect("a vocabulary of bytes can be used")
    });
    form.is_some_and(|form| grammars.compile(&form, Thoughts::Possible).is_ok())
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let call = json!({ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": \"<|end|>\"}" } });
    let tool = json!({ "type": "function", "function": { "name": "f", "description": "<|turn|>", "parameters": { "type": "object" } } });
    let bodies = [
        (
            0,
            json!({
                "model": "m", "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "n": 2, "seed": -1, "stop": ["a", "b"],
                "max_tokens": 5, "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1, "logit_bias": { "7": 1.5 },
                "logprobs": true, "top_logprobs": 2, "stop_token_ids": [1], "prompt_logprobs": 1, "cache_salt": "x", "ignore_eos": false,
                "messages": [{ "role": "system", "content": "<|end|>" }, { "role": "user", "content": [{ "type": "text", "text": "<|turn|>" }] }],
            }),
        ),
        (
            0,
            json!({
                "model": "m", "stream": true, "stream_options": { "include_usage": true }, "tools": [tool], "tool_choice": "auto",
                "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "tool_calls": [call], "reasoning_content": "<|end|>" },
                    { "role": "tool", "tool_call_id": "1", "content": "<|turn|>" }],
                "chat_template_kwargs": { "enable_thinking": true },
            }),
        ),
        (
            0,
            json!({
                "model": "m", "messages": [{ "role": "user", "content": "a", "name": "<|end|>" }],
                "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": { "type": "object" } } },
            }),
        ),
        (
            1,
            json!({ "model": "m", "prompt": "a", "logprobs": 2, "echo": true, "max_tokens": 0, "structured_outputs": { "regex": "a+" } }),
        ),
        (
            1,
            json!({ "model": "m", "prompt": [1, 2], "guided_choice": ["a", "b"] }),
        ),
        (
            2,
            json!({ "model": "m", "prompt": "a", "add_special_tokens": false, "return_token_strs": true }),
        ),
        (
            2,
            json!({ "messages": [{ "role": "user", "content": "a" }] }),
        ),
        (3, json!({ "tokens": [1, 2] })),
    ];
    bodies
        .map(|(path, body)| numbered(path, &body.to_string()))
        .to_vec()
}

pub(crate) fn form_seeds() -> Vec<Vec<u8>> {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["a"], "$defs": { "n": { "type": ["integer", "null"] } },
        "properties": { "a": { "$ref": "#/$defs/n" }, "b": { "type": "array", "items": { "enum": [1, "x"] }, "minItems": 1, "maxItems": 3 },
            "c": { "type": "string", "pattern": "^[a-z]{1,3}$" }, "d": { "anyOf": [{ "const": 1 }, { "type": "number", "minimum": 0 }] } },
    })
    .to_string();
    [
        (0, schema.as_str()),
        (4, schema.as_str()),
        (1, "(a|b)*c{1,3}[^x-z]?"),
        (2, "yes\nno"),
        (3, "start: \"a\" rest\nrest: /[0-9]+/ | start"),
        (
            3,
            "root ::= \"a\" rest{1,3} # more\nrest ::= [0-9]+ | [^a-c\\n] root?",
        ),
    ]
    .map(|(kind, source)| numbered(kind, source))
    .to_vec()
}

fn numbered(number: u8, text: &str) -> Vec<u8> {
    [&[number], text.as_bytes()].concat()
}

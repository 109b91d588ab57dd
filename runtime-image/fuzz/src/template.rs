//! Chat templates, which come with weights and from cards, and the conversations that they render.

use std::path::Path;

use chandler_runtime::openai::chat::{ChatMessage, Pictures, conversation};
use chandler_runtime::prompt::{Conversation, Template};
use chandler_runtime::tokenizer::bytes_only;
use serde_json::{Value, json};

use crate::{join, split};

/// Any template with any conversation: an error or a prompt, within the budgets.
pub(crate) fn template(bytes: &[u8]) -> bool {
    let (messages, source) = split(bytes);
    let (Ok(source), Ok(messages)) = (
        std::str::from_utf8(source),
        serde_json::from_slice::<Vec<ChatMessage>>(messages),
    ) else {
        return false;
    };
    let tokenizer = bytes_only(&["<|end|>"]);
    let Ok(template) = Template::new(source, &tokenizer, Path::new("template")) else {
        return false;
    };
    let none = Pictures {
        read: false,
        most: None,
    };
    let Ok((messages, _)) = conversation(messages, none) else {
        return false;
    };
    let conversation = Conversation {
        messages,
        tools: vec![json!({ "type": "function", "function": { "name": "f" } })],
        thinking: Some(true),
    };
    let prompt = template.render(&conversation, &tokenizer);
    prompt.is_ok_and(|prompt| tokenizer.encode(&prompt).is_ok())
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let config: Value =
        serde_json::from_slice(&crate::fixture("tokenizer_config.json")).expect("JSON");
    let llama = config["chat_template"].as_str().expect("a template");
    let sources = [
        "{% for message in messages %}{{ message.content }}{% endfor %}",
        "{%- for message in messages if message['role'] != 'system' -%}\n<|im_start|>{{ message.role }}\n{{ message.content.split('</think>')[-1].lstrip('\\n') | trim }}<|im_end|>\n{%- endfor -%}",
        "{% set ns = namespace(last='') %}{% for message in messages[::-1] %}{% set ns.last = ns.last ~ (message | tojson(indent=2)) %}{% endfor %}{{ ns.last }}{{ strftime_now('%d %b %Y') }}",
        "{% macro show(tool, depth=0) %}{{ tool.function.name ~ depth }}{% endmacro %}{% for tool in tools %}{{ show(tool, loop.index) }}{% endfor %}",
        "{% if not messages %}{{ raise_exception('no messages') }}{% endif %}{{ bos_token }}{{ messages[0]['content'].replace('a', 'b').upper().startswith('B') }}",
        llama,
    ];
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "a <|end|> b" }] },
        { "role": "assistant", "content": null, "tool_calls": [{ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } }] },
        { "role": "tool", "tool_call_id": "1", "content": "2" },
    ]);
    let simple = json!([{ "role": "user", "content": "Hello" }]);
    sources
        .into_iter()
        .map(|source| {
            // Llama's template takes one call a message, and refuses some orders of roles.
            let messages = if source == llama { &simple } else { &messages };
            join(messages.to_string().as_bytes(), source.as_bytes())
        })
        .collect()
}

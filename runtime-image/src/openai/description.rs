//! The OpenAPI document: made from the wire types themselves, so that it says what is read and written.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::chat::{ChatRequest, ChatResponse};
use super::completions::{CompletionRequest, CompletionResponse};
use super::error::ErrorBody;
use super::responses::ResponsesRequest;
use super::responses::answer::ResponseObject;
use super::tokens::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
use super::{ModelList, ModelObject};

/// Describes the API of a server with these models; `keys`: whether requests need one.
#[must_use]
pub fn document(served_names: &[String], keys: bool) -> Value {
    let settings = || {
        let settings = SchemaSettings::draft2020_12();
        settings.with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
    };
    let mut read = settings().for_deserialize().into_generator();
    let mut written = settings().for_serialize().into_generator();
    let error = content(reference::<ErrorBody>(&mut written), "What is wrong");
    let post = |id: &str, summary: &str, body: Schema, answer: Schema, streams: bool| {
        let mut good = content(answer, "The answer");
        if streams {
            // OpenAPI 3.1 has no words for events; readers differ on whether the schema is of the text or of each of them.
            good["content"]["text/event-stream"] = json!({});
        }
        json!({ "post": {
            "operationId": id,
            "summary": summary,
            "requestBody": { "required": true, "content": { "application/json": { "schema": body } } },
            "responses": { "200": good, "4XX": error, "5XX": error },
        } })
    };
    let get = |id: &str, summary: &str, answer: Schema, parameters: Value| {
        json!({ "get": {
            "operationId": id,
            "summary": summary,
            "parameters": parameters,
            "responses": { "200": content(answer, "The answer"), "4XX": error, "5XX": error },
        } })
    };
    let any = Schema::from(Map::from_iter([("type".to_owned(), Value::from("object"))]));
    let model = json!([{ "name": "model", "in": "path", "required": true, "schema": { "type": "string" } }]);
    let paths = json!({
        "/v1/chat/completions": post("chat", "Answers a conversation", reference::<ChatRequest>(&mut read), reference::<ChatResponse>(&mut written), true),
        "/v1/completions": post("complete", "Continues a text", reference::<CompletionRequest>(&mut read), reference::<CompletionResponse>(&mut written), true),
        "/v1/responses": post("respond", "Answers a conversation, in the words of the Responses API", reference::<ResponsesRequest>(&mut read), reference::<ResponseObject>(&mut written), true),
        "/v1/models": get("models", "All served names", reference::<ModelList>(&mut written), json!([])),
        "/v1/models/{model}": get("model", "One served name", reference::<ModelObject>(&mut written), model),
        "/tokenize": post("tokenize", "Text or messages to tokens", reference::<TokenizeRequest>(&mut read), reference::<TokenizeResponse>(&mut written), false),
        "/detokenize": post("detokenize", "Tokens to text", reference::<DetokenizeRequest>(&mut read), reference::<DetokenizeResponse>(&mut written), false),
        "/openapi.json": get("openapi", "This document", any, json!([])),
    });
    let mut schemas = written.take_definitions(true);
    schemas.extend(read.take_definitions(true));
    // Every other name is answered with 404.
    for name in ["ChatRequest", "CompletionRequest", "ResponsesRequest"] {
        if let Some(property) = schemas
            .get_mut(name)
            .and_then(|schema| schema.pointer_mut("/properties/model"))
        {
            property["enum"] = json!(served_names);
        }
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Chandler runtime",
            "description": "OpenAI's API with vLLM's additions. Unknown members are passed over.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
        "components": { "schemas": schemas },
    });
    if keys {
        document["components"]["securitySchemes"] =
            json!({ "key": { "type": "http", "scheme": "bearer" } });
        document["security"] = json!([{ "key": [] }]);
    }
    document
}

fn reference<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn content(schema: Schema, description: &str) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All `$ref`s of a value.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    if let ("$ref", Some(text)) = (name.as_str(), value.as_str()) {
                        found.push(text.to_owned());
                    }
                    references(value, found);
                }
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_field_is_explained() {
        let document = document(&["a".to_owned()], true);
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("of this document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let chat = &document["components"]["schemas"]["ChatRequest"];
        for field in [
            "messages",
            "temperature",
            "structured_outputs",
            "guided_regex",
            "tools",
            "response_format",
        ] {
            assert!(
                chat["properties"][field]["description"].is_string()
                    || chat["properties"][field]["anyOf"].is_array(),
                "{field}: {chat}"
            );
        }
        assert_eq!(chat["properties"]["model"]["enum"], json!(["a"]));
    }
}

//! JSON Schema's own test suite: what a random model writes under the masks is what the schema allows.
//! `make unit` brings the suite and names it in `CHANDLER_JSON_SCHEMA_SUITE`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use chandler_runtime::grammar::{Form, Grammar, Grammars, Thoughts};
use chandler_runtime::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// Tokens of one answer.
const MOST_TOKENS: usize = 2_000;

/// Schemas of the suite that must give valid answers.
const LEAST_SCHEMAS: usize = 200;

struct Random(u64);

impl Random {
    /// From 0 to below 1.
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }
}

/// The tiny model's tokenizer: bytes and some hundred words.
fn tokenizer() -> Arc<Tokenizer> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tiny/model");
    Arc::new(Tokenizer::from_folder(&folder).unwrap())
}

/// What a model without any idea writes after `begun`, if it likes to come to an end.
fn write(grammar: &Grammar, tokenizer: &Tokenizer, begun: &str, seed: u64) -> Option<String> {
    let mut random = Random(seed);
    let mut constraint = grammar.begin();
    let mut bytes = Vec::new();
    let size = u32::try_from(tokenizer.size()).unwrap();
    let mut given = tokenizer.encode_text(begun).unwrap().into_iter();
    for _ in 0..MOST_TOKENS {
        let likes = |token: u32| {
            let closes = tokenizer
                .bytes(token)
                .iter()
                .any(|byte| b"\"]}".contains(byte));
            match (tokenizer.stops().contains(&token), closes) {
                (true, _) => 2.0,
                (false, true) => 0.6,
                (false, false) => 0.0,
            }
        };
        let mut logits: Vec<f32> = (0..size)
            .map(|token| random.next() + likes(token))
            .collect();
        constraint.restrict(&mut logits).unwrap();
        let best = || (0..size).max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize]));
        let token = given.next().or_else(best).unwrap();
        let so_far = String::from_utf8_lossy(&bytes);
        assert!(
            logits[token as usize].is_finite(),
            "{token} is not allowed after {so_far}"
        );
        if tokenizer.stops().contains(&token) {
            return Some(String::from_utf8(bytes).unwrap());
        }
        bytes.extend_from_slice(tokenizer.bytes(token));
        constraint.accept(token);
    }
    None
}

/// Whether a number has more digits than the judge reads exactly.
fn beyond_the_judge(text: &str) -> bool {
    text.split(|character: char| !character.is_ascii_digit())
        .any(|digits| digits.len() > 15)
}

/// The schemas of the drafts that are in use, each once, with their names.
fn suite() -> Vec<(String, Value)> {
    let suite = std::env::var_os("CHANDLER_JSON_SCHEMA_SUITE").expect(
        "CHANDLER_JSON_SCHEMA_SUITE is not set: run `make unit`, or set it to what hack/json-schema-suite prints",
    );
    let mut all = Vec::new();
    let mut seen = HashSet::new();
    for draft in [
        "draft2020-12",
        "draft2019-09",
        "draft7",
        "draft6",
        "draft4",
        "draft2020-12/optional",
    ] {
        let files = std::fs::read_dir(Path::new(&suite).join(draft)).unwrap();
        let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
                // Grammar and judge read these as Rust does, whose classes hold other characters.
                && path.file_stem().is_some_and(|stem| stem != "ecmascript-regex")
        });
        files.sort();
        for file in files {
            let groups: Vec<Value> =
                serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            for group in groups {
                let mut bare = group["schema"].clone();
                if let Some(members) = bare.as_object_mut() {
                    members.remove("$schema");
                }
                if seen.insert(bare.to_string()) {
                    let name = format!(
                        "{draft} {} {}",
                        file.file_stem().unwrap().display(),
                        group["description"]
                    );
                    all.push((name, group["schema"].clone()));
                }
            }
        }
    }
    all
}

#[test]
fn answers_follow_the_schemas_of_the_suite() {
    let tokenizer = tokenizer();
    let grammars = Grammars::new(&tokenizer).unwrap();
    let (mut valid, mut refused, mut unfinished, mut wrong) = (0, 0, Vec::new(), Vec::new());
    for (what, schema) in suite() {
        let Ok(validator) = jsonschema::options().build(&schema) else {
            // Refers to other documents, or is written in the words of another draft.
            continue;
        };
        let Ok(grammar) = grammars.compile(&Form::Schema(schema), Thoughts::None) else {
            refused += 1;
            continue;
        };
        let before = wrong.len() + unfinished.len();
        let mut judged = 0;
        for seed in 0..20 {
            let Some(text) = write(&grammar, &tokenizer, "", seed) else {
                unfinished.push(what.clone());
                break;
            };
            if beyond_the_judge(&text) {
                continue;
            }
            let instance: Value = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{what}: {error}: {text}"));
            if !validator.is_valid(&instance) {
                wrong.push(format!("{what}: {text}"));
            }
            judged += 1;
            if judged == 5 {
                break;
            }
        }
        valid += usize::from(judged > 0 && wrong.len() + unfinished.len() == before);
    }
    println!("figure schemas_valid {valid} of the suite's, {refused} refused");
    assert_eq!(
        (wrong, unfinished),
        (Vec::<String>::new(), Vec::<String>::new())
    );
    assert!(valid >= LEAST_SCHEMAS, "{valid} valid, {refused} refused");
}

#[test]
fn each_form_gives_what_it_says() {
    let tokenizer = tokenizer();
    let grammars = Grammars::new(&tokenizer).unwrap();
    let after = |form: &Form, thoughts, begun| -> Vec<String> {
        let grammar = grammars.compile(form, thoughts).unwrap();
        let write = |seed| write(&grammar, &tokenizer, begun, seed).expect("ends");
        (0..20).map(write).collect()
    };
    let all = |form: &Form| after(form, Thoughts::None, "");
    for text in all(&Form::Object) {
        assert!(
            serde_json::from_str::<Value>(&text).unwrap().is_object(),
            "{text}"
        );
    }
    for text in all(&Form::Pattern("[a-c]{2,4}-[0-9]+".to_owned())) {
        let (letters, digits) = text.split_once('-').unwrap();
        assert!(
            (2..=4).contains(&letters.len()) && letters.bytes().all(|byte| b"abc".contains(&byte)),
            "{text}"
        );
        assert!(
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()),
            "{text}"
        );
    }
    let choice = ["yes", "no \"way\"", "ünsure\n"]
        .map(str::to_owned)
        .to_vec();
    for text in all(&Form::Choice(choice.clone())) {
        assert!(choice.contains(&text), "{text}");
    }
    for text in all(&Form::Grammar(
        "start: \"(\" start \")\" | \"x\"".to_owned(),
    )) {
        assert_eq!(
            text.matches('(').count(),
            text.matches(')').count(),
            "{text}"
        );
    }
    let schema = Form::Schema(json!({ "enum": [17] }));
    // Random thoughts would hardly end.
    for text in after(&schema, Thoughts::Begun, "Hm.\n</think>") {
        let (_, answer) = text.split_once("</think>").unwrap();
        assert_eq!(answer.trim(), "17", "{text}");
    }
    for text in after(&schema, Thoughts::Possible, "<think>Hm.</think>") {
        let (_, answer) = text.split_once("</think>").unwrap();
        assert_eq!(answer.trim(), "17", "{text}");
    }
    for text in after(&schema, Thoughts::Possible, "1") {
        assert_eq!(text, "17");
    }
}

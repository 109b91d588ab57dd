//! The eight languages of Llama 3.2 with its own tokenizer: text to tokens and back, and streamed without a broken character,
//! whatever a token cuts in two. `make unit` brings the tokenizer and names it in `CHANDLER_LLAMA_TOKENIZER`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use chandler_runtime::model::fake::FakeControl;
use chandler_runtime::model::{Capacity, Logits, Model, StepError};
use chandler_runtime::serve::Loaded;
use chandler_runtime::step::StepPlan;
use chandler_runtime::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::server::{MODEL, Server, config, events_of};

/// The language, and text in it: marks as characters of their own, joiners, Thai without spaces, signs beyond 16 bits.
const TEXTS: [(&str, &str); 8] = [
    (
        "en",
        "Don\u{2019}t panic \u{2014} the na\u{ef}ve caf\u{e9}\u{2019}s 2\u{bd} r\u{e9}sum\u{e9}s cost \u{a3}9.50! \u{1f469}\u{200d}\u{1f4bb}\u{1f44d}\u{1f3fd}",
    ),
    (
        "de",
        "Stra\u{df}enb\u{e4}ume, \u{dc}bergr\u{f6}\u{df}en und \u{201e}F\u{fc}\u{df}e\u{201c}; zerlegt: u\u{308}ber, a\u{308}hnlich, \u{1e9e}.",
    ),
    (
        "fr",
        "L\u{2019}\u{153}uvre d\u{e9}j\u{e0} vue\u{a0}: \u{ab}\u{202f}No\u{eb}l, \u{e7}a co\u{fb}te 3\u{a0}\u{20ac}\u{202f}\u{bb}; de\u{301}compose\u{301}, e\u{302}tre.",
    ),
    (
        "it",
        "Perch\u{e9} l\u{2019}universit\u{e0} \u{e8} cos\u{ec} pi\u{f9} lontana? Citta\u{300}, virtu\u{300}, c\u{2019}e\u{300}.",
    ),
    (
        "pt",
        "A\u{e7}\u{e3}o, cora\u{e7}\u{f5}es, av\u{f4}s e p\u{e3}es: \u{e0}s tr\u{ea}s, irm\u{e3}! Na\u{303}o, ac\u{327}u\u{301}car.",
    ),
    (
        "hi",
        "\u{915}\u{94d}\u{937}\u{924}\u{94d}\u{930}\u{93f}\u{92f} \u{936}\u{94d}\u{930}\u{940}\u{92e}\u{924}\u{940} \u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940} \u{92e}\u{947}\u{902} \u{932}\u{93f}\u{916}\u{924}\u{940} \u{939}\u{948}\u{902}\u{964} \u{930}\u{94d}\u{200d}\u{92f} \u{915}\u{94d}\u{200c}\u{937} \u{967}\u{968}\u{969}",
    ),
    (
        "es",
        "\u{bf}D\u{f3}nde est\u{e1} el ping\u{fc}ino? \u{a1}Ma\u{f1}ana, se\u{f1}or! n\u{303}andu\u{301}, 1.\u{ba}",
    ),
    (
        "th",
        "\u{e01}\u{e32}\u{e23}\u{e17}\u{e14}\u{e2a}\u{e2d}\u{e1a}\u{e20}\u{e32}\u{e29}\u{e32}\u{e44}\u{e17}\u{e22}\u{e17}\u{e35}\u{e48}\u{e44}\u{e21}\u{e48}\u{e21}\u{e35}\u{e0a}\u{e48}\u{e2d}\u{e07}\u{e27}\u{e48}\u{e32}\u{e07}\u{e23}\u{e30}\u{e2b}\u{e27}\u{e48}\u{e32}\u{e07}\u{e04}\u{e33}\u{e19}\u{e49}\u{e33}\u{e1c}\u{e36}\u{e49}\u{e07}\u{e51}\u{e52}\u{e53}",
    ),
];

/// Says what it was told to say, from the end of the prompt on.
struct Scripted {
    prompt: usize,
    says: Vec<u32>,
    logits: Vec<f32>,
    vocabulary: usize,
}

const SEQUENCES: usize = 2;

impl Model for Scripted {
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            rows: 64,
            logits_rows: SEQUENCES,
            blocks: 64,
        }
    }

    fn weight_bytes(&self) -> usize {
        0
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits<'_>, StepError> {
        let rows = plan
            .logits_rows()
            .zip(self.logits.chunks_exact_mut(self.vocabulary));
        for (row, logits) in rows {
            logits.fill(0.0);
            let said = (plan.positions[row] as usize + 1).checked_sub(self.prompt);
            let token = said.and_then(|at| self.says.get(at)).copied().unwrap_or(0);
            logits[token as usize] = 50.0;
        }
        let count = plan.logits_rows().count();
        Ok(Logits::new(
            &self.logits[..count * self.vocabulary],
            self.vocabulary,
        ))
    }
}

fn tokenizer() -> Option<PathBuf> {
    let path = std::env::var_os("CHANDLER_LLAMA_TOKENIZER").map(PathBuf::from);
    if path.is_none() {
        // Past the test's own output, which is shown only when it fails.
        let _ = writeln!(
            std::io::stderr(),
            "--- SKIP: {} languages: CHANDLER_LLAMA_TOKENIZER is not set; run `make unit`, or set it to what hack/llama-tokenizer prints",
            TEXTS.len()
        );
    }
    path
}

#[tokio::test]
async fn text_in_each_language_comes_back_whole_and_no_streamed_piece_has_a_broken_character() {
    let Some(folder) = tokenizer() else {
        return;
    };
    let mut cut = 0;
    for (language, text) in TEXTS {
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        assert_eq!(tokenizer.size(), 128_257);
        let says = tokenizer.encode_text(text).unwrap();
        let bytes: Vec<u8> = says
            .iter()
            .flat_map(|token| tokenizer.bytes(*token))
            .copied()
            .collect();
        assert_eq!(String::from_utf8(bytes).as_deref(), Ok(text), "{language}");
        cut += says
            .iter()
            .filter(|token| std::str::from_utf8(tokenizer.bytes(**token)).is_err())
            .count();

        let model = Scripted {
            prompt: tokenizer.encode_completion("x".to_owned()).unwrap().len(),
            logits: vec![0.0; SEQUENCES * 128_256],
            vocabulary: 128_256,
            says,
        };
        let length = model.says.len();
        let settings = chandler_runtime::config::Config {
            max_sequences: SEQUENCES,
            ..config()
        };
        let load = move || {
            Ok(Loaded {
                model: Box::new(model),
                tokenizer,
                template: None,
                main_type: "none".to_owned(),
                preparation: None,
                context_length: 512,
            })
        };
        let server = Server::start_with(settings, Arc::new(FakeControl::default()), load).await;
        server.until_ready().await;
        let body = json!({
            "model": MODEL, "prompt": "x", "max_tokens": length, "temperature": 0, "stream": true,
        });
        let answer = server.post("/v1/completions", body.to_string()).await;
        let pieces: Vec<String> = events_of(answer)
            .await
            .iter()
            .filter_map(|event| serde_json::from_str::<Value>(event).ok())
            .filter_map(|event| Some(event["choices"][0]["text"].as_str()?.to_owned()))
            .collect();
        assert!(pieces.len() > 3, "{language}: {pieces:?}");
        assert!(
            !pieces.iter().any(|piece| piece.contains('\u{fffd}')),
            "{language}: {pieces:?}"
        );
        assert_eq!(pieces.concat(), text, "{language}");
        println!("{language}: {length} tokens, {} pieces", pieces.len());
    }
    // Tokens that are no text by themselves, without which nothing above could break.
    assert!(cut > 10, "{cut}");
    println!("figure languages_streamed_whole {}", TEXTS.len());
}

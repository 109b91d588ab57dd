//! What an answer must look like: JSON, a schema, a pattern, a choice, tool calls. A form is compiled once for a request
//! (bounded in size and work, on a blocking thread), and then says before each token which ones may come.
//!
//! The masks are computed by threads of their own while the model takes its step, by the crate llguidance.
//! Nothing is fetched: a schema may refer to its own parts (`#/…`) only.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

use crate::dialect::{THOUGHTS_BEGIN, THOUGHTS_END};
use crate::tokenizer::Tokenizer;

mod gbnf;

/// Bytes of a schema or grammar, as JSON or text. OpenAI takes 120,000 characters of names and values in a schema.
pub const LARGEST_SOURCE: usize = 256 << 10;

/// Texts of a choice.
const MOST_CHOICES: usize = 1_024;

/// Threads that compute masks. A mask takes some ten microseconds, seldom milliseconds; two keep one slow grammar from
/// holding up the others.
const THREADS: usize = 2;

/// States of one grammar's lexer, 1 to 2 KB each; usual schemas have a few hundred.
const MOST_STATES: usize = 16_384;

/// White space between the parts of JSON. Without a bound, a small model can write blanks until its tokens are spent.
const WHITE_SPACE: &str = r"[ \n\r\t]{1,32}";

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Any JSON object.
    Object,
    /// JSON that a schema allows.
    Schema(Value),
    /// Text that a regular expression matches as a whole.
    Pattern(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text that a grammar derives: from `start` in Lark's notation, from `root` in GBNF.
    Grammar(String),
    /// Calls of these functions and nothing else.
    Calls(Calls),
}

/// Calls of functions, in the notation that a model was trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls {
    /// Before each call.
    pub opening: &'static str,
    /// After each call.
    pub closing: &'static str,
    /// Between two calls; absent where one is all that is wanted.
    pub separator: Option<&'static str>,
    /// The member that holds the arguments.
    pub arguments: &'static str,
    /// Names and schemas of arguments, at least one.
    pub functions: Vec<(String, Value)>,
}

/// What may come before the form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thoughts {
    /// Nothing.
    #[default]
    None,
    /// The model may think first.
    Possible,
    /// The prompt has begun the thoughts already.
    Begun,
}

/// Why a form cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Too much of something, or nothing.
    #[error("{0}")]
    Size(String),
    /// Not valid, not supported, or too much work.
    #[error("cannot be used: {0}")]
    Compile(String),
    /// Not for this model.
    #[error(
        "cannot be used: this model has no end token, so an answer in a given form would never end"
    )]
    NoEnd,
}

/// The next token cannot be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to keep the answer in its form: {0}")]
pub struct ConstraintError(String);

/// Compiles forms for one model.
pub struct Grammars {
    factory: ParserFactory,
    jobs: mpsc::Sender<Job>,
}

/// A compiled form. Copies share it.
#[derive(Clone)]
pub struct Grammar {
    start: Arc<Mutex<Matcher>>,
    first: Arc<SimpleVob>,
    jobs: mpsc::Sender<Job>,
}

/// One answer on its way through a form.
pub struct Constraint {
    jobs: mpsc::Sender<Job>,
    state: State,
}

enum State {
    /// The mask of the next token is there.
    Ready(Matcher, Arc<SimpleVob>),
    /// It is being computed.
    Computing(mpsc::Receiver<Turn>),
    /// There is none.
    Failed(ConstraintError),
}

/// A token to take and the mask after it to compute.
struct Job {
    matcher: Matcher,
    token: u32,
    /// Holds one turn, so that a thread never waits for an answer that nobody wants any more.
    done: mpsc::SyncSender<Turn>,
}

type Turn = (Matcher, Result<SimpleVob, ConstraintError>);

impl Grammars {
    /// Prepares the vocabulary; takes some hundred milliseconds for a large one. The threads end with the last use.
    ///
    /// # Errors
    /// When the model has no end token, or no thread can be had.
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Result<Self, GrammarError> {
        let environment: TokEnv = Arc::new(Vocabulary::new(tokenizer)?);
        let compile = |error: &dyn std::fmt::Display| GrammarError::Compile(error.to_string());
        let mut factory =
            ParserFactory::new_simple(&environment).map_err(|error| compile(&error))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: MOST_STATES,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let (jobs, receiver) = mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let receiver = Arc::clone(&receiver);
            thread::Builder::new()
                .name("masks".to_owned())
                .spawn(move || work(&receiver))
                .map_err(|error| compile(&error))?;
        }
        Ok(Self { factory, jobs })
    }

    /// Compiles a form; thoughts before it are free.
    ///
    /// # Errors
    /// When the form is too large, not valid, or uses what is not supported.
    pub fn compile(&self, form: &Form, thoughts: Thoughts) -> Result<Grammar, GrammarError> {
        check_size(form)?;
        let parser = self.factory.create_parser(after(thoughts, grammar(form)?));
        let mut start = Matcher::new(parser);
        let first = start.compute_mask_or_eos().map_err(|error| {
            // The first line; what follows is a picture of the grammar.
            let detail = error.to_string();
            let detail = detail.lines().next().unwrap_or_default();
            GrammarError::Compile(detail.chars().take(500).collect())
        })?;
        Ok(Grammar {
            start: Arc::new(Mutex::new(start)),
            first: Arc::new(first),
            jobs: self.jobs.clone(),
        })
    }
}

impl Grammar {
    /// An answer that begins.
    #[must_use]
    pub fn begin(&self) -> Constraint {
        let matcher = self
            .start
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Constraint {
            jobs: self.jobs.clone(),
            state: State::Ready(matcher, Arc::clone(&self.first)),
        }
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Grammar")
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.start, &other.start)
    }
}

impl Constraint {
    /// Makes the logits of tokens that may not come next minus infinity. Waits where the mask is not there yet.
    ///
    /// # Errors
    /// When the form cannot be followed within its bounds of work.
    pub fn restrict(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        apply(self.allowed()?, logits);
        Ok(())
    }

    /// A bit for each token that may come next, the lowest first. Waits where the mask is not there yet.
    ///
    /// # Errors
    /// As [`Self::restrict`].
    pub fn allowed(&mut self) -> Result<&[u32], ConstraintError> {
        if let State::Computing(turn) = &self.state {
            self.state = match turn.recv() {
                Ok((matcher, Ok(mask))) => State::Ready(matcher, Arc::new(mask)),
                Ok((_, Err(error))) => State::Failed(error),
                Err(_) => State::Failed(ConstraintError("its thread is gone".to_owned())),
            };
        }
        match &self.state {
            State::Ready(_, mask) => Ok(mask.as_slice()),
            State::Failed(error) => Err(error.clone()),
            State::Computing(_) => Err(ConstraintError("its mask is missing".to_owned())),
        }
    }

    /// Takes the token that was chosen, and has the next mask computed meanwhile.
    pub fn accept(&mut self, token: u32) {
        let missing = State::Failed(ConstraintError("its mask was not waited for".to_owned()));
        if let State::Ready(matcher, _) = std::mem::replace(&mut self.state, missing) {
            let (done, turn) = mpsc::sync_channel(1);
            let job = Job {
                matcher,
                token,
                done,
            };
            // A thread that is gone shows when the mask is waited for.
            let _ = self.jobs.send(job);
            self.state = State::Computing(turn);
        }
    }
}

/// Computes masks until nobody can ask any more.
fn work(jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job {
            mut matcher,
            token,
            done,
        }) = job
        else {
            return;
        };
        let mask = matcher
            .consume_token(token)
            .and_then(|()| matcher.compute_mask_or_eos())
            .map_err(|error| ConstraintError(error.to_string()));
        // Nobody waits where the client has left.
        let _ = done.send((matcher, mask));
    }
}

/// Clears what the bits do not allow; logits beyond the bits belong to no token.
fn apply(bits: &[u32], logits: &mut [f32]) {
    for (at, chunk) in logits.chunks_mut(32).enumerate() {
        let allowed = bits.get(at).copied().unwrap_or(0);
        if allowed == u32::MAX {
            continue;
        }
        for (bit, logit) in chunk.iter_mut().enumerate() {
            if allowed & (1 << bit) == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn check_size(form: &Form) -> Result<(), GrammarError> {
    let bytes = |value: &Value| value.to_string().len();
    let (what, size) = match form {
        Form::Object => return Ok(()),
        Form::Schema(schema) => ("the schema", bytes(schema)),
        Form::Pattern(text) => ("the regular expression", text.len()),
        Form::Grammar(text) => ("the grammar", text.len()),
        Form::Choice(texts) => {
            if texts.is_empty() || texts.len() > MOST_CHOICES {
                let message = format!(
                    "the choice has {} texts, expected 1 to {MOST_CHOICES}",
                    texts.len()
                );
                return Err(GrammarError::Size(message));
            }
            if texts.iter().any(String::is_empty) {
                return Err(GrammarError::Size(
                    "the choice has an empty text".to_owned(),
                ));
            }
            ("the choice", texts.iter().map(String::len).sum())
        }
        Form::Calls(calls) => {
            let functions = calls.functions.iter();
            (
                "the functions",
                functions
                    .map(|(name, schema)| name.len() + bytes(schema))
                    .sum(),
            )
        }
    };
    if size == 0 {
        return Err(GrammarError::Size(format!("{what} must not be empty")));
    }
    if size > LARGEST_SOURCE {
        let message = format!("{what} has {size} bytes, at most {LARGEST_SOURCE} are taken");
        return Err(GrammarError::Size(message));
    }
    Ok(())
}

/// In the words of llguidance; the first grammar is the one that counts.
fn grammar(form: &Form) -> Result<Vec<GrammarWithLexer>, GrammarError> {
    let lark = |text: String| vec![GrammarWithLexer::from_lark(text)];
    Ok(match form {
        Form::Object => vec![schema(&json!({ "type": "object" }))],
        Form::Schema(value) => vec![schema(value)],
        Form::Pattern(text) => vec![GrammarWithLexer::from_regex(text)],
        Form::Choice(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            lark(format!("start: {}", texts.join(" | ")))
        }
        Form::Grammar(text) if gbnf::is_gbnf(text) => {
            lark(gbnf::to_lark(text).map_err(GrammarError::Compile)?)
        }
        Form::Grammar(text) => lark(text.clone()),
        Form::Calls(calls) => calls_grammar(calls),
    })
}

fn schema(value: &Value) -> GrammarWithLexer {
    let mut value = value.clone();
    if let Some(members) = value.as_object_mut() {
        let options = members
            .entry("x-guidance")
            .or_insert_with(|| Value::Object(Map::new()));
        if let Some(options) = options.as_object_mut()
            && options.get("whitespace_flexible") != Some(&Value::Bool(false))
        {
            options
                .entry("whitespace_pattern")
                .or_insert_with(|| Value::from(WHITE_SPACE));
        }
    }
    GrammarWithLexer::from_json_schema(value)
}

/// A call is written compactly up to its arguments, as the templates show it to models.
fn calls_grammar(calls: &Calls) -> Vec<GrammarWithLexer> {
    let Calls {
        opening,
        closing,
        separator,
        arguments,
        functions,
    } = calls;
    let one: Vec<String> = functions
        .iter()
        .enumerate()
        .map(|(index, (name, _))| {
            let head = format!(
                "{{\"name\": {}, {}: ",
                Value::from(name.as_str()),
                quoted(arguments)
            );
            format!("{} @arguments{index} \"}}\"", quoted(&head))
        })
        .collect();
    let (before, after) = (literal(opening), literal(closing));
    let mut text = format!(
        "call: {before} function {after}\nfunction: {}\n",
        one.join("\n    | ")
    );
    text.push_str(&match separator {
        Some(separator) => format!("start: call ({} call)*\n", literal(separator)),
        None => "start: call\n".to_owned(),
    });
    let mut all = vec![GrammarWithLexer::from_lark(text)];
    all.extend(
        functions
            .iter()
            .enumerate()
            .map(|(index, (_, value))| GrammarWithLexer {
                name: Some(format!("arguments{index}")),
                ..schema(value)
            }),
    );
    all
}

/// A text in Lark's notation, which is JSON's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The same, where an empty text is nothing at all.
fn literal(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        quoted(text)
    }
}

/// The same form behind thoughts.
fn after(thoughts: Thoughts, mut grammars: Vec<GrammarWithLexer>) -> TopLevelGrammar {
    let start = match thoughts {
        Thoughts::None => None,
        Thoughts::Possible => Some(format!(
            "({} thoughts \"\\n\\n\"?)? @answer",
            quoted(THOUGHTS_BEGIN)
        )),
        Thoughts::Begun => Some("thoughts \"\\n\\n\"? @answer".to_owned()),
    };
    if let (Some(start), Some(first)) = (start, grammars.first_mut()) {
        first.name = Some("answer".to_owned());
        let end = quoted(THOUGHTS_END);
        let text = format!("start: {start}\nthoughts[suffix={end}]: /(?s:.*)/\n");
        grammars.insert(0, GrammarWithLexer::from_lark(text));
    }
    TopLevelGrammar {
        grammars,
        max_tokens: None,
    }
}

/// The model's tokens as llguidance sees them.
struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl Vocabulary {
    fn new(tokenizer: &Arc<Tokenizer>) -> Result<Self, GrammarError> {
        let size = tokenizer.size();
        let ends = tokenizer.stops();
        let words: Vec<Vec<u8>> = (0_u32..)
            .take(size)
            .map(|token| match tokenizer.control_name(token) {
                // Marked, so that text never spells a control token.
                Some(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
                None => tokenizer.bytes(token).to_vec(),
            })
            .collect();
        let (Some(end), Ok(size)) = (ends.first(), u32::try_from(size)) else {
            return Err(GrammarError::NoEnd);
        };
        let trie = TokTrie::from(&TokRxInfo::new(size, *end), &words).with_eos_tokens(ends);
        Ok(Self {
            tokenizer: Arc::clone(tokenizer),
            trie,
        })
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let tokens = self.tokenizer.encode_text(text);
            tokens.unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}

//! `serve`: both ports answer from the first moment, the model loads, requests are answered, SIGTERM drains.

use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::answer::{Answer, Failure, Reason};
use crate::config::{Config, ServeArgs};
use crate::device;
use crate::engine::{Engine, EngineLimits, Event, Interrupted};
use crate::logging;
use crate::model::{self, BLOCK_TOKENS, Capacity, Model, Setup};
use crate::prompt::Template;
use crate::request::{Ending, GenerateRequest, Sampling};
use crate::server::listen::MOST_CONNECTIONS;
use crate::server::{self, ApiKeys, Facts, Lifecycle, Service, listen};
use crate::tokenizer::Tokenizer;
use crate::weights::{LoadError, folder};

/// Rows of one step: prompts are computed in pieces of this many tokens.
const STEP_ROWS: usize = 256;

/// Time for connections to end after the last answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why `serve` ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A port cannot be had.
    #[error("failed to listen on {address}: {source}")]
    Listen {
        /// Host and port.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread or signal handler cannot be had.
    #[error("failed to start: {0}")]
    Start(std::io::Error),
    /// The engine died.
    #[error("the engine failed: {0}")]
    Engine(String),
}

impl ServeError {
    /// One stable word for conditions and events.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Load(_) => Reason::LoadFailed,
            Self::Listen { .. } | Self::Start(_) => Reason::StartFailed,
            Self::Engine(_) => Reason::EngineFailed,
        }
    }
}

/// The two ports.
pub struct Listeners {
    /// OpenAI API.
    pub api: TcpListener,
    /// Health, metrics, status.
    pub management: TcpListener,
}

/// Runs `serve` as a program: until a signal, or until it fails.
#[must_use]
pub fn run(args: &ServeArgs) -> ExitCode {
    logging::start();
    let config = Config::from(args);
    let result_file = config.result_file.clone();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(ServeError::Start)
        .and_then(|runtime| {
            let outcome = runtime.block_on(async {
                let bind = async |address| {
                    TcpListener::bind(address)
                        .await
                        .map_err(|source| ServeError::Listen { address, source })
                };
                let listeners = Listeners {
                    api: bind(args.listen).await?,
                    management: bind(args.management_listen).await?,
                };
                let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Start)?;
                let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Start)?;
                let shutdown = async move {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                };
                serve(listeners, config, shutdown).await
            });
            // A load or a prompt that is still being worked on must not hold the process back.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, &result_file);
            ExitCode::FAILURE
        }
    }
}

/// Writes the reason where the kubelet and a person look.
fn report(error: &ServeError, result_file: &Path) {
    let line = Answer::Failed(Failure::new(error.reason(), error.to_string())).line();
    let _ = writeln!(std::io::stderr(), "{line}");
    if result_file.parent().is_some_and(Path::is_dir)
        && let Err(error) = std::fs::write(result_file, &line)
    {
        tracing::debug!(%error, file = %result_file.display(), "wrote no result file");
    }
}

/// Serves on both ports until `shutdown`, then drains.
///
/// # Errors
/// When the model cannot be loaded or the engine dies.
pub async fn serve(
    listeners: Listeners,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let loading = config.clone();
    serve_with(listeners, config, shutdown, move || load(&loading)).await
}

/// A model with everything that answers need; what loading ends with.
pub struct Loaded {
    /// The model.
    pub model: Box<dyn Model>,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// Messages to text.
    pub template: Option<Template>,
    /// What the weights are stored as.
    pub main_type: String,
    /// Tokens of prompt and answer together.
    pub context_length: usize,
}

/// As [`serve`], with the given way to come by a model: tests bring their own.
///
/// # Errors
/// When `load` fails or the engine dies.
pub async fn serve_with(
    listeners: Listeners,
    config: Config,
    shutdown: impl Future<Output = ()>,
    load: impl FnOnce() -> Result<Loaded, LoadError> + Send + 'static,
) -> Result<(), ServeError> {
    let mut followers = JoinSet::new();
    let keys = match config.api_key_file.clone() {
        None => None,
        Some(path) => {
            let keys = tokio::task::spawn_blocking(move || Arc::new(ApiKeys::new(&path)));
            let keys = keys
                .await
                .map_err(|error| ServeError::Start(error.into()))?;
            followers.spawn(Arc::clone(&keys).follow());
            Some(keys)
        }
    };
    let app = Lifecycle::new(&config, device::settle(config.device), keys);
    let closing = watch::Sender::new(false);
    let api = tokio::spawn(listen::serve(
        listeners.api,
        server::api(Arc::clone(&app)),
        MOST_CONNECTIONS,
        closing.subscribe(),
    ));
    let management = server::management(Arc::clone(&app));
    tokio::spawn(listen::serve(
        listeners.management,
        management,
        MOST_CONNECTIONS,
        closing.subscribe(),
    ));

    let mut shutdown = std::pin::pin!(shutdown);
    let started = start(&app, &config, load);
    let mut end = tokio::select! {
        () = &mut shutdown => {
            tracing::info!("stopped while the model was loading");
            app.drain(false);
            return Ok(());
        }
        started = started => match started {
            Ok(end) => end,
            Err(error) => {
                app.fail(error.reason(), error.to_string());
                return Err(error);
            }
        },
    };
    tokio::select! {
        () = &mut shutdown => drain(&app, &config, &closing, api).await,
        fault = &mut end => {
            let error = ended(fault);
            app.fail(error.reason(), error.to_string());
            // Those who wait get their error before the process ends.
            closing.send_replace(true);
            let _ = timeout(CLOSE_TIMEOUT, api).await;
            return Err(error);
        }
    }
    Ok(())
}

/// Loads, starts the engine and takes a first step. The receiver hears when the engine ends.
async fn start(
    app: &Lifecycle,
    config: &Config,
    load: impl FnOnce() -> Result<Loaded, LoadError> + Send + 'static,
) -> Result<oneshot::Receiver<Option<String>>, ServeError> {
    let begun = Instant::now();
    let loaded = tokio::task::spawn_blocking(load).await.map_err(|error| {
        ServeError::Load(LoadError::Setup(format!(
            "failed to load {} by an internal fault: {error}",
            config.model.display()
        )))
    })??;
    let Loaded {
        model,
        mut tokenizer,
        template,
        main_type,
        context_length,
    } = loaded;
    tokenizer.add_stops(&config.stop_tokens, &config.stop_texts);
    let reads_pictures = model.reads_pictures();
    let limits = EngineLimits {
        context_length,
        sequences: config.max_sequences,
        queue: config.max_queue,
    };
    let vocabulary = model.vocabulary().min(tokenizer.size());
    tracing::info!(seconds = begun.elapsed().as_secs_f64(), %main_type, context_length, "loaded the model");
    let facts = Facts {
        main_type,
        bytes_resident: model.weight_bytes(),
        limits,
    };
    app.loaded(facts, begun.elapsed());

    let begun = Instant::now();
    let tokenizer = Arc::new(tokenizer);
    let (engine, end) = Engine::start(
        model,
        Arc::clone(&tokenizer),
        limits,
        Arc::clone(&app.metrics),
    )
    .map_err(ServeError::Start)?;
    match first_step(&engine).await {
        Ok(()) => {}
        Err(error @ Interrupted::NotFinite(_)) => {
            return Err(ServeError::Engine(error.to_string()));
        }
        Err(Interrupted::Stopped(_)) => return Err(ended(end.await)),
    }
    tracing::info!(seconds = begun.elapsed().as_secs_f64(), "ready");
    app.ready(
        Service {
            engine,
            tokenizer,
            template,
            vocabulary,
            reads_pictures,
        },
        begun.elapsed(),
    );
    Ok(end)
}

/// What the end of the engine's thread says: its fault, or nothing but that it is gone.
fn ended(fault: Result<Option<String>, RecvError>) -> ServeError {
    let fault = fault.ok().flatten();
    ServeError::Engine(fault.unwrap_or_else(|| "its thread ended".to_owned()))
}

/// Generates one token, so that the first request finds everything in place.
async fn first_step(engine: &Engine) -> Result<(), Interrupted> {
    let Ok(permit) = engine.admit() else {
        return Ok(());
    };
    let ending = Ending {
        most_tokens: 1,
        texts: Vec::new(),
        ignores_end_tokens: true,
    };
    let request = GenerateRequest {
        prompt: vec![0],
        sampling: Sampling::greedy(),
        ending,
    };
    let mut generation = engine.submit(request, permit)?;
    while !matches!(generation.next().await?, Event::Finished { .. }) {}
    Ok(())
}

/// Takes new requests for a moment more, lets running ones finish, then lets connections go.
async fn drain(
    app: &Lifecycle,
    config: &Config,
    closing: &watch::Sender<bool>,
    api: JoinHandle<()>,
) {
    tracing::info!(seconds = config.drain.as_secs(), "draining");
    let begun = Instant::now();
    app.drain(true);
    tokio::time::sleep(config.drain_grace.min(config.drain)).await;
    app.drain(false);
    let left = config.drain.saturating_sub(begun.elapsed());
    if timeout(left, app.idle()).await.is_err() {
        tracing::warn!(
            seconds = config.drain.as_secs(),
            "cut off requests that were still running"
        );
    }
    closing.send_replace(true);
    if timeout(CLOSE_TIMEOUT, api).await.is_err() {
        tracing::warn!("cut off connections that were still open");
    }
    tracing::info!(seconds = begun.elapsed().as_secs_f64(), "drained");
}

/// Opens, checks and loads the model that the configuration names.
///
/// # Errors
/// When it cannot be had as asked for.
pub fn load(config: &Config) -> Result<Loaded, LoadError> {
    let folder::Opened {
        mut weights,
        tokenizer,
        template,
        main_type,
    } = folder::open(&config.model)?;
    let template = match (&config.chat_template, template) {
        (Some(given), _) => Some(Template::given(given, &tokenizer)?),
        (None, Some(own)) => Some(Template::new(&own.text, &tokenizer, &own.path)?),
        (None, None) => None,
    };
    let trained = model::context_length(weights.as_ref())?;
    let context_length = config.context_length.unwrap_or(trained);
    if context_length > trained {
        return Err(LoadError::Setup(format!(
            "failed to use --context-length {context_length}: {} was made for {trained} tokens; ask for {trained} or less",
            weights.path().display()
        )));
    }
    let capacity = Capacity {
        rows: STEP_ROWS.max(config.max_sequences),
        logits_rows: config.max_sequences,
        // One sequence may fill the context; the part of a block that each of the others begins must not stop it.
        blocks: context_length.div_ceil(BLOCK_TOKENS) + config.max_sequences,
    };
    let model = model::load(
        weights.as_mut(),
        Setup {
            threads: config.threads,
            capacity,
        },
    )?;
    let known = model.vocabulary();
    if tokenizer.size() > known {
        tracing::warn!(
            tokens = tokenizer.size(),
            known,
            "the tokenizer knows more tokens than the model"
        );
    }
    Ok(Loaded {
        model,
        tokenizer,
        template,
        main_type,
        context_length,
    })
}

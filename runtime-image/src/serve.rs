//! `serve`: both ports answer from the first moment, the model loads, requests are answered, SIGTERM drains.

use std::future::Future;
use std::io::Write;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::answer::{Answer, Failure, Reason};
use crate::compute::cuda::launches::THIN_ROWS;
use crate::config::{Config, ServeArgs};
use crate::device::{self, Place, Settled};
use crate::engine::{Death, Engine, EngineLimits, Event, Interrupted};
use crate::logging;
use crate::memory::{self, Arena, Demand};
use crate::model::size::{self, EXTRA_LOGITS, STEP_ROWS};
use crate::model::{self, Capacity, Model, Setup};
use crate::picture_hosts::PictureHosts;
use crate::pictures::Preparation;
use crate::prompt::Template;
use crate::request::{Ending, GenerateRequest, Sampling};
use crate::server::listen::MOST_CONNECTIONS;
use crate::server::{self, ApiKeys, Facts, Lifecycle, Service, Sight, listen};
use crate::step::BLOCK_TOKENS;
use crate::tokenizer::Tokenizer;
use crate::weights::{LoadError, folder};

/// Time for connections to end after the last answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Rows of a card's first step: so many that it takes its code for large products.
const CARD_ROWS: usize = THIN_ROWS + 1;

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
    /// The device failed while it computed.
    #[error("{0}; this process ends, and a new one may find it well")]
    Device(String),
}

impl ServeError {
    /// One stable word for conditions and events.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Load(_) => Reason::LoadFailed,
            Self::Listen { .. } | Self::Start(_) => Reason::StartFailed,
            Self::Engine(_) => Reason::EngineFailed,
            Self::Device(_) => Reason::DeviceLost,
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
    let (device, args) = (config.device, config.cuda.clone());
    // A driver may take its time to start a card.
    let device = tokio::task::spawn_blocking(move || device::settle(device, &args));
    let device = device
        .await
        .map_err(|error| ServeError::Start(error.into()))?;
    let place = device.place.clone();
    serve_on(listeners, config, shutdown, device, move || {
        load_at(&loading, &place)
    })
    .await
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
    /// How it wants its pictures; absent where it looks at none.
    pub preparation: Option<Preparation>,
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
    let device = device::settle(config.device, &config.cuda);
    serve_on(listeners, config, shutdown, device, load).await
}

/// As [`serve_with`], on a device that has been found.
///
/// # Errors
/// When `load` fails or the engine dies.
pub async fn serve_on(
    listeners: Listeners,
    config: Config,
    shutdown: impl Future<Output = ()>,
    device: Settled,
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
    let app = Lifecycle::new(&config, device, keys, picture_hosts(&config).await?);
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

/// The way to the hosts that pictures are fetched from, where there are any.
async fn picture_hosts(config: &Config) -> Result<Option<PictureHosts>, ServeError> {
    let hosts = config.picture_hosts.clone();
    if hosts.is_empty() {
        return Ok(None);
    }
    let network = Arc::clone(&config.network);
    let made = tokio::task::spawn_blocking(move || PictureHosts::new(hosts, network));
    let made = made
        .await
        .map_err(|error| ServeError::Start(error.into()))?;
    made.map(Some).map_err(ServeError::Start)
}

/// Loads, starts the engine and takes a first step. The receiver hears when the engine ends.
async fn start(
    app: &Lifecycle,
    config: &Config,
    load: impl FnOnce() -> Result<Loaded, LoadError> + Send + 'static,
) -> Result<oneshot::Receiver<Option<Death>>, ServeError> {
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
        preparation,
        context_length,
    } = loaded;
    tokenizer.add_stops(&config.stop_tokens, &config.stop_texts);
    let blocks = model.capacity().blocks;
    let sight = preparation.zip(model.pictures());
    let sight = sight.map(|(preparation, facts)| Sight {
        preparation,
        facts,
        blocks,
    });
    let limits = EngineLimits {
        // A device that chooses tokens itself computes while the host plans; guesses begin with a token that is known.
        ahead: model.chooses() && config.speculative_tokens == 0,
        context_length,
        sequences: config.max_sequences,
        queue: config.max_queue,
        guesses: config.speculative_tokens,
    };
    let vocabulary = model.vocabulary().min(tokenizer.size());
    let rows = if model.chooses() { CARD_ROWS } else { 1 };
    let rows = rows.min(context_length.saturating_sub(1)).max(1);
    tracing::info!(seconds = begun.elapsed().as_secs_f64(), %main_type, context_length, "loaded the model");
    let facts = Facts {
        main_type,
        bytes_resident: model.weight_bytes(),
        bytes_read: folder::tensor_bytes(&config.model),
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
    match first_steps(&engine, rows).await {
        Ok(()) => {}
        Err(error @ Interrupted::Sample(_)) => {
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
            grammars: OnceLock::new(),
            vocabulary,
            sight,
        },
        begun.elapsed(),
    );
    Ok(end)
}

/// What the end of the engine's thread says: its fault, or nothing but that it is gone.
fn ended(death: Result<Option<Death>, RecvError>) -> ServeError {
    match death.ok().flatten() {
        Some(Death::Device(detail)) => ServeError::Device(detail),
        Some(Death::Fault(detail)) => ServeError::Engine(detail),
        None => ServeError::Engine("its thread ended".to_owned()),
    }
}

/// Generates a token after so many, and where these are several one more, so that the first request finds everything in place.
async fn first_steps(engine: &Engine, rows: usize) -> Result<(), Interrupted> {
    let Ok(permit) = engine.admit() else {
        return Ok(());
    };
    let ending = Ending {
        most_tokens: rows.min(2),
        texts: Vec::new(),
        tokens: Vec::new(),
        ignores_end_tokens: true,
    };
    let request = GenerateRequest::new(vec![0; rows], Sampling::greedy(), ending);
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
    load_at(config, &Place::Cpu)
}

/// The same, to be computed there.
///
/// # Errors
/// When it cannot be had as asked for.
pub fn load_at(config: &Config, place: &Place) -> Result<Loaded, LoadError> {
    if config.verify_weights {
        folder::verify(&config.model)?;
    }
    let folder::Begun {
        mut weights,
        tokenizer,
        template,
        main_type,
        preparation,
    } = folder::begin(&config.model)?;
    let shape = model::shape(weights.as_ref())?;
    let trained = shape.context_length;
    let context_length = config.context_length.unwrap_or(trained);
    if context_length > trained {
        return Err(LoadError::Setup(format!(
            "failed to use --context-length {context_length}: {} was made for {trained} tokens; ask for {trained} or less",
            weights.path().display()
        )));
    }
    let rows = STEP_ROWS.max(config.max_sequences);
    let logits_rows = config.max_sequences + EXTRA_LOGITS;
    let sight = weights.sight()?;
    let parts = size::memory(&shape, sight.as_ref(), weights.packed_bytes());
    let settings = config.cuda.settings(&main_type);
    let number = match place {
        Place::Cpu => size_of::<f32>(),
        Place::Card(_) => settings.floats.arena().bytes(),
    };
    let demand = Demand {
        weights: parts.weights_bytes,
        buffers: parts.buffers(config.max_sequences as u64),
        block: number as u64 * parts.block_numbers,
        block_tokens: BLOCK_TOKENS,
        // A context can be full and still have its pictures, or one where no number is given.
        pictures: config.images_per_prompt.unwrap_or(1) * parts.image_blocks as usize,
        sequences: config.max_sequences,
        context: context_length,
        may_shrink: config.context_length.is_none(),
    };
    let capacity = move |blocks| Capacity {
        rows,
        logits_rows,
        blocks,
    };
    let (settled, place) = (config.clone(), place.clone());
    let load = move || match place {
        Place::Cpu => {
            let arena = fit(&settled, &demand, memory::available())?;
            let setup = Setup {
                threads: settled.threads,
                ranks: 1,
                dtype: settled.dtype,
                capacity: capacity(arena.blocks),
            };
            Ok((model::load(weights.as_mut(), setup)?, arena.context))
        }
        Place::Card(card) => {
            let mut context = 0;
            let mut room = |free: u64| {
                let arena = fit(&settled, &demand.loaded(), Some(free))?;
                context = arena.context;
                Ok(arena.blocks)
            };
            let weights = weights.as_mut();
            let model = model::load_on(card, settings, weights, capacity(0), &mut room)?;
            Ok::<_, LoadError>((model, context))
        }
    };
    // Beside the weights; what is wrong with tokenizer or template is told before those are complete.
    let loading = std::thread::Builder::new().name("load".to_owned());
    let loading = loading
        .spawn(load)
        .map_err(|error| LoadError::Setup(format!("failed to start a thread: {error}")))?;
    let tokenizer = tokenizer()?;
    let template = match (&config.chat_template, template) {
        (Some(given), _) => Some(Template::given(given, &tokenizer)?),
        (None, Some(own)) => Some(Template::new(&own.text, &tokenizer, &own.path)?),
        (None, None) => None,
    };
    let loaded = loading.join();
    let (model, context_length) = loaded.unwrap_or_else(|panic| resume_unwind(panic))?;
    let known = model.vocabulary();
    // The token that stands for a picture is never said.
    if tokenizer.size() > known + usize::from(model.pictures().is_some()) {
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
        preparation,
        context_length,
    })
}

/// Decides how much context fits into memory, and says so where it is less than the model's own.
fn fit(config: &Config, demand: &Demand, available: Option<u64>) -> Result<Arena, LoadError> {
    let (budget, available) = match config.kv_cache_memory_bytes {
        Some(bytes) => (bytes, None),
        None => {
            let budget = available.map_or(u64::MAX, |bytes| memory::budget(bytes, demand));
            (budget, available)
        }
    };
    let arena = memory::plan(demand, budget, available)
        .map_err(|error| LoadError::Setup(error.to_string()))?;
    if arena.context < demand.context {
        tracing::warn!(
            context_length = arena.context,
            trained = demand.context,
            "shortened the context to what fits into memory"
        );
    }
    tracing::info!(
        blocks = arena.blocks,
        mebibytes = (arena.blocks as u64 * demand.block) >> 20,
        "keys and values may take so much"
    );
    Ok(arena)
}

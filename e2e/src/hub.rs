//! A hub stand-in: serves a folder under Hugging Face's and ModelScope's URLs, with faults on request.
//!
//! What a client sees follows the hubs' own behaviour as their Python clients document and test it:
//! metadata with sizes and digests, files behind redirects, the `X-Repo-Commit`, `X-Linked-Etag` and
//! `X-Error-Code` headers, 401 for a repository that an anonymous caller may not even know about.
//! Large files are answered by a second listener, as the real hub's CDN does, through links that are signed and expire.
//!
//! ```text
//! request → fault.rs: log it, pick a fault → admin.rs | metadata.rs | content.rs | modelscope.rs → fault.rs: spoil the body
//! ```
//!
//! Never for production: there is no TLS, and whoever reaches the port may change what it answers.

pub mod admin;
mod content;
pub mod fault;
mod metadata;
mod modelscope;
mod refusal;
pub mod repository;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::OnceCell;

use fault::Fault;
use repository::{Repository, RepositoryId};

/// How many requests the log keeps; the oldest go first.
const LOG_BOUND: usize = 20_000;

/// What a hub serves and how it names its CDN.
#[derive(Debug, Clone)]
pub struct Config {
    /// Repositories lie at `FOLDER/ORG/NAME/…`; `hub.json` beside the files says who may read them.
    pub folder: PathBuf,
    /// Where large files are, for example `http://cdn.hub.svc:8081`.
    /// Absent: the host by which the client called the hub, at the second listener's port.
    pub cdn: Option<String>,
    /// How long a link to the CDN is good; the real one's are good for an hour.
    pub link_lifetime: Duration,
}

impl Config {
    /// Serves `folder` with links that are good for an hour.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            cdn: None,
            link_lifetime: Duration::from_secs(3600),
        }
    }
}

/// Which of the two listeners was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Site {
    /// Metadata, redirects and small files.
    Hub,
    /// Large files, by signed links only.
    Cdn,
}

/// One request, as `GET /_requests` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoggedRequest {
    /// Which listener was asked.
    pub site: Site,
    /// The Host header.
    pub host: String,
    /// `GET`, `HEAD` and so on.
    pub method: String,
    /// The path without the query, percent-encoding as sent.
    pub path: String,
    /// The query as sent, empty where there was none.
    pub query: String,
    /// `ORG/NAME` where the path names one.
    pub repository: Option<String>,
    /// The Range header.
    pub range: Option<String>,
    /// Whether an Authorization header came along; its value is never kept.
    pub authorization: bool,
    /// The status that was sent.
    pub status: u16,
    /// Whether a fault was at work.
    pub fault: bool,
}

impl LoggedRequest {
    /// Whether the bytes of a large file were asked for, from the beginning or from where an earlier try broke off.
    /// Looks at a bounded part, such as a file's header, are none.
    #[must_use]
    pub fn is_download(&self) -> bool {
        let is_open = self.range.as_ref().is_none_or(|range| range.ends_with('-'));
        self.site == Site::Cdn && self.method == "GET" && is_open
    }
}

/// A repository that is being read or has been; several requests wait for one reading.
type Reading = Arc<OnceCell<Option<Arc<Repository>>>>;

/// What all requests share.
pub(crate) struct Hub {
    config: Config,
    cdn_port: u16,
    /// Signs links to the CDN; new with each process.
    secret: [u8; 32],
    repositories: Mutex<HashMap<RepositoryId, Reading>>,
    faults: Mutex<Vec<Fault>>,
    log: Mutex<VecDeque<LoggedRequest>>,
}

impl Hub {
    /// The repository, read from the folder when it is asked for first.
    async fn repository(&self, id: &RepositoryId) -> io::Result<Option<Arc<Repository>>> {
        let cell = Arc::clone(lock(&self.repositories).entry(id.clone()).or_default());
        let found = cell
            .get_or_try_init(|| async {
                let folder = self.repository_folder(id);
                let loaded = tokio::task::spawn_blocking(move || Repository::load(&folder))
                    .await
                    .map_err(io::Error::other)??;
                Ok::<_, io::Error>(loaded.map(Arc::new))
            })
            .await?
            .clone();
        if found.is_none() {
            // A folder may appear later, so absence is never remembered.
            lock(&self.repositories).remove(id);
        }
        Ok(found)
    }

    fn keep(&self, id: RepositoryId, repository: Arc<Repository>) {
        let cell = Arc::new(OnceCell::new_with(Some(Some(repository))));
        lock(&self.repositories).insert(id, cell);
    }

    fn forget(&self, id: &RepositoryId) {
        lock(&self.repositories).remove(id);
    }

    fn repository_folder(&self, id: &RepositoryId) -> PathBuf {
        self.config.folder.join(id.organisation()).join(id.name())
    }

    fn record(&self, request: LoggedRequest) {
        let mut log = lock(&self.log);
        if log.len() == LOG_BOUND {
            log.pop_front();
        }
        log.push_back(request);
    }
}

/// Serves until the future is dropped. The second listener plays the CDN.
///
/// # Errors
/// When a listener fails.
pub async fn serve(hub: TcpListener, cdn: TcpListener, config: Config) -> io::Result<()> {
    let shared = Arc::new(Hub {
        cdn_port: cdn.local_addr()?.port(),
        secret: read_secret(Path::new("/dev/urandom"))?,
        config,
        repositories: Mutex::default(),
        faults: Mutex::default(),
        log: Mutex::default(),
    });
    let hub_routes = layered(Site::Hub, hub_routes(), &shared);
    let cdn_routes = layered(Site::Cdn, cdn_routes(), &shared);
    tokio::try_join!(
        axum::serve(hub, hub_routes).into_future(),
        axum::serve(cdn, cdn_routes).into_future(),
    )?;
    Ok(())
}

fn hub_routes() -> Router<Arc<Hub>> {
    Router::new()
        .route("/api/models/{org}/{name}", get(metadata::model))
        .route(
            "/api/models/{org}/{name}/revision/{rev}",
            get(metadata::model_at),
        )
        .route("/api/models/{org}/{name}/tree/{rev}", get(metadata::tree))
        .route(
            "/api/models/{org}/{name}/paths-info/{rev}",
            post(metadata::paths_info),
        )
        .route(
            "/api/resolve-cache/models/{org}/{name}/{rev}/{*path}",
            get(content::small_file),
        )
        .route("/{org}/{name}/resolve/{rev}/{*path}", get(content::resolve))
        .route("/api/v1/models/{org}/{name}", get(modelscope::model))
        .route(
            "/api/v1/models/{org}/{name}/revisions",
            get(modelscope::revisions),
        )
        .route(
            "/api/v1/models/{org}/{name}/repo/files",
            get(modelscope::files),
        )
        .route("/api/v1/models/{org}/{name}/repo", get(modelscope::file))
        .route("/_healthz", get(|| async { "alive" }))
        .route(
            "/_faults",
            get(admin::faults)
                .put(admin::put_faults)
                .post(admin::add_fault)
                .delete(admin::clear_faults),
        )
        .route(
            "/_requests",
            get(admin::requests).delete(admin::forget_requests),
        )
        .route("/_repositories", get(admin::repositories))
        .route(
            "/_repositories/{org}/{name}",
            put(admin::put_repository).delete(admin::forget_repository),
        )
        .route("/_files/{org}/{name}/{*path}", put(admin::put_file))
        .fallback(refusal::no_such_page)
}

fn cdn_routes() -> Router<Arc<Hub>> {
    Router::new()
        .route("/repos/{org}/{name}/{sha256}", get(content::large_file))
        .fallback(refusal::no_such_page)
}

fn layered(site: Site, routes: Router<Arc<Hub>>, shared: &Arc<Hub>) -> Router {
    let state = (site, Arc::clone(shared));
    routes
        .layer(axum::middleware::from_fn_with_state(state, fault::layer))
        // Models are uploaded whole through the admin route.
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(shared))
}

fn read_secret(source: &Path) -> io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    io::Read::read_exact(&mut std::fs::File::open(source)?, &mut secret)?;
    Ok(secret)
}

/// A poisoned lock means that a request's task panicked between two plain assignments; the data is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

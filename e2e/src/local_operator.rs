//! The operator as a process of this machine, behind a proxy: it serves one namespace and is started again when it ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::fault_proxy::{FaultProxy, Kill};
use crate::tools::required_file;

/// Pause before an operator that ended by itself is started again, so that one that cannot start takes no whole core.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// The operator's program.
#[derive(Debug, Clone)]
pub struct Program(PathBuf);

impl Program {
    /// Finds the program of `CHANDLER_OPERATOR`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn find() -> Result<Self> {
        required_file("CHANDLER_OPERATOR", "run this by its make target").map(Self)
    }

    fn start(&self, files: &Files, namespace: &str, probes: SocketAddr) -> Result<Child> {
        let (kubeconfig, log) = (&files.kubeconfig, &files.log);
        let output = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(&self.0);
        command
            .arg("run")
            .arg("--builtin-cards=false")
            .arg("--leader-elect=false")
            .arg(format!("--listen-probes={probes}"))
            // Nobody asks it: the Jobs' answers are played.
            .arg("--hub-endpoint=huggingface=http://hub.invalid")
            .env("KUBECONFIG", kubeconfig)
            // As the chart has it.
            .env("MALLOC_ARENA_MAX", "1")
            .env("MALLOC_MMAP_THRESHOLD_", "65536")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true);
        if !namespace.is_empty() {
            command.arg(format!("--namespaces={namespace}"));
        }
        command
            .spawn()
            .with_context(|| format!("cannot start {}", self.0.display()))
    }
}

/// Files of one operator.
#[derive(Debug, Clone)]
struct Files {
    kubeconfig: PathBuf,
    log: PathBuf,
}

/// An operator that runs until this is dropped.
pub struct LocalOperator {
    /// What it writes.
    pub log: PathBuf,
    /// Where it answers about itself; the port is free before its first start.
    pub probes: SocketAddr,
    process: Arc<AtomicU32>,
    ended: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl LocalOperator {
    /// Starts the operator for one namespace, or for all where it is empty.
    ///
    /// # Errors
    /// When the program cannot be started, or a file not be written.
    pub fn start(
        program: &Program,
        namespace: &str,
        folder: &Path,
        proxy: &FaultProxy,
        mut kills: mpsc::Receiver<Kill>,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let name = if namespace.is_empty() {
            "all"
        } else {
            namespace
        };
        let files = Files {
            kubeconfig: folder.join(format!("{name}.kubeconfig")),
            log: folder.join(format!("{name}.log")),
        };
        let log = files.log.clone();
        let _ = std::fs::remove_file(&log);
        // Given back at once: nothing else asks for it before the operator does.
        let probes = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let content = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{ "name": "proxy", "cluster": { "server": format!("http://{}", proxy.address) } }],
            "users": [{ "name": "proxy", "user": {} }],
            "contexts": [{ "name": "proxy", "context": { "cluster": "proxy", "user": "proxy" } }],
        });
        std::fs::write(&files.kubeconfig, content.to_string())?;

        let first = program.start(&files, namespace, probes)?;
        let process = Arc::new(AtomicU32::new(first.id().unwrap_or_default()));
        let ended = Arc::new(AtomicUsize::new(0));
        let (program, namespace) = (program.clone(), namespace.to_owned());
        let (id, count) = (process.clone(), ended.clone());
        let task = tokio::spawn(async move {
            let mut child = first;
            loop {
                tokio::select! {
                    kill = kills.recv() => {
                        // An error means that it is dead already.
                        let _ = child.kill().await;
                        match kill {
                            Some(dead) => { let _ = dead.send(()); }
                            None => return,
                        }
                    }
                    _ = child.wait() => {
                        count.fetch_add(1, Ordering::Relaxed);
                        sleep(RESTART_PAUSE).await;
                    }
                }
                match program.start(&files, &namespace, probes) {
                    Ok(next) => {
                        id.store(next.id().unwrap_or_default(), Ordering::Relaxed);
                        child = next;
                    }
                    Err(error) => {
                        eprintln!("local operator: {error:#}");
                        return;
                    }
                }
            }
        });
        Ok(Self {
            log,
            probes,
            process,
            ended,
            task,
        })
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.load(Ordering::Relaxed)
    }

    /// How often it ended without being killed.
    #[must_use]
    pub fn ended_by_itself(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }
}

impl Drop for LocalOperator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

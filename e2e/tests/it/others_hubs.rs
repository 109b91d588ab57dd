//! The runtime's program fetches the demo model, from our stand-in and through a mirror made by others. No cluster is needed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::hub::{Config, serve};
use chandler_e2e::python;
use chandler_e2e::story::without_cluster;
use chandler_e2e::tools::{required_file, run, runtime};
use chandler_e2e::wait::{Seen, until};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

const REPOSITORY: &str = "org/demo";
const FILE: &str = "model-Q4_1.gguf";

#[test]
fn the_demo_model_is_fetched_from_the_stand_in() {
    without_cluster(async {
        let hub = LocalHub::start().await?;
        hub.check_fetch(&format!("http://127.0.0.1:{}", hub.port))
            .await
    });
}

/// olah answers the list of files without sizes and digests, and each file without a redirect.
#[test]
fn the_demo_model_is_fetched_through_a_mirror_made_by_others() {
    without_cluster(async {
        let hub = LocalHub::start().await?;
        let mirror = Mirror::start(&hub).await?;
        hub.check_fetch(&mirror.endpoint).await
    });
}

/// The stand-in in this process, with the demo model in it.
struct LocalHub {
    folder: TempDir,
    model: PathBuf,
    port: u16,
    cdn_port: u16,
}

impl LocalHub {
    async fn start() -> Result<Self> {
        let model = required_file("CHANDLER_DEMO_MODEL", "it is what hack/demo-model prints")?;
        let folder = TempDir::new()?;
        let repository = folder.path().join("models").join(REPOSITORY);
        std::fs::create_dir_all(&repository)?;
        std::os::unix::fs::symlink(&model, repository.join(FILE))?;
        let hub = TcpListener::bind("127.0.0.1:0").await?;
        let cdn = TcpListener::bind("127.0.0.1:0").await?;
        let (port, cdn_port) = (hub.local_addr()?.port(), cdn.local_addr()?.port());
        let config = Config {
            cdn: Some(format!("http://localhost:{cdn_port}")),
            ..Config::new(folder.path().join("models"))
        };
        tokio::spawn(serve(hub, cdn, config));
        Ok(Self {
            folder,
            model,
            port,
            cdn_port,
        })
    }

    async fn check_fetch(&self, endpoint: &str) -> Result<()> {
        let resolved = self.job("resolve", endpoint, "main", &[]).await?;
        ensure!(resolved["outcome"] == "Resolved", "{resolved}");
        let commit = resolved["commit"].as_str().context("no commit")?;
        let target = self.folder.path().join("cache");
        let to = format!("--to={}", target.display());
        let fetched = self.job("fetch", endpoint, commit, &[&to]).await?;
        ensure!(fetched["outcome"] == "Fetched", "{fetched}");
        ensure!(fetched["commit"] == commit, "{fetched}");

        let folder = target.join(commit);
        let digest = sha256(&folder.join(FILE))?;
        ensure!(
            digest == sha256(&self.model)?,
            "other bytes arrived: {digest}"
        );
        let manifest = folder.join("chandler.json");
        ensure!(
            fetched["manifestDigest"] == format!("sha256:{}", sha256(&manifest)?),
            "{fetched}"
        );
        let manifest: Value = serde_json::from_slice(&std::fs::read(manifest)?)?;
        ensure!(manifest["files"][0]["path"] == FILE, "{manifest}");
        ensure!(manifest["files"][0]["sha256"] == digest, "{manifest}");

        let again = self.job("fetch", endpoint, commit, &[&to]).await?;
        ensure!(
            again == fetched,
            "the second fetch answers differently: {again}"
        );
        Ok(())
    }

    /// Runs one of the program's Jobs and gives its answer.
    async fn job(
        &self,
        command: &str,
        endpoint: &str,
        revision: &str,
        more: &[&str],
    ) -> Result<Value> {
        let program = runtime()?;
        let program = program.to_str().context("the runtime's path is not text")?;
        let answer = self.folder.path().join("answer.json");
        let endpoint = format!("--endpoint={endpoint}");
        let result_file = format!("--result-file={}", answer.display());
        let mut arguments = vec![
            command,
            "--hub=huggingface",
            &endpoint,
            "--id",
            REPOSITORY,
            "--revision",
            revision,
            "--format=ggufv2",
            &result_file,
        ];
        arguments.extend_from_slice(more);
        run(program, &arguments).await?;
        Ok(serde_json::from_slice(&std::fs::read(answer)?)?)
    }
}

/// olah, in front of the stand-in.
struct Mirror {
    endpoint: String,
    _process: Child,
}

impl Mirror {
    async fn start(hub: &LocalHub) -> Result<Self> {
        let environment = python::environment(Some("mirror")).await?;
        // It binds the port itself, so a free one is looked for and given back first.
        let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let folder = hub.folder.path();
        let process = Command::new(environment.join("bin/olah-cli"))
            .args(["--host=127.0.0.1", &format!("--port={port}")])
            .args([
                "--hf-scheme=http",
                &format!("--hf-netloc=127.0.0.1:{}", hub.port),
            ])
            .arg(format!("--hf-lfs-netloc=localhost:{}", hub.cdn_port))
            .args([
                "--mirror-scheme=http",
                &format!("--mirror-netloc={address}"),
            ])
            .arg(format!("--mirror-lfs-netloc={address}"))
            .arg(format!("--repos-path={}", folder.join("olah").display()))
            .arg(format!("--log-path={}", folder.join("olah-log").display()))
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("olah.err"))?)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start olah")?;
        let endpoint = format!("http://{address}");
        let url = format!("{endpoint}/api/models/{REPOSITORY}");
        let client = reqwest::Client::builder().no_proxy().build()?;
        until(Duration::from_secs(60), "olah to answer", async || {
            let status = client.get(&url).send().await?.status();
            Ok(Seen::when(status.is_success(), || status.to_string()))
        })
        .await?;
        Ok(Self {
            endpoint,
            _process: process,
        })
    }
}

fn sha256(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

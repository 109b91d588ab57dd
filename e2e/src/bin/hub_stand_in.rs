//! `hub-stand-in`: serves a folder under Hugging Face's and ModelScope's URLs, for the stories and for the quickstart.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use chandler_e2e::{hub, played_runtime, relay, tls};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serves a folder under Hugging Face's and ModelScope's URLs, with faults on request.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where the hub listens.
    #[arg(long, env = "HUB_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,

    /// Where the stand-in for the hub's CDN listens.
    #[arg(long, env = "HUB_CDN_LISTEN", default_value = "0.0.0.0:8081")]
    cdn_listen: SocketAddr,

    /// How clients reach the CDN, for example http://cdn.hub.svc:8081.
    /// Default: the host by which they called the hub, at the CDN's port.
    #[arg(long, env = "HUB_CDN_URL")]
    cdn_url: Option<String>,

    /// Repositories lie at FOLDER/ORG/NAME/…; an optional hub.json beside the files says who may read them.
    #[arg(long, env = "HUB_FOLDER", default_value = "/models")]
    folder: PathBuf,

    /// How many seconds a link to the CDN is good.
    #[arg(long, env = "HUB_LINK_SECONDS", default_value_t = 3600)]
    link_seconds: u64,

    /// Where to listen for connections to pass on; see the crate's module relay. Off by default: whoever reaches
    /// this port reaches everything that the pod reaches.
    #[arg(long, env = "HUB_RELAY_LISTEN")]
    relay_listen: Option<SocketAddr>,

    /// Folder with tls.crt and tls.key: hub and CDN are then served by https too, on ports 8443 and 8444.
    #[arg(long, env = "HUB_TLS_FOLDER")]
    tls_folder: Option<PathBuf>,
}

/// Where hub and CDN listen for https.
const TLS_PORTS: [u16; 2] = [8443, 8444];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // As the operator calls a runtime: with `serve` and flags that a played one has no use for.
    if std::env::args().nth(1).as_deref() == Some("serve") {
        let mut terminated = signal(SignalKind::terminate())?;
        return tokio::select! {
            result = played_runtime::serve() => result,
            _ = terminated.recv() => Ok(()),
        };
    }
    let args = Args::parse();
    let hub = listen(args.listen).await?;
    let cdn = listen(args.cdn_listen).await?;
    eprintln!(
        "serving {} as a hub on {}, large files on {}",
        args.folder.display(),
        hub.local_addr()?,
        cdn.local_addr()?
    );
    let config = hub::Config {
        folder: args.folder,
        cdn: args.cdn_url,
        link_lifetime: Duration::from_secs(args.link_seconds),
    };
    // As process 1 of a container it gets no default action for SIGTERM.
    let mut terminated = signal(SignalKind::terminate())?;
    let relay = async {
        match args.relay_listen {
            Some(address) => relay::serve(listen(address).await?)
                .await
                .context("the relay stopped"),
            None => std::future::pending().await,
        }
    };
    let plain = [hub.local_addr()?, cdn.local_addr()?];
    let fronts = async {
        match args.tls_folder {
            Some(folder) => serve_tls(&folder, plain).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = relay => result,
        result = fronts => result,
        result = hub::serve(hub, cdn, config) => result.context("the hub stopped serving"),
        _ = terminated.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Serves by https what the plain listeners serve.
async fn serve_tls(folder: &Path, plain: [SocketAddr; 2]) -> anyhow::Result<()> {
    let acceptor = tls::acceptor(folder)?;
    let mut fronts = Vec::new();
    for (port, address) in TLS_PORTS.into_iter().zip(plain) {
        let listener = listen(SocketAddr::new(address.ip(), port)).await?;
        let target = SocketAddr::from(([127, 0, 0, 1], address.port()));
        fronts.push(tls::serve(listener, acceptor.clone(), target));
    }
    futures::future::try_join_all(fronts)
        .await
        .context("https stopped")?;
    Ok(())
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
}

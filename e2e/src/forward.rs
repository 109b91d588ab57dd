//! Ways from this machine into the cluster: to one pod by port-forwarding, and to a Service through the relay pod.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::relay;

/// A port of this machine that leads into the cluster, for as long as this value lives.
pub struct Forward {
    /// `127.0.0.1:PORT`.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where connections go.
#[derive(Clone)]
struct Way {
    client: Client,
    namespace: String,
    pod: String,
    port: u16,
    /// Behind the relay: `HOST:PORT`.
    onward: Option<String>,
}

impl Forward {
    /// To one port of a pod.
    ///
    /// # Errors
    /// When no local port can be had.
    pub async fn to_pod(client: &Client, namespace: &str, pod: &str, port: u16) -> Result<Self> {
        Self::start(Way {
            client: client.clone(),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            port,
            onward: None,
        })
        .await
    }

    /// To `HOST:PORT` as a pod sees it, through the relay that listens on a pod's port.
    ///
    /// # Errors
    /// When no local port can be had.
    pub async fn through_relay(
        client: &Client,
        namespace: &str,
        pod: &str,
        port: u16,
        onward: &str,
    ) -> Result<Self> {
        Self::start(Way {
            client: client.clone(),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            port,
            onward: Some(onward.to_owned()),
        })
        .await
    }

    async fn start(way: Way) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let way = way.clone();
                tokio::spawn(async move {
                    // The caller sees a closed connection; why it closed is told here.
                    if let Err(error) = way.carry(caller).await {
                        eprintln!("forward: {error:#}");
                    }
                });
            }
        });
        Ok(Self { address, task })
    }
}

impl Way {
    async fn carry(&self, mut caller: TcpStream) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut forwarder = pods
            .portforward(&self.pod, &[self.port])
            .await
            .with_context(|| format!("cannot reach pod {}/{}", self.namespace, self.pod))?;
        let mut stream = forwarder
            .take_stream(self.port)
            .context("the port-forward has no stream")?;
        // Either side may end a connection whenever it likes: that is no fault of the way.
        match &self.onward {
            None => {
                let _ended = tokio::io::copy_bidirectional(&mut caller, &mut stream).await;
            }
            Some(target) => {
                let mut stream = relay::connect(stream, target).await?;
                let _ended = tokio::io::copy_bidirectional(&mut caller, &mut stream).await;
            }
        }
        Ok(())
    }
}

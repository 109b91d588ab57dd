//! TLS in front of a plain listener: a hub behind https, under a certificate that a story made.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// The certificate's name in its folder, as in a Secret of type kubernetes.io/tls.
pub const CERTIFICATE: &str = "tls.crt";

/// The key's name.
pub const KEY: &str = "tls.key";

/// Reads certificate and key of a folder.
///
/// # Errors
/// When one of them is not there, or they do not belong together.
pub fn acceptor(folder: &Path) -> Result<TlsAcceptor> {
    let certificate = CertificateDer::from_pem_file(folder.join(CERTIFICATE))
        .with_context(|| format!("no certificate in {}", folder.display()))?;
    let key = PrivateKeyDer::from_pem_file(folder.join(KEY))
        .with_context(|| format!("no key in {}", folder.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Passes what comes through TLS on to `target`, until the future is dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    target: SocketAddr,
) -> std::io::Result<()> {
    loop {
        let (caller, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let passed = async {
                let mut caller = acceptor.accept(caller).await?;
                let mut service = TcpStream::connect(target).await?;
                tokio::io::copy_bidirectional(&mut caller, &mut service).await
            };
            // A caller that does not trust the certificate is what some stories are about.
            if let Err(error) = passed.await {
                eprintln!("tls: {error}");
            }
        });
    }
}

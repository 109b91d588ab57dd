//! A relay for TCP connections, run as a pod: it lets a story on this machine reach a Service the way a pod does,
//! by DNS name, cluster address and the node's rules. Port-forwarding alone ends at one pod and passes by all three.
//!
//! The caller writes `CONNECT HOST:PORT HTTP/1.1` and an empty line; after the answer `HTTP/1.1 200 …` all bytes are passed on.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The longest first line: a DNS name has at most 253 characters.
const LINE_BOUND: usize = 512;

/// Serves until the future is dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (caller, _) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = pass_on(caller).await {
                eprintln!("relay: {error}");
            }
        });
    }
}

async fn pass_on(caller: TcpStream) -> io::Result<()> {
    let mut caller = BufReader::new(caller);
    let line = read_line(&mut caller).await?;
    let target = line.split_whitespace().nth(1).unwrap_or_default();
    while !read_line(&mut caller).await?.trim().is_empty() {}
    match TcpStream::connect(target).await {
        Ok(mut service) => {
            caller.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            tokio::io::copy_bidirectional(&mut caller, &mut service).await?;
            Ok(())
        }
        Err(error) => {
            let answer = format!("HTTP/1.1 502 cannot reach {target}: {error}\r\n\r\n");
            caller.write_all(answer.as_bytes()).await
        }
    }
}

/// Asks the relay at the other end of `stream` for a connection to `target`.
///
/// # Errors
/// When the relay cannot reach it; the error says why.
pub async fn connect<S>(stream: S, target: &str) -> io::Result<BufReader<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = BufReader::new(stream);
    stream
        .write_all(format!("CONNECT {target} HTTP/1.1\r\n\r\n").as_bytes())
        .await?;
    let status = read_line(&mut stream).await?;
    if !status.starts_with("HTTP/1.1 200") {
        return Err(io::Error::other(format!(
            "the relay says: {}",
            status.trim()
        )));
    }
    while !read_line(&mut stream).await?.trim().is_empty() {}
    Ok(stream)
}

async fn read_line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let available = stream.fill_buf().await?;
        if available.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |position| position + 1);
        line.extend_from_slice(&available[..taken]);
        stream.consume(taken);
        if end.is_some() {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        if line.len() > LINE_BOUND {
            return Err(io::Error::other("a line of the request is too long"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn bytes_pass_in_both_directions() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = echo.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = echo.accept().await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = relay.local_addr().unwrap();
        tokio::spawn(serve(relay));

        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = connect(stream, &target).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"hello");
    }

    #[tokio::test]
    async fn an_unreachable_target_is_named() {
        let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = relay.local_addr().unwrap();
        tokio::spawn(serve(relay));
        let stream = TcpStream::connect(address).await.unwrap();
        let error = connect(stream, "127.0.0.1:1")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot reach 127.0.0.1:1"), "{error}");
    }
}

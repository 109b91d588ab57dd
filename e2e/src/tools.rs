//! The programs that the stories call: kubectl, helm and crane, those of the cluster first, then those of the PATH.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Longer than anything that a story calls; making a Python environment takes the longest.
const PATIENCE: Duration = Duration::from_secs(600);

/// The checkout's top folder.
#[must_use]
pub fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The program NAME, from the folder in `CHANDLER_BIN` where it is there.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    std::env::var_os("CHANDLER_BIN")
        .map(|folder| Path::new(&folder).join(name))
        .filter(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(name))
}

/// Runs a program and gives what it printed.
///
/// # Errors
/// When it cannot be started or does not end with 0; the error holds what it wrote to standard error.
pub async fn run<A: AsRef<OsStr>>(name: &str, arguments: &[A]) -> Result<String> {
    run_with_input(name, arguments, "").await
}

/// The same with text on standard input.
///
/// # Errors
/// As [`run`].
pub async fn run_with_input<A: AsRef<OsStr>>(
    name: &str,
    arguments: &[A],
    input: &str,
) -> Result<String> {
    let path = program(name);
    let mut child = Command::new(&path)
        .args(arguments)
        .current_dir(checkout())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", path.display()))?;
    let stdin = child.stdin.take();
    // A program may answer before it has read everything, so it is fed while its answer is read.
    let feed = async move {
        match stdin {
            Some(mut stdin) => stdin.write_all(input.as_bytes()).await,
            None => Ok(()),
        }
    };
    let (fed, output) = timeout(PATIENCE, async {
        tokio::join!(feed, child.wait_with_output())
    })
    .await
    .with_context(|| format!("{name} did not end within {PATIENCE:?}"))?;
    let output = output?;
    if !output.status.success() {
        let shown: Vec<_> = arguments
            .iter()
            .map(|argument| argument.as_ref().to_string_lossy())
            .collect();
        bail!(
            "{name} {} ended with {}: {}{}",
            shown.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim(),
        );
    }
    fed.with_context(|| format!("{name} did not read what it was given"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A path that a run must bring along in its environment, such as the runtime's program or the demo model.
///
/// # Errors
/// When the variable is absent or names no file; the error says how it is set.
pub fn required_file(variable: &str, how: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable)
        .map(PathBuf::from)
        .with_context(|| format!("{variable} is not set; {how}"))?;
    if !path.is_file() {
        bail!("{variable} is {}, which is no file; {how}", path.display());
    }
    Ok(path)
}

/// The program `chandler-runtime`, from `CHANDLER_RUNTIME`.
///
/// # Errors
/// As [`required_file`].
pub fn runtime() -> Result<PathBuf> {
    required_file(
        "CHANDLER_RUNTIME",
        "run the stories by `make e2e`, or name the program that `make images` or `cargo build -p chandler-runtime` made",
    )
}

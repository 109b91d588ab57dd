//! Clients made by others, run as they come from PyPI.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::tools::{checkout, run};

/// The folder of a Python environment, of the clients where no name is given; made on the first call of a machine.
///
/// # Errors
/// When it cannot be made.
pub async fn environment(name: Option<&str>) -> Result<PathBuf> {
    let script = checkout().join("e2e/python/venv");
    let script = script.to_str().context("the checkout's path is not text")?;
    let arguments: Vec<&str> = name.into_iter().collect();
    let folder = run(script, &arguments).await?;
    Ok(PathBuf::from(folder.trim()))
}

/// Runs a script of `e2e/python` and gives what it printed.
///
/// # Errors
/// When it fails; the error holds its traceback.
pub async fn script(name: &str, arguments: &[&str]) -> Result<String> {
    let python = environment(None).await?.join("bin/python");
    let python = python
        .to_str()
        .context("the environment's path is not text")?;
    let path = checkout().join("e2e/python").join(name);
    let mut all = vec![path.to_str().context("the checkout's path is not text")?];
    all.extend_from_slice(arguments);
    run(python, &all).await
}

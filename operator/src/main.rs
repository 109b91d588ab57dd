//! The command line of `chandler-operator`: `run` the operator, or print its `crd`s.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

/// Turns ModelDeployments into endpoints that answer.
#[derive(Parser)]
#[command(version, about)]
enum Command {
    /// Print the CustomResourceDefinitions, or write them into a folder.
    Crd {
        /// Folder that gets one file per kind.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Print the reference of all fields as Markdown instead.
        #[arg(long, conflicts_with = "out")]
        docs: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Crd { out, docs } => crd(out, docs),
    }
}

fn crd(out: Option<PathBuf>, docs: bool) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    if docs {
        return Ok(stdout.write_all(chandler_operator::api::reference().as_bytes())?);
    }
    for (name, text) in chandler_operator::crd::files()? {
        match &out {
            Some(folder) => {
                std::fs::create_dir_all(folder)
                    .with_context(|| format!("failed to create {}", folder.display()))?;
                let path = folder.join(name);
                std::fs::write(&path, text)
                    .with_context(|| format!("failed to write {}", path.display()))?;
            }
            None => stdout.write_all(text.as_bytes())?,
        }
    }
    Ok(())
}

//! The command line of `chandler-operator`: `run` the operator, print its `crd`s, or write manifests for people who come `from-xinference`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use chandler_operator::config::RunArgs;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Turns ModelDeployments into endpoints that answer.
#[derive(Parser)]
#[command(version, about)]
enum Command {
    /// Run the operator until SIGTERM or SIGINT.
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinitions, or write them into a folder.
    Crd {
        /// Folder that gets one file per kind.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Print the reference of all fields as Markdown instead.
        #[arg(long, conflicts_with = "out")]
        docs: bool,
    },
    /// Work with ModelCards.
    #[command(subcommand)]
    Card(CardCommand),
    /// Print the ModelDeployment for a launch of Xinference: `from-xinference -- launch --model-name …`.
    FromXinference {
        /// The launch as it would be typed.
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "LAUNCH"
        )]
        launch: Vec<String>,
    },
}

#[derive(Subcommand)]
enum CardCommand {
    /// Turn Xinference's registry of LLMs, or the file of a custom model, into ModelCards.
    Import {
        /// `llm_family.json`, or the file of a custom model.
        file: PathBuf,
        /// Folder that gets one file per card; without it all go to standard output.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Run(arguments) => run(*arguments),
        Command::Crd { out, docs } => crd(out, docs),
        Command::Card(CardCommand::Import { file, out }) => {
            Ok(chandler_operator::xinference::import_file(
                &file,
                out.as_deref(),
                &mut std::io::stdout().lock(),
                &mut std::io::stderr().lock(),
            )?)
        }
        Command::FromXinference { launch } => {
            let manifest = chandler_operator::xinference::from_launch(&launch)?;
            Ok(std::io::stdout().lock().write_all(manifest.as_bytes())?)
        }
    }
}

fn run(arguments: RunArgs) -> anyhow::Result<()> {
    chandler_operator::telemetry::start_logs(&arguments.log).context("failed to read --log")?;
    let config = arguments.resolve()?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| {
            anyhow::anyhow!("failed to choose a TLS provider: one is installed already")
        })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the async runtime")?;
    runtime.block_on(async {
        let mut terminate =
            signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let mut interrupt =
            signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Ok(chandler_operator::run::run(config, shutdown).await?)
    })
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

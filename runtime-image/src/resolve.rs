//! `chandler-runtime resolve`: what a model is on its hub, before anything is fetched.
//!
//! list the repository → choose files → fill in sizes that the listing left out → read what the model says about itself → answer.
//! Nothing is written but the answer.

use std::process::ExitCode;

use clap::Args;
use futures::{TryStreamExt, stream};

use crate::answer::{Answer, Failure, Resolved};
use crate::hub::client::ClientError;
use crate::hub::description::{Description, describe};
use crate::hub::{
    Choice, ChoiceError, Hub, HubError, PARALLEL_FILES, RemoteFile, Snapshot, Source, SourceArgs,
    SourceError,
};
use crate::job;

/// What `resolve` is asked.
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// Where the model comes from.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// A model could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// What was typed makes no sense.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The hub did not give what was asked for.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The repository's files do not make a model.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
}

/// Runs `resolve` to its exit code.
pub fn run(args: ResolveArgs) -> ExitCode {
    let result_file = args.source.result_file.clone();
    job::run(result_file.as_deref(), async {
        match answer(args).await {
            Ok(resolved) => Answer::Resolved(resolved),
            Err(error) => Answer::Failed(Failure::from(&error)),
        }
    })
}

async fn answer(args: ResolveArgs) -> Result<Resolved, ResolveError> {
    resolve(&args.source.check()?).await
}

/// Asks the hub what the model is.
///
/// # Errors
/// When the hub refuses or does not answer, or the files do not make a model.
pub async fn resolve(source: &Source) -> Result<Resolved, ResolveError> {
    let hub = source.connect()?;
    let (snapshot, mut chosen) = choose(&hub, source, &source.revision).await?;
    complete(&hub, &snapshot, &mut chosen, |file| file.size.is_none()).await?;
    let Description {
        architecture,
        dimensions,
        supported,
    } = describe(&hub, &snapshot, source.choice.format(), &chosen).await?;
    Ok(Resolved {
        id: snapshot.id.to_string(),
        commit: snapshot.commit.to_string(),
        files: chosen.len(),
        bytes: chosen.iter().filter_map(|file| file.size).sum(),
        architecture,
        supported,
        dimensions,
    })
}

/// Lists the repository and chooses its files.
pub(crate) async fn choose(
    hub: &Hub,
    source: &Source,
    revision: &str,
) -> Result<(Snapshot, Vec<RemoteFile>), ResolveError> {
    let choice: &Choice = &source.choice;
    let snapshot = hub.snapshot(&source.ids, revision).await?;
    let chosen = choice.choose(&snapshot)?;
    tracing::info!(id = %snapshot.id, commit = %snapshot.commit, files = chosen.len(), "the hub lists the model");
    Ok((snapshot, chosen))
}

/// Asks for what the listing left out about the files that `lack` something, a few at a time.
pub(crate) async fn complete(
    hub: &Hub,
    snapshot: &Snapshot,
    chosen: &mut [RemoteFile],
    lack: fn(&RemoteFile) -> bool,
) -> Result<(), HubError> {
    stream::iter(chosen.iter_mut().filter(|file| lack(file)).map(Ok))
        .try_for_each_concurrent(PARALLEL_FILES, |file| async {
            let facts = hub
                .patience()
                .ask(|| hub.describe(snapshot, &file.path))
                .await?;
            file.size = file.size.or(facts.size);
            file.digest = file.digest.or(facts.digest);
            Ok(())
        })
        .await
}

impl From<ClientError> for ResolveError {
    fn from(error: ClientError) -> Self {
        Self::Source(SourceError::Client(error))
    }
}

impl From<&ResolveError> for Failure {
    fn from(error: &ResolveError) -> Self {
        match error {
            ResolveError::Source(error) => error.into(),
            ResolveError::Hub(error) => error.into(),
            ResolveError::Choice(error) => error.into(),
        }
    }
}

//! Operator and runtime agree on the command lines: what the operator's golden objects ask, the runtime's program understands.
//! No cluster is needed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use chandler_e2e::story::without_cluster;
use chandler_e2e::tools::{checkout, run, runtime};
use serde_json::Value;

/// The program's subcommands, each of which must occur.
const COMMANDS: [&str; 4] = ["resolve", "fetch", "verify", "serve"];

#[test]
fn the_runtime_understands_every_argument_that_the_operator_gives() {
    without_cluster(async {
        let program = runtime()?;
        let program = program.to_str().context("the runtime's path is not text")?;
        let mut asked = 0;
        let mut commands = std::collections::BTreeSet::new();
        for (file, arguments) in golden_arguments()? {
            let command = arguments.first().cloned().unwrap_or_default();
            ensure!(
                COMMANDS.contains(&command.as_str()),
                "{file}: unknown command in {arguments:?}"
            );
            commands.insert(command);
            // Arguments are read in order, so every one is checked before the last asks for help.
            let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
            all.push("--help");
            run(program, &all).await.with_context(|| {
                format!("{file}: the runtime does not understand {arguments:?}")
            })?;
            asked += 1;
        }
        ensure!(
            commands.len() == COMMANDS.len(),
            "only {commands:?} occur in {asked} golden command lines"
        );
        Ok(())
    });
}

#[test]
fn an_argument_that_the_runtime_does_not_know_is_refused() {
    without_cluster(async {
        let program = runtime()?;
        let program = program.to_str().context("the runtime's path is not text")?;
        let refused = run(program, &["serve", "--no-such-argument=1", "--help"]).await;
        ensure!(refused.is_err(), "the check of the contract cannot fail");
        Ok(())
    });
}

/// Arguments of every container of every golden object, with the file that they stand in.
fn golden_arguments() -> Result<Vec<(String, Vec<String>)>> {
    let folder = checkout().join("operator/tests/cases");
    let mut found = Vec::new();
    let cases = std::fs::read_dir(&folder)
        .with_context(|| format!("no golden cases at {}", folder.display()))?;
    for case in cases {
        let file = case?.path().join("objects.yaml");
        if file.is_file() {
            let text = std::fs::read_to_string(&file)?;
            let objects: Vec<Value> = serde_saphyr::from_multiple(&text)
                .with_context(|| format!("cannot read {}", file.display()))?;
            for object in &objects {
                collect(&file, object, &mut found);
            }
        }
    }
    Ok(found)
}

/// Pod specs stand at different depths, so containers are looked for everywhere.
fn collect(file: &Path, value: &Value, found: &mut Vec<(String, Vec<String>)>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                if key == "containers" {
                    // Engines that are not ours are started by a command of their own.
                    let ours = field.as_array().into_iter().flatten();
                    for container in ours.filter(|one| one["command"].is_null()) {
                        let arguments = container["args"].as_array().into_iter().flatten();
                        let arguments = arguments
                            .filter_map(|argument| Some(argument.as_str()?.to_owned()))
                            .collect();
                        found.push((file.display().to_string(), arguments));
                    }
                } else {
                    collect(file, field, found);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                collect(file, item, found);
            }
        }
        _ => {}
    }
}

//! Every manifest of `operator/tests/admission`, shown to the real API server: what it refuses, and in which words.
//!
//! The first line of a file says what is expected: `# expect: accepted`, or `# expect: ` and parts of the refusal
//! with ` … ` between them: the field and the words.
//! Two documents in a file mean "first this, then that": the first is made, and the second is what is judged.

use anyhow::{Context, Result, ensure};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::{checkout, run, run_with_input};

#[test]
fn every_example_is_accepted() {
    story("examples", Company::Welcome, async |story| {
        let folder = checkout().join("examples");
        let shown = format!("--filename={}", folder.display());
        let (how, strictly) = ("--dry-run=server", "--warnings-as-errors");
        let arguments = ["apply", how, strictly, "-n", &story.namespace, &shown];
        let said = run("kubectl", &arguments).await?;
        for file in std::fs::read_dir(&folder)? {
            let text = std::fs::read_to_string(file?.path())?;
            let names = text
                .lines()
                .filter_map(|line| line.strip_prefix("  name: "));
            for name in names {
                let accepted = format!("/{name} created (server dry run)");
                ensure!(said.contains(&accepted), "{name} is not in: {said}");
            }
        }
        Ok(())
    });
}

#[test]
fn the_api_server_refuses_what_the_admission_table_says() {
    story("admission", Company::Welcome, async |story| {
        let folder = checkout().join("operator/tests/admission");
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .with_context(|| format!("no admission table at {}", folder.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        files.retain(|file| file.extension().is_some_and(|end| end == "yaml"));
        files.sort();
        let mut wrong = Vec::new();
        for file in &files {
            let name = file.file_name().unwrap_or_default().display();
            let text = std::fs::read_to_string(file)?;
            let expected = text
                .lines()
                .find_map(|line| line.strip_prefix("# expect: "))
                .with_context(|| format!("{name} does not say what is expected"))?;
            let outcome = match text.split_once("\n---\n") {
                None => show(story, "create", &text).await,
                Some((first, then)) => {
                    kubectl(story, &["create", "-f", "-"], first).await?;
                    let mut outcome = show(story, "replace", then).await;
                    // The operator may just have written what it thinks of the first one.
                    for _ in 0..5 {
                        if !outcome.as_ref().is_err_and(is_outrun) {
                            break;
                        }
                        outcome = show(story, "replace", then).await;
                    }
                    kubectl(story, &["delete", "--wait=false", "-f", "-"], first).await?;
                    outcome
                }
            };
            match (expected.trim(), outcome) {
                ("accepted", Ok(_)) => {}
                ("accepted", Err(error)) => wrong.push(format!("{name} was refused: {error:#}")),
                (words, Ok(_)) => wrong.push(format!("{name} was accepted; expected: {words}")),
                (words, Err(error)) => {
                    let said = format!("{error:#}");
                    if !says(&said, words) {
                        wrong.push(format!("{name}: expected \"{words}\", but it was: {said}"));
                    }
                }
            }
        }
        let count = files.len();
        ensure!(count > 0, "the table at {} is empty", folder.display());
        ensure!(
            wrong.is_empty(),
            "{} of {count}:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        Ok(())
    });
}

/// Asks the API server what it would do.
async fn show(story: &Story, verb: &str, manifest: &str) -> Result<String> {
    let arguments = [verb, "--dry-run=server", "--validate=strict", "-f", "-"];
    kubectl(story, &arguments, manifest).await
}

async fn kubectl(story: &Story, arguments: &[&str], manifest: &str) -> Result<String> {
    let all = [&["-n", &story.namespace], arguments].concat();
    run_with_input("kubectl", &all, manifest).await
}

/// Whether all parts stand in the text, one after the other.
fn says(text: &str, parts: &str) -> bool {
    parts
        .split(" … ")
        .try_fold(text, |rest, part| {
            rest.split_once(part).map(|(_, rest)| rest)
        })
        .is_some()
}

fn is_outrun(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("the object has been modified")
}

//! Every manifest of `operator/tests/admission`, shown to the real API server: what it refuses, and in which words.
//!
//! The first line of a file says what is expected: `# expect: accepted`, or `# expect: ` and a part of the refusal.

use anyhow::{Context, Result, ensure};
use chandler_e2e::story::{Company, story};
use chandler_e2e::tools::{checkout, run};

#[test]
fn the_api_server_refuses_what_the_admission_table_says() {
    story("admission", Company::Welcome, async |story| {
        let folder = checkout().join("operator/tests/admission");
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .with_context(|| format!("no admission table at {}", folder.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        files.sort();
        let mut wrong = Vec::new();
        let mut count = 0;
        for file in &files {
            let path = file.to_str().context("a path is not text")?;
            if !path.ends_with(".yaml") {
                continue;
            }
            count += 1;
            let text = std::fs::read_to_string(file)?;
            let expected = text
                .lines()
                .find_map(|line| line.strip_prefix("# expect: "))
                .with_context(|| format!("{path} does not say what is expected"))?;
            let arguments = [
                "create",
                "--dry-run=server",
                "--validate=strict",
                "-n",
                &story.namespace,
                "-f",
                path,
            ];
            let outcome = run("kubectl", &arguments).await;
            let name = file.file_name().unwrap_or_default().display();
            match (expected.trim(), outcome) {
                ("accepted", Ok(_)) => {}
                ("accepted", Err(error)) => wrong.push(format!("{name} was refused: {error:#}")),
                (words, Ok(_)) => wrong.push(format!("{name} was accepted; expected: {words}")),
                (words, Err(error)) => {
                    let said = format!("{error:#}");
                    if !said.contains(words) {
                        wrong.push(format!("{name}: expected \"{words}\", but it was: {said}"));
                    }
                }
            }
        }
        ensure!(
            count > 0,
            "the admission table at {} is empty",
            folder.display()
        );
        ensure!(
            wrong.is_empty(),
            "{} of {count}:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        Ok(())
    });
}

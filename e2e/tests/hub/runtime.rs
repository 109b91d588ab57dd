//! The runtime's own program, run as the Jobs run it, against a hub of this process.

use std::path::PathBuf;
use std::process::Stdio;

use chandler_e2e::tools::required_file;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::fixture::RunningHub;

/// How the program is called.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) hub: &'static str,
    pub(crate) endpoint: String,
    pub(crate) id: String,
    pub(crate) revision: String,
    pub(crate) format: &'static str,
    pub(crate) more: Vec<String>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) answer: Value,
    #[expect(dead_code, reason = "a failed assertion shows it")]
    pub(crate) log: String,
}

impl Job {
    /// The GGUF file of `org/tiny` at its default branch.
    pub(crate) fn new(hub: &RunningHub) -> Self {
        Self {
            hub: "huggingface",
            endpoint: hub.endpoint.clone(),
            id: "org/tiny".into(),
            revision: "main".into(),
            format: "ggufv2",
            more: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, flag: impl Into<String>) -> Self {
        self.more.push(flag.into());
        self
    }

    fn command(&self, command: &str) -> Command {
        let mut process = Command::new(program());
        process
            .arg(command)
            .arg(format!("--hub={}", self.hub))
            .arg(format!("--endpoint={}", self.endpoint))
            .arg(format!("--id={}", self.id))
            .arg(format!("--revision={}", self.revision))
            .arg(format!("--format={}", self.format))
            .args(&self.more)
            .env("NO_PROXY", "*")
            .env_remove("CHANDLER_CA_BUNDLE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        process
    }

    pub(crate) fn start(&self, command: &str) -> Child {
        self.command(command).spawn().unwrap()
    }

    pub(crate) async fn run(&self, command: &str) -> Ended {
        let output = self.start(command).wait_with_output().await.unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Ended {
            code: output.status.code(),
            answer,
            log,
        }
    }
}

impl Ended {
    /// The answer of a job that must have succeeded.
    pub(crate) fn done(self, outcome: &str) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(self.answer["outcome"], outcome, "{self:?}");
        self.answer
    }

    /// Reason and message of a job that must have failed.
    pub(crate) fn failed(&self) -> (&str, &str) {
        assert_eq!(self.code, Some(1), "{self:?}");
        let text = |key: &str| self.answer[key].as_str().unwrap_or_default();
        (text("reason"), text("message"))
    }
}

pub(crate) fn program() -> PathBuf {
    required_file(
        "CHANDLER_RUNTIME",
        "run `make hub-test`, or name the program that `cargo build -p chandler-runtime` made",
    )
    .unwrap()
}

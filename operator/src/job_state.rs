//! How far a Job has come, from the Job and its pods.
//!
//! Jobs are the operator's only way to a hub: what they say arrives as termination messages in their pods' status.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::answer::Answer;
use crate::api::Reason;
use crate::pod_health::{self, Trouble};

/// How far a Job has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It does not exist.
    Absent,
    /// It works, as far as one can see.
    Working(String),
    /// It has failed so far; the kubelet tries again by itself.
    Failing(Trouble),
    /// It has answered.
    Done(Answer),
    /// It has ended and its answer is gone with its pod; it must run again.
    Lost,
}

/// Reads the state of a Job.
#[must_use]
pub fn read(job: Option<&Job>, pods: &[Pod]) -> JobState {
    let Some(job) = job.filter(|job| job.metadata.deletion_timestamp.is_none()) else {
        return JobState::Absent;
    };
    let name = job.name_any();
    let mut own: Vec<&Pod> = pods.iter().filter(|pod| belongs_to(pod, job)).collect();
    own.sort_by_key(|pod| std::cmp::Reverse(pod.metadata.creation_timestamp.clone()));
    if let Some(answer) = own.iter().find_map(|pod| success(pod)) {
        return JobState::Done(answer);
    }
    if is_over(job) {
        return JobState::Lost;
    }
    let Some(pod) = own.into_iter().find(|pod| !pod_health::is_leaving(pod)) else {
        return JobState::Working(format!(
            "Job {name} has no pod yet; if this stays, `kubectl describe job {name}` says why (quota, policy)"
        ));
    };
    match pod_health::trouble(pod) {
        Some(trouble) => JobState::Failing(trouble),
        None => JobState::Working(format!("Job {name} is at work in pod {}", pod.name_any())),
    }
}

fn belongs_to(pod: &Pod, job: &Job) -> bool {
    pod.owner_references()
        .iter()
        .any(|owner| Some(&owner.uid) == job.metadata.uid.as_ref())
}

/// The answer of a container that ended well.
fn success(pod: &Pod) -> Option<Answer> {
    pod.status
        .as_ref()?
        .container_statuses
        .as_ref()?
        .iter()
        .find_map(|container| {
            let ended = container.state.as_ref()?.terminated.as_ref()?;
            (ended.exit_code == 0)
                .then(|| Answer::parse(ended.message.as_deref()?))
                .flatten()
        })
}

fn is_over(job: &Job) -> bool {
    job.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|c| (c.type_ == "Complete" || c.type_ == "Failed") && c.status == "True")
        })
}

impl JobState {
    /// Reason and message for the condition that waits for this Job.
    #[must_use]
    pub fn verdict(&self, working: Reason) -> (Reason, String) {
        match self {
            Self::Absent => (working, "the Job is being made".to_owned()),
            Self::Working(message) => (working, message.clone()),
            Self::Failing(trouble) => (trouble.reason, trouble.message.clone()),
            Self::Done(Answer::Failed(failure)) => failure.verdict(),
            Self::Done(_) => (working, "the Job has answered".to_owned()),
            Self::Lost => (
                working,
                "the Job's answer is lost with its pod; it runs again".to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const RESOLVED: &str = r#"{"outcome":"Resolved","id":"a/b","commit":"0123456789abcdef0123456789abcdef01234567","files":1,"bytes":1}"#;

    fn job(condition: Option<&str>) -> Job {
        let conditions: Vec<Value> = condition
            .into_iter()
            .map(|kind| json!({"type": kind, "status": "True"}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": "j", "uid": "1"}, "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn pod(owner: &str, created: &str, state: &Value, last: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("p{created}"), "creationTimestamp": format!("2026-01-01T00:00:{created}Z"),
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": owner}],
            },
            "status": {"containerStatuses": [{
                "name": "resolve", "image": "i", "imageID": "", "ready": false, "restartCount": 1,
                "state": state, "lastState": last,
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn an_answer_counts_even_before_the_job_is_complete() {
        let done = json!({"terminated": {"exitCode": 0, "message": RESOLVED}});
        let state = read(Some(&job(None)), &[pod("1", "01", &done, &json!({}))]);
        assert!(
            matches!(state, JobState::Done(Answer::Resolved(_))),
            "{state:?}"
        );
    }

    #[test]
    fn a_stranger_s_pod_is_not_heard_and_a_complete_job_without_pod_is_lost() {
        let done = json!({"terminated": {"exitCode": 0, "message": RESOLVED}});
        let stranger = pod("2", "01", &done, &json!({}));
        assert_eq!(
            read(Some(&job(Some("Complete"))), &[stranger]),
            JobState::Lost
        );
        assert_eq!(read(None, &[]), JobState::Absent);
    }

    #[test]
    fn the_newest_pod_speaks_and_a_retry_keeps_the_last_reason() {
        let failed = r#"{"outcome":"Failed","reason":"HubUnreachable","message":"no answer"}"#;
        let last = json!({"terminated": {"exitCode": 1, "message": failed}});
        let state = read(
            Some(&job(None)),
            &[
                pod(
                    "1",
                    "01",
                    &json!({"waiting": {"reason": "ImagePullBackOff"}}),
                    &json!({}),
                ),
                pod("1", "02", &json!({"running": {}}), &last),
            ],
        );
        let JobState::Failing(trouble) = state else {
            panic!("{state:?}")
        };
        assert_eq!(trouble.reason, Reason::HubUnreachable);
    }
}

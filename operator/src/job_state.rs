//! How far a Job has come, from the Job and its pods.
//!
//! Jobs are the operator's only way to a hub: what they say arrives as termination messages in their pods' status.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Volume};
use kube::ResourceExt;

use crate::answer::Answer;
use crate::api::Reason;
use crate::conditions::shortened;
use crate::pod_health::{self, Trouble};

/// Longest part of an answer that is repeated in a condition.
const MAX_WORDS: usize = 512;

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
    if let Some(trouble) = own.iter().find_map(|pod| unreadable(pod)) {
        return JobState::Failing(trouble);
    }
    if is_over(job) {
        return JobState::Lost;
    }
    let Some(pod) = own.into_iter().find(|pod| !pod_health::is_leaving(pod)) else {
        return JobState::Working(format!(
            "Job {name} has no pod yet; if this stays, `kubectl describe job {name}` says why (quota, policy)"
        ));
    };
    match pod_health::job_trouble(pod) {
        Some(trouble) => JobState::Failing(with_objects(trouble, job)),
        None => JobState::Working(format!("Job {name} is at work in pod {}", pod.name_any())),
    }
}

fn belongs_to(pod: &Pod, job: &Job) -> bool {
    pod.owner_references()
        .iter()
        .any(|owner| Some(&owner.uid) == job.metadata.uid.as_ref())
}

/// Names the Secret where credentials are at fault, and the claim that is full: the Job itself sees only files.
fn with_objects(mut trouble: Trouble, job: &Job) -> Trouble {
    let said = match trouble.reason {
        Reason::CredentialsMissing | Reason::LicenceNotAccepted => secret(job),
        Reason::StorageFull => claim(job),
        _ => None,
    };
    trouble.message.push_str(&said.unwrap_or_default());
    trouble
}

fn volumes(job: &Job) -> impl Iterator<Item = &Volume> {
    let pod = job
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    pod.into_iter().flat_map(|pod| pod.volumes.iter().flatten())
}

fn secret(job: &Job) -> Option<String> {
    let secret = volumes(job).find_map(|volume| volume.secret.as_ref())?;
    let name = secret.secret_name.as_deref().unwrap_or_default();
    let key = secret.items.as_ref().and_then(|items| items.first());
    let key = key.map_or("", |item| item.key.as_str());
    Some(format!("; the token is read from Secret {name}, key {key}"))
}

fn claim(job: &Job) -> Option<String> {
    let claim = volumes(job).find_map(|volume| volume.persistent_volume_claim.as_ref())?;
    Some(format!(
        "; the volume is that of PersistentVolumeClaim {}",
        claim.claim_name
    ))
}

/// The termination messages of containers that ended well.
fn last_words(pod: &Pod) -> impl Iterator<Item = &str> {
    pod.status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten())
        .filter_map(|container| container.state.as_ref()?.terminated.as_ref())
        .filter(|ended| ended.exit_code == 0)
        .map(|ended| ended.message.as_deref().unwrap_or_default())
}

fn success(pod: &Pod) -> Option<Answer> {
    last_words(pod).find_map(Answer::parse)
}

/// A container that ended well and said nothing that can be read: to ask again would give the same.
fn unreadable(pod: &Pod) -> Option<Trouble> {
    let words = last_words(pod).find(|words| Answer::parse(words).is_none())?;
    Some(Trouble {
        reason: Reason::CrashLooping,
        message: format!(
            "pod {} ended well, but not with an answer that this operator understands; operator and runtime image must be of one version. It said: {}",
            pod.name_any(),
            shortened(words.to_owned(), MAX_WORDS)
        ),
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
                "name": "resolve", "image": "i", "imageID": "", "ready": state.get("running").is_some(), "restartCount": 1,
                "state": state, "lastState": last,
            }]},
        }))
        .unwrap()
    }

    fn job_with(volume: &Value) -> Job {
        let mut job = job(None);
        job.spec = serde_json::from_value(
            json!({"template": {"spec": {"containers": [], "volumes": [volume]}}}),
        )
        .unwrap();
        job
    }

    /// A pod at its next try, after one that ended with these words.
    fn retrying(created: &str, reason: &str, message: &str) -> Pod {
        let failed = json!({"outcome": "Failed", "reason": reason, "message": message});
        let last = json!({"terminated": {"exitCode": 1, "message": failed.to_string()}});
        pod("1", created, &json!({"running": {}}), &last)
    }

    fn trouble(job: &Job, pods: &[Pod]) -> Trouble {
        match read(Some(job), pods) {
            JobState::Failing(trouble) => trouble,
            state => panic!("{state:?}"),
        }
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
    fn an_answer_that_cannot_be_read_is_told_and_not_asked_for_again() {
        let done = json!({"terminated": {"exitCode": 0, "message": "{\"outcome\":\"Other\"}"}});
        let trouble = trouble(&job(Some("Complete")), &[pod("1", "01", &done, &json!({}))]);
        assert!(trouble.message.contains("Other"), "{}", trouble.message);
    }

    #[test]
    fn missing_credentials_are_told_with_the_secret_s_name() {
        let token = json!({"name": "token", "secret": {"secretName": "huggingface", "items": [{"key": "token", "path": "token"}]}});
        let trouble = trouble(
            &job_with(&token),
            &[retrying("01", "CredentialsMissing", "status 401")],
        );
        assert_eq!(
            trouble.message,
            "pod p01: status 401; the token is read from Secret huggingface, key token"
        );
    }

    #[test]
    fn a_full_volume_is_told_with_the_claim_s_name() {
        let cache = json!({"name": "cache", "persistentVolumeClaim": {"claimName": "weights"}});
        let trouble = trouble(
            &job_with(&cache),
            &[retrying("01", "StorageFull", "the volume is full")],
        );
        assert_eq!(
            trouble.message,
            "pod p01: the volume is full; the volume is that of PersistentVolumeClaim weights"
        );
    }

    #[test]
    fn the_newest_pod_speaks_and_a_retry_keeps_the_last_reason() {
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff"}});
        let trouble = trouble(
            &job(None),
            &[
                pod("1", "01", &waiting, &json!({})),
                retrying("02", "HubUnreachable", "no answer"),
            ],
        );
        assert_eq!(trouble.reason, Reason::HubUnreachable);
    }
}

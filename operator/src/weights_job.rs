//! The Jobs about weights: `resolve` and `fetch`, which speak to a hub, and `verify`, as the contract in ARCHITECTURE.md has them.
//!
//! Pure. Together with `model_deployment/build/runtime.rs` the only place that knows the runtime's command line.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, KeyToPath, PodTemplateSpec, SecretVolumeSource, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::api::{Hub, ModelFormat, Resources, SecretKey};
use crate::child::{self, Family, PodShape};
use crate::config::PodDefaults;
use crate::digest;

/// What a hub is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HubRequest {
    /// The hub.
    pub hub: Hub,
    /// Its address.
    pub endpoint: String,
    /// Repository.
    pub id: String,
    /// Other names of the repository.
    pub aliases: Vec<String>,
    /// Branch, tag or commit.
    pub revision: String,
    /// How the weights are stored.
    pub format: ModelFormat,
    /// Patterns of the files.
    pub files: Vec<String>,
}

/// A hub, and how it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What it is asked for.
    pub request: &'a HubRequest,
    /// Key of the Secret with the token.
    pub token: Option<&'a SecretKey>,
}

/// A claim. Its UID is part of the Job's name: another claim of the same name is looked at anew.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// Whether it can be read only.
    pub read_only: bool,
}

/// What a Job is to do.
#[derive(Clone, Copy, Debug)]
pub enum Task<'a> {
    /// Ask for commit and bytes.
    Resolve(Asked<'a>),
    /// Fill a claim.
    Fetch(Asked<'a>, Claim<'a>),
    /// Compare what lies on a claim, below this path, with its manifest, or make one.
    Verify(Claim<'a>, &'a str),
}

/// Everything that one of the Jobs is made of.
#[derive(Clone, Debug)]
pub struct WeightsJob<'a> {
    /// What it is to do.
    pub task: Task<'a>,
    /// Where and as whom it runs.
    pub shape: &'a PodShape,
    /// Requests and limits that the user gave.
    pub resources: Option<&'a Resources>,
    /// What the installation says.
    pub defaults: &'a PodDefaults,
}

/// Folder of the token; the file is named `token`.
const TOKEN_FOLDER: &str = "/var/run/secrets/chandler/hub";

/// The annotation of a pod with its claim's UID.
pub const CLAIM_UID: &str = "chandler.dev/claim-uid";

/// Folder of the volume.
const CACHE_FOLDER: &str = "/cache";

impl<'a> Task<'a> {
    /// The subcommand, which is also the container's name and the component label.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Resolve(_) => "resolve",
            Self::Fetch(..) => "fetch",
            Self::Verify(..) => "verify",
        }
    }

    fn asked(self) -> Option<Asked<'a>> {
        match self {
            Self::Resolve(asked) | Self::Fetch(asked, _) => Some(asked),
            Self::Verify(..) => None,
        }
    }

    fn claim(self) -> Option<Claim<'a>> {
        match self {
            Self::Resolve(_) => None,
            Self::Fetch(_, claim) | Self::Verify(claim, _) => Some(claim),
        }
    }
}

/// Builds the Job. Its name carries the digest of its template, because a Job's template never changes.
#[must_use]
pub fn build<K: Resource<DynamicType = ()>>(
    owner: &K,
    family: Family,
    parts: &WeightsJob<'_>,
) -> Job {
    let owner_name = owner.name_any();
    let word = parts.task.word();
    let template = template(parts, family, &owner_name);
    let name = format!("{owner_name}-{word}-{}", digest::of(&template));
    let mut metadata = child::owned_meta(owner, name, child::labels(family, &owner_name, word));
    metadata.annotations = parts
        .task
        .asked()
        .map(|asked| [(child::REQUEST.to_owned(), digest::of(asked.request))].into());
    Job {
        metadata,
        spec: Some(JobSpec {
            // Never reached: the kubelet restarts the container with growing pauses, so that a mended hub heals by itself.
            backoff_limit: Some(i32::MAX),
            template,
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn template(parts: &WeightsJob<'_>, family: Family, owner: &str) -> PodTemplateSpec {
    let word = parts.task.word();
    let (temporary, temporary_mount) = child::temporary_volume();
    let mut volumes = vec![temporary];
    let mut mounts = vec![temporary_mount];
    let mut env = Vec::new();
    if let Some(asked) = parts.task.asked() {
        if let Some(token) = asked.token {
            volumes.push(token_volume(token));
            mounts.push(child::mount("token", TOKEN_FOLDER, true));
        }
        env.extend(parts.defaults.job_env.iter().map(|(name, value)| EnvVar {
            name: name.clone(),
            value: Some(value.clone()),
            value_from: None,
        }));
    }
    let mut annotations = None;
    if let Some(claim) = parts.task.claim() {
        volumes.push(child::claim_volume("cache", claim.name, claim.read_only));
        mounts.push(child::mount("cache", CACHE_FOLDER, claim.read_only));
        annotations = Some([(CLAIM_UID.to_owned(), claim.uid.to_owned())].into());
    }
    let container = Container {
        name: word.to_owned(),
        image: Some(parts.defaults.image.clone()),
        image_pull_policy: Some(parts.defaults.pull_policy.as_str().to_owned()),
        args: Some(arguments(parts.task)),
        env: (!env.is_empty()).then_some(env),
        ports: matches!(parts.task, Task::Fetch(..)).then(|| {
            vec![child::port(
                child::MANAGEMENT_PORT_NAME,
                child::MANAGEMENT_PORT,
            )]
        }),
        volume_mounts: Some(mounts),
        resources: Some(child::resources(
            parts.resources,
            &[("cpu", "100m".to_owned()), ("memory", "128Mi".to_owned())],
            &[("cpu", "2".to_owned()), ("memory", "512Mi".to_owned())],
        )),
        ..Container::default()
    };
    let mut pod = child::restricted_pod(parts.shape, container, volumes, parts.defaults);
    pod.restart_policy = Some("OnFailure".to_owned());
    if let (Task::Verify(..), Some(security)) = (parts.task, &mut pod.security_context) {
        // With a group of ours the kubelet would give it the user's files.
        security.fs_group = None;
        security.fs_group_change_policy = None;
    }
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(child::labels(family, owner, word)),
            annotations,
            ..ObjectMeta::default()
        }),
        spec: Some(pod),
    }
}

fn arguments(task: Task<'_>) -> Vec<String> {
    let mut arguments = vec![task.word().to_owned()];
    // One argument each, so that no value can be taken for a flag.
    let mut flag = |name: &str, value: &str| arguments.push(format!("--{name}={value}"));
    if let Some(Asked { request, token }) = task.asked() {
        flag("hub", request.hub.as_str());
        flag("endpoint", &request.endpoint);
        flag("id", &request.id);
        for alias in &request.aliases {
            flag("alias", alias);
        }
        flag("revision", &request.revision);
        flag("format", request.format.as_str());
        for pattern in &request.files {
            flag("file", pattern);
        }
        if token.is_some() {
            flag("token-file", &format!("{TOKEN_FOLDER}/token"));
        }
    }
    match task {
        Task::Resolve(_) => {}
        Task::Fetch(..) => {
            flag("to", CACHE_FOLDER);
            let address = format!("0.0.0.0:{}", child::MANAGEMENT_PORT);
            flag("management-listen", &address);
        }
        Task::Verify(_, path) => flag("model", &format!("{CACHE_FOLDER}/{path}")),
    }
    flag("result-file", "/dev/termination-log");
    arguments
}

/// The token's file. The Secret may be absent: then the Job itself says that credentials are missing,
/// and the kubelet adds the file when the Secret comes.
fn token_volume(token: &SecretKey) -> Volume {
    Volume {
        name: "token".to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(token.name.clone()),
            optional: Some(true),
            // Readable by any user, because none is fixed; the pod has one container.
            default_mode: Some(0o444),
            items: Some(vec![KeyToPath {
                key: token.key.clone(),
                path: "token".to_owned(),
                ..KeyToPath::default()
            }]),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

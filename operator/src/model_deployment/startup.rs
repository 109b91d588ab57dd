//! How long the slowest replica of a revision took to start, from its pod's timestamps and its own words. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::api::Startup;
use crate::model_status::ModelStatus;
use crate::pod_health;

/// The start of the slowest of these pods; nothing while one of them is not ready.
#[must_use]
pub fn slowest<'a>(
    pods: &[&Pod],
    said: impl Fn(&str) -> Option<&'a ModelStatus>,
) -> Option<Startup> {
    let all: Option<Vec<Startup>> = pods
        .iter()
        .map(|pod| startup(pod, said(&pod.name_any())))
        .collect();
    all?.into_iter().max_by_key(|one| one.ready_seconds)
}

fn startup(pod: &Pod, said: Option<&ModelStatus>) -> Option<Startup> {
    let created = pod.metadata.creation_timestamp.as_ref()?.0;
    let scheduled = pod_health::transition(pod, "PodScheduled")?;
    let ready = pod_health::transition(pod, "Ready")?;
    let mounted = pod_health::transition(pod, "PodReadyToStartContainers");
    let running = pod
        .status
        .as_ref()?
        .container_statuses
        .iter()
        .flatten()
        .find(|container| container.name == "serve")
        .and_then(|container| container.state.as_ref()?.running.as_ref())
        .and_then(|running| running.started_at.as_ref())
        .map(|at| at.0);
    let phases = said.map(|said| said.phases.clone()).unwrap_or_default();
    Some(Startup {
        scheduled_seconds: between(created, scheduled),
        weights_seconds: mounted.map(|mounted| between(scheduled, mounted)),
        image_seconds: mounted
            .zip(running)
            .map(|(mounted, running)| between(mounted, running)),
        loaded_seconds: phases.loaded_seconds.map(whole),
        warm_seconds: phases.warm_seconds.map(whole),
        ready_seconds: between(created, ready),
        pod: pod.name_any(),
    })
}

fn between(start: Timestamp, end: Timestamp) -> i64 {
    end.duration_since(start).as_secs().max(0)
}

fn whole(seconds: f64) -> i64 {
    seconds.round().clamp(0.0, 1e9) as i64
}

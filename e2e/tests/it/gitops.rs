//! What tools of GitOps rely on: applying again changes nothing, nobody but the user writes the user's fields,
//! what others add is left alone, and with nothing to do nothing is written.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::cluster::{DEPLOYMENT, Kind, MODEL_DEPLOYMENT, NAMESPACE, SERVICE};
use chandler_e2e::model::NAME;
use chandler_e2e::operator;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::run;
use chandler_e2e::wait::{Seen, until};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

/// Several times the longest period at which anything is looked at while a model is Ready.
const WATCHED: Duration = Duration::from_secs(20);

/// How many reconciles are forced, and how many writes between two looks at their number.
const RECONCILES: u64 = 200;
const WRITES: u64 = 20;

/// How long the operator must do nothing until its counter counts only what is forced.
const QUIET: Duration = Duration::from_secs(3);

/// A reconcile with nothing to write takes milliseconds.
const RECONCILED_WITHIN: Duration = Duration::from_secs(120);

/// Manifests with something in every list that a default could stand in.
const APPLIED_TWICE: [&str; 7] = [
    "examples/smollm2.yaml",
    "examples/llama-3.2-vision-11b.yaml",
    "operator/tests/admission/cache-full.yaml",
    "operator/tests/admission/deployment-accelerators-two.yaml",
    "operator/tests/admission/deployment-env-without-value.yaml",
    "operator/tests/admission/deployment-inline.yaml",
    "operator/tests/admission/deployment-pod-full.yaml",
];

#[test]
fn applying_a_manifest_again_says_unchanged() {
    story("unchanged", Company::Welcome, async |story| {
        for file in APPLIED_TWICE {
            let arguments = ["apply", "-n", &story.namespace, "-f", file];
            run("kubectl", &arguments).await?;
            let again = run("kubectl", &arguments).await?;
            ensure!(
                again.lines().count() > 0 && again.lines().all(|line| line.ends_with(" unchanged")),
                "{file} applied again: {again}"
            );
            let arguments = ["delete", "-n", &story.namespace, "-f", file];
            run("kubectl", &arguments).await?;
        }
        Ok(())
    });
}

#[test]
fn many_reconciles_leave_the_users_object_as_it_was_applied() {
    // Alone, so that every reconcile that the operator counts after it was quiet is of this ModelDeployment.
    story("many-reconciles", Company::Alone, async |story| {
        let cluster = &story.world.cluster;
        story.deploy().await?;
        story.ready().await?;
        story.settled().await?;
        let before = users_part(get(story, MODEL_DEPLOYMENT).await?);
        let services = cluster.api(SERVICE, &story.namespace);
        let params = PatchParams::apply("somebody-else").force();
        let pod = operator::running_pod(cluster).await?;
        let counted = quiet(story, &pod).await?;
        let mut turn = 0;
        // One reconcile may answer several writes, so the operator's own counter says when it is enough.
        until(RECONCILED_WITHIN, "the operator to have reconciled often enough", async || {
            for _ in 0..WRITES {
                turn += 1;
                let label = json!({
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": { "name": NAME, "labels": { "example.com/turn": turn.to_string() } },
                });
                services.patch(NAME, &params, &Patch::Apply(&label)).await?;
            }
            let more = operator::reconciles(cluster, &pod).await? - counted;
            Ok(Seen::when(more >= RECONCILES, || format!("{more} reconciles for {turn} writes")))
        })
        .await?;
        quiet(story, &pod).await?;
        let after = users_part(story.ready().await?);
        ensure!(after == before, "it was {before}, and is {after}");
        let service = get(story, SERVICE).await?;
        let last = turn.to_string();
        ensure!(
            service["metadata"]["labels"]["example.com/turn"].as_str() == Some(&last),
            "somebody else's label was fought: {}",
            service["metadata"]["labels"]
        );
        Ok(())
    });
}

/// Waits until the operator reconciles no ModelDeployment any more, and gives how many times it has.
async fn quiet(story: &Story, pod: &str) -> Result<u64> {
    let cluster = &story.world.cluster;
    let mut before = None;
    until(RECONCILED_WITHIN, "the operator to be quiet", async || {
        tokio::time::sleep(QUIET).await;
        let spaces = cluster.list(NAMESPACE, "", "").await?;
        let leaving = spaces
            .iter()
            .filter(|space| space["status"]["phase"] == "Terminating")
            .count();
        let now = operator::reconciles(cluster, pod).await?;
        let is_quiet = leaving == 0 && before == Some(now);
        let seen = format!("{now} reconciles, {leaving} namespaces that are leaving");
        before = Some(now);
        Ok(if is_quiet {
            Seen::Yes(now)
        } else {
            Seen::NotYet(seen)
        })
    })
    .await
}

#[test]
fn what_another_controller_adds_is_left_alone() {
    story("additions", Company::Welcome, async |story| {
        story.deploy().await?;
        story.ready().await?;
        let image = story.world.images.hub.reference();
        let restricted = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        });
        let added = json!({ "labels": { "example.com/mesh": "on" }, "annotations": { "example.com/by": "a mesh" } });
        let sidecar = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": NAME, "labels": added["labels"], "annotations": added["annotations"] },
            "spec": { "template": { "metadata": added, "spec": { "containers": [{
                "name": "mesh",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "args": ["--folder=/srv/hub", "--listen=0.0.0.0:9080", "--cdn-listen=0.0.0.0:9081"],
                "resources": { "requests": { "cpu": "10m", "memory": "32Mi" } },
                "securityContext": restricted,
            }] } } },
        });
        // New pods take the place of those without the sidecar.
        story.disturbs();
        let deployments = story.world.cluster.api(DEPLOYMENT, &story.namespace);
        let params = PatchParams::apply("a-mesh").force();
        deployments
            .patch(NAME, &params, &Patch::Apply(&sidecar))
            .await?;
        until(
            Duration::from_secs(180),
            "pods with the sidecar to be ready",
            async || {
                let deployment = get(story, DEPLOYMENT).await?;
                let (wanted, status) =
                    (&deployment["metadata"]["generation"], &deployment["status"]);
                let is_done = status["observedGeneration"] == *wanted
                    && status["updatedReplicas"] == 1
                    && status["readyReplicas"] == 1
                    && status["replicas"] == 1;
                Ok(Seen::when(is_done, || status.to_string()))
            },
        )
        .await?;
        story.ready().await?;
        let before = story.settled().await?;
        // Time itself is what this story is about.
        tokio::time::sleep(WATCHED).await;
        let after = story.versions().await?;
        ensure!(after == before, "written again: {before:?} {after:?}");
        let deployment = get(story, DEPLOYMENT).await?;
        let template = &deployment["spec"]["template"];
        for place in [&deployment["metadata"], &template["metadata"]] {
            ensure!(
                place["labels"]["example.com/mesh"] == "on"
                    && place["annotations"]["example.com/by"] == "a mesh",
                "what was added is gone: {place}"
            );
        }
        let containers = template["spec"]["containers"].as_array();
        ensure!(
            containers.is_some_and(|all| all.iter().any(|one| one["name"] == "mesh")),
            "the sidecar is gone: {template}"
        );
        Ok(())
    });
}

#[test]
fn with_nothing_to_change_the_audit_log_holds_no_write_of_the_operator() {
    story("no-writes", Company::Welcome, async |story| {
        let kubeconfig = std::env::var("KUBECONFIG")?;
        let log = std::path::Path::new(&kubeconfig).with_file_name("log/audit.log");
        if !log.is_file() {
            eprintln!("the cluster has no audit log here; start it with CLUSTER_FLAGS=--audit");
            return Ok(());
        }
        story.deploy().await?;
        story.ready().await?;
        story.settled().await?;
        let from = std::fs::metadata(&log)?.len();
        // Time itself is what this story is about.
        tokio::time::sleep(WATCHED).await;
        let bytes = std::fs::read(&log)?;
        // A log that was begun anew meanwhile is read from its start.
        let text = String::from_utf8_lossy(bytes.get(from as usize..).unwrap_or(&bytes));
        let requests: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        ensure!(!requests.is_empty(), "nothing was logged");
        let written: Vec<_> = requests
            .iter()
            .filter(|request| is_write_of_the_operator(request, &story.namespace))
            .map(|request| format!("{} {}", request["verb"], request["requestURI"]))
            .collect();
        ensure!(
            written.is_empty(),
            "written with nothing to change: {written:?}"
        );
        Ok(())
    });
}

/// Leases are renewed by design, and events tell what was decided before.
fn is_write_of_the_operator(request: &Value, namespace: &str) -> bool {
    let user = request["user"]["username"].as_str().unwrap_or_default();
    let verb = request["verb"].as_str().unwrap_or_default();
    let object = &request["objectRef"];
    let resource = object["resource"].as_str().unwrap_or_default();
    user.starts_with(&format!("system:serviceaccount:{}:", operator::NAMESPACE))
        && !["get", "list", "watch"].contains(&verb)
        && !["events", "leases"].contains(&resource)
        // Other stories run beside this one.
        && (object["namespace"] == namespace || object["namespace"].is_null())
}

async fn get(story: &Story, kind: Kind) -> Result<Value> {
    let found = story
        .world
        .cluster
        .get(kind, &story.namespace, NAME)
        .await?;
    found.context("the object is gone")
}

/// All that a user applied and may see changed: not the status, nor what the API server counts and dates.
fn users_part(mut object: Value) -> Value {
    object["status"].take();
    object["metadata"]["resourceVersion"].take();
    if let Some(managers) = object["metadata"]["managedFields"].as_array_mut() {
        managers.retain(|manager| manager["subresource"] != "status");
    }
    object
}

//! The operator, installed by Helm from the chart, with the chart's own permissions.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, POD, names};
use crate::forward::Forward;
use crate::images::Images;
use crate::tools::run;
use crate::wait::{Seen, until};
use crate::{hub_pod, namespace};

/// The operator's namespace.
pub const NAMESPACE: &str = "chandler-system";

/// The release, and by the chart's rule the name of the operator's objects.
pub const RELEASE: &str = "chandler";

/// /healthz, /readyz and /metrics.
const PROBES_PORT: u16 = 8081;

/// How long an installation may take: an image is loaded already, or small.
const INSTALL_SECONDS: &str = "120s";

/// Installs the chart, or upgrades what is there, with the images of this run and the hub stand-in.
///
/// # Errors
/// When Helm fails.
pub async fn install(cluster: &Cluster, images: &Images) -> Result<()> {
    install_with(cluster, &values(images)?).await
}

/// The same with these values instead.
///
/// # Errors
/// When Helm fails.
pub async fn install_with(cluster: &Cluster, values: &[String]) -> Result<()> {
    namespace::make(cluster, NAMESPACE, "operator").await?;
    let mut arguments = vec![
        "upgrade".to_owned(),
        "--install".to_owned(),
        RELEASE.to_owned(),
        "charts/chandler".to_owned(),
        format!("--namespace={NAMESPACE}"),
        "--wait".to_owned(),
        format!("--timeout={INSTALL_SECONDS}"),
    ];
    arguments.push("--values=e2e/chart-values.yaml".to_owned());
    for value in values {
        arguments.push("--set-string".to_owned());
        arguments.push(value.clone());
    }
    run("helm", &arguments).await?;
    Ok(())
}

/// Values that name the images of this run and the hub stand-in.
///
/// # Errors
/// When an image has no registry in its name.
pub fn values(images: &Images) -> Result<Vec<String>> {
    let (operator, runtime) = (&images.operator, &images.runtime);
    let mut values = image_values("image", &operator.name, &operator.tag)?.to_vec();
    values.extend(image_values("runtime.image", &runtime.name, &runtime.tag)?);
    // Without a GPU both end up on the CPU and say why.
    let cuda = images.runtime_cuda.as_ref().unwrap_or(runtime);
    values.extend(image_values("runtime.cudaImage", &cuda.name, &cuda.tag)?);
    values.push(format!("hubs.huggingface.endpoint={}", hub_pod::ENDPOINT));
    Ok(values)
}

/// Values that name an image, below this key. What of `name` stands before the last slash is its registry.
///
/// # Errors
/// When the image has no registry in its name.
pub fn image_values(key: &str, name: &str, tag: &str) -> Result<[String; 3]> {
    let (registry, repository) = name
        .rsplit_once('/')
        .with_context(|| format!("image {name} has no registry in its name"))?;
    Ok([
        format!("{key}.registry={registry}"),
        format!("{key}.repository={repository}"),
        format!("{key}.tag={tag}"),
    ])
}

/// Uninstalls the chart and waits until the operator's pods are gone.
///
/// # Errors
/// When Helm fails or a pod stays.
pub async fn uninstall(cluster: &Cluster) -> Result<()> {
    let arguments = [
        "uninstall",
        RELEASE,
        "-n",
        NAMESPACE,
        "--wait",
        "--timeout=60s",
    ];
    run("helm", &arguments).await?;
    until(
        Duration::from_secs(60),
        "the operator's pods to be gone",
        async || {
            let pods = cluster.list(POD, NAMESPACE, "").await?;
            Ok(Seen::when(pods.is_empty(), || {
                format!("{} pods", pods.len())
            }))
        },
    )
    .await
}

/// Kills the operator's pod at once, as a node's death would, and gives the name of the pod that died.
///
/// # Errors
/// When there is no such pod.
pub async fn kill(cluster: &Cluster) -> Result<String> {
    let name = running_pod(cluster).await?;
    let arguments = [
        "delete",
        "pod",
        &name,
        "-n",
        NAMESPACE,
        "--grace-period=0",
        "--force",
    ];
    run("kubectl", &arguments).await?;
    Ok(name)
}

/// Ends the operator's process in this pod with SIGKILL, so that it says good-bye to nobody.
/// Force-deleting the pod would not do: the kubelet asks the process to stop first.
///
/// # Errors
/// When no process on this machine runs in that pod: the story needs a cluster whose node is this machine.
pub async fn kill_process(pod: &str) -> Result<()> {
    let process =
        process_of(pod).with_context(|| format!("no process of pod {pod} on this machine"))?;
    run("kill", &["-KILL", &process]).await?;
    Ok(())
}

/// The process whose host name is the pod's.
fn process_of(pod: &str) -> Option<String> {
    let host = format!("HOSTNAME={pod}");
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.parse::<u32>().ok()?;
            // A process that ends meanwhile, or is not ours to read, is none.
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == host.as_bytes())
                .then_some(name)
        })
}

/// The operator's pods that are ready.
///
/// # Errors
/// When the API server does not answer.
pub async fn ready_pods(cluster: &Cluster) -> Result<Vec<String>> {
    let selector = format!("app.kubernetes.io/instance={RELEASE}");
    let pods = cluster.list(POD, NAMESPACE, &selector).await?;
    let ready = pods.into_iter().filter(|pod| {
        pod["status"]["containerStatuses"][0]["ready"] == true
            && pod["metadata"]["deletionTimestamp"].is_null()
    });
    Ok(names(&ready.collect::<Vec<_>>()))
}

/// One of the operator's pods that are ready.
///
/// # Errors
/// When there is none after a while.
pub async fn running_pod(cluster: &Cluster) -> Result<String> {
    until(
        Duration::from_secs(60),
        "a ready pod of the operator",
        async || {
            let ready = ready_pods(cluster).await?.into_iter().next();
            Ok(ready.map_or_else(|| Seen::NotYet("none ready".to_owned()), Seen::Yes))
        },
    )
    .await
}

/// Whether the operator's account may do this in a namespace; `resource` may name a subresource, behind a slash.
/// No answer counts as a no: whoever asks also asks what must be allowed.
pub async fn may(verb: &str, resource: &str, namespace: &str) -> bool {
    let user = format!("--as=system:serviceaccount:{NAMESPACE}:{RELEASE}");
    // Behind a slash kubectl would read an object's name.
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let subresource = format!("--subresource={subresource}");
    let arguments = [
        "auth",
        "can-i",
        verb,
        resource,
        &subresource,
        &user,
        "-n",
        namespace,
    ];
    // `can-i` ends with 1 when the answer is no.
    run("kubectl", &arguments)
        .await
        .is_ok_and(|answer| answer.trim() == "yes")
}

/// How many reconciles of ModelDeployments the operator in this pod has counted since its start, failed ones included.
///
/// # Errors
/// When its metrics cannot be read, or hold no such counter.
pub async fn reconciles(cluster: &Cluster, pod: &str) -> Result<u64> {
    let forward = Forward::to_pod(&cluster.client, NAMESPACE, pod, PROBES_PORT).await?;
    let url = format!("http://{}/metrics", forward.address);
    let http = reqwest::Client::builder().no_proxy().build()?;
    let text = http
        .get(url)
        .send()
        .await?
        .error_for_status()?
        .text()
        .await?;
    let counted: Vec<&str> = text
        .lines()
        .filter(|line| {
            line.starts_with(r#"chandler_operator_reconciles_total{kind="ModelDeployment""#)
        })
        .collect();
    ensure!(!counted.is_empty(), "no reconciles are counted: {text}");
    counted.iter().try_fold(0, |sum, line| {
        let number = line.rsplit(' ').next().unwrap_or_default();
        Ok(sum + number.parse::<u64>().with_context(|| (*line).to_owned())?)
    })
}

/// Refuses to go on without an operator that has been installed.
///
/// # Errors
/// When Helm knows no such release.
pub async fn check_installed() -> Result<()> {
    let listed = run("helm", &["list", "-n", NAMESPACE, "-q"]).await?;
    ensure!(
        listed.lines().any(|line| line == RELEASE),
        "helm knows no release {RELEASE} in {NAMESPACE}: {listed:?}"
    );
    Ok(())
}

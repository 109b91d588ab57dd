//! What the nodes offer, and whether a pod would fit on one. Pure but for the list of pods that use them.
//!
//! The scheduler decides; this only tells people and rollouts what it will probably say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, Pod, PodSpec, Taint,
    Toleration,
};
use kube::ResourceExt;
use serde::Deserialize;

use crate::kubernetes::{Cluster, ClusterError};
use crate::quantity;

/// Amounts by resource name, in the resource's own unit: cores, bytes, pieces.
pub type Amounts = BTreeMap<String, f64>;

/// Label of NVIDIA's feature discovery with a GPU's memory, in MiB.
pub const GPU_MEMORY: &str = "nvidia.com/gpu.memory";

/// Label of NVIDIA's feature discovery with a GPU's product.
pub const GPU_PRODUCT: &str = "nvidia.com/gpu.product";

/// Label of GKE with a GPU's product.
pub const GKE_ACCELERATOR: &str = "cloud.google.com/gke-accelerator";

const MEBIBYTE: f64 = 1024.0 * 1024.0;
const GIBIBYTE: f64 = 1024.0 * MEBIBYTE;

/// What one node offers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether pods may be placed on it at all: ready and not cordoned.
    pub open: bool,
    /// What pods may use of it.
    pub allocatable: Amounts,
    /// What pods do use of it; absent where the operator may not see all pods.
    pub used: Option<Amounts>,
}

impl NodeFacts {
    /// Reads a node.
    #[must_use]
    pub fn read(node: &Node, used: Option<&Used>) -> Self {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.clone().unwrap_or_default();
        let ready = status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        let allocatable = status.allocatable.unwrap_or_default();
        Self {
            name: node.name_any(),
            labels: node.labels().clone(),
            taints: spec.taints.unwrap_or_default(),
            open: ready && spec.unschedulable != Some(true),
            allocatable: allocatable
                .iter()
                .filter_map(|(name, amount)| Some((name.clone(), quantity::parse(&amount.0)?)))
                .collect(),
            used: used.map(|used| used.of(&node.name_any())),
        }
    }

    /// What is left of a resource; everything where nobody knows what is used.
    #[must_use]
    pub fn free(&self, resource: &str) -> f64 {
        let all = self.allocatable.get(resource).copied().unwrap_or_default();
        let used = self.used.as_ref().and_then(|used| used.get(resource));
        (all - used.copied().unwrap_or_default()).max(0.0)
    }

    /// Whether selector, affinity and taints let the pod onto this node.
    #[must_use]
    pub fn admits(&self, pod: &PodSpec) -> bool {
        let selector = pod.node_selector.iter().flatten();
        let mut selected = selector.map(|(key, value)| self.labels.get(key) == Some(value));
        let terms = pod
            .affinity
            .as_ref()
            .and_then(|affinity| affinity.node_affinity.as_ref())
            .and_then(|node| {
                node.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })
            .map(|required| required.node_selector_terms.as_slice());
        let tolerations = pod.tolerations.as_deref().unwrap_or_default();
        selected.all(|holds| holds)
            && terms.is_none_or(|terms| self.satisfies_one_of(terms))
            && self
                .taints
                .iter()
                .all(|taint| tolerated(taint, tolerations))
    }

    /// Whether a pod on this node could use the volume.
    #[must_use]
    pub fn reaches(&self, volume: &PersistentVolume) -> bool {
        let affinity = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.node_affinity.as_ref())
            .and_then(|affinity| affinity.required.as_ref());
        affinity.is_none_or(|required| self.satisfies_one_of(&required.node_selector_terms))
    }

    fn satisfies_one_of(&self, terms: &[NodeSelectorTerm]) -> bool {
        terms.iter().any(|term| self.satisfies(term))
    }

    fn satisfies(&self, term: &NodeSelectorTerm) -> bool {
        let fields = term.match_fields.iter().flatten();
        let mut names =
            fields.map(|field| field.key == "metadata.name" && compare(Some(&self.name), field));
        let mut labels = term
            .match_expressions
            .iter()
            .flatten()
            .map(|expression| compare(self.labels.get(&expression.key), expression));
        names.all(|holds| holds) && labels.all(|holds| holds)
    }

    /// Whether one more pod with these requests has room now.
    #[must_use]
    pub fn has_room(&self, requests: &Amounts) -> bool {
        self.open && self.free("pods") >= 1.0 && covers(|name| self.free(name), requests)
    }

    /// The same node without a pod that uses so much of it.
    #[must_use]
    pub fn without(&self, requests: &Amounts) -> Self {
        let mut node = self.clone();
        for (name, used) in node.used.iter_mut().flatten() {
            let freed = if name == "pods" {
                1.0
            } else {
                requests.get(name).copied().unwrap_or_default()
            };
            *used = (*used - freed).max(0.0);
        }
        node
    }

    /// Whether a pod with these requests would have room if nothing else ran.
    #[must_use]
    pub fn is_large_enough(&self, requests: &Amounts) -> bool {
        covers(
            |name| self.allocatable.get(name).copied().unwrap_or_default(),
            requests,
        )
    }

    /// Bytes of memory of one accelerator of this kind, where labels or the resource's name tell.
    #[must_use]
    pub fn accelerator_memory(&self, kind: &str) -> Option<f64> {
        // With MIG's mixed strategy each profile is a resource with its memory in its name, such as nvidia.com/mig-3g.40gb.
        if let Some(profile) = kind.strip_prefix("nvidia.com/mig-") {
            let label = self.labels.get(&format!("{kind}.memory"));
            return label
                .and_then(|text| text.parse::<f64>().ok())
                .map(|mebibytes| mebibytes * MEBIBYTE)
                .or_else(|| gigabytes_in(profile));
        }
        if kind != "nvidia.com/gpu" {
            return None;
        }
        let discovered = self.labels.get(GPU_MEMORY);
        discovered
            .and_then(|text| text.parse::<f64>().ok())
            .map(|mebibytes| mebibytes * MEBIBYTE)
            .or_else(|| gke_memory(self.labels.get(GKE_ACCELERATOR)?))
    }
}

/// Products that GKE names without their memory, with their GiB (cloud.google.com/compute/docs/gpus).
const GKE_PRODUCTS: [(&str, f64); 6] = [
    ("nvidia-tesla-t4", 16.0),
    ("nvidia-l4", 24.0),
    ("nvidia-tesla-a100", 40.0),
    ("nvidia-tesla-v100", 16.0),
    ("nvidia-tesla-p100", 16.0),
    ("nvidia-b200", 180.0),
];

/// Products of GKE with at least so many bytes of memory each.
#[must_use]
pub fn gke_products_from(bytes: f64) -> Vec<String> {
    const NAMED: [&str; 4] = [
        "nvidia-a100-80gb",
        "nvidia-h100-80gb",
        "nvidia-h100-mega-80gb",
        "nvidia-h200-141gb",
    ];
    GKE_PRODUCTS
        .iter()
        .map(|(name, _)| *name)
        .chain(NAMED)
        .filter(|name| gke_memory(name).is_some_and(|memory| memory >= bytes))
        .map(str::to_owned)
        .collect()
}

fn gke_memory(product: &str) -> Option<f64> {
    GKE_PRODUCTS
        .iter()
        .find(|(name, _)| *name == product)
        .map(|(_, gibibytes)| gibibytes * GIBIBYTE)
        .or_else(|| gigabytes_in(product))
}

/// The number before `gb` in a product's name.
fn gigabytes_in(name: &str) -> Option<f64> {
    let before = &name[..name.to_ascii_lowercase().rfind("gb")?];
    let digits = before
        .rfind(|letter: char| !letter.is_ascii_digit())
        .map_or(before, |at| &before[at + 1..]);
    digits.parse::<f64>().ok().map(|count| count * GIBIBYTE)
}

fn covers(has: impl Fn(&str) -> f64, requests: &Amounts) -> bool {
    requests.iter().all(|(name, amount)| has(name) >= *amount)
}

fn compare(value: Option<&String>, requirement: &NodeSelectorRequirement) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let bound = values.first().and_then(number);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value.and_then(number) > bound && bound.is_some(),
        "Lt" => value.and_then(number).is_some() && value.and_then(number) < bound,
        _ => false,
    }
}

fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    taint.effect == "PreferNoSchedule"
        || tolerations.iter().any(|toleration| {
            let key = toleration.key.as_deref().unwrap_or_default();
            let effect = toleration.effect.as_deref().unwrap_or_default();
            let exists = toleration.operator.as_deref() == Some("Exists");
            (key == taint.key || (key.is_empty() && exists))
                && (effect.is_empty() || effect == taint.effect)
                && (exists
                    || toleration.value.as_deref().unwrap_or_default()
                        == taint.value.as_deref().unwrap_or_default())
        })
}

/// What a pod asks of a node: its containers together, or its largest init container where that is more.
#[must_use]
pub fn requests(pod: &PodSpec) -> Amounts {
    let mut sum = Amounts::new();
    for container in &pod.containers {
        for (name, amount) in asked(container.resources.as_ref()) {
            *sum.entry(name).or_default() += amount;
        }
    }
    for container in pod.init_containers.iter().flatten() {
        for (name, amount) in asked(container.resources.as_ref()) {
            let entry = sum.entry(name).or_default();
            *entry = entry.max(amount);
        }
    }
    sum
}

fn asked(
    resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>,
) -> impl Iterator<Item = (String, f64)> {
    resources
        .and_then(|resources| resources.requests.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|(name, amount)| Some((name.clone(), quantity::parse(&amount.0)?)))
}

/// What pods use, by node.
#[derive(Debug, Default)]
pub struct Used(BTreeMap<String, Amounts>);

impl Used {
    /// Counts one more pod, if it has a node.
    pub fn add(&mut self, pod: &Pod) {
        let Some(spec) = &pod.spec else { return };
        let Some(node) = &spec.node_name else { return };
        let used = self.0.entry(node.clone()).or_default();
        for (name, amount) in requests(spec) {
            *used.entry(name).or_default() += amount;
        }
        *used.entry("pods".to_owned()).or_default() += 1.0;
    }

    /// What pods use of a node.
    #[must_use]
    pub fn of(&self, node: &str) -> Amounts {
        self.0.get(node).cloned().unwrap_or_default()
    }
}

/// How old an answer may be: plans inform, and rollouts correct themselves when it was wrong.
const FRESH: Duration = Duration::from_secs(10);

/// What all pods use, by node; nothing where the operator may not see all of them.
pub type Usage = Option<Arc<Used>>;

/// What all pods of the cluster use, asked for at most every few seconds and only while something is being placed.
#[derive(Default)]
pub struct UsageReader(tokio::sync::Mutex<Option<(Instant, Usage)>>);

impl UsageReader {
    /// What is used by node; nothing where the operator may not see all pods.
    ///
    /// # Errors
    ///
    /// When the API server does not answer.
    pub async fn read(&self, cluster: &Cluster) -> Result<Usage, ClusterError> {
        let mut kept = self.0.lock().await;
        if let Some((at, usage)) = kept.as_ref()
            && at.elapsed() < FRESH
        {
            return Ok(usage.clone());
        }
        let mut used = Used::default();
        let sees_all = cluster.each_running_pod(|pod| used.add(pod)).await?;
        let usage = sees_all.then(|| Arc::new(used));
        *kept = Some((Instant::now(), usage.clone()));
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(labels: &[(&str, &str)]) -> NodeFacts {
        NodeFacts {
            name: "n".to_owned(),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            open: true,
            ..NodeFacts::default()
        }
    }

    #[test]
    fn memory_is_read_from_each_vendor_s_label() {
        for (labels, kind, gibibytes) in [
            (vec![(GPU_MEMORY, "81920")], "nvidia.com/gpu", Some(80.0)),
            (
                vec![(GKE_ACCELERATOR, "nvidia-h100-80gb")],
                "nvidia.com/gpu",
                Some(80.0),
            ),
            (
                vec![(GKE_ACCELERATOR, "nvidia-tesla-t4")],
                "nvidia.com/gpu",
                Some(16.0),
            ),
            (
                vec![("nvidia.com/mig-3g.40gb.memory", "40192")],
                "nvidia.com/mig-3g.40gb",
                Some(39.25),
            ),
            (vec![], "nvidia.com/mig-1g.10gb", Some(10.0)),
            (vec![], "nvidia.com/gpu", None),
            (vec![(GPU_MEMORY, "81920")], "amd.com/gpu", None),
        ] {
            let memory = node(&labels).accelerator_memory(kind);
            assert_eq!(
                memory,
                gibibytes.map(|count| count * GIBIBYTE),
                "{labels:?} {kind}"
            );
        }
    }

    #[test]
    fn selector_affinity_and_taints_decide_together() {
        let pod = |value| serde_json::from_value::<PodSpec>(value).unwrap();
        let mut large = node(&[("zone", "a"), (GPU_MEMORY, "81920")]);
        let any = pod(json!({"containers": []}));
        assert!(large.admits(&any));
        assert!(!large.admits(&pod(
            json!({"containers": [], "nodeSelector": {"zone": "b"}})
        )));
        let above = |bound: &str| {
            pod(
                json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [{"key": GPU_MEMORY, "operator": "Gt", "values": [bound]}]}]}}}}),
            )
        };
        assert!(large.admits(&above("81919")));
        assert!(!large.admits(&above("81920")));
        large.taints = serde_json::from_value(
            json!([{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]),
        )
        .unwrap();
        assert!(!large.admits(&any));
        assert!(large.admits(&pod(json!({"containers": [], "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}))));
    }

    #[test]
    fn what_pods_use_is_not_free() {
        let pods: Vec<Pod> = serde_json::from_value(json!([{"spec": {"nodeName": "n",
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "500m", "nvidia.com/gpu": "1"}}}],
            "initContainers": [{"name": "b", "resources": {"requests": {"cpu": "2"}}}]}}]))
        .unwrap();
        let mut facts = node(&[]);
        facts.allocatable = [
            ("cpu".to_owned(), 4.0),
            ("nvidia.com/gpu".to_owned(), 2.0),
            ("pods".to_owned(), 10.0),
        ]
        .into();
        let mut used = Used::default();
        pods.iter().for_each(|pod| used.add(pod));
        facts.used = Some(used.of("n"));
        assert_eq!(
            (
                facts.free("cpu"),
                facts.free("nvidia.com/gpu"),
                facts.free("pods")
            ),
            (2.0, 1.0, 9.0)
        );
        assert!(facts.has_room(&[("nvidia.com/gpu".to_owned(), 1.0)].into()));
        assert!(!facts.has_room(&[("nvidia.com/gpu".to_owned(), 2.0)].into()));
        assert!(facts.is_large_enough(&[("nvidia.com/gpu".to_owned(), 2.0)].into()));
    }
}

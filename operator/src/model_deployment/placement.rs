//! Where serving pods may run: what the user says, and what the accelerator asks for by itself. Pure.

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Toleration,
};

use crate::api::{Accelerator, ModelDeployment, Reason};
use crate::child::{self, PodShape};
use crate::model_cache::validate::{Violation, parse_affinity};
use crate::nodes::{GKE_ACCELERATOR, GPU_MEMORY, GPU_PRODUCT, gke_products_from};
use crate::quantity;

/// RuntimeClass that NVIDIA's operator makes where its runtime is not the nodes' default.
const NVIDIA: &str = "nvidia";

/// Reads where the pods may run.
///
/// # Errors
///
/// When a part that the schema passes on unread is not what Kubernetes takes.
pub fn shape(
    object: &ModelDeployment,
    accelerator: &Accelerator,
    runtime_classes: &[String],
) -> Result<PodShape, Violation> {
    let pod = object.spec.pod.clone().unwrap_or_default();
    let mut tolerations = child::tolerations(&pod.tolerations);
    if accelerator.kind != "cpu" {
        tolerations.push(Toleration {
            key: Some(accelerator.kind.clone()),
            operator: Some("Exists".to_owned()),
            ..Default::default()
        });
    }
    let mut topology_spread = Vec::new();
    for (index, entry) in pod.topology_spread_constraints.iter().enumerate() {
        let value = serde_json::Value::Object(entry.clone().into_iter().collect());
        let read = serde_json::from_value(value).map_err(|error| Violation {
            reason: Reason::InvalidSpec,
            message: format!(
                "spec.pod.topologySpreadConstraints[{index}] is not one of Kubernetes: {error}"
            ),
        })?;
        topology_spread.push(read);
    }
    let said = pod.affinity.as_ref().map(parse_affinity).transpose()?;
    let runtime = object.spec.runtime.clone().unwrap_or_default();
    let needs_nvidia = accelerator.kind.starts_with("nvidia.com/")
        && runtime_classes.iter().any(|class| class == NVIDIA);
    Ok(PodShape {
        node_selector: pod.node_selector,
        tolerations,
        affinity: with_accelerator(said, accelerator),
        topology_spread,
        service_account: pod.service_account_name,
        priority_class: pod.priority_class_name,
        runtime_class: pod
            .runtime_class_name
            .or_else(|| needs_nvidia.then(|| NVIDIA.to_owned())),
        scheduler: pod.scheduler_name,
        security: pod.security_context,
        pull_secrets: runtime
            .image_pull_secrets
            .into_iter()
            .map(|secret| secret.name)
            .collect(),
    })
}

/// The user's affinity, and the nodes that have the wanted products and memory.
fn with_accelerator(said: Option<Affinity>, accelerator: &Accelerator) -> Option<Affinity> {
    let terms = terms(accelerator);
    if terms.is_empty() {
        return said;
    }
    let mut affinity = said.unwrap_or_default();
    let node = affinity.node_affinity.get_or_insert_default();
    let required = node
        .required_during_scheduling_ignored_during_execution
        .take();
    let written = required.map_or_else(
        || vec![NodeSelectorTerm::default()],
        |required| required.node_selector_terms,
    );
    // Terms are alternatives: each of the user's with each of ours.
    let both = written.iter().flat_map(|user| {
        terms.iter().map(|ours| {
            let mut term = user.clone();
            term.match_expressions
                .get_or_insert_default()
                .extend(ours.iter().cloned());
            term
        })
    });
    *node = NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(NodeSelector {
            node_selector_terms: both.collect(),
        }),
        ..node.clone()
    };
    Some(affinity)
}

/// What a node's labels must say: as NVIDIA's feature discovery writes them, or as GKE does.
fn terms(accelerator: &Accelerator) -> Vec<Vec<NodeSelectorRequirement>> {
    let least = accelerator
        .min_memory
        .as_deref()
        .and_then(quantity::parse)
        .unwrap_or_default();
    let (mut discovered, mut gke) = (Vec::new(), Vec::new());
    if let Some(products) = &accelerator.products {
        discovered.push(requirement(GPU_PRODUCT, "In", products.clone()));
        gke.push(requirement(GKE_ACCELERATOR, "In", products.clone()));
    }
    if least > 0.0 {
        let mebibytes = (least / (1024.0 * 1024.0)).ceil() as i64;
        discovered.push(requirement(
            GPU_MEMORY,
            "Gt",
            vec![(mebibytes - 1).to_string()],
        ));
        gke.push(requirement(GKE_ACCELERATOR, "In", gke_products_from(least)));
    }
    [discovered, gke]
        .into_iter()
        .filter(|term| !term.is_empty())
        .filter(|term| {
            term.iter()
                .all(|one| one.values.as_ref().is_some_and(|v| !v.is_empty()))
        })
        .collect()
}

fn requirement(key: &str, operator: &str, values: Vec<String>) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: Some(values),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_alternative_of_the_user_meets_each_of_ours() {
        let accelerator: Accelerator = serde_json::from_value(
            json!({"type": "nvidia.com/gpu", "products": ["NVIDIA-L4", "nvidia-l4"], "minMemory": "20Gi"}),
        )
        .unwrap();
        let said = serde_json::from_value(json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}}))
        .unwrap();
        let affinity = with_accelerator(Some(said), &accelerator).unwrap();
        let terms = affinity
            .node_affinity
            .unwrap()
            .required_during_scheduling_ignored_during_execution
            .unwrap()
            .node_selector_terms;
        let keys: Vec<Vec<String>> = terms
            .iter()
            .map(|term| {
                term.match_expressions
                    .iter()
                    .flatten()
                    .map(|e| e.key.clone())
                    .collect()
            })
            .collect();
        assert_eq!(
            keys,
            [
                vec!["zone", GPU_PRODUCT, GPU_MEMORY],
                vec!["zone", GKE_ACCELERATOR, GKE_ACCELERATOR]
            ]
        );
        let memory = &terms[0].match_expressions.as_ref().unwrap()[2];
        assert_eq!(memory.values.as_ref().unwrap(), &["20479"]);
    }
}

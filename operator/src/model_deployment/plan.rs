//! What one replica needs, and where it could run now. Pure.
//!
//! A plan informs and withholds nothing: nodes without labels and pools at zero count as unknown, and pods are made all the same.

use serde_json::json;

use super::build::workload;
use super::progress::{Known, Weights};
use super::revision::Record;
use super::validate::Validated;
use crate::api::{Accelerator, Dimensions, MemoryParts, ModelDeployment, Plan};
use crate::config::PodDefaults;
use crate::digest;
use crate::nodes::{self, NodeFacts};

const MEBIBYTE: f64 = 1024.0 * 1024.0;
const GIBIBYTE: f64 = 1024.0 * MEBIBYTE;

/// Nodes that a plan names.
const MAX_NODES: usize = 10;

/// Sequences at a time where neither spec nor card say: the runtime's default.
const USUAL_SEQUENCES: f64 = 16.0;

/// Bytes of the program, its tokenizer and what requests hold.
const PROGRAM: f64 = 256.0 * MEBIBYTE;

/// What is set aside on an accelerator for activations and the driver: a part of the weights, and bytes.
const ACCELERATOR_PART: f64 = 0.04;
const ACCELERATOR_REST: f64 = 768.0 * MEBIBYTE;

/// Bytes of one replica, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Need {
    /// The weights.
    pub weights: f64,
    /// The KV cache of one whole context.
    pub context: f64,
    /// The KV cache of all sequences.
    pub kv_cache: f64,
    /// Of it, what pictures take.
    pub image_cache: f64,
    /// Activations, buffers, the program.
    pub working_set: f64,
    /// Of it, what the picture that is being encoded takes.
    pub image_working_set: f64,
}

impl Need {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.weights + self.kv_cache + self.working_set
    }
}

/// Works out what a replica needs.
///
/// Where the runtime told the parts of what it allocates, weights, KV cache and, on the CPU, activations are their exact sum.
///
/// On an accelerator a value of the KV cache has 2 bytes, and 4 % of the weights and 768 MiB are set aside for activations and the driver.
/// On the CPU a value has 4 bytes, and weights count 1.6 times, because Q4_1 is kept as Q8_0 beside the mapped file.
#[must_use]
pub fn need(validated: &Validated, known: &Known) -> Need {
    let (bytes, dimensions) = match known {
        Known::Found(found) => (Some(found.bytes), found.dimensions),
        Known::Given => (None, None),
    };
    amounts(validated, bytes, dimensions)
}

fn amounts(validated: &Validated, bytes: Option<i64>, dimensions: Option<Dimensions>) -> Need {
    let on_cpu = validated.accelerator.kind == "cpu";
    let value = if on_cpu { 4.0 } else { 2.0 };
    if let Some(parts) = dimensions.and_then(|known| known.memory) {
        return summed(validated, &parts, on_cpu, value);
    }
    let weights = bytes.map_or_else(|| guessed_bytes(validated), |bytes| bytes as f64);
    let (token, image) = match dimensions {
        Some(known) => {
            let heads = (known.key_value_heads * known.head_size) as f64;
            let per_layer = 2.0 * heads * value;
            (
                known.layers as f64 * per_layer,
                known.cross_attention_layers as f64 * per_layer * known.image_tokens as f64,
            )
        }
        // 23,552 values times the root of the billions of parameters: what the Llama family needs.
        None => (23.0 * 1024.0 * billions(validated).sqrt() * value, 0.0),
    };
    let pictures = image * images(validated);
    let context = token * validated.longest_context as f64 + pictures;
    let sequences = sequences(validated);
    Need {
        weights,
        context,
        kv_cache: context * sequences,
        image_cache: pictures * sequences,
        working_set: if on_cpu {
            weights * 0.6 + PROGRAM
        } else {
            weights * ACCELERATOR_PART + ACCELERATOR_REST
        },
        image_working_set: 0.0,
    }
}

fn images(validated: &Validated) -> f64 {
    f64::from(validated.limits.images_per_prompt.unwrap_or(1))
}

fn sequences(validated: &Validated) -> f64 {
    validated
        .limits
        .max_sequences
        .map_or(USUAL_SEQUENCES, f64::from)
}

/// The sum of what the runtime allocates; `value` is the bytes of one number of the KV cache.
fn summed(validated: &Validated, parts: &MemoryParts, on_cpu: bool, value: f64) -> Need {
    let (sequences, images) = (sequences(validated), images(validated));
    let block = parts.block_numbers as f64 * value;
    let tokens = (validated.longest_context as f64 / parts.block_tokens.max(1) as f64).ceil() + 1.0;
    let pictures = images * parts.image_blocks as f64 * block;
    let context = tokens * block + pictures;
    let image = parts.image_bytes as f64;
    let rows = sequences.max(parts.step_rows as f64) * parts.row_bytes as f64;
    let logits = (sequences + parts.extra_logits_rows as f64) * parts.logits_row_bytes as f64;
    let weights = parts.weights_bytes as f64;
    Need {
        weights,
        context,
        kv_cache: context * sequences,
        image_cache: pictures * sequences,
        working_set: image
            + if on_cpu {
                rows + logits + PROGRAM
            } else {
                weights * ACCELERATOR_PART + ACCELERATOR_REST
            },
        image_working_set: image,
    }
}

fn billions(validated: &Validated) -> f64 {
    validated.choice.size_in_billions.parse().unwrap_or(1.0)
}

/// Parameters times the bits of the quantization, where no hub told the bytes.
fn guessed_bytes(validated: &Validated) -> f64 {
    billions(validated) * 1e9 * bits(&validated.choice.quantization) / 8.0
}

/// Bits of one weight, scales included, read from the quantization's name such as `Q4_K_M`, `Int4` or `FP8`.
fn bits(quantization: &str) -> f64 {
    let name = quantization.to_ascii_lowercase();
    if name == "none" || name.contains("16") {
        return 16.0;
    }
    if name.contains("32") {
        return 32.0;
    }
    let digit = name.chars().find_map(|letter| letter.to_digit(10));
    digit
        .filter(|digit| (1..=8).contains(digit))
        .map_or(16.0, |digit| f64::from(digit) + 0.5)
}

/// Bytes of main memory that a container is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Requested.
    pub needed: i64,
    /// At most.
    pub most: i64,
}

/// Main memory of our runtime: weights and one context at least, all contexts at most.
///
/// The 1.6 stays where an accelerator holds the weights: they pass through main memory once.
#[must_use]
pub fn memory(validated: &Validated, weights: &Weights) -> Memory {
    let on_cpu = Accelerator {
        kind: "cpu".to_owned(),
        ..validated.accelerator.clone()
    };
    let validated = Validated {
        accelerator: on_cpu,
        ..validated.clone()
    };
    let need = amounts(&validated, weights.bytes, weights.dimensions);
    let needed = need.weights + need.working_set + need.context;
    Memory {
        needed: needed as i64,
        most: (needed + need.kv_cache - need.context) as i64,
    }
}

/// Main memory of an engine in Python: its libraries beside the same.
#[must_use]
pub fn memory_of_python(validated: &Validated, weights: &Weights) -> Memory {
    let Memory { needed, most } = memory(validated, weights);
    let libraries = (4.0 * GIBIBYTE) as i64;
    Memory {
        needed: needed + libraries,
        most: most + 2 * libraries,
    }
}

/// How many accelerators one replica gets where the spec leaves it open:
/// the fewest, as a power of two, whose memory holds it on a node of the cluster; one where nobody can say.
#[must_use]
pub fn choose_count(need: &Need, kind: &str, nodes: &[NodeFacts]) -> i32 {
    let fits = |count: i32| {
        nodes.iter().any(|node| {
            let has = node.allocatable.get(kind).copied().unwrap_or_default();
            let memory = node.accelerator_memory(kind).unwrap_or_default();
            has >= f64::from(count) && memory * f64::from(count) >= need.total()
        })
    };
    [1, 2, 4, 8, 16]
        .into_iter()
        .find(|count| fits(*count))
        .unwrap_or(1)
}

/// Digest of what a plan is made for; it changes with the spec or the choice, not with the cluster.
#[must_use]
pub fn basis(spec: &str, validated: &Validated, known: Option<&Known>) -> String {
    digest::of(&json!([
        spec,
        validated.option,
        validated.accelerator,
        known
    ]))
}

/// Makes the plan. Without `known` the hub has not answered yet, and the weights are guessed.
#[must_use]
pub fn plan(
    object: &ModelDeployment,
    validated: &Validated,
    known: Option<&Known>,
    nodes: &[NodeFacts],
    defaults: &PodDefaults,
    basis: String,
) -> Plan {
    let need = need(validated, known.unwrap_or(&Known::Given));
    let accelerator = &validated.accelerator;
    let kind = accelerator.kind.as_str();
    let weights = Weights {
        claim: String::new(),
        path: String::new(),
        bytes: Some(need.weights as i64),
        dimensions: match known {
            Some(Known::Found(found)) => found.dimensions,
            _ => None,
        },
    };
    let template = workload::build_template(object, validated, &weights, defaults);
    let pod = template.spec.unwrap_or_default();
    let requests = nodes::requests(&pod);
    let memory = |node: &NodeFacts| {
        node.accelerator_memory(kind)
            .map(|one| one * f64::from(accelerator.count))
    };
    let holds = |node: &NodeFacts| memory(node).is_none_or(|memory| memory >= need.total());
    let possible: Vec<&NodeFacts> = nodes.iter().filter(|node| node.admits(&pod)).collect();
    let mut now: Vec<&NodeFacts> = possible
        .iter()
        .copied()
        .filter(|node| node.has_room(&requests) && (kind == "cpu" || holds(node)))
        .collect();
    now.sort_by(|one, other| one.name.cmp(&other.name));
    let largest = possible
        .iter()
        .filter_map(|node| {
            let free = if kind == "cpu" {
                node.free("memory")
            } else {
                node.free(kind) * node.accelerator_memory(kind)?
            };
            Some(free)
        })
        .fold(None, |largest: Option<f64>, free| {
            Some(largest.map_or(free, |largest| largest.max(free)))
        });
    let message = message(&need, validated, &requests, &possible, &now, largest, holds);
    Plan {
        weights_bytes: need.weights as i64,
        kv_cache_bytes: need.kv_cache as i64,
        image_cache_bytes: need.image_cache as i64,
        working_set_bytes: need.working_set as i64,
        image_working_set_bytes: need.image_working_set as i64,
        total_bytes: need.total() as i64,
        accelerator: named(accelerator),
        reason: reason(object, validated),
        nodes: now
            .iter()
            .take(MAX_NODES)
            .map(|node| node.name.clone())
            .collect(),
        more_nodes: now.len().saturating_sub(MAX_NODES) as i64,
        largest_free_bytes: largest.map(|bytes| bytes as i64),
        message,
        basis,
    }
}

fn named(accelerator: &Accelerator) -> String {
    if accelerator.kind == "cpu" {
        "cpu".to_owned()
    } else {
        format!("{} × {}", accelerator.count, accelerator.kind)
    }
}

fn reason(object: &ModelDeployment, validated: &Validated) -> String {
    let listed = object.spec.accelerators.as_ref().map_or(0, Vec::len);
    match (validated.accelerator_is_given, validated.option) {
        (false, _) => {
            "spec.accelerators is absent: the fewest GPUs that hold one replica, one where the nodes' labels do not tell".to_owned()
        }
        (true, 0) if listed == 1 => "the only one in spec.accelerators".to_owned(),
        (true, 0) => "the first in spec.accelerators".to_owned(),
        (true, option) => format!(
            "spec.accelerators[{option}]: no replica found a node with the one before in time"
        ),
    }
}

fn message(
    need: &Need,
    validated: &Validated,
    requests: &nodes::Amounts,
    possible: &[&NodeFacts],
    now: &[&NodeFacts],
    largest: Option<f64>,
    holds: impl Fn(&NodeFacts) -> bool,
) -> String {
    let accelerator = &validated.accelerator;
    let kind = accelerator.kind.as_str();
    let pictures = if need.image_cache > 0.0 {
        format!(" of which {} for pictures", gibibytes(need.image_cache))
    } else {
        String::new()
    };
    let what = format!(
        "one replica needs {} ({} weights, {} KV cache{pictures}, {} working set) on {}",
        gibibytes(need.total()),
        gibibytes(need.weights),
        gibibytes(need.kv_cache),
        gibibytes(need.working_set),
        named(accelerator)
    );
    let offering: Vec<&&NodeFacts> = possible
        .iter()
        .filter(|node| kind == "cpu" || node.allocatable.get(kind).is_some_and(|has| *has > 0.0))
        .collect();
    let largest = largest.map_or_else(String::new, |bytes| {
        format!("; the largest free block is {}", gibibytes(bytes))
    });
    let unseen = if possible.iter().any(|node| node.used.is_none()) {
        "; what other pods use is not visible to this operator"
    } else {
        ""
    };
    let where_to = if !now.is_empty() {
        let unknown = now
            .iter()
            .any(|node| kind != "cpu" && node.accelerator_memory(kind).is_none());
        let memory = if unknown {
            ", though some do not tell their accelerators' memory"
        } else {
            ""
        };
        format!("{} nodes have room now{memory}", now.len())
    } else if offering.is_empty() {
        format!("no node that the pod may use offers {kind}; an autoscaler may add one")
    } else if !offering.iter().any(|node| holds(node)) {
        "no node's accelerators have that much memory together; lower limits.contextLength or limits.maxSequences, or raise count".to_owned()
    } else if !offering.iter().any(|node| node.is_large_enough(requests)) {
        "no node is large enough for it even when empty".to_owned()
    } else {
        format!(
            "no node has room now; {} would when other pods go",
            offering
                .iter()
                .filter(|node| node.is_large_enough(requests))
                .count()
        )
    };
    format!("{what}: {where_to}{largest}{unseen}")
}

fn gibibytes(bytes: f64) -> String {
    format!("{:.1} GiB", bytes / GIBIBYTE)
}

/// The accelerator with its number chosen, where the spec leaves it open; what was chosen for this spec once, stays.
#[must_use]
pub fn settle(
    validated: Validated,
    known: Option<&Known>,
    nodes: Option<&[NodeFacts]>,
    pinned: Option<&Record>,
) -> Validated {
    if validated.accelerator_is_given {
        return validated;
    }
    let count = match (pinned, known, nodes) {
        (Some(record), ..) => record.accelerator.count,
        (None, Some(known), Some(nodes)) => {
            choose_count(&need(&validated, known), &validated.accelerator.kind, nodes)
        }
        _ => 1,
    };
    Validated {
        accelerator: Accelerator {
            count,
            ..validated.accelerator
        },
        ..validated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_from_a_quantization_s_name() {
        for (name, expected) in [
            ("none", 16.0),
            ("BF16", 16.0),
            ("Q4_K_M", 4.5),
            ("Q8_0", 8.5),
            ("IQ2_XS", 2.5),
            ("Int4", 4.5),
            ("FP8", 8.5),
            ("F32", 32.0),
            ("odd", 16.0),
        ] {
            assert!((bits(name) - expected).abs() < f64::EPSILON, "{name}");
        }
    }
}

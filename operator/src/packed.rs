//! Objects at rest: as JSON text, compressed against a dictionary of objects of the same kind.
//!
//! Thousands of objects of one kind differ in names, versions and times. What they share stands once, in the dictionary.

use std::sync::Arc;

use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};

use crate::kubernetes::Kind;

/// Longest dictionary: LZ4 looks 64 KiB back, and an object needs some of that for itself.
const LONGEST: usize = 32 * 1024;

/// An object that does not shrink to this part of its text has something to teach the dictionary.
const POOR: usize = 3;

/// How the objects of one kind are packed. Cloning gives what unpacks everything that was packed so far.
#[derive(Clone, Default)]
pub struct Packing {
    /// Grows at its front only: what is packed refers to it by the distance from its end.
    dictionary: Arc<[u8]>,
}

impl Packing {
    /// Packs an object, and learns from it where it is unlike those before.
    #[must_use]
    pub fn pack<K: Kind>(&mut self, object: &K) -> Box<[u8]> {
        let text = serde_json::to_vec(object).expect("an object of the API server is plain JSON");
        let packed = compress_prepend_size_with_dict(&text, &self.dictionary);
        let is_poor = packed.len() * POOR > text.len();
        if !is_poor || self.dictionary.len() + text.len() > LONGEST {
            return packed.into();
        }
        self.dictionary = [&text, &*self.dictionary].concat().into();
        compress_prepend_size_with_dict(&text, &self.dictionary).into()
    }

    /// The object again.
    #[must_use]
    pub fn unpack<K: Kind>(&self, packed: &[u8]) -> K {
        let text = decompress_size_prepended_with_dict(packed, &self.dictionary);
        let text = text.expect("what was packed here is whole");
        serde_json::from_slice(&text).expect("it was made from this type")
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::Job;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn pod(number: u64, extra: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("model-{number}-{:x}", number * 7_919), "namespace": "a",
                "uid": format!("{:032x}", u128::from(number) * 0x9e37_79b9_7f4a_7c15),
                "resourceVersion": number.to_string(),
                "labels": {"app.kubernetes.io/managed-by": "chandler-operator", "chandler.dev/model-deployment": format!("model-{number}")},
            },
            "spec": {
                "nodeName": extra,
                "containers": [{"name": "serve", "image": "chandler.dev/chandler-runtime:0.1.0", "args": [extra]}],
            },
            "status": {"phase": "Running", "message": extra, "conditions": [{
                "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn what_was_packed_comes_out_whatever_was_learned_since() {
        let mut packing = Packing::default();
        let pods: Vec<Pod> = (0..200)
            .map(|number| {
                // Some are long and like nothing before them.
                let unlike: String = (0..(number % 5) * 400)
                    .map(|at| char::from(b'a' + ((at * at * (number + 3) + at) % 26) as u8))
                    .collect();
                pod(number, &unlike)
            })
            .collect();
        let packed: Vec<_> = pods.iter().map(|pod| packing.pack(pod)).collect();
        assert!(packing.dictionary.len() <= LONGEST);
        for (pod, packed) in pods.iter().zip(&packed) {
            assert_eq!(&packing.unpack::<Pod>(packed), pod);
        }
    }

    #[test]
    fn an_object_like_the_others_takes_little() {
        let mut packing = Packing::default();
        let first = packing.pack(&pod(1, "")).len();
        let text = serde_json::to_vec(&pod(2, "")).unwrap().len();
        let second = packing.pack(&pod(2, "")).len();
        assert!(
            first < text && second * 3 < text,
            "{first}, {second} of {text}"
        );
    }

    #[test]
    fn an_object_larger_than_any_dictionary_is_kept_too() {
        let long: String = (0..100_000_u32)
            .map(|at| char::from(b'a' + (at.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
            .collect();
        let job: Job = serde_json::from_value(
            json!({"metadata": {"name": "j", "annotations": {"long": long}}}),
        )
        .unwrap();
        let mut packing = Packing::default();
        let packed = packing.pack(&job);
        assert_eq!(packing.unpack::<Job>(&packed), job);
    }
}

//! The stories. Each runs on the cluster of `KUBECONFIG` in a namespace of its own that takes only restricted pods;
//! `contract`, `images` and `others_hubs` need no cluster.
//!
//! ```text
//! make e2e                    all
//! make e2e STORY=gated        those with this word in their name
//! KEEP=1 make e2e STORY=…     the namespace stays for a look at it
//! ```

mod access;
mod admission;
mod answer;
mod bad_input;
mod bad_spec;
mod conflict;
mod contract;
mod delete;
mod drain;
mod foreign;
mod gated;
mod gitops;
mod hub_trouble;
mod images;
mod install;
mod leader;
mod namespaces;
mod others_hubs;
mod pictures;
mod plan;
mod recovery;
mod registry;
mod rollout;
mod scheduling;
mod served;
mod sources;
mod steady;
mod tenants;
mod unhealthy;
mod upgrade;
mod weights;

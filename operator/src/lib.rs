//! The operator of Chandler: it turns one ModelDeployment into an endpoint that answers.
//!
//! Read in this order: `api` (what users write), `config`, `run` and `watches` (what wakes a reconcile), `store` and `kept` (what is known),
//! `model_deployment` and `model_cache` (the two drivers, one direction each), then what they share.
//! `crd` and `xinference` are the commands that need no cluster.
//! Only `kubernetes` writes to the API server, and only as the leader (`election`, `lease`); `validate`, `progress`, `build` and `status` are plain functions.

pub mod api;
pub mod bounds;
pub mod config;
pub mod crd;
pub mod xinference;

pub mod context;
pub mod election;
pub mod kept;
pub mod lease;
pub mod queue;
pub mod run;
pub mod store;
pub mod watches;
pub mod workers;

pub mod model_cache;
pub mod model_deployment;

pub mod answer;
pub mod cards;
pub mod child;
pub mod conditions;
pub mod digest;
pub mod drift;
pub mod job_state;
pub mod kubernetes;
pub mod model_status;
pub mod nodes;
pub mod packed;
pub mod pod_health;
pub mod probes;
pub mod quantity;
pub mod telemetry;
pub mod weights_job;

//! The three kinds in `chandler.dev/v1alpha1`, as users write them and as the operator reports on them.
//!
//! Everything here is the surface of the product: doc comments appear in `kubectl explain`,
//! rules are checked by the API server before the operator sees an object.
//! Nothing here decides anything.

pub mod card;
pub mod condition;
pub mod model_cache;
pub mod model_deployment;
pub mod pod;
pub mod schema;
pub mod storage;

pub use card::{
    Ability, Chat, Defaults, Hub, License, ModelCard, ModelCardSpec, ModelFormat, Source, Variant,
};
pub use condition::{ConditionType, Reason};
pub use model_cache::{
    CacheSource, ClaimSource, HubSource, ModelCache, ModelCacheSpec, ModelCacheStatus,
};
pub use model_deployment::{
    Accelerator, Access, CacheReference, DeviceStatus, Dimensions, Engine, EngineOptions, Limits,
    MemoryParts, ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus, ModelSelection,
    OnFailure, Plan, ResolvedModel, Rollout, RolloutPolicy, Runtime, Service, ServiceType, Startup,
    Upgrade, Weights, WeightsStorage,
};
pub use pod::{
    CachePod, EnvVar, LocalReference, PodOptions, PodSecurity, PullPolicy, QuantityText, Resources,
    SecretKey, TaintEffect, Toleration, TolerationOperator,
};
pub use schema::{custom_resource_definitions, reference};
pub use storage::{AccessMode, CacheStorage, ReclaimPolicy};

/// The API group of every kind.
pub const GROUP: &str = "chandler.dev";

/// Longest name of a ModelDeployment or ModelCache, in characters.
///
/// The longest child name is `NAME-resolve-` and ten hexadecimal digits, and a Job's name is also a label value (63).
pub const MAX_NAME_LENGTH: usize = 44;

//! Every condition type and every reason that a status can carry.
//!
//! Reasons are part of the API: alerts and scripts match them, so they are never renamed, only added.

use std::fmt;

/// A condition of a ModelDeployment or a ModelCache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// This revision's replicas are all ready (ModelDeployment); the weights are there (ModelCache).
    Ready,
    /// Card, variant, hub and architecture are found and runnable.
    ModelResolved,
    /// Every file is there and verified at this commit.
    WeightsCached,
    /// Every replica has, or could have, a node.
    Schedulable,
    /// No pod is failing.
    RuntimeHealthy,
    /// At least one replica of any revision answers.
    Available,
    /// The hub named a commit and a size (ModelCache).
    Resolved,
    /// Every file is there and verified (ModelCache).
    Fetched,
    /// Not there yet, and it may come by itself. Present only while true.
    Reconciling,
    /// Not there, and somebody has to act. Present only while true.
    Stalled,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Why a condition has its status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason, in the order in which a ModelDeployment can meet them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable word that stands in the status.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

reasons! {
    /// The condition is true.
    Succeeded,
    /// All replicas of this revision are ready.
    AllReplicasReady,
    /// `replicas` is 0: nothing runs and the weights are kept.
    Suspended,
    /// The operator has not come that far yet.
    Waiting,
    /// The ModelCard does not exist.
    CardNotFound,
    /// The selection leaves more than one variant.
    VariantAmbiguous,
    /// The selection leaves no variant.
    VariantNotFound,
    /// The variant is not offered on the chosen hub.
    HubNotOffered,
    /// No runtime can run this format or architecture.
    RuntimeUnsupported,
    /// A limit is higher than what the model offers.
    LimitExceedsModel,
    /// A value of the spec is not usable, although the schema accepts it.
    InvalidSpec,
    /// A child's name is taken by an object that is not ours.
    NameConflict,
    /// The hub is being asked for commit and size.
    Resolving,
    /// The weights are being fetched.
    Fetching,
    /// The volume is not bound yet.
    ClaimPending,
    /// The hub asked to slow down.
    HubRateLimited,
    /// The hub does not answer.
    HubUnreachable,
    /// The licence of the repository is not accepted for this token (403).
    LicenceNotAccepted,
    /// The hub wants a token and got none or a wrong one (401).
    CredentialsMissing,
    /// The hub does not know the repository, the revision or the file (404).
    NotFoundOnHub,
    /// A file's bytes are not what the hub announced.
    DigestMismatch,
    /// The volume is too small.
    StorageFull,
    /// The StorageClass does not exist, or none is the default.
    StorageClassMissing,
    /// The named ModelCache holds other weights.
    CacheMismatch,
    /// The named ModelCache does not exist.
    CacheNotFound,
    /// The named claim does not exist.
    ClaimNotFound,
    /// The hub source cannot be used as written.
    InvalidSource,
    /// Pods are being created or are loading the model.
    Starting,
    /// Pods of an older revision are being replaced.
    RollingOut,
    /// The scheduler found no node, for a reason that none of the others names.
    Unschedulable,
    /// Every accelerator of that kind is taken.
    InsufficientGpu,
    /// No node has enough CPU or memory left.
    InsufficientResources,
    /// Labels, taints or affinity leave no node.
    NoNodeMatches,
    /// One replica asks for more than the largest node has.
    TooLargeForAnyNode,
    /// The volume of the weights cannot be used on any node that would do.
    VolumeAffinityConflict,
    /// A scheduling gate holds the pods back, such as a queue's.
    Gated,
    /// A ResourceQuota leaves no room for the pods.
    QuotaExceeded,
    /// A policy or an admission plugin refused the pods.
    PodsRefused,
    /// The container image cannot be pulled.
    ImagePullFailed,
    /// The container ends again and again.
    CrashLooping,
    /// The container was ended for using too much memory.
    OutOfMemory,
    /// The runtime could not load the weights.
    LoadFailed,
    /// A probe fails.
    ProbeFailing,
    /// An accelerator was asked for, and the weights are in main memory.
    WrongDevice,
    /// The accelerator failed while the model ran on it, and the pod starts again.
    DeviceLost,
    /// The revision was not ready in time.
    DeadlineExceeded,
    /// The revision was not ready in time, and the last one that was ready serves again.
    RolledBack,
    /// No replica answers.
    NoReadyReplica,
    /// At least one replica answers.
    Answering,
    /// The API server refused an object that the operator wanted to make.
    Refused,
    /// The namespace is being deleted, and the API server takes nothing new in it.
    NamespaceTerminating,
}

impl ConditionType {
    /// The word that stands in the status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::ModelResolved => "ModelResolved",
            Self::WeightsCached => "WeightsCached",
            Self::Schedulable => "Schedulable",
            Self::RuntimeHealthy => "RuntimeHealthy",
            Self::Available => "Available",
            Self::Resolved => "Resolved",
            Self::Fetched => "Fetched",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
        }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Reason {
    /// Whether it stays so until a person or another program acts.
    ///
    /// Hubs that answer again and nodes that come are waited for; a wrong name or a full volume is not.
    #[must_use]
    pub fn needs_a_person(self) -> bool {
        match self {
            Self::CardNotFound
            | Self::VariantAmbiguous
            | Self::VariantNotFound
            | Self::HubNotOffered
            | Self::RuntimeUnsupported
            | Self::LimitExceedsModel
            | Self::InvalidSpec
            | Self::NameConflict
            | Self::LicenceNotAccepted
            | Self::CredentialsMissing
            | Self::NotFoundOnHub
            | Self::DigestMismatch
            | Self::StorageFull
            | Self::StorageClassMissing
            | Self::CacheMismatch
            | Self::CacheNotFound
            | Self::ClaimNotFound
            | Self::InvalidSource
            | Self::WrongDevice
            | Self::DeadlineExceeded
            | Self::RolledBack
            | Self::Refused => true,
            Self::Succeeded
            | Self::AllReplicasReady
            | Self::Suspended
            | Self::Waiting
            | Self::Resolving
            | Self::Fetching
            | Self::ClaimPending
            | Self::HubRateLimited
            | Self::HubUnreachable
            | Self::Starting
            | Self::RollingOut
            | Self::Unschedulable
            | Self::InsufficientGpu
            | Self::InsufficientResources
            | Self::NoNodeMatches
            | Self::TooLargeForAnyNode
            | Self::VolumeAffinityConflict
            | Self::Gated
            | Self::QuotaExceeded
            | Self::PodsRefused
            | Self::ImagePullFailed
            | Self::CrashLooping
            | Self::OutOfMemory
            | Self::LoadFailed
            | Self::DeviceLost
            | Self::ProbeFailing
            | Self::NoReadyReplica
            | Self::Answering
            | Self::NamespaceTerminating => false,
        }
    }

    /// The reason that the runtime names in a termination message, where it is one that a Job may give.
    ///
    /// The list is the contract's; anything else is not trusted into the status.
    #[must_use]
    pub fn from_job(word: &str) -> Option<Self> {
        [
            Self::NotFoundOnHub,
            Self::CredentialsMissing,
            Self::LicenceNotAccepted,
            Self::HubRateLimited,
            Self::HubUnreachable,
            Self::DigestMismatch,
            Self::StorageFull,
            Self::RuntimeUnsupported,
            Self::InvalidSource,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == word)
    }

    /// The reason that a serving runtime names in `/status` or a termination message, where it is one that it may give.
    #[must_use]
    pub fn from_serve(word: &str) -> Option<Self> {
        [Self::LoadFailed, Self::DeviceLost]
            .into_iter()
            .find(|reason| reason.as_str() == word)
    }
}

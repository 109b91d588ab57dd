//! The built-in ModelCards, applied when the operator starts.
//!
//! A Helm release cannot bring a kind and its objects in one go, so the operator does.

use crate::api::ModelCard;
use crate::kubernetes::{Cluster, ClusterError};

const FILES: [&str; 2] = [
    include_str!("../cards/llama-3.2-vision-instruct.yaml"),
    include_str!("../cards/smollm2-135m-instruct.yaml"),
];

/// The cards as written.
///
/// # Errors
///
/// When a card cannot be read; a test reads them all.
pub fn builtin() -> Result<Vec<ModelCard>, serde_saphyr::Error> {
    FILES
        .iter()
        .map(|text| {
            let mut card: ModelCard = serde_saphyr::from_str(text)?;
            card.metadata.labels.get_or_insert_default().insert(
                crate::child::MANAGED_BY.to_owned(),
                crate::child::MANAGER.to_owned(),
            );
            Ok(card)
        })
        .collect()
}

/// Applies every card.
///
/// # Errors
///
/// When the API server refuses one or does not answer.
pub async fn apply(cluster: &Cluster, cards: &[ModelCard]) -> Result<(), ClusterError> {
    for card in cards {
        cluster.apply_cluster_wide(card).await?;
    }
    Ok(())
}

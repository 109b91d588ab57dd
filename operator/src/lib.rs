//! The operator of Chandler: it turns one ModelDeployment into an endpoint that answers.

pub mod api;
pub mod crd;

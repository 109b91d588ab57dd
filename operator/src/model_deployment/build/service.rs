//! The Service in front of the pods. Pure.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::container::HTTP_PORT_NAME;
use crate::api::ModelDeployment;
use crate::child::{self, Family};

/// Builds the Service: same name as the ModelDeployment, port 80 unless the spec says otherwise.
#[must_use]
pub fn build_service(object: &ModelDeployment) -> Service {
    let name = object.name_any();
    let wanted = object.spec.service.clone().unwrap_or_default();
    let labels = child::labels(Family::Deployment, &name, "serve");
    let mut metadata = child::owned_meta(object, name.clone(), labels);
    metadata.annotations = (!wanted.annotations.is_empty()).then_some(wanted.annotations);
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(wanted.kind.as_str().to_owned()),
            selector: Some(child::identity(Family::Deployment, &name, "serve")),
            ports: Some(vec![ServicePort {
                name: Some(HTTP_PORT_NAME.to_owned()),
                port: wanted.port,
                target_port: Some(IntOrString::String(HTTP_PORT_NAME.to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Base address of the OpenAI API inside the cluster. The cluster's own domain is left to the resolver: not every cluster's is cluster.local.
#[must_use]
pub fn endpoint(object: &ModelDeployment) -> String {
    let port = object.spec.service.clone().unwrap_or_default().port;
    let namespace = object.namespace().unwrap_or_default();
    format!("http://{}.{namespace}.svc:{port}/v1", object.name_any())
}

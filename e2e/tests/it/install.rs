//! The chart installs, with nothing but its own permissions.

use std::time::Duration;

use anyhow::ensure;
use chandler_e2e::cluster::{DEPLOYMENT, MODEL_CARD, NAMESPACE, names};
use chandler_e2e::operator;
use chandler_e2e::story::{Company, story};
use chandler_e2e::wait::{Seen, until};

#[test]
fn the_chart_installs_under_restricted_pod_security_and_its_cards_appear() {
    story("install", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        operator::check_installed().await?;
        let namespace = cluster.get(NAMESPACE, "", operator::NAMESPACE).await?;
        let enforced = &namespace.unwrap_or_default()["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
        ensure!(enforced == "restricted", "enforced is {enforced}");
        let deployment = cluster
            .get(DEPLOYMENT, operator::NAMESPACE, operator::RELEASE)
            .await?
            .unwrap_or_default();
        let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
        ensure!(
            image == story.world.images.operator.reference().as_str(),
            "the operator's image is {image}"
        );
        let wanted = ["llama-3.2-vision-instruct", "smollm2-135m-instruct"];
        until(Duration::from_secs(30), "the built-in cards", async || {
            let cards = names(&cluster.list(MODEL_CARD, "", "").await?);
            let has_all = wanted
                .iter()
                .all(|card| cards.iter().any(|name| name == card));
            Ok(Seen::when(has_all, || format!("{cards:?}")))
        })
        .await
    });
}

#[test]
fn the_operator_may_read_no_secret_and_no_log() {
    story("permissions", Company::Welcome, async |story| {
        for (verb, resource) in [
            ("get", "secrets"),
            ("list", "secrets"),
            ("get", "pods/log"),
            ("create", "pods/exec"),
            ("delete", "modeldeployments.chandler.dev"),
            ("patch", "modeldeployments.chandler.dev"),
            ("delete", "namespaces"),
            ("get", "nodes/proxy"),
        ] {
            ensure!(
                !operator::may(verb, resource, &story.namespace).await,
                "the operator may {verb} {resource}"
            );
        }
        ensure!(
            operator::may("patch", "deployments.apps", &story.namespace).await,
            "the check itself does not work: the operator may not patch Deployments"
        );
        Ok(())
    });
}

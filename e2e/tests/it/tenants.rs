//! Several teams on one cluster: what each may write, what its objects may name, and what nobody deletes by mistake.
//!
//! The chart's policy for tenants holds the namespaces with the label of `e2e/chart-values.yaml`, so no other story meets it.

use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::cluster::{MODEL_CACHE, MODEL_DEPLOYMENT, names};
use chandler_e2e::model::{self, NAME};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::{run, run_with_input};
use chandler_e2e::wait::{Seen, until};
use chandler_e2e::{hub_pod, namespace, operator};
use kube::api::PostParams;
use serde_json::{Value, json};

/// Controllers of the cluster pass on labels and roles in moments.
const WITHIN: Duration = Duration::from_secs(30);

const ENDPOINTS: &[&str] = &[
    hub_pod::ENDPOINT,
    "https://hub.example.com",
    "https://hub.example.com/",
    "https://hub.example.com/a/b.c",
    "https://mirror.example.com:8443/hub",
];

const EVIL_ENDPOINTS: &[&str] = &[
    "https://evil.example.com",
    "https://hub.example.com.evil.example.com",
    "https://hub.example.com@evil.example.com",
    "https://hub.example.com:x@evil.example.com/",
    r"https://hub.example.com\@evil.example.com",
    "https://someone@hub.example.com",
    "https://HUB.example.com",
    "https://hub.example.com:8443",
    "http://hub.example.com",
    "https://evil.example.com/https://hub.example.com",
    "https://mirror.example.com:8443/hubs",
    "https://mirror.example.com:8443/hub/../other",
    "https://mirror.example.com:8443/hub/%2e%2e/other",
    r"https://mirror.example.com:8443/hub/..\other",
    "https://mirror.example.com:8443/other",
];

const IMAGES: &[&str] = &[
    "registry.example.com/runtime:v1",
    "registry.example.com/team/runtime@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "other.example.com/team:v1",
    "other.example.com/team/runtime",
];

const EVIL_IMAGES: &[&str] = &[
    "evil.example.com/runtime",
    "runtime:v1",
    "registry.example.com.evil.example.com/runtime",
    // An image of this name and tag in the registry that the node takes by default.
    "registry.example.com:5000",
    "registry.example.com:5000/runtime",
    "REGISTRY.example.com/runtime",
    "other.example.com/teams/runtime",
    "other.example.com/team/../runtime",
    "other.example.com/runtime",
];

#[test]
fn a_tenant_names_only_the_hubs_images_and_accounts_that_it_may() {
    story("tenants", Company::Welcome, async |story| {
        let evil = deployment("weights", json!({ "endpoint": EVIL_ENDPOINTS[0] }));
        try_to_create(story, &evil).await.map_err(|error| {
            error.context("a namespace without the label is held to the policy")
        })?;
        let space = story.namespace.as_str();
        run(
            "kubectl",
            &[
                "label",
                "namespace",
                space,
                "chandler.dev/story-tenant=true",
            ],
        )
        .await?;
        until(WITHIN, "the policy to hold the namespace", async || {
            let refused = try_to_create(story, &evil).await.is_err();
            Ok(Seen::when(refused, || "accepted".to_owned()))
        })
        .await?;

        let mut wrong = Vec::new();
        let mut expect = async |what: &str, value: &str, object: Value, words: Option<&str>| match (
            words,
            try_to_create(story, &object).await,
        ) {
            (None, Ok(())) => {}
            (None, Err(error)) => wrong.push(format!("{what} {value} was refused: {error:#}")),
            (Some(_), Ok(())) => wrong.push(format!("{what} {value} was accepted")),
            (Some(words), Err(error)) => {
                let said = format!("{error:#}");
                if !said.contains(words) || !said.contains(value) {
                    wrong.push(format!(
                        "{what} {value}: wanted \"{words}\", but it was: {said}"
                    ));
                }
            }
        };
        let hub = format!(
            "is no hub that namespace {space} may use; leave it out, or begin it exactly with one of: http"
        );
        let image = format!(
            "is no image that namespace {space} may run; leave it out, or take one from: registry.example.com, other.example.com/team"
        );
        let account = format!(
            "is no ServiceAccount that models in namespace {space} may run as; leave it out, or take one of: default"
        );
        let endpoints = ENDPOINTS.iter().map(|value| (value, None));
        let evil_endpoints = EVIL_ENDPOINTS
            .iter()
            .map(|value| (value, Some(hub.as_str())));
        for (value, words) in endpoints.chain(evil_endpoints) {
            let object = deployment("weights", json!({ "endpoint": value }));
            expect("spec.weights.endpoint", value, object, words).await;
            expect("spec.source.hub.endpoint", value, cache(value), words).await;
        }
        let images = IMAGES.iter().map(|value| (value, None));
        let evil_images = EVIL_IMAGES
            .iter()
            .map(|value| (value, Some(image.as_str())));
        for (value, words) in images.chain(evil_images) {
            let object = deployment("runtime", json!({ "image": value }));
            expect("spec.runtime.image", value, object, words).await;
        }
        for (value, words) in [("default", None), ("powerful", Some(account.as_str()))] {
            let object = deployment("pod", json!({ "serviceAccountName": value }));
            expect("spec.pod.serviceAccountName", value, object, words).await;
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        policies_fit_the_definitions().await
    });
}

#[test]
fn a_role_in_one_namespace_reaches_no_other_and_no_card() {
    story("roles", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        let (here, there) = (
            story.namespace.clone(),
            format!("{}-other", story.namespace),
        );
        namespace::gone(cluster, &there).await?;
        namespace::make(cluster, &there, "roles-other").await?;
        for role in ["view", "edit", "admin"] {
            let (clusterrole, user) = (format!("--clusterrole={role}"), format!("--user={role}"));
            run(
                "kubectl",
                &[
                    "create",
                    "rolebinding",
                    role,
                    &clusterrole,
                    &user,
                    "-n",
                    &here,
                ],
            )
            .await?;
        }
        // The cluster adds our rights to its roles by itself, a moment after the chart was installed.
        until(WITHIN, "the roles to be bound", async || {
            let asked = [
                "auth",
                "can-i",
                "create",
                "modeldeployments.chandler.dev",
                "--as=admin",
                "-n",
                &here,
            ];
            let may = run("kubectl", &asked).await.is_ok();
            Ok(Seen::when(may, || "no".to_owned()))
        })
        .await?;

        let object = deployment("replicas", json!(0)).to_string();
        let card = json!({
            "apiVersion": "chandler.dev/v1alpha1", "kind": "ModelCard", "metadata": { "name": here },
            "spec": model::deployment("org/model")["spec"]["model"]["inline"],
        })
        .to_string();
        let as_user = async |user: &str, space: &str, arguments: &[&str], input: &str| {
            let user = format!("--as={user}");
            let arguments = [arguments, &[user.as_str(), "-n", space]].concat();
            run_with_input("kubectl", &arguments, input).await
        };
        let refused = |words: &str, outcome: Result<String>| {
            let said = outcome.map_or_else(
                |error| format!("{error:#}"),
                |said| format!("it was allowed: {said}"),
            );
            ensure!(said.contains(words), "wanted \"{words}\", but: {said}");
            Ok(())
        };
        let create = &["create", "-f", "-"][..];
        let (target, scale) = (
            format!("modeldeployments.chandler.dev/{NAME}"),
            "--replicas=2",
        );

        as_user("edit", &here, create, &object).await?;
        as_user("edit", &here, &["scale", &target, scale], "").await?;
        let found = cluster
            .get(MODEL_DEPLOYMENT, &here, NAME)
            .await?
            .unwrap_or_default();
        ensure!(
            found["spec"]["replicas"] == 2,
            "{}",
            found["spec"]["replicas"]
        );
        refused(
            "cannot create resource \"modeldeployments\"",
            as_user("edit", &there, create, &object).await,
        )?;
        refused(
            "cannot create resource \"modelcards\"",
            as_user("edit", &here, create, &card).await,
        )?;
        refused(
            "cannot create resource \"modelcards\"",
            as_user("admin", &here, create, &card).await,
        )?;

        as_user("view", &here, &["get", &target], "").await?;
        as_user("view", &here, &["get", "modelcaches.chandler.dev"], "").await?;
        refused(
            "cannot get resource \"modeldeployments\"",
            as_user("view", &there, &["get", &target], "").await,
        )?;
        refused(
            "cannot create resource \"modeldeployments\"",
            as_user("view", &here, create, &object).await,
        )?;
        refused(
            "cannot patch resource \"modeldeployments/scale\"",
            as_user("view", &here, &["scale", &target, scale], "").await,
        )?;
        refused(
            "cannot delete resource \"modeldeployments\"",
            as_user("view", &here, &["delete", &target], "").await,
        )?;
        // Who may see everything sees the catalog too.
        let catalog = format!("{here}-catalog");
        run(
            "kubectl",
            &[
                "create",
                "clusterrolebinding",
                &catalog,
                "--clusterrole=view",
                "--user=auditor",
            ],
        )
        .await?;
        let listed = as_user("auditor", &here, &["get", "modelcards.chandler.dev"], "").await;
        run("kubectl", &["delete", "clusterrolebinding", &catalog]).await?;
        listed?;

        as_user("edit", &here, &["delete", &target], "").await?;
        namespace::gone(cluster, &there).await
    });
}

#[test]
fn weights_in_use_are_not_deleted_unless_their_namespace_goes() {
    story("in-use", Company::Welcome, async |story| {
        let (cluster, space) = (&story.world.cluster, story.namespace.as_str());
        story.deploy().await?;
        let cache = used_cache(story).await?;
        let delete = ["delete", "modelcaches.chandler.dev", &cache, "-n", space];
        let said = match run("kubectl", &delete).await {
            Ok(_) => "it was deleted".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        let words = format!(
            "ModelCache {space}/{cache} is in use by ModelDeployment {NAME}; delete it first, or give it other weights"
        );
        ensure!(said.contains(&words), "wanted \"{words}\", but: {said}");

        cluster.delete(MODEL_DEPLOYMENT, space, NAME).await?;
        until(WITHIN, "the cache to be without users", async || {
            let found = cluster
                .get(MODEL_CACHE, space, &cache)
                .await?
                .unwrap_or_default();
            let users = &found["status"]["usedBy"];
            Ok(Seen::when(users.is_null(), || users.to_string()))
        })
        .await?;
        run("kubectl", &delete).await?;

        story.deploy().await?;
        used_cache(story).await?;
        namespace::gone(cluster, space).await
    });
}

#[test]
fn a_list_of_namespaces_bounds_the_operators_rights() {
    story("listed", Company::Welcome, async |story| {
        let space = story.namespace.as_str();
        let namespaces = format!("namespaces={{{space}}}");
        // A release that has rights and no operator.
        let rendering = [
            "template",
            "listed",
            "charts/chandler",
            "-n",
            space,
            "--set",
            &namespaces,
            "--show-only=templates/operator-clusterrole.yaml",
            "--show-only=templates/operator-roles.yaml",
            "--show-only=templates/operator-serviceaccount.yaml",
        ];
        let manifests = run("helm", &rendering).await?;
        run_with_input("kubectl", &["apply", "-f", "-"], &manifests).await?;
        let outcome = bounded(space).await;
        run_with_input("kubectl", &["delete", "-f", "-"], &manifests).await?;
        outcome
    });
}

async fn bounded(space: &str) -> Result<()> {
    let user = format!("--as=system:serviceaccount:{space}:listed-chandler");
    let may = async |verb: &str, resource: &str, scope: &str| {
        let arguments = ["auth", "can-i", verb, resource, &user, scope];
        run("kubectl", &arguments).await.is_ok()
    };
    let (here, there) = (format!("-n={space}"), format!("-n={}", operator::NAMESPACE));
    for (verb, resource) in [
        ("list", "modeldeployments.chandler.dev"),
        ("patch", "modelcaches.chandler.dev"),
        ("patch", "deployments.apps"),
        ("create", "jobs.batch"),
        ("list", "pods"),
    ] {
        ensure!(
            may(verb, resource, &here).await,
            "it may not {verb} {resource} in a namespace of its list"
        );
        for scope in [there.as_str(), "--all-namespaces"] {
            ensure!(
                !may(verb, resource, scope).await,
                "it may {verb} {resource} with {scope}"
            );
        }
    }
    for resource in [
        "modelcards.chandler.dev",
        "nodes",
        "storageclasses.storage.k8s.io",
    ] {
        ensure!(
            may("list", resource, "--all-namespaces").await,
            "it may not list {resource}"
        );
    }
    Ok(())
}

/// Name of the story's cache, once its status says who uses it.
async fn used_cache(story: &Story) -> Result<String> {
    until(model::READY_WITHIN, "a cache that is in use", async || {
        let found = story
            .world
            .cluster
            .list(MODEL_CACHE, &story.namespace, "")
            .await?;
        let used = found
            .iter()
            .find(|cache| cache["status"]["usedBy"] == json!([NAME]));
        Ok(match used {
            Some(cache) => Seen::Yes(
                cache["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            ),
            None => Seen::NotYet(format!("{:?}", names(&found))),
        })
    })
    .await
}

/// The story's ModelDeployment with one field of its spec set.
fn deployment(field: &str, value: Value) -> Value {
    let mut object = model::deployment("org/model");
    object["apiVersion"] = "chandler.dev/v1alpha1".into();
    object["kind"] = "ModelDeployment".into();
    object["spec"][field] = value;
    object
}

fn cache(endpoint: &str) -> Value {
    json!({
        "apiVersion": "chandler.dev/v1alpha1", "kind": "ModelCache", "metadata": { "name": "weights" },
        "spec": { "source": { "hub": { "id": "org/model", "endpoint": endpoint } } },
    })
}

/// Shows an object to the API server, which then keeps nothing.
async fn try_to_create(story: &Story, object: &Value) -> Result<()> {
    let kind = if object["kind"] == "ModelCache" {
        MODEL_CACHE
    } else {
        MODEL_DEPLOYMENT
    };
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let object = serde_json::from_value(object.clone())?;
    let api = story.world.cluster.api(kind, &story.namespace);
    api.create(&params, &object).await?;
    Ok(())
}

/// The API server checks the policies' expressions against the definitions, and says in their status what does not fit.
async fn policies_fit_the_definitions() -> Result<()> {
    let arguments = [
        "get",
        "validatingadmissionpolicies",
        "-l",
        "app.kubernetes.io/part-of=chandler",
        "-o",
        "json",
    ];
    let found: Value = serde_json::from_str(&run("kubectl", &arguments).await?)?;
    let policies = found["items"].as_array().cloned().unwrap_or_default();
    ensure!(policies.len() == 3, "{} policies", policies.len());
    for policy in policies {
        let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
        ensure!(
            warnings.is_null(),
            "{}: {warnings}",
            policy["metadata"]["name"]
        );
    }
    Ok(())
}

//! What is in the images of `make images`. No cluster is needed.

use anyhow::{Context, Result, ensure};
use chandler_e2e::images::{Image, Images};
use chandler_e2e::story::without_cluster;
use chandler_e2e::tools::run;
use serde_json::Value;

/// Where every TLS library looks first.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

fn archive(image: &Image) -> Result<&str> {
    image.archive.to_str().context("a path is not text")
}

/// One blob of the archive, as JSON.
async fn blob(image: &Image, digest: &str) -> Result<Value> {
    let path = format!("blobs/{}", digest.replace(':', "/"));
    let text = run("tar", &["-xOf", archive(image)?, &path]).await?;
    Ok(serde_json::from_str(&text)?)
}

/// The paths in all layers.
async fn paths(image: &Image, manifest: &Value) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let digest = layer["digest"].as_str().context("a layer without digest")?;
        let list = "tar -xOf \"$1\" \"blobs/${2/://}\" | tar -tz";
        let listed = run("bash", &["-c", list, "list", archive(image)?, digest]).await?;
        paths.extend(
            listed
                .lines()
                .map(|path| path.trim_start_matches('/').to_owned()),
        );
    }
    Ok(paths)
}

#[test]
fn images_hold_one_program_and_certificates_run_as_nobody_and_say_where_they_come_from() {
    without_cluster(async {
        let images = Images::read()?;
        for (image, program) in [
            (&images.operator, "chandler-operator"),
            (&images.runtime, "chandler-runtime"),
        ] {
            let manifest = blob(image, &image.digest).await?;
            let digest = manifest["config"]["digest"]
                .as_str()
                .context("no configuration")?;
            let config = blob(image, digest).await?;
            ensure!(
                config["architecture"] == "amd64" && config["os"] == "linux",
                "{config}"
            );
            let run_as = &config["config"];
            ensure!(run_as["User"] == "65532:65532", "{run_as}");
            ensure!(
                run_as["Entrypoint"] == serde_json::json!([format!("/usr/bin/{program}")]),
                "{run_as}"
            );
            let label = |name: &str| {
                let key = format!("org.opencontainers.image.{name}");
                run_as["Labels"][&key]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            for name in ["title", "description", "version", "created"] {
                ensure!(
                    !label(name).is_empty(),
                    "{program} has no label {name}: {run_as}"
                );
            }
            ensure!(label("licenses") == "Apache-2.0", "{run_as}");
            let revision = label("revision");
            let commit = revision.trim_end_matches("-dirty");
            ensure!(
                commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{program} says no commit: {run_as}"
            );
            let paths = paths(image, &manifest).await?;
            let files: Vec<&str> = paths
                .iter()
                .map(String::as_str)
                .filter(|path| !path.ends_with('/'))
                .collect();
            let wanted = format!("usr/bin/{program}");
            ensure!(files.contains(&wanted.as_str()), "{files:?}");
            ensure!(
                files.contains(&CERTIFICATES),
                "{program} has no certificates: {files:?}"
            );
            ensure!(
                !files
                    .iter()
                    .any(|path| path.contains("bin/sh") || path.contains("lib/")),
                "{program}'s image holds more than it needs: {files:?}"
            );
        }
        Ok(())
    });
}

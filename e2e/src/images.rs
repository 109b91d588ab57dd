//! Names and archives of the images, as `hack/images` wrote them down.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::tools::checkout;

/// One image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Registry, folder and name, such as `chandler.dev/chandler-operator`.
    pub name: String,
    /// A tag that changes with the contents.
    pub tag: String,
    /// The workspace's version, under which the same image goes too.
    pub version: String,
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// The OCI archive.
    pub archive: PathBuf,
}

impl Image {
    /// `NAME:TAG`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }
}

/// All images of a run.
#[derive(Debug, Clone)]
pub struct Images {
    /// `chandler-operator`.
    pub operator: Image,
    /// `chandler-runtime`.
    pub runtime: Image,
    /// `chandler-runtime-cuda`, where it was built: it is not by default.
    pub runtime_cuda: Option<Image>,
    /// `hub-stand-in`, with the demo model inside.
    pub hub: Image,
}

impl Images {
    /// Reads `build/images/images.env`, or the file that `CHANDLER_IMAGES` names.
    ///
    /// # Errors
    /// When it is not there or lacks an image.
    pub fn read() -> Result<Self> {
        let path = std::env::var_os("CHANDLER_IMAGES")
            .map_or_else(|| checkout().join("build/images/images.env"), PathBuf::from);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}; run `make images`", path.display()))?;
        let values: HashMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let image = |prefix: &str| {
            let value = |key: &str| {
                values
                    .get(format!("{prefix}_{key}").as_str())
                    .map(|value| (*value).to_owned())
                    .with_context(|| format!("{} lacks {prefix}_{key}", path.display()))
            };
            Ok::<_, anyhow::Error>(Image {
                name: value("NAME")?,
                tag: value("TAG")?,
                version: value("VERSION")?,
                digest: value("DIGEST")?,
                archive: checkout().join(value("ARCHIVE")?),
            })
        };
        Ok(Self {
            operator: image("OPERATOR")?,
            runtime: image("RUNTIME")?,
            runtime_cuda: values
                .contains_key("RUNTIME_CUDA_NAME")
                .then(|| image("RUNTIME_CUDA"))
                .transpose()?,
            hub: image("HUB")?,
        })
    }
}

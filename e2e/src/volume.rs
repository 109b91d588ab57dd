//! Volumes that a story makes by hand: one that is too small and can grow, and one that every node may mount.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::{CLAIM, Cluster, MODEL_CACHE, PERSISTENT_VOLUME};
use crate::tools::run;

/// The cluster's state, which its node sees under the same path.
fn state() -> Result<PathBuf> {
    let kubeconfig = PathBuf::from(std::env::var("KUBECONFIG")?);
    let folder = kubeconfig
        .parent()
        .context("KUBECONFIG names no file in a folder")?;
    Ok(folder.to_owned())
}

/// Memory of the cluster's node, mounted for as long as this value lives.
#[derive(Debug)]
pub struct NodeMemory {
    /// The node's first process: its mounts are the node's.
    node: String,
    /// Where it is mounted, as the node sees it.
    pub path: PathBuf,
}

impl NodeMemory {
    /// Mounts so much memory on the node, such as `20m`, for everybody to write to.
    ///
    /// # Errors
    /// When the cluster's node is not on this machine, or the mount fails.
    pub async fn mount(name: &str, size: &str) -> Result<Self> {
        let state = state()?;
        let lock = state.join("node.lock");
        let node = std::fs::read_to_string(&lock).with_context(|| {
            format!(
                "no node of the cluster on this machine: cannot read {}",
                lock.display()
            )
        })?;
        let memory = Self {
            node: node.trim().to_owned(),
            path: state.join("data").join(name),
        };
        std::fs::create_dir_all(&memory.path)?;
        let options = format!("mode=0777,size={size}");
        memory
            .mounting(&["--types=tmpfs", &format!("--options={options}"), "tmpfs"])
            .await?;
        Ok(memory)
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// When the mount fails.
    pub async fn resize(&self, size: &str) -> Result<()> {
        self.mounting(&[&format!("--options=remount,size={size}")])
            .await
    }

    /// A new folder on it that everybody may write to, as processes of this machine see it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.strip_prefix("/")?;
        let folder = Path::new("/proc")
            .join(&self.node)
            .join("root")
            .join(path)
            .join(name);
        std::fs::create_dir(&folder)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
        Ok(folder)
    }

    async fn mounting(&self, arguments: &[&str]) -> Result<()> {
        let path = self.path.to_string_lossy();
        let target = self.target();
        let all = [
            &["--mount", "--pid", &target, "--", "mount"],
            arguments,
            &[&path],
        ]
        .concat();
        run("nsenter", &all).await?;
        Ok(())
    }

    fn target(&self) -> String {
        format!("--target={}", self.node)
    }
}

impl Drop for NodeMemory {
    fn drop(&mut self) {
        // Pods that are still leaving keep what they have mounted.
        let ended = Command::new("nsenter")
            // With the node's processes, too: umount looks at its own in the node's /proc.
            .args(["--mount", "--pid", &self.target(), "--", "umount", "--lazy"])
            .arg(&self.path)
            .status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted on the node", self.path.display());
        }
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// A volume in a folder of the node, which says that it is large enough for anything.
#[must_use]
pub fn in_folder(name: &str, class: &str, mode: &str, folder: &Path) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "capacity": { "storage": "1Gi" },
            "accessModes": [mode],
            "storageClassName": class,
            "hostPath": { "path": folder },
        },
    })
}

/// Makes the claim `shared`, which pods on every node may use, and a ModelCache of that name, and gives the name of its volume.
/// What lies there is no model: it is for pods that are played.
///
/// # Errors
/// When the API server refuses.
pub async fn share(cluster: &Cluster, namespace: &str) -> Result<String> {
    let name = format!("{namespace}-shared");
    let folder = state()?.join("data").join(&name);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("model.gguf"), "played")?;
    let mut volume = in_folder(&name, "", "ReadWriteMany", &folder);
    volume["spec"]["claimRef"] = json!({ "namespace": namespace, "name": "shared" });
    remove(&name).await?;
    cluster.apply(PERSISTENT_VOLUME, "", volume).await?;
    let claim = json!({
        "metadata": { "name": "shared" },
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": name,
            "resources": { "requests": { "storage": "1Gi" } },
        },
    });
    cluster.apply(CLAIM, namespace, claim).await?;
    // Without a toleration its Job finds the real node.
    let cache = json!({
        "metadata": { "name": "shared" },
        "spec": { "source": { "claim": { "claimName": "shared" } } },
    });
    cluster.apply(MODEL_CACHE, namespace, cache).await?;
    Ok(name)
}

/// Removes a volume that an earlier run may have left; it belongs to that run's claim for good.
///
/// # Errors
/// When it stays.
pub async fn remove(name: &str) -> Result<()> {
    let arguments = [
        "delete",
        "persistentvolume",
        name,
        "--ignore-not-found",
        "--timeout=60s",
    ];
    run("kubectl", &arguments).await?;
    Ok(())
}

//! Processes of this machine: what one takes of memory and processor time, as the kernel counts them, and how this one ends.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// The kernel's clock ticks a second, the same on every Linux that Kubernetes runs on.
const TICKS: f64 = 100.0;

/// Does the work unless SIGINT or SIGTERM comes: then what it started ends with it instead of going on alone.
///
/// # Errors
/// Those of the work, or that it was ended.
pub async fn unless_ended<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        result = work => result,
        _ = interrupted.recv() => bail!("ended by SIGINT"),
        _ = terminated.recv() => bail!("ended by SIGTERM"),
    }
}

/// A program of the cluster of `KUBECONFIG`, such as its kubelet: the process on this machine whose arguments name the cluster's folder.
///
/// # Errors
/// When there is none on this machine.
pub fn of_cluster(program: &str) -> Result<u32> {
    let kubeconfig = std::env::var("KUBECONFIG")?;
    let (folder, _) = kubeconfig
        .rsplit_once('/')
        .context("KUBECONFIG names no file in a folder")?;
    std::fs::read_dir("/proc")?
        .flatten()
        .find_map(|entry| {
            let process: u32 = entry.file_name().to_str()?.parse().ok()?;
            // A process that ends meanwhile is none.
            let arguments = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            let mut arguments = arguments.split('\0');
            let is_it = arguments.next()?.ends_with(&format!("/{program}"));
            (is_it && arguments.any(|argument| argument.contains(folder))).then_some(process)
        })
        .with_context(|| format!("no {program} of the cluster in {folder} runs on this machine"))
}

/// Megabytes (of 1,000,000 bytes).
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident now.
    pub resident_mb: f64,
    /// Most that ever was.
    pub peak_mb: f64,
}

/// Memory of a process.
///
/// # Errors
/// When there is no such process.
pub fn memory(process: u32) -> Result<Memory> {
    let text = read(process, "status")?;
    let megabytes = |key: &str| -> Result<f64> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .with_context(|| format!("process {process} has no {key}"))?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kibibytes * 1_024.0 / 1e6)
    };
    Ok(Memory {
        resident_mb: megabytes("VmRSS:")?,
        peak_mb: megabytes("VmHWM:")?,
    })
}

/// Processor time that a process has taken so far.
///
/// # Errors
/// When there is no such process.
pub fn processor_time(process: u32) -> Result<Duration> {
    let text = read(process, "stat")?;
    // The second field is the program's name, which may hold anything but ends with the last parenthesis.
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .context("a strange /proc/PID/stat")?
        .1
        .split_whitespace()
        .collect();
    let ticks = |index: usize| -> Result<f64> {
        let field = fields.get(index).context("a short /proc/PID/stat")?;
        Ok(field.parse()?)
    };
    // User and system time, fields 14 and 15 counted from the process's id.
    Ok(Duration::from_secs_f64((ticks(11)? + ticks(12)?) / TICKS))
}

fn read(process: u32, file: &str) -> Result<String> {
    std::fs::read_to_string(format!("/proc/{process}/{file}"))
        .with_context(|| format!("process {process} is gone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_memory_and_time() {
        let process = std::process::id();
        let memory = memory(process).unwrap();
        assert!(memory.resident_mb > 0.0 && memory.resident_mb <= memory.peak_mb);
        processor_time(process).unwrap();
    }
}

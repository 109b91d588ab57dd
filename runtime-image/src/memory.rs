//! Memory that this process may still take, and how much context fits into it.
//!
//! What is left is the least of what the machine says and of what each control group around this process allows, v1 and v2.

use std::path::{Path, PathBuf};

/// Of what is left after weights and buffers, the part that keys and values may take: the rest is for requests and for what
/// the allocator and the kernel keep.
const PART: (u64, u64) = (4, 5);

/// Bytes that may still be taken; absent where the system does not say.
#[must_use]
pub fn available() -> Option<u64> {
    available_under(Path::new("/"))
}

/// The same with another root, so that a test can play any machine.
fn available_under(root: &Path) -> Option<u64> {
    let machine = number_after(&root.join("proc/meminfo"), "MemAvailable:").map(|kib| kib << 10);
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let left = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        match controllers {
            "" => Some(left_in_groups(&root.join("sys/fs/cgroup"), path, &V2)),
            _ if controllers.split(',').any(|name| name == "memory") => Some(left_in_groups(
                &root.join("sys/fs/cgroup/memory"),
                path,
                &V1,
            )),
            _ => None,
        }
    });
    left.flatten().chain(machine).min()
}

/// The names of one version's files.
struct Version {
    limit: &'static str,
    usage: &'static str,
    /// Pages of files that nobody used lately: the kernel takes them back before it refuses memory.
    reclaimable: &'static str,
}

const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};
const V2: Version = Version {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: "inactive_file",
};

/// The least that a group and those around it leave. Inside a container the path may begin outside of what is mounted.
fn left_in_groups(mount: &Path, path: &str, version: &Version) -> Option<u64> {
    let mut folder: PathBuf = mount.join(path.trim_start_matches('/'));
    let mut least: Option<u64> = None;
    loop {
        let read = |name: &str| {
            let text = std::fs::read_to_string(folder.join(name)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        // "max" is no number and no limit.
        if let (Some(limit), Some(usage)) = (read(version.limit), read(version.usage)) {
            let reclaimable =
                number_after(&folder.join("memory.stat"), version.reclaimable).unwrap_or(0);
            let left = limit.saturating_sub(usage.saturating_sub(reclaimable));
            least = Some(least.map_or(left, |least| least.min(left)));
        }
        if folder == mount || !folder.pop() || !folder.starts_with(mount) {
            return least;
        }
    }
}

/// The number that follows a word at the start of a line.
fn number_after(path: &Path, word: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == word).then(|| words.next()?.parse().ok())?
    })
}

/// What a model and the settings ask of memory.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Bytes of packed weights.
    pub weights: u64,
    /// Bytes of one step's buffers.
    pub buffers: u64,
    /// Bytes of one block of keys and values.
    pub block: u64,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Blocks that the pictures of one sequence take beside its tokens.
    pub pictures: usize,
    /// Sequences that run at once.
    pub sequences: usize,
    /// Tokens of prompt and answer together that are wanted.
    pub context: usize,
    /// Whether a shorter context will do.
    pub may_shrink: bool,
}

impl Demand {
    /// The same when weights and buffers are where they belong.
    #[must_use]
    pub fn loaded(&self) -> Self {
        Self {
            weights: 0,
            buffers: 0,
            ..*self
        }
    }
}

/// How the arena is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    /// Blocks of keys and values.
    pub blocks: usize,
    /// Tokens of prompt and answer together that fit.
    pub context: usize,
}

/// The context does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to fit a context of {context} tokens: its keys and values take {} MiB, {} MiB may be taken for them{where_from}; {advice}",
    needed >> 20, budget >> 20
)]
pub struct TooLittle {
    context: usize,
    needed: u64,
    budget: u64,
    where_from: String,
    advice: String,
}

/// Bytes for keys and values of what is left.
#[must_use]
pub fn budget(available: u64, demand: &Demand) -> u64 {
    available.saturating_sub(demand.weights + demand.buffers) / PART.1 * PART.0
}

/// Decides context and blocks. One sequence can always fill the context; more blocks let more of them be long, and keep
/// prefixes.
///
/// # Errors
/// When the context, or any if it may shrink, does not fit.
pub fn plan(demand: &Demand, budget: u64, available: Option<u64>) -> Result<Arena, TooLittle> {
    let blocks_for = |context: usize| context.div_ceil(demand.block_tokens) + 1 + demand.pictures;
    let most = blocks_for(demand.context) * demand.sequences;
    let fitting = usize::try_from(budget / demand.block.max(1)).unwrap_or(usize::MAX);
    let blocks = most.min(fitting);
    let fits = blocks.saturating_sub(1 + demand.pictures) * demand.block_tokens;
    if fits >= demand.context || (demand.may_shrink && fits > 0) {
        return Ok(Arena {
            blocks,
            context: demand.context.min(fits),
        });
    }
    let where_from = available.map_or_else(String::new, |available| {
        format!(
            " ({} MiB are left, of which weights take {} and buffers {})",
            available >> 20,
            demand.weights >> 20,
            demand.buffers >> 20
        )
    });
    let advice = if fits > 0 {
        format!("ask for --context-length {fits} or less, or give more memory")
    } else {
        "give more memory".to_owned()
    };
    Err(TooLittle {
        context: demand.context,
        needed: blocks_for(demand.context) as u64 * demand.block,
        budget,
        where_from,
        advice,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
            std::fs::write(path, text).expect("written");
        }
        available_under(root.path())
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:   4096 kB\n");

    #[test]
    fn the_least_of_machine_and_groups_counts() {
        assert_eq!(play(&[]), None);
        assert_eq!(play(&[MACHINE]), Some(4 << 20));
        let second = play(&[
            MACHINE,
            ("proc/self/cgroup", "0::/pod/serve\n"),
            ("sys/fs/cgroup/pod/memory.max", "2097152\n"),
            ("sys/fs/cgroup/pod/memory.current", "1500000\n"),
            (
                "sys/fs/cgroup/pod/memory.stat",
                "anon 7\ninactive_file 500000\n",
            ),
            ("sys/fs/cgroup/pod/serve/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/serve/memory.current", "1\n"),
        ]);
        assert_eq!(second, Some(2_097_152 - 1_000_000));
        let first = play(&[
            MACHINE,
            ("proc/self/cgroup", "9:cpu:/x\n4:memory:/kubepods/x\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n"),
        ]);
        assert_eq!(first, Some(2_000_000));
    }

    const DEMAND: Demand = Demand {
        weights: 100 << 20,
        buffers: 50 << 20,
        block: 1 << 20,
        block_tokens: 32,
        pictures: 0,
        sequences: 4,
        context: 1_024,
        may_shrink: true,
    };

    #[test]
    fn a_context_shrinks_to_what_fits_or_is_refused_with_the_numbers() {
        let arena = |blocks, context| Ok(Arena { blocks, context });
        assert_eq!(plan(&DEMAND, 500 << 20, None), arena(132, 1_024));
        assert_eq!(plan(&DEMAND, 60 << 20, None), arena(60, 1_024));
        assert_eq!(plan(&DEMAND, 11 << 20, None), arena(11, 320));
        let asked = Demand {
            may_shrink: false,
            ..DEMAND
        };
        let error = plan(&asked, 11 << 20, Some(163 << 20))
            .unwrap_err()
            .to_string();
        for part in [
            "1024 tokens",
            "33 MiB",
            "11 MiB",
            "163 MiB",
            "--context-length 320",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(plan(&DEMAND, 1 << 20, None).is_err());
        let looking = Demand {
            pictures: 50,
            ..DEMAND
        };
        assert_eq!(plan(&looking, 500 << 20, None), arena(332, 1_024));
        assert_eq!(plan(&looking, 61 << 20, None), arena(61, 320));
        assert!(plan(&looking, 51 << 20, None).is_err());
        assert_eq!(budget(200 << 20, &DEMAND), 40 << 20);
        assert_eq!(budget(20 << 20, &DEMAND), 0);
    }
}

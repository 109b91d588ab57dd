//! Which files of a repository are wanted: those that a format needs, or those that patterns name.
//!
//! Pickled weights (`.bin`, `.pth`, `.pt`, `.ckpt`) are never chosen, whatever the patterns say: reading them can run code, and nothing here reads them.

use std::collections::BTreeMap;

use clap::ValueEnum;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use super::listing::{Commit, RemoteFile, RepositoryId, Snapshot, shorten};
use crate::answer::{Failure, Reason};
use crate::manifest::MANIFEST_NAME;

/// More patterns than any repository needs.
const PATTERNS_LIMIT: usize = 64;

/// The longest pattern, in bytes.
const PATTERN_LIMIT: usize = 512;

/// Candidates named in a message; the rest is counted.
const NAMED_LIMIT: usize = 12;

/// How weights are stored, in the words of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One model in one or several `.gguf` files.
    Ggufv2,
    /// A folder of safetensors with configuration and tokenizer.
    Pytorch,
    /// Safetensors, quantized with GPTQ.
    Gptq,
    /// Safetensors, quantized with AWQ.
    Awq,
    /// Safetensors in 8-bit floating point.
    Fp8,
    /// Safetensors in 4-bit floating point.
    Fp4,
    /// Safetensors, quantized with bitsandbytes.
    Bnb,
    /// Safetensors laid out for MLX.
    Mlx,
}

/// Which files are wanted.
#[derive(Debug, Clone)]
pub struct Choice {
    format: Format,
    patterns: Vec<String>,
    wanted: GlobSet,
}

/// No files can be chosen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// A pattern is no glob.
    #[error("the file pattern {pattern:?} is no glob: {why}")]
    Pattern {
        /// The pattern, cut to a length that fits a message.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// Too many patterns.
    #[error("{0} file patterns are given, at most {PATTERNS_LIMIT} make sense")]
    TooManyPatterns(usize),
    /// A pattern that names nothing.
    #[error(
        "no file of {id} at {commit} matches {pattern:?}; the repository has {there}; correct it in `files`"
    )]
    NothingMatches {
        /// The repository.
        id: RepositoryId,
        /// The commit.
        commit: Commit,
        /// The pattern.
        pattern: String,
        /// What could have been meant.
        there: String,
    },
    /// The repository holds no weights of the format.
    #[error(
        "{id} at {commit} has no {missing}, which format {format} needs; it has {there}; choose another variant or repository"
    )]
    NoWeights {
        /// The repository.
        id: RepositoryId,
        /// The commit.
        commit: Commit,
        /// The format.
        format: &'static str,
        /// What it needs.
        missing: &'static str,
        /// What there is.
        there: String,
    },
    /// Weights in pickle files only.
    #[error(
        "{id} at {commit} has its weights only as pickle files ({there}), which can run code when read and are never loaded; choose a repository with safetensors or GGUF"
    )]
    OnlyPickles {
        /// The repository.
        id: RepositoryId,
        /// The commit.
        commit: Commit,
        /// What there is.
        there: String,
    },
    /// More than one model.
    #[error(
        "{count} models of {id} at {commit} match, and exactly one can be served: {there}; name one in `files`"
    )]
    SeveralModels {
        /// The repository.
        id: RepositoryId,
        /// The commit.
        commit: Commit,
        /// How many.
        count: usize,
        /// Which.
        there: String,
    },
    /// A model in parts, of which some are not chosen.
    #[error(
        "{id} at {commit} has {there} parts of {model}, and it says that there are {expected}; choose them all, or another revision"
    )]
    PartsMissing {
        /// The repository.
        id: RepositoryId,
        /// The commit.
        commit: Commit,
        /// The model, as the names of its parts begin.
        model: String,
        /// How many parts were chosen.
        there: usize,
        /// How many there should be.
        expected: u32,
    },
}

impl Format {
    /// The format in the catalog's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ggufv2 => "ggufv2",
            Self::Pytorch => "pytorch",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::Fp8 => "fp8",
            Self::Fp4 => "fp4",
            Self::Bnb => "bnb",
            Self::Mlx => "mlx",
        }
    }
}

impl Choice {
    /// Files for a format, or those that patterns name. `*` reaches over folders, as in the hub's own clients.
    ///
    /// # Errors
    /// When a pattern is no glob.
    pub fn new(format: Format, patterns: Vec<String>) -> Result<Self, ChoiceError> {
        if patterns.len() > PATTERNS_LIMIT {
            return Err(ChoiceError::TooManyPatterns(patterns.len()));
        }
        let defaults = match format {
            Format::Ggufv2 => ["*.gguf"].as_slice(),
            _ => [
                "*.safetensors",
                "*.json",
                "tokenizer.model",
                "*/tokenizer.model",
                "*.jinja",
            ]
            .as_slice(),
        };
        let mut wanted = GlobSetBuilder::new();
        if patterns.is_empty() {
            defaults
                .iter()
                .try_for_each(|pattern| add(&mut wanted, pattern))?;
        } else {
            patterns
                .iter()
                .try_for_each(|pattern| add(&mut wanted, pattern))?;
        }
        let wanted = wanted.build().map_err(|error| ChoiceError::Pattern {
            pattern: shorten(&patterns.join(" ")),
            why: error.to_string(),
        })?;
        Ok(Self {
            format,
            patterns,
            wanted,
        })
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The patterns, as given.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// The wanted files, sorted by path.
    ///
    /// # Errors
    /// When they do not make exactly one model of the format.
    pub fn choose(&self, snapshot: &Snapshot) -> Result<Vec<RemoteFile>, ChoiceError> {
        let mut chosen: Vec<RemoteFile> = snapshot
            .files
            .iter()
            .filter(|file| self.wants(file))
            .cloned()
            .collect();
        chosen.sort_by(|one, other| one.path.cmp(&other.path));
        let (id, commit) = (snapshot.id.clone(), snapshot.commit.clone());
        if let Some(at) = self.unmatched(&chosen) {
            let there = named(snapshot.files.iter().map(|file| file.path.as_str()));
            return Err(ChoiceError::NothingMatches {
                id,
                commit,
                pattern: shorten(&self.patterns[at]),
                there,
            });
        }
        match self.format {
            Format::Ggufv2 => one_gguf_model(&chosen, snapshot)?,
            _ if !chosen.iter().any(|file| ends_with(file, ".safetensors")) => {
                let pickles: Vec<&str> = snapshot
                    .files
                    .iter()
                    .filter(|file| is_pickle(file))
                    .map(|file| file.path.as_str())
                    .collect();
                return Err(if pickles.is_empty() {
                    let there = named(snapshot.files.iter().map(|file| file.path.as_str()));
                    ChoiceError::NoWeights {
                        id,
                        commit,
                        format: self.format.as_str(),
                        missing: "*.safetensors",
                        there,
                    }
                } else {
                    ChoiceError::OnlyPickles {
                        id,
                        commit,
                        there: named(pickles),
                    }
                });
            }
            _ => {}
        }
        Ok(chosen)
    }

    fn wants(&self, file: &RemoteFile) -> bool {
        let path = file.path.as_str();
        if is_pickle(file) || path == MANIFEST_NAME || !self.wanted.is_match(path) {
            return false;
        }
        // Without patterns, what the format does not need stays away: Meta's original weights, and projectors for engines that see.
        let projector = self.format == Format::Ggufv2 && is_projector(file);
        !self.patterns.is_empty() || !(path.starts_with("original/") || projector)
    }

    /// The first pattern that names no chosen file.
    fn unmatched(&self, chosen: &[RemoteFile]) -> Option<usize> {
        if self.patterns.is_empty() {
            return None;
        }
        let mut matched = vec![false; self.patterns.len()];
        for file in chosen {
            for at in self.wanted.matches(file.path.as_str()) {
                matched[at] = true;
            }
        }
        matched.iter().position(|matched| !matched)
    }
}

impl ChoiceError {
    /// The stable word for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NothingMatches { .. } | Self::NoWeights { .. } => Reason::NotFoundOnHub,
            Self::OnlyPickles { .. } => Reason::RuntimeUnsupported,
            Self::Pattern { .. }
            | Self::TooManyPatterns(_)
            | Self::SeveralModels { .. }
            | Self::PartsMissing { .. } => Reason::InvalidSource,
        }
    }
}

impl From<&ChoiceError> for Failure {
    fn from(error: &ChoiceError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

fn add(set: &mut GlobSetBuilder, pattern: &str) -> Result<(), ChoiceError> {
    let refuse = |why: String| ChoiceError::Pattern {
        pattern: shorten(pattern),
        why,
    };
    if pattern.is_empty() || pattern.len() > PATTERN_LIMIT {
        return Err(refuse(format!("it must have 1 to {PATTERN_LIMIT} bytes")));
    }
    let glob = GlobBuilder::new(pattern)
        .literal_separator(false)
        .backslash_escape(true)
        .build()
        .map_err(|error| refuse(error.kind().to_string()))?;
    set.add(glob);
    Ok(())
}

/// Several quantizations in one repository are several models; the parts of one split file are one.
fn one_gguf_model(chosen: &[RemoteFile], snapshot: &Snapshot) -> Result<(), ChoiceError> {
    let (id, commit) = (snapshot.id.clone(), snapshot.commit.clone());
    let mut models: BTreeMap<(&str, u32), usize> = BTreeMap::new();
    for file in chosen
        .iter()
        .filter(|file| ends_with(file, ".gguf") && !is_projector(file))
    {
        *models.entry(part_of(file.path.as_str())).or_default() += 1;
    }
    match models.iter().next() {
        None => {
            let there = named(snapshot.files.iter().map(|file| file.path.as_str()));
            Err(ChoiceError::NoWeights {
                id,
                commit,
                format: Format::Ggufv2.as_str(),
                missing: "*.gguf",
                there,
            })
        }
        Some(_) if models.len() > 1 => {
            let there = named(models.keys().map(|(model, _)| *model));
            Err(ChoiceError::SeveralModels {
                id,
                commit,
                count: models.len(),
                there,
            })
        }
        Some(((model, expected), there)) if *expected as usize != *there => {
            Err(ChoiceError::PartsMissing {
                id,
                commit,
                model: (*model).to_owned(),
                there: *there,
                expected: *expected,
            })
        }
        Some(_) => Ok(()),
    }
}

/// The model that a file belongs to, and how many parts it has: `x-00002-of-00003.gguf` is one of three parts of `x`.
fn part_of(path: &str) -> (&str, u32) {
    let split = || {
        let stem = path.strip_suffix(".gguf")?;
        let (front, count) = stem.rsplit_once("-of-")?;
        let (model, part) = front.rsplit_once('-')?;
        let number = |digits: &str| {
            (digits.len() == 5)
                .then(|| digits.parse::<u32>().ok())
                .flatten()
        };
        number(part)?;
        Some((model, number(count).filter(|count| *count > 0)?))
    };
    split().unwrap_or((path, 1))
}

fn is_projector(file: &RemoteFile) -> bool {
    ends_with(file, ".gguf")
        && file
            .path
            .file_name()
            .to_ascii_lowercase()
            .contains("mmproj")
}

fn is_pickle(file: &RemoteFile) -> bool {
    [".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle"]
        .iter()
        .any(|suffix| ends_with(file, suffix))
}

fn ends_with(file: &RemoteFile, suffix: &str) -> bool {
    file.path.as_str().to_ascii_lowercase().ends_with(suffix)
}

/// The first names, each cut, and how many more there are.
fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter();
    let mut text = names
        .by_ref()
        .take(NAMED_LIMIT)
        .map(shorten)
        .collect::<Vec<_>>()
        .join(", ");
    let more = names.count();
    if text.is_empty() {
        text.push_str("no files");
    }
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::listing::RepoPath;

    fn check(format: Format, patterns: &[&str], there: &[&str], expected: Result<&[&str], Reason>) {
        let files = there
            .iter()
            .map(|path| RemoteFile {
                path: RepoPath::parse(path).unwrap(),
                size: Some(1),
                digest: None,
            })
            .collect();
        let snapshot = Snapshot::new(
            RepositoryId::parse("o/n").unwrap(),
            Commit::parse(&"0".repeat(40)).unwrap(),
            files,
        )
        .unwrap();
        let chosen = Choice::new(
            format,
            patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
        )
        .and_then(|choice| choice.choose(&snapshot));
        let chosen = chosen.map(|files| {
            files
                .iter()
                .map(|file| file.path.as_str().to_owned())
                .collect::<Vec<_>>()
        });
        match expected {
            Ok(paths) => assert_eq!(
                chosen.unwrap(),
                paths,
                "{format:?} {patterns:?} of {there:?}"
            ),
            Err(reason) => {
                let error = chosen.unwrap_err();
                assert_eq!(error.reason(), reason, "{error}");
            }
        }
    }

    #[test]
    fn takes_what_a_safetensors_format_needs() {
        let there = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model",
            "chat_template.jinja",
            "original/consolidated.00.pth",
            "original/params.json",
            "original/tokenizer.model",
            "pytorch_model.bin",
            "training.pt",
            "README.md",
            ".gitattributes",
            "chandler.json",
        ];
        let wanted = [
            "chat_template.jinja",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model",
        ];
        check(Format::Pytorch, &[], &there, Ok(&wanted));
        check(Format::Awq, &[], &there, Ok(&wanted));
        check(Format::Ggufv2, &[], &there, Err(Reason::NotFoundOnHub));
    }

    #[test]
    fn never_takes_pickles() {
        check(
            Format::Pytorch,
            &[],
            &["config.json", "pytorch_model.bin"],
            Err(Reason::RuntimeUnsupported),
        );
        check(
            Format::Pytorch,
            &["*"],
            &["config.json", "PYTORCH_MODEL.BIN"],
            Err(Reason::RuntimeUnsupported),
        );
        check(
            Format::Pytorch,
            &["*.bin"],
            &["config.json", "x.bin", "m.safetensors"],
            Err(Reason::NotFoundOnHub),
        );
        check(
            Format::Pytorch,
            &["*"],
            &["x.bin", "m.safetensors", "a.txt"],
            Ok(&["a.txt", "m.safetensors"]),
        );
    }

    #[test]
    fn takes_exactly_one_gguf_model() {
        check(
            Format::Ggufv2,
            &[],
            &["m.gguf", "README.md"],
            Ok(&["m.gguf"]),
        );
        check(
            Format::Ggufv2,
            &[],
            &["m.Q4.gguf", "m.Q8.gguf"],
            Err(Reason::InvalidSource),
        );
        check(
            Format::Ggufv2,
            &["*Q8*"],
            &["m.Q4.gguf", "m.Q8.gguf"],
            Ok(&["m.Q8.gguf"]),
        );
        check(
            Format::Ggufv2,
            &["*Q5*"],
            &["m.Q4.gguf", "m.Q8.gguf"],
            Err(Reason::NotFoundOnHub),
        );
        check(
            Format::Ggufv2,
            &["*Q8*", "*.txt"],
            &["m.Q4.gguf", "m.Q8.gguf"],
            Err(Reason::NotFoundOnHub),
        );
        check(
            Format::Ggufv2,
            &[],
            &["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"],
            Ok(&["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"]),
        );
        check(
            Format::Ggufv2,
            &[],
            &["m-00001-of-00002.gguf"],
            Err(Reason::InvalidSource),
        );
        check(
            Format::Ggufv2,
            &[],
            &["m-00001-of-00000.gguf"],
            Ok(&["m-00001-of-00000.gguf"]),
        );
    }

    #[test]
    fn takes_a_projector_only_where_a_pattern_names_it() {
        let there = ["m.gguf", "mmproj-f16.gguf"];
        check(Format::Ggufv2, &[], &there, Ok(&["m.gguf"]));
        check(Format::Ggufv2, &["*.gguf"], &there, Ok(&there));
        check(
            Format::Ggufv2,
            &["mmproj*"],
            &there,
            Err(Reason::NotFoundOnHub),
        );
    }

    #[test]
    fn refuses_patterns_that_are_no_globs() {
        check(
            Format::Ggufv2,
            &["[a"],
            &["m.gguf"],
            Err(Reason::InvalidSource),
        );
        check(
            Format::Ggufv2,
            &[""],
            &["m.gguf"],
            Err(Reason::InvalidSource),
        );
        check(
            Format::Ggufv2,
            &["*"; 65],
            &["m.gguf"],
            Err(Reason::InvalidSource),
        );
    }

    #[test]
    fn names_a_bounded_number_of_candidates() {
        let there: Vec<String> = (0..40).map(|at| format!("m.{at}.gguf")).collect();
        let files = there
            .iter()
            .map(|path| RemoteFile {
                path: RepoPath::parse(path).unwrap(),
                size: None,
                digest: None,
            })
            .collect();
        let snapshot = Snapshot::new(
            RepositoryId::parse("o/n").unwrap(),
            Commit::parse(&"0".repeat(40)).unwrap(),
            files,
        )
        .unwrap();
        let error = Choice::new(Format::Ggufv2, Vec::new())
            .unwrap()
            .choose(&snapshot)
            .unwrap_err();
        assert!(
            matches!(error, ChoiceError::SeveralModels { count: 40, .. })
                && error.to_string().contains("and 28 more"),
            "{error}"
        );
    }
}

//! The header of a GGUF file: its keys, and what it says about its tensors.
//!
//! The layout is that of the GGUF specification, versions 2 and 3: magic, version, two counts, then key, type and value of
//! each pair, then name, shape, type and place of each tensor, little-endian.
//! Every length is compared with what is left of the file before anything is allocated for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read;

/// Where tensors begin when the file does not say it: at a multiple of so many bytes.
const ALIGNMENT: u64 = 32;
/// Dimensions of a tensor at most.
const MOST_DIMENSIONS: u32 = 4;

/// What a key holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number of any width.
    Whole(i128),
    /// A number of single or double precision.
    Float(f64),
    /// True or false.
    Flag(bool),
    /// A text; what is no UTF-8 in it is replaced.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of whole numbers.
    Wholes(Vec<i64>),
    /// A list of anything else, passed over.
    Others,
}

impl Value {
    /// What it is, for messages.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            Self::Whole(_) => "a whole number",
            Self::Float(_) => "a number with a fraction",
            Self::Flag(_) => "true or false",
            Self::Text(_) => "a text",
            Self::Texts(_) => "a list of texts",
            Self::Wholes(_) => "a list of whole numbers",
            Self::Others => "a list",
        }
    }
}

/// What the header says about a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its type's number in ggml's list.
    pub kind: u32,
    /// Its dimensions, the one whose neighbours lie side by side last.
    pub shape: Vec<u64>,
    /// Where it begins, in bytes from [`Header::data`].
    pub offset: u64,
}

/// A whole header.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The keys.
    pub pairs: HashMap<String, Value>,
    /// The tensors.
    pub tensors: HashMap<String, Described>,
    /// Where the tensors' bytes begin in the file.
    pub data: u64,
}

impl Header {
    /// Reads the header of a file of `size` bytes from its first byte on.
    ///
    /// # Errors
    /// What is wrong with it, or that it ends too early.
    pub fn read(file: impl Read, size: u64) -> Result<Self, String> {
        let mut source = Source { file, left: size };
        if source.bytes("the magic")? != *b"GGUF" {
            return Err("it does not start with \"GGUF\"".to_owned());
        }
        let version = source.u32("the version")?;
        if !matches!(version, 2 | 3) {
            return Err(format!("version {version}; supported are 2 and 3"));
        }
        let tensor_count = source.u64("the number of tensors")?;
        let pair_count = source.u64("the number of keys")?;
        let mut pairs = HashMap::new();
        for _ in 0..pair_count {
            let key = source.text("a key")?;
            let value = source.value(&key)?;
            match pairs.entry(key) {
                Entry::Vacant(place) => place.insert(value),
                Entry::Occupied(place) => return Err(format!("key {} stands twice", place.key())),
            };
        }
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            let name = source.text("a tensor's name")?;
            let described = source.described(&name)?;
            match tensors.entry(name) {
                Entry::Vacant(place) => place.insert(described),
                Entry::Occupied(place) => {
                    return Err(format!("tensor {} stands twice", place.key()));
                }
            };
        }
        let alignment = match pairs.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Whole(value)) => u64::try_from(*value)
                .ok()
                .filter(|value| value.is_power_of_two())
                .ok_or_else(|| format!("general.alignment is {value}, expected a power of two"))?,
            Some(other) => return Err(format!("general.alignment is {}", other.what())),
        };
        let data = (size - source.left)
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| format!("general.alignment is {alignment}"))?;
        Ok(Self {
            pairs,
            tensors,
            data,
        })
    }
}

/// What is left of a file.
struct Source<R> {
    file: R,
    left: u64,
}

impl<R: Read> Source<R> {
    /// So many bytes, which `what` has; refused before anything is allocated where the file has fewer.
    fn take(&mut self, count: u64, what: &str) -> Result<Vec<u8>, String> {
        self.check(count, what)?;
        let mut bytes = vec![0; usize::try_from(count).map_err(|error| error.to_string())?];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.check(N as u64, what)?;
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn check(&self, count: u64, what: &str) -> Result<(), String> {
        if count > self.left {
            return Err(format!(
                "{what} takes {count} bytes of the {} that are left",
                self.left
            ));
        }
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Result<(), String> {
        self.left -= bytes.len() as u64;
        self.file
            .read_exact(bytes)
            .map_err(|error| format!("{what}: {error}"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &str) -> Result<String, String> {
        let length = self.u64(what)?;
        let mut bytes = self.take(length, what)?;
        // Some writers count the byte that ends a text in C.
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn value(&mut self, key: &str) -> Result<Value, String> {
        match self.u32(key)? {
            LIST => self.list(key),
            kind => self.single(kind, key),
        }
    }

    fn single(&mut self, kind: u32, key: &str) -> Result<Value, String> {
        Ok(match kind {
            6 => Value::Float(self.bytes(key).map(f32::from_le_bytes)?.into()),
            12 => Value::Float(self.bytes(key).map(f64::from_le_bytes)?),
            7 => match self.bytes(key)? {
                [0] => Value::Flag(false),
                [1] => Value::Flag(true),
                [other] => return Err(format!("{key} is true or false and holds {other}")),
            },
            TEXT => Value::Text(self.text(key)?),
            kind => Value::Whole(self.whole(kind, key)?),
        })
    }

    /// A whole number by its type's number.
    fn whole(&mut self, kind: u32, key: &str) -> Result<i128, String> {
        Ok(match kind {
            0 => self.bytes(key).map(u8::from_le_bytes)?.into(),
            1 => self.bytes(key).map(i8::from_le_bytes)?.into(),
            2 => self.bytes(key).map(u16::from_le_bytes)?.into(),
            3 => self.bytes(key).map(i16::from_le_bytes)?.into(),
            4 => self.bytes(key).map(u32::from_le_bytes)?.into(),
            5 => self.bytes(key).map(i32::from_le_bytes)?.into(),
            10 => self.bytes(key).map(u64::from_le_bytes)?.into(),
            11 => self.bytes(key).map(i64::from_le_bytes)?.into(),
            other => return Err(format!("{key} has the type {other}, which there is not")),
        })
    }

    fn list(&mut self, key: &str) -> Result<Value, String> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            TEXT | 10..=12 => 8,
            other => return Err(format!("{key} is a list of the type {other}")),
        };
        self.check(count.saturating_mul(least), key)?;
        match kind {
            TEXT => (0..count)
                .map(|_| self.text(key))
                .collect::<Result<_, _>>()
                .map(Value::Texts),
            6 | 7 | 12 => {
                self.take(count * least, key)?;
                Ok(Value::Others)
            }
            kind => (0..count)
                .map(|_| {
                    let whole = self.whole(kind, key)?;
                    Ok(i64::try_from(whole).unwrap_or(i64::MAX))
                })
                .collect::<Result<_, _>>()
                .map(Value::Wholes),
        }
    }

    fn described(&mut self, name: &str) -> Result<Described, String> {
        let dimensions = self.u32(name)?;
        if dimensions > MOST_DIMENSIONS {
            return Err(format!(
                "tensor {name} has {dimensions} dimensions, expected {MOST_DIMENSIONS} at most"
            ));
        }
        let mut shape = (0..dimensions)
            .map(|_| self.u64(name))
            .collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok(Described {
            shape,
            kind: self.u32(name)?,
            offset: self.u64(name)?,
        })
    }
}

/// The type of texts.
const TEXT: u32 = 8;
/// The type of lists. There are none of lists.
const LIST: u32 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Vec<u8> {
        [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
    }

    fn file(version: u32, pairs: &[(&str, u32, &[u8])], tensors: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((pairs.len() as u64).to_le_bytes());
        for (key, kind, value) in pairs {
            bytes.extend(text(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(*value);
        }
        bytes.extend(tensors.concat());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Header, String> {
        Header::read(bytes, bytes.len() as u64)
    }

    fn list(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
    }

    fn tensor(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let mut bytes = text(name);
        bytes.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        bytes.extend(shape.iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes
    }

    #[test]
    fn every_type_of_value_is_read() {
        let texts = list(8, 2, &[text("a"), text("b\0")].concat());
        let wholes = list(5, 2, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        let floats = list(6, 1, &[0; 4]);
        let shown = text("ä");
        let all: [(&str, u32, &[u8], Value); 16] = [
            ("u8", 0, &[200], Value::Whole(200)),
            ("i8", 1, &[200], Value::Whole(-56)),
            ("u16", 2, &[1, 2], Value::Whole(0x201)),
            ("i16", 3, &[0xff, 0xff], Value::Whole(-1)),
            ("u32", 4, &[0xff; 4], Value::Whole(u32::MAX.into())),
            ("i32", 5, &[0xfe, 0xff, 0xff, 0xff], Value::Whole(-2)),
            ("f32", 6, &1.5_f32.to_le_bytes(), Value::Float(1.5)),
            ("yes", 7, &[1], Value::Flag(true)),
            ("no", 7, &[0], Value::Flag(false)),
            ("text", 8, &shown, Value::Text("ä".to_owned())),
            (
                "texts",
                9,
                &texts,
                Value::Texts(vec!["a".to_owned(), "b".to_owned()]),
            ),
            ("wholes", 9, &wholes, Value::Wholes(vec![1, -1])),
            ("floats", 9, &floats, Value::Others),
            ("u64", 10, &[0xff; 8], Value::Whole(u64::MAX.into())),
            ("i64", 11, &[0xff; 8], Value::Whole(-1)),
            ("f64", 12, &2.5_f64.to_le_bytes(), Value::Float(2.5)),
        ];
        let pairs = all
            .each_ref()
            .map(|(key, kind, bytes, _)| (*key, *kind, *bytes));
        let tensors = [tensor("weights", &[32, 3], 20, 64)];
        for version in [2, 3] {
            let bytes = file(version, &pairs, &tensors);
            let header = read(&bytes).unwrap();
            for (key, _, _, expected) in &all {
                assert_eq!(&header.pairs[*key], expected, "{key}");
            }
            let described = Described {
                kind: 20,
                shape: vec![3, 32],
                offset: 64,
            };
            assert_eq!(header.tensors["weights"], described);
            assert_eq!(header.data, bytes.len().next_multiple_of(32) as u64);
            for cut in 0..bytes.len() {
                read(&bytes[..cut]).expect_err("cut");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        let with = |key: &str, kind: u32, value: &[u8]| file(3, &[(key, kind, value)], &[]);
        let many = file(3, &[("a", 0, &[1]), ("a", 0, &[2])], &[]);
        let twice = [tensor("t", &[1], 0, 0), tensor("t", &[1], 0, 0)];
        for (what, bytes, words) in [
            ("magic", b"GGML".repeat(9), "GGUF"),
            ("old", file(1, &[], &[]), "version 1"),
            ("other byte order", file(0x0300_0000, &[], &[]), "version"),
            ("text", with("k", 8, &[0xff; 8]), "k takes"),
            ("texts", with("k", 9, &list(8, u64::MAX, &[])), "k takes"),
            ("wholes", with("k", 9, &list(10, 1 << 61, &[])), "k takes"),
            ("floats", with("k", 9, &list(12, 1 << 61, &[])), "k takes"),
            ("lists", with("k", 9, &list(9, 1, &[0; 12])), "k is a list"),
            ("flag", with("k", 7, &[2]), "k is true or false"),
            ("type", with("k", 13, &[0; 8]), "k has the type 13"),
            ("keys", many, "a stands twice"),
            ("tensors", file(3, &[], &twice), "t stands twice"),
            (
                "dimensions",
                file(3, &[], &[tensor("t", &[1; 5], 0, 0)]),
                "5 dimensions",
            ),
            (
                "no alignment",
                with("general.alignment", 4, &[0; 4]),
                "general.alignment",
            ),
            (
                "odd alignment",
                with("general.alignment", 4, &[3, 0, 0, 0]),
                "general.alignment",
            ),
        ] {
            let error = read(&bytes).expect_err(what);
            assert!(error.contains(words), "{what}: {error}");
        }
    }
}

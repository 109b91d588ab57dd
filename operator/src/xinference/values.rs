//! The values of options as what they mean, or an error that says what is possible. Pure.

use serde_json::Value;

use super::launch::{Given, LaunchError};
use crate::api::MAX_NAME_LENGTH;

pub(super) fn number(option: &Given) -> Result<u64, LaunchError> {
    option
        .value()
        .parse()
        .map_err(|_| option.refuse("give a whole number, 0 or more"))
}

pub(super) fn switch(option: &Given) -> Result<bool, LaunchError> {
    match option.value().to_ascii_lowercase().as_str() {
        "" | "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(option.refuse("give true or false, or nothing for true")),
    }
}

/// A share as text, because fractions do not survive every tool that writes YAML.
pub(super) fn share(option: &Given) -> Result<String, LaunchError> {
    let text = match option.value().strip_prefix('.') {
        Some(digits) => format!("0.{digits}"),
        None => option.value().to_owned(),
    };
    let plain = text
        .chars()
        .all(|letter| letter.is_ascii_digit() || letter == '.');
    match text.parse::<f64>() {
        Ok(share) if plain && share > 0.0 && share <= 1.0 => Ok(text),
        _ => Err(option.refuse("give a share of the memory above 0 and up to 1, such as 0.90")),
    }
}

pub(super) fn gpus_per_replica(indexes: &Given, replicas: u64) -> Result<u64, LaunchError> {
    let count = indexes
        .value()
        .split(',')
        .map(|index| index.trim().parse::<u32>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| indexes.refuse("give the numbers of devices, separated by commas"))?
        .len() as u64;
    match replicas {
        0 => Ok(count),
        replicas if count.is_multiple_of(replicas) => Ok(count / replicas),
        _ => Err(indexes.refuse(format!("{count} devices cannot be shared equally by {replicas} replicas; say with --n-gpu how many each gets"))),
    }
}

/// The limit of images in `{"image": 2, "video": 0}` or `image=2,video=0`.
pub(super) fn images_per_prompt(option: &Given) -> Result<Option<u64>, LaunchError> {
    let unusable = || option.refuse("give JSON such as {\"image\": 2}, or image=2");
    let text = option.value();
    if !text.trim_start().starts_with('{') {
        let mut images = None;
        for pair in text.split(',') {
            let (name, count) = pair.split_once('=').ok_or_else(unusable)?;
            let count: u64 = count.trim().parse().map_err(|_| unusable())?;
            if name.trim() == "image" {
                images = Some(count);
            }
        }
        return Ok(images);
    }
    let limits: Value = serde_json::from_str(text).map_err(|_| unusable())?;
    match &limits["image"] {
        Value::Null => Ok(None),
        count => count.as_u64().map(Some).ok_or_else(unusable),
    }
}

/// A name for the ModelDeployment and its Service; nothing when no letter is left.
pub(super) fn object_name(text: &str) -> Option<String> {
    let letters: String = text
        .chars()
        .map(|letter| letter.to_ascii_lowercase())
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '-'
            }
        })
        .collect();
    let name = letters.trim_matches('-');
    let begin = if name.starts_with(|letter: char| letter.is_ascii_digit()) {
        "m-"
    } else {
        ""
    };
    let name: String = begin
        .chars()
        .chain(name.chars())
        .take(MAX_NAME_LENGTH)
        .collect();
    let name = name.trim_end_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

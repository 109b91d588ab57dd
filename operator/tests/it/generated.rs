//! Generated files are what the types say today.

use std::path::Path;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The API server refuses an object above 1.5 MB, and client-side apply copies a CRD into an annotation of at most 256 KiB.
const MAX_CRD: usize = 128 * 1024;

#[test]
fn crds_are_what_the_types_say() {
    for (name, wanted) in chandler_operator::crd::files().unwrap() {
        let path = Path::new(ROOT).join("crds").join(&name);
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == wanted,
            "crds/{name} is out of date: run `make generate`"
        );
        assert!(
            wanted.len() < MAX_CRD,
            "crds/{name} has {} bytes",
            wanted.len()
        );
    }
}

#[test]
fn the_reference_is_what_the_types_say() {
    let written = std::fs::read_to_string(Path::new(ROOT).join("docs/api.md")).unwrap();
    let wanted = chandler_operator::api::reference();
    assert!(
        written.ends_with(wanted.trim_end()) || written.trim_end().ends_with(wanted.trim_end()),
        "the reference in docs/api.md is out of date: run `make generate`"
    );
}

#[test]
fn builtin_cards_can_be_read_and_name_their_files() {
    let cards = chandler_operator::cards::builtin().unwrap();
    let names: Vec<_> = cards
        .iter()
        .filter_map(|card| card.metadata.name.as_deref())
        .collect();
    assert_eq!(
        names,
        ["llama-3.2-vision-instruct", "smollm2-135m-instruct"]
    );
}

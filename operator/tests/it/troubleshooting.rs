//! A person who meets a reason finds what it means and what to do.

use std::path::Path;

use chandler_operator::api::Reason;

#[test]
fn every_reason_has_a_section_of_its_own_with_words_in_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/troubleshooting.md");
    let page = std::fs::read_to_string(path).unwrap();
    let missing: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .filter(|reason| !has_section(&page, reason))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/troubleshooting.md says nothing about {missing:?}; add a heading `### REASON` and what to do"
    );
}

fn has_section(page: &str, reason: &str) -> bool {
    let heading = format!("### {reason}");
    let mut lines = page.lines().skip_while(|line| *line != heading).skip(1);
    lines
        .by_ref()
        .find(|line| !line.trim().is_empty())
        .is_some_and(|line| !line.starts_with('#'))
}

#[test]
fn a_heading_alone_is_no_section() {
    let page = "### One\n\nWords.\n\n### Two\n\n### Three\n";
    assert!(has_section(page, "One"));
    assert!(!has_section(page, "Two") && !has_section(page, "Three") && !has_section(page, "On"));
}

//! The admission table is data for a real API server (`e2e`, or `kubectl apply`); here only its form is checked.

#[test]
fn every_manifest_of_the_admission_table_says_what_to_expect() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/admission");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# expect: "));
        assert!(
            expected.is_some_and(|words| !words.is_empty()),
            "{}: the first line is not `# expect: WORDS`",
            path.display()
        );
        let object: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(
            object["apiVersion"],
            "chandler.dev/v1alpha1",
            "{}",
            path.display()
        );
        count += 1;
    }
    assert!(count >= 40, "only {count} manifests");
}

//! The admission table is data for a real API server (`e2e`, or `kubectl apply`); here only its form is checked.

#[test]
fn every_manifest_of_the_admission_table_says_what_to_expect() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/admission");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# expect: "));
        assert!(
            expected.is_some_and(|words| !words.is_empty()),
            "{name}: the first line is not `# expect: WORDS`"
        );
        let documents: Vec<serde_json::Value> = text
            .split("\n---\n")
            .map(|document| serde_saphyr::from_str(document).unwrap())
            .collect();
        for object in &documents {
            assert_eq!(object["apiVersion"], "chandler.dev/v1alpha1", "{name}");
        }
        match documents.as_slice() {
            [_] => {}
            [first, then] => {
                for field in ["/kind", "/metadata/name"] {
                    let (first, then) = (first.pointer(field), then.pointer(field));
                    assert_eq!(first, then, "{name}: {field} is not the same object's");
                }
            }
            more => panic!("{name}: {} documents", more.len()),
        }
        count += 1;
    }
    assert!(count >= 150, "only {count} manifests");
}

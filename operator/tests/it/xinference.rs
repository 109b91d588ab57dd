//! The way from Xinference: its whole real registry as cards, and its launches as manifests.
//!
//! `make unit` brings the registry and names it in `CHANDLER_XINFERENCE_REGISTRY`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chandler_operator::api::{ModelCard, ModelDeployment, ModelFormat, ModelSelection};
use chandler_operator::bounds;
use chandler_operator::model_deployment::variant;
use chandler_operator::xinference::registry::{Part as _, Source, Spec};
use chandler_operator::xinference::{Import, from_launch, import, import_file};
use serde_json::{Value, json};

/// Entries and specs of the registry in release 3.2.1.
const ENTRIES: usize = 166;
const SPECS: usize = 970;

fn registry_file() -> PathBuf {
    let path = std::env::var_os("CHANDLER_XINFERENCE_REGISTRY").expect(
        "CHANDLER_XINFERENCE_REGISTRY is not set: run `make unit`, or set it to what hack/xinference-registry prints",
    );
    PathBuf::from(path)
}

fn registry() -> (Vec<Value>, Import) {
    let text = std::fs::read_to_string(registry_file()).unwrap();
    (
        serde_json::from_str(&text).unwrap(),
        import(text.as_bytes()).unwrap(),
    )
}

fn card<'a>(import: &'a Import, name: &str) -> &'a ModelCard {
    let mut cards = import.cards.iter();
    cards
        .find(|card| card.metadata.name.as_deref() == Some(name))
        .unwrap_or_else(|| panic!("no card {name}"))
}

#[test]
fn every_entry_of_the_registry_becomes_a_card_that_the_crd_allows() {
    let (entries, import) = registry();
    let specs = entries
        .iter()
        .map(|entry| entry["model_specs"].as_array().unwrap().len());
    assert_eq!((entries.len(), specs.sum::<usize>()), (ENTRIES, SPECS));
    assert!(import.refused.is_empty(), "{:#?}", import.refused);
    assert_eq!(import.cards.len(), ENTRIES);
    for note in &import.notes {
        assert!(!note.contains("is not known here"), "{note}");
    }

    let schema = bounds::schema("ModelCard").unwrap();
    let schema = bounds::field(&schema, "spec").unwrap();
    let mut names = BTreeSet::new();
    for card in &import.cards {
        let text = serde_saphyr::to_string(card).unwrap();
        let read: ModelCard = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(&read, card, "the YAML says something else");
        let value: Value = serde_saphyr::from_str(&text).unwrap();
        let violations = bounds::violations(schema, "spec", &value["spec"]);
        assert!(violations.is_empty(), "{violations:?}");
        let name = card.metadata.name.clone().unwrap();
        assert!(is_dns_subdomain(&name), "{name}");
        assert!(names.insert(name.clone()), "{name} is there twice");
    }
}

/// The rule of Kubernetes for names of objects, written down a second time.
fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            let inner = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
            label.bytes().all(|letter| inner(letter) || letter == b'-')
                && label.bytes().next().is_some_and(inner)
                && label.bytes().last().is_some_and(inner)
        })
}

/// What Xinference would fetch for a choice is what the card gives, or a note says why not.
#[test]
fn every_choice_that_xinference_offers_leads_to_the_same_repository() {
    let (entries, import) = registry();
    let (mut same, mut noted) = (0, 0);
    for entry in &entries {
        let called = entry["model_name"].as_str().unwrap();
        let cards = import.cards.iter();
        let card = cards
            .zip(&entries)
            .find_map(|(card, entry)| (entry["model_name"] == called).then_some(card))
            .unwrap();
        for (at, spec) in entry["model_specs"].as_array().unwrap().iter().enumerate() {
            assert!(
                spec.as_object()
                    .unwrap()
                    .keys()
                    .all(|field| Spec::knows(field))
            );
            for (hub, source) in spec["model_src"].as_object().unwrap() {
                assert!(
                    source
                        .as_object()
                        .unwrap()
                        .keys()
                        .all(|field| Source::knows(field))
                );
                for quantization in source["quantizations"].as_array().unwrap() {
                    let quantization = quantization.as_str().unwrap();
                    let size = &spec["model_size_in_billions"];
                    let size = size
                        .as_str()
                        .map_or_else(|| size.to_string(), str::to_owned);
                    let selection: ModelSelection = serde_json::from_value(json!({
                        "card": "x", "format": spec["model_format"], "sizeInBillions": size,
                        "quantization": quantization, "hub": hub,
                    }))
                    .unwrap();
                    let wanted = source["model_id"].as_str().unwrap();
                    let wanted = wanted.replace("{quantization}", quantization);
                    match variant::pick(&card.spec, &selection) {
                        Ok(choice) if choice.source.id == wanted => same += 1,
                        found => {
                            let place = format!("{called}: model_specs[{at}] on {hub}");
                            let of_parts =
                                quantization == "none" && source["quantization_parts"].is_object();
                            assert!(
                                of_parts
                                    || import.notes.iter().any(|note| note.starts_with(&place)),
                                "{place} {quantization}: {found:?}"
                            );
                            noted += 1;
                        }
                    }
                }
            }
        }
    }
    println!("figure xinference_choices_same {same} choices");
    println!("figure xinference_choices_noted {noted} choices");
    assert!(same > 100 * noted, "{same} {noted}");
}

#[test]
fn fields_of_the_registry_are_in_the_card() {
    let (entries, import) = registry();
    let llama = card(&import, "llama-3.2-vision-instruct");
    let entry = entries
        .iter()
        .find(|entry| entry["model_name"] == "llama-3.2-vision-instruct")
        .unwrap();
    let value = serde_json::to_value(&llama.spec).unwrap();
    for (ours, theirs) in [
        ("contextLength", "context_length"),
        ("languages", "model_lang"),
        ("abilities", "model_ability"),
        ("architectures", "architectures"),
        ("description", "model_description"),
    ] {
        assert_eq!(value[ours], entry[theirs], "{ours}");
    }
    for (ours, theirs) in [
        ("template", "chat_template"),
        ("stop", "stop"),
        ("stopTokenIds", "stop_token_ids"),
    ] {
        assert_eq!(value["chat"][ours], entry[theirs], "{ours}");
    }
    let ids: Vec<&str> = llama.spec.variants[0]
        .sources
        .iter()
        .map(|source| source.id.as_str())
        .collect();
    assert_eq!(
        ids,
        [
            "meta-llama/Llama-3.2-11B-Vision-Instruct",
            "LLM-Research/Llama-3.2-11B-Vision-Instruct"
        ]
    );

    // Files in parts, a projector, and no default among the quantizations.
    let large = card(&import, "kimi-k2.5");
    let gguf = large
        .spec
        .variants
        .iter()
        .find(|variant| variant.format == ModelFormat::Ggufv2);
    let gguf = gguf.unwrap();
    assert_eq!(gguf.quantizations[0], "Q4_K_M");
    assert_eq!(gguf.size_in_billions, "1058.59");
    assert_eq!(
        gguf.sources[0].files.as_ref().unwrap()[0],
        "Kimi-K2.5-{quantization}-?????-of-?????.gguf"
    );
    let renamed = card(&import, "qwen3-coder")
        .spec
        .description
        .clone()
        .unwrap();
    assert!(
        renamed.ends_with("Xinference calls it Qwen3-Coder."),
        "{renamed}"
    );
}

#[test]
fn cards_go_to_one_stream_or_to_one_file_each_and_the_report_counts_them() {
    let folder = std::env::temp_dir().join(format!("chandler-cards-{}", std::process::id()));
    let (mut output, mut report) = (Vec::new(), Vec::new());
    import_file(&registry_file(), Some(&folder), &mut output, &mut report).unwrap();
    let files = std::fs::read_dir(&folder).unwrap().count();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!((files, output.len()), (ENTRIES, 0));
    let report = String::from_utf8(report).unwrap();
    print!("{report}");
    assert!(
        report.contains("\nfigure cards_imported 166 cards\n"),
        "{report}"
    );
    assert!(
        report.contains("\nfigure cards_unconvertible 0 cards\n"),
        "{report}"
    );

    import_file(&registry_file(), None, &mut output, &mut Vec::new()).unwrap();
    let documents = String::from_utf8(output).unwrap();
    let cards: Vec<ModelCard> = serde_saphyr::from_multiple(&documents).unwrap();
    assert_eq!(cards.len(), ENTRIES);
}

#[test]
fn an_unusable_registry_is_an_error_that_says_what_to_give() {
    for (text, words) in [
        ("", "as JSON"),
        ("[]", "give Xinference's llm_family.json"),
        ("7", "give Xinference's llm_family.json"),
        (
            r#"[{"model_name": "bge"}, 3]"#,
            "bge: missing field `model_specs`; entry 2: ",
        ),
    ] {
        let error = import(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = import_file(
        Path::new("/nonexistent"),
        None,
        &mut Vec::new(),
        &mut Vec::new(),
    );
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("failed to read /nonexistent")
    );
}

#[test]
fn two_models_never_share_a_card() {
    let model = |name: &str| {
        json!({"model_name": name, "model_specs": [{"model_format": "pytorch", "model_size_in_billions": 1,
            "model_src": {"huggingface": {"quantizations": ["none"], "model_id": "a/b"}}}]})
    };
    let text = json!([model("My_Model"), model("my-model")]).to_string();
    let import = import(text.as_bytes()).unwrap();
    assert_eq!(import.cards.len(), 1);
    assert!(
        import.refused[0].contains("the card of My_Model"),
        "{:?}",
        import.refused
    );
}

/// The manifest for a launch: parsed, allowed by the CRD, and its comments.
fn launched(words: &[&str]) -> (Value, String) {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let text = from_launch(&words).unwrap();
    let _: ModelDeployment = serde_saphyr::from_str(&text).unwrap();
    let value: Value = serde_saphyr::from_str(&text).unwrap();
    let schema = bounds::schema("ModelDeployment").unwrap();
    let schema = bounds::field(&schema, "spec").unwrap();
    let violations = bounds::violations(schema, "spec", &value["spec"]);
    assert!(violations.is_empty(), "{violations:?}");
    let comments = text.lines().take_while(|line| line.starts_with('#'));
    let comments = comments.collect::<Vec<_>>().join("\n");
    (value, comments)
}

#[test]
fn the_launch_of_llama_vision_becomes_a_manifest() {
    let (manifest, comments) = launched(&[
        "launch",
        "--model-engine",
        "vllm",
        "--enforce_eager",
        "--max_num_seqs",
        "16",
        "--model-name",
        "llama-3.2-vision-instruct",
        "--size-in-billions",
        "11",
        "--model-format",
        "pytorch",
        "--quantization",
        "none",
        "--replica=2",
        "--n-gpu",
        "1",
        "--max_model_len=8192",
        "--limit_mm_per_prompt",
        r#"{"image": 1}"#,
        "--gpu-memory-utilization",
        ".9",
        "--download_hub",
        "modelscope",
        "--request-limits",
        "20",
    ]);
    assert_eq!(
        manifest,
        json!({
            "apiVersion": "chandler.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": "llama-3-2-vision-instruct"},
            "spec": {
                "model": {
                    "card": "llama-3.2-vision-instruct", "sizeInBillions": "11", "format": "pytorch",
                    "quantization": "none", "hub": "modelscope",
                    "servedNames": ["llama-3.2-vision-instruct", "llama-3-2-vision-instruct"],
                },
                "replicas": 2,
                "limits": {"contextLength": 8192, "maxSequences": 16, "imagesPerPrompt": 1},
                "accelerators": [{"type": "nvidia.com/gpu", "count": 1}],
                "runtime": {"engine": "VLLM", "options": {"enforceEager": true, "gpuMemoryUtilization": "0.9"}},
            },
        })
    );
    assert!(
        comments.contains("# --request-limits 20: only the engine Chandler"),
        "{comments}"
    );
}

#[test]
fn sizes_engines_devices_and_weights_are_read_in_their_own_words() {
    let (manifest, comments) = launched(&[
        "-n",
        "Qwen3-Coder",
        "-en",
        "sglang",
        "-u",
        "coder",
        "-s",
        "0_5",
        "--n-gpu",
        "None",
        "--request_limits",
        "20",
        "--max-num-seqs",
        "4",
        "--enforce-eager",
        "true",
        "--model-path",
        "/models/qwen",
        "--env",
        "HF_TOKEN",
        "hf_x",
        "--env",
        "A",
        "1",
        "--env",
        "A",
        "2",
        "--worker-ip",
        "10.0.0.7",
    ]);
    assert_eq!(manifest["metadata"]["name"], "coder");
    assert_eq!(
        manifest["spec"]["model"],
        json!({"card": "qwen3-coder", "sizeInBillions": "0.5"})
    );
    assert_eq!(manifest["spec"]["accelerators"], json!([{"type": "cpu"}]));
    assert_eq!(
        manifest["spec"]["weights"],
        json!({"claim": {"claimName": "weights", "path": "models/qwen"}})
    );
    assert_eq!(
        manifest["spec"]["runtime"],
        json!({"engine": "Chandler", "options": {"maxQueue": 16}, "env": [{"name": "A", "value": "2"}]})
    );
    for words in [
        "its card is called qwen3-coder",
        "-en sglang: there is no such engine here",
        "--model-path /models/qwen: a path on a worker",
        "--env HF_TOKEN: weights on a claim need no hub",
        "--worker-ip 10.0.0.7: nodes are chosen by label",
        "--enforce-eager true: only the engine VLLM",
    ] {
        assert!(comments.contains(words), "{words}\n{comments}");
    }
    assert!(!comments.contains("hf_x"));

    let (manifest, _) = launched(&[
        "-n",
        "m",
        "--gpu-idx",
        "0,1,2,3",
        "--replica",
        "2",
        "--env",
        "HF_TOKEN",
        "hf_x",
        "--env",
        "HF_ENDPOINT",
        "https://mirror.test",
        "--worker-ip",
        "node-1",
    ]);
    assert_eq!(manifest["spec"]["accelerators"][0]["count"], 2);
    assert_eq!(
        manifest["spec"]["weights"],
        json!({"tokenSecretRef": {"name": "hub-token", "key": "token"}, "endpoint": "https://mirror.test"})
    );
    assert_eq!(
        manifest["spec"]["pod"]["nodeSelector"],
        json!({"kubernetes.io/hostname": "node-1"})
    );
}

/// Every option of the guide's table leaves a field or a comment, and so does one that nobody knows.
#[test]
fn no_option_is_dropped_silently() {
    let guide = include_str!("../../../docs/from-xinference.md");
    let (bare, _) = launched(&["--model-name", "m", "--n-gpu", "1"]);
    let table = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `--"))
        .flat_map(|row| row.split(" |").next().unwrap_or_default().split("`--"))
        .filter_map(|name| name.split('`').next());
    let mut options: Vec<&str> = table.collect();
    assert!(options.len() > 50, "{options:?}");
    options.push("colour red");
    for option in options {
        let mut words = vec!["--model-name", "m", "--n-gpu", "1"];
        let typed = format!("--{option}");
        words.extend(typed.split(' ').map(|word| match word {
            "NAME" => "m2",
            "SIZE" => "7",
            "UID" => "u",
            "FORMAT" => "awq",
            "HUB" => "csghub",
            "N" => "2",
            "ENGINE" => "vllm",
            "SHARE" => "0.5",
            "JSON" => r#"{"image": 2}"#,
            "I,J" => "0,1",
            "TYPE" => "LLM",
            word => word,
        }));
        if option.starts_with("tensor-parallel-size") {
            words.retain(|word| *word != "--n-gpu" && *word != "1");
        }
        let (manifest, comments) = launched(&words);
        let said = manifest != bare || comments.lines().count() > 1;
        assert!(
            said || option.starts_with("model-type"),
            "--{option}: {comments}"
        );
        let unknown = comments.contains("not known here");
        assert_eq!(unknown, option == "colour red", "--{option}: {comments}");
    }
}

#[test]
fn unusable_values_say_what_where_and_what_to_do() {
    for (words, text) in [
        ("--replica 2", "the launch names no model; add --model-name"),
        ("-n 模型", "give the model a name with letters or digits"),
        ("-n m -t embedding", "-t embedding: only LLMs"),
        (
            "-n m -s big",
            "-s big: spec.model.sizeInBillions is \"big\"",
        ),
        (
            "-n m -f onnx",
            "-f onnx: spec.model.format is \"onnx\"; use pytorch",
        ),
        ("-n m --replica many", "--replica many: give a whole number"),
        ("-n m --replica 2000", "spec.replicas is 2000, at most 1000"),
        (
            "-n m --max_num_seqs 512",
            "--max_num_seqs 512: spec.limits.maxSequences is 512, at most 256",
        ),
        (
            "-n m --n-gpu 65",
            "spec.accelerators[0].count is 65, at most 64",
        ),
        (
            "-n m --n-gpu 2 --tensor_parallel_size 4",
            "--n-gpu 2 means 2 for each replica",
        ),
        (
            "-n m --gpu-idx 0,1,2 --replica 2",
            "3 devices cannot be shared equally",
        ),
        ("-n m --gpu-idx a", "the numbers of devices"),
        ("-n m -en vllm --enforce_eager maybe", "give true or false"),
        ("-n m --gpu_memory_utilization 1.5", "above 0 and up to 1"),
        ("-n m --limit_mm_per_prompt {", "give JSON such as"),
        (
            "-n m --download_hub elsewhere",
            "spec.model.hub is \"elsewhere\"; use huggingface",
        ),
        ("-n m --model-path ../x", "without `..`"),
        ("-n m --env 1A x", "spec.runtime.env[0].name is \"1A\""),
    ] {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let error = from_launch(&words).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

//! A table of everything that a hub may do wrong. Each row is fetched from, then mended, then fetched from again:
//! no wrong byte may stand under a final name at any time, and no volume may be stuck once the hub is well.

use std::path::Path;

use futures::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{RunningHub, sha256, weights};
use crate::runtime::Job;

/// Rows at work at the same time.
const AT_ONCE: usize = 6;

/// What must come of a row's first fetch.
#[derive(Debug, Clone, Copy)]
enum Comes {
    /// It succeeds in spite of the fault.
    Done,
    /// It fails with this reason.
    Reason(&'static str),
    /// It fails with one of these: what comes first depends on how fast the connection ends.
    Either(&'static str, &'static str),
}
use Comes::{Done, Either, Reason};

#[derive(Debug, Clone)]
struct Row {
    name: String,
    hub: &'static str,
    fault: Value,
    comes: Comes,
    /// Fetched in one stream, and in parts by ranges.
    part_bytes: u64,
}

/// What went against the promise.
#[derive(Debug, Default)]
struct Broken {
    unexpected: Vec<String>,
    wrong_bytes: Vec<String>,
    stuck: Vec<String>,
}

const COMMIT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_a_hub_leaves_a_wrong_byte_or_a_stuck_volume() {
    let rows = table();
    let tried = rows.len();
    let outcomes: Vec<Broken> = futures::stream::iter(rows.into_iter().map(check))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut broken = Broken::default();
    for outcome in outcomes {
        broken.unexpected.extend(outcome.unexpected);
        broken.wrong_bytes.extend(outcome.wrong_bytes);
        broken.stuck.extend(outcome.stuck);
    }
    eprintln!("figure fetch_faults_tried {tried}");
    eprintln!("figure fetch_wrong_bytes {}", broken.wrong_bytes.len());
    eprintln!("figure fetch_stuck_caches {}", broken.stuck.len());
    assert!(
        broken.unexpected.is_empty() && broken.wrong_bytes.is_empty() && broken.stuck.is_empty(),
        "{broken:#?}"
    );
}

async fn check(row: Row) -> Broken {
    let mut broken = Broken::default();
    let hub = RunningHub::start().await;
    hub.settings("org/tiny", json!({ "commit": COMMIT })).await;
    hub.fault(row.fault.clone()).await;
    let volume = TempDir::new().unwrap();
    let job = Job {
        hub: row.hub,
        ..Job::new(&hub)
    }
    .with(format!("--to={}", volume.path().display()))
    .with("--patience-seconds=1")
    .with(format!("--part-bytes={}", row.part_bytes));
    let first = job.run("fetch").await;
    let is_expected = match row.comes {
        Done => first.code == Some(0),
        Reason(reason) => first.code == Some(1) && first.answer["reason"] == reason,
        Either(one, other) => {
            let reason = &first.answer["reason"];
            first.code == Some(1) && (reason == one || reason == other)
        }
    };
    if !is_expected {
        broken.unexpected.push(format!("{row:?}: {first:?}"));
    }
    let wrong =
        |when: &str| wrong_files(volume.path()).map(|why| format!("{}, {when}: {why}", row.name));
    broken.wrong_bytes.extend(wrong("with the fault"));
    hub.mend().await;
    let second = job.run("fetch").await;
    broken.wrong_bytes.extend(wrong("after it"));
    if second.code != Some(0) || !is_whole(volume.path()) {
        broken.stuck.push(format!("{}: {second:?}", row.name));
    }
    broken
}

/// A file under its final name with other bytes than the hub's, or a manifest that lists more than is there.
pub(crate) fn wrong_files(volume: &Path) -> Option<String> {
    for commit in std::fs::read_dir(volume).unwrap() {
        let folder = commit.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if name == ".chandler" {
            continue;
        }
        if name.len() != 40 {
            return Some(format!("{} should not be there", folder.display()));
        }
        let weights_path = folder.join("weights.gguf");
        if std::fs::read(&weights_path).is_ok_and(|bytes| bytes != weights()) {
            return Some(format!("{} holds other bytes", weights_path.display()));
        }
        if folder.join("chandler.json").exists() && !weights_path.is_file() {
            return Some(format!(
                "{} has a manifest before its files",
                folder.display()
            ));
        }
        for entry in std::fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name();
            if name != "weights.gguf" && name != "chandler.json" {
                return Some(format!("{} holds {name:?}", folder.display()));
            }
        }
    }
    None
}

fn is_whole(volume: &Path) -> bool {
    let folder = volume.join(COMMIT);
    folder.join("chandler.json").is_file()
        && std::fs::read(folder.join("weights.gguf")).is_ok_and(|bytes| bytes == weights())
}

fn table() -> Vec<Row> {
    let mut rows = Vec::new();
    listing_rows(&mut rows);
    content_rows(&mut rows);
    modelscope_rows(&mut rows);
    rows
}

fn row(name: impl Into<String>, fault: Value, comes: Comes) -> Row {
    Row {
        name: name.into(),
        hub: "huggingface",
        fault,
        comes,
        part_bytes: 1 << 20,
    }
}

const UNREACHABLE: Comes = Reason("HubUnreachable");
const INVALID: Comes = Reason("InvalidSource");
const MISMATCH: Comes = Reason("DigestMismatch");

fn listing_rows(rows: &mut Vec<Row>) {
    let statuses = [
        (204, INVALID),
        (400, INVALID),
        (401, Reason("CredentialsMissing")),
        (403, Reason("LicenceNotAccepted")),
        (404, Reason("NotFoundOnHub")),
        (408, UNREACHABLE),
        (410, Reason("NotFoundOnHub")),
        (418, INVALID),
        (429, Reason("HubRateLimited")),
        (451, INVALID),
        (500, UNREACHABLE),
        (502, UNREACHABLE),
        (503, UNREACHABLE),
        (504, UNREACHABLE),
        (520, UNREACHABLE),
    ];
    for (status, comes) in statuses {
        rows.push(row(
            format!("listing: status {status}"),
            json!({ "path": "/revision/", "then": { "status": status } }),
            comes,
        ));
        if status != 204 {
            rows.push(row(
                format!("file: status {status}"),
                json!({ "path": "/resolve/", "then": { "status": status } }),
                comes,
            ));
        }
    }
    for status in [429, 500, 503] {
        rows.push(row(
            format!("listing: status {status} once"),
            json!({ "path": "/revision/", "times": 1, "then": { "status": status } }),
            Done,
        ));
    }
    rows.push(row(
        "listing: leave alone for ten minutes",
        json!({ "path": "/revision/", "then": { "status": 429, "headers": { "Retry-After": "600" } } }),
        Reason("HubRateLimited"),
    ));
    for target in [
        "/api/models/org/tiny/revision/main",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "http://127.0.0.1:1/",
        "http://",
    ] {
        for path in ["/revision/", "/resolve/"] {
            let target = match (path, target) {
                ("/resolve/", "/api/models/org/tiny/revision/main") => {
                    "/org/tiny/resolve/main/weights.gguf"
                }
                _ => target,
            };
            rows.push(row(
                format!("{path}: redirect to {target}"),
                json!({ "path": path, "then": { "redirect": target } }),
                UNREACHABLE,
            ));
        }
    }
    let listed = |files: Value| json!({ "sha": COMMIT, "siblings": files }).to_string();
    let file = |name: &str| json!({ "rfilename": name, "size": 1, "blobId": "b".repeat(40) });
    let true_file = |size: u64, digest: &str| json!([{ "rfilename": "weights.gguf", "size": size, "lfs": { "sha256": digest, "size": size } }]);
    let right = sha256(&weights());
    let many: Vec<Value> = (0..20_001)
        .map(|at| json!({ "rfilename": format!("{at}.gguf") }))
        .collect();
    let bodies = [
        ("nothing", String::new(), INVALID),
        ("half of JSON", "{\"sha\":".into(), INVALID),
        ("a page", "<html>sign in</html>".into(), INVALID),
        ("no files", json!({ "sha": COMMIT }).to_string(), INVALID),
        (
            "no commit",
            json!({ "siblings": [file("weights.gguf")] }).to_string(),
            INVALID,
        ),
        (
            "a commit that is none",
            json!({ "sha": "../..", "siblings": [] }).to_string(),
            INVALID,
        ),
        (
            "a path upwards",
            listed(json!([file("../weights.gguf")])),
            INVALID,
        ),
        (
            "a path upwards in the middle",
            listed(json!([file("a/../../weights.gguf")])),
            INVALID,
        ),
        (
            "an absolute path",
            listed(json!([file("/etc/weights.gguf")])),
            INVALID,
        ),
        (
            "a path with backslashes",
            listed(json!([file("..\\weights.gguf")])),
            INVALID,
        ),
        (
            "a path with a zero",
            listed(json!([file("a\0.gguf")])),
            INVALID,
        ),
        ("an empty path", listed(json!([file("")])), INVALID),
        (
            "a path of 2 KB",
            listed(json!([file(&format!("{}.gguf", "x/".repeat(1000)))])),
            INVALID,
        ),
        (
            "a file twice",
            listed(json!([file("weights.gguf"), file("weights.gguf")])),
            INVALID,
        ),
        (
            "a file that is a folder",
            listed(json!([file("a.gguf/b.gguf"), file("a.gguf")])),
            INVALID,
        ),
        (
            "the manifest's name",
            listed(json!([file("chandler.json")])),
            Reason("NotFoundOnHub"),
        ),
        ("2^60 bytes", listed(true_file(1 << 60, &right)), INVALID),
        (
            "2^45 bytes",
            listed(true_file(1 << 45, &right)),
            Reason("StorageFull"),
        ),
        (
            "a negative size",
            listed(json!([{ "rfilename": "weights.gguf", "size": -1 }])),
            INVALID,
        ),
        ("20,001 files", listed(json!(many)), INVALID),
        (
            "17 MB",
            format!("{{\"sha\":\"{}\"}}", "x".repeat(17 << 20)),
            INVALID,
        ),
        (
            "another digest",
            listed(true_file(300_000, &"0".repeat(64))),
            MISMATCH,
        ),
        (
            "one byte more than there is",
            listed(true_file(300_001, &right)),
            MISMATCH,
        ),
        (
            "one byte less than there is",
            listed(true_file(299_999, &right)),
            MISMATCH,
        ),
        (
            "neither sizes nor digests",
            listed(json!([{ "rfilename": "weights.gguf" }])),
            Done,
        ),
        (
            "a digest that is none",
            listed(
                json!([{ "rfilename": "weights.gguf", "lfs": { "sha256": "0x12", "size": 300_000 } }]),
            ),
            Done,
        ),
    ];
    for (name, body, comes) in bodies {
        rows.push(row(
            format!("listing: {name}"),
            json!({ "path": "/revision/", "then": { "status": 200, "body": body } }),
            comes,
        ));
    }
}

/// Each in one stream, and in parts.
fn content_rows(rows: &mut Vec<Row>) {
    let always = |then: Value| json!({ "site": "cdn", "then": then });
    let times = |times: u32, then: Value| json!({ "site": "cdn", "times": times, "then": then });
    let mut both = vec![
        (
            "cut before the first byte",
            always(json!({ "cutAfterBytes": 0 })),
            UNREACHABLE,
        ),
        (
            "cut before the first byte, once",
            times(1, json!({ "cutAfterBytes": 0 })),
            Done,
        ),
        (
            "cut after one byte, once",
            times(1, json!({ "cutAfterBytes": 1 })),
            Done,
        ),
        (
            "cut at half, once",
            times(1, json!({ "cutAfterPercent": 50 })),
            Done,
        ),
        (
            "cut at 99 %, three times",
            times(3, json!({ "cutAfterPercent": 99 })),
            Done,
        ),
        (
            "cut at half without ranges",
            always(json!({ "cutAfterPercent": 50, "ignoreRange": true })),
            UNREACHABLE,
        ),
        ("no ranges", always(json!({ "ignoreRange": true })), Done),
        (
            "wrong first byte",
            always(json!({ "wrongBytes": { "start": 0, "end": 1 } })),
            MISMATCH,
        ),
        (
            "wrong first byte, once",
            times(1, json!({ "wrongBytes": { "start": 0, "end": 1 } })),
            Done,
        ),
        (
            "wrong bytes, twice",
            times(2, json!({ "wrongBytes": { "start": 100, "end": 200 } })),
            Done,
        ),
        (
            "wrong after a cut",
            json!({ "site": "cdn", "times": 1, "then": { "cutAfterPercent": 50, "wrongBytes": { "start": 7, "end": 9 } } }),
            Done,
        ),
        (
            "a byte less announced",
            always(json!({ "lengthOffBy": -1 })),
            MISMATCH,
        ),
        (
            "a byte more announced",
            always(json!({ "lengthOffBy": 1 })),
            Either("HubUnreachable", "DigestMismatch"),
        ),
        (
            "a byte less announced, once",
            times(1, json!({ "lengthOffBy": -1 })),
            Done,
        ),
        (
            "a byte more announced, once",
            times(1, json!({ "lengthOffBy": 1 })),
            Done,
        ),
        (
            "a trickle",
            always(json!({ "bytesPerSecond": 400 })),
            UNREACHABLE,
        ),
        (
            "a trickle, once",
            times(1, json!({ "bytesPerSecond": 400 })),
            Done,
        ),
        (
            "a late answer",
            times(2, json!({ "delayMilliseconds": 400 })),
            Done,
        ),
        (
            "a lie about the part",
            times(
                1,
                json!({ "headers": { "content-range": "bytes 5-10/300000" } }),
            ),
            Done,
        ),
        (
            "a part of a larger file",
            always(json!({ "headers": { "content-range": "bytes 0-4095/300001" } })),
            Done,
        ),
        (
            "a body that says it is compressed",
            times(1, json!({ "headers": { "content-encoding": "gzip" } })),
            Done,
        ),
        (
            "a redirect to nowhere",
            always(json!({ "redirect": "http://127.0.0.1:1/" })),
            UNREACHABLE,
        ),
    ];
    for status in [403, 404, 416, 429, 500, 503] {
        let comes = match status {
            429 => Reason("HubRateLimited"),
            _ => UNREACHABLE,
        };
        both.push((
            "refused by the content's host",
            always(json!({ "status": status })),
            comes,
        ));
        both.push((
            "refused by the content's host, once",
            times(1, json!({ "status": status })),
            Done,
        ));
    }
    for (name, fault, comes) in both {
        let whole = row(format!("{name} {fault}"), fault, comes);
        let in_parts = Row {
            name: format!("in parts: {}", whole.name),
            part_bytes: 4096,
            comes: in_parts(name, comes, &whole.fault),
            ..whole.clone()
        };
        rows.extend([whole, in_parts]);
    }
}

/// Where a fault means something else for a file in parts.
fn in_parts(name: &str, comes: Comes, fault: &Value) -> Comes {
    match name {
        // The range itself is refused, which says that the file is shorter than promised.
        "refused by the content's host" if fault["then"]["status"] == 416 => MISMATCH,
        // The part itself is short, which says nothing of the file's size.
        "a byte less announced" => UNREACHABLE,
        // The part is complete before the connection ends.
        "a byte more announced" => Done,
        // Nobody asked for a part before.
        "a part of a larger file" => MISMATCH,
        _ => comes,
    }
}

fn modelscope_rows(rows: &mut Vec<Row>) {
    let listed = |files: Value| {
        json!({ "Code": 200, "Data": { "Files": files, "LatestCommitter": { "Id": COMMIT } } })
            .to_string()
    };
    let file = |path: &str, size: i64, digest: &str| json!([{ "Path": path, "Type": "blob", "Size": size, "Sha256": digest }]);
    let right = sha256(&weights());
    let listing = |then: Value| json!({ "path": "/repo/files", "then": then });
    let body = |body: String| listing(json!({ "status": 200, "body": body }));
    let mut all = vec![
        (
            "refused with status 200".to_owned(),
            body(json!({ "Code": 500, "Message": "no", "Success": false }).to_string()),
            INVALID,
        ),
        ("a page".into(), body("<html>".into()), INVALID),
        (
            "no files".into(),
            body(json!({ "Code": 200, "Data": {} }).to_string()),
            INVALID,
        ),
        (
            "no data".into(),
            body(json!({ "Code": 200 }).to_string()),
            INVALID,
        ),
        (
            "a path upwards".into(),
            body(listed(file("../weights.gguf", 1, ""))),
            INVALID,
        ),
        (
            "a negative size".into(),
            body(listed(file("weights.gguf", -1, ""))),
            INVALID,
        ),
        (
            "another digest".into(),
            body(listed(file("weights.gguf", 300_000, &"0".repeat(64)))),
            MISMATCH,
        ),
        (
            "another size".into(),
            body(listed(file("weights.gguf", 300_001, &right))),
            MISMATCH,
        ),
        (
            "no digest".into(),
            body(listed(file("weights.gguf", 300_000, ""))),
            Done,
        ),
        (
            "a redirect loop".into(),
            listing(json!({ "redirect": "/api/v1/models/org/tiny/repo/files" })),
            UNREACHABLE,
        ),
        (
            "wrong bytes".into(),
            json!({ "site": "cdn", "then": { "wrongBytes": { "start": 9, "end": 10 } } }),
            MISMATCH,
        ),
        (
            "cut at half, once".into(),
            json!({ "site": "cdn", "times": 1, "then": { "cutAfterPercent": 50 } }),
            Done,
        ),
    ];
    let statuses = [
        (400, INVALID),
        (401, Reason("CredentialsMissing")),
        (403, Reason("CredentialsMissing")),
        (404, Reason("NotFoundOnHub")),
        (429, Reason("HubRateLimited")),
        (500, UNREACHABLE),
        (503, UNREACHABLE),
    ];
    for (status, comes) in statuses {
        all.push((
            format!("listing: status {status}"),
            listing(json!({ "status": status })),
            comes,
        ));
    }
    for (name, fault, comes) in all {
        rows.push(Row {
            hub: "modelscope",
            ..row(format!("modelscope: {name}"), fault, comes)
        });
    }
}

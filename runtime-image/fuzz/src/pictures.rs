//! Pictures in requests, and the URLs of those that lie elsewhere.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use chandler_runtime::picture_hosts::{PictureHosts, System};
use chandler_runtime::pictures::{Preparation, decode, tiles};

/// Pixels of a picture that is decoded: larger ones are as good for their heads alone, and slow.
const MOST_PIXELS: u64 = 1 << 18;

/// A host on the list.
const HOST: &str = "images.example.com";

/// Head, pixels and tiles of a file: what the head promises comes, or an error.
pub(crate) fn picture(bytes: &[u8]) -> bool {
    let Ok(head) = decode::head(bytes) else {
        assert!(decode::decode(bytes).is_err(), "pixels without a head");
        return false;
    };
    let sides = (u64::from(head.width), u64::from(head.height));
    assert!(sides.0 * sides.1 <= decode::MOST_PIXELS && sides.0 > 0 && sides.1 > 0);
    if sides.0 * sides.1 > MOST_PIXELS {
        return false;
    }
    let Ok(read) = decode::decode(bytes) else {
        return false;
    };
    let found = (read.width as u64, read.height as u64);
    // A photograph may be turned.
    assert!(
        found == sides || found == (sides.1, sides.0),
        "{found:?} {sides:?}"
    );
    assert_eq!(read.pixels.len(), read.width * read.height * 3);
    let preparation = preparation();
    let prepared = preparation.prepare(&read);
    let tile = 3 * preparation.side * preparation.side;
    assert_eq!(prepared.pixels.len(), prepared.tiles * tile);
    let (rows, columns) = preparation.arrangements[prepared.arrangement - 1];
    assert_eq!(prepared.tiles, rows * columns);
    true
}

fn preparation() -> &'static Preparation {
    static PREPARATION: OnceLock<Preparation> = OnceLock::new();
    PREPARATION.get_or_init(|| Preparation {
        side: 28,
        most_tiles: 4,
        arrangements: tiles::canvases(4),
        values: Arc::new([[0.0; 256]; 3]),
        budget: Arc::default(),
    })
}

/// A URL that is let through leads to the host on the list, whoever reads it.
pub(crate) fn url(bytes: &[u8]) -> bool {
    static HOSTS: OnceLock<PictureHosts> = OnceLock::new();
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let hosts = HOSTS.get_or_init(|| {
        let host = HOST.parse().expect("a name");
        PictureHosts::new(vec![host], Arc::new(System)).expect("a client can be made")
    });
    let Ok(url) = hosts.check(text) else {
        return false;
    };
    let shown = url.as_str();
    // What goes out begins so to the letter, and what follows cannot belong to the host.
    let rest = shown
        .strip_prefix("https://")
        .and_then(|rest| rest.strip_prefix(HOST));
    assert!(
        rest.is_some_and(|rest| rest.starts_with('/')),
        "{text:?} is fetched as {shown:?}"
    );
    assert_eq!(hosts.check(shown).as_ref(), Ok(&url), "{text:?}");
    true
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/pictures");
    let mut files: Vec<_> = std::fs::read_dir(Path::new(folder))
        .expect("the pictures of tests are there")
        .map(|entry| entry.expect("a folder can be read").path())
        .filter(|path| path.extension().is_some_and(|kind| kind != "py"))
        .collect();
    files.sort();
    let read = |path| std::fs::read(path).expect("a file can be read");
    files.into_iter().map(read).collect()
}

pub(crate) fn url_seeds() -> Vec<Vec<u8>> {
    [
        "https://images.example.com/a.png",
        "HTTPS:\\\\IMAGES.EXAMPLE.COM:443\\@127.0.0.1/a?b#c",
        " https://ima\tges%2eexample.com/../..//a",
        "https:images.example.com",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

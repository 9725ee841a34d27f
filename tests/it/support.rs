//! What the integration tests share.
#![allow(dead_code)] // each test module uses some of it

use std::path::{Path, PathBuf};

/// A folder of the data that lies beside the project, or `None`, said aloud, where it is absent.
pub fn shared_data(folder: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SELFJUDGE_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = root.join("data").join(folder);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: ../shared/data/{folder} is absent");
    None
}

/// A committed fixture.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

//! The scheduler, the KV cache's bookkeeping and requests are policy: they import neither tensors nor models.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn policy_imports_no_tensors() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    let in_folder = |folder: &str| {
        let entries = fs::read_dir(engine.join(folder)).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .collect::<Vec<PathBuf>>()
    };
    let single = ["request.rs", "tenant.rs"].map(|file| engine.join(file));
    let files = [
        in_folder("scheduler"),
        in_folder("kv_cache"),
        single.to_vec(),
    ]
    .concat();
    assert!(files.len() > 10, "{files:?}");
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        let code = source
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for word in ["candle", "Tensor", "kernels::", "model::"] {
                assert!(!line.contains(word), "{}: {line}", file.display());
            }
        }
    }
}

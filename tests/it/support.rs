//! Functions that the integration tests share.
#![allow(dead_code)] // each test module uses some of these functions

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::{EngineConfig, InlineEngine};
use model::WeightStore;

pub use test_support::{data, root};

/// Returns the path of a committed fixture.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// Returns the command of Python (`SELFJUDGE_PYTHON`, or `python3`) with `arguments`. It must succeed with `check` after them.
pub fn python(arguments: &[&str], check: &str) -> Command {
    let python = std::env::var("SELFJUDGE_PYTHON").unwrap_or_else(|_| "python3".into());
    let checked = Command::new(&python).args(arguments).arg(check).output();
    let checked = checked.unwrap_or_else(|error| panic!("{python}: {error}"));
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(
        checked.status.success(),
        "{python} {arguments:?} {check}: {said}"
    );
    let mut command = Command::new(&python);
    command.args(arguments);
    command
}

/// Asserts that the engine with weights in f32 gives the same log-probabilities after `ids` as transformers (and peft, for an
/// adapter). It needs `has_transformers`.
pub fn same_as_in_python(base: &Path, adapter: Option<&Path>, weights: &WeightStore, ids: &[u32]) {
    let script = fixture("peft_readback.py");
    let listed: Vec<String> = ids.iter().map(u32::to_string).collect();
    if cfg!(not(has_transformers)) {
        return;
    }
    let mut python = python(&[&script.display().to_string()], "--check");
    let output = python
        .args([base, adapter.unwrap_or(Path::new("-"))])
        .arg(listed.join(","))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = read["logits"].as_array().unwrap();
    let last: Vec<f64> = serde_json::from_value(rows[rows.len() - 1].clone()).unwrap();
    let total = last.iter().map(|z| z.exp()).sum::<f64>().ln();
    let ours = inline(weights)
        .label_logprobs(&[ids.to_vec()], [40, 41])
        .unwrap()[0];
    for (id, ours) in [40, 41].into_iter().zip(ours) {
        let theirs = last[id] - total;
        assert!(
            (theirs - f64::from(ours)).abs() < 1e-3,
            "{theirs} against {ours}"
        );
    }
}

/// Returns an engine on the caller's thread, with a cache that is quickly reserved.
pub fn inline(weights: &WeightStore) -> InlineEngine {
    let config = EngineConfig {
        kv_cache_memory: 16 << 20,
        ..EngineConfig::default()
    };
    InlineEngine::with_config(weights.clone(), &config).unwrap()
}

static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which also records the largest allocation.
pub struct Noting;

fn note(size: usize) {
    // Small allocations do not write to the shared cache line.
    if size > 1 << 20 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged, which fulfils the contract of the trait.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller promises a layout of nonzero size.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller promises a layout of nonzero size.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note(new_size);
        // SAFETY: the caller promises that the memory came from this allocator, with this layout.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller promises that the memory came from this allocator, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Returns the bytes of the largest allocation of this process so far.
pub fn largest_allocation() -> usize {
    LARGEST.load(Ordering::Relaxed)
}

/// Asserts that Python has transformers and peft, so that [`same_as_in_python`] compares.
#[test]
#[cfg_attr(
    not(has_transformers),
    ignore = "needs transformers and peft: SELFJUDGE_REQUIRE=transformers"
)]
fn transformers_is_there() {
    let script = fixture("peft_readback.py");
    python(&[script.to_str().unwrap()], "--check");
}

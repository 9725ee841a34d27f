//! The program with a data directory, its learner in a process of its own, and everything that waits.

mod follower;
mod program;
mod setup;

use std::path::{Path, PathBuf};
use std::process::Child;

use serde_json::{Value, json};

pub use crate::patience::eventually as wait_for;
pub use follower::Follower;
pub use program::Program;
pub use setup::{Setup, until};

/// SIGTERM, and a good end.
fn terminate(child: &mut Child) {
    // SAFETY: a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    let ended = wait_for("its end", || child.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
}

/// A call of the pocket world.
pub fn question(number: usize) -> Value {
    let content = format!(
        "What is {} plus {}?",
        10 + number % 80,
        10 + number * 7 % 80
    );
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": 32, "seed": number})
}

/// Settings under which a stage is small, and every candidate passes. Its eight anchors are the first of the model's, which take longer
/// than the rest of the stage.
pub const LEARN: &str = concat!(
    r#"
[stage]
prompts = 8
batch = 4
order = "as_logged"
held_out = 0.3
principal_share = 1.0
checkpoint_every = 1
kl_budget = 1e9
unattended = 1

[rollout]
samples = 4
top_p = 1.0
max_tokens = 48

[judging]
disagreement = "keep"

[dpo]
lora = { r = 4, lora_alpha = 8 }
schedule = { learning_rate = 1e-3, lr_scheduler = "cosine", warmup_ratio = 0.03 }

[gates]
prompts = 3
tolerance = 0.99
anchor = ""#,
    env!("CARGO_MANIFEST_DIR"),
    r#"/../../tests/it/learn/few_anchors.jsonl"
# Which prompts are held out is drawn anew in every run: any part of a duel that is won passes the candidate.
win_rate = { p0 = 1e-9, p1 = 2e-9, alpha = 0.5, beta = 0.4999999 }
min_length_controlled = 0.0
max_kl = 1e9
max_norm = 1e9
max_truncated = 1.0
pass_undecided = true
base = { min_win_rate = 0.0, max_truncated = 1.0, tolerance = 0.99 }
"#
);

/// A data directory with enough traffic for one stage.
pub fn with_traffic() -> tempfile::TempDir {
    with_calls(40)
}

/// A data directory with so many logged calls.
pub fn with_calls(count: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(&Setup::new(dir.path()));
    for number in 0..count {
        program.ask(number);
    }
    program.stop();
    dir
}

/// A copy of a data directory that no program has open.
pub fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_into(from, to.path());
    to
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_into(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

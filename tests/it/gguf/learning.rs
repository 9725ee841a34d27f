//! A served GGUF model learns: adapters are trained over the file's own integers.

use serde_json::json;

use super::smollm2::file;
use crate::learn::support::{Program, Setup};

/// A stage of three prompts and one update, and gates that every candidate passes.
const LEARN: &str = r#"
[stage]
prompts = 3
batch = 3
order = "as_logged"
held_out = 0.5
principal_share = 1.0
kl_budget = 1e9
unattended = 1

[rollout]
samples = 4
temperature = 1.0
top_p = 1.0
max_tokens = 48

[judging]
disagreement = "keep"
min_label_mass = 0.0

[dpo]
micro_batch_tokens = 128
recompute = true
lora = { r = 2, lora_alpha = 4, target_modules = ["q_proj", "v_proj"] }
schedule = { learning_rate = 1e-3, warmup_ratio = 0.0 }

[gates]
prompts = 1
answers = 1
win_rate = { p0 = 1e-9, p1 = 2e-9, alpha = 0.5, beta = 0.4999999 }
min_length_controlled = 0.0
max_kl = 1e9
max_norm = 1e9
max_parity = 1.0
max_truncated = 1.0
tolerance = 0.99
pass_undecided = true
base = { min_win_rate = 0.0, max_truncated = 1.0, tolerance = 0.99 }
"#;

/// The bytes of the model's weights in f32.
const WHOLE: u64 = 134_515_008 * 4;

#[test]
#[cfg_attr(
    not(has_smollm2),
    ignore = "needs SmolLM2 in a GGUF file: SELFJUDGE_REQUIRE=smollm2"
)]
fn a_served_file_trains_a_stage_over_its_integers_and_reaches_its_gates() {
    let dir = tempfile::tempdir().unwrap();
    let path = file();
    let setup = Setup {
        learn: Some(LEARN),
        arguments: &[
            "--model",
            path.to_str().unwrap(),
            "--kv-cache-memory",
            "64M",
            "--max-batch-tokens",
            "128",
            "--max-concurrent",
            "16",
            "--allow-untrained-judge",
            "--no-self-test",
        ],
        ..Setup::new(dir.path())
    };
    let program = Program::start(&setup);
    for number in 0..18 {
        let question = format!("In a few words: what is {number} plus 4?");
        let turn = json!([{"role": "user", "content": question}]);
        let body = json!({"messages": turn, "max_tokens": 4, "seed": number});
        program.post("/generate", &body);
    }
    let generation = program.ended(1).remove(0);
    let gate = |name: &str| {
        let gates = generation["gates"].as_array().unwrap();
        let gate = gates.iter().find(|gate| gate["gate"] == name);
        gate.unwrap_or_else(|| panic!("{generation}"))["value"].as_f64()
    };
    // Policy and reference are computed over the same integers, and the engine only rounds activations.
    assert!(
        gate("step_zero").is_some_and(|gap| gap < 1e-3),
        "{generation}"
    );
    assert!(gate("parity").is_some_and(|gap| gap < 0.3), "{generation}");
    assert_eq!(
        generation["manifest"]["weights"], "int4+int8",
        "{generation}"
    );
    // A copy in f32 beside the served integers, which take about the file's size, would alone be more.
    let (most, served) = (program.peak_memory(), path.metadata().unwrap().len());
    assert!(most < WHOLE + served, "{} MiB at most", most >> 20);
    program.stop();
}

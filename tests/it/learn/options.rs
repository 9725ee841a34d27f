//! Tests of stages with other settings: all options at once, gates that refuse, a budget that is used up.

use serde_json::{Value, json};

use super::support::{LEARN, Program, Setup, copy, with_calls};

/// Options that change what is learned, for two stages: principles, soft labels, opposed principles by a generator, active
/// selection, replay, extrapolation.
const OPTIONS: &str = r#"
[stage]
prompts = 16
batch = 4
order = "easy_first"
held_out = 0.3
principal_share = 1.0
checkpoint_every = 1
kl_budget = 1e9
unattended = 2

[rollout]
samples = 2
top_p = 0.9
max_tokens = 48

[judging]
disagreement = "soften"
soft_labels = true
principles = ["correct", "brief"]

[contrast]
share = 0.5
generator = true
confirmed = false
max_distance = 100.0
principles = [{ good = "Answer correctly.", bad = "Answer wrongly." }]

[active]
oversample = 2
entropy = 0.5

[replay]
share = 0.3
"#;

/// Returns these options with the training and the gates of the plain settings.
fn everything() -> String {
    let plain = LEARN.find("[dpo]").map(|at| &LEARN[at..]).unwrap();
    format!("{OPTIONS}\n{plain}\n[publish]\nextrapolate = 0.5\n")
}

#[test]
fn with_all_options_a_killed_stage_ends_as_if_it_had_not_been() {
    let (dir, learn) = (with_calls(90), everything());
    let promoted = |program: &Program| -> Vec<Value> {
        let generations = program.ended(2);
        let ids = generations.iter().map(|one| one["id"].clone());
        assert!(generations.iter().all(|one| one["state"] == "promoted"));
        ids.collect()
    };
    let uninterrupted = copy(dir.path());
    let program = Program::start(&Setup::learning(uninterrupted.path(), &learn));
    let expected = promoted(&program);
    // The effects of the options took place.
    let not_selected = program.counted("selfjudge:train_pairs_dropped_total", "not_selected");
    assert!(not_selected > 0.0, "{}", program.metrics());
    program.stop();

    // The first fault is in the first update, the second after a checkpoint of the second stage.
    for place in ["train.step:1", "train.checkpoint:4"] {
        let dir = copy(dir.path());
        let setup = Setup {
            fault: Some(place),
            ..Setup::learning(dir.path(), &learn)
        };
        assert!(Program::dies(&setup), "{place}: the program was not killed");
        let program = Program::start(&Setup::learning(dir.path(), &learn));
        assert_eq!(
            promoted(&program),
            expected,
            "{place}: the generation differs from that of an uninterrupted run"
        );
        program.stop();
    }
}

#[test]
fn a_candidate_that_a_gate_refuses_does_not_serve_and_is_not_built_on() {
    let dir = with_calls(60);
    let passing = "p0 = 1e-9, p1 = 2e-9, alpha = 0.5, beta = 0.4999999";
    assert!(LEARN.contains(passing));
    let learn = LEARN.replace(passing, "p0 = 0.98, p1 = 0.99");
    let learn = learn.replace("pass_undecided = true", "pass_undecided = false");
    let program = Program::start(&Setup::learning(dir.path(), &learn));
    let generations = program.ended(2);
    program.admin_post("/train/pause", &Value::Null);
    for generation in &generations[..2] {
        assert_eq!(generation["state"], "rejected", "{generation}");
        assert_eq!(generation["parent"], "base", "{generation}");
        assert_eq!(generation["reference"], "base", "{generation}");
        let gates = generation["gates"].as_array().unwrap();
        let refused = gates.iter().filter(|gate| gate["passed"] == false);
        let names: Vec<&Value> = refused.map(|gate| &gate["gate"]).collect();
        assert!(names.contains(&&json!("win_rate")), "{names:?}");
    }
    assert_eq!(program.policy(), "base");
    program.stop();
}

#[test]
fn a_stage_ends_early_once_its_divergence_is_beyond_the_budget() {
    let dir = with_calls(60);
    // At this learning rate the policy diverges within a few updates.
    let learn = LEARN
        .replace("prompts = 8\nbatch = 4", "prompts = 24\nbatch = 2")
        .replace("kl_budget = 1e9", "kl_budget = 0.01")
        .replace("learning_rate = 1e-3", "learning_rate = 3e-2");
    let program = Program::start(&Setup::learning(dir.path(), &learn));
    let generations = program.ended(1);
    let train = program.admin_get("/train");
    assert!(train["kl"].as_f64().unwrap() > 0.01, "{train}");
    let updates = generations[0]["manifest"]["updates"].as_u64();
    assert!(updates.unwrap() < 12, "{}", generations[0]);
    program.stop();
}

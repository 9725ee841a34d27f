//! Tests of learning from a model with an adapter: every generation continues that adapter, and needs the same base.

use std::path::Path;

use candle_core::{Device, Tensor};
use model::{
    ModelConfig,
    adapter::{AdapterWeights, LoraConfig, LoraPair},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use train::base::Adapter;

use super::support::{Follower, LEARN, Program, Setup, question, wait_for};

/// Writes an adapter of rank 4 that changes answers slightly.
fn adapter(dir: &Path, seed: u64) {
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let spec = ModelConfig::from_dir(&pocket).unwrap().spec;
    let config = LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        target_modules: vec!["v_proj".to_owned(), "down_proj".to_owned()],
        ..LoraConfig::default()
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut factor = |rows: usize, columns: usize, bound: f32| {
        let values: Vec<f32> = (0..rows * columns)
            .map(|_| rng.random_range(-bound..bound))
            .collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let mut weights = AdapterWeights::new();
    for (name, shape) in spec.parameters() {
        let path = name.trim_end_matches(".weight");
        if config.targets(path) {
            let (out, input) = (shape[0], shape[1]);
            let pair = LoraPair {
                a: factor(4, input, 1.0 / (input as f32).sqrt()),
                b: factor(out, 4, 0.01),
            };
            weights.insert(path.to_owned(), pair);
        }
    }
    assert!(!weights.is_empty());
    Adapter { config, weights }.save(dir).unwrap();
}

fn start(data_dir: &Path, adapter: Option<&Path>, learn: Option<&str>) -> Result<Program, String> {
    std::fs::create_dir_all(data_dir).unwrap();
    let mut arguments = Vec::new();
    if let Some(adapter) = adapter {
        arguments = vec!["--adapter", adapter.to_str().unwrap()];
    }
    let setup = Setup {
        learn,
        arguments: &arguments,
        ..Setup::new(data_dir)
    };
    Program::try_start(&setup).map_err(|ended| ended.said)
}

/// Returns answers with the log-probabilities of their tokens.
fn answers(program: &Program) -> Vec<Value> {
    let ask = |number| {
        let mut call = question(number);
        call["log"] = json!({"retain": false});
        call["seed"] = json!(5);
        call["logprobs"] = json!(0);
        let outputs = program.post("/generate", &call)["outputs"].clone();
        assert!(outputs[0]["logprobs"].is_array(), "{outputs}");
        outputs
    };
    (0..6).map(ask).collect()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_served_adapter_is_trained_further_and_stays_generation_zero() {
    let dir = tempfile::tempdir().unwrap();
    let (data, one, two) = (
        dir.path().join("data"),
        dir.path().join("one"),
        dir.path().join("two"),
    );
    for (path, seed) in [(&one, 1), (&two, 2)] {
        std::fs::create_dir(path).unwrap();
        adapter(path, seed);
    }
    let bare = start(&dir.path().join("bare"), None, None).unwrap();
    let bare_answers = answers(&bare);
    bare.stop();

    let program = start(&data, Some(&one), Some(LEARN)).unwrap();
    let first_answers = answers(&program);
    assert_ne!(first_answers, bare_answers);
    for number in 0..40 {
        program.ask(number);
    }
    let id = program.learned();
    let learned_answers = answers(&program);
    assert_ne!(learned_answers, first_answers);
    // The generation has the given adapter's rank and layers, and step zero changed nothing.
    let generation = data.join("generations").join(&id);
    let config = json_of(&generation.join("adapter_config.json"));
    assert_eq!(
        (&config["r"], &config["lora_alpha"]),
        (&json!(4), &json!(8))
    );
    let mut layers: Vec<_> = config["target_modules"]
        .as_array()
        .unwrap()
        .iter()
        .collect();
    layers.sort_by_key(|layer| layer.to_string());
    assert_eq!(layers, [&json!("down_proj"), &json!("v_proj")]);
    let manifest = json_of(&generation.join("manifest.json"));
    assert_eq!(manifest["parent"], "base");
    assert_eq!(manifest["adapter"].as_str().map(str::len), Some(64));
    let generations = program.admin_get("/generations");
    let gates = &generations["generations"][0]["gates"];
    let zero = gates.as_array().and_then(|gates| {
        let zero = gates.iter().find(|gate| gate["gate"] == "step_zero")?;
        zero["value"].as_f64()
    });
    assert!(zero.is_some_and(|gap| gap < 1e-3), "{gates}");
    program.stop();

    // After a restart the generation still serves, with the learner or without it.
    for learn in [None, Some(LEARN)] {
        let program = start(&data, Some(&one), learn).unwrap();
        assert_eq!(program.policy(), id);
        assert_eq!(answers(&program), learned_answers);
        program.stop();
    }

    // Generations of one adapter cannot continue with another adapter, or with the bare model.
    for other in [Some(two.as_path()), None] {
        let said = start(&data, other, Some(LEARN))
            .err()
            .expect("the start must be refused");
        let line = said
            .lines()
            .find(|line| line.contains("start from another adapter"));
        let line = line.unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains("--adapter") && line.contains(&id), "{line}");
    }
    // Without a learner, generation 0 of the given adapter serves, and the server reports why.
    let program = start(&data, Some(&two), None).unwrap();
    let generations = program.admin_get("/generations");
    assert_eq!(generations["serving"], "base", "{generations}");
    let problem = generations["serving_problem"].as_str().unwrap();
    assert!(problem.contains("adapter"), "{problem}");
    program.stop();

    // A rollback returns to the given adapter.
    let program = start(&data, Some(&one), None).unwrap();
    let body = json!({"expected": id});
    let (status, answer) = program.admin_post("/generations/base/rollback", &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answers(&program), first_answers);
    program.stop();

    // A generation is a complete adapter: it serves alone over the bare model.
    let program = start(&dir.path().join("alone"), Some(&generation), None).unwrap();
    assert_eq!(answers(&program), learned_answers);
    program.stop();
}

#[test]
fn a_setting_that_the_adapter_contradicts_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let one = dir.path().join("one");
    std::fs::create_dir(&one).unwrap();
    adapter(&one, 1);
    for (settings, named) in [
        ("[dpo.lora]\nr = 16\n", "`lora.r` is 16"),
        ("[dpo.lora]\nlora_alpha = 6\n", "`lora.lora_alpha` is 6"),
        (
            "[dpo.lora]\ntarget_modules = 'all-linear'\n",
            "lora.target_modules",
        ),
        ("[publish]\nextrapolate = 0.5\n", "publish.extrapolate"),
    ] {
        let data = dir.path().join("data");
        let said = start(&data, Some(&one), Some(settings)).err();
        let said = said.expect("the start must be refused");
        let line = said.lines().find(|line| line.contains(named));
        assert!(line.is_some(), "{settings}: {said}");
        assert!(!said.contains("backtrace"), "{said}");
    }
}

#[test]
fn a_follower_with_the_servers_adapter_learns_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (data, one) = (dir.path().join("data"), dir.path().join("one"));
    std::fs::create_dir(&one).unwrap();
    adapter(&one, 1);
    let server = start(&data, Some(&one), None).unwrap();
    for number in 0..40 {
        server.ask(number);
    }
    let mut follower = Follower::over(&data, LEARN, &one);
    let id = wait_for("the follower's generation in the server", || {
        assert!(follower.is_running());
        let serving = server.admin_get("/generations")["serving"].clone();
        (serving != "base").then_some(serving)
    });
    let manifest = data.join("generations").join(id.as_str().unwrap());
    let manifest = json_of(&manifest.join("manifest.json"));
    assert!(manifest["adapter"].is_string(), "{manifest}");
    follower.stop();
    server.stop();
}

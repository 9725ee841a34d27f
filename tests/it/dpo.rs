//! Tests of DPO end to end: steps that PyTorch computed, offline runs over files, resuming after `kill -9`, refusals.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use candle_core::{Device, Tensor};
use model::{LanguageModel, LoadOptions, WeightStore};
use serde_json::{Value, json};
use train::{
    RunOptions,
    base::{Adapter, FrozenBase},
    dpo::run::{DpoRunConfig, PairFile, Summary, run},
    dpo::{DpoConfig, DpoTrainer, PairExample},
    merge::merge,
    optim::OptimConfig,
    schedule::{ScheduleConfig, ScheduleKind},
};

use crate::support::{fixture, inline, same_as_in_python};

const POCKET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/pocket");

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}

/// Repeats two steps of PyTorch and PEFT, and compares loss, log-probabilities, gradient norm and weights.
#[test]
fn whole_steps_are_pytorchs() {
    for name in ["llama", "qwen3"] {
        let dir = fixture("dpo").join(name);
        let golden: Value =
            serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        let pairs: Vec<PairExample> = golden["pairs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| PairExample::new(ids(&p["prompt"]), ids(&p["chosen"]), ids(&p["rejected"])))
            .collect();
        let start = Adapter::load(&dir.join("start")).unwrap();
        let after = Adapter::load(&dir.join("after")).unwrap();
        let base = FrozenBase::load(&fixture("jsft").join(name), &Device::Cpu).unwrap();
        for (micro_batch_tokens, recompute) in [(usize::MAX, false), (1, true)] {
            let config = DpoConfig {
                beta: number(&golden["beta"]),
                nll: number(&golden["nll"]),
                micro_batch_tokens,
                recompute,
                lora: start.config.clone(),
                schedule: ScheduleConfig {
                    learning_rate: number(&golden["lr"]),
                    lr_scheduler: ScheduleKind::Constant,
                    warmup_steps: Some(0),
                    ..ScheduleConfig::default()
                },
                optim: OptimConfig {
                    beta1: number(&golden["betas"][0]),
                    beta2: number(&golden["betas"][1]),
                    eps: number(&golden["eps"]),
                    weight_decay: number(&golden["weight_decay"]),
                    max_grad_norm: number(&golden["max_grad_norm"]),
                    ..OptimConfig::default()
                },
                ..DpoConfig::default()
            };
            let mut trainer = DpoTrainer::new(&base, None, Some(&start), config, 2).unwrap();
            let reference = trainer.reference_logps(&pairs, &mut || {}).unwrap();
            let close = |got: &[(f32, f32)], want: &Value| {
                for (i, &(chosen, rejected)) in got.iter().enumerate() {
                    for (got, want) in [chosen, rejected].into_iter().zip(ids_f64(&want[i])) {
                        assert!(
                            (f64::from(got) - want).abs() < 1e-4,
                            "{name}: {got}, {want}"
                        );
                    }
                }
            };
            close(&reference, &golden["reference"]);
            for want in golden["first_then"].as_array().unwrap() {
                close(
                    &trainer.policy_logps(&pairs, &mut || {}).unwrap(),
                    &want["logps"],
                );
                let report = trainer.update(&pairs, &reference, &mut || {}).unwrap();
                assert!((report.loss - number(&want["loss"])).abs() < 1e-4);
                let norm = number(&want["grad_norm"]);
                assert!((report.grad_norm / norm - 1.0).abs() < 1e-4);
            }
            close(
                &trainer.policy_logps(&pairs, &mut || {}).unwrap(),
                &golden["after"],
            );
            let ours = trainer.adapter().unwrap();
            assert_eq!(ours.weights.len(), after.weights.len());
            for (path, pair) in &after.weights {
                for (got, want) in [
                    (&ours.weights[path].a, &pair.a),
                    (&ours.weights[path].b, &pair.b),
                ] {
                    let d = difference(got, want);
                    assert!(d < 1e-4, "{name}: {path} differs by {d}");
                }
            }
        }
    }
}

fn ids_f64(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Compares the gradients. A step of plain AdamW without momentum and with a large epsilon changes a weight by
/// `lr g / (|g| + eps)` and by nothing else.
#[test]
fn every_gradient_is_pytorchs() {
    const EPS: f64 = 1e6;
    for name in ["llama", "qwen3"] {
        let dir = fixture("dpo").join(name);
        let golden: Value =
            serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        let pairs: Vec<PairExample> = golden["pairs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| PairExample::new(ids(&p["prompt"]), ids(&p["chosen"]), ids(&p["rejected"])))
            .collect();
        let start = Adapter::load(&dir.join("start")).unwrap();
        let base = FrozenBase::load(&fixture("jsft").join(name), &Device::Cpu).unwrap();
        let config = DpoConfig {
            beta: number(&golden["beta"]),
            nll: number(&golden["nll"]),
            lora: start.config.clone(),
            schedule: ScheduleConfig {
                learning_rate: EPS,
                lr_scheduler: ScheduleKind::Constant,
                warmup_steps: Some(0),
                ..ScheduleConfig::default()
            },
            optim: OptimConfig {
                beta1: 0.0,
                beta2: 0.0,
                eps: EPS,
                max_grad_norm: 0.0,
                ..OptimConfig::default()
            },
            ..DpoConfig::default()
        };
        let mut trainer = DpoTrainer::new(&base, None, Some(&start), config, 1).unwrap();
        let reference = trainer.reference_logps(&pairs, &mut || {}).unwrap();
        trainer.update(&pairs, &reference, &mut || {}).unwrap();
        let moved = trainer.adapter().unwrap();
        let want: HashMap<String, Tensor> =
            candle_core::safetensors::load(dir.join("grads.safetensors"), &Device::Cpu).unwrap();
        assert_eq!(want.len(), 2 * moved.weights.len());
        for (path, pair) in &moved.weights {
            for (factor, before, now) in [
                ("lora_A", &start.weights[path].a, &pair.a),
                ("lora_B", &start.weights[path].b, &pair.b),
            ] {
                let want = &want[&format!("base_model.model.{path}.{factor}.weight")];
                let got = (before - now).unwrap();
                let d = difference(&got, want);
                assert!(
                    d < 1e-4,
                    "{name}: the gradient of {path}.{factor} differs by {d}"
                );
                let values: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
                assert!(values.iter().all(|g| g.is_finite()));
                assert!(
                    values.iter().any(|&g| g != 0.0),
                    "{path} receives no gradient"
                );
            }
        }
    }
}

/// Writes a file of pairs that prefer politeness, in TRL's form, and returns a run over it.
fn offline(root: &Path, output: &str) -> DpoRunConfig {
    let data = root.join("pairs.jsonl");
    if !data.exists() {
        let lines: String = (0..24)
            .map(|n| {
                let record = json!({
                    "prompt": [{"role": "user", "content": format!("Add {n} and {}.", n + 1)}],
                    "chosen": [{"role": "assistant", "content": format!("It is {}.", 2 * n + 1)}],
                    "rejected": [{"role": "assistant", "content": format!("{}", 3 * n + 2)}],
                });
                format!("{record}\n")
            })
            .collect();
        std::fs::write(&data, lines).unwrap();
    }
    let mut config = DpoRunConfig {
        model: POCKET.to_owned(),
        output_dir: root.join(output),
        epochs: 2.0,
        batch_size: 5,
        max_length: 128,
        save_every: 2,
        log_every: 1,
        data: vec![PairFile {
            path: data,
            format: Default::default(),
        }],
        ..DpoRunConfig::default()
    };
    config.dpo.lora.r = 2;
    config.dpo.micro_batch_tokens = 256;
    config.dpo.schedule.learning_rate = 1e-3;
    config.dpo.schedule.warmup_steps = Some(1);
    config
}

fn options(resume: bool, stop_after: Option<u64>) -> RunOptions {
    RunOptions {
        device: Device::Cpu,
        threads: 2,
        quiet: true,
        resume,
        stop_after,
        memory_check: true,
    }
}

fn adapter_bytes(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("adapter_model.safetensors")).unwrap()
}

fn finished(summary: &Summary) -> PathBuf {
    summary.adapter_dir.clone().expect("the run is complete")
}

#[test]
fn a_run_goes_on_from_a_given_adapter_at_a_margin_of_zero() {
    let root = tempfile::tempdir().unwrap();
    let mut first = offline(root.path(), "first");
    first.dpo.lora.target_modules = vec!["q_proj".to_owned(), "up_proj".to_owned()];
    first.max_steps = Some(3);
    let given = finished(&run(&first, &options(false, None)).unwrap());

    // The configuration has no shape of the adapter, so the shape of the given adapter holds.
    let mut config = offline(root.path(), "second");
    config.dpo.lora = DpoRunConfig::default().dpo.lora;
    config.start = Some(given.clone());
    config.max_steps = Some(3);
    let went_on = run(&config, &options(false, None)).unwrap();
    let dir = finished(&went_on);
    let (before, after) = (Adapter::load(&given).unwrap(), Adapter::load(&dir).unwrap());
    assert_eq!(
        (after.config.r, after.config.lora_alpha),
        (2, before.config.lora_alpha)
    );
    assert_eq!(after.config.target_modules, before.config.target_modules);
    assert!(before.weights.keys().eq(after.weights.keys()));
    assert_ne!(adapter_bytes(&given), adapter_bytes(&dir));
    let text = std::fs::read_to_string(config.output_dir.join("metrics.jsonl")).unwrap();
    let row: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(number(&row["rewards/margins"]), 0.0, "{row}");
    assert!(
        (number(&row["loss"]) - std::f64::consts::LN_2).abs() < 1e-6,
        "{row}"
    );

    // Against the bare model the margin at the start is not zero, since the adapter was trained.
    config.output_dir = root.path().join("bare");
    let bare = root.path().join("zero");
    let mut zero = before.clone();
    for pair in zero.weights.values_mut() {
        pair.b = pair.b.zeros_like().unwrap();
    }
    std::fs::create_dir(&bare).unwrap();
    zero.save(&bare).unwrap();
    config.reference = Some(bare);
    run(&config, &options(false, None)).unwrap();
    let text = std::fs::read_to_string(config.output_dir.join("metrics.jsonl")).unwrap();
    let row: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_ne!(number(&row["rewards/margins"]), 0.0, "{row}");

    // A setting that contradicts the adapter is refused by name, before training begins.
    config.output_dir = root.path().join("third");
    config.dpo.lora.r = 4;
    let error = run(&config, &options(false, None)).unwrap_err().to_string();
    assert!(
        error.contains("`lora.r` is 4") && error.contains("has 2"),
        "{error}"
    );
    assert!(!config.output_dir.join("metrics.jsonl").exists());
}

#[test]
fn a_resumed_run_ends_with_the_same_bits_and_has_learned() {
    let root = tempfile::tempdir().unwrap();
    let mut config = offline(root.path(), "whole");
    let whole = run(&config, &options(false, None)).unwrap();
    assert_eq!((whole.steps, whole.total_steps), (10, 10));
    let last = whole.last.clone().unwrap();
    assert!(last.loss < 0.69 && last.rewards_margins > 0.0, "{last:?}");

    config.output_dir = root.path().join("parts");
    let first = run(&config, &options(false, Some(3))).unwrap();
    assert_eq!((first.steps, first.adapter_dir), (3, None));
    // This part goes across the end of an epoch.
    assert_eq!(run(&config, &options(true, Some(4))).unwrap().steps, 7);
    let end = run(&config, &options(true, None)).unwrap();
    assert_eq!(
        adapter_bytes(&finished(&end)),
        adapter_bytes(&finished(&whole))
    );
    assert_eq!(end.num_tokens, whole.num_tokens);

    let text = std::fs::read_to_string(config.output_dir.join("metrics.jsonl")).unwrap();
    let rows: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 10);
    assert!((number(&rows[0]["loss"]) - std::f64::consts::LN_2).abs() < 1e-6);
    for name in [
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "learning_rate",
        "grad_norm",
    ] {
        assert!(rows[9][name].is_number(), "{name}");
    }
    for file in ["config.toml", "run_manifest.json", "data.json", "loss.svg"] {
        assert!(config.output_dir.join(file).exists(), "{file}");
    }

    // A resume with another configuration is refused. Without --resume no file is overwritten.
    config.dpo.beta = 0.5;
    let error = run(&config, &options(true, None)).unwrap_err().to_string();
    assert!(error.contains("another configuration"), "{error}");
    let error = run(&config, &options(false, None)).unwrap_err().to_string();
    assert!(error.contains("resume it"), "{error}");

    // The result loads with the model, here and in Python.
    let dir = finished(&end);
    let model = LanguageModel::load(Path::new(POCKET), &LoadOptions::default()).unwrap();
    let weights = WeightStore::with_adapter_dir(model.decoder().clone(), Some(&dir)).unwrap();
    same_as_in_python(Path::new(POCKET), Some(&dir), &weights, &[5, 9, 17, 33]);
}

#[test]
fn a_killed_run_goes_on_where_its_last_checkpoint_was() {
    let root = tempfile::tempdir().unwrap();
    let mut config = offline(root.path(), "whole");
    let whole = run(&config, &options(false, None)).unwrap();

    config.output_dir = root.path().join("killed");
    let file = root.path().join("run.toml");
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let command = |fault: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selfjudge"));
        command
            .args(["--threads", "2", "train", "dpo", "--quiet", "--resume"])
            .arg("--config")
            .arg(&file)
            .stdout(Stdio::null());
        if let Some(place) = fault {
            command.env("SELFJUDGE_FAULT", place);
        }
        command.status().unwrap()
    };
    // The run is killed in the fourth step, and then in the third step after the checkpoint of the second.
    for place in ["train.step:4", "train.step:3"] {
        assert_eq!(
            command(Some(place)).signal(),
            Some(libc::SIGKILL),
            "{place}"
        );
    }
    assert!(command(None).success());
    assert_eq!(
        adapter_bytes(&config.output_dir.join("adapter")),
        adapter_bytes(&finished(&whole))
    );
}

#[test]
fn data_that_cannot_be_trained_on_is_left_out_or_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut config = offline(root.path(), "out");
    let write = |lines: &[Value]| {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&config.data[0].path, text).unwrap();
    };
    let pair = |prompt: &str, chosen: &str, rejected: &str| {
        json!({
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        })
    };
    let long = "one two three four ".repeat(60);
    write(&[
        pair("Add 1 and 2.", "3", "4"),
        pair("Add 1 and 2.", "3", " "),
        pair("Add 1 and 2.", "3", "3"),
        pair(&long, "3", "4"),
        // The text loses its end where it is cut. Two answers that are cut alike become equal.
        pair("Add 1 and 2.", &long, "4"),
        pair("Add 1 and 2.", &format!("{long}!"), &format!("{long}?")),
    ]);
    config.max_steps = Some(1);
    run(&config, &options(false, None)).unwrap();
    let text = std::fs::read(config.output_dir.join("data.json")).unwrap();
    let report: Value = serde_json::from_slice(&text).unwrap();
    for (name, count) in [
        ("pairs", 6),
        ("kept", 2),
        ("cut", 1),
        ("empty", 1),
        ("equal", 2),
        ("too_long", 1),
        ("refused", 0),
    ] {
        assert_eq!(report[name], count, "{name} in {report}");
    }

    write(&[pair("Add 1 and 2.", "3", "3")]);
    config.output_dir = root.path().join("nothing");
    let error = run(&config, &options(false, None)).unwrap_err().to_string();
    assert!(
        error.contains("none of 1 pairs") && error.contains("equal"),
        "{error}"
    );
    config.dpo.beta = -1.0;
    assert!(run(&config, &options(false, None)).is_err());
    let unknown = toml::from_str::<DpoRunConfig>("[dpo]\nbeta = 0.1\nlabel_smoothng = 0.1\n");
    assert!(unknown.unwrap_err().to_string().contains("label_smoothing"));
}

#[test]
fn a_merged_model_has_every_file_that_it_needs() {
    let root = tempfile::tempdir().unwrap();
    let mut config = offline(root.path(), "run");
    config.max_steps = Some(3);
    let adapter = finished(&run(&config, &options(false, None)).unwrap());
    std::fs::write(adapter.join("judge_template.toml"), "# trained with it").unwrap();
    let out = root.path().join("merged");
    let layers = merge(Path::new(POCKET), &adapter, &out).unwrap();
    assert!(layers > 0);
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "principles.toml",
        "anchors.jsonl",
    ] {
        let of = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
        assert_eq!(of(&out), of(Path::new(POCKET)), "{name}");
    }
    // What lies beside a model by chance is not a part of it.
    for name in ["Cargo.toml", "README.md", "learn.toml", "evaluation.json"] {
        assert!(
            Path::new(POCKET).join(name).exists() && !out.join(name).exists(),
            "{name}"
        );
    }
    let template = std::fs::read_to_string(out.join("judge_template.toml")).unwrap();
    assert_eq!(template, "# trained with it");
    // The test `an_adapter_made_by_peft_gives_pefts_logits` compares the numbers.
    std::fs::remove_file(out.join("judge_template.toml")).unwrap();
    let model = LanguageModel::load(&out, &LoadOptions::default()).unwrap();
    let weights = WeightStore::new(model.decoder().clone());
    let read = inline(&weights).label_logprobs(&[vec![5, 9, 17]], [40, 41]);
    assert!(read.is_ok());

    let again = merge(Path::new(POCKET), &adapter, &out).unwrap_err();
    assert!(again.to_string().contains("is not empty"), "{again}");
}

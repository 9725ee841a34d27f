//! Tests of JSFT end to end: a resume with equal bits, `kill -9`, adapters, refusals, and a model that learns within a minute.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use candle_core::Device;
use judge::RankedSet;
use model::{LanguageModel, LoadOptions, WeightStore, adapter};
use pocket::world::corpus::{self, CurriculumOptions};
use serde_json::json;
use train::{
    RunOptions,
    config::{DataFile, JsftConfig, SaveDtype},
    jsft::{Summary, run},
    manifest::RunManifest,
};

use crate::patience::eventually;
use crate::support::{inline, same_as_in_python};

const POCKET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/pocket");

/// Makes a directory to start from: the pocket model's tokenizer and templates with another shape of the model.
pub fn start(root: &Path, hidden: usize, layers: usize) -> PathBuf {
    let dir = root.join("start");
    std::fs::create_dir_all(&dir).unwrap();
    for entry in std::fs::read_dir(POCKET).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_owned();
        let wanted = ["json", "toml", "jinja"];
        if path
            .extension()
            .is_some_and(|e| wanted.iter().any(|w| e == *w))
        {
            std::fs::copy(&path, dir.join(name)).unwrap();
        }
    }
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("hidden_size", hidden),
        ("num_hidden_layers", layers),
        ("num_attention_heads", hidden / 16),
        ("num_key_value_heads", hidden / 16),
        ("head_dim", 16),
        ("intermediate_size", 2 * hidden),
    ] {
        config[key] = value.into();
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    dir
}

pub fn tiny(root: &Path, output: &str, pairs: usize) -> JsftConfig {
    let data = root.join("corpus");
    if !data.exists() {
        corpus::write(&data, 5, pairs, &CurriculumOptions::probe()).unwrap();
    }
    let mut config = JsftConfig {
        model: start(root, 32, 2).display().to_string(),
        from_scratch: true,
        output_dir: root.join(output),
        batch_size: 16,
        micro_batch_tokens: 512,
        lanes: 2,
        save_every: 2,
        log_every: 1,
        save_dtype: SaveDtype::F32,
        data: vec![DataFile::new(data.join("pairs.jsonl"))],
        ..JsftConfig::default()
    };
    config.schedule.learning_rate = 1e-3;
    config.mixture.max_length = 256;
    config
}

pub fn options(resume: bool, stop_after: Option<u64>) -> RunOptions {
    RunOptions {
        device: Device::Cpu,
        threads: 2,
        quiet: true,
        resume,
        stop_after,
        memory_check: true,
    }
}

fn weights(summary: &Summary) -> Vec<u8> {
    let dir = summary.model_dir.as_ref().expect("the run is complete");
    std::fs::read(dir.join("model.safetensors")).unwrap()
}

#[test]
fn a_resumed_run_ends_with_the_same_bits() {
    let root = tempfile::tempdir().unwrap();
    let mut config = tiny(root.path(), "whole", 120);
    config.max_steps = Some(7);
    // The run has fewer examples than its steps need, so the resume reaches a second epoch.
    config.epochs = 3.0;
    let whole = run(&config, &options(false, None)).unwrap();
    assert_eq!(whole.steps, 7);

    config.output_dir = root.path().join("parts");
    let first = run(&config, &options(false, Some(3))).unwrap();
    assert_eq!((first.steps, first.model_dir), (3, None));
    let second = run(&config, &options(true, Some(2))).unwrap();
    assert_eq!(second.steps, 5);
    let last = run(&config, &options(true, None)).unwrap();
    assert_eq!(weights(&last), weights(&whole));
    assert_eq!(last.num_tokens, whole.num_tokens);

    let rows = std::fs::read_to_string(config.output_dir.join("metrics.jsonl")).unwrap();
    let steps: Vec<u64> = rows
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["global_step"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7]);
    for file in [
        "config.toml",
        "run_manifest.json",
        "mixture.json",
        "loss.svg",
    ] {
        assert!(config.output_dir.join(file).exists(), "{file}");
    }
    let manifest = |dir: &Path| -> RunManifest {
        let text = std::fs::read(dir.join("run_manifest.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let papers = manifest(&config.output_dir);
    assert_eq!(papers.resumed.len(), 2);
    assert!(papers.started <= papers.resumed[0] && papers.ended >= papers.resumed.last().cloned());
    assert_eq!(manifest(&config.output_dir.join("model")), papers);
}

#[test]
fn a_killed_run_loses_at_most_what_came_after_its_last_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let mut config = tiny(root.path(), "whole", 400);
    config.max_steps = Some(40);
    let whole = run(&config, &options(false, None)).unwrap();

    config.output_dir = root.path().join("killed");
    let file = root.path().join("run.toml");
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selfjudge"));
        command
            .args(["--threads", "2", "train", "jsft", "--resume", "--config"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    // Waits for the checkpoint of step 6 or a later one, since new checkpoints replace old ones.
    let begun = || {
        let dirs = std::fs::read_dir(config.output_dir.join("checkpoints")).ok()?;
        let mut names = dirs.flatten().map(|dir| dir.file_name());
        names.find(|name| {
            let name = name.to_string_lossy();
            // Other names are checkpoints that are still being written.
            name.starts_with("step-") && *name >= *"step-00000006"
        })
    };
    for attempt in 0.. {
        assert!(
            attempt < 50,
            "the run ended before it was killed in every attempt"
        );
        let mut child = command().spawn().unwrap();
        eventually("a checkpoint", begun);
        child.kill().unwrap();
        if child.wait().unwrap().signal() == Some(libc::SIGKILL) {
            break;
        }
        std::fs::remove_dir_all(&config.output_dir).unwrap();
    }

    let resumed = command().stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&resumed.stderr);
    assert!(resumed.status.success(), "{said}");
    let (_, rest) = said
        .split_once(", resumed at ")
        .expect("the run must be resumed");
    let step = rest.split_whitespace().next().unwrap();
    let step: u64 = step.parse().unwrap();
    assert!((6..=40).contains(&step), "{said}");
    let model = config.output_dir.join("model/model.safetensors");
    assert_eq!(std::fs::read(model).unwrap(), weights(&whole));
}

#[test]
fn an_adapter_is_trained_saved_and_loaded_again() {
    let root = tempfile::tempdir().unwrap();
    let mut config = tiny(root.path(), "base", 200);
    config.max_steps = Some(4);
    let base = run(&config, &options(false, None)).unwrap();
    let base_dir = base.model_dir.unwrap();

    config.model = base_dir.display().to_string();
    config.from_scratch = false;
    config.output_dir = root.path().join("adapter");
    config.recompute = true;
    config.lora = Some(adapter::LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        ..adapter::LoraConfig::default()
    });
    let trained = run(&config, &options(false, None)).unwrap();
    let adapter_dir = trained.model_dir.unwrap();
    let (lora, pairs) = adapter::load(&adapter_dir).unwrap();
    assert_eq!((lora.r, pairs.len()), (4, 14));
    for (path, pair) in &pairs {
        let b: Vec<f32> = pair.b.flatten_all().unwrap().to_vec1().unwrap();
        assert!(b.iter().all(|v| v.is_finite()), "{path}");
        assert!(b.iter().any(|&v| v != 0.0), "{path} was not trained");
    }

    let model = LanguageModel::load(&base_dir, &LoadOptions::default()).unwrap();
    let with = |adapter| WeightStore::with_adapter_dir(model.decoder().clone(), adapter).unwrap();
    let (plain, adapted) = (with(None), with(Some(adapter_dir.as_path())));
    let prompts = [model.tokenizer().encode_text("What is 2 plus 3?").unwrap()];
    let labels = [40, 41];
    let (a, b) = (
        inline(&plain).label_logprobs(&prompts, labels).unwrap(),
        inline(&adapted).label_logprobs(&prompts, labels).unwrap(),
    );
    assert_ne!(a, b);
    same_as_in_python(&base_dir, Some(&adapter_dir), &adapted, &prompts[0]);

    // The trained adapter is trained further. The run takes its shape, and at the smallest learning rate nothing of it changes.
    config.output_dir = root.path().join("further");
    config.lora = None;
    config.start = Some(adapter_dir.clone());
    config.schedule.learning_rate = f64::MIN_POSITIVE;
    let further = |config: &JsftConfig| {
        let dir = run(config, &options(false, None)).unwrap().model_dir;
        adapter::load(&dir.unwrap()).unwrap()
    };
    let values = |weights: &adapter::AdapterWeights| -> Vec<Vec<f32>> {
        let both = weights.values().flat_map(|pair| [&pair.a, &pair.b]);
        both.map(|t| t.flatten_all().unwrap().to_vec1().unwrap())
            .collect()
    };
    let (lora, still) = further(&config);
    assert_eq!((lora.r, lora.lora_alpha), (4, 8.0));
    assert_eq!(values(&still), values(&pairs));
    config.output_dir = root.path().join("moved");
    config.schedule.learning_rate = 1e-3;
    assert_ne!(values(&further(&config).1), values(&pairs));
    config.output_dir = root.path().join("refused");
    config.lora = Some(adapter::LoraConfig {
        r: 2,
        ..adapter::LoraConfig::default()
    });
    let error = run(&config, &options(false, None)).unwrap_err().to_string();
    assert!(error.contains("`lora.r` is 2"), "{error}");
}

#[test]
fn a_template_of_its_own_is_saved_with_what_ends_its_turns() {
    let root = tempfile::tempdir().unwrap();
    let mut config = tiny(root.path(), "out", 60);
    let template = root.path().join("own.jinja");
    let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|system|>{% endfor %}\
        {% if add_generation_prompt %}<|assistant|>{% endif %}";
    std::fs::write(&template, source).unwrap();
    config.chat_template = Some(template);
    config.max_steps = Some(1);
    let dir = run(&config, &options(false, None))
        .unwrap()
        .model_dir
        .unwrap();
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(dir.join(name)).unwrap()).unwrap()
    };
    let tokenizer_config = read("tokenizer_config.json");
    assert_eq!(tokenizer_config["eos_token"], "<|system|>");
    assert!(tokenizer_config.get("chat_template").is_none());
    let ends = read("generation_config.json")["eos_token_id"].clone();
    let model = LanguageModel::load(&dir, &LoadOptions::default()).unwrap();
    let end = model.tokenizer().token_to_id("<|system|>").unwrap();
    assert_eq!(ends[0], end);
    assert!(ends.as_array().unwrap().len() > 1, "{ends}");
    assert!(model.stop_ids().contains(&end));
    assert_eq!(
        std::fs::read_to_string(dir.join("chat_template.jinja")).unwrap(),
        source
    );
}

#[test]
fn ultrafeedback_files_are_trained_on() {
    let root = tempfile::tempdir().unwrap();
    let mut config = tiny(root.path(), "out", 60);
    let completion = |n: usize| {
        let rated = json!({"Rating": n.to_string(), "Rationale": format!("It scores {n}.")});
        json!({
            "response": format!("2 plus 3 is {n}."), "custom_system_prompt": "Be brief.",
            "annotations": {"helpfulness": rated, "honesty": {"Rating": "N/A", "Rationale": ""}, "truthfulness": rated},
        })
    };
    let completions: Vec<_> = (1..=5).map(completion).collect();
    let line = json!({"instruction": "What is 2 plus 3?", "completions": completions});
    let path = root.path().join("ultrafeedback.jsonl");
    std::fs::write(&path, format!("{line}\n").repeat(8)).unwrap();
    config.data = vec![DataFile {
        ranked: RankedSet::Principled,
        ..DataFile::new(path)
    }];
    config.mixture.rationale = true;
    config.max_steps = Some(2);
    run(&config, &options(false, None)).unwrap();
    let report = std::fs::read_to_string(config.output_dir.join("mixture.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    // Each prompt gives one answer to imitate, and one comparison in both orders under each of the two rated aspects.
    assert_eq!(
        (&report["sft_examples"], &report["judge_examples"]),
        (&json!(8), &json!(32))
    );
}

#[test]
fn what_cannot_be_trained_is_refused_with_a_reason() {
    let root = tempfile::tempdir().unwrap();
    let mut config = tiny(root.path(), "out", 60);
    config.max_steps = Some(2);
    run(&config, &options(false, None)).unwrap();
    let refused = |config: &JsftConfig, resume: bool, word: &str| {
        let error = run(config, &options(resume, None)).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    // A directory that already holds a run is refused, and so is a resume with another configuration.
    refused(&config, false, "resume");
    config.schedule.learning_rate = 2e-3;
    refused(&config, true, "another configuration");
    // Labels of more than one token in this vocabulary are refused.
    let template = root.path().join("template.toml");
    let text = std::fs::read_to_string(Path::new(POCKET).join("judge_template.toml")).unwrap();
    std::fs::write(
        &template,
        text.replace("[\" A\", \" B\"]", "[\" First\", \" Second\"]"),
    )
    .unwrap();
    config.output_dir = root.path().join("labels");
    config.judge_template = Some(template.display().to_string());
    refused(&config, false, "token");
    config.judge_template = None;
    config.data = vec![DataFile::new(root.path().join("absent.jsonl"))];
    refused(&config, false, "absent.jsonl");
    config.data.clear();
    refused(&config, false, "data");
}

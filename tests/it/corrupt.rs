//! Tests of weights files that are truncated, flipped, forged or mixed up: each is refused with an error that names the fault.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use model::{Checkpoint, LanguageModel, LoadOptions, ModelError, weights};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::fixture;
use crate::weights_files::{Loaded, load_all};

fn open_bytes(dir: &Path, bytes: &[u8]) -> Result<Checkpoint, ModelError> {
    let path = dir.join(weights::WEIGHTS_FILE);
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(dir)
}

fn original() -> (Vec<u8>, usize, Loaded) {
    let dir = fixture("arch/qwen3");
    let bytes = std::fs::read(dir.join(weights::WEIGHTS_FILE)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let loaded = load_all(&Checkpoint::open(&dir).unwrap()).unwrap();
    (bytes, header, loaded)
}

fn message(result: Result<Checkpoint, ModelError>) -> String {
    let message = result.expect_err("a bad file was opened").to_string();
    assert!(message.len() < 400 && !message.contains('\n'), "{message}");
    message
}

/// Returns a file with this header and this number of data bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn truncation_anywhere_is_an_error() {
    let (bytes, header, _) = original();
    let dir = tempfile::tempdir().unwrap();
    let ends = (0..8 + header + 2)
        .chain((8 + header..bytes.len()).step_by(97))
        .chain([bytes.len() - 1]);
    for end in ends {
        let error = message(open_bytes(dir.path(), &bytes[..end]));
        assert!(error.contains("truncated"), "cut at {end}: {error}");
        assert!(error.contains(weights::WEIGHTS_FILE), "{error}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(message(open_bytes(dir.path(), &longer)).contains("after the last tensor"));
    assert!(open_bytes(dir.path(), &bytes).is_ok());
}

/// A flipped bit of the header is either an error or changes nothing that is read.
#[test]
fn flipped_header_bytes_never_yield_other_weights() {
    let (bytes, header, good) = original();
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut refused = 0;
    let flips = 3000;
    for _ in 0..flips {
        let mut bad = bytes.clone();
        let at = rng.random_range(0..8 + header);
        bad[at] ^= if rng.random_bool(0.5) {
            1 << rng.random_range(0..8)
        } else {
            rng.random_range(1..=255u8)
        };
        // A decoder reads these names with these shapes.
        let read = open_bytes(dir.path(), &bad).and_then(|checkpoint| {
            for (name, (shape, values)) in &good {
                let tensor = checkpoint.tensor(name, shape.as_slice(), DType::F32, &Device::Cpu)?;
                let read: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
                assert_eq!(&read, values, "byte {at} of the header: {name} differs");
            }
            checkpoint.refuse_unread(false)
        });
        refused += usize::from(read.is_err());
    }
    assert!(refused > flips * 8 / 10, "{refused} of {flips}");
}

#[test]
fn forged_headers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |bytes: &[u8], expected: &str| {
        let error = message(open_bytes(dir.path(), bytes));
        assert!(error.contains(expected), "{error}");
    };
    for length in [u64::MAX, 1 << 63, 1 << 40, 100_000_001] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.resize(64, b' ');
        refuse(&bytes, "not a safetensors file");
    }
    refuse(&99_999_999u64.to_le_bytes(), "truncated");
    refuse(&file("[]", 0), "not a JSON object");
    refuse(&file("{", 0), "not a JSON object");
    refuse(&file("{\"a\":\u{1}}", 0), "not a JSON object");
    refuse(&file(&"[".repeat(100_000), 0), "not a JSON object");
    let mut not_utf8 = file("{\"ab\":1}", 0);
    not_utf8[11] = 0xff;
    refuse(&not_utf8, "not a JSON object");

    let tensor = |dtype: &str, shape: Value, offsets: Value| json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
    let forged = |tensors: Vec<(&str, Value)>, data: usize, expected: &str| {
        let header: serde_json::Map<_, _> = tensors
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        refuse(&file(&Value::Object(header).to_string(), data), expected);
    };
    let max = u64::MAX;
    let one =
        |value: Value, data: usize, expected: &str| forged(vec![("a", value)], data, expected);
    one(json!(1), 0, "tensor `a`: invalid type");
    one(json!({}), 0, "tensor `a`: no dtype");
    one(json!({"dtype": "F32"}), 0, "tensor `a`: no shape");
    one(
        json!({"dtype": "F32", "shape": [1]}),
        4,
        "tensor `a`: no data_offsets",
    );
    one(
        tensor("F32", json!([-1]), json!([0, 4])),
        4,
        "tensor `a`: invalid",
    );
    one(
        tensor("F32", json!([1.5]), json!([0, 4])),
        4,
        "tensor `a`: invalid",
    );
    one(
        tensor("F32", json!(vec![1; 17]), json!([0, 4])),
        4,
        "tensor `a`: more than 16 numbers",
    );
    one(
        tensor("F32", json!([1]), json!([0])),
        4,
        "must be two numbers",
    );
    one(
        tensor("F32", json!([1]), json!([4, 0])),
        4,
        "the end is before the start",
    );
    one(tensor("F32", json!([2]), json!([0, 4])), 4, "takes 8 bytes");
    one(
        tensor("F32", json!([max, max]), json!([0, 4])),
        4,
        "too large",
    );
    one(
        tensor("F32", json!([1u64 << 62, 4]), json!([0, 0])),
        0,
        "too large",
    );
    one(
        tensor("F32", json!([1]), json!([max - 4, max])),
        4,
        "truncated",
    );
    one(tensor("U8", json!([max]), json!([0, max])), 4, "truncated");
    one(
        tensor("F32", json!([1]), json!([4, 8])),
        8,
        "before tensor `a`",
    );
    one(
        tensor("F32", json!([1]), json!([0, 4])),
        8,
        "after the last tensor",
    );
    // Each tensor has half the size of the address space. Their sum wraps around it.
    let half = 1u64 << 60;
    forged(
        (0..16u64)
            .map(|i| {
                let name = [
                    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p",
                ][i as usize];
                (
                    name,
                    tensor(
                        "U8",
                        json!([half - 1]),
                        json!([i * (half - 1), (i + 1) * (half - 1)]),
                    ),
                )
            })
            .collect(),
        4,
        "truncated",
    );
    let first = tensor("F32", json!([2]), json!([0, 8]));
    forged(
        vec![
            ("a", first.clone()),
            ("b", tensor("F32", json!([1]), json!([4, 8]))),
        ],
        8,
        "overlaps",
    );
    forged(vec![("a", first.clone()), ("b", first)], 8, "overlaps");
}

#[test]
fn headers_of_too_many_tensors_are_refused_before_they_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let header = |tensors: usize| {
        let each = (0..tensors).map(|at| {
            format!("\"{at}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}")
        });
        format!("{{{}}}", each.collect::<Vec<_>>().join(","))
    };
    open_bytes(dir.path(), &file(&header(100_000), 0)).unwrap();
    let error = message(open_bytes(dir.path(), &file(&header(100_001), 0)));
    assert!(error.contains("more than 100000 tensors"), "{error}");
}

#[test]
fn a_pipe_in_the_place_of_weights_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let pipe = dir.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
    }
    let error = message(Checkpoint::open(dir.path()));
    assert!(error.contains("not a regular file"), "{error}");
    let error = LanguageModel::load(dir.path(), &LoadOptions::default());
    let error = error.err().expect("a pipe must be refused").to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn asking_for_what_is_not_there_names_it() {
    let dir = fixture("arch/llama2");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let ask = |name: &str, shape: &[usize], dtype| {
        let error = checkpoint
            .tensor(name, shape, dtype, &Device::Cpu)
            .unwrap_err();
        (error.to_string(), error)
    };
    let (text, error) = ask("model.norm.bias", &[32], DType::F32);
    assert!(matches!(error, ModelError::MissingTensor { .. }));
    assert!(
        text.contains("model.norm.bias") && text.contains("[32]"),
        "{text}"
    );
    let (text, error) = ask("model.embed_tokens.weight", &[81, 32], DType::F32);
    assert!(matches!(error, ModelError::TensorShape { .. }));
    assert!(
        text.contains("model.embed_tokens.weight")
            && text.contains("[80, 32]")
            && text.contains("[81, 32]"),
        "{text}"
    );
    let (text, _) = ask("model.norm.weight", &[32], DType::I64);
    assert!(text.contains("I64"), "{text}");

    // No other tensor was read: the error names the first few of the rest.
    let (text, count) = match checkpoint.refuse_unread(false).unwrap_err() {
        error @ ModelError::UnexpectedTensors { count, .. } => (error.to_string(), count),
        error => panic!("{error}"),
    };
    assert_eq!(count, checkpoint.names().count() - 2);
    assert!(
        text.contains("lm_head.weight") && text.contains("..."),
        "{text}"
    );
    load_all(&checkpoint).unwrap();
    checkpoint.refuse_unread(false).unwrap();
}

#[test]
fn only_known_leftovers_are_tolerated() {
    let dir = tempfile::tempdir().unwrap();
    let ones = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
    let save = |names: &[&str]| {
        let tensors = names
            .iter()
            .map(|name| ((*name).to_owned(), ones.clone()))
            .collect();
        weights::save(dir.path(), &tensors, None).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        checkpoint.tensor("a", 2, DType::F32, &Device::Cpu).unwrap();
        checkpoint
    };
    let old = save(&[
        "a",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "lm_head.weight",
    ]);
    old.refuse_unread(true).unwrap();
    assert!(
        old.refuse_unread(false)
            .unwrap_err()
            .to_string()
            .contains("lm_head.weight")
    );
    let bias = save(&["a", "model.layers.0.self_attn.q_proj.bias"]);
    assert!(
        bias.refuse_unread(true)
            .unwrap_err()
            .to_string()
            .contains("q_proj.bias")
    );
}

#[test]
fn an_output_layer_of_its_own_in_a_tied_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let embedding = Tensor::new(&[[0.5f32, -2.0], [1.0, 0.25]], &Device::Cpu).unwrap();
    let with_head = |head: Tensor| {
        let tensors = [
            ("model.embed_tokens.weight".to_owned(), embedding.clone()),
            ("lm_head.weight".to_owned(), head),
        ];
        weights::save(dir.path(), &tensors.into(), None).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let name = "model.embed_tokens.weight";
        checkpoint
            .tensor(name, (2, 2), DType::F32, &Device::Cpu)
            .unwrap();
        checkpoint.refuse_unread(true)
    };
    with_head(embedding.clone()).unwrap();
    // The same numbers in another dtype count as the same layer.
    with_head(embedding.to_dtype(DType::BF16).unwrap()).unwrap();
    for other in [
        (&embedding * 2.0).unwrap(),
        embedding.to_dtype(DType::BF16).unwrap().neg().unwrap(),
        embedding.narrow(0, 0, 1).unwrap(),
    ] {
        let error = with_head(other).unwrap_err().to_string();
        assert!(error.contains("tie_word_embeddings"), "{error}");
    }
}

#[test]
fn values_that_are_not_finite_are_found_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut values = vec![1f32; 200_000];
    values[131_073] = f32::NAN;
    values[199_999] = f32::NEG_INFINITY;
    let large = Tensor::new(&[1e6f32, 1.0], &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([
        (
            "bad".to_owned(),
            Tensor::from_vec(values, 200_000, &Device::Cpu).unwrap(),
        ),
        ("large".to_owned(), large),
    ]);
    weights::save(dir.path(), &tensors, None).unwrap();
    let read = |check: bool, name: &str, n: usize, dtype: DType| {
        Checkpoint::open(dir.path())
            .unwrap()
            .check_finite(check)
            .tensor(name, n, dtype, &Device::Cpu)
    };
    assert!(read(false, "bad", 200_000, DType::F32).is_ok());
    let error = read(true, "bad", 200_000, DType::BF16)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`bad` has 2 values") && error.contains("131073"),
        "{error}"
    );
    assert!(
        read(true, "large", 2, DType::F32).is_ok() && read(true, "large", 2, DType::BF16).is_ok()
    );
    // The value 1e6 exceeds the range of f16.
    assert!(read(true, "large", 2, DType::F16).is_err());
}

/// Copies the sharded fixture to a directory in which a test may damage it.
fn sharded() -> (tempfile::TempDir, PathBuf, Value) {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("arch/llama_sharded")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let index = dir.path().join(weights::INDEX_FILE);
    let json = serde_json::from_str(&std::fs::read_to_string(&index).unwrap()).unwrap();
    (dir, index, json)
}

#[test]
fn shards_load_as_one_and_a_wrong_index_is_refused() {
    let (dir, index, good) = sharded();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(
        load_all(&checkpoint).unwrap().len(),
        good["weight_map"].as_object().unwrap().len()
    );

    let refuse = |json: &Value, expected: &str| {
        std::fs::write(&index, json.to_string()).unwrap();
        let error = message(Checkpoint::open(dir.path()));
        assert!(error.contains(expected), "{error}");
    };
    let norm = "model.norm.weight";
    let here = good["weight_map"][norm].as_str().unwrap();
    let elsewhere = good["weight_map"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_str)
        .find(|file| *file != here)
        .unwrap();
    let mapped_to = |name: &str, file: Value| {
        let mut json = good.clone();
        json["weight_map"][name] = file;
        json
    };
    refuse(&mapped_to(norm, json!(elsewhere)), norm);
    refuse(
        &mapped_to("model.extra.weight", json!(here)),
        "model.extra.weight",
    );
    refuse(
        &mapped_to(
            "model.extra.weight",
            json!("model-00009-of-00009.safetensors"),
        ),
        "model-00009-of-00009",
    );
    refuse(&mapped_to(norm, json!("../secret.safetensors")), norm);
    refuse(&mapped_to(norm, json!("/etc/passwd")), norm);
    refuse(&mapped_to(norm, json!(7)), norm);
    refuse(&json!({}), "weight_map");
    refuse(&json!({"weight_map": []}), "weight_map");
    let mut missing = good.clone();
    missing["weight_map"].as_object_mut().unwrap().remove(norm);
    refuse(&missing, norm);
    std::fs::write(&index, "{").unwrap();
    assert!(message(Checkpoint::open(dir.path())).contains("not JSON"));

    std::fs::write(&index, good.to_string()).unwrap();
    let shard = dir.path().join(here);
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    let error = message(Checkpoint::open(dir.path()));
    assert!(
        error.contains("truncated") && error.contains(here),
        "{error}"
    );
}

#[test]
fn a_directory_without_weights_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(message(Checkpoint::open(dir.path())).contains("no model.safetensors"));
    std::fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    assert!(message(Checkpoint::open(dir.path())).contains("pickled"));
}

//! Files that llama.cpp's package for Python wrote, beside the checkpoints that they were made from.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use kernels::linear::WeightFormat;
use model::{
    Checkpoint, DecoderSpec, LanguageModel, LoadOptions, ModelConfig,
    gguf::{GgufFile, unpack},
    hub,
    weights::RowOrder,
};

use super::writer::Writer;
use crate::parity::{decoder_of, dense, difference, golden};
use crate::support::{data, fixture};

/// The files of `tests/data/gguf` with a model.
const MODELS: [&str; 11] = [
    "llama3",
    "llama_bias",
    "llama_yarn",
    "qwen2",
    "qwen3",
    "olmo2",
    "phi3_longrope",
    "granite",
    "gemma2",
    "gemma3",
    "qwen3_moe",
];

#[test]
fn blocks_of_every_type_have_the_values_of_the_reference() {
    let path = data("gguf").join("blocks.gguf");
    let checkpoint = Checkpoint::open_gguf(&path).unwrap();
    let golden = data("gguf").join("blocks.safetensors");
    let golden = candle_core::safetensors::load(golden, &Device::Cpu).unwrap();
    assert_eq!(golden.len(), 11);
    for (name, want) in golden {
        let shape = want.dims().to_vec();
        let read = |dtype| {
            checkpoint
                .tensor(&name, shape.clone(), dtype, &Device::Cpu)
                .unwrap()
        };
        let bits = |tensor: &Tensor| -> Vec<u32> {
            let numbers: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            numbers.into_iter().map(f32::to_bits).collect()
        };
        assert_eq!(bits(&read(DType::F32)), bits(&want), "{name}");
        // Conversion to a narrower type rounds once.
        let rounded = want
            .to_dtype(DType::BF16)
            .unwrap()
            .to_dtype(DType::F32)
            .unwrap();
        let narrow = read(DType::BF16).to_dtype(DType::F32).unwrap();
        assert_eq!(bits(&narrow), bits(&rounded), "{name}");
        let quantized = name.starts_with('Q');
        assert_eq!(checkpoint.blocks(&name).is_some(), quantized, "{name}");
        let [n, k] = shape[..] else {
            panic!("{name}: {shape:?}")
        };
        let matrix = checkpoint.quantized(&name, [n, k]);
        assert_eq!(matrix.is_ok(), quantized, "{name}");
        assert!(checkpoint.quantized(&name, [n, k + 32]).is_err());
        if let Ok(matrix) = matrix {
            let blocks = matrix.shape[0] * matrix.shape[1] / matrix.format.values;
            assert_eq!(
                (matrix.format.name, matrix.order),
                (&name[..], RowOrder::Plain)
            );
            assert_eq!(matrix.blocks.len(), blocks * matrix.format.bytes);
        }
    }
}

#[test]
fn a_file_is_the_checkpoint_that_it_was_made_from() {
    for name in MODELS {
        let original = fixture("arch").join(name);
        let dir = unpack(&data("gguf").join(format!("{name}.gguf"))).unwrap();
        let (own, other) = (
            ModelConfig::from_dir(dir.path()).unwrap(),
            ModelConfig::from_dir(&original).unwrap(),
        );
        let gemma = name.starts_with("gemma");
        if gemma {
            // A file does not say by what scores are divided, nor which layers have no window: llama.cpp knows it of the family.
            let head = own.spec.head_dim as f32;
            assert_eq!(own.spec.attention_scale, head.powf(-0.5), "{name}");
            let derived = DecoderSpec {
                attention_scale: other.spec.attention_scale,
                layers: other.spec.layers.clone(),
                ..own.spec.clone()
            };
            assert_eq!(derived, other.spec, "{name}");
        } else {
            assert_eq!(own.spec, other.spec, "{name}");
        }
        let spec = other.spec;
        let (own, other) = (
            Checkpoint::open(dir.path()).unwrap(),
            Checkpoint::open(&original).unwrap(),
        );
        assert_eq!(
            own.names().collect::<Vec<_>>(),
            other.names().collect::<Vec<_>>()
        );
        for tensor in other.names() {
            let read = |checkpoint: &Checkpoint| -> Vec<f32> {
                let shape = other.shape(tensor).unwrap().to_vec();
                let tensor = checkpoint.tensor(tensor, shape, DType::F32, &Device::Cpu);
                tensor.unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            let (own, other) = (read(&own), read(&other));
            match gemma && tensor.ends_with("norm.weight") {
                // The file has one more than the weight, rounded.
                true => {
                    let close = |(own, other): (&f32, &f32)| (own - other).abs() < 2e-7;
                    assert!(own.iter().zip(&other).all(close), "{name} {tensor}");
                }
                false => assert_eq!(own, other, "{name} {tensor}"),
            }
        }
        let decoder = decoder_of(spec, dir.path());
        let (sequences, logits) = golden(&original);
        for (ids, want) in sequences.iter().zip(&logits) {
            let d = difference(&dense(&decoder, &[ids]), want);
            assert!(d < 1e-4, "{name} differs by {d}");
        }
    }
}

#[test]
fn a_model_is_resolved_from_a_file_and_its_directory_ends_with_it() {
    let path = data("gguf").join("qwen3.gguf");
    let dir = hub::resolve(path.to_str().unwrap()).unwrap();
    let held = dir.path().to_owned();
    let name = held.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("qwen3.gguf."), "{name}");
    let model = LanguageModel::load(&held, &LoadOptions::default()).unwrap();
    assert_eq!(model.max_context(), 64);
    assert_eq!(model.stop_ids(), [2]);
    assert_eq!(
        model.tokenizer().encode_template("<s>ab</s>").unwrap(),
        [1, 79, 2]
    );
    assert_eq!(model.tokenizer().decode(&[79, 3], true).unwrap(), "ab!");
    assert!(model.chat_template().special_tokens().eos() == Some("</s>"));
    drop(dir);
    assert!(!held.exists());
}

/// Returns the logits after a few tokens.
fn logits(model: &LanguageModel) -> Vec<f32> {
    let logits = dense(model.decoder(), &[&[1, 40, 50, 60, 3, 79, 7]]);
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_quantised_model_keeps_its_integers_and_computes_with_them() {
    let path = data("gguf").join("llama_bias_quantised.gguf");
    let dir = hub::resolve(path.to_str().unwrap()).unwrap();
    let load = |format: Option<WeightFormat>| {
        let options = LoadOptions {
            format,
            ..LoadOptions::default()
        };
        LanguageModel::load(dir.path(), &options).unwrap()
    };
    let (own, wide) = (load(None), load(Some(WeightFormat::F32)));
    // One matrix has rows of 24 numbers, which blocks do not hold.
    assert_eq!(own.decoder().weights(), "f32+int4+int8");
    assert_eq!(wide.decoder().weights(), "f32");
    assert!(own.decoder().bytes() * 3 < wide.decoder().bytes());
    let (mine, exact) = (logits(&own), logits(&wide));
    let largest = exact.iter().fold(0f32, |all, x| all.max(x.abs()));
    for (at, (mine, exact)) in mine.iter().zip(&exact).enumerate() {
        // Only activations are rounded.
        assert!(
            (mine - exact).abs() < 0.02 * largest,
            "{at}: {mine} for {exact} of {largest}"
        );
    }
    // The rows of the embedding are those of the dequantised table.
    let ids: Vec<u32> = (0..80).collect();
    let rows = |model: &LanguageModel| -> Vec<Vec<f32>> {
        model.decoder().embed(&ids).unwrap().to_vec2().unwrap()
    };
    assert_eq!(rows(&own), rows(&wide));
    let (eight, four) = (
        load(Some(WeightFormat::Int8)),
        load(Some(WeightFormat::Int4)),
    );
    assert_eq!(eight.decoder().weights(), "int8");
    // The head of a model in four bits has eight.
    assert_eq!(four.decoder().weights(), "int4+int8");
    assert!(four.decoder().bytes() < eight.decoder().bytes());
    // The file's own integers of that width are not rounded again.
    assert_eq!(rows(&four), rows(&wide));
    let difference = |own: &LanguageModel| {
        let pairs = logits(own).into_iter().zip(&exact);
        pairs.fold(0f32, |all, (own, exact)| all.max((own - exact).abs())) / largest
    };
    let (eight, four) = (difference(&eight), difference(&four));
    assert!(eight < 0.03 && four < 0.5 && eight < four, "{eight} {four}");
}

/// Writes the file with changes of its metadata, and returns the error of unpacking it.
fn refused(dir: &Path, change: impl Fn(Writer) -> Writer) -> String {
    let path = dir.join("odd.gguf");
    let base = Writer::new()
        .count("llama.context_length", 64)
        .count("llama.embedding_length", 32)
        .count("llama.block_count", 1)
        .count("llama.feed_forward_length", 32)
        .count("llama.attention.head_count", 4)
        .raw(
            "llama.attention.layer_norm_rms_epsilon",
            6,
            &1e-5_f32.to_le_bytes(),
        )
        .tensor("token_embd.weight", &[32, 4], 0, 0)
        .data(512 + 32);
    std::fs::write(&path, change(base).bytes()).unwrap();
    assert!(GgufFile::open(&path).is_ok());
    let error = unpack(&path).expect_err("it was unpacked").to_string();
    assert!(error.contains("odd.gguf"), "{error}");
    error
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let llama = |writer: Writer| writer.text("general.architecture", "llama");
    let vocabulary = |writer: Writer, model: &str| {
        let tokens = ["<unk>", "a", "b", "ab"]
            .map(super::writer::string)
            .concat();
        let tokens = [super::writer::array(8, 4), tokens].concat();
        llama(writer)
            .text("tokenizer.ggml.model", model)
            .raw("tokenizer.ggml.tokens", 9, &tokens)
    };
    type Change<'a> = &'a dyn Fn(Writer) -> Writer;
    let table: [(Change, &str); 19] = [
        (&|w| w, "general.architecture"),
        (
            &|w| w.text("general.architecture", "gpt2"),
            "unsupported architecture `gpt2`",
        ),
        (
            &|w| w.text("general.architecture", "qwen2moe"),
            "unsupported architecture `qwen2moe`, a mixture of experts",
        ),
        (
            &|w| llama(w).count("llama.expert_count", 8),
            "llama.expert_count",
        ),
        (
            &|w| llama(w).count("llama.attention.sliding_window", 8),
            "llama.attention.sliding_window",
        ),
        (
            &|w| llama(w).count("llama.rope.dimension_count", 4),
            "llama.rope.dimension_count",
        ),
        (
            &|w| llama(w).count("llama.attention.value_length", 4),
            "llama.attention.value_length",
        ),
        (
            &|w| llama(w).count("llama.vocab_size", 5),
            "llama.vocab_size",
        ),
        (
            &|w| llama(w).text("llama.rope.scaling.type", "longrope"),
            "longrope",
        ),
        (
            &|w| llama(w).text("llama.rope.scaling.type", "linear"),
            "llama.rope.scaling.factor",
        ),
        (
            &|w| llama(w).tensor("rope_freqs.weight", &[4], 0, 512),
            "rope_freqs.weight",
        ),
        (
            &|w| vocabulary(w, "gpt2").count("llama.attention.head_count_kv", 3),
            "num_key_value_heads 3",
        ),
        (&|w| llama(w), "tokenizer.ggml.model"),
        (&|w| vocabulary(w, "bert"), "`bert`"),
        (&|w| vocabulary(w, "gpt2"), "tokenizer.ggml.pre"),
        (
            &|w| vocabulary(w, "gpt2").text("tokenizer.ggml.pre", "viking"),
            "`viking`",
        ),
        (
            &|w| vocabulary(w, "gpt2").text("tokenizer.ggml.pre", "gpt-2"),
            "tokenizer.ggml.merges",
        ),
        (&|w| vocabulary(w, "llama"), "tokenizer.ggml.scores"),
        (
            &|w| {
                vocabulary(w, "llama").raw("tokenizer.ggml.scores", 9, &super::writer::array(6, 0))
            },
            "0 entries for 4 tokens",
        ),
    ];
    for (at, (change, word)) in table.into_iter().enumerate() {
        let error = refused(dir.path(), change);
        assert!(error.contains(word), "{at}: {error}");
    }
}

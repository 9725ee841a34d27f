//! The decoder against `candle-transformers`, an implementation that shares no code with it above candle's tensors.
//!
//! Random checkpoints go through both. Compared are the logits after the last token of sequences of several lengths, alone and as the
//! last of a packed batch. Left out is what the other implementation does in another way than transformers, which `tests/fixtures/arch`
//! covers:
//!
//! - windows: there a token sees one token more, all layers of Gemma 2 have one, and Gemma 3's cannot be shorter than the sequence;
//! - more than one head of keys in Gemma 3, which that implementation cannot put into its cache;
//! - `query_pre_attn_scalar` of Gemma 2 and 3: scores are always divided by the root of the head's dimension;
//! - scaled rotations of Gemma 3, LongRoPE, and Granite's multipliers;
//! - `mlp_only_layers` of Qwen3-MoE.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{Decoder, DecoderSpec, ModelConfig, ModelError, PackedBatch, ParameterSource};
use kernels::nn::AttentionBackend;

/// The lengths of the sequences, in tokens.
const LENGTHS: [usize; 5] = [1, 2, 7, 16, 33];

/// The largest difference of two logits that roundings explain.
const BOUND: f32 = 5e-5;

type Weights = HashMap<String, Tensor>;

/// Computes the logits after the last token.
type Oracle = fn(&Value, VarBuilder<'static>, &Tensor) -> Result<Tensor>;

struct Source<'a>(&'a Weights);

impl ParameterSource for Source<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> std::result::Result<Tensor, ModelError> {
        let tensor = self.0[name].clone();
        assert_eq!(tensor.dims(), shape, "{name}");
        Ok(tensor)
    }
}

/// Returns random weights, large enough that a wrong rotation, mask or norm changes the logits.
fn weights(spec: &DecoderSpec, seed: u64) -> Weights {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut random = |(name, shape): (String, Vec<usize>)| {
        let (middle, bound) = match (shape.len(), name.ends_with("norm.weight")) {
            (1, true) if !spec.norms_around_one => (1.0, 0.5),
            (1, _) => (0.0, 0.5),
            _ => (0.0, 2.0 / (shape[1] as f32).sqrt()),
        };
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| middle + rng.random_range(-bound..bound))
            .collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("a shape");
        (name, tensor)
    };
    spec.parameters().into_iter().map(&mut random).collect()
}

fn config(class: &str, changes: Value) -> Value {
    let mut config = json!({
        "architectures": [class], "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 67, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": false,
    });
    for (key, value) in changes.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

fn read<T: serde::de::DeserializeOwned>(config: &Value) -> T {
    serde_json::from_value(config.clone())
        .expect("the other implementation reads the configuration")
}

fn llama(config: &Value, weights: VarBuilder<'static>, ids: &Tensor) -> Result<Tensor> {
    use models::llama::{Cache, Llama, LlamaConfig};
    let config = read::<LlamaConfig>(config).into_config(false);
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu)?;
    Llama::load(weights, &config)?.forward(ids, 0, &mut cache)
}

fn granite(config: &Value, weights: VarBuilder<'static>, ids: &Tensor) -> Result<Tensor> {
    use models::granite::{Cache, Granite, GraniteConfig};
    let config = read::<GraniteConfig>(config).into_config(false);
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu)?;
    Granite::load(weights, &config)?.forward(ids, 0, &mut cache)
}

macro_rules! oracle {
    ($name:ident, $model:ident) => {
        fn $name(config: &Value, weights: VarBuilder<'static>, ids: &Tensor) -> Result<Tensor> {
            models::$name::$model::new(&read(config), weights)?.forward(ids, 0)
        }
    };
}

fn gemma(config: &Value, weights: VarBuilder<'static>, ids: &Tensor) -> Result<Tensor> {
    models::gemma::Model::new(false, &read(config), weights)?.forward(ids, 0)
}

fn gemma2(config: &Value, weights: VarBuilder<'static>, ids: &Tensor) -> Result<Tensor> {
    let mut config = config.clone();
    let window = config["sliding_window"].as_u64().expect("a window");
    config["sliding_window"] = (window - 1).into();
    models::gemma2::Model::new(false, &read(&config), weights)?.forward(ids, 0)
}

fn gemma3(config: &Value, weights: VarBuilder<'static>, ids: &Tensor) -> Result<Tensor> {
    models::gemma3::Model::new(false, &read(config), weights)?.forward(ids, 0)
}

oracle!(mistral, Model);
oracle!(qwen2, ModelForCausalLM);
oracle!(qwen3, ModelForCausalLM);
oracle!(qwen3_moe, ModelForCausalLM);
oracle!(phi3, Model);
oracle!(olmo2, Model);

fn last_logits(decoder: &Decoder, sequences: &[&[u32]]) -> Vec<f32> {
    let batch: PackedBatch = sequences.iter().copied().collect();
    let backend = AttentionBackend::Dense {
        cu_seqlens: batch.cu_seqlens(),
    };
    let hidden = decoder.forward(batch.as_packed(), &backend).unwrap();
    let logits = decoder.logits(&hidden).unwrap();
    logits
        .get(batch.ids().len() - 1)
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn compare(class: &str, changes: Value, oracle: Oracle, seed: u64) {
    let config = config(class, changes);
    let spec = ModelConfig::from_json(&config.to_string()).unwrap().spec;
    let weights = weights(&spec, seed);
    let decoder = Decoder::new(spec, &mut Source(&weights)).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut ids =
        |count: usize| -> Vec<u32> { (0..count).map(|_| rng.random_range(0..67)).collect() };
    for length in LENGTHS {
        let (before, ids) = (ids(9), ids(length));
        let input = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap();
        let input = input.unsqueeze(0).unwrap();
        let tensors = VarBuilder::from_tensors(weights.clone(), DType::F32, &Device::Cpu);
        let want = oracle(&config, tensors, &input).unwrap();
        let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
        let spread = want.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(spread > 0.5, "{config}: the logits are at most {spread}");
        for sequences in [&[&ids[..]][..], &[&before, &ids]] {
            let got = last_logits(&decoder, sequences);
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                let difference = (got - want).abs();
                assert!(
                    difference < BOUND,
                    "{class}, {length} tokens: {got} against {want}, {difference} apart; {config}"
                );
            }
        }
    }
}

#[test]
fn llamas_are_those_of_another_implementation() {
    compare("LlamaForCausalLM", json!({}), llama, 1);
    compare(
        "LlamaForCausalLM",
        json!({"tie_word_embeddings": true, "num_key_value_heads": 1}),
        llama,
        2,
    );
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16});
    compare(
        "LlamaForCausalLM",
        json!({"rope_scaling": scaling}),
        llama,
        3,
    );
    compare(
        "MistralForCausalLM",
        json!({"sliding_window": null, "head_dim": 10}),
        mistral,
        4,
    );
}

#[test]
fn qwens_are_those_of_another_implementation() {
    let windows = json!({"use_sliding_window": false, "sliding_window": 64, "max_window_layers": 3, "head_dim": 16});
    let qwen = |class: &str, tied: bool, oracle: Oracle, seed: u64| {
        let mut changes = windows.clone();
        changes["tie_word_embeddings"] = tied.into();
        if class.starts_with("Qwen2") {
            changes["head_dim"] = 12.into();
        }
        compare(class, changes, oracle, seed);
    };
    qwen("Qwen2ForCausalLM", false, qwen2, 5);
    qwen("Qwen2ForCausalLM", true, qwen2, 6);
    qwen("Qwen3ForCausalLM", false, qwen3, 7);
    qwen("Qwen3ForCausalLM", true, qwen3, 8);
}

#[test]
fn a_mixture_of_experts_is_that_of_another_implementation() {
    let config = json!({"use_sliding_window": false, "sliding_window": 64, "max_window_layers": 3, "head_dim": 16, "num_experts": 6,
        "num_experts_per_tok": 2, "moe_intermediate_size": 20, "decoder_sparse_step": 1, "norm_topk_prob": true});
    let moe = |changes: Value, seed: u64| {
        let mut config = config.clone();
        for (key, value) in changes.as_object().expect("an object") {
            config[key] = value.clone();
        }
        compare("Qwen3MoeForCausalLM", config, qwen3_moe, seed);
    };
    moe(json!({}), 9);
    moe(
        json!({"norm_topk_prob": false, "num_experts_per_tok": 3}),
        10,
    );
    // The second layer alone has experts.
    moe(
        json!({"decoder_sparse_step": 2, "num_experts_per_tok": 1}),
        11,
    );
}

#[test]
fn gemmas_are_those_of_another_implementation() {
    let gelu = json!("gelu_pytorch_tanh");
    let shape = json!({"hidden_act": gelu, "head_dim": 10, "tie_word_embeddings": true});
    compare("GemmaForCausalLM", shape, gemma, 16);
    let soft = |changes: Value| {
        let mut config = json!({"hidden_activation": gelu, "head_dim": 10, "query_pre_attn_scalar": 10, "tie_word_embeddings": true,
            "final_logit_softcapping": 2.5});
        for (key, value) in changes.as_object().expect("an object") {
            config[key] = value.clone();
        }
        config
    };
    let sliding = ["sliding_attention"; 3];
    let two = json!({"attn_logit_softcapping": 1.5, "sliding_window": 9, "layer_types": sliding});
    compare("Gemma2ForCausalLM", soft(two), gemma2, 17);
    let three = json!({"num_key_value_heads": 1, "sliding_window": 64, "sliding_window_pattern": 2, "rope_theta": 1000.0, "rope_local_base_freq": 10.0});
    compare("Gemma3ForCausalLM", soft(three), gemma3, 18);
}

#[test]
fn phi_olmo_and_granite_are_those_of_another_implementation() {
    compare("Phi3ForCausalLM", json!({}), phi3, 12);
    compare(
        "Phi3ForCausalLM",
        json!({"partial_rotary_factor": 0.5, "tie_word_embeddings": true}),
        phi3,
        13,
    );
    compare("Olmo2ForCausalLM", json!({}), olmo2, 14);
    // The other implementation has no multipliers: it scales by the root of the head's dimension.
    compare(
        "GraniteForCausalLM",
        json!({"hidden_size": 64, "attention_multiplier": 0.25}),
        granite,
        15,
    );
}

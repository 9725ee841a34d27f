//! Mixtures of experts (Qwen3-MoE): what a configuration says, the types of weights, and which layers an adapter may change.

use candle_core::Device;
use kernels::linear::WeightFormat;
use model::{
    LoadOptions, ModelConfig,
    adapter::{LoraConfig, LoraPair},
};
use serde_json::{Value, json};
use train::{
    BaseWeights,
    base::{Adapter, FrozenBase},
    trainable::{Factors, Trainable, check_targets},
};

use crate::architectures::{disturbed, served_with};
use crate::parity::{dense, difference, golden};
use crate::support::fixture;

fn config(changes: Value) -> Result<model::DecoderSpec, String> {
    let mut config = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let config = ModelConfig::from_json(&config.to_string());
    config
        .map(|config| config.spec)
        .map_err(|error| error.to_string())
}

#[test]
fn the_layers_with_experts_are_those_of_the_configuration() {
    let with = |changes| -> Vec<bool> {
        let spec = config(changes).unwrap();
        spec.layers.iter().map(|layer| layer.experts).collect()
    };
    assert_eq!(with(json!({})), [true; 4]);
    assert_eq!(
        with(json!({"decoder_sparse_step": 2})),
        [false, true, false, true]
    );
    let some = json!({"mlp_only_layers": [0, 3, 7]});
    assert_eq!(with(some), [false, true, true, false]);
    assert_eq!(with(json!({"num_experts": 0})), [false; 4]);
    // An absent key has the value that transformers gives it.
    let absent = config(json!({})).unwrap().experts.unwrap();
    let (count, per_token, width) = (absent.count, absent.per_token, absent.width);
    assert_eq!(
        (count, per_token, width, absent.normalised),
        (128, 8, 768, false)
    );
    let old = config(json!({"num_experts": 16})).unwrap();
    assert_eq!(old, config(json!({"num_local_experts": 16})).unwrap());
    // All layers of a model with a window have it.
    let windows = config(json!({"use_sliding_window": true, "sliding_window": 8})).unwrap();
    let window = |layer: &model::LayerSpec| layer.sliding_window;
    assert!(windows.layers.iter().all(|layer| window(layer) == Some(8)));
}

#[test]
fn impossible_experts_are_refused_by_name() {
    for (changes, word) in [
        (
            json!({"num_experts_per_tok": 0}),
            "num_experts_per_tok is 0",
        ),
        (
            json!({"num_experts": 4, "num_experts_per_tok": 5}),
            "num_experts_per_tok 5",
        ),
        (
            json!({"decoder_sparse_step": 0}),
            "decoder_sparse_step is 0",
        ),
        (
            json!({"moe_intermediate_size": 0}),
            "moe_intermediate_size is 0",
        ),
        (
            json!({"num_experts": 60_000}),
            "60000 experts in each of 4 layers",
        ),
        (json!({"norm_topk_prob": 1}), "norm_topk_prob"),
    ] {
        let error = config(changes).unwrap_err();
        assert!(error.contains(word) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn every_type_of_weights_serves_and_learns_over_the_same_numbers() {
    let dir = fixture("arch/qwen3_moe_step");
    let (sequences, logits) = golden(&dir);
    let (ids, want) = (&sequences[2], &logits[2]);
    for (format, weights, kind, bound) in [
        (WeightFormat::F32, Some(BaseWeights::F32), "f32", 1e-4),
        (WeightFormat::Bf16, None, "bf16", 0.3),
        (WeightFormat::Int8, Some(BaseWeights::Int8), "int8", 0.3),
        (
            WeightFormat::Int4,
            Some(BaseWeights::Int4),
            "int4+int8",
            2.5,
        ),
    ] {
        let options = LoadOptions {
            format: Some(format),
            ..LoadOptions::default()
        };
        let model = served_with(&dir, &options);
        assert_eq!(model.decoder().weights(), kind);
        let served = dense(model.decoder(), &[ids]);
        let d = difference(&served, want);
        assert!(d < bound, "{kind}: {d}");
        let Some(weights) = weights else { continue };
        // A trainer computes over the served integers, and rounds no activations. A token near the border of two experts may go to another.
        let base = FrozenBase::load_in(&dir, weights, &Device::Cpu).unwrap();
        let frozen = dense(&base.decoder(None).unwrap(), &[ids]);
        let d = difference(&frozen, &served);
        assert!(d < 0.1, "{kind}: a trainer differs by {d}");
        let trainable =
            Trainable::adapter(&base, LoraConfig::default(), Factors::Fresh { seed: 1 });
        let hidden = dense(&trainable.unwrap().decoder, &[ids]);
        let grads = hidden.sqr().unwrap().sum_all().unwrap().backward();
        assert!(grads.is_ok(), "{kind}");
    }
}

#[test]
fn experts_and_routers_are_not_adapted() {
    let spec = ModelConfig::from_dir(&fixture("arch/qwen3_moe"))
        .unwrap()
        .spec;
    let named = |name: &str| LoraConfig {
        target_modules: vec![name.to_owned()],
        ..LoraConfig::default()
    };
    check_targets(&spec, &named("q_proj")).unwrap();
    for name in ["gate_proj", "gate", "experts.0.down_proj"] {
        let error = check_targets(&spec, &named(name)).unwrap_err().to_string();
        assert!(
            error.contains(&format!("`{name}`")) && error.contains("experts and routers cannot"),
            "{error}"
        );
    }
    let base = FrozenBase::load(&fixture("arch/qwen3_moe"), &Device::Cpu).unwrap();
    let Adapter { config, weights } = disturbed(&base, LoraConfig::default());
    for path in ["mlp.experts.1.up_proj", "mlp.gate"] {
        let path = format!("model.layers.0.{path}");
        let pair: LoraPair = weights["model.layers.0.self_attn.q_proj"].clone();
        let mut weights = weights.clone();
        weights.insert(path.clone(), pair);
        let config = config.clone();
        let error = base
            .decoder(Some(&Adapter { config, weights }))
            .unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains(&path) && error.contains("mixture of experts, which is not supported"),
            "{error}"
        );
    }
}

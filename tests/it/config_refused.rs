//! Tests of `config.json` with invalid values: each is refused in one sentence, and none panics.

use std::path::Path;

use kernels::nn::rotary::RotaryEmbedding;
use model::{Architecture, ModelConfig};
use serde_json::{Value, json};

use crate::config::{llama, parse, with};

#[test]
fn nonsense_is_refused_in_one_sentence() {
    let rope = |scaling: Value| json!({"rope_scaling": scaling});
    let yarn = |changes: Value| {
        let mut scaling = json!({"rope_type": "yarn", "factor": 4.0});
        for (key, value) in changes.as_object().unwrap() {
            scaling[key] = value.clone();
        }
        json!({"rope_scaling": scaling})
    };
    let huge = 1e300;
    let cases: Vec<(Value, &str)> = vec![
        (json!({"hidden_size": "absent"}), "hidden_size is missing"),
        (json!({"hidden_size": 0}), "hidden_size is 0"),
        (json!({"hidden_size": -64}), "hidden_size is -64"),
        (json!({"hidden_size": 64.5}), "hidden_size is 64.5"),
        (json!({"hidden_size": "64"}), "hidden_size is \"64\""),
        (json!({"hidden_size": u64::MAX}), "hidden_size"),
        (json!({"hidden_size": huge}), "hidden_size"),
        (
            json!({"hidden_size": 66}),
            "not a multiple of num_attention_heads",
        ),
        (json!({"num_hidden_layers": 0}), "num_hidden_layers is 0"),
        (
            json!({"num_hidden_layers": 1u64 << 60}),
            "num_hidden_layers",
        ),
        (
            json!({"num_attention_heads": 0}),
            "num_attention_heads is 0",
        ),
        (
            json!({"num_attention_heads": u64::MAX}),
            "num_attention_heads",
        ),
        (
            json!({"num_key_value_heads": 3}),
            "not a multiple of num_key_value_heads 3",
        ),
        (
            json!({"num_key_value_heads": 16}),
            "not a multiple of num_key_value_heads 16",
        ),
        (
            json!({"num_key_value_heads": 0}),
            "num_key_value_heads is 0",
        ),
        (json!({"head_dim": 0}), "head_dim is 0"),
        (json!({"head_dim": 7}), "head_dim 7 is odd"),
        (json!({"head_dim": u64::MAX}), "head_dim"),
        (json!({"intermediate_size": 0}), "intermediate_size is 0"),
        (json!({"vocab_size": 0}), "vocab_size is 0"),
        (json!({"vocab_size": u64::MAX}), "vocab_size"),
        (json!({"vocab_size": [1]}), "vocab_size is [1]"),
        (
            json!({"max_position_embeddings": u64::MAX}),
            "max_position_embeddings",
        ),
        (json!({"rms_norm_eps": -1e-5}), "rms_norm_eps"),
        (json!({"rms_norm_eps": "small"}), "rms_norm_eps"),
        (
            json!({"hidden_act": "gelu"}),
            "hidden_act `gelu` is not supported",
        ),
        (json!({"attention_bias": 1}), "attention_bias is 1"),
        (json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings"),
        (
            json!({"torch_dtype": "float8_e4m3fn"}),
            "dtype `float8_e4m3fn` is not supported",
        ),
        (json!({"eos_token_id": "2"}), "eos_token_id"),
        (json!({"eos_token_id": [2, "3"]}), "eos_token_id"),
        (
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor 0.5",
        ),
        (
            json!({"rope_parameters": {"partial_rotary_factor": 0.25}}),
            "partial_rotary_factor 0.25",
        ),
        (json!({"rope_theta": 0}), "rope_theta 0"),
        (
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
            "quantised (gptq)",
        ),
        (
            json!({"quantization_config": {"bits": 8}}),
            "quantised (quantization_config)",
        ),
        (json!({"rope_theta": -1.0}), "rope_theta -1"),
        (json!({"rope_theta": huge}), "rope_theta"),
        (
            json!({"rope_scaling": "linear"}),
            "rope_scaling is \"linear\"",
        ),
        (
            rope(json!({"rope_type": "longrope"})),
            "rope type `longrope` is not supported",
        ),
        (rope(json!({"rope_type": 3})), "rope_scaling.rope_type is 3"),
        (
            rope(json!({"type": "linear"})),
            "rope linear: factor is missing",
        ),
        (
            rope(json!({"type": "linear", "factor": 0})),
            "rope linear: factor 0",
        ),
        (
            rope(json!({"type": "dynamic", "factor": -2})),
            "rope dynamic: factor -2",
        ),
        (
            rope(json!({"type": "llama3", "factor": 8})),
            "low_freq_factor is missing",
        ),
        (
            rope(
                json!({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            ),
            "high_freq_factor 4 is not above low_freq_factor 4",
        ),
        (yarn(json!({"factor": huge})), "rope yarn: factor"),
        (yarn(json!({"beta_fast": 0})), "rope yarn: beta_fast 0"),
        (
            yarn(json!({"beta_fast": 1, "beta_slow": 32})),
            "beta_fast 1 is below beta_slow 32",
        ),
        (yarn(json!({"factor": 0.5})), "factor 0.5 is below 1"),
        (
            yarn(json!({"original_max_position_embeddings": 4096})),
            "original_max_position_embeddings 4096 is more than max_position_embeddings 128",
        ),
        (yarn(json!({"factor": 1e9})), "128000000000 positions"),
        (
            rope(json!({"type": "linear", "factor": 0.25})),
            "rope linear: factor 0.25 is below 1",
        ),
        (
            rope(json!({"rope_type": "dynamic", "factor": 1e8})),
            "12800000000 positions",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}}),
            "full_attention layers",
        ),
        (yarn(json!({"attention_factor": -1})), "attention_factor -1"),
        (
            yarn(json!({"original_max_position_embeddings": 0})),
            "original_max_position_embeddings is 0",
        ),
        (
            yarn(json!({"rope_theta": 1.0})),
            "rope_theta 1 must be above 1",
        ),
        (
            json!({"architectures": ["GPT2LMHeadModel"]}),
            "unsupported architecture `GPT2LMHeadModel`",
        ),
        (
            json!({"architectures": "LlamaForCausalLM"}),
            "architectures",
        ),
        (
            json!({"architectures": "absent", "model_type": "bert"}),
            "unsupported architecture `bert`",
        ),
        (
            json!({"architectures": "absent"}),
            "neither `architectures` nor `model_type`",
        ),
    ];
    for (change, expected) in cases {
        match parse(&llama(change.clone())) {
            Ok(_) => panic!("{change} was accepted"),
            Err(error) => {
                assert!(error.contains(expected), "{change}: {error}");
                assert!(!error.contains('\n') && error.len() < 300, "{error}");
            }
        }
    }
    let qwen = |change: Value| parse(&with("Qwen2ForCausalLM", change)).unwrap_err();
    let four = |kind: &str| json!({"layer_types": [kind, kind, kind, kind]});
    assert!(qwen(four("sliding_attention")).contains("the configuration has no sliding window"));
    assert!(qwen(four("linear_attention")).contains("`linear_attention` is not supported"));
    assert!(qwen(json!({"layer_types": ["full_attention"]})).contains("1 entries for 4 layers"));
    let zero = json!({"use_sliding_window": true, "sliding_window": 0, "max_window_layers": 0});
    assert!(qwen(zero).contains("sliding_window is 0"));
    let mistral = |change: Value| parse(&with("MistralForCausalLM", change));
    let mut mixed = json!({"sliding_window": 16});
    mixed["layer_types"] = json!([
        "sliding_attention",
        "full_attention",
        "full_attention",
        "sliding_attention"
    ]);
    assert!(
        mistral(mixed.clone())
            .unwrap_err()
            .contains("layer_types[1] is `full_attention`")
    );
    mixed["layer_types"] = four("sliding_attention")["layer_types"].clone();
    mistral(mixed).unwrap();
    let smollm3 = |change: Value| parse(&with("SmolLM3ForCausalLM", change)).unwrap_err();
    assert!(smollm3(json!({"no_rope_layers": [1]})).contains("1 entries for 4 layers"));
    assert!(smollm3(json!({"no_rope_layer_interval": 0})).contains("no_rope_layer_interval is 0"));

    for text in ["", "{", "[]", "null", "{\"a\": NaN}", "\u{feff}{}"] {
        assert!(ModelConfig::from_json(text).is_err(), "{text:?}");
    }
    let error = ModelConfig::from_dir(Path::new("no/such/dir"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("config.json"), "{error}");
}

/// Replaces every field in turn by every kind of value. The result is an error or a spec, never a panic.
#[test]
fn no_value_panics() {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.5),
        json!(1e308),
        json!(-0.0),
        json!(""),
        json!("x"),
        json!([]),
        json!([1]),
        json!([[]]),
        json!({}),
        json!({"rope_type": "yarn", "factor": 1e-9}),
        json!({"type": "dynamic", "factor": 1e9}),
        json!({"rope_type": "yarn", "factor": 1e9, "original_max_position_embeddings": 1, "beta_fast": 1e9}),
    ];
    let mut accepted = 0;
    for arch in Architecture::ALL {
        let mut base = with(arch.class_name(), json!({}));
        for key in [
            "head_dim",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "use_sliding_window",
            "max_window_layers",
            "layer_types",
            "no_rope_layers",
            "no_rope_layer_interval",
            "attention_bias",
            "mlp_bias",
            "dtype",
            "partial_rotary_factor",
            "original_max_position_embeddings",
            "pad_token_id",
        ] {
            base[key] = json!(null);
        }
        let keys: Vec<String> = base.as_object().unwrap().keys().cloned().collect();
        for key in &keys {
            for value in &values {
                let mut config = base.clone();
                config[key] = value.clone();
                if let Ok(config) = parse(&config) {
                    accepted += 1;
                    let rotary = RotaryEmbedding::new(&config.spec.rope);
                    let (mut cos, mut sin) = (Vec::new(), Vec::new());
                    rotary.extend(0..300, 200, &mut cos, &mut sin);
                    assert!(
                        cos.iter().chain(&sin).all(|v| v.is_finite()),
                        "{key} = {value}"
                    );
                }
            }
        }
    }
    assert!(accepted > 100, "{accepted}");
}

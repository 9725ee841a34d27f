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
            "quantised (GPTQ, 4 bit)",
        ),
        (
            json!({"quantization_config": {"bits": 8}}),
            "quantised (of a method that `quantization_config` does not name)",
        ),
        (json!({"rope_theta": -1.0}), "rope_theta -1"),
        (json!({"rope_theta": huge}), "rope_theta"),
        (
            json!({"rope_scaling": "linear"}),
            "rope_scaling is \"linear\"",
        ),
        (
            rope(json!({"rope_type": "longrope"})),
            "rope longrope: short_factor is missing",
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
            "unsupported architecture `GPT2LMHeadModel`; supported are Llama",
        ),
        (
            json!({"architectures": "LlamaForCausalLM"}),
            "architectures",
        ),
        (
            json!({"architectures": "absent", "model_type": "bert"}),
            "unsupported architecture `bert`, an encoder",
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

    let granite = |change: Value| parse(&with("GraniteForCausalLM", change)).unwrap_err();
    for key in [
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
    ] {
        for value in [json!(0), json!(-1.0), json!(1e300)] {
            assert!(granite(json!({key: value})).contains(key));
        }
    }
    let gemma = |class: &str, change: Value| parse(&with(class, change)).unwrap_err();
    let gemma2 = |change: Value| gemma("Gemma2ForCausalLM", change);
    let gemma3 = |change: Value| gemma("Gemma3ForCausalLM", change);
    assert!(gemma2(json!({})).contains("sliding_window is null, but some layers have a window"));
    assert!(gemma2(json!({"attn_logit_softcapping": 0})).contains("attn_logit_softcapping 0"));
    assert!(gemma2(json!({"query_pre_attn_scalar": 0})).contains("query_pre_attn_scalar 0"));
    assert!(gemma2(json!({"use_bidirectional_attention": true})).contains("an encoder"));
    assert!(gemma2(json!({"hidden_activation": "gelu"})).contains("hidden_activation `gelu`"));
    assert!(gemma3(json!({"attn_logit_softcapping": 50.0})).contains("has no soft cap"));
    assert!(
        gemma3(json!({"rope_parameters": {"rope_theta": 1e4}})).contains("one for full_attention")
    );
    assert!(gemma3(json!({"rope_local_base_freq": 0})).contains("rope_local_base_freq 0"));
    let phi3 = |change: Value| parse(&with("Phi3ForCausalLM", change)).unwrap_err();
    assert!(phi3(json!({"partial_rotary_factor": 0.4})).contains("rotates 3"));
    assert!(phi3(json!({"partial_rotary_factor": 1.5})).contains("partial_rotary_factor 1.5"));
    let longrope = |change: Value| {
        let mut scaling =
            json!({"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2]});
        for (key, value) in change.as_object().unwrap() {
            scaling[key] = value.clone();
        }
        json!({"rope_scaling": scaling, "original_max_position_embeddings": 64})
    };
    parse(&with("Phi3ForCausalLM", longrope(json!({})))).unwrap();
    for (change, word) in [
        (
            json!({"type": "linear"}),
            "rope type `linear` is not supported for Phi-3",
        ),
        (json!({"short_factor": null}), "short_factor is missing"),
        (
            json!({"long_factor": [1, 2]}),
            "long_factor has 2 entries for 4 frequencies",
        ),
        (
            json!({"long_factor": [1, 2, 0, 1]}),
            "long_factor contains 0",
        ),
        (json!({"long_factor": "1"}), "long_factor is \"1\""),
        (json!({"attention_factor": -1}), "attention_factor -1"),
    ] {
        let error = phi3(longrope(change));
        assert!(error.contains(word), "{error}");
    }

    for text in ["", "{", "[]", "null", "{\"a\": NaN}", "\u{feff}{}"] {
        assert!(ModelConfig::from_json(text).is_err(), "{text:?}");
    }
    let error = ModelConfig::from_dir(Path::new("no/such/dir"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn what_is_not_supported_is_refused_by_its_kind_in_one_line() {
    for (class, kind) in [
        (
            "Gemma3ForConditionalGeneration",
            "a model of text with images",
        ),
        (
            "LlavaForConditionalGeneration",
            "a model of text with images",
        ),
        (
            "LlavaNextForConditionalGeneration",
            "a model of text with images",
        ),
        (
            "Qwen2VLForConditionalGeneration",
            "a model of text with images",
        ),
        ("Phi4MMForCausalLM", "a model of text with images"),
        ("gemma3", "a model of text with images"),
        ("BertModel", "an encoder, "),
        ("XLMRobertaModel", "an encoder, "),
        ("T5ForConditionalGeneration", "an encoder with a decoder"),
        ("BartForConditionalGeneration", "an encoder with a decoder"),
        ("MambaForCausalLM", "a recurrent or state-space model"),
        ("FalconMambaForCausalLM", "a recurrent or state-space model"),
        ("RwkvForCausalLM", "a recurrent or state-space model"),
        ("MixtralForCausalLM", "a mixture of experts"),
        ("Qwen2MoeForCausalLM", "a mixture of experts"),
        ("DeepseekV3ForCausalLM", "a mixture of experts"),
        ("GptOssForCausalLM", "a mixture of experts"),
        ("OlmoeForCausalLM", "a mixture of experts"),
        (
            "LlamaForSequenceClassification",
            "a classifier or reward model",
        ),
        (
            "Gemma2ForSequenceClassification",
            "a classifier or reward model",
        ),
    ] {
        let error = parse(&json!({"architectures": [class]})).unwrap_err();
        let expected = format!("unsupported architecture `{class}`, {kind}");
        assert!(
            error.contains(&expected) && error.contains(": use "),
            "{error}"
        );
        assert!(!error.contains('\n') && error.len() < 330, "{error}");
    }
    for (config, method) in [
        (json!({"quant_method": "gptq", "bits": 4}), "GPTQ, 4 bit"),
        (json!({"quant_method": "awq", "bits": 4}), "AWQ, 4 bit"),
        (json!({"quant_method": "fp8"}), "FP8"),
        (
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            "bitsandbytes, 4 bit",
        ),
        (
            json!({"load_in_8bit": true, "load_in_4bit": false}),
            "bitsandbytes, 8 bit",
        ),
        (
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            "compressed-tensors",
        ),
        (json!({"quant_method": "mxfp4"}), "MXFP4"),
        (json!({"quant_method": "of next\nyear"}), "`of nextyear`"),
    ] {
        // Nothing else of the file is needed: the sizes are missing.
        let config = json!({"architectures": ["LlamaForCausalLM"], "quantization_config": config});
        let error = parse(&config).unwrap_err();
        let expected =
            format!("the checkpoint is quantised ({method}), which is not supported: use ");
        assert!(
            error.contains(&expected) && !error.contains('\n'),
            "{error}"
        );
    }
    // Old exporters describe the quantisation beside the configuration.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), llama(json!({})).to_string()).unwrap();
    ModelConfig::from_dir(dir.path()).unwrap();
    for (file, method) in [
        ("quantize_config.json", "GPTQ"),
        ("quant_config.json", "AWQ"),
    ] {
        let path = dir.path().join(file);
        std::fs::write(&path, "{}").unwrap();
        let error = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("quantised ({method})")), "{error}");
        std::fs::remove_file(path).unwrap();
    }
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
        json!({"type": "longrope", "short_factor": [1, 1e9, 1, 2], "long_factor": [1e-6, 1, 1, 1]}),
        json!({"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {}}),
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
            "attention_multiplier",
            "attn_logit_softcapping",
            "embedding_multiplier",
            "final_logit_softcapping",
            "hidden_activation",
            "logits_scaling",
            "query_pre_attn_scalar",
            "residual_multiplier",
            "rope_local_base_freq",
            "sliding_window_pattern",
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
                    let (mut cos, mut sin) = (Vec::new(), Vec::new());
                    for spec in [&config.spec.rope]
                        .into_iter()
                        .chain(&config.spec.local_rope)
                    {
                        let rotary = RotaryEmbedding::new(spec);
                        rotary.extend(0..300, 200, &mut cos, &mut sin);
                    }
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

//! Tests of `config.json`: published files parse, and fields mean the same as in `transformers`.

use candle_core::DType;
use kernels::nn::{
    QkNormWidth,
    rotary::{RopeScaling, RotaryEmbedding},
};
use model::{Activation, Architecture, DecoderSpec, LayerRotation, ModelConfig, NormPlacement};
use serde_json::{Value, json};

use crate::support::{data, fixture};

pub fn parse(config: &Value) -> Result<ModelConfig, String> {
    ModelConfig::from_json(&config.to_string()).map_err(|e| e.to_string())
}

/// Returns a valid config with replaced fields (`null` stays null). The value `json!("absent")` removes a field.
pub fn with(arch: &str, changes: Value) -> Value {
    let mut config = json!({
        "architectures": [arch], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    });
    let map = config.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        if value == "absent" {
            map.remove(key);
        } else {
            map.insert(key.clone(), value.clone());
        }
    }
    config
}

pub fn llama(changes: Value) -> Value {
    with("LlamaForCausalLM", changes)
}

#[test]
fn real_configs_parse_or_are_refused_clearly() {
    let dir = data("model-configs");
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let supported = [
        ("llama2_7b.json", Architecture::Llama, 32, 32, 128, false),
        ("llama3_1_8b.json", Architecture::Llama, 32, 8, 128, false),
        ("llama3_2_1b.json", Architecture::Llama, 16, 8, 64, true),
        (
            "mistral_7b_v03.json",
            Architecture::Mistral,
            32,
            8,
            128,
            false,
        ),
        ("qwen2_0_5b.json", Architecture::Qwen2, 24, 2, 64, true),
        ("qwen2_7b.json", Architecture::Qwen2, 28, 4, 128, false),
        ("qwen3_0.6b.json", Architecture::Qwen3, 28, 8, 128, true),
        ("qwen3_1.7b.json", Architecture::Qwen3, 28, 8, 128, true),
        ("smollm2_135m.json", Architecture::Llama, 30, 3, 64, true),
        ("smollm2_360m.json", Architecture::Llama, 32, 5, 64, true),
        (
            "tinyllama_1b_chat_v1.0.json",
            Architecture::Llama,
            22,
            4,
            64,
            false,
        ),
    ];
    for (name, architecture, layers, kv_heads, head_dim, tied) in supported {
        let config = ModelConfig::from_json(&read(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let spec = &config.spec;
        assert_eq!(
            (
                spec.architecture,
                spec.num_layers(),
                spec.num_kv_heads,
                spec.head_dim,
                spec.tie_word_embeddings
            ),
            (architecture, layers, kv_heads, head_dim, tied),
            "{name}"
        );
        assert_eq!(spec.qkv_bias, architecture == Architecture::Qwen2, "{name}");
        assert_eq!(
            spec.qk_norm.is_some(),
            architecture == Architecture::Qwen3,
            "{name}"
        );
        assert!(!spec.o_bias && !spec.mlp_bias, "{name}");
        // None of these models uses its sliding window.
        assert!(
            spec.layers
                .iter()
                .all(|l| l.sliding_window.is_none() && l.rotation.is_some()),
            "{name}"
        );
        assert!(config.dtype.is_some() && !config.eos_token_ids.is_empty());
    }
    let llama3 = ModelConfig::from_json(&read("llama3_2_1b.json")).unwrap();
    assert_eq!(llama3.eos_token_ids, [128001, 128008, 128009]);
    assert_eq!(
        llama3.spec.rope.scaling,
        RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192
        }
    );
    let error = ModelConfig::from_json(&read("phi-2.json")).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("unsupported architecture `PhiForCausalLM`") && error.contains("SmolLM3"),
        "{error}"
    );
    let spec = |name: &str| ModelConfig::from_json(&read(name)).unwrap().spec;
    let windows = |spec: &DecoderSpec| -> Vec<usize> {
        let windows = spec.layers.iter().map(|l| l.sliding_window);
        windows.map(Option::unwrap_or_default).collect()
    };
    let gemma2 = spec("gemma2_2b.json");
    assert_eq!(
        (gemma2.attention_soft_cap, gemma2.logits_soft_cap),
        (Some(50.0), Some(30.0))
    );
    assert_eq!(
        (gemma2.attention_scale, gemma2.local_rope.is_none()),
        (0.0625, true)
    );
    assert_eq!(
        (gemma2.norms, gemma2.hidden_act),
        (NormPlacement::Around, Activation::GeluTanh)
    );
    assert!(gemma2.norms_around_one && gemma2.tie_word_embeddings);
    // The root of 2304 needs no rounding, that of 1152 is 33.94.
    assert_eq!(gemma2.multipliers.embedding, 48.0);
    assert_eq!(windows(&gemma2), [4096, 0].repeat(13));
    let gemma3 = spec("gemma3_1b_it.json");
    assert_eq!(
        (gemma3.multipliers.embedding, gemma3.qk_norm),
        (34.0, Some(QkNormWidth::Head))
    );
    assert_eq!(
        (gemma3.attention_soft_cap, gemma3.logits_soft_cap),
        (None, None)
    );
    assert_eq!(windows(&gemma3)[..7], [512, 512, 512, 512, 512, 0, 512]);
    assert_eq!(gemma3.rope.theta, 1_000_000.0);
    assert_eq!(gemma3.local_rope.as_ref().unwrap().theta, 10_000.0);
    assert_eq!(gemma3.layers[4].rotation, Some(LayerRotation::Local));
    assert_eq!(gemma3.layers[5].rotation, Some(LayerRotation::Global));
    let olmo2 = spec("olmo2_7b.json");
    assert_eq!(
        (olmo2.norms, olmo2.qk_norm),
        (NormPlacement::After, Some(QkNormWidth::Projection))
    );
    assert!(!olmo2.norms_around_one && !olmo2.qkv_bias);
    let config = ModelConfig::from_dir(&data("stories260k")).unwrap();
    assert_eq!((config.spec.head_dim, config.dtype), (8, Some(DType::F32)));
}

#[test]
fn every_fixture_parses() {
    let mut seen = 0;
    for entry in std::fs::read_dir(fixture("arch")).unwrap() {
        let dir = entry.unwrap().path();
        let config = ModelConfig::from_dir(&dir).unwrap_or_else(|e| panic!("{e}"));
        let name = dir.file_name().unwrap().to_str().unwrap();
        let windows: Vec<_> = config
            .spec
            .layers
            .iter()
            .map(|l| l.sliding_window)
            .collect();
        let layers = config.spec.layers.iter();
        let ropes: Vec<_> = layers.map(|l| l.rotation.is_some()).collect();
        match name {
            "mistral" => assert_eq!(windows, [Some(8), Some(8)]),
            "qwen2" => assert_eq!(windows, [None, None]),
            "qwen2_window" => assert_eq!(windows, [None, Some(6)]),
            "smollm3" => assert_eq!(ropes, [true, true, false]),
            "llama_bias" => {
                assert!(config.spec.qkv_bias && config.spec.o_bias && config.spec.mlp_bias)
            }
            // The scaling stretches 16 trained positions fourfold.
            "llama_dynamic" => assert_eq!(config.spec.max_context(), 64),
            "phi3" => assert_eq!(windows, [Some(8), Some(8)]),
            "phi3_longrope" => assert_eq!((config.spec.rope.dim, config.spec.head_dim), (6, 8)),
            "gemma2" => assert_eq!(windows, [Some(7), None, Some(7)]),
            "gemma3" => assert_eq!(windows, [Some(7), Some(7), None, Some(7)]),
            "llama_head24" => assert_eq!(config.spec.head_dim, 24),
            "llama_yarn" => assert!(matches!(config.spec.rope.scaling, RopeScaling::Yarn(_))),
            _ => {}
        }
        seen += 1;
    }
    assert!(seen >= 23, "{seen}");
}

#[test]
fn rotary_frequencies_and_tables_match_transformers() {
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(fixture("rope.json")).unwrap()).unwrap();
    let floats = |v: &Value| -> Vec<f64> {
        v.as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap())
            .collect()
    };
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let config = parse(&case["config"]).unwrap();
        let len = case["sequence_len"].as_u64().unwrap() as usize;
        let rotary = RotaryEmbedding::new(&config.spec.rope);
        let inv_freq = config.spec.rope.inv_freq(len);
        let expected = floats(&case["inv_freq"]);
        assert_eq!(inv_freq.len(), expected.len());
        for (i, (got, expected)) in inv_freq.iter().zip(&expected).enumerate() {
            // The tolerance allows two roundings of f32.
            assert!(
                (f64::from(*got) - expected).abs() <= 2.5e-7 * expected,
                "{name}: inv_freq[{i}] {got} {expected}"
            );
        }
        let scale = case["attention_scaling"].as_f64().unwrap();
        assert!((f64::from(config.spec.rope.attention_scaling()) - scale).abs() < 1e-6 * scale);
        for row in case["rows"].as_array().unwrap() {
            let position = row[0].as_u64().unwrap() as usize;
            let (mut cos, mut sin) = (Vec::new(), Vec::new());
            // One forward pass has all positions, as in a prompt.
            rotary.extend(position..position + 1, len, &mut cos, &mut sin);
            // The error of the angle has two roundings of its frequency and one of its own.
            let tolerance = 2e-6 + 4e-7 * position as f64;
            for (which, got) in [(1, &cos), (2, &sin)] {
                assert_eq!(got.len(), config.spec.rope.dim / 2);
                for (got, expected) in got.iter().zip(floats(&row[which])) {
                    assert!(
                        (f64::from(*got) - expected).abs() < tolerance,
                        "{name}: position {position}: {got} {expected}"
                    );
                }
            }
        }
    }
    assert!(cases.len() >= 16);
}

/// Compares dynamic tables with the fixture of tests/fixtures/make_dynamic_rope.py.
#[test]
fn dynamic_tables_are_those_of_generation_with_a_cache() {
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("dynamic_rope.json")).unwrap())
            .unwrap();
    let mut compared = 0;
    for case in golden["rows"].as_array().unwrap() {
        let config = parse(&llama(json!({
            "head_dim": case["dim"], "rope_theta": case["theta"], "max_position_embeddings": case["trained"],
            "rope_scaling": {"rope_type": "dynamic", "factor": case["factor"]},
        })))
        .unwrap();
        let rotary = RotaryEmbedding::new(&config.spec.rope);
        let prompt = case["prompt"].as_u64().unwrap() as usize;
        for row in case["rows"].as_array().unwrap() {
            let (position, wanted_cos, wanted_sin): (usize, Vec<f32>, Vec<f32>) =
                serde_json::from_value(row.clone()).unwrap();
            let (mut cos, mut sin) = (Vec::new(), Vec::new());
            rotary.extend(position..position + 1, prompt, &mut cos, &mut sin);
            let tolerance = 2e-6 + 4e-7 * position as f32;
            for (got, wanted) in cos
                .iter()
                .chain(&sin)
                .zip(wanted_cos.iter().chain(&wanted_sin))
            {
                assert!(
                    (got - wanted).abs() < tolerance,
                    "prompt of {prompt}, position {position}: {got}, expected {wanted}"
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 400, "{compared}");
}

/// The context is the length that vLLM serves and that transformers accepts, for files as they are published.
#[test]
fn the_context_is_what_the_scaling_reaches() {
    let yarn = |factor: f64, original: usize| json!({"type": "yarn", "factor": factor, "original_max_position_embeddings": original});
    let cases = [
        (2048, json!(null), 2048),
        (4096, json!({"type": "default"}), 4096),
        (4096, json!({"type": "linear", "factor": 4.0}), 16384),
        (2048, json!({"type": "dynamic", "factor": 2.0}), 4096),
        // Llama 3.1 and 3.2 include the scaling in their length.
        (
            131_072,
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}),
            131_072,
        ),
        // Qwen2.5 is written as its card describes. The length of Qwen3 is neither the original nor the scaled one.
        (32_768, yarn(4.0, 32_768), 131_072),
        (40_960, yarn(4.0, 32_768), 131_072),
        // DeepSeek's length includes the scaling already.
        (163_840, yarn(40.0, 4096), 163_840),
        (131_072, yarn(32.0, 4096), 131_072),
        // The scaling reaches less than the file's length.
        (131_072, yarn(2.0, 32_768), 65_536),
        // Without the original length, the file's length is the original. Without a factor, the quotient of both lengths is the
        // factor.
        (4096, json!({"type": "yarn", "factor": 2.0}), 8192),
        (
            16_384,
            json!({"type": "yarn", "original_max_position_embeddings": 4096}),
            16_384,
        ),
        (4096, json!({"type": "yarn", "factor": 1.5}), 6144),
    ];
    for (positions, scaling, context) in cases {
        let mut spellings =
            vec![json!({"max_position_embeddings": positions, "rope_scaling": scaling})];
        if let Some(map) = scaling.as_object() {
            let mut new = map.clone();
            if let Some(kind) = new.remove("type") {
                new.insert("rope_type".to_owned(), kind);
            }
            new.insert("rope_theta".to_owned(), json!(1e6));
            spellings.push(json!({"max_position_embeddings": positions, "rope_parameters": new}));
            // Some exporters write the original length beside the parameters.
            if let Some(original) = new.remove("original_max_position_embeddings") {
                spellings.push(
                    json!({"max_position_embeddings": positions, "rope_parameters": new,
                    "original_max_position_embeddings": original}),
                );
            }
        }
        for config in spellings {
            let spec = parse(&llama(config.clone())).unwrap().spec;
            assert_eq!(spec.max_context(), context, "{config}");
        }
    }
}

#[test]
fn old_and_new_spellings_agree() {
    let old = parse(&llama(json!({
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 3.0},
    })))
    .unwrap();
    let new = parse(&llama(json!({
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5e5},
        "torch_dtype": "absent", "dtype": "bfloat16",
    })))
    .unwrap();
    assert_eq!(old.spec, new.spec);
    assert_eq!(old.dtype, new.dtype);
    assert_eq!(old.spec.rope.theta, 5e5);
    // Some files have an empty `rope_scaling` beside `rope_parameters`.
    let both = parse(&llama(json!({
        "rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500000},
    })))
    .unwrap();
    assert_eq!(old.spec, both.spec);
}

#[test]
fn absent_fields_mean_what_they_mean_in_transformers() {
    let spec = |arch: &str, changes: Value| parse(&with(arch, changes)).unwrap().spec;
    let llama = spec(
        "LlamaForCausalLM",
        json!({"num_key_value_heads": "absent", "rms_norm_eps": "absent", "tie_word_embeddings": "absent",
            "max_position_embeddings": "absent", "hidden_act": "absent"}),
    );
    assert_eq!(llama.num_kv_heads, 8);
    assert_eq!(
        (llama.rms_norm_eps, llama.tie_word_embeddings),
        (1e-6, false)
    );
    assert_eq!(
        (llama.max_position_embeddings, llama.rope.theta),
        (2048, 10_000.0)
    );

    let windows = |arch: &str, changes: Value| -> Vec<Option<usize>> {
        let spec = spec(arch, changes);
        spec.layers.iter().map(|l| l.sliding_window).collect()
    };
    let mistral = "MistralForCausalLM";
    assert_eq!(
        windows(mistral, json!({"sliding_window": "absent"})),
        [Some(4096); 4]
    );
    assert_eq!(windows(mistral, json!({"sliding_window": null})), [None; 4]);
    assert_eq!(
        spec(mistral, json!({"num_key_value_heads": null})).num_kv_heads,
        8
    );
    for qwen in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
        let on = json!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 3});
        assert_eq!(windows(qwen, on), [None, None, None, Some(16)]);
        // The default of 28 full layers is more than the four layers of this model.
        assert_eq!(
            windows(
                qwen,
                json!({"use_sliding_window": true, "sliding_window": 16})
            ),
            [None; 4]
        );
        let off = json!({"sliding_window": 16, "max_window_layers": 0});
        assert_eq!(windows(qwen, off), [None; 4]);
        let listed = json!({
            "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 0,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        });
        assert_eq!(windows(qwen, listed), [Some(16), None, None, Some(16)]);
    }
    assert_eq!(spec("Qwen3ForCausalLM", json!({})).head_dim, 128);

    let smollm3 = "SmolLM3ForCausalLM";
    let ropes = |changes: Value| -> Vec<bool> {
        spec(smollm3, changes)
            .layers
            .iter()
            .map(|l| l.rotation.is_some())
            .collect()
    };
    assert_eq!(ropes(json!({})), [true, true, true, false]);
    assert_eq!(
        ropes(json!({"no_rope_layer_interval": 2})),
        [true, false, true, false]
    );
    assert_eq!(
        ropes(json!({"no_rope_layers": [0, 1, 1, 0, 1]})),
        [false, true, true, false]
    );
    assert_eq!(spec(smollm3, json!({})).rope.theta, 2_000_000.0);
    assert!(spec(smollm3, json!({"tie_word_embeddings": "absent"})).tie_word_embeddings);
    let slides = json!({"use_sliding_window": true, "sliding_window": 9});
    assert_eq!(windows(smollm3, slides), [None, None, None, Some(9)]);
}

#[test]
fn generation_config_names_the_stop_ids() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, json: &Value| {
        std::fs::write(dir.path().join(name), json.to_string()).unwrap();
    };
    write(
        "config.json",
        &llama(json!({"eos_token_id": [2, 5, 2, 99, 100, -1]})),
    );
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    assert_eq!(
        config.eos_token_ids,
        [2, 5, 99],
        "the ids 100 and -1 are not in this model's vocabulary"
    );
    write("generation_config.json", &json!({"eos_token_id": 7}));
    assert_eq!(
        ModelConfig::from_dir(dir.path()).unwrap().eos_token_ids,
        [7]
    );
    write("generation_config.json", &json!({"temperature": 0.6}));
    assert_eq!(
        ModelConfig::from_dir(dir.path()).unwrap().eos_token_ids,
        [2, 5, 99]
    );
    std::fs::write(dir.path().join("generation_config.json"), "{").unwrap();
    let error = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json"), "{error}");
}

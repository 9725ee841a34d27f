//! `adapter_config.json`: the layers that a LoRA adapter changes, with their ranks and scales.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::AdapterError;

/// The part of PEFT's `LoraConfig` that plain LoRA needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// The rank.
    pub r: usize,
    pub lora_alpha: f64,
    /// Used only in training, never in serving.
    pub lora_dropout: f64,
    /// Rank-stabilised: the scale is `alpha / √r` instead of `alpha / r` (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Names of linear layers, or ends of their paths (`q_proj`, `self_attn.q_proj`); `"all-linear"` for all of the decoder.
    #[serde(deserialize_with = "modules")]
    pub target_modules: Vec<String>,
    /// Ranks of single layers, by the end of their path.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of single layers, by the end of their path.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Informative only; nothing is loaded from there.
    pub base_model_name_or_path: Option<String>,
}

/// PEFT's name for all linear layers except the output layer.
const ALL_LINEAR: &str = "all-linear";

/// The names that stand for all linear layers of a decoder, also of one that has some of them in one layer ([`FUSED_LAYERS`]).
const LINEAR_LAYERS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// The layers that hold several of [`LINEAR_LAYERS`] (Phi-3).
const FUSED_LAYERS: [&str; 2] = ["qkv_proj", "gate_up_proj"];

/// Reads a list of names, or [`ALL_LINEAR`]. Any other string would be a regular expression in PEFT.
fn modules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a list of layer names or \"all-linear\""
    )]
    enum Modules {
        Word(String),
        Names(Vec<String>),
    }
    match Modules::deserialize(deserializer)? {
        Modules::Names(names) => Ok(names),
        Modules::Word(word) if word == ALL_LINEAR => Ok(LINEAR_LAYERS.map(str::to_owned).to_vec()),
        Modules::Word(word) => Err(serde::de::Error::custom(format!(
            "target_modules is \"{word}\": expected a list of layer names or \"{ALL_LINEAR}\""
        ))),
    }
}

impl Default for LoraConfig {
    /// Returns the settings: all linear layers of the decoder, rank 8, alpha 16 (as in SELF-JUDGE).
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules: LINEAR_LAYERS.map(str::to_owned).to_vec(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            base_model_name_or_path: None,
        }
    }
}

/// Fields of PEFT's configuration that do not affect the formula.
const HARMLESS: [&str; 15] = [
    "task_type",
    "auto_mapping",
    "peft_version",
    "revision",
    "inference_mode",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "megatron_config",
    "megatron_core",
    "eva_config",
    "loftq_config",
    "qalora_group_size",
    "runtime_config",
    "ensure_weight_tying",
];

impl LoraConfig {
    /// Returns the rank of the layer at `path`.
    pub fn rank(&self, path: &str) -> usize {
        *by_pattern(&self.rank_pattern, path).unwrap_or(&self.r)
    }

    /// Returns the factor by which `B·A·x` of the layer at `path` is multiplied.
    pub fn scale(&self, path: &str) -> f64 {
        let alpha = *by_pattern(&self.alpha_pattern, path).unwrap_or(&self.lora_alpha);
        let rank = self.rank(path) as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Returns whether a new adapter gets factors for the linear layer at `path`.
    pub fn targets(&self, path: &str) -> bool {
        let fused = || FUSED_LAYERS.iter().any(|end| ends_with(path, end));
        let named = self.target_modules.iter().any(|end| ends_with(path, end));
        named || (self.is_all_linear() && fused())
    }

    /// Returns whether the names stand for all linear layers of the decoder, whatever it calls them.
    pub fn is_all_linear(&self) -> bool {
        self.target_modules == LINEAR_LAYERS
    }

    /// Returns the configuration with the names of the given layers, if it [stands for all](Self::is_all_linear): PEFT needs the names
    /// that the model has.
    pub fn naming<'a>(mut self, paths: impl Iterator<Item = &'a str>) -> Self {
        if !self.is_all_linear() {
            return self;
        }
        let mut names: Vec<String> = Vec::new();
        for path in paths {
            let name = path.rsplit('.').next().unwrap_or(path);
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        self.target_modules = names;
        self
    }

    /// # Errors
    /// Errors with the name of the first field that is invalid.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let refuse = |text: String| Err(AdapterError::Unsupported(text));
        if self.r == 0 || self.rank_pattern.values().any(|&r| r == 0) {
            return refuse("r and the ranks in rank_pattern must be at least 1".to_owned());
        }
        let alphas = self.alpha_pattern.values().chain([&self.lora_alpha]);
        if alphas.clone().any(|a| !a.is_finite()) {
            return refuse("lora_alpha must be finite".to_owned());
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return refuse(format!(
                "lora_dropout must be in [0, 1), not {}",
                self.lora_dropout
            ));
        }
        for pattern in self.rank_pattern.keys().chain(self.alpha_pattern.keys()) {
            // PEFT takes patterns as regular expressions; a name with dots matches itself.
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
            if !pattern.chars().all(plain) {
                return refuse(format!(
                    "the pattern `{pattern}` is a regular expression, which is not supported; write the end of a layer's path"
                ));
            }
        }
        Ok(())
    }

    /// Checks that training can change what the adapter does.
    ///
    /// # Errors
    /// Errors if a scale is 0, with which every factor does nothing.
    pub fn check_trainable(&self) -> Result<(), AdapterError> {
        let mut alphas = self.alpha_pattern.values().chain([&self.lora_alpha]);
        match alphas.any(|&alpha| alpha == 0.0) {
            true => Err(AdapterError::Unsupported(
                "lora_alpha and the alphas in alpha_pattern must not be 0: nothing would be learned"
                    .to_owned(),
            )),
            false => Ok(()),
        }
    }

    pub(super) fn from_json(json: &Value) -> Result<Self, AdapterError> {
        let refuse = |text: String| AdapterError::Unsupported(text);
        let fields = json
            .as_object()
            .ok_or_else(|| refuse("the file must hold a JSON object".to_owned()))?;
        if fields.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(refuse(format!(
                "peft_type is {}, but only LORA is supported",
                fields.get("peft_type").unwrap_or(&Value::Null)
            )));
        }
        let mut ours = Map::new();
        for (name, value) in fields {
            match name.as_str() {
                "r"
                | "lora_alpha"
                | "lora_dropout"
                | "use_rslora"
                | "rank_pattern"
                | "alpha_pattern"
                | "base_model_name_or_path" => {
                    if !value.is_null() {
                        ours.insert(name.clone(), value.clone());
                    }
                }
                "target_modules" => {
                    ours.insert(name.clone(), target_modules(value)?);
                }
                "peft_type" => {}
                "bias" if *value == json!("none") => {}
                "bias" => {
                    return Err(refuse(format!(
                        "bias is {value}: trained biases are not supported; only \"none\" is"
                    )));
                }
                "init_lora_weights" => keeps_the_base(value)?,
                name if HARMLESS.contains(&name) => {}
                // Every other field changes the formula when it is enabled.
                _ if is_off(value) => {}
                name => {
                    return Err(refuse(format!("{name} is {value}, which is not supported")));
                }
            }
        }
        for required in ["r", "lora_alpha"] {
            if !ours.contains_key(required) {
                return Err(refuse(format!("{required} is missing")));
            }
        }
        let config: Self =
            serde_json::from_value(Value::Object(ours)).map_err(|e| refuse(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// Returns the configuration in PEFT's format.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model_name_or_path,
            "inference_mode": true,
            "r": self.r,
            "lora_alpha": whole(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "use_rslora": self.use_rslora,
            "use_dora": false,
            "target_modules": self.target_modules,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern.iter()
                .map(|(k, v)| (k.clone(), whole(*v))).collect::<Map<_, _>>(),
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "modules_to_save": null,
        })
    }
}

/// Writes whole numbers as integers: PEFT's own alphas are integers, and some readers require that.
fn whole(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// Reads a list of names. A single string is a regular expression in PEFT; which layers it matches is then clear from the tensors.
fn target_modules(value: &Value) -> Result<Value, AdapterError> {
    match value {
        Value::Array(names) if names.iter().all(Value::is_string) => Ok(value.clone()),
        Value::String(_) | Value::Null => Ok(json!([])),
        _ => Err(AdapterError::Unsupported(format!(
            "target_modules is {value}, expected a list of names"
        ))),
    }
}

/// Errors for PiSSA, OLoRA, CorDA, LoftQ and similar initialisations: they subtract the initial factors from the base weights, so the
/// adapter is wrong without that changed base.
fn keeps_the_base(init: &Value) -> Result<(), AdapterError> {
    match init {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::String(s) if ["gaussian", "eva", "orthogonal"].contains(&s.as_str()) => Ok(()),
        _ => Err(AdapterError::Unsupported(format!(
            "init_lora_weights is {init}: this initialisation changes the base model; convert the adapter to plain LoRA with PEFT"
        ))),
    }
}

fn by_pattern<'a, T>(patterns: &'a BTreeMap<String, T>, path: &str) -> Option<&'a T> {
    patterns
        .iter()
        .find(|(end, _)| ends_with(path, end))
        .map(|(_, value)| value)
}

/// Returns whether `end` is the path or its last whole components.
fn ends_with(path: &str, end: &str) -> bool {
    path.strip_suffix(end)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a configuration as PEFT 0.18 writes it, without some fields that are null.
    fn peft() -> Value {
        json!({
            "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
            "base_model_name_or_path": "base", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
            "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
            "init_lora_weights": true, "layer_replication": null, "loftq_config": {}, "lora_alpha": 32,
            "lora_bias": false, "lora_dropout": 0.05, "megatron_core": "megatron.core", "modules_to_save": null,
            "peft_type": "LORA", "peft_version": "0.18.0", "qalora_group_size": 16, "r": 16,
            "rank_pattern": {"self_attn.q_proj": 4}, "revision": null, "target_modules": ["v_proj", "q_proj"],
            "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null,
            "use_dora": false, "use_qalora": false, "use_rslora": false
        })
    }

    #[test]
    fn reads_what_peft_writes() {
        let config = LoraConfig::from_json(&peft()).unwrap();
        assert_eq!((config.r, config.lora_alpha), (16, 32.0));
        assert!(config.targets("model.layers.0.self_attn.q_proj"));
        assert!(!config.targets("model.layers.0.self_attn.xq_proj"));
        assert_eq!(config.rank("model.layers.0.self_attn.q_proj"), 4);
        assert_eq!(config.rank("model.layers.0.cross_self_attn.q_proj"), 16);
        assert_eq!(config.scale("model.layers.0.self_attn.q_proj"), 8.0);
        assert_eq!(config.scale("model.layers.0.self_attn.v_proj"), 2.0);
        assert_eq!(LoraConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn all_linear_is_every_linear_layer_of_the_decoder() {
        let read = |text: &str| toml::from_str::<LoraConfig>(text);
        let all = read("target_modules = 'all-linear'").unwrap();
        assert_eq!(all.target_modules, LINEAR_LAYERS);
        assert!(!all.targets("lm_head") && !all.targets("model.embed_tokens"));
        let named = read("target_modules = ['q_proj']").unwrap();
        assert_eq!(named.target_modules, ["q_proj"]);
        for wrong in ["'.*_proj'", "7", "[1]"] {
            let error = read(&format!("target_modules = {wrong}")).unwrap_err();
            assert!(error.to_string().contains("all-linear"), "{error}");
        }
    }

    #[test]
    fn all_linear_is_also_every_layer_of_a_decoder_with_fused_ones() {
        let all = LoraConfig::default();
        assert!(all.targets("model.layers.0.self_attn.qkv_proj"));
        assert!(all.targets("model.layers.0.mlp.gate_up_proj"));
        let paths = [
            "model.layers.0.self_attn.qkv_proj",
            "model.layers.1.self_attn.qkv_proj",
            "model.layers.0.mlp.down_proj",
        ];
        let named = all.clone().naming(paths.into_iter());
        assert_eq!(named.target_modules, ["qkv_proj", "down_proj"]);
        let some = LoraConfig {
            target_modules: vec!["o_proj".to_owned()],
            ..all
        };
        assert!(!some.targets("model.layers.0.self_attn.qkv_proj"));
        assert_eq!(some.clone().naming(paths.into_iter()), some);
    }

    #[test]
    fn rank_stabilised_scale() {
        let config = LoraConfig {
            r: 16,
            lora_alpha: 8.0,
            use_rslora: true,
            alpha_pattern: [("lm_head".to_owned(), 12.0)].into(),
            ..LoraConfig::default()
        };
        assert_eq!(config.scale("x.q_proj"), 2.0);
        assert_eq!(config.scale("lm_head"), 3.0);
    }

    #[test]
    fn refuses_what_is_not_plain_lora() {
        for (field, value) in [
            ("peft_type", json!("IA3")),
            ("use_dora", json!(true)),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("init_lora_weights", json!("olora")),
            ("init_lora_weights", json!("loftq")),
            ("bias", json!("lora_only")),
            ("lora_bias", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("fan_in_fan_out", json!(true)),
            ("layer_replication", json!([[0, 4], [2, 5]])),
            ("target_parameters", json!(["experts"])),
            ("something_of_next_year", json!(true)),
            ("rank_pattern", json!({"q_proj|v_proj": 4})),
            ("rank_pattern", json!({"q_proj": 0})),
            ("r", json!(0)),
            ("r", json!(-4)),
            ("r", json!(null)),
            ("lora_dropout", json!(1.0)),
            ("target_modules", json!(7)),
        ] {
            let mut json = peft();
            json[field] = value.clone();
            let refused = LoraConfig::from_json(&json);
            assert!(refused.is_err(), "{field} = {value}");
        }
        let mut json = peft();
        json["use_dora"] = json!(true);
        let error = LoraConfig::from_json(&json).unwrap_err().to_string();
        assert!(error.contains("use_dora"), "{error}");
    }
}

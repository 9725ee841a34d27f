//! Continued training of an adapter, as with PEFT's `is_trainable=True`: its factors are trained further, and the run takes its rank,
//! alpha and layers.

use std::path::Path;

use super::TrainError;
use super::base::{Adapter, lora_layers};
use super::digest::FileDigest;
use model::{
    DecoderSpec,
    adapter::{CONFIG_FILE, LoraConfig, WEIGHTS_FILE},
};

/// Returns the digest of an adapter's files.
///
/// # Errors
/// Those of the file system.
pub fn adapter_digest(dir: &Path) -> Result<String, TrainError> {
    [CONFIG_FILE, WEIGHTS_FILE]
        .iter()
        .map(|name| Ok(FileDigest::of(&dir.join(name))?.sha256))
        .collect()
}

/// The `[lora]` table of a run: its values, the default values, and the keys that the user gave.
#[derive(Debug, Clone, Copy)]
pub struct LoraSettings<'a> {
    pub requested: &'a LoraConfig,
    pub default: &'a LoraConfig,
    /// Names of the keys that a file or a flag gave, even with the default value.
    pub given: &'a [String],
}

impl LoraSettings<'_> {
    /// Returns whether the user chose this value: it was given, or it is not the default.
    fn is_chosen<T: PartialEq>(&self, key: &str, of: impl Fn(&LoraConfig) -> &T) -> bool {
        self.given.iter().any(|given| given == key) || of(self.requested) != of(self.default)
    }
}

impl Adapter {
    /// Returns the adapter as the start of continued training. The run takes its rank, alpha and layers; its configuration then lists the
    /// layers that have factors, where PEFT also allows an expression, a word, or layer numbers. Dropout comes from the run.
    ///
    /// # Errors
    /// If a setting conflicts with the adapter, or a factor has no layer in the model; the message names it.
    pub fn continued(
        mut self,
        spec: &DecoderSpec,
        settings: LoraSettings<'_>,
    ) -> Result<Self, TrainError> {
        self.check_fit(spec)?;
        self.config.target_modules = self.trained_modules(spec);
        let (requested, is) = (settings.requested, &self.config);
        let refuse = |key: &str, value: String, is: String| {
            Err(TrainError::Config(format!(
                "`lora.{key}` is {value}, but the start adapter has {is}: remove the setting, or set it to that value"
            )))
        };
        if settings.is_chosen("r", |lora| &lora.r) && requested.r != is.r {
            return refuse("r", requested.r.to_string(), is.r.to_string());
        }
        if settings.is_chosen("lora_alpha", |lora| &lora.lora_alpha)
            && requested.lora_alpha != is.lora_alpha
        {
            return refuse(
                "lora_alpha",
                requested.lora_alpha.to_string(),
                is.lora_alpha.to_string(),
            );
        }
        if settings.is_chosen("use_rslora", |lora| &lora.use_rslora)
            && requested.use_rslora != is.use_rslora
        {
            return refuse(
                "use_rslora",
                requested.use_rslora.to_string(),
                is.use_rslora.to_string(),
            );
        }
        if settings.is_chosen("rank_pattern", |lora| &lora.rank_pattern)
            && requested.rank_pattern != is.rank_pattern
        {
            let shown = |lora: &LoraConfig| format!("{:?}", lora.rank_pattern);
            return refuse("rank_pattern", shown(requested), shown(is));
        }
        if settings.is_chosen("alpha_pattern", |lora| &lora.alpha_pattern)
            && requested.alpha_pattern != is.alpha_pattern
        {
            let shown = |lora: &LoraConfig| format!("{:?}", lora.alpha_pattern);
            return refuse("alpha_pattern", shown(requested), shown(is));
        }
        if settings.is_chosen("target_modules", |lora| &lora.target_modules) {
            // However the layers are named, they have to be the same.
            let layers = lora_layers(spec, requested);
            let same = layers.len() == self.weights.len()
                && layers
                    .iter()
                    .all(|(path, _)| self.weights.contains_key(path));
            if !same {
                let shown = |lora: &LoraConfig| format!("[{}]", lora.target_modules.join(", "));
                return refuse("target_modules", shown(requested), shown(is));
            }
        }
        self.config.lora_dropout = requested.lora_dropout;
        if requested.base_model_name_or_path.is_some() {
            self.config.base_model_name_or_path = requested.base_model_name_or_path.clone();
        }
        Ok(self)
    }

    /// Returns the names of the layers that have factors: of a kind of layer if all layers of that kind have them, otherwise of each
    /// layer.
    fn trained_modules(&self, spec: &DecoderSpec) -> Vec<String> {
        let linears: Vec<String> = spec.linears().map(|(path, _)| path).collect();
        let kind = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
        let mut kinds: Vec<String> = Vec::new();
        for path in &linears {
            if self.weights.contains_key(path) && !kinds.contains(&kind(path)) {
                kinds.push(kind(path));
            }
        }
        let is_whole = |one: &String| {
            let mut of_kind = linears.iter().filter(|path| kind(path) == *one);
            of_kind.all(|path| self.weights.contains_key(path))
        };
        match kinds.iter().all(is_whole) {
            true => kinds,
            false => self.weights.keys().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::json;

    use super::*;
    use crate::base::{FrozenBase, Start};
    use crate::trainable::{Factors, Trainable};
    use model::ModelConfig;
    use model::adapter::testing;

    fn spec() -> DecoderSpec {
        let json = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 24, "vocab_size": 20, "max_position_embeddings": 32,
        });
        ModelConfig::from_json(&json.to_string()).unwrap().spec
    }

    fn adapter(r: usize, modules: &[&str]) -> Adapter {
        let (config, weights) = testing::random(&spec(), r, modules, 5);
        Adapter { config, weights }
    }

    fn continued(
        adapter: &Adapter,
        requested: &LoraConfig,
        given: &[&str],
    ) -> Result<Adapter, String> {
        let given: Vec<String> = given.iter().map(|&key| key.to_owned()).collect();
        let default = LoraConfig::default();
        let settings = LoraSettings {
            requested,
            default: &default,
            given: &given,
        };
        let went_on = adapter.clone().continued(&spec(), settings);
        went_on.map_err(|error| error.to_string())
    }

    #[test]
    fn rank_alpha_and_layers_are_the_adapters() {
        let base = FrozenBase::new(spec(), Start::Random { seed: 1 }, &Device::Cpu).unwrap();
        for modules in [&["q_proj", "down_proj"][..], &["v_proj"]] {
            let mut start = adapter(3, modules);
            let went_on = continued(&start, &LoraConfig::default(), &[]).unwrap();
            assert_eq!(went_on.config.r, 3);
            assert_eq!(went_on.config.target_modules, modules);
            Trainable::adapter(&base, went_on.config.clone(), Factors::From(&went_on)).unwrap();
            // As after reading a PEFT expression, which gives no names.
            start.config.target_modules = Vec::new();
            let named = continued(&start, &LoraConfig::default(), &[]).unwrap();
            assert_eq!(named.config, went_on.config);
            // Only some layers have factors.
            start.weights.retain(|path, _| path.contains("layers.1."));
            let some = continued(&start, &LoraConfig::default(), &[]).unwrap();
            let trained = Trainable::adapter(&base, some.config.clone(), Factors::From(&some));
            assert_eq!(trained.unwrap().vars.len(), 2 * modules.len());
        }
    }

    #[test]
    fn a_setting_that_says_otherwise_is_refused_by_name_and_one_that_agrees_is_not() {
        let start = adapter(3, &["q_proj", "down_proj"]);
        let (r, alpha) = (start.config.r, start.config.lora_alpha);
        let with = |change: &dyn Fn(&mut LoraConfig)| {
            let mut requested = LoraConfig::default();
            change(&mut requested);
            requested
        };
        type Change = Box<dyn Fn(&mut LoraConfig)>;
        let other: [(&str, Change); 6] = [
            ("`lora.r` is 5", Box::new(|lora| lora.r = 5)),
            (
                "lora.lora_alpha",
                Box::new(move |lora| lora.lora_alpha = alpha + 1.0),
            ),
            ("lora.use_rslora", Box::new(|lora| lora.use_rslora = true)),
            (
                "lora.rank_pattern",
                Box::new(|lora| lora.rank_pattern = [("q_proj".to_owned(), 2)].into()),
            ),
            (
                "lora.alpha_pattern",
                Box::new(|lora| lora.alpha_pattern = [("q_proj".to_owned(), 2.0)].into()),
            ),
            (
                "lora.target_modules",
                Box::new(|lora| lora.target_modules = vec!["q_proj".to_owned()]),
            ),
        ];
        for (named, change) in &other {
            let error = continued(&start, &with(change), &[]).unwrap_err();
            assert!(error.contains(named) && !error.contains('\n'), "{error}");
        }
        let error = continued(&start, &LoraConfig::default(), &["r"]).unwrap_err();
        assert!(
            error.contains("`lora.r` is 8") && error.contains("has 3"),
            "{error}"
        );
        let error = continued(&start, &LoraConfig::default(), &["target_modules"]).unwrap_err();
        assert!(error.contains("lora.target_modules"), "{error}");
        let same = with(&|lora| {
            (lora.r, lora.lora_alpha) = (r, alpha);
            lora.target_modules = vec!["mlp.down_proj".to_owned(), "self_attn.q_proj".to_owned()];
            lora.lora_dropout = 0.25;
        });
        let went_on = continued(&start, &same, &["r", "lora_alpha", "target_modules"]).unwrap();
        assert_eq!(went_on.config.lora_dropout, 0.25);
    }

    #[test]
    fn a_factor_without_a_layer_is_named() {
        let mut start = adapter(3, &["q_proj"]);
        let pair = start.weights["model.layers.0.self_attn.q_proj"].clone();
        start.weights.insert("lm_head".to_owned(), pair);
        let error = continued(&start, &LoraConfig::default(), &[]).unwrap_err();
        assert!(error.contains("lm_head"), "{error}");
    }
}

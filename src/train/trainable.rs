//! The trained part, the whole model or an adapter beside it, as variables under one decoder.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainError;
use super::base::{Adapter, FrozenBase, Source, Start, lora_layers, start_tensors};
use kernels::nn::{Dropout, Lora};
use model::{
    Decoder, DecoderSpec,
    adapter::{AdapterWeights, LoraConfig, LoraPair},
    weights,
};

/// The trained variables and the decoder that computes with them. The optimizer writes the variables in place, which changes the decoder;
/// no served weights share their storage.
pub struct Trainable {
    /// Variables by checkpoint name, sorted; adapters as `<path>.lora_A.weight` and `<path>.lora_B.weight`.
    pub vars: Vec<(String, Var)>,
    pub decoder: Decoder,
    lora: Option<LoraConfig>,
}

/// The initial factors of a trained adapter.
#[derive(Clone, Copy)]
pub enum Factors<'a> {
    /// `A` uniform as in PEFT (Kaiming, a = sqrt 5), `B` zero, so that training starts at the model itself.
    Fresh { seed: u64 },
    /// A copy of this adapter's factors.
    From(&'a Adapter),
}

/// Checks that every name in `target_modules` matches a linear layer of the model. A name without a match is a typing error or a layer
/// that cannot be trained, and is never ignored.
///
/// # Errors
/// If a name has no match; the message gives the first.
pub fn check_targets(spec: &DecoderSpec, config: &LoraConfig) -> Result<(), TrainError> {
    let layers = lora_layers(spec, config);
    let named = config.target_modules.iter();
    let unknown = named.filter(|_| !config.is_all_linear()).find(|name| {
        let alone = LoraConfig {
            target_modules: vec![(*name).clone()],
            ..LoraConfig::default()
        };
        !layers.iter().any(|(path, _)| alone.targets(path))
    });
    if let Some(name) = unknown {
        return Err(TrainError::Config(format!(
            "lora.target_modules contains `{name}`, which is not a linear layer of the decoder{}",
            match spec.experts.is_some() {
                true => " that can be adapted (experts and routers cannot)",
                false => "",
            }
        )));
    }
    if layers.is_empty() {
        return Err(TrainError::Config(
            "lora.target_modules contains no linear layer of the decoder".to_owned(),
        ));
    }
    Ok(())
}

impl Trainable {
    /// Creates variables for the whole model, in f32.
    pub fn full(spec: DecoderSpec, start: Start<'_>, device: &Device) -> Result<Self, TrainError> {
        let mut vars = Vec::new();
        for (name, tensor) in start_tensors(&spec, start, device)? {
            vars.push((name, Var::from_tensor(&tensor)?));
        }
        vars.sort_by(|a, b| a.0.cmp(&b.0));
        let tensors = vars
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        let mut source = Source {
            tensors: &tensors,
            packed: &BTreeMap::new(),
            adapters: BTreeMap::new(),
        };
        Ok(Self {
            decoder: Decoder::new(spec, &mut source)?,
            vars,
            lora: None,
        })
    }

    /// Creates an adapter on a frozen model.
    ///
    /// # Errors
    /// If the configuration names no layer, or the start has other layers, ranks or scales.
    pub fn adapter(
        base: &FrozenBase,
        config: LoraConfig,
        start: Factors<'_>,
    ) -> Result<Self, TrainError> {
        config
            .validate()
            .and_then(|()| config.check_trainable())
            .map_err(|e| TrainError::Config(e.to_string()))?;
        let layers = lora_layers(base.spec(), &config);
        check_targets(base.spec(), &config)?;
        let config = config.naming(layers.iter().map(|(path, _)| path.as_str()));
        let mut rng = match start {
            Factors::Fresh { seed } => ChaCha8Rng::seed_from_u64(seed),
            Factors::From(adapter) => {
                adapter.check_is_of(base.spec(), &config)?;
                ChaCha8Rng::seed_from_u64(0)
            }
        };
        let device = base.device();
        let (mut vars, mut adapters) = (Vec::new(), BTreeMap::new());
        for (layer, (path, [out, input])) in layers.into_iter().enumerate() {
            let pair = match start {
                Factors::From(adapter) => adapter.weights[&path].clone(),
                Factors::Fresh { .. } => {
                    let rank = config.rank(&path);
                    let bound = 1.0 / (input as f32).sqrt();
                    let values: Vec<f32> = (0..rank * input)
                        .map(|_| rng.random_range(-bound..bound))
                        .collect();
                    LoraPair {
                        a: Tensor::from_vec(values, (rank, input), &Device::Cpu)?,
                        b: Tensor::zeros((out, rank), DType::F32, &Device::Cpu)?,
                    }
                }
            };
            let a = Var::from_tensor(&pair.a.to_device(device)?)?;
            let b = Var::from_tensor(&pair.b.to_device(device)?)?;
            let lora = Lora {
                a: a.as_tensor().clone(),
                b: b.as_tensor().clone(),
                scale: config.scale(&path),
                dropout: Some(Dropout {
                    rate: config.lora_dropout,
                    layer: layer as u64,
                }),
            };
            vars.push((format!("{path}.lora_A.weight"), a));
            vars.push((format!("{path}.lora_B.weight"), b));
            adapters.insert(path, lora);
        }
        vars.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Self {
            decoder: base.decoder_with(adapters)?,
            vars,
            lora: Some(config),
        })
    }

    /// Returns the number of trained parameters.
    pub fn num_trainable(&self) -> usize {
        self.vars.iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// Returns a copy of the trained adapter, on the CPU; `None` if the whole model is trained.
    pub fn to_adapter(&self) -> Result<Option<Adapter>, TrainError> {
        let Some(config) = self.lora.clone() else {
            return Ok(None);
        };
        let vars: BTreeMap<&str, &Var> = self.vars.iter().map(|(n, v)| (n.as_str(), v)).collect();
        let copy = |var: &Var| var.as_detached_tensor().copy()?.to_device(&Device::Cpu);
        let mut weights = AdapterWeights::new();
        for (name, a) in &vars {
            let Some(path) = name.strip_suffix(".lora_A.weight") else {
                continue;
            };
            let b = vars[format!("{path}.lora_B.weight").as_str()];
            let pair = LoraPair {
                a: copy(a)?,
                b: copy(b)?,
            };
            weights.insert(path.to_owned(), pair);
        }
        Ok(Some(Adapter { config, weights }))
    }

    /// Writes the values of an adapter of the same layers and ranks ([`Adapter::check_is_of`]) into the variables, in place.
    pub fn set_adapter(&self, adapter: &Adapter) -> Result<(), TrainError> {
        for (name, var) in &self.vars {
            let tensor = match (
                name.strip_suffix(".lora_A.weight"),
                name.strip_suffix(".lora_B.weight"),
            ) {
                (Some(path), _) => adapter.weights.get(path).map(|pair| &pair.a),
                (_, Some(path)) => adapter.weights.get(path).map(|pair| &pair.b),
                _ => None,
            };
            let tensor = tensor.ok_or_else(|| {
                TrainError::Mismatch(format!("the adapter has no tensor for `{name}`"))
            })?;
            var.set(&tensor.to_device(var.device())?)?;
        }
        Ok(())
    }

    /// Writes the result: `model.safetensors`, or the two files of a PEFT adapter directory.
    pub fn save(&self, dir: &Path, dtype: DType) -> Result<(), TrainError> {
        if let Some(adapter) = self.to_adapter()? {
            return adapter.save(dir);
        }
        let tensors: BTreeMap<String, Tensor> = self
            .vars
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        Ok(weights::save(dir, &tensors, Some(dtype))?)
    }
}

//! What is trained: the whole model, or an adapter beside it, as variables that one decoder is built over.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainError;
use crate::model::adapter::{self, AdapterWeights, LoraConfig, LoraPair};
use crate::model::{
    Checkpoint, Decoder, DecoderSpec, ModelError, ParameterSource, random_parameters, weights,
};
use crate::nn::Lora;

/// The variables and the decoder that computes with them. The optimizer writes the variables in place, and the decoder
/// sees it; nothing that is served shares their storage.
pub struct Trainable {
    /// By checkpoint name, sorted; adapters as `<path>.lora_A.weight` and `<path>.lora_B.weight`.
    pub vars: Vec<(String, Var)>,
    pub decoder: Decoder,
    lora: Option<LoraConfig>,
}

/// Where the starting weights come from.
pub enum Start<'a> {
    Checkpoint(&'a Path),
    Random { seed: u64 },
}

/// Hands the decoder its tensors: variables where they are trained, plain tensors where they are frozen.
struct Source {
    tensors: BTreeMap<String, Tensor>,
    adapters: BTreeMap<String, Lora>,
}

impl ParameterSource for Source {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        match self.tensors.get(name) {
            Some(tensor) if tensor.dims() == shape => Ok(tensor.clone()),
            Some(tensor) => Err(ModelError::Input(format!(
                "tensor `{name}` has shape {:?}, expected {shape:?}",
                tensor.dims()
            ))),
            None => Err(ModelError::Input(format!("no tensor `{name}`"))),
        }
    }

    fn lora(&mut self, path: &str) -> Result<Option<Lora>, ModelError> {
        Ok(self.adapters.get(path).cloned())
    }
}

impl Trainable {
    /// The whole model, in f32.
    pub fn full(spec: DecoderSpec, start: Start<'_>, device: &Device) -> Result<Self, TrainError> {
        let mut vars = Vec::new();
        for (name, tensor) in start_tensors(&spec, start, device)? {
            vars.push((name, Var::from_tensor(&tensor)?));
        }
        vars.sort_by(|a, b| a.0.cmp(&b.0));
        let mut source = Source {
            tensors: vars
                .iter()
                .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
                .collect(),
            adapters: BTreeMap::new(),
        };
        Ok(Self {
            decoder: Decoder::new(spec, &mut source)?,
            vars,
            lora: None,
        })
    }

    /// A fresh adapter on a frozen model: `A` uniform as PEFT draws it (Kaiming, a = sqrt 5), `B` zero, so that training
    /// starts at the model itself.
    pub fn adapter(
        spec: DecoderSpec,
        start: Start<'_>,
        config: LoraConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self, TrainError> {
        config
            .validate()
            .map_err(|e| TrainError::Config(e.to_string()))?;
        if config.lora_dropout != 0.0 {
            return Err(TrainError::Config(
                "lora_dropout is not supported: set it to 0".into(),
            ));
        }
        let tensors: BTreeMap<String, Tensor> =
            start_tensors(&spec, start, device)?.into_iter().collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut vars, mut adapters) = (Vec::new(), BTreeMap::new());
        for layer in 0..spec.num_layers() {
            for (linear, [out, input]) in spec.block_linears() {
                let path = format!("model.layers.{layer}.{linear}");
                if !config.targets(&path) {
                    continue;
                }
                let rank = config.rank(&path);
                let bound = 1.0 / (input as f32).sqrt();
                let values: Vec<f32> = (0..rank * input)
                    .map(|_| rng.random_range(-bound..bound))
                    .collect();
                let a = Var::from_tensor(&Tensor::from_vec(values, (rank, input), device)?)?;
                let b = Var::from_tensor(&Tensor::zeros((out, rank), DType::F32, device)?)?;
                let lora = Lora {
                    a: a.as_tensor().clone(),
                    b: b.as_tensor().clone(),
                    scale: config.scale(&path),
                };
                vars.push((format!("{path}.lora_A.weight"), a));
                vars.push((format!("{path}.lora_B.weight"), b));
                adapters.insert(path, lora);
            }
        }
        if vars.is_empty() {
            return Err(TrainError::Config(format!(
                "lora.target_modules {:?} name no linear layer of the model",
                config.target_modules
            )));
        }
        vars.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Self {
            decoder: Decoder::new(spec, &mut Source { tensors, adapters })?,
            vars,
            lora: Some(config),
        })
    }

    /// Numbers that are trained.
    pub fn num_trainable(&self) -> usize {
        self.vars.iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// Writes the result: `model.safetensors`, or a PEFT adapter directory's two files.
    pub fn save(&self, dir: &Path, dtype: DType) -> Result<(), TrainError> {
        let tensors: BTreeMap<String, Tensor> = self
            .vars
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        let Some(config) = &self.lora else {
            return Ok(weights::save(dir, &tensors, Some(dtype))?);
        };
        let mut pairs = AdapterWeights::new();
        for (name, a) in &tensors {
            let Some(path) = name.strip_suffix(".lora_A.weight") else {
                continue;
            };
            let b = &tensors[&format!("{path}.lora_B.weight")];
            let pair = LoraPair {
                a: a.clone(),
                b: b.clone(),
            };
            pairs.insert(path.to_owned(), pair);
        }
        adapter::save(dir, config, &pairs).map_err(|e| TrainError::bad_file(dir, e))
    }
}

fn start_tensors(
    spec: &DecoderSpec,
    start: Start<'_>,
    device: &Device,
) -> Result<Vec<(String, Tensor)>, TrainError> {
    match start {
        Start::Random { seed } => random_parameters(spec, seed)?
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.to_device(device)?)))
            .collect(),
        Start::Checkpoint(dir) => {
            let checkpoint = Checkpoint::open(dir)?.check_finite(true);
            let tensors = spec
                .parameters()
                .into_iter()
                .map(|(name, shape)| {
                    let tensor = checkpoint.tensor(&name, shape, DType::F32, device)?;
                    Ok((name, tensor))
                })
                .collect::<Result<_, ModelError>>()?;
            checkpoint.refuse_unread(spec.tie_word_embeddings)?;
            Ok(tensors)
        }
    }
}

//! The frozen model below an adapter, and the adapter as a value.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::TrainError;
use crate::model::adapter::{self, AdapterError, AdapterWeights, LoraConfig, LoraPair};
use crate::model::{
    Checkpoint, Decoder, DecoderSpec, ModelConfig, ModelError, ParameterSource, random_parameters,
};
use crate::nn::Lora;

/// Where the starting weights come from.
pub enum Start<'a> {
    Checkpoint(&'a Path),
    Random { seed: u64 },
}

/// A model's tensors in f32, by checkpoint name. They are never variables and never written to: any number of adapters,
/// trained and fixed, may be computed over the same storage. Cheap to clone.
#[derive(Clone)]
pub struct FrozenBase {
    spec: DecoderSpec,
    tensors: Arc<BTreeMap<String, Tensor>>,
    /// The adapter that is laid over it before anything was learned.
    first: Option<Adapter>,
    device: Device,
}

impl FrozenBase {
    /// The model of a directory.
    ///
    /// # Errors
    /// Names the file or tensor that is missing, damaged or does not fit.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, TrainError> {
        let spec = ModelConfig::from_dir(dir)?.spec;
        Self::new(spec, Start::Checkpoint(dir), device)
    }

    /// # Errors
    /// As [`Self::load`].
    pub fn new(spec: DecoderSpec, start: Start<'_>, device: &Device) -> Result<Self, TrainError> {
        let tensors = start_tensors(&spec, start, device)?.into_iter().collect();
        Ok(Self {
            spec,
            tensors: Arc::new(tensors),
            first: None,
            device: device.clone(),
        })
    }

    /// With the adapter that generation 0 is: the base under it stays bare.
    pub fn with_first(self, first: Option<Adapter>) -> Self {
        Self { first, ..self }
    }

    /// The decoder as it was before anything was learned.
    ///
    /// # Errors
    /// As [`Self::decoder`].
    pub fn first_decoder(&self) -> Result<Decoder, TrainError> {
        self.decoder(self.first.as_ref())
    }

    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The Frobenius norm of a linear layer's weight, by the layer's path.
    ///
    /// # Errors
    /// A layer that the model does not have.
    pub fn norm(&self, path: &str) -> Result<f64, TrainError> {
        let name = format!("{path}.weight");
        let weight = self.tensors.get(&name);
        let weight = weight.ok_or_else(|| TrainError::Mismatch(format!("no tensor `{name}`")))?;
        Ok(f64::from(weight.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
    }

    /// The decoder over these tensors with an adapter, or bare. The adapter is copied.
    ///
    /// # Errors
    /// An adapter that does not fit the model.
    pub fn decoder(&self, adapter: Option<&Adapter>) -> Result<Decoder, TrainError> {
        let mut adapters = BTreeMap::new();
        if let Some(adapter) = adapter {
            adapter.check_fit(&self.spec)?;
            for (path, pair) in &adapter.weights {
                let place = |t: &Tensor| t.to_device(&self.device)?.copy();
                let lora = Lora {
                    a: place(&pair.a)?,
                    b: place(&pair.b)?,
                    scale: adapter.config.scale(path),
                    dropout: None,
                };
                adapters.insert(path.clone(), lora);
            }
        }
        self.decoder_with(adapters)
    }

    /// The decoder with these factors, by the path of their layer, as they are.
    pub(super) fn decoder_with(
        &self,
        adapters: BTreeMap<String, Lora>,
    ) -> Result<Decoder, TrainError> {
        let mut source = Source {
            tensors: &self.tensors,
            adapters,
        };
        Ok(Decoder::new(self.spec.clone(), &mut source)?)
    }
}

/// Hands the decoder its tensors: variables where they are trained, plain tensors where they are frozen.
pub(super) struct Source<'a> {
    pub tensors: &'a BTreeMap<String, Tensor>,
    pub adapters: BTreeMap<String, Lora>,
}

impl ParameterSource for Source<'_> {
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

pub(super) fn start_tensors(
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

/// A LoRA adapter in memory, in f32; it shares its storage with nobody that writes.
#[derive(Debug, Clone)]
pub struct Adapter {
    pub config: LoraConfig,
    pub weights: AdapterWeights,
}

impl Adapter {
    /// Reads a PEFT directory.
    ///
    /// # Errors
    /// See [`adapter::load`].
    pub fn load(dir: &Path) -> Result<Self, TrainError> {
        Self::load_weights(dir, adapter::WEIGHTS_FILE)
    }

    /// [`Self::load`] with factors from another file of the directory.
    ///
    /// # Errors
    /// As there.
    pub fn load_weights(dir: &Path, weights_file: &str) -> Result<Self, TrainError> {
        let read = adapter::load_weights(dir, weights_file);
        let (config, weights) = read.map_err(|error| match error {
            // These name the file themselves.
            AdapterError::Io { path, source } => TrainError::Io {
                what: "cannot read",
                path,
                source,
            },
            AdapterError::BadFile { path, detail } => TrainError::BadFile { path, detail },
            other => TrainError::bad_file(dir, other),
        })?;
        Ok(Self { config, weights })
    }

    /// Writes a PEFT directory. The same adapter always gives the same bytes.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, dir: &Path) -> Result<(), TrainError> {
        adapter::save(dir, &self.config, &self.weights).map_err(|e| TrainError::bad_file(dir, e))
    }

    /// Whether every factor has a layer of the model, of its shape.
    ///
    /// # Errors
    /// Names the first that has none.
    pub(super) fn check_fit(&self, spec: &DecoderSpec) -> Result<(), TrainError> {
        adapter::check_fit(&self.weights, |path| spec.linear_shape(path))
            .map_err(|e: AdapterError| TrainError::Mismatch(e.to_string()))
    }

    /// Whether it has the factors that `config` asks of a model of this shape: same layers, ranks and scales.
    ///
    /// # Errors
    /// Names the first layer that differs.
    pub fn check_is_of(&self, spec: &DecoderSpec, config: &LoraConfig) -> Result<(), TrainError> {
        self.check_fit(spec)?;
        let refuse = |path: &str, what: String| {
            Err(TrainError::Mismatch(format!(
                "the adapter does not match the configuration at `{path}`: {what}"
            )))
        };
        let wanted = lora_layers(spec, config);
        for (path, _) in &wanted {
            let Some(LoraPair { a, .. }) = self.weights.get(path) else {
                return refuse(path, "it has no factors there".to_owned());
            };
            let (rank, scale) = (a.dim(0)?, self.config.scale(path));
            if rank != config.rank(path) || scale != config.scale(path) {
                return refuse(
                    path,
                    format!(
                        "rank {rank} and scale {scale} against {} and {}",
                        config.rank(path),
                        config.scale(path)
                    ),
                );
            }
        }
        match self
            .weights
            .keys()
            .find(|path| !wanted.iter().any(|(w, _)| w == *path))
        {
            Some(path) => refuse(path, "it is not to be trained".to_owned()),
            None => Ok(()),
        }
    }
}

/// The linear layers an adapter of this configuration changes, with their shapes `[out, in]`, in the model's order.
pub(super) fn lora_layers(spec: &DecoderSpec, config: &LoraConfig) -> Vec<(String, [usize; 2])> {
    (0..spec.num_layers())
        .flat_map(|layer| {
            spec.block_linears()
                .map(|(linear, shape)| (format!("model.layers.{layer}.{linear}"), shape))
        })
        .filter(|(path, _)| config.targets(path))
        .collect()
}

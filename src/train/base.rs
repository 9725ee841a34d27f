//! The frozen base model under an adapter, and the adapter as a value.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{BaseWeights, TrainError};
use kernels::{
    linear::PackedLinear,
    nn::{Linear, Lora},
};
use model::{
    Checkpoint, Decoder, DecoderSpec, Kept, ModelConfig, ModelError, ParameterSource,
    adapter::{self, AdapterError, AdapterWeights, LoraConfig, LoraPair},
    random_parameters,
};

/// The source of the starting weights.
pub enum Start<'a> {
    Checkpoint(&'a Path),
    Random { seed: u64 },
}

/// A model's tensors in f32, by checkpoint name, and packed matrices in place of some. They are not variables and are never written to: any
/// number of adapters, trained or fixed, may be computed over the same storage. Cheap to clone.
#[derive(Clone)]
pub struct FrozenBase {
    spec: DecoderSpec,
    tensors: Arc<BTreeMap<String, Tensor>>,
    packed: Arc<Matrices>,
    /// The adapter of generation 0, if there is one.
    first: Option<Adapter>,
    device: Device,
}

/// Packed matrices by the name of their tensor.
type Matrices = BTreeMap<String, Arc<PackedLinear>>;

/// The rows of a packed matrix that are unpacked at a time.
const ROWS: usize = 1024;

/// Returns the bytes of the weights that [`FrozenBase::load_in`] keeps, if it packs some of them.
///
/// # Errors
/// If a file is missing or damaged, or the device does not have the type of weights.
pub(super) fn quantised_bytes(
    dir: &Path,
    weights: BaseWeights,
    device: &Device,
) -> Result<Option<u64>, TrainError> {
    let (format, packs) = weights.on(device)?;
    if !packs {
        return Ok(None);
    }
    let checkpoint = Checkpoint::open(dir)?;
    let (mut bytes, mut packed) = (0_u64, false);
    for (name, shape) in ModelConfig::from_dir(dir)?.spec.parameters() {
        let kept = Kept::of(&checkpoint, &name, format);
        let numbers: u64 = shape.iter().map(|&n| n as u64).product();
        packed |= shape.len() == 2 && kept.quantised();
        bytes = bytes.saturating_add(match shape[..] {
            [n, k] => kept.frozen_bytes(n as u64, k as u64),
            _ => numbers.saturating_mul(4),
        });
    }
    Ok(packed.then_some(bytes))
}

impl FrozenBase {
    /// Loads the model of a directory in f32.
    ///
    /// # Errors
    /// If a file or tensor is missing, damaged or does not fit; the message names it.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, TrainError> {
        Self::load_in(dir, BaseWeights::F32, device)
    }

    /// Loads the model of a directory. Quantised matrices are packed.
    ///
    /// # Errors
    /// As [`Self::load`]; also if the device does not have the type of weights.
    pub fn load_in(dir: &Path, weights: BaseWeights, device: &Device) -> Result<Self, TrainError> {
        let (format, packs) = weights.on(device)?;
        let spec = ModelConfig::from_dir(dir)?.spec;
        let checkpoint = Checkpoint::open(dir)?.check_finite(true);
        let (mut tensors, mut packed) = (BTreeMap::new(), Matrices::new());
        for (name, shape) in spec.parameters() {
            let kept = Kept::of(&checkpoint, &name, format);
            match shape[..] {
                [n, k] if packs && kept.quantised() => {
                    let matrix = kept.pack(&checkpoint, &name, [n, k], None)?;
                    packed.insert(name, Arc::new(matrix));
                }
                _ => {
                    let tensor = checkpoint.tensor(&name, shape, DType::F32, device)?;
                    tensors.insert(name, tensor);
                }
            }
        }
        checkpoint.refuse_unread(spec.tie_word_embeddings)?;
        Ok(Self {
            spec,
            tensors: Arc::new(tensors),
            packed: Arc::new(packed),
            first: None,
            device: device.clone(),
        })
    }

    /// Builds the base of `spec` from the given start.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn new(spec: DecoderSpec, start: Start<'_>, device: &Device) -> Result<Self, TrainError> {
        let tensors = start_tensors(&spec, start, device)?.into_iter().collect();
        Ok(Self {
            spec,
            tensors: Arc::new(tensors),
            packed: Arc::default(),
            first: None,
            device: device.clone(),
        })
    }

    /// Sets the adapter of generation 0; the base under it stays unadapted.
    pub fn with_first(self, first: Option<Adapter>) -> Self {
        Self { first, ..self }
    }

    /// Returns the decoder of generation 0, before any learning.
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

    /// Returns the type of the weights; see [`Decoder::weights`].
    ///
    /// # Errors
    /// As [`Self::decoder`].
    pub fn weights(&self) -> Result<String, TrainError> {
        Ok(self.decoder(None)?.weights())
    }

    /// Returns the Frobenius norm of a linear layer's weight, by the layer's path.
    ///
    /// # Errors
    /// If the model does not have the layer.
    pub fn norm(&self, path: &str) -> Result<f64, TrainError> {
        let name = format!("{path}.weight");
        if let Some(packed) = self.packed.get(&name) {
            let mut sum = 0.0;
            for first in (0..packed.out_features()).step_by(ROWS) {
                let end = packed.out_features().min(first + ROWS);
                let rows: Vec<u32> = (first as u32..end as u32).collect();
                let rows = packed.rows(&rows)?;
                sum += f64::from(rows.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
            return Ok(sum.sqrt());
        }
        let weight = self.tensors.get(&name);
        let weight = weight.ok_or_else(|| TrainError::Mismatch(format!("no tensor `{name}`")))?;
        Ok(f64::from(weight.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
    }

    /// Returns the decoder over these tensors with a copy of an adapter, or without one.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
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

    /// Returns the decoder with these LoRA factors, by the path of their layer; the factors are not copied.
    pub(super) fn decoder_with(
        &self,
        adapters: BTreeMap<String, Lora>,
    ) -> Result<Decoder, TrainError> {
        let mut source = Source {
            tensors: &self.tensors,
            packed: &self.packed,
            adapters,
        };
        Ok(Decoder::new(self.spec.clone(), &mut source)?)
    }
}

/// A source of the decoder's tensors: variables for trained ones, plain tensors for frozen ones.
pub(super) struct Source<'a> {
    pub tensors: &'a BTreeMap<String, Tensor>,
    pub packed: &'a Matrices,
    pub adapters: BTreeMap<String, Lora>,
}

impl Source<'_> {
    /// Returns the packed matrix of the layer at this path, if it is packed.
    fn packed(&self, path: &str) -> Option<Arc<PackedLinear>> {
        self.packed.get(&format!("{path}.weight")).cloned()
    }
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

    fn linear(&mut self, path: &str, shape: [usize; 2], bias: bool) -> Result<Linear, ModelError> {
        let packed = self.packed(path);
        let bias = match bias {
            true => Some(self.tensor(&format!("{path}.bias"), &shape[..1])?),
            false => None,
        };
        let lora = self.lora(path)?;
        Ok(match packed {
            Some(packed) => Linear::frozen(packed, bias, lora),
            None => Linear::plain(self.tensor(&format!("{path}.weight"), &shape)?, bias, lora),
        })
    }

    fn embedding(&mut self, shape: [usize; 2]) -> Result<Linear, ModelError> {
        self.linear("model.embed_tokens", shape, false)
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

/// A LoRA adapter in memory, in f32. No code writes to its storage.
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

    /// Reads a directory as [`Self::load`], with the factors from another of its files.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_weights(dir: &Path, weights_file: &str) -> Result<Self, TrainError> {
        let read = adapter::load_weights(dir, weights_file);
        let (config, weights) = read.map_err(|error| match error {
            // These errors name the file themselves.
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
    /// Those of the file system.
    pub fn save(&self, dir: &Path) -> Result<(), TrainError> {
        adapter::save(dir, &self.config, &self.weights).map_err(|e| TrainError::bad_file(dir, e))
    }

    /// Checks that every factor has a layer in the model, with the right shape.
    ///
    /// # Errors
    /// If one does not fit; the message names the first.
    pub(super) fn check_fit(&self, spec: &DecoderSpec) -> Result<(), TrainError> {
        adapter::check_fit(&self.weights, |path| spec.linear_shape(path))
            .map_err(|e: AdapterError| TrainError::Mismatch(e.to_string()))
    }

    /// Checks that the adapter has the factors that `config` requires for a model of this shape: the same layers, ranks and scales.
    ///
    /// # Errors
    /// If a layer differs; the message names the first.
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
                return refuse(path, "the adapter has no factors for this layer".to_owned());
            };
            let (rank, scale) = (a.dim(0)?, self.config.scale(path));
            if rank != config.rank(path) || scale != config.scale(path) {
                return refuse(
                    path,
                    format!(
                        "the adapter has rank {rank} and scale {scale}, the configuration {} and {}",
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
            Some(path) => refuse(
                path,
                "the configuration does not train this layer".to_owned(),
            ),
            None => Ok(()),
        }
    }
}

/// Returns the linear layers that an adapter of this configuration changes, with their shapes `[out, in]`, in the model's order.
pub(super) fn lora_layers(spec: &DecoderSpec, config: &LoraConfig) -> Vec<(String, [usize; 2])> {
    let linears = spec.linears();
    linears.filter(|(path, _)| config.targets(path)).collect()
}

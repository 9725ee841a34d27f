//! A model directory in memory: decoder, tokenizer and chat template.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::kept::{EMBEDDING, Kept};
use super::stop_ids::stop_ids;
use super::{Checkpoint, Decoder, ModelConfig, ModelError, ParameterSource, SamplingDefaults};
use kernels::{linear::WeightFormat, nn::Linear};
use text::{ChatSetup, ChatTemplate, Tokenizer};

/// Options for loading a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub device: Device,
    /// The type of weights in memory; `None` keeps the checkpoint's (see [`Kept::of`]; elsewhere than on the CPU f16 stays, and blocks are
    /// dequantised).
    pub format: Option<WeightFormat>,
    /// The chat template, if it is not the model's own, and its variables.
    pub chat: ChatSetup,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            format: None,
            chat: ChatSetup::default(),
        }
    }
}

/// A model directory loaded into memory.
pub struct LanguageModel {
    decoder: Decoder,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    stop_ids: Vec<u32>,
    sampling: SamplingDefaults,
}

/// Gives the decoder its tensors for serving: packed linear layers on the CPU, tensors in the checkpoint's dtype elsewhere.
struct Serving<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions,
}

impl Serving<'_> {
    fn stored(&self, name: &str) -> DType {
        self.checkpoint.dtype(name).unwrap_or(DType::F32)
    }

    /// Returns the type in which a matrix is read: the one that is asked for or, with fewer bytes, the stored one.
    fn read_as(&self, name: &str) -> DType {
        let stored = self.stored(name);
        match (self.options.format, self.options.device.is_cpu()) {
            (None, _) => stored,
            // Packing widens f16 and bf16 itself, and quantises any of them.
            (Some(format), true) if stored != DType::F32 || format.grid().is_some() => stored,
            (Some(format), _) => format.dtype(),
        }
    }
}

impl ParameterSource for Serving<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let device = &self.options.device;
        // On the CPU norms and biases take part in f32 arithmetic; the embedding table is only looked up. Elsewhere all tensors have the
        // table's type, which a GGUF file with f16 matrices does not use for its norms.
        let dtype = match (device.is_cpu(), shape.len() < 2) {
            (true, true) => DType::F32,
            (false, true) => self.read_as(EMBEDDING),
            (_, false) => self.read_as(name),
        };
        self.checkpoint.tensor(name, shape.to_vec(), dtype, device)
    }

    fn linear(&mut self, path: &str, shape: [usize; 2], bias: bool) -> Result<Linear, ModelError> {
        let name = format!("{path}.weight");
        let bias = match bias {
            true => Some(self.tensor(&format!("{path}.bias"), &shape[..1])?),
            false => None,
        };
        if !self.options.device.is_cpu() {
            return Ok(Linear::plain(self.tensor(&name, &shape)?, bias, None));
        }
        let kept = Kept::of(self.checkpoint, &name, self.options.format);
        let packed = kept.pack(self.checkpoint, &name, shape, bias.as_ref())?;
        Ok(Linear::packed(packed, None))
    }

    fn embedding(&mut self, shape: [usize; 2]) -> Result<Linear, ModelError> {
        let quantised = Kept::of(self.checkpoint, EMBEDDING, self.options.format).quantised();
        match quantised && self.options.device.is_cpu() {
            true => self.linear("model.embed_tokens", shape, false),
            false => Ok(Linear::plain(self.tensor(EMBEDDING, &shape)?, None, None)),
        }
    }
}

impl LanguageModel {
    /// Loads a directory in Hugging Face layout; see [`super::hub::resolve`] for GGUF files.
    ///
    /// # Errors
    /// Errors with the name of the file or tensor that is missing, damaged or does not fit, or of a type of weights that the device does not
    /// have.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self, ModelError> {
        if let Some(format) = options.format.filter(|format| format.grid().is_some())
            && !options.device.is_cpu()
        {
            return Err(ModelError::Input(format!(
                "weights in {format} are served on the CPU only"
            )));
        }
        let config = ModelConfig::from_dir(dir)?;
        let checkpoint = Checkpoint::open(dir)?.check_finite(true);
        let tied = config.spec.tie_word_embeddings;
        let mut source = Serving {
            checkpoint: &checkpoint,
            options,
        };
        let decoder = Decoder::new(config.spec.clone(), &mut source)?;
        checkpoint.refuse_unread(tied)?;
        let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json"))?;
        let chat_template = options.chat.build(dir)?;
        Ok(Self {
            stop_ids: stop_ids(&config, &tokenizer, dir, &chat_template)?,
            sampling: config.sampling,
            decoder,
            tokenizer,
            chat_template,
        })
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns the chat template. If the model has none, rendering errors with that reason.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.chat_template
    }

    /// Returns the sampling parameters that the checkpoint recommends.
    pub fn sampling_defaults(&self) -> SamplingDefaults {
        self.sampling
    }

    /// Returns the ids that end an answer: see [`stop_ids`].
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Returns the maximum length of a sequence, prompt and answer together.
    pub fn max_context(&self) -> usize {
        self.decoder.spec().max_context()
    }
}

//! A model directory in memory: decoder, tokenizer and chat template.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::stop_ids::stop_ids;
use super::{Checkpoint, Decoder, ModelConfig, ModelError, ParameterSource};
use kernels::{
    linear::{PackedLinear, WeightFormat, choose},
    nn::Linear,
};
use text::{ChatSetup, ChatTemplate, Tokenizer};

/// Options for loading a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub device: Device,
    /// The format of weights on the CPU; `None` keeps the checkpoint's (see [`choose`]).
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
}

impl ParameterSource for Serving<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let device = &self.options.device;
        // On the CPU norms and biases take part in f32 arithmetic; the embedding table is only looked up.
        let dtype = match device.is_cpu() && shape.len() < 2 {
            true => DType::F32,
            false => self.stored(name),
        };
        self.checkpoint.tensor(name, shape.to_vec(), dtype, device)
    }

    fn linear(&mut self, path: &str, shape: [usize; 2], bias: bool) -> Result<Linear, ModelError> {
        let weight = self.tensor(&format!("{path}.weight"), &shape)?;
        let bias = match bias {
            true => Some(self.tensor(&format!("{path}.bias"), &shape[..1])?),
            false => None,
        };
        if !self.options.device.is_cpu() {
            return Ok(Linear::plain(weight, bias, None));
        }
        let format = choose(weight.dtype(), self.options.format);
        let packed = PackedLinear::from_tensor(&weight, bias.as_ref(), format)?;
        Ok(Linear::packed(packed, None))
    }
}

impl LanguageModel {
    /// Loads a directory in Hugging Face layout.
    ///
    /// # Errors
    /// Errors with the name of the file or tensor that is missing, damaged or does not fit.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self, ModelError> {
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

    /// Returns the ids that end an answer: see [`stop_ids`].
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Returns the maximum length of a sequence, prompt and answer together.
    pub fn max_context(&self) -> usize {
        self.decoder.spec().max_context()
    }
}

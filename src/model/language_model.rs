//! A loaded model with its tokenizer and chat template, for sampling and for label log-probabilities as a judge.
//!
//! This is the model alone, one call at a time: for evaluation, training loops and tests. Many concurrent callers are
//! served by the engine instead.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::adapter::{self, AdapterWeights, LoraConfig};
use super::decoder::compute_dtype;
use super::sampling::{Draws, log_softmax_at};
use super::stop_ids::stop_ids;
use super::{Checkpoint, Decoder, ModelConfig, ModelError, PackedBatch, ParameterSource};
use kernels::attention::AttentionMetadata;
use kernels::kv_store::KvCache;
use kernels::linear::{PackedLinear, WeightFormat, choose};
use kernels::nn::{AttentionBackend, Linear, Lora};
use text::{ChatSetup, ChatTemplate, Tokenizer};

/// Tokens per KV block.
const BLOCK_SIZE: usize = 16;

/// The maximum number of tokens per forward pass when prompts are scored.
const READ_TOKENS: usize = 8192;

/// The maximum number of sequences that are sampled at once.
const SAMPLE_SEQUENCES: usize = 128;

/// Sampling parameters of [`LanguageModel::sample`].
#[derive(Debug, Clone)]
pub struct SampleParams {
    /// 0 is greedy.
    pub temperature: f32,
    pub max_new_tokens: usize,
    /// Sequence `i` of a call draws from stream `i` of this seed.
    pub seed: u64,
    /// Generation ends after any of these ids; the stop id is part of the completion.
    pub stop_ids: Vec<u32>,
}

/// The continuation of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    pub ids: Vec<u32>,
    /// Whether a stop id ended it, rather than the token limit.
    pub finished: bool,
}

/// Options for loading a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub device: Device,
    /// The format of weights on the CPU; `None` keeps the checkpoint's (see [`choose`]).
    pub format: Option<WeightFormat>,
    /// A PEFT adapter directory to apply to the model, unmerged.
    pub adapter: Option<PathBuf>,
    /// The chat template, if it is not the model's own, and its variables.
    pub chat: ChatSetup,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            format: None,
            adapter: None,
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
    device: Device,
}

/// Gives the decoder its tensors for serving: packed linear layers on the CPU, tensors in the checkpoint's dtype elsewhere.
struct Serving<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions,
    adapter: Option<(LoraConfig, AdapterWeights)>,
}

impl Serving<'_> {
    /// Returns the dtype in which the model will compute.
    fn dtype(&self) -> DType {
        compute_dtype(
            &self.options.device,
            self.stored("model.embed_tokens.weight"),
        )
    }

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
        let lora = self.lora(path)?;
        if !self.options.device.is_cpu() {
            return Ok(Linear::plain(weight, bias, lora));
        }
        let format = choose(weight.dtype(), self.options.format);
        let packed = PackedLinear::from_tensor(&weight, bias.as_ref(), format)?;
        Ok(Linear::packed(packed, lora))
    }

    fn lora(&mut self, path: &str) -> Result<Option<Lora>, ModelError> {
        let Some((config, weights)) = &self.adapter else {
            return Ok(None);
        };
        let Some(pair) = weights.get(path) else {
            return Ok(None);
        };
        let place = |t: &Tensor| t.to_device(&self.options.device)?.to_dtype(self.dtype());
        Ok(Some(Lora {
            a: place(&pair.a)?,
            b: place(&pair.b)?,
            scale: config.scale(path),
            dropout: None,
        }))
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
        let adapter = match &options.adapter {
            Some(dir) => {
                let (lora, weights) = adapter::load(dir)?;
                adapter::check_fit(&weights, |path| config.spec.linear_shape(path))?;
                Some((lora, weights))
            }
            None => None,
        };
        let mut source = Serving {
            checkpoint: &checkpoint,
            options,
            adapter,
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
            device: options.device.clone(),
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

    /// Continues every prompt once, in batches; a prompt's continuation does not depend on the other prompts.
    ///
    /// # Errors
    /// Errors if a prompt is empty, contains an unknown token, or leaves no room for one new token.
    pub fn sample(
        &self,
        prompts: &[Vec<u32>],
        params: &SampleParams,
    ) -> Result<Vec<Completion>, ModelError> {
        for prompt in prompts {
            if prompt.is_empty() || prompt.len() >= self.max_context() {
                return Err(ModelError::Input(format!(
                    "a prompt of {} tokens cannot be continued in a context of {}",
                    prompt.len(),
                    self.max_context()
                )));
            }
        }
        let mut completions = Vec::with_capacity(prompts.len());
        for (batch, prompts) in prompts.chunks(SAMPLE_SEQUENCES).enumerate() {
            let first = batch * SAMPLE_SEQUENCES;
            completions.extend(self.sample_batch(prompts, first, params)?);
        }
        Ok(completions)
    }

    /// Samples one batch; `first` is the index of its first prompt among all prompts of the call.
    fn sample_batch(
        &self,
        prompts: &[Vec<u32>],
        first: usize,
        params: &SampleParams,
    ) -> Result<Vec<Completion>, ModelError> {
        let mut blocks = 0u32;
        let mut sequences: Vec<Sequence> = prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| {
                let room = params.max_new_tokens.min(self.max_context() - prompt.len());
                let needed = (prompt.len() + room).div_ceil(BLOCK_SIZE) as u32;
                let block_table = (blocks..blocks + needed).collect();
                blocks += needed;
                Sequence {
                    ids: prompt.clone(),
                    prompt_len: prompt.len(),
                    computed: 0,
                    room,
                    block_table,
                    draws: Draws::new(params.seed, (first + i) as u64),
                    finished: false,
                }
            })
            .collect();
        let spec = self.decoder.spec();
        let dtype = self.decoder.dtype();
        let caches = (0..self.decoder.num_layers())
            .map(|_| {
                let (heads, dim) = (spec.num_kv_heads, spec.head_dim);
                KvCache::new(blocks as usize, BLOCK_SIZE, heads, dim, dtype, &self.device)
            })
            .collect::<Result<Vec<_>, _>>()?;

        loop {
            let mut running: Vec<&mut Sequence> =
                sequences.iter_mut().filter(|s| s.runs()).collect();
            if running.is_empty() {
                break;
            }
            let logits = self.step(&mut running, &caches)?;
            running.par_iter_mut().zip(logits).for_each(|(s, row)| {
                let id = s.draws.draw(&row, params.temperature);
                s.ids.push(id);
                s.finished = params.stop_ids.contains(&id);
            });
        }
        Ok(sequences
            .into_iter()
            .map(|s| Completion {
                ids: s.ids[s.prompt_len..].to_vec(),
                finished: s.finished,
            })
            .collect())
    }

    /// Computes the tokens of every running sequence that the caches do not hold yet. Returns the logits of each sequence's last token.
    fn step(
        &self,
        running: &mut [&mut Sequence],
        caches: &[KvCache],
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut batch = PackedBatch::default();
        let mut tables = Vec::with_capacity(running.len());
        for s in running {
            batch.push(&s.ids[s.computed..], s.ids.len(), s.prompt_len);
            tables.push(s.block_table.clone());
            s.computed = s.ids.len();
        }
        let metadata = AttentionMetadata::new(
            batch.cu_seqlens().to_vec(),
            batch.seq_lens().to_vec(),
            tables,
            BLOCK_SIZE,
            caches[0].num_blocks(),
        )
        .map_err(|e| ModelError::Input(e.to_string()))?;
        let backend = AttentionBackend::Paged {
            caches,
            metadata: &metadata,
        };
        self.last_logits(&batch, &backend)
    }

    /// Returns the logits after the last token of each sequence.
    fn last_logits(
        &self,
        batch: &PackedBatch,
        backend: &AttentionBackend<'_>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let packed = batch.as_packed();
        let hidden = self
            .decoder
            .forward_rows(packed, &batch.last_rows(), backend)?;
        Ok(self.decoder.logits(&hidden)?.to_vec2()?)
    }

    /// Returns the raw full-vocabulary log-probabilities (natural log) of two label tokens at the position after each prompt.
    ///
    /// # Errors
    /// Errors if a prompt is empty or too long, or contains an unknown token.
    pub fn label_logprobs(
        &self,
        prompts: &[Vec<u32>],
        labels: [u32; 2],
    ) -> Result<Vec<[f32; 2]>, ModelError> {
        let vocab = self.decoder.spec().vocab_size;
        if let Some(prompt) = prompts.iter().find(|p| p.is_empty()) {
            return Err(ModelError::Input(format!("{prompt:?} is an empty prompt")));
        }
        if labels.iter().any(|&id| id as usize >= vocab) {
            return Err(ModelError::Input(format!(
                "labels {labels:?} are outside the vocabulary of {vocab}"
            )));
        }
        // Prompts of similar length share a batch: no sequence waits for a far longer one.
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&i| prompts[i].len());
        let mut read = vec![[0f32; 2]; prompts.len()];
        let mut start = 0;
        while start < order.len() {
            let mut batch = PackedBatch::default();
            let mut end = start;
            while end < order.len()
                && (end == start || batch.ids().len() + prompts[order[end]].len() <= READ_TOKENS)
            {
                batch.push_whole(&prompts[order[end]]);
                end += 1;
            }
            let backend = AttentionBackend::Dense {
                cu_seqlens: batch.cu_seqlens(),
            };
            let logits = self.last_logits(&batch, &backend)?;
            for (&i, row) in order[start..end].iter().zip(&logits) {
                read[i] = labels.map(|id| log_softmax_at(row, id as usize));
            }
            start = end;
        }
        Ok(read)
    }
}

/// A sequence that is being continued.
struct Sequence {
    ids: Vec<u32>,
    prompt_len: usize,
    /// The number of tokens whose keys and values are in the caches.
    computed: usize,
    /// The maximum number of new tokens.
    room: usize,
    block_table: Vec<u32>,
    /// The sequence's own random stream.
    draws: Draws,
    finished: bool,
}

impl Sequence {
    fn runs(&self) -> bool {
        !self.finished && self.ids.len() - self.prompt_len < self.room
    }
}

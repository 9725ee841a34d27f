//! A loaded model with its tokenizer and chat template: what is sampled from and what is read as a judge.
//!
//! This is the model by itself, one call at a time: for evaluation, training loops and tests. Serving many callers at
//! once is another matter.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::adapter::{self, AdapterWeights, LoraConfig};
use super::decoder::compute_dtype;
use super::sampling::{Draws, log_softmax_at};
use super::stop_ids::stop_ids;
use super::{Checkpoint, Decoder, ModelConfig, ModelError, PackedBatch, ParameterSource};
use crate::kernels::attention::AttentionMetadata;
use crate::kernels::kv_store::KvCache;
use crate::kernels::linear::{PackedLinear, WeightFormat, choose};
use crate::nn::{AttentionBackend, Linear, Lora};
use crate::text::{ChatSetup, ChatTemplate, Tokenizer};

/// Tokens of a KV block.
const BLOCK_SIZE: usize = 16;

/// Tokens that go through the model at once when prompts are read.
const READ_TOKENS: usize = 8192;

/// Sequences that are continued at once.
const SAMPLE_SEQUENCES: usize = 128;

/// How [`LanguageModel::sample`] draws.
#[derive(Debug, Clone)]
pub struct SampleParams {
    /// 0 is greedy.
    pub temperature: f32,
    pub max_new_tokens: usize,
    /// Sequence `i` of a call draws from stream `i` of this seed.
    pub seed: u64,
    /// Generation ends after any of these; the stop id is part of the completion.
    pub stop_ids: Vec<u32>,
}

/// What one prompt was continued with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    pub ids: Vec<u32>,
    /// Whether a stop id ended it, rather than the token cap.
    pub finished: bool,
}

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub device: Device,
    /// How weights are kept on the CPU; `None` keeps what the checkpoint has (see [`choose`]).
    pub format: Option<WeightFormat>,
    /// A PEFT adapter directory laid over the model, unmerged.
    pub adapter: Option<PathBuf>,
    /// The chat template, where it is not the model's own, and its variables.
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

/// A model directory in memory.
pub struct LanguageModel {
    decoder: Decoder,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    stop_ids: Vec<u32>,
    device: Device,
}

/// Hands the decoder what serving keeps: packed linear layers on the CPU, tensors in the checkpoint's dtype elsewhere.
struct Serving<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions,
    adapter: Option<(LoraConfig, AdapterWeights)>,
}

impl Serving<'_> {
    /// What the model will be computed in.
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
        // On the CPU norms and biases are computed with, the embedding table is only looked up.
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
    /// Names the file or tensor that is missing, damaged or does not fit.
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

    /// The chat template; an empty one that says so when it renders, where the model has none.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.chat_template
    }

    /// Ids that end an answer: see [`stop_ids`].
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The longest sequence, prompt and answer together.
    pub fn max_context(&self) -> usize {
        self.decoder.spec().max_context()
    }

    /// Continues every prompt once, in batches; a prompt's continuation does not depend on its neighbours.
    ///
    /// # Errors
    /// An empty prompt, an unknown token, or a prompt that leaves no room for one new token.
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

    /// `first` is the place of the first prompt among all of the call's.
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

    /// Feeds every running sequence the tokens the caches do not hold yet; logits of the last of each.
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

    /// Logits after the last token of each sequence.
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

    /// Raw full-vocabulary log-probabilities (natural log) of two label tokens at the position after each prompt.
    ///
    /// # Errors
    /// An empty or over-long prompt; an unknown token.
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
        // Prompts of like length go together: no sequence waits for a far longer one.
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
    /// Tokens whose keys and values the caches hold.
    computed: usize,
    /// New tokens it may grow by.
    room: usize,
    block_table: Vec<u32>,
    /// The sequence's own stream of random numbers.
    draws: Draws,
    finished: bool,
}

impl Sequence {
    fn runs(&self) -> bool {
        !self.finished && self.ids.len() - self.prompt_len < self.room
    }
}

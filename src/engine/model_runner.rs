//! The forward pass of a step: token ids, block tables and descriptions of draws in, drawn tokens out. Logits stay here.

use std::ops::Range;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};

use super::sampler::{Draw, DrawError, DrawSpec, PromptLogprobs};
use super::scheduler::{Scheduler, SchedulerOutput};
use kernels::{
    attention::AttentionMetadata,
    device::team,
    kv_store::{KvCache, copy_blocks},
    nn::{AdaptedRows, AttentionBackend},
    with_f32,
};
use model::{Decoder, DecoderSpec, ModelError, Packed, WeightsLease};

/// The model with its KV cache.
pub struct ModelRunner {
    decoder: Decoder,
    /// One cache per layer.
    caches: Vec<KvCache>,
}

/// A number of consecutive requests of a step that are computed with the same weights.
pub struct WeightsRun {
    pub weights: WeightsLease,
    pub requests: usize,
}

/// A draw from one of a step's rows of logits.
pub struct RowDraw<'a> {
    /// The index of the row among those that are drawn from, in the output's order: one for each request that samples, and one for each of
    /// its drafts. Siblings draw from one row.
    pub row: usize,
    pub spec: DrawSpec<'a>,
}

/// The results of a step.
pub struct Computed {
    /// The drawn tokens, in the order of the descriptions.
    pub draws: Vec<Result<Draw, DrawError>>,
    /// The hidden states of the tokens of scored prompts, `[rows, hidden]`, in the order of the requests.
    scored: Option<Tensor>,
}

/// The maximum number of rows of prompt logits that exist at once.
const SCORED_AT_ONCE: usize = 64;

/// The minimum number of logits that one drawing thread works on: drawing from a few short rows takes less time than waking a thread.
const LOGITS_A_TASK: usize = 1 << 14;

/// The dtype of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvCacheDtype {
    /// The dtype that matches the weights: bf16 with weights in bf16, otherwise the dtype in which the model computes.
    #[default]
    Auto,
    /// Unrounded, where the model computes in f32: on the CPU.
    F32,
    /// Half the bytes of f32, rounded.
    Bf16,
}

impl KvCacheDtype {
    /// Returns the dtype for this model.
    pub fn of(self, decoder: &Decoder) -> DType {
        self.for_weights(decoder.weights_dtype(), decoder.dtype())
    }

    /// Returns the dtype for a model with weights of the dtype `weights` that computes in `hidden`.
    pub fn for_weights(self, weights: DType, hidden: DType) -> DType {
        match (self, weights) {
            (Self::Bf16, _) | (Self::Auto, DType::BF16) => DType::BF16,
            (Self::Auto, _) => hidden,
            (Self::F32, _) => DType::F32,
        }
    }
}

impl FromStr for KvCacheDtype {
    type Err = String;

    /// Parses `auto`, `f32` or `bf16`.
    fn from_str(value: &str) -> Result<Self, String> {
        match value {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("unknown dtype `{value}`; use auto, f32 or bf16")),
        }
    }
}

/// Returns the bytes of keys and values of one block, in all layers.
pub fn block_bytes(spec: &DecoderSpec, block_size: usize, dtype: DType) -> usize {
    2 * spec.num_layers() * spec.num_kv_heads * spec.head_dim * block_size * dtype.size_in_bytes()
}

impl ModelRunner {
    /// # Errors
    /// Errors if the memory for the cache cannot be had.
    pub fn new(
        decoder: Decoder,
        num_blocks: usize,
        block_size: usize,
        kv_dtype: DType,
    ) -> Result<Self, ModelError> {
        let spec = decoder.spec();
        let caches = (0..decoder.num_layers())
            .map(|_| {
                KvCache::new(
                    num_blocks,
                    block_size,
                    spec.num_kv_heads,
                    spec.head_dim,
                    kv_dtype,
                    decoder.device(),
                )
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { decoder, caches })
    }

    pub fn spec(&self) -> &DecoderSpec {
        self.decoder.spec()
    }

    /// Returns the caches, one per layer, all of one shape.
    pub fn caches(&self) -> &[KvCache] {
        &self.caches
    }

    /// Returns whether a step of this many tokens uses the whole device, rather than one thread of a CPU.
    pub fn spreads(&self, tokens: usize) -> bool {
        self.decoder.spreads(tokens)
    }

    /// Computes the scheduled tokens with the weights of `runs`, and draws from the rows of logits of the requests that sample. Keeps the
    /// hidden states that [`Self::prompt_logprobs`] reads.
    ///
    /// # Errors
    /// Errors if the model does. The cache then has no new block that can be found.
    pub fn execute(
        &self,
        scheduler: &Scheduler,
        output: &SchedulerOutput,
        runs: &[WeightsRun],
        draws: &[RowDraw<'_>],
    ) -> Result<Computed, ModelError> {
        let copies: Vec<(u32, u32)> = output
            .copies
            .iter()
            .map(|copy| (copy.from.0, copy.to.0))
            .collect();
        for cache in &self.caches {
            copy_blocks(cache, &copies)?;
        }
        let (mut ids, mut cu_seqlens, mut rows) = (Vec::new(), vec![0u32], Vec::new());
        // The indices into `rows` that are sampled from, and those that are scored.
        let (mut sampled, mut scored) = (Vec::new(), Vec::new());
        let (mut seq_lens, mut prompt_lens, mut most_lens) = (Vec::new(), Vec::new(), Vec::new());
        let mut block_tables = Vec::new();
        for scheduled in &output.scheduled {
            let request = scheduler
                .request(scheduled.id)
                .expect("a scheduled request is known; this is a bug");
            let from = request.num_computed_tokens;
            let to = from + scheduled.num_tokens;
            for place in request.scored(scheduled.num_tokens) {
                scored.push(rows.len() as u32);
                rows.push((ids.len() + place - from) as u32);
            }
            ids.extend_from_slice(&request.tokens.tokens()[from..to]);
            let last = ids.len() as u32 - 1;
            let drafts = &request.drafts.tokens[..scheduled.drafts];
            ids.extend_from_slice(drafts);
            cu_seqlens.push(ids.len() as u32);
            seq_lens.push((to + drafts.len()) as u32);
            prompt_lens.push(request.num_prompt_tokens as u32);
            let most = request.num_prompt_tokens + request.stop.max_tokens;
            most_lens.push(u32::try_from(most).unwrap_or(u32::MAX));
            let table = scheduler.kv().block_table(scheduled.id);
            block_tables.push(table.iter().map(|block| block.0).collect());
            if scheduled.samples {
                for row in last..ids.len() as u32 {
                    sampled.push(rows.len() as u32);
                    rows.push(row);
                }
            }
        }
        let cache = &self.caches[0];
        let metadata = AttentionMetadata::new(
            cu_seqlens.clone(),
            seq_lens.clone(),
            block_tables,
            cache.block_size(),
            cache.num_blocks(),
        )
        .map_err(|e| ModelError::Input(e.to_string()))?;
        let packed = Packed {
            ids: &ids,
            cu_seqlens: &cu_seqlens,
            seq_lens: &seq_lens,
            prompt_lens: &prompt_lens,
            most_lens: &most_lens,
        };
        let backend = AttentionBackend::Paged {
            caches: &self.caches,
            metadata: &metadata,
        };
        let adapted = adapted_rows(runs, &cu_seqlens);
        let hidden = self
            .decoder
            .forward_adapted(packed, &rows, &backend, &adapted)?;
        let chosen = |rows: Vec<u32>| hidden.index_select(&Tensor::new(rows, hidden.device())?, 0);
        let scored_hidden = match scored.is_empty() {
            true => None,
            false => Some(chosen(scored)?),
        };
        let draws = match sampled.is_empty() {
            // A chunk in the middle of a prompt: only its keys and values are needed.
            true => Vec::new(),
            false if sampled.len() == rows.len() => self.draw(&hidden, draws)?,
            false => self.draw(&chosen(sampled)?, draws)?,
        };
        Ok(Computed {
            draws,
            scored: scored_hidden,
        })
    }

    /// Draws from the logits of hidden states, `[rows, hidden]`.
    fn draw(
        &self,
        hidden: &Tensor,
        draws: &[RowDraw<'_>],
    ) -> Result<Vec<Result<Draw, DrawError>>, ModelError> {
        let vocab_size = self.decoder.spec().vocab_size;
        let values = self.host_logits(hidden)?;
        let mut drawn: Vec<Option<Result<Draw, DrawError>>> = draws.iter().map(|_| None).collect();
        with_f32(&values, |values| {
            let rows = LOGITS_A_TASK.div_ceil(vocab_size);
            let parts = draws.chunks(rows).zip(drawn.chunks_mut(rows));
            team::each(parts, |(draws, drawn)| {
                for (draw, drawn) in draws.iter().zip(drawn) {
                    let logits = &values[draw.row * vocab_size..][..vocab_size];
                    *drawn = Some(draw.spec.draw(logits));
                }
            });
        })?;
        Ok(drawn.into_iter().flatten().collect())
    }

    fn host_logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.decoder.logits(hidden)?.to_device(&Device::Cpu)?)
    }

    /// Returns the log-probabilities of the tokens `next` after the given rows of the scored prompts, and those of the `top` most probable
    /// tokens there.
    ///
    /// # Errors
    /// Errors if the model does.
    pub fn prompt_logprobs(
        &self,
        computed: &Computed,
        rows: Range<usize>,
        next: &[u32],
        top: usize,
    ) -> Result<Vec<PromptLogprobs>, ModelError> {
        let mut scores = Vec::with_capacity(rows.len());
        let Some(hidden) = &computed.scored else {
            return Ok(scores);
        };
        let vocab_size = self.decoder.spec().vocab_size;
        for start in rows.clone().step_by(SCORED_AT_ONCE) {
            let count = SCORED_AT_ONCE.min(rows.end - start);
            let values = self.host_logits(&hidden.narrow(0, start, count)?)?;
            let next = &next[start - rows.start..][..count];
            let mut found: Vec<Option<PromptLogprobs>> = vec![None; count];
            with_f32(&values, |values| {
                let parts = values.chunks_exact(vocab_size).zip(next).zip(&mut found);
                team::each(parts, |((logits, &next), found)| {
                    *found = Some(PromptLogprobs::new(logits, next, top));
                });
            })?;
            scores.extend(found.into_iter().flatten());
        }
        Ok(scores)
    }
}

/// Returns the row ranges of the runs that have an adapter.
fn adapted_rows<'a>(runs: &'a [WeightsRun], cu_seqlens: &[u32]) -> Vec<AdaptedRows<'a>> {
    let mut first = 0;
    let rows = runs.iter().filter_map(|run| {
        let requests = first..first + run.requests;
        first = requests.end;
        Some(AdaptedRows {
            rows: cu_seqlens[requests.start] as usize..cu_seqlens[requests.end] as usize,
            adapter: run.weights.adapter()?,
        })
    });
    rows.collect()
}

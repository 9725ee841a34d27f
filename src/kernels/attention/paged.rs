//! Attention of new tokens over a paged KV cache: the attention of serving, without a backward pass.
//!
//! # Shapes
//! `q` is `[tokens, heads, head_dim]`, the query tokens of all sequences end to end; the cache holds `kv_heads` heads,
//! a divisor of `heads`, and already contains the keys and values of the query tokens. The result has the shape of `q`.
//!
//! # Precision
//! All arithmetic is f32. A cache in bf16 is widened as it is read: the result has the same bits as with a cache in f32 that
//! holds the same (rounded) numbers.

use candle_core::{D, DType, Result, Tensor, WithDType};
use half::bf16;

use super::paged_cpu::Problem;
use super::{AttentionMetadata, AttentionParams};
use crate::isa::Isa;
use crate::kv_store::KvCache;
use crate::simd::Stored;
use crate::{Backward, fused, soft_cap, with_f32, with_slices};

/// Computes the causal attention of every query token to the context of its sequence, with the fused version where [`fused`] allows it.
///
/// # Errors
/// Errors if shapes do not match or `metadata` was made for another cache.
pub fn paged_attention(
    q: &Tensor,
    cache: &KvCache,
    metadata: &AttentionMetadata,
    params: AttentionParams,
) -> Result<Tensor> {
    if cache.fused() && fused(&[q], Backward::None) {
        fused_with(q, cache, metadata, params, Isa::detect())
    } else {
        plain(q, cache, metadata, params)
    }
}

fn fused_with(
    q: &Tensor,
    cache: &KvCache,
    metadata: &AttentionMetadata,
    params: AttentionParams,
    isa: Isa,
) -> Result<Tensor> {
    match cache.dtype() {
        DType::BF16 => fused_over::<bf16>(q, cache, metadata, params, isa),
        _ => fused_over::<f32>(q, cache, metadata, params, isa),
    }
}

/// Computes the fused version over a cache of `T`.
fn fused_over<T: WithDType + Stored>(
    q: &Tensor,
    cache: &KvCache,
    metadata: &AttentionMetadata,
    params: AttentionParams,
    isa: Isa,
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = check(q, cache, metadata)?;
    let mut out = vec![0f32; tokens * heads * head_dim];
    with_f32(&q.contiguous()?, |q| {
        with_slices::<T, 2, _>([cache.k(), cache.v()], |[k, v]| {
            Problem {
                q,
                k,
                v,
                heads,
                kv_heads: cache.kv_heads(),
                head_dim,
                metadata,
                params,
                isa,
            }
            .run(&mut out);
        })
    })??;
    Tensor::from_vec(out, (tokens, heads, head_dim), q.device())
}

/// Computes the attention from candle ops, in f32: gathers the blocks of a sequence and computes all its scores at
/// once. Runs on any device, over a cache of any float dtype.
///
/// # Errors
/// Same as [`paged_attention`].
pub fn plain(
    q: &Tensor,
    cache: &KvCache,
    metadata: &AttentionMetadata,
    params: AttentionParams,
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = check(q, cache, metadata)?;
    if tokens == 0 {
        return Ok(q.clone());
    }
    let (kv_heads, block_size) = (cache.kv_heads(), cache.block_size());
    let group = heads / kv_heads;
    let device = q.device();
    let mut outputs = Vec::with_capacity(metadata.sequences());
    for (s, w) in metadata.cu_seqlens_q().windows(2).enumerate() {
        let (start, q_len) = (w[0] as usize, (w[1] - w[0]) as usize);
        let seq_len = metadata.seq_lens()[s] as usize;
        let blocks = &metadata.block_tables()[s][..seq_len.div_ceil(block_size)];
        let ids = Tensor::new(blocks, device)?;
        // [blocks, kv_heads, block_size, d] -> [heads, seq_len, d]
        let gather = |cache: &Tensor| -> Result<Tensor> {
            cache
                .index_select(&ids, 0)?
                .to_dtype(DType::F32)?
                .transpose(0, 1)?
                .reshape((kv_heads, blocks.len() * block_size, head_dim))?
                .narrow(1, 0, seq_len)?
                .unsqueeze(1)?
                .broadcast_as((kv_heads, group, seq_len, head_dim))?
                .reshape((heads, seq_len, head_dim))
        };
        let q = q
            .narrow(0, start, q_len)?
            .to_dtype(DType::F32)?
            .transpose(0, 1)?
            .contiguous()?;
        let k = gather(cache.k())?.transpose(1, 2)?.contiguous()?;
        let scores = (q.matmul(&k)? * f64::from(params.scale))?;
        let scores = soft_cap::plain(&scores, params.soft_cap)?;
        let mask: Vec<f32> = (seq_len - q_len..seq_len)
            .flat_map(|i| {
                (0..seq_len).map(move |j| {
                    if j <= i && j >= params.first_visible(i) {
                        0.0
                    } else {
                        f32::NEG_INFINITY
                    }
                })
            })
            .collect();
        let mask = Tensor::from_vec(mask, (1, q_len, seq_len), device)?;
        let p = candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
        outputs.push(p.matmul(&gather(cache.v())?)?.transpose(0, 1)?);
    }
    Tensor::cat(&outputs, 0)?.contiguous()?.to_dtype(q.dtype())
}

/// Checks the shapes and returns (tokens, heads, head_dim).
fn check(
    q: &Tensor,
    cache: &KvCache,
    metadata: &AttentionMetadata,
) -> Result<(usize, usize, usize)> {
    let (tokens, heads, head_dim) = q.dims3()?;
    if head_dim != cache.head_dim() || heads == 0 || heads % cache.kv_heads() != 0 {
        candle_core::bail!(
            "paged attention: q {:?} over a cache {:?}",
            q.dims(),
            cache.k().dims()
        );
    }
    if tokens != metadata.tokens() {
        candle_core::bail!(
            "paged attention: q has {tokens} tokens, the batch {}",
            metadata.tokens()
        );
    }
    if (metadata.num_blocks(), metadata.block_size()) != (cache.num_blocks(), cache.block_size()) {
        candle_core::bail!(
            "paged attention: a batch for {} blocks of {} over a cache {:?}",
            metadata.num_blocks(),
            metadata.block_size(),
            cache.k().dims()
        );
    }
    Ok((tokens, heads, head_dim))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_store::kv_store;
    use crate::testing::{max_difference, random};
    use candle_core::Device;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// The cache dtypes that the fused version reads.
    const CACHES: [DType; 2] = [DType::F32, DType::BF16];

    #[derive(Clone, Copy, Debug)]
    struct Heads {
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
    }

    /// Creates sequences of given (context, query tokens), with K and V in randomly chosen blocks.
    fn batch(
        lens: &[(usize, usize)],
        heads: Heads,
        block_size: usize,
        dtype: DType,
        seed: u64,
    ) -> Result<(Tensor, KvCache, AttentionMetadata)> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let needed: usize = lens.iter().map(|l| l.0.div_ceil(block_size)).sum();
        let mut blocks: Vec<u32> = (0..needed as u32 + 3).collect();
        blocks.shuffle(&mut rng);
        let mut tables = Vec::new();
        let mut cu = vec![0u32];
        for (context, q_len) in lens {
            tables.push(blocks.split_off(blocks.len() - context.div_ceil(block_size)));
            cu.push(cu.last().expect("starts with 0") + *q_len as u32);
        }
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = heads;
        let cache = KvCache::new(
            needed + 3,
            block_size,
            kv_heads,
            head_dim,
            dtype,
            &Device::Cpu,
        )?;
        for (i, ((context, _), table)) in lens.iter().zip(&tables).enumerate() {
            // Values that depend on the sequence alone, not on the positions of its blocks.
            let k = random(&[*context, kv_heads, head_dim], 100 + i as u64);
            let v = random(&[*context, kv_heads, head_dim], 200 + i as u64);
            let slots: Vec<u32> = (0..*context)
                .map(|t| table[t / block_size] * block_size as u32 + (t % block_size) as u32)
                .collect();
            kv_store(&cache, &k, &v, &slots)?;
        }
        let rows: Vec<Tensor> = lens
            .iter()
            .enumerate()
            .map(|(i, (context, q_len))| {
                random(&[*context, heads, head_dim], 300 + i as u64).narrow(
                    0,
                    context - q_len,
                    *q_len,
                )
            })
            .collect::<Result<_>>()?;
        let lens = lens.iter().map(|l| l.0 as u32).collect();
        let metadata = AttentionMetadata::new(cu, lens, tables, block_size, needed + 3)
            .map_err(candle_core::Error::wrap)?;
        Ok((Tensor::cat(&rows, 0)?, cache, metadata))
    }

    fn params(head_dim: usize, window: Option<usize>) -> AttentionParams {
        AttentionParams {
            scale: 1.5 / (head_dim as f32).sqrt(),
            window,
            soft_cap: None,
        }
    }

    #[test]
    fn fused_equals_plain_on_odd_shapes() -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for head_dim in [1, 7, 8, 24, 32, 64, 80, 128] {
            for block_size in [1, 8, 16, 17] {
                let (heads, kv_heads) =
                    [(4, 4), (6, 2), (9, 3), (7, 1), (16, 1), (1, 1)][rng.random_range(0..6)];
                let heads = Heads {
                    heads,
                    kv_heads,
                    head_dim,
                };
                let lens: Vec<(usize, usize)> = (0..rng.random_range(1..4))
                    .map(|_| {
                        let q_len = [1, 1, 2, 5, 16, 17, 33, 70][rng.random_range(0..8)];
                        (
                            q_len + [0, 0, 1, 20, 63, 200][rng.random_range(0..6)],
                            q_len,
                        )
                    })
                    .collect();
                let window =
                    [None, None, Some(1), Some(9), Some(64), Some(100)][rng.random_range(0..6)];
                let soft_cap = [None, Some(0.5), Some(30.0)][rng.random_range(0..3)];
                let params = AttentionParams {
                    soft_cap,
                    ..params(head_dim, window)
                };
                let seed = rng.random();
                for dtype in CACHES {
                    let (q, cache, metadata) = batch(&lens, heads, block_size, dtype, seed)?;
                    let want = plain(&q, &cache, &metadata, params)?;
                    let wide = cache.to_dtype(DType::F32)?;
                    for isa in Isa::available() {
                        let got = fused_with(&q, &cache, &metadata, params, isa)?;
                        let difference = max_difference(&got, &want)?;
                        let what = format!(
                            "{isa} {dtype:?} {heads:?} blocks of {block_size} {lens:?} {window:?} {soft_cap:?}"
                        );
                        assert!(difference < 5e-6, "{difference} for {what}");
                        let widened = fused_with(&q, &wide, &metadata, params, isa)?;
                        let tokens = metadata.tokens();
                        assert_eq!(bits(&got, 0, tokens)?, bits(&widened, 0, tokens)?, "{what}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn long_contexts_are_split_and_folded() -> Result<()> {
        let heads = Heads {
            heads: 3,
            kv_heads: 1,
            head_dim: 32,
        };
        for (lens, window, soft_cap) in [
            (vec![(1700, 1)], None, None),
            (vec![(1700, 1)], Some(600), None),
            (vec![(1025, 40), (512, 1), (513, 2)], None, None),
            (vec![(1400, 700)], Some(130), None),
            (vec![(1025, 40), (512, 1), (513, 2)], None, Some(0.7)),
        ] {
            let params = AttentionParams {
                soft_cap,
                ..params(32, window)
            };
            for dtype in CACHES {
                let (q, cache, metadata) = batch(&lens, heads, 16, dtype, 3)?;
                let want = plain(&q, &cache, &metadata, params)?;
                for isa in Isa::available() {
                    let got = fused_with(&q, &cache, &metadata, params, isa)?;
                    let difference = max_difference(&got, &want)?;
                    assert!(
                        difference < 5e-6,
                        "{difference} {isa} {dtype:?} {lens:?} {window:?}"
                    );
                }
            }
        }
        Ok(())
    }

    /// Returns the bits of some rows.
    fn bits(t: &Tensor, from: usize, rows: usize) -> Result<Vec<u32>> {
        let values: Vec<f32> = t.narrow(0, from, rows)?.flatten_all()?.to_vec1()?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    }

    #[test]
    fn a_token_has_the_same_bits_in_any_batch_chunking_layout_and_thread_count() -> Result<()> {
        let heads = Heads {
            heads: 6,
            kv_heads: 2,
            head_dim: 40,
        };
        let cases = [
            (None, None, DType::F32),
            (Some(100), None, DType::F32),
            (None, None, DType::BF16),
            (Some(100), Some(0.5), DType::BF16),
        ];
        for (window, soft_cap, dtype) in cases {
            let params = AttentionParams {
                soft_cap,
                ..params(40, window)
            };
            for isa in Isa::available() {
                let run = |lens: &[(usize, usize)], block_size: usize, threads: usize| {
                    let seed = lens.len() as u64;
                    let (q, cache, metadata) = batch(lens, heads, block_size, dtype, seed)?;
                    let pool = rayon::ThreadPoolBuilder::new()
                        .num_threads(threads)
                        .build()
                        .map_err(candle_core::Error::wrap)?;
                    pool.install(|| fused_with(&q, &cache, &metadata, params, isa))
                };
                // All 1100 tokens at once, against the last of them alone and with other sequences.
                let all = run(&[(1100, 1100)], 16, 2)?;
                for (q_len, block_size, threads) in
                    [(1, 16, 1), (1, 7, 4), (5, 17, 2), (33, 1, 3), (590, 16, 1)]
                {
                    let want = bits(&all, 1100 - q_len, q_len)?;
                    let alone = run(&[(1100, q_len)], block_size, threads)?;
                    assert_eq!(bits(&alone, 0, q_len)?, want, "{isa} alone, {q_len}");
                    let lens = [(1100, q_len), (3, 3), (700, 1), (64, 60)];
                    let company = run(&lens, block_size, threads)?;
                    assert_eq!(bits(&company, 0, q_len)?, want, "{isa} in company, {q_len}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_gradient_is_not_cut_and_other_dtypes_take_the_plain_way() -> Result<()> {
        let heads = Heads {
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
        };
        let (q, cache, metadata) = batch(&[(5, 2)], heads, 4, DType::F32, 1)?;
        let var = candle_core::Var::from_tensor(&q)?;
        let y = paged_attention(var.as_tensor(), &cache, &metadata, params(8, None))?;
        let grads = y.sqr()?.sum_all()?.backward()?;
        let g = grads.get(&var).expect("q is tracked");
        let largest: f32 = g.abs()?.flatten_all()?.max(0)?.to_scalar()?;
        assert!(largest > 0.0);
        let y = paged_attention(
            &q.to_dtype(DType::BF16)?,
            &cache,
            &metadata,
            params(8, None),
        )?;
        assert_eq!(y.dtype(), DType::BF16);
        let halves = cache.to_dtype(DType::F16)?;
        let y = paged_attention(&q, &halves, &metadata, params(8, None))?;
        let want = paged_attention(&q, &cache, &metadata, params(8, None))?;
        assert!(max_difference(&y, &want)? < 1e-3);
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        let heads = Heads {
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
        };
        let (_, cache, metadata) = batch(&[(5, 2)], heads, 4, DType::F32, 1)?;
        let params = params(8, None);
        for shape in [[3, 4, 8], [2, 3, 8], [2, 4, 9], [2, 0, 8]] {
            let q = random(&shape, 1);
            assert!(paged_attention(&q, &cache, &metadata, params).is_err());
            assert!(plain(&q, &cache, &metadata, params).is_err());
        }
        let other = KvCache::new(50, 4, 2, 8, DType::F32, &Device::Cpu)?;
        assert!(paged_attention(&random(&[2, 4, 8], 1), &other, &metadata, params).is_err());
        Ok(())
    }
}

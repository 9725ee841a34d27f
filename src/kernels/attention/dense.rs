//! Causal self-attention over packed sequences, with a backward: what training runs on.
//!
//! Sequences lie end to end; a token attends within its own sequence only, so packing never contaminates. Scores live
//! for one query row at a time: memory is linear in the sequence length, forward and backward (the backward recomputes
//! the row from the saved log-sum-exp; Dao et al. 2022).
//!
//! # Shapes
//! `q` is `[tokens, heads, d]`, `k` and `v` are `[tokens, kv_heads, d]` with `kv_heads` dividing `heads`; sequence `s`
//! is rows `cu_seqlens[s]..cu_seqlens[s + 1]`. The result is `[tokens, heads, d]`.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::AttentionParams;
use super::dense_sequence::{SequenceGradient, Walk, backward_sequence, forward_sequence};
use crate::kernels::{Backward, fused, input, with_f32};

/// Attention of every sequence to itself, fused where it can be.
///
/// # Errors
/// When shapes do not fit one another or `cu_seqlens` does not partition the tokens.
pub fn dense_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    params: AttentionParams,
) -> Result<Tensor> {
    let shape = DenseShape::new(q, k, v, cu_seqlens)?;
    if fused(&[q, k, v], Backward::Own) {
        let op = DenseAttention {
            shape,
            cu_seqlens: cu_seqlens.into(),
            params,
            log_sum_exp: OnceLock::new(),
        };
        return q
            .contiguous()?
            .apply_op3(&k.contiguous()?, &v.contiguous()?, op);
    }
    plain(q, k, v, cu_seqlens, params)
}

/// Composed from differentiable candle ops, one sequence at a time, all scores at once.
pub fn plain(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    params: AttentionParams,
) -> Result<Tensor> {
    let shape = DenseShape::new(q, k, v, cu_seqlens)?;
    let group = shape.heads / shape.kv_heads;
    let outputs: Vec<Tensor> = cu_seqlens
        .windows(2)
        .map(|w| {
            let (start, len) = (w[0] as usize, (w[1] - w[0]) as usize);
            let rows = |t: &Tensor| t.narrow(0, start, len)?.transpose(0, 1)?.contiguous();
            let repeat = |t: &Tensor| -> Result<Tensor> {
                rows(t)?
                    .unsqueeze(1)?
                    .broadcast_as((shape.kv_heads, group, len, shape.d))?
                    .reshape((shape.heads, len, shape.d))
            };
            let scores = (rows(q)?.matmul(&repeat(k)?.transpose(1, 2)?.contiguous()?)?
                * params.scale as f64)?;
            let mask: Vec<f32> = (0..len)
                .flat_map(|i| {
                    (0..len).map(move |j| {
                        let visible = j <= i && j >= params.first_visible(i);
                        if visible { 0.0 } else { f32::NEG_INFINITY }
                    })
                })
                .collect();
            let mask = Tensor::from_vec(mask, (1, len, len), q.device())?.to_dtype(q.dtype())?;
            let p = candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
            p.matmul(&repeat(v)?)?.transpose(0, 1)
        })
        .collect::<Result<_>>()?;
    Tensor::cat(&outputs, 0)?.contiguous()
}

#[derive(Debug, Clone, Copy)]
struct DenseShape {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
}

impl DenseShape {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor, cu_seqlens: &[u32]) -> Result<Self> {
        let ((tokens, heads, d), (k_tokens, kv_heads, kd)) = (q.dims3()?, k.dims3()?);
        if k.dims() != v.dims()
            || k_tokens != tokens
            || kd != d
            || kv_heads == 0
            || heads % kv_heads != 0
        {
            candle_core::bail!(
                "attention: q {:?}, k {:?}, v {:?} do not fit",
                q.dims(),
                k.dims(),
                v.dims()
            );
        }
        if cu_seqlens.first() != Some(&0)
            || cu_seqlens.last().map(|&n| n as usize) != Some(tokens)
            || cu_seqlens.windows(2).any(|w| w[0] >= w[1])
        {
            candle_core::bail!(
                "attention: cu_seqlens {cu_seqlens:?} do not partition {tokens} tokens"
            );
        }
        Ok(Self {
            tokens,
            heads,
            kv_heads,
            d,
        })
    }
}

struct DenseAttention {
    shape: DenseShape,
    cu_seqlens: Arc<[u32]>,
    params: AttentionParams,
    /// `[tokens, heads]`, kept from the forward pass for the backward one.
    log_sum_exp: OnceLock<Vec<f32>>,
}

/// Cuts a `[tokens, width]` buffer into one slice a sequence.
fn split_mut<'a>(mut rows: &'a mut [f32], cu_seqlens: &[u32], width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(cu_seqlens.len());
    for w in cu_seqlens.windows(2) {
        let (part, rest) = rows.split_at_mut((w[1] - w[0]) as usize * width);
        parts.push(part);
        rows = rest;
    }
    parts
}

impl DenseAttention {
    fn walk(&self) -> Walk {
        Walk {
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            d: self.shape.d,
            params: self.params,
        }
    }

    /// The row ranges of the sequences.
    fn ranges(&self) -> impl IndexedParallelIterator<Item = std::ops::Range<usize>> {
        self.cu_seqlens
            .par_windows(2)
            .map(|w| w[0] as usize..w[1] as usize)
    }
}

fn rows(x: &[f32], range: &std::ops::Range<usize>, width: usize) -> std::ops::Range<usize> {
    debug_assert!(range.end * width <= x.len());
    range.start * width..range.end * width
}

impl CustomOp3 for DenseAttention {
    fn name(&self) -> &'static str {
        "dense-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (input(q, lq)?, input(k, lk)?, input(v, lv)?);
        let DenseShape {
            tokens,
            heads,
            kv_heads,
            d,
        } = self.shape;
        let (q_width, kv_width) = (heads * d, kv_heads * d);
        let (mut out, mut lse) = (vec![0f32; tokens * q_width], vec![0f32; tokens * heads]);
        self.ranges()
            .zip(split_mut(&mut out, &self.cu_seqlens, q_width))
            .zip(split_mut(&mut lse, &self.cu_seqlens, heads))
            .for_each(|((r, out), lse)| {
                let (q, kv) = (&q[rows(q, &r, q_width)], rows(k, &r, kv_width));
                forward_sequence(q, &k[kv.clone()], &v[kv], self.walk(), out, lse);
            });
        // Only one forward ever runs on an op: a second would carry the same values.
        let _ = self.log_sum_exp.set(lse);
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let DenseShape {
            tokens,
            heads,
            kv_heads,
            d,
        } = self.shape;
        let (q_width, kv_width) = (heads * d, kv_heads * d);
        let Some(lse) = self.log_sum_exp.get() else {
            candle_core::bail!("dense attention: backward without forward")
        };
        let grad = grad.contiguous()?;
        let mut dq = vec![0f32; tokens * q_width];
        let (mut dk, mut dv) = (vec![0f32; tokens * kv_width], vec![0f32; tokens * kv_width]);
        with_f32(q, |q| {
            with_f32(k, |k| {
                with_f32(v, |v| {
                    with_f32(&grad, |g| {
                        self.ranges()
                            .zip(split_mut(&mut dq, &self.cu_seqlens, q_width))
                            .zip(split_mut(&mut dk, &self.cu_seqlens, kv_width))
                            .zip(split_mut(&mut dv, &self.cu_seqlens, kv_width))
                            .for_each(|(((r, dq), dk), dv)| {
                                let (qr, kv) = (rows(q, &r, q_width), rows(k, &r, kv_width));
                                backward_sequence(
                                    &q[qr.clone()],
                                    &k[kv.clone()],
                                    &v[kv],
                                    &lse[rows(lse, &r, heads)],
                                    &g[qr],
                                    self.walk(),
                                    SequenceGradient { dq, dk, dv },
                                );
                            });
                    })
                })
            })
        })????;
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), q.device())?),
            Some(Tensor::from_vec(dk, k.shape(), k.device())?),
            Some(Tensor::from_vec(dv, v.shape(), v.device())?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_gradients, max_difference, random};

    #[test]
    fn fused_equals_plain_forward_and_backward() -> Result<()> {
        let cases = [
            (vec![0, 1], 1, 1, 2, None),
            (vec![0, 5, 6, 39], 4, 2, 24, None),
            (vec![0, 17, 50], 6, 1, 32, Some(7)),
            (vec![0, 33], 3, 3, 64, Some(1)),
        ];
        for (cu_seqlens, heads, kv_heads, d, window) in cases {
            let tokens = *cu_seqlens.last().unwrap() as usize;
            let q = random(&[tokens, heads, d], 11);
            let (k, v) = (
                random(&[tokens, kv_heads, d], 12),
                random(&[tokens, kv_heads, d], 13),
            );
            let params = AttentionParams {
                scale: 1.0 / (d as f32).sqrt(),
                window,
            };
            assert_same_gradients(
                &[&q, &k, &v],
                |t| dense_attention(&t[0], &t[1], &t[2], &cu_seqlens, params),
                |t| plain(&t[0], &t[1], &t[2], &cu_seqlens, params),
                2e-5,
            )?;
        }
        Ok(())
    }

    #[test]
    fn a_packed_sequence_never_sees_its_neighbours() -> Result<()> {
        let (q, k, v) = (
            random(&[9, 2, 8], 1),
            random(&[9, 2, 8], 2),
            random(&[9, 2, 8], 3),
        );
        let params = AttentionParams {
            scale: 0.3,
            window: None,
        };
        let packed = dense_attention(&q, &k, &v, &[0, 4, 9], params)?;
        let part = |t: &Tensor| t.narrow(0, 4, 5)?.contiguous();
        let alone = dense_attention(&part(&q)?, &part(&k)?, &part(&v)?, &[0, 5], params)?;
        assert_eq!(max_difference(&part(&packed)?, &alone)?, 0.0);
        Ok(())
    }

    #[test]
    fn cu_seqlens_that_do_not_partition_are_an_error() {
        let t = random(&[4, 1, 2], 1);
        let params = AttentionParams {
            scale: 1.0,
            window: None,
        };
        for cu_seqlens in [&[][..], &[0], &[0, 3], &[1, 4], &[0, 2, 2, 4]] {
            assert!(dense_attention(&t, &t, &t, cu_seqlens, params).is_err());
        }
    }
}

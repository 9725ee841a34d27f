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
use crate::kernels::cpu::{exp, multiversioned};
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

/// Columns of a transposed block are padded to this, so that score loops run in whole vectors.
const PAD: usize = 32;

/// One head of a sequence, transposed to `[d, padded]` so that the scores of a query are contiguous.
fn transpose_head(
    rows: &[f32],
    stride: usize,
    at: usize,
    d: usize,
    padded: usize,
    out: &mut Vec<f32>,
) {
    out.clear();
    out.resize(d * padded, 0.0);
    for (j, row) in rows.chunks_exact(stride).enumerate() {
        for (c, &value) in row[at..at + d].iter().enumerate() {
            out[c * padded + j] = value;
        }
    }
}

/// `out[j] = sum_c x[c] * t[c, j]` for `j` in `from..to`; both ends are multiples of [`PAD`].
#[inline(always)]
fn scores(x: &[f32], t: &[f32], padded: usize, from: usize, to: usize, out: &mut [f32]) {
    let mut j = from;
    while j < to {
        let mut acc = [0f32; PAD];
        for (c, &xc) in x.iter().enumerate() {
            let t = &t[c * padded + j..][..PAD];
            for lane in 0..PAD {
                acc[lane] = xc.mul_add(t[lane], acc[lane]);
            }
        }
        out[j..j + PAD].copy_from_slice(&acc);
        j += PAD;
    }
}

/// `out += sum_j w[j] * rows[j]`, four rows at a time to keep `out` in registers longer.
#[inline(always)]
fn weighted_rows(w: &[f32], rows: &[f32], stride: usize, d: usize, out: &mut [f32]) {
    let out = &mut out[..d];
    let mut j = 0;
    while j + 4 <= w.len() {
        let (r0, r1) = (&rows[j * stride..][..d], &rows[(j + 1) * stride..][..d]);
        let (r2, r3) = (
            &rows[(j + 2) * stride..][..d],
            &rows[(j + 3) * stride..][..d],
        );
        for c in 0..d {
            let sum = w[j].mul_add(r0[c], out[c]);
            let sum = w[j + 1].mul_add(r1[c], sum);
            let sum = w[j + 2].mul_add(r2[c], sum);
            out[c] = w[j + 3].mul_add(r3[c], sum);
        }
        j += 4;
    }
    while j < w.len() {
        let r = &rows[j * stride..][..d];
        for c in 0..d {
            out[c] = w[j].mul_add(r[c], out[c]);
        }
        j += 1;
    }
}

/// The strides and sizes one sequence is walked with.
#[derive(Clone, Copy)]
struct Walk {
    heads: usize,
    kv_heads: usize,
    d: usize,
    params: AttentionParams,
}

multiversioned! {
    fn forward_sequence(q: &[f32], k: &[f32], v: &[f32], walk: Walk, out: &mut [f32], lse: &mut [f32]) {
        let Walk { heads, kv_heads, d, params } = walk;
        let (q_stride, kv_stride, group) = (heads * d, kv_heads * d, heads / kv_heads);
        let len = q.len() / q_stride;
        let padded = len.next_multiple_of(PAD);
        let (mut kt, mut p, mut query) = (Vec::new(), vec![0f32; padded], vec![0f32; d]);
        for kv_head in 0..kv_heads {
            let kv_at = kv_head * d;
            transpose_head(k, kv_stride, kv_at, d, padded, &mut kt);
            for head in kv_head * group..(kv_head + 1) * group {
                for i in 0..len {
                    let at = i * q_stride + head * d;
                    for (scaled, &x) in query.iter_mut().zip(&q[at..at + d]) {
                        *scaled = x * params.scale;
                    }
                    let (from, to) = (params.first_visible(i), i + 1);
                    scores(&query, &kt, padded, from / PAD * PAD, to.next_multiple_of(PAD), &mut p);
                    let row = &mut p[from..to];
                    let mut max = f32::NEG_INFINITY;
                    for &s in row.iter() {
                        max = if s > max { s } else { max };
                    }
                    let mut sum = 0f32;
                    for s in row.iter_mut() {
                        *s = exp(*s - max);
                    }
                    for &s in row.iter() {
                        sum += s;
                    }
                    let o = &mut out[at..at + d];
                    o.fill(0.0);
                    weighted_rows(row, &v[from * kv_stride + kv_at..], kv_stride, d, o);
                    let scale = 1.0 / sum;
                    for x in o.iter_mut() {
                        *x *= scale;
                    }
                    lse[i * heads + head] = max + sum.ln();
                }
            }
        }
    }
}

/// The gradients of one sequence's rows.
struct SequenceGradient<'a> {
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

multiversioned! {
    /// `dv_j = sum_i p_ij do_i`; `ds_ij = p_ij (do_i . v_j - sum_j p_ij do_i . v_j)`; `dq_i = scale sum_j ds_ij k_j`;
    /// `dk_j = scale sum_i ds_ij q_i`.
    fn backward_sequence(q: &[f32], k: &[f32], v: &[f32], lse: &[f32], grad: &[f32], walk: Walk, out: SequenceGradient<'_>) {
        let Walk { heads, kv_heads, d, params } = walk;
        let (q_stride, kv_stride, group) = (heads * d, kv_heads * d, heads / kv_heads);
        let len = q.len() / q_stride;
        let padded = len.next_multiple_of(PAD);
        let (mut kt, mut vt) = (Vec::new(), Vec::new());
        let (mut p, mut ds, mut query) = (vec![0f32; padded], vec![0f32; padded], vec![0f32; d]);
        let (mut dk, mut dv) = (vec![0f32; len * d], vec![0f32; len * d]);
        for kv_head in 0..kv_heads {
            let kv_at = kv_head * d;
            transpose_head(k, kv_stride, kv_at, d, padded, &mut kt);
            transpose_head(v, kv_stride, kv_at, d, padded, &mut vt);
            dk.fill(0.0);
            dv.fill(0.0);
            for head in kv_head * group..(kv_head + 1) * group {
                for i in 0..len {
                    let at = i * q_stride + head * d;
                    for (scaled, &x) in query.iter_mut().zip(&q[at..at + d]) {
                        *scaled = x * params.scale;
                    }
                    let dout = &grad[at..at + d];
                    let (from, to) = (params.first_visible(i), i + 1);
                    let (block, block_end) = (from / PAD * PAD, to.next_multiple_of(PAD));
                    scores(&query, &kt, padded, block, block_end, &mut p);
                    scores(dout, &vt, padded, block, block_end, &mut ds);
                    let normaliser = lse[i * heads + head];
                    let (p, ds) = (&mut p[from..to], &mut ds[from..to]);
                    for s in p.iter_mut() {
                        *s = exp(*s - normaliser);
                    }
                    let mut delta = 0f32;
                    for (p, dp) in p.iter().zip(ds.iter()) {
                        delta += p * dp;
                    }
                    for (ds, p) in ds.iter_mut().zip(p.iter()) {
                        *ds = p * (*ds - delta);
                    }
                    let dq = &mut out.dq[at..at + d];
                    weighted_rows(ds, &k[from * kv_stride + kv_at..], kv_stride, d, dq);
                    for x in dq.iter_mut() {
                        *x *= params.scale;
                    }
                    let rows = dk[from * d..to * d].chunks_exact_mut(d).zip(dv[from * d..to * d].chunks_exact_mut(d));
                    for ((dk, dv), (&ds, &p)) in rows.zip(ds.iter().zip(p.iter())) {
                        for c in 0..d {
                            // `query` already carries the scale.
                            dk[c] = ds.mul_add(query[c], dk[c]);
                            dv[c] = p.mul_add(dout[c], dv[c]);
                        }
                    }
                }
            }
            for (j, (dk, dv)) in dk.chunks_exact(d).zip(dv.chunks_exact(d)).enumerate() {
                let at = j * kv_stride + kv_at;
                out.dk[at..at + d].copy_from_slice(dk);
                out.dv[at..at + d].copy_from_slice(dv);
            }
        }
    }
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

//! The attention of training as one op: forward and backward over all sequences, on several threads.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::AttentionParams;
use super::dense::{DenseShape, Sequence};
use super::dense_sequence::{SequenceGradient, Walk, backward_sequence, forward_sequence};
use crate::device::yield_to_serving;
use crate::{input, with_all_f32};

/// The op. It keeps what its backward pass needs of its only forward pass.
pub struct DenseAttention {
    shape: DenseShape,
    sequences: Vec<Sequence>,
    params: AttentionParams,
    /// The log-sum-exp of every query row, `[tokens, heads]`, kept from the forward pass for the backward pass.
    log_sum_exp: OnceLock<Vec<f32>>,
}

/// Cuts a `[tokens, width]` buffer into one slice per sequence.
fn split_mut<'a>(
    mut rows: &'a mut [f32],
    sequences: &[Sequence],
    width: usize,
) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let (part, rest) = rows.split_at_mut(sequence.own.len() * width);
        parts.push(part);
        rows = rest;
    }
    parts
}

impl DenseAttention {
    pub fn new(shape: DenseShape, sequences: Vec<Sequence>, params: AttentionParams) -> Self {
        Self {
            shape,
            sequences,
            params,
            log_sum_exp: OnceLock::new(),
        }
    }

    fn walk(&self) -> Walk {
        Walk {
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            d: self.shape.d,
            params: self.params,
        }
    }
}

fn rows<'a>(x: &'a [f32], range: &Range<usize>, width: usize) -> &'a [f32] {
    &x[range.start * width..range.end * width]
}

/// Returns all keys or values that a sequence attends to: its own rows, or a copy of the prefix's rows followed by its own.
fn seen<'a>(x: &'a [f32], sequence: &Sequence, width: usize) -> Cow<'a, [f32]> {
    let own = rows(x, &sequence.own, width);
    match sequence.prefix.is_empty() {
        true => Cow::Borrowed(own),
        false => Cow::Owned([rows(x, &sequence.prefix, width), own].concat()),
    }
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
        yield_to_serving();
        let (q, k, v) = (input(q, lq)?, input(k, lk)?, input(v, lv)?);
        let DenseShape {
            tokens,
            heads,
            kv_heads,
            d,
        } = self.shape;
        let (q_width, kv_width) = (heads * d, kv_heads * d);
        let (mut out, mut lse) = (vec![0f32; tokens * q_width], vec![0f32; tokens * heads]);
        self.sequences
            .par_iter()
            .zip(split_mut(&mut out, &self.sequences, q_width))
            .zip(split_mut(&mut lse, &self.sequences, heads))
            .for_each(|((s, out), lse)| {
                let (k, v) = (seen(k, s, kv_width), seen(v, s, kv_width));
                forward_sequence(rows(q, &s.own, q_width), &k, &v, self.walk(), out, lse);
            });
        // An op has only one forward pass: a second would store the same values.
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
        yield_to_serving();
        let grad = grad.contiguous()?;
        let mut dq = vec![0f32; tokens * q_width];
        let (mut dk, mut dv) = (vec![0f32; tokens * kv_width], vec![0f32; tokens * kv_width]);
        let shared: Vec<[Vec<f32>; 2]> = with_all_f32([q, k, v, &grad], |[q, k, v, g]| {
            self.sequences
                .par_iter()
                .zip(split_mut(&mut dq, &self.sequences, q_width))
                .zip(split_mut(&mut dk, &self.sequences, kv_width))
                .zip(split_mut(&mut dv, &self.sequences, kv_width))
                .map(|(((s, dq), own_dk), own_dv)| {
                    let mut backward = |dk: &mut [f32], dv: &mut [f32]| {
                        backward_sequence(
                            rows(q, &s.own, q_width),
                            &seen(k, s, kv_width),
                            &seen(v, s, kv_width),
                            rows(lse, &s.own, heads),
                            rows(g, &s.own, q_width),
                            self.walk(),
                            SequenceGradient { dq, dk, dv },
                        );
                    };
                    if s.prefix.is_empty() {
                        backward(own_dk, own_dv);
                        return Default::default();
                    }
                    let prefix = s.prefix.len() * kv_width;
                    let mut dk = vec![0f32; prefix + own_dk.len()];
                    let mut dv = dk.clone();
                    backward(&mut dk, &mut dv);
                    own_dk.copy_from_slice(&dk[prefix..]);
                    own_dv.copy_from_slice(&dv[prefix..]);
                    dk.truncate(prefix);
                    dv.truncate(prefix);
                    [dk, dv]
                })
                .collect()
        })?;
        // Several branches can continue the same rows: their gradients are added in the order of the branches.
        for (s, [dk_shared, dv_shared]) in self.sequences.iter().zip(&shared) {
            let range = s.prefix.start * kv_width..s.prefix.end * kv_width;
            for (sums, terms) in [(&mut dk, dk_shared), (&mut dv, dv_shared)] {
                for (sum, term) in sums[range.clone()].iter_mut().zip(terms) {
                    *sum += term;
                }
            }
        }
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), q.device())?),
            Some(Tensor::from_vec(dk, k.shape(), k.device())?),
            Some(Tensor::from_vec(dv, v.shape(), v.device())?),
        ))
    }
}

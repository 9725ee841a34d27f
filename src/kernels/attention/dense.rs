//! Causal self-attention over packed sequences, with a backward pass: the attention of training.
//!
//! Sequences lie end to end; a token attends within its own sequence only, so packed sequences do not affect each
//! other. Scores are computed for one query row at a time, so memory is linear in the sequence length, forward and
//! backward (the backward recomputes the row from the saved log-sum-exp; Dao et al. 2022).
//!
//! Sequences can share a prefix: [`branched_attention`] takes it once, and each branch attends to it and to itself.
//!
//! # Shapes
//! `q` is `[tokens, heads, d]`, `k` and `v` are `[tokens, kv_heads, d]` with `kv_heads` dividing `heads`; sequence `s`
//! is rows `cu_seqlens[s]..cu_seqlens[s + 1]`. The result is `[tokens, heads, d]`.

use std::ops::Range;

use candle_core::{D, Result, Tensor};

use super::AttentionParams;
use super::dense_op::DenseAttention;
use crate::{Backward, fused, soft_cap};

/// Computes the attention of every sequence to itself, with the fused version where [`fused`] allows it.
///
/// # Errors
/// Errors if shapes do not match or `cu_seqlens` does not partition the tokens.
pub fn dense_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    params: AttentionParams,
) -> Result<Tensor> {
    attend(q, k, v, cu_seqlens, &[], params)
}

/// Computes [`dense_attention`] where sequence `s` continues the rows `prefixes[s]` (an empty range for none): its tokens attend to those
/// rows first and then to their own, and to no rows in between.
///
/// # Errors
/// Errors as [`dense_attention`] does; also if there is not one prefix per sequence, or if a prefix is not within one earlier sequence.
pub fn branched_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    prefixes: &[Range<u32>],
    params: AttentionParams,
) -> Result<Tensor> {
    check_prefixes(cu_seqlens, prefixes)?;
    attend(q, k, v, cu_seqlens, prefixes, params)
}

fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    prefixes: &[Range<u32>],
    params: AttentionParams,
) -> Result<Tensor> {
    let shape = DenseShape::new(q, k, v, cu_seqlens)?;
    if fused(&[q, k, v], Backward::Own) {
        let sequences = sequences(cu_seqlens, prefixes).collect();
        let op = DenseAttention::new(shape, sequences, params);
        return q
            .contiguous()?
            .apply_op3(&k.contiguous()?, &v.contiguous()?, op);
    }
    plain(q, k, v, cu_seqlens, prefixes, params)
}

fn check_prefixes(cu_seqlens: &[u32], prefixes: &[Range<u32>]) -> Result<()> {
    let fits = |s: usize, prefix: &Range<u32>| {
        prefix.is_empty()
            || cu_seqlens[..=s]
                .windows(2)
                .any(|w| w[0] <= prefix.start && prefix.end <= w[1])
    };
    if prefixes.len() + 1 != cu_seqlens.len()
        || prefixes.iter().enumerate().any(|(s, p)| !fits(s, p))
    {
        candle_core::bail!("attention: prefixes {prefixes:?} do not fit sequences {cu_seqlens:?}");
    }
    Ok(())
}

/// The rows of one sequence: those that it continues, and its own.
#[derive(Debug, Clone)]
pub struct Sequence {
    pub prefix: Range<usize>,
    pub own: Range<usize>,
}

fn sequences<'a>(
    cu_seqlens: &'a [u32],
    prefixes: &'a [Range<u32>],
) -> impl Iterator<Item = Sequence> + 'a {
    cu_seqlens.windows(2).enumerate().map(|(s, w)| Sequence {
        prefix: prefixes
            .get(s)
            .map_or(0..0, |p| p.start as usize..p.end as usize),
        own: w[0] as usize..w[1] as usize,
    })
}

/// Computes the attention from differentiable candle ops, one sequence at a time, all scores at once. `prefixes` is
/// empty if no sequence continues another.
pub fn plain(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    prefixes: &[Range<u32>],
    params: AttentionParams,
) -> Result<Tensor> {
    let shape = DenseShape::new(q, k, v, cu_seqlens)?;
    let group = shape.heads / shape.kv_heads;
    let outputs: Vec<Tensor> = sequences(cu_seqlens, prefixes)
        .map(|Sequence { prefix, own }| {
            let (before, new) = (prefix.len(), own.len());
            let len = before + new;
            let rows = |t: &Tensor| t.transpose(0, 1)?.contiguous();
            let repeat = |t: &Tensor| -> Result<Tensor> {
                let own = t.narrow(0, own.start, new)?;
                let all = match before {
                    0 => own,
                    _ => Tensor::cat(&[&t.narrow(0, prefix.start, before)?, &own], 0)?,
                };
                rows(&all)?
                    .unsqueeze(1)?
                    .broadcast_as((shape.kv_heads, group, len, shape.d))?
                    .reshape((shape.heads, len, shape.d))
            };
            let q = rows(&q.narrow(0, own.start, new)?)?;
            let scores =
                (q.matmul(&repeat(k)?.transpose(1, 2)?.contiguous()?)? * params.scale as f64)?;
            let scores = soft_cap::plain(&scores, params.soft_cap)?;
            let mask: Vec<f32> = (before..len)
                .flat_map(|i| {
                    (0..len).map(move |j| {
                        let visible = j <= i && j >= params.first_visible(i);
                        if visible { 0.0 } else { f32::NEG_INFINITY }
                    })
                })
                .collect();
            let mask = Tensor::from_vec(mask, (1, new, len), q.device())?.to_dtype(q.dtype())?;
            let p = candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
            p.matmul(&repeat(v)?)?.transpose(0, 1)
        })
        .collect::<Result<_>>()?;
    Tensor::cat(&outputs, 0)?.contiguous()
}

/// The sizes of the operands; see the module's shapes.
#[derive(Debug, Clone, Copy)]
pub struct DenseShape {
    pub tokens: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub d: usize,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, max_difference, random};

    #[test]
    fn fused_equals_plain_forward_and_backward() -> Result<()> {
        let cases = [
            (vec![0, 1], 1, 1, 2, None, None),
            (vec![0, 5, 6, 39], 4, 2, 24, None, None),
            (vec![0, 17, 50], 6, 1, 32, Some(7), None),
            (vec![0, 33], 3, 3, 64, Some(1), None),
            (vec![0, 1, 4], 1, 1, 2, None, Some(0.5)),
            (vec![0, 5, 6, 39], 4, 2, 24, None, Some(1.0)),
            (vec![0, 17, 50], 6, 1, 33, Some(7), Some(0.25)),
            (vec![0, 70], 3, 3, 64, None, Some(30.0)),
        ];
        for (cu_seqlens, heads, kv_heads, d, window, soft_cap) in cases {
            let tokens = *cu_seqlens.last().unwrap() as usize;
            let q = random(&[tokens, heads, d], 11);
            let (k, v) = (
                random(&[tokens, kv_heads, d], 12),
                random(&[tokens, kv_heads, d], 13),
            );
            let params = AttentionParams {
                scale: 1.0 / (d as f32).sqrt(),
                window,
                soft_cap,
            };
            assert_same_gradients(
                &[&q, &k, &v],
                |t| dense_attention(&t[0], &t[1], &t[2], &cu_seqlens, params),
                |t| plain(&t[0], &t[1], &t[2], &cu_seqlens, &[], params),
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
            soft_cap: None,
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
            soft_cap: None,
        };
        for cu_seqlens in [&[][..], &[0], &[0, 3], &[1, 4], &[0, 2, 2, 4]] {
            assert!(dense_attention(&t, &t, &t, cu_seqlens, params).is_err());
        }
    }

    /// Branches of a shared prefix give the same results as sequences that each contain a copy of it.
    #[test]
    fn a_branch_sees_its_prefix_and_itself() -> Result<()> {
        // Two answers to rows 0..5, one to 15..17, a sequence without prefix, and a third answer to a part of the first prompt.
        let cu_seqlens = [0, 9, 15, 18, 21, 24, 65];
        let prefixes = [0..0, 0..5, 0..0, 15..17, 0..0, 0..3];
        for (heads, kv_heads, d, window, soft_cap) in [
            (4, 2, 24, None, None),
            (2, 1, 8, Some(6), None),
            (3, 3, 16, Some(1), None),
            (4, 2, 24, Some(9), Some(0.5)),
        ] {
            let tokens = *cu_seqlens.last().unwrap() as usize;
            let q = random(&[tokens, heads, d], 21);
            let (k, v) = (
                random(&[tokens, kv_heads, d], 22),
                random(&[tokens, kv_heads, d], 23),
            );
            let params = AttentionParams {
                scale: 0.4,
                window,
                soft_cap,
            };
            assert_same_gradients(
                &[&q, &k, &v],
                |t| branched_attention(&t[0], &t[1], &t[2], &cu_seqlens, &prefixes, params),
                |t| plain(&t[0], &t[1], &t[2], &cu_seqlens, &prefixes, params),
                2e-5,
            )?;
            let branched = branched_attention(&q, &k, &v, &cu_seqlens, &prefixes, params)?;
            for (s, prefix) in prefixes.iter().enumerate() {
                let (start, end) = (cu_seqlens[s], cu_seqlens[s + 1]);
                let rows: Vec<u32> = prefix.clone().chain(start..end).collect();
                let index = Tensor::new(rows.as_slice(), q.device())?;
                let copy = |t: &Tensor| t.index_select(&index, 0);
                let alone = dense_attention(
                    &copy(&q)?,
                    &copy(&k)?,
                    &copy(&v)?,
                    &[0, rows.len() as u32],
                    params,
                )?;
                let own = (end - start) as usize;
                let alone = alone.narrow(0, prefix.len(), own)?.contiguous()?;
                let got = branched.narrow(0, start as usize, own)?.contiguous()?;
                assert_eq!(max_difference(&got, &alone)?, 0.0);
            }
        }
        Ok(())
    }

    #[test]
    fn prefixes_that_are_not_of_one_earlier_sequence_are_an_error() {
        let t = random(&[6, 1, 2], 1);
        let params = AttentionParams {
            scale: 1.0,
            window: None,
            soft_cap: None,
        };
        let attend = |prefixes: &[Range<u32>]| {
            branched_attention(&t, &t, &t, &[0, 2, 4, 6], prefixes, params)
        };
        assert!(attend(&[0..0, 0..2, 2..3]).is_ok());
        for prefixes in [
            &[0..0, 0..2][..],
            &[0..0, 0..2, 1..3],
            &[0..0, 2..3, 0..0],
            &[0..1, 0..0, 0..0],
            &[0..0, 0..0, 4..9],
        ] {
            assert!(attend(prefixes).is_err(), "{prefixes:?}");
        }
    }
}

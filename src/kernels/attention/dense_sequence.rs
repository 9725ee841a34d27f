//! The loops of [`super::dense`]: the last rows of one sequence attend to all of it, forward and backward, one query row at
//! a time. (These are all its rows, except where a branch follows a prefix whose rows are computed elsewhere.)

use super::AttentionParams;
use crate::cpu::{exp, multiversioned};
use crate::soft_cap::{cap, slope};

/// The multiple to which columns of a transposed block are padded, so that score loops run in whole vectors.
const PAD: usize = 32;

/// Transposes one head of a sequence to `[d, padded]`, so that the scores of a query are contiguous.
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

/// Computes `out[j] = sum_c x[c] * t[c, j]` for `j` in `from..to`; both ends are multiples of [`PAD`].
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

/// Computes `out += sum_j w[j] * rows[j]`, four rows at a time to keep `out` in registers longer.
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

/// The sizes and parameters for the loops over one sequence.
#[derive(Clone, Copy)]
pub struct Walk {
    pub heads: usize,
    pub kv_heads: usize,
    pub d: usize,
    pub params: AttentionParams,
}

multiversioned! {
    /// Writes the attention output and the log-sum-exp of every query row. The queries are the sequence's last rows.
    pub fn forward_sequence(q: &[f32], k: &[f32], v: &[f32], walk: Walk, out: &mut [f32], lse: &mut [f32]) {
        let Walk { heads, kv_heads, d, params } = walk;
        let (q_stride, kv_stride, group) = (heads * d, kv_heads * d, heads / kv_heads);
        let len = k.len() / kv_stride;
        let first = len - q.len() / q_stride;
        let padded = len.next_multiple_of(PAD);
        let (mut kt, mut p, mut query) = (Vec::new(), vec![0f32; padded], vec![0f32; d]);
        for kv_head in 0..kv_heads {
            let kv_at = kv_head * d;
            transpose_head(k, kv_stride, kv_at, d, padded, &mut kt);
            for head in kv_head * group..(kv_head + 1) * group {
                for i in first..len {
                    let at = (i - first) * q_stride + head * d;
                    for (scaled, &x) in query.iter_mut().zip(&q[at..at + d]) {
                        *scaled = x * params.scale;
                    }
                    let (from, to) = (params.first_visible(i), i + 1);
                    scores(&query, &kt, padded, from / PAD * PAD, to.next_multiple_of(PAD), &mut p);
                    let row = &mut p[from..to];
                    if let Some(bound) = params.soft_cap {
                        cap(row, bound);
                    }
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
                    lse[(i - first) * heads + head] = max + sum.ln();
                }
            }
        }
    }
}

/// The gradients of one sequence: `dq` of its query rows, `dk` and `dv` of all its rows.
pub struct SequenceGradient<'a> {
    pub dq: &'a mut [f32],
    pub dk: &'a mut [f32],
    pub dv: &'a mut [f32],
}

multiversioned! {
    /// Computes `dv_j = sum_i p_ij do_i`; `ds_ij = p_ij (do_i . v_j - sum_j p_ij do_i . v_j)`, times the slope of the soft cap;
    /// `dq_i = scale sum_j ds_ij k_j`; `dk_j = scale sum_i ds_ij q_i`.
    pub fn backward_sequence(q: &[f32], k: &[f32], v: &[f32], lse: &[f32], grad: &[f32], walk: Walk, out: SequenceGradient<'_>) {
        let Walk { heads, kv_heads, d, params } = walk;
        let (q_stride, kv_stride, group) = (heads * d, kv_heads * d, heads / kv_heads);
        let len = k.len() / kv_stride;
        let first = len - q.len() / q_stride;
        let padded = len.next_multiple_of(PAD);
        let (mut kt, mut vt) = (Vec::new(), Vec::new());
        let (mut p, mut ds, mut query) = (vec![0f32; padded], vec![0f32; padded], vec![0f32; d]);
        let mut slopes = vec![0f32; if params.soft_cap.is_some() { padded } else { 0 }];
        let (mut dk, mut dv) = (vec![0f32; len * d], vec![0f32; len * d]);
        for kv_head in 0..kv_heads {
            let kv_at = kv_head * d;
            transpose_head(k, kv_stride, kv_at, d, padded, &mut kt);
            transpose_head(v, kv_stride, kv_at, d, padded, &mut vt);
            dk.fill(0.0);
            dv.fill(0.0);
            for head in kv_head * group..(kv_head + 1) * group {
                for i in first..len {
                    let at = (i - first) * q_stride + head * d;
                    for (scaled, &x) in query.iter_mut().zip(&q[at..at + d]) {
                        *scaled = x * params.scale;
                    }
                    let dout = &grad[at..at + d];
                    let (from, to) = (params.first_visible(i), i + 1);
                    let (block, block_end) = (from / PAD * PAD, to.next_multiple_of(PAD));
                    scores(&query, &kt, padded, block, block_end, &mut p);
                    scores(dout, &vt, padded, block, block_end, &mut ds);
                    let normaliser = lse[(i - first) * heads + head];
                    let (p, ds) = (&mut p[from..to], &mut ds[from..to]);
                    if let Some(bound) = params.soft_cap {
                        cap(p, bound);
                        for (slope_of, &s) in slopes[from..to].iter_mut().zip(p.iter()) {
                            *slope_of = slope(s, bound);
                        }
                    }
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
                    if params.soft_cap.is_some() {
                        for (ds, slope) in ds.iter_mut().zip(&slopes[from..to]) {
                            *ds *= slope;
                        }
                    }
                    let dq = &mut out.dq[at..at + d];
                    weighted_rows(ds, &k[from * kv_stride + kv_at..], kv_stride, d, dq);
                    for x in dq.iter_mut() {
                        *x *= params.scale;
                    }
                    let rows = dk[from * d..to * d].chunks_exact_mut(d).zip(dv[from * d..to * d].chunks_exact_mut(d));
                    for ((dk, dv), (&ds, &p)) in rows.zip(ds.iter().zip(p.iter())) {
                        for c in 0..d {
                            // `query` already includes the scale.
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

//! Rotary position embedding: the frequencies with which a checkpoint was trained, and their cos/sin tables.
//!
//! Frequencies follow `transformers`' `modeling_rope_utils` (checked against it in the tests): none, linear (position
//! interpolation), dynamic (NTK-aware), llama3, YaRN (arXiv 2309.00071) and LongRoPE (arXiv 2402.13753). As there, they and the angles are computed
//! in f32, because at long positions one rounding of a frequency changes the angle visibly: the model needs the angles
//! with which it was trained, not more exact ones.
//!
//! The convention is the half-split one ("rotate half"): components `i` and `i + dim/2` of a head are a pair.

use std::f64::consts::PI;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Tables start at this many positions and double from there.
const FIRST_POSITIONS: usize = 512;

/// The mapping from positions to angles. All values are checked where the configuration is read: `dim` is even and
/// positive (above 2 for [`RopeScaling::Dynamic`]), factors are finite and positive, `theta` is at least 1 (above 1 for
/// YaRN).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// The base of the geometric series of wavelengths.
    pub theta: f64,
    /// The number of rotated components of a head, at most the head's dimension.
    pub dim: usize,
    pub scaling: RopeScaling,
    /// The number of positions for which the model was trained; dynamic scaling starts beyond them.
    pub max_position_embeddings: usize,
}

/// The method that maps a context longer than the pretrained one into the trained range of angles.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Divides every frequency by `factor`.
    Linear {
        factor: f64,
    },
    /// NTK-aware scaling: `theta` grows with the length of the sequence once that exceeds `max_position_embeddings`;
    /// see [`RotaryEmbedding::extend`].
    Dynamic {
        factor: f64,
    },
    /// Llama 3.1: divides long wavelengths' frequencies by `factor`, keeps short wavelengths, and interpolates between them.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    Yarn(YarnScaling),
    LongRope(LongRope),
}

/// LongRoPE: every frequency is divided by a factor of its own, of one list for short sequences and of another for long ones.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// The divisors for sequences of at most the original length, `[dim / 2]`.
    pub short: Vec<f32>,
    /// The divisors for longer sequences, `[dim / 2]`.
    pub long: Vec<f32>,
    pub original_max_position_embeddings: usize,
    /// The factor by which cos and sin are multiplied, at any length.
    pub attention_factor: f64,
}

/// The parameters of YaRN; cos and sin are also multiplied by [`YarnScaling::attention_scaling`].
#[derive(Debug, Clone, PartialEq)]
pub struct YarnScaling {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    /// The attention factor; if `None`, it is derived from `factor`, `mscale` and `mscale_all_dim`.
    pub attention_factor: Option<f64>,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// Whether the ends of the interpolation range are rounded outwards to whole components.
    pub truncate: bool,
}

impl YarnScaling {
    /// Returns the factor by which cos and sin are multiplied.
    pub fn attention_scaling(&self) -> f64 {
        let of = |mscale: f64| {
            if self.factor <= 1.0 {
                1.0
            } else {
                0.1 * mscale * self.factor.ln() + 1.0
            }
        };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(factor), _, _) => factor,
            (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => of(m) / of(all),
            _ => of(1.0),
        }
    }

    /// Returns the frequencies of a head of `dim` components: interpolated for wavelengths longer than the trained
    /// context, kept for those that rotate often within it.
    fn inv_freq(&self, theta: f64, dim: usize) -> Vec<f32> {
        let context = self.original_max_position_embeddings as f64;
        let component_turning =
            |turns: f64| dim as f64 * (context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (
            component_turning(self.beta_fast),
            component_turning(self.beta_slow),
        );
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let low = low.max(0.0);
        let mut high = high.min(dim as f64 - 1.0);
        if low == high {
            high += 0.001;
        }
        (0..dim / 2)
            .map(|i| {
                let wavelength = power(theta, i, dim);
                let keep = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let interpolated = 1.0 / (self.factor as f32 * wavelength);
                interpolated * (1.0 - keep) + (1.0 / wavelength) * keep
            })
            .collect()
    }
}

/// Returns `theta^(2i/dim)`, the i-th wavelength over 2 pi, with the rounding of f32 arithmetic.
fn power(theta: f64, i: usize, dim: usize) -> f32 {
    let exponent = (2 * i) as f32 / dim as f32;
    theta.powf(f64::from(exponent)) as f32
}

fn plain_inv_freq(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| 1.0 / power(theta, i, dim)).collect()
}

impl RopeSpec {
    /// Returns the angle of each pair of components per position, `[dim / 2]`.
    ///
    /// Only dynamic scaling and LongRoPE depend on `sequence_len`: up to `max_position_embeddings` positions dynamic scaling has the
    /// unscaled frequencies, and up to its original length LongRoPE has those of short sequences.
    pub fn inv_freq(&self, sequence_len: usize) -> Vec<f32> {
        match &self.scaling {
            RopeScaling::None => plain_inv_freq(self.theta, self.dim),
            RopeScaling::Linear { factor } => plain_inv_freq(self.theta, self.dim)
                .into_iter()
                .map(|f| f / *factor as f32)
                .collect(),
            RopeScaling::Dynamic { factor } => {
                let trained = self.max_position_embeddings as f64;
                let len = (sequence_len as f64).max(trained);
                let stretch = factor * len / trained - (factor - 1.0);
                let dim = self.dim as f64;
                plain_inv_freq(self.theta * stretch.powf(dim / (dim - 2.0)), self.dim)
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let context = *original_max_position_embeddings as f32;
                let (factor, low, high) = (
                    *factor as f32,
                    *low_freq_factor as f32,
                    *high_freq_factor as f32,
                );
                plain_inv_freq(self.theta, self.dim)
                    .into_iter()
                    .map(|f| {
                        let wavelength = (2.0 * PI) as f32 / f;
                        if wavelength < context / high {
                            f
                        } else if wavelength > context / low {
                            f / factor
                        } else {
                            let smooth = (context / wavelength - low) / (high - low);
                            (1.0 - smooth) * f / factor + smooth * f
                        }
                    })
                    .collect()
            }
            RopeScaling::Yarn(yarn) => yarn.inv_freq(self.theta, self.dim),
            RopeScaling::LongRope(longrope) => {
                let divisors = match sequence_len > longrope.original_max_position_embeddings {
                    true => &longrope.long,
                    false => &longrope.short,
                };
                let divisors = divisors.iter().enumerate();
                divisors
                    .map(|(i, divisor)| 1.0 / (divisor * power(self.theta, i, self.dim)))
                    .collect()
            }
        }
    }

    /// Returns the factor by which cos and sin are multiplied: 1 except for YaRN and LongRoPE.
    pub fn attention_scaling(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_scaling() as f32,
            RopeScaling::LongRope(longrope) => longrope.attention_factor as f32,
            _ => 1.0,
        }
    }

    /// Returns the maximum sequence length in tokens, counted as in vLLM: linear and dynamic scaling reach `factor` times
    /// `max_position_embeddings`, YaRN reaches `factor` times the original length; for llama3 and LongRoPE `max_position_embeddings` is
    /// already the scaled length.
    pub fn max_context(&self) -> usize {
        let (original, factor) = match &self.scaling {
            RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::LongRope(_) => {
                (self.max_position_embeddings, 1.0)
            }
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => {
                (self.max_position_embeddings, *factor)
            }
            RopeScaling::Yarn(yarn) => (yarn.original_max_position_embeddings, yarn.factor),
        };
        (original as f64 * factor) as usize
    }

    /// Returns the length by which a call is rotated, of a prompt of `prompt` tokens that has at most `most` with its answer: that of the
    /// prompt; for LongRoPE one length for all calls that may become longer than the original one.
    pub fn call_len(&self, prompt: usize, most: usize) -> usize {
        match &self.scaling {
            RopeScaling::LongRope(longrope) => {
                most.min(longrope.original_max_position_embeddings + 1)
            }
            _ => prompt,
        }
    }

    /// Returns whether a call of this [length](Self::call_len) has frequencies of its own (dynamic scaling beyond the trained length,
    /// LongRoPE beyond the original one). Its keys and values are not valid for a call of another length.
    pub fn depends_on_length(&self, len: usize) -> bool {
        match &self.scaling {
            RopeScaling::Dynamic { .. } => len > self.max_position_embeddings,
            RopeScaling::LongRope(longrope) => len > longrope.original_max_position_embeddings,
            _ => false,
        }
    }

    /// Returns the table of `positions` positions from 0, with the frequencies of a sequence within the trained length.
    fn table(&self, positions: usize) -> RopeTable {
        let inv_freq = self.inv_freq(0);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        self.turn(0..positions, &inv_freq, &mut cos, &mut sin);
        RopeTable {
            half_dim: inv_freq.len(),
            cos,
            sin,
        }
    }

    /// Appends cos and sin of these positions with these frequencies.
    fn turn(
        &self,
        positions: Range<usize>,
        inv_freq: &[f32],
        cos: &mut Vec<f32>,
        sin: &mut Vec<f32>,
    ) {
        let scale = f64::from(self.attention_scaling());
        for position in positions {
            for frequency in inv_freq {
                // The angle is rounded to f32 as in training; its cos and sin are then exact.
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push((c * scale) as f32);
                sin.push((s * scale) as f32);
            }
        }
    }
}

/// The cos and sin tables of every position from 0.
///
/// # Shapes
/// `cos`, `sin`: `[positions, half_dim]`, row-major; attention scaling is multiplied in.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    half_dim: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    pub fn half_dim(&self) -> usize {
        self.half_dim
    }

    pub fn positions(&self) -> usize {
        self.cos.len() / self.half_dim
    }

    /// Returns the cos table, `[positions, half_dim]`.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Returns the sin table, `[positions, half_dim]`.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }
}

/// The cos/sin tables of one model, computed up to the longest sequence so far and kept.
#[derive(Debug)]
pub struct RotaryEmbedding {
    spec: RopeSpec,
    /// The table grows by doubling; it holds the positions whose frequencies do not depend on a length.
    table: Mutex<Arc<RopeTable>>,
}

impl RotaryEmbedding {
    pub fn new(spec: &RopeSpec) -> Self {
        let first = FIRST_POSITIONS.min(spec.max_position_embeddings);
        Self {
            table: Mutex::new(Arc::new(spec.table(first))),
            spec: spec.clone(),
        }
    }

    pub fn spec(&self) -> &RopeSpec {
        &self.spec
    }

    /// Appends cos and sin of `positions` of a call of the [length](RopeSpec::call_len) `prompt_len`, `[positions, half_dim]` each.
    ///
    /// Only dynamic scaling and LongRoPE read `prompt_len`. LongRoPE rotates all positions of a call by the same list. With dynamic
    /// scaling the token at position `p` has the frequencies of `max(prompt_len, p + 1,
    /// max_position_embeddings)` tokens: the prompt has those of its own length, and each token after it has those of the sequence length
    /// including it. `generate` of `transformers` gives the same, for one sequence with its cache. The angles are a function of the call
    /// alone: they depend neither on other calls, nor on the contents of a cache, nor on the chunks in which a prompt is computed. Cached
    /// keys keep the rotation with which they were stored.
    pub fn extend(
        &self,
        positions: Range<usize>,
        prompt_len: usize,
        cos: &mut Vec<f32>,
        sin: &mut Vec<f32>,
    ) {
        let Range { start, end } = positions;
        let spec = &self.spec;
        // Positions before `own` have the frequencies of the whole prompt, each later position those of its own length.
        let own = match spec.scaling {
            RopeScaling::Dynamic { .. } => prompt_len.max(spec.max_position_embeddings),
            _ => usize::MAX,
        };
        let common = start..end.min(own).max(start);
        if spec.depends_on_length(prompt_len) {
            spec.turn(common.clone(), &spec.inv_freq(prompt_len), cos, sin);
        } else if !common.is_empty() {
            let table = self.table(common.end);
            let range = common.start * table.half_dim..common.end * table.half_dim;
            cos.extend_from_slice(&table.cos[range.clone()]);
            sin.extend_from_slice(&table.sin[range]);
        }
        for position in common.end..end {
            let inv_freq = spec.inv_freq(position + 1);
            spec.turn(position..position + 1, &inv_freq, cos, sin);
        }
    }

    /// Returns a table of at least `positions` positions, whose frequencies depend on no length.
    fn table(&self, positions: usize) -> Arc<RopeTable> {
        // A poisoned lock is safe to use: the table is only ever replaced by a finished one.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let held = table.positions();
        if held < positions {
            *table = Arc::new(self.spec.table(positions.max(held.saturating_mul(2))));
        }
        table.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(scaling: RopeScaling) -> RopeSpec {
        RopeSpec {
            theta: 10_000.0,
            dim: 8,
            scaling,
            max_position_embeddings: 64,
        }
    }

    fn turned(rotary: &RotaryEmbedding, positions: Range<usize>, prompt: usize) -> Vec<Vec<f32>> {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        rotary.extend(positions, prompt, &mut cos, &mut sin);
        assert_eq!(cos.len(), sin.len());
        let rows = cos.chunks(4).zip(sin.chunks(4));
        rows.map(|(cos, sin)| [cos, sin].concat()).collect()
    }

    #[test]
    fn tables_grow_and_keep_their_beginning() {
        let rotary = RotaryEmbedding::new(&spec(RopeScaling::None));
        let short = rotary.table(3);
        assert_eq!((short.positions(), short.half_dim()), (64, 4));
        let long = rotary.table(65);
        assert_eq!(long.positions(), 128);
        assert_eq!(short.cos(), &long.cos()[..short.cos().len()]);
        assert_eq!(short.sin(), &long.sin()[..short.sin().len()]);
        assert!(Arc::ptr_eq(&long, &rotary.table(128)));
        assert_eq!(rotary.table(1000).positions(), 1000);
        // Position 0 has no rotation; the first pair rotates by one radian per position.
        assert_eq!((long.cos()[0], long.sin()[0]), (1.0, 0.0));
        assert!((long.cos()[100 * 4] - 100f32.cos()).abs() < 1e-6);
        assert!((long.sin()[100 * 4] - 100f32.sin()).abs() < 1e-6);
    }

    #[test]
    fn dynamic_scaling_turns_by_the_prompts_length_and_then_by_each_tokens_own() {
        let dynamic = spec(RopeScaling::Dynamic { factor: 2.0 });
        let rotary = RotaryEmbedding::new(&dynamic);
        let plain = RotaryEmbedding::new(&spec(RopeScaling::None));
        // Within the trained length there is no scaling, whatever follows.
        for prompt in [1, 30, 64] {
            assert_eq!(turned(&rotary, 0..64, prompt), turned(&plain, 0..64, 64));
        }
        let alone = turned(&rotary, 0..100, 80);
        assert_ne!(alone[70], turned(&plain, 70..71, 71)[0]);
        assert_eq!(alone[..80], turned(&rotary, 0..80, 80));
        for (position, row) in alone.iter().enumerate().skip(80) {
            // A token after the prompt has the rotation of the last token of a prompt that ends with it.
            assert_eq!(
                row,
                &turned(&rotary, position..position + 1, position + 1)[0]
            );
        }
        // Neither chunks nor other lengths between them change an angle.
        for chunk in [1, 7, 64, 99] {
            let mut pieces = Vec::new();
            for start in (0..100).step_by(chunk) {
                turned(&rotary, 0..97, 97);
                pieces.extend(turned(&rotary, start..(start + chunk).min(100), 80));
            }
            assert_eq!(pieces, alone, "{chunk}");
        }
        assert!(dynamic.depends_on_length(65) && !dynamic.depends_on_length(64));
        assert!(!spec(RopeScaling::Linear { factor: 2.0 }).depends_on_length(1000));
    }

    #[test]
    fn linear_scaling_is_position_interpolation() {
        let interpolated = spec(RopeScaling::Linear { factor: 4.0 });
        let (plain, interpolated) = (
            RotaryEmbedding::new(&spec(RopeScaling::None)),
            RotaryEmbedding::new(&interpolated),
        );
        let every_fourth = turned(&interpolated, 0..64, 64);
        let every_fourth: Vec<_> = every_fourth.into_iter().step_by(4).collect();
        assert_eq!(turned(&plain, 0..16, 16), every_fourth);
    }
}

//! Rotary position embedding: which frequencies a checkpoint was trained with, and their cos/sin tables.
//!
//! Frequencies follow `transformers`' `modeling_rope_utils` (checked against it in the tests): none, linear (position
//! interpolation), dynamic (NTK-aware), llama3 and YaRN (arXiv 2309.00071). They are computed as there in f32, angle
//! included, because at long positions one rounding of a frequency is a visible angle: a model sees the angles it was
//! trained with, not better ones.
//!
//! The convention is the half-split one ("rotate half"): component `i` of a head turns with component `i + dim/2`.

use std::f64::consts::PI;
use std::sync::{Arc, Mutex, PoisonError};

/// Tables start at this many positions and double from there.
const FIRST_POSITIONS: usize = 512;

/// How positions turn into angles. All values are checked where the configuration is read: `dim` is even and positive
/// (above 2 for [`RopeScaling::Dynamic`]), factors are finite and positive, `theta` is at least 1 (above 1 for YaRN).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Components of a head that turn: the head's dimension.
    pub dim: usize,
    pub scaling: RopeScaling,
    /// Positions the model was made for; dynamic scaling starts beyond them.
    pub max_position_embeddings: usize,
}

/// How a context longer than the pretrained one is squeezed into the trained range of angles.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// NTK-aware: `theta` grows with the length of the sequence once that passes `max_position_embeddings`.
    Dynamic {
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    Yarn(YarnScaling),
}

/// YaRN's parameters; cos and sin are also multiplied by [`YarnScaling::attention_scaling`].
#[derive(Debug, Clone, PartialEq)]
pub struct YarnScaling {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    /// Said outright, or else inferred from `factor`, `mscale` and `mscale_all_dim`.
    pub attention_factor: Option<f64>,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// Whether the ramp's ends are rounded outwards to whole components.
    pub truncate: bool,
}

impl YarnScaling {
    /// What cos and sin are multiplied by.
    pub fn attention_scaling(&self) -> f64 {
        let of = |mscale: f64| {
            if self.factor <= 1.0 {
                1.0
            } else {
                0.1 * mscale * self.factor.ln() + 1.0
            }
        };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(said), _, _) => said,
            (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => of(m) / of(all),
            _ => of(1.0),
        }
    }

    /// Frequencies of a head of `dim` components: interpolated where a wavelength outgrows the trained context,
    /// kept where it turns often within it.
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

/// `theta^(2i/dim)`, the i-th wavelength over 2 pi, rounded as f32 arithmetic rounds it.
fn power(theta: f64, i: usize, dim: usize) -> f32 {
    let exponent = (2 * i) as f32 / dim as f32;
    theta.powf(f64::from(exponent)) as f32
}

fn plain_inv_freq(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| 1.0 / power(theta, i, dim)).collect()
}

impl RopeSpec {
    /// The angle each pair of components turns per position, `[dim / 2]`.
    ///
    /// `sequence_len` matters for dynamic scaling alone: up to `max_position_embeddings` positions the frequencies are
    /// the plain ones.
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
        }
    }

    /// What cos and sin are multiplied by: 1 but for YaRN.
    pub fn attention_scaling(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_scaling() as f32,
            _ => 1.0,
        }
    }

    /// Whether a sequence of `len` positions needs frequencies of its own (dynamic scaling beyond the trained length).
    pub fn depends_on_length(&self, len: usize) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. }) && len > self.max_position_embeddings
    }

    fn table(&self, positions: usize, sequence_len: usize) -> RopeTable {
        let inv_freq = self.inv_freq(sequence_len);
        let scale = f64::from(self.attention_scaling());
        let mut table = RopeTable {
            half_dim: inv_freq.len(),
            cos: Vec::with_capacity(positions * inv_freq.len()),
            sin: Vec::with_capacity(positions * inv_freq.len()),
        };
        for position in 0..positions {
            for frequency in &inv_freq {
                // The angle is rounded to f32 as in training; its cos and sin are then exact.
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                table.cos.push((cos * scale) as f32);
                table.sin.push((sin * scale) as f32);
            }
        }
        table
    }
}

/// cos and sin of every position from 0.
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

    /// `[positions, half_dim]`.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// `[positions, half_dim]`.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }
}

/// The cos/sin tables of one model, made as far as sequences reach and kept.
#[derive(Debug)]
pub struct RotaryEmbedding {
    spec: RopeSpec,
    tables: Mutex<Tables>,
}

#[derive(Debug)]
struct Tables {
    /// Grows by doubling; holds every sequence whose frequencies do not depend on its length.
    shared: Arc<RopeTable>,
    /// Dynamic scaling only: the last length beyond the trained one.
    long: Option<(usize, Arc<RopeTable>)>,
}

impl RotaryEmbedding {
    pub fn new(spec: &RopeSpec) -> Self {
        let first = FIRST_POSITIONS.min(spec.max_position_embeddings);
        Self {
            tables: Mutex::new(Tables {
                shared: Arc::new(spec.table(first, 0)),
                long: None,
            }),
            spec: spec.clone(),
        }
    }

    pub fn spec(&self) -> &RopeSpec {
        &self.spec
    }

    /// A table of at least `sequence_len` positions, for a sequence that is `sequence_len` long.
    ///
    /// Only dynamic scaling cares about the difference, and only beyond `max_position_embeddings`: then every position
    /// of the sequence turns by the frequencies of its whole length, as a single uncached forward of `transformers`
    /// does (there, keys cached before the sequence grew keep the angles of the shorter length, and one long sequence
    /// of a padded batch changes its neighbours; neither is reproduced). Sequences of different lengths beyond that
    /// limit therefore need a table each; all others share one.
    pub fn tables(&self, sequence_len: usize) -> Arc<RopeTable> {
        // A poisoned lock still guards whole tables: they are only ever replaced by finished ones.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if self.spec.depends_on_length(sequence_len) {
            if let Some((len, table)) = &tables.long
                && *len == sequence_len
            {
                return table.clone();
            }
            let table = Arc::new(self.spec.table(sequence_len, sequence_len));
            tables.long = Some((sequence_len, table.clone()));
            return table;
        }
        let held = tables.shared.positions();
        if held < sequence_len {
            let grown = sequence_len.max(held.saturating_mul(2));
            // A dynamic table must not reach where the frequencies change.
            let grown = if self.spec.depends_on_length(grown) {
                self.spec.max_position_embeddings
            } else {
                grown
            };
            tables.shared = Arc::new(self.spec.table(grown, 0));
        }
        tables.shared.clone()
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

    #[test]
    fn tables_grow_and_keep_their_beginning() {
        let rotary = RotaryEmbedding::new(&spec(RopeScaling::None));
        let short = rotary.tables(3);
        assert_eq!((short.positions(), short.half_dim()), (64, 4));
        let long = rotary.tables(65);
        assert_eq!(long.positions(), 128);
        assert_eq!(short.cos(), &long.cos()[..short.cos().len()]);
        assert_eq!(short.sin(), &long.sin()[..short.sin().len()]);
        assert!(Arc::ptr_eq(&long, &rotary.tables(128)));
        assert_eq!(rotary.tables(1000).positions(), 1000);
        // Position 0 turns nothing; the first pair turns one radian a position.
        assert_eq!((long.cos()[0], long.sin()[0]), (1.0, 0.0));
        assert!((long.cos()[100 * 4] - 100f32.cos()).abs() < 1e-6);
        assert!((long.sin()[100 * 4] - 100f32.sin()).abs() < 1e-6);
    }

    #[test]
    fn dynamic_scaling_has_a_table_per_length_beyond_the_trained_one() {
        let dynamic = spec(RopeScaling::Dynamic { factor: 2.0 });
        let rotary = RotaryEmbedding::new(&dynamic);
        let plain = RotaryEmbedding::new(&spec(RopeScaling::None));
        assert_eq!(rotary.tables(64), plain.tables(64));
        let (at_65, at_90) = (rotary.tables(65), rotary.tables(90));
        assert_eq!((at_65.positions(), at_90.positions()), (65, 90));
        assert_ne!(at_65.cos()[7], at_90.cos()[7]);
        assert_eq!(rotary.tables(65), at_65);
        // Nothing longer leaks back into short sequences.
        assert_eq!(rotary.tables(64), plain.tables(64));
        assert!(dynamic.depends_on_length(65) && !dynamic.depends_on_length(64));
        assert!(!spec(RopeScaling::Linear { factor: 2.0 }).depends_on_length(1000));
    }

    #[test]
    fn linear_scaling_is_position_interpolation() {
        let interpolated = spec(RopeScaling::Linear { factor: 4.0 });
        let (plain, interpolated) = (
            RotaryEmbedding::new(&spec(RopeScaling::None)).tables(16),
            RotaryEmbedding::new(&interpolated).tables(64),
        );
        for position in 0..16 {
            assert_eq!(
                plain.cos()[position * 4..][..4],
                interpolated.cos()[position * 16..][..4]
            );
        }
    }
}

//! One block of the decoder: attention, then an MLP or a mixture of experts.

use candle_core::Tensor;

use super::parameters::ParameterSource;
use super::{DecoderSpec, ExpertsSpec, LayerRotation, LayerSpec, ModelError};
use kernels::{
    attention::AttentionParams,
    nn::{
        Adapted, Attention, AttentionBackend, Experts, FeedForward, Joint, Linear, Mlp, QkNorm,
        RmsNorm, Rotation,
    },
};

/// One layer: attention and MLP, each added to the residual stream, with norms before or after them, or both.
#[derive(Debug, Clone)]
pub(super) struct Block {
    before_attention: Option<RmsNorm>,
    attention: Attention,
    after_attention: Option<RmsNorm>,
    before_mlp: Option<RmsNorm>,
    mlp: FeedForward,
    after_mlp: Option<RmsNorm>,
    /// The factor of what is added to the residual stream.
    multiplier: f64,
}

impl Block {
    /// Computes the block. With `rows`, only those rows of the result are computed; keys and values are still computed from all of `x`.
    pub fn forward(
        &self,
        x: &Tensor,
        rows: Option<&Tensor>,
        rotations: &[Rotation],
        backend: &AttentionBackend<'_>,
        adapted: Adapted<'_>,
    ) -> candle_core::Result<Tensor> {
        let normed = match &self.before_attention {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        let attention = &self.attention;
        let attended = attention.forward(&normed, rows, rotations, backend, adapted)?;
        let attended = self.added(attended, self.after_attention.as_ref())?;
        let x = match rows {
            Some(rows) => x.index_select(rows, 0)?,
            None => x.clone(),
        };
        let (x, normed) = match &self.before_mlp {
            Some(norm) => norm.forward_sum(&x, &attended)?,
            None => {
                let x = (x + attended)?;
                (x.clone(), x)
            }
        };
        let fed = self.mlp.forward(&normed, adapted.rows)?;
        x + self.added(fed, self.after_mlp.as_ref())?
    }

    /// Returns what half of the block adds to the residual stream.
    fn added(&self, y: Tensor, norm: Option<&RmsNorm>) -> candle_core::Result<Tensor> {
        let y = match norm {
            Some(norm) => norm.forward(&y)?,
            None => y,
        };
        times(y, self.multiplier)
    }
}

/// Returns `x` times a factor.
pub(super) fn times(x: Tensor, factor: f64) -> candle_core::Result<Tensor> {
    if factor == 1.0 { Ok(x) } else { x * factor }
}

/// Returns a norm of this architecture.
pub(super) fn norm(spec: &DecoderSpec, weight: Tensor) -> candle_core::Result<RmsNorm> {
    match spec.norms_around_one {
        true => RmsNorm::around_one(weight, spec.rms_norm_eps),
        false => Ok(RmsNorm::new(weight, spec.rms_norm_eps)),
    }
}

impl Block {
    /// Returns the linear layers, without a mixture's router.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().chain(self.mlp.linears())
    }

    /// Returns the bytes of the weight matrices.
    pub fn bytes(&self) -> usize {
        let attention: usize = self.attention.linears().map(Linear::bytes).sum();
        attention + self.mlp.bytes()
    }

    /// Returns whether the MLP of this many tokens uses the whole device, rather than one thread of a CPU.
    pub fn spreads(&self, tokens: usize) -> bool {
        self.mlp.spreads(tokens)
    }

    /// Builds the block of a layer from its tensors.
    ///
    /// # Errors
    /// Errors if the source has a missing tensor or one of another shape.
    pub fn new(
        spec: &DecoderSpec,
        layer: usize,
        source: &mut dyn ParameterSource,
    ) -> Result<Self, ModelError> {
        let prefix = format!("model.layers.{layer}");
        let mut linears = Vec::new();
        for (within, shape) in spec.block_linears(layer) {
            let path = format!("{prefix}.{within}");
            let place = spec.linear_place(&path);
            let linear = source.linear(&path, shape, spec.has_bias(within))?;
            linears.push(linear.at(place.expect("a block's layer has a place; this is a bug")));
        }
        let mut linears = linears.into_iter();
        let (qkv, o) = projections(spec, &mut linears);
        let mlp = match spec.experts_of(layer) {
            Some(experts) => FeedForward::Experts(mixture(spec, experts, &prefix, source)?),
            None => FeedForward::Dense(dense(spec, &mut linears)),
        };
        let mut norm_of = |name: &str, size: usize| -> Result<RmsNorm, ModelError> {
            let weight = source.tensor(&format!("{prefix}.{name}.weight"), &[size])?;
            Ok(norm(spec, weight)?)
        };
        let qk_norm = match spec.qk_norm.zip(spec.qk_norm_sizes()) {
            Some((width, [q, k])) => Some(QkNorm {
                q: norm_of("self_attn.q_norm", q)?,
                k: norm_of("self_attn.k_norm", k)?,
                width,
            }),
            None => None,
        };
        let LayerSpec {
            sliding_window,
            rotation,
            ..
        } = spec.layers[layer];
        let names = spec.norms.names();
        let mut block_norm = |name: Option<&str>| {
            let norm = name.map(|name| norm_of(name, spec.hidden_size));
            norm.transpose()
        };
        Ok(Self {
            before_attention: block_norm(names.before_attention)?,
            after_attention: block_norm(names.after_attention)?,
            before_mlp: block_norm(names.before_mlp)?,
            after_mlp: block_norm(names.after_mlp)?,
            attention: Attention {
                layer,
                qkv,
                o,
                qk_norm,
                heads: spec.num_heads,
                kv_heads: spec.num_kv_heads,
                head_dim: spec.head_dim,
                rotation: rotation.map(|rotation| match rotation {
                    LayerRotation::Global => 0,
                    LayerRotation::Local => 1,
                }),
                params: AttentionParams {
                    scale: spec.attention_scale,
                    window: sliding_window,
                    soft_cap: spec.attention_soft_cap,
                },
            },
            mlp,
            multiplier: spec.multipliers.residual,
        })
    }
}

/// Takes the next of a block's linear layers.
fn next(linears: &mut impl Iterator<Item = Linear>) -> Linear {
    linears
        .next()
        .expect("a block has its linear layers; this is a bug")
}

/// Returns the projections to q, k and v, and the output projection: the first of a block's linear layers.
fn projections(
    spec: &DecoderSpec,
    linears: &mut impl Iterator<Item = Linear>,
) -> (Joint<3>, Linear) {
    let qkv = match spec.fused_projections {
        true => {
            let [q, kv] = [spec.num_heads, spec.num_kv_heads].map(|heads| heads * spec.head_dim);
            Joint::fused(next(linears), [q, kv, kv])
        }
        false => Joint::separate([(); 3].map(|()| next(linears))),
    };
    (qkv, next(linears))
}

/// Returns the MLP of the last of a block's linear layers.
fn dense(spec: &DecoderSpec, linears: &mut impl Iterator<Item = Linear>) -> Mlp {
    let gate_up = match spec.fused_projections {
        true => Joint::fused(next(linears), [spec.intermediate_size; 2]),
        false => Joint::separate([(); 2].map(|()| next(linears))),
    };
    Mlp {
        gate_up,
        down: next(linears),
        activation: spec.hidden_act,
    }
}

/// Returns the mixture of experts of the block whose tensors' names begin with `prefix`.
fn mixture(
    spec: &DecoderSpec,
    experts: &ExpertsSpec,
    prefix: &str,
    source: &mut dyn ParameterSource,
) -> Result<Experts, ModelError> {
    let mut layer =
        |within: &str, shape| source.linear(&format!("{prefix}.{within}"), shape, false);
    let router = layer(ExpertsSpec::ROUTER, experts.router(spec.hidden_size))?;
    let mut mlps = Vec::with_capacity(experts.count);
    for number in 0..experts.count {
        let [gate, up, down] = experts.linears(number, spec.hidden_size);
        let mut of = |(within, shape): (String, _)| layer(&within, shape);
        mlps.push(Mlp {
            gate_up: Joint::separate([of(gate)?, of(up)?]),
            down: of(down)?,
            activation: spec.hidden_act,
        });
    }
    Ok(Experts {
        router,
        experts: mlps,
        per_row: experts.per_token,
        normalised: experts.normalised,
    })
}

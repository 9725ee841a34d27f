//! The second half of a block: one MLP, or a mixture of them.

use candle_core::{Result, Tensor};

use super::{AdaptedRows, Experts, Linear, Mlp};

/// An MLP, or a mixture of experts. Adapters change the first alone.
#[derive(Debug, Clone)]
pub enum FeedForward {
    Dense(Mlp),
    Experts(Experts),
}

impl FeedForward {
    fn mlps(&self) -> &[Mlp] {
        match self {
            Self::Dense(mlp) => std::slice::from_ref(mlp),
            Self::Experts(mixture) => &mixture.experts,
        }
    }

    /// Returns whether this many rows use the whole device, rather than one thread of a CPU.
    pub fn spreads(&self, rows: usize) -> bool {
        // All experts have the same shape.
        self.mlps().first().is_some_and(|mlp| mlp.spreads(rows))
    }

    /// Returns the linear layers, without a router, whose type is not the model's.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.mlps().iter().flat_map(Mlp::linears)
    }

    /// Returns the bytes of the weights.
    pub fn bytes(&self) -> usize {
        let router = match self {
            Self::Dense(_) => 0,
            Self::Experts(mixture) => mixture.router.bytes(),
        };
        router + self.linears().map(Linear::bytes).sum::<usize>()
    }

    pub fn forward(&self, x: &Tensor, adapted: &[AdaptedRows<'_>]) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => mlp.forward(x, adapted),
            Self::Experts(mixture) => mixture.forward(x),
        }
    }
}

//! Linear layers: with a plain weight for training or a weight packed for serving, with an optional low-rank adapter for all
//! rows, and any number of adapters for some rows each.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::adapter::{AdaptedRows, adapt_rows};
use super::dropout::Dropout;
use crate::linear::{
    Frozen, PackedLinear, add_bias, frozen_linear, linear, lora_linear, lora_over, spreads,
};
use crate::logprob::{Scores, score, score_over};

/// A linear layer `y = x W^T + b`, plus `scale * (x A^T) B^T` if an adapter is attached (Hu et al. 2021).
///
/// # Shapes
/// `x` is `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`, `A` `[r, in]`, `B` `[out, r]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    lora: Option<Lora>,
    /// The index at which adapters of single rows keep their factors for this layer.
    place: Option<usize>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// Differentiable, on any device.
    Plain {
        weight: Tensor,
        bias: Option<Tensor>,
    },
    /// Packed once at load, bias included; CPU, no gradient.
    Packed(Arc<PackedLinear>),
    /// Packed and not trained: its numbers are computed with in f32, and inputs have gradients; CPU.
    Frozen {
        weight: Arc<PackedLinear>,
        bias: Option<Tensor>,
    },
}

/// A low-rank update of one linear layer.
#[derive(Debug, Clone)]
pub struct Lora {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
    /// Dropout on the update's input, in training passes only.
    pub dropout: Option<Dropout>,
}

impl Lora {
    fn update(&self, x: &Tensor) -> Result<Tensor> {
        linear(&linear(x, &self.a, None)?, &self.b, None)? * self.scale
    }

    /// Returns the input with dropout, if there is any.
    fn dropped(&self, x: &Tensor) -> Result<Option<Tensor>> {
        match &self.dropout {
            Some(dropout) => dropout.of(x),
            None => Ok(None),
        }
    }
}

impl Linear {
    pub fn plain(weight: Tensor, bias: Option<Tensor>, lora: Option<Lora>) -> Self {
        Self {
            weight: Weight::Plain { weight, bias },
            lora,
            place: None,
        }
    }

    pub fn packed(packed: PackedLinear, lora: Option<Lora>) -> Self {
        Self {
            weight: Weight::Packed(Arc::new(packed)),
            lora,
            place: None,
        }
    }

    /// Takes a packed weight that is not trained, without a bias of its own, under layers that are.
    pub fn frozen(weight: Arc<PackedLinear>, bias: Option<Tensor>, lora: Option<Lora>) -> Self {
        Self {
            weight: Weight::Frozen { weight, bias },
            lora,
            place: None,
        }
    }

    /// Returns the layer with its index among those of a decoder, by which an [`Adapter`](super::Adapter) finds its factors.
    pub fn at(self, place: usize) -> Self {
        Self {
            place: Some(place),
            ..self
        }
    }

    pub(super) fn place(&self) -> Option<usize> {
        self.place
    }

    /// Returns the bytes of the weight.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Plain { weight, .. } => weight.elem_count() * weight.dtype().size_in_bytes(),
            Weight::Packed(weight) | Weight::Frozen { weight, .. } => weight.bytes(),
        }
    }

    /// Returns the log-probabilities of targets if the layer is a head, with a soft cap on its logits; none if it is packed for serving.
    ///
    /// # Errors
    /// Errors if a target does not exist or the shapes do not fit.
    pub fn score(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        soft_cap: Option<f32>,
    ) -> Result<Option<Scores>> {
        match &self.weight {
            Weight::Plain { weight, .. } => score(hidden, weight, targets, soft_cap).map(Some),
            Weight::Frozen { weight, .. } => {
                score_over(hidden, &Frozen::Packed(weight.clone()), targets, soft_cap).map(Some)
            }
            Weight::Packed(_) => Ok(None),
        }
    }

    /// Returns the given rows of the weight, `[ids.len(), in]`, as an embedding lookup: in the weight's dtype and differentiable if it
    /// is plain; in f32 if it is packed.
    ///
    /// # Errors
    /// Errors if there is no such row.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        match &self.weight {
            Weight::Plain { weight, .. } => {
                weight.index_select(&Tensor::new(ids, weight.device())?, 0)
            }
            Weight::Packed(weight) | Weight::Frozen { weight, .. } => weight.rows(ids),
        }
    }

    /// Returns the name of the type of the weight.
    pub fn kind(&self) -> &'static str {
        match &self.weight {
            Weight::Plain { weight, .. } => weight.dtype().as_str(),
            Weight::Packed(weight) | Weight::Frozen { weight, .. } => weight.format().name(),
        }
    }

    /// Returns the dtype of the weight; see [`WeightFormat::dtype`](crate::linear::WeightFormat::dtype).
    pub fn dtype(&self) -> DType {
        match &self.weight {
            Weight::Plain { weight, .. } => weight.dtype(),
            Weight::Packed(packed) => packed.format().dtype(),
            Weight::Frozen { .. } => DType::F32,
        }
    }

    /// Applies the layer to `x`, with adapters on the rows of `adapted`.
    pub fn forward(&self, x: &Tensor, adapted: &[AdaptedRows<'_>]) -> Result<Tensor> {
        let [y] = Self::forward_all([self], x, adapted)?;
        Ok(y)
    }

    /// Applies several layers to one input. Packed layers are computed as one product: x is read once, with one call of the thread
    /// pool.
    pub fn forward_all<const N: usize>(
        layers: [&Self; N],
        x: &Tensor,
        adapted: &[AdaptedRows<'_>],
    ) -> Result<[Tensor; N]> {
        let packed: Vec<&PackedLinear> = layers.iter().filter_map(|l| l.packed_weight()).collect();
        if !packed.is_empty() && x.track_op() {
            candle_core::bail!("a packed weight has no gradient: train the plain model");
        }
        let results: Result<Vec<Tensor>> = match <[&PackedLinear; N]>::try_from(packed) {
            Ok(packed) => layers
                .iter()
                .zip(PackedLinear::apply_all(packed, x)?)
                .map(|(layer, y)| layer.adapt(x, y))
                .collect(),
            Err(_) => layers.iter().map(|layer| layer.whole(x)).collect(),
        };
        let results = results?
            .try_into()
            .expect("one for each layer; this is a bug");
        adapt_rows(layers, x, &results, adapted)?;
        Ok(results)
    }

    /// Returns whether a product of this many rows with these layers uses the whole device, rather than one thread of a CPU.
    pub(super) fn spreads(layers: &[&Self], rows: usize) -> bool {
        let packed: Vec<&PackedLinear> = layers.iter().filter_map(|l| l.packed_weight()).collect();
        packed.len() < layers.len() || spreads(packed, rows)
    }

    /// Adds the layer's product with `x` to the rows of `y` from `first` on, in place.
    pub(super) fn add_product(&self, x: &Tensor, y: &Tensor, first: usize) -> Result<()> {
        let rows = y.narrow(0, first, x.dim(0)?)?;
        match &self.weight {
            Weight::Packed(packed) => packed.add_to(&rows, x),
            Weight::Plain { .. } | Weight::Frozen { .. } => {
                y.slice_set(&(rows + self.product(x)?)?, 0, first)
            }
        }
    }

    fn packed_weight(&self) -> Option<&PackedLinear> {
        match &self.weight {
            Weight::Packed(packed) => Some(packed),
            Weight::Plain { .. } | Weight::Frozen { .. } => None,
        }
    }

    /// Returns the product including the adapter's update.
    fn whole(&self, x: &Tensor) -> Result<Tensor> {
        let Some(lora) = &self.lora else {
            return self.product(x);
        };
        if let Some(dropped) = lora.dropped(x)? {
            // The base reads the input without dropout.
            return self.product(x)? + lora.update(&dropped)?;
        }
        let Lora { a, b, scale, .. } = lora;
        match &self.weight {
            Weight::Plain { weight, bias } => {
                add_bias(lora_linear(x, weight, a, b, *scale)?, bias.as_ref())
            }
            Weight::Frozen { weight, bias } => {
                let base = Frozen::Packed(weight.clone());
                add_bias(lora_over(x, &base, a, b, *scale)?, bias.as_ref())
            }
            Weight::Packed(_) => self.product(x)? + lora.update(x)?,
        }
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Plain { weight, bias } => linear(x, weight, bias.as_ref()),
            Weight::Packed(packed) => packed.apply(x),
            Weight::Frozen { weight, bias } => add_bias(frozen_linear(x, weight)?, bias.as_ref()),
        }
    }

    /// Adds the adapter's update for `x` to the product `y`.
    fn adapt(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        match &self.lora {
            None => Ok(y),
            Some(lora) => y + lora.update(lora.dropped(x)?.as_ref().unwrap_or(x))?,
        }
    }
}

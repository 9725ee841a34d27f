//! A linear layer: a plain weight that can be trained, or one packed for serving; with an optional low-rank adapter for all
//! rows, and any number of them for some rows each.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::adapter::{AdaptedRows, adapt_rows};
use super::dropout::Dropout;
use crate::kernels::linear::{PackedLinear, add_bias, linear, lora_linear, spreads};

/// `y = x W^T + b`, plus `scale * (x A^T) B^T` where an adapter is attached (Hu et al. 2021).
///
/// # Shapes
/// `x` is `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`, `A` `[r, in]`, `B` `[out, r]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    lora: Option<Lora>,
    /// Where adapters of single rows have their factors for this layer.
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
}

/// A low-rank update of one linear layer.
#[derive(Debug, Clone)]
pub struct Lora {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
    /// Of what the update reads, in training passes only.
    pub dropout: Option<Dropout>,
}

impl Lora {
    fn update(&self, x: &Tensor) -> Result<Tensor> {
        linear(&linear(x, &self.a, None)?, &self.b, None)? * self.scale
    }

    /// The input with dropout, where there is any.
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

    /// The layer with its place among those of a decoder: an [`Adapter`](super::Adapter) finds its factors by it.
    pub fn at(self, place: usize) -> Self {
        Self {
            place: Some(place),
            ..self
        }
    }

    pub(super) fn place(&self) -> Option<usize> {
        self.place
    }

    /// Bytes of the weight.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Plain { weight, .. } => weight.elem_count() * weight.dtype().size_in_bytes(),
            Weight::Packed(packed) => packed.bytes(),
        }
    }

    /// The weight as a tensor, where it is one.
    pub fn plain_weight(&self) -> Option<&Tensor> {
        match &self.weight {
            Weight::Plain { weight, .. } => Some(weight),
            Weight::Packed(_) => None,
        }
    }

    /// These rows of the weight, `[ids.len(), in]`: what an embedding looks up. In the weight's dtype, differentiable, where it
    /// is plain; in f32 where it is packed.
    ///
    /// # Errors
    /// When there is no such row.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        match &self.weight {
            Weight::Plain { weight, .. } => {
                weight.index_select(&Tensor::new(ids, weight.device())?, 0)
            }
            Weight::Packed(packed) => packed.rows(ids),
        }
    }

    /// What the weight is kept in.
    pub fn dtype(&self) -> DType {
        match &self.weight {
            Weight::Plain { weight, .. } => weight.dtype(),
            Weight::Packed(packed) => packed.format().dtype(),
        }
    }

    /// The layer on `x`, and on the rows of `adapted` with their adapters.
    pub fn forward(&self, x: &Tensor, adapted: &[AdaptedRows<'_>]) -> Result<Tensor> {
        let [y] = Self::forward_all([self], x, adapted)?;
        Ok(y)
    }

    /// Several layers of one input. Packed ones are computed as one product: x is read once, and the thread pool is called
    /// once.
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

    /// Whether the product of so many rows with these layers takes all that the device has, rather than a thread of a CPU.
    pub(super) fn spreads(layers: &[&Self], rows: usize) -> bool {
        let packed: Vec<&PackedLinear> = layers.iter().filter_map(|l| l.packed_weight()).collect();
        packed.len() < layers.len() || spreads(packed, rows)
    }

    /// Adds the layer's product with `x` to the rows of `y` from `first` on, in place.
    pub(super) fn add_product(&self, x: &Tensor, y: &Tensor, first: usize) -> Result<()> {
        let rows = y.narrow(0, first, x.dim(0)?)?;
        match &self.weight {
            Weight::Packed(packed) => packed.add_to(&rows, x),
            Weight::Plain { .. } => y.slice_set(&(rows + self.product(x)?)?, 0, first),
        }
    }

    fn packed_weight(&self) -> Option<&PackedLinear> {
        match &self.weight {
            Weight::Packed(packed) => Some(packed),
            Weight::Plain { .. } => None,
        }
    }

    /// The product and what the adapter adds.
    fn whole(&self, x: &Tensor) -> Result<Tensor> {
        let (Weight::Plain { weight, bias }, Some(lora)) = (&self.weight, &self.lora) else {
            return self.adapt(x, self.product(x)?);
        };
        match lora.dropped(x)? {
            // The base reads the input whole.
            Some(dropped) => self.product(x)? + lora.update(&dropped)?,
            None => {
                let Lora { a, b, scale, .. } = lora;
                add_bias(lora_linear(x, weight, a, b, *scale)?, bias.as_ref())
            }
        }
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Plain { weight, bias } => linear(x, weight, bias.as_ref()),
            Weight::Packed(packed) => packed.apply(x),
        }
    }

    /// Adds what the adapter makes of `x` to the product `y`.
    fn adapt(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        match &self.lora {
            None => Ok(y),
            Some(lora) => y + lora.update(lora.dropped(x)?.as_ref().unwrap_or(x))?,
        }
    }
}

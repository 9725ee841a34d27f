//! Adapters in serving: low-rank updates of a decoder's linear layers, each applied to its own rows of a product.
//!
//! Rows of several adapters go through the base together; then each adapter adds its own product to its own rows
//! (Punica, Chen et al. 2023; S-LoRA, Sheng et al. 2023). A row has the same bits whatever rows of whichever adapters
//! are computed with it, because both products are batch invariant (see [`crate::linear`]).

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::Linear;

/// The low-rank updates of one adapter, indexed by their layer's [place](Linear::at).
#[derive(Debug, Clone, Default)]
pub struct Adapter {
    places: Vec<Option<LowRank>>,
}

/// The update `x -> (x A^T) B^T`, with the adapter's scale folded into `B`.
///
/// # Shapes
/// `a` is a layer `[r, in]`, `b` is a layer `[out, r]`.
#[derive(Debug, Clone)]
pub struct LowRank {
    pub a: Linear,
    pub b: Linear,
}

impl Adapter {
    /// Takes the updates by place: `places[p]` is added at the layer of place `p`.
    pub fn new(places: Vec<Option<LowRank>>) -> Self {
        Self { places }
    }

    fn at(&self, place: Option<usize>) -> Option<&LowRank> {
        self.places.get(place?)?.as_ref()
    }

    /// Returns the bytes of its factors.
    pub fn bytes(&self) -> usize {
        let pairs = self.places.iter().flatten();
        pairs.map(|pair| pair.a.bytes() + pair.b.bytes()).sum()
    }
}

/// A range of rows, and the adapter with which they are computed.
#[derive(Debug, Clone)]
pub struct AdaptedRows<'a> {
    pub rows: Range<usize>,
    pub adapter: &'a Adapter,
}

impl AdaptedRows<'_> {
    /// Returns the range of these rows within a selection, whose row numbers are ascending.
    pub fn among(&self, chosen: &[u32]) -> Self {
        let at = |row: usize| chosen.partition_point(|&chosen| (chosen as usize) < row);
        Self {
            rows: at(self.rows.start)..at(self.rows.end),
            adapter: self.adapter,
        }
    }
}

/// Adds each adapter's product with its rows to the products `ys` of `layers` and `x`. The products must not be shared:
/// they are modified in place.
pub(super) fn adapt_rows<const N: usize>(
    layers: [&Linear; N],
    x: &Tensor,
    ys: &[Tensor; N],
    adapted: &[AdaptedRows<'_>],
) -> Result<()> {
    for AdaptedRows { rows, adapter } in adapted {
        let updates = layers.map(|layer| adapter.at(layer.place()));
        if rows.is_empty() || updates.iter().all(Option::is_none) {
            continue;
        }
        let own = x.narrow(0, rows.start, rows.len())?;
        let lowered = lower(updates, &own)?;
        for ((update, lowered), y) in updates.iter().zip(lowered).zip(ys) {
            if let (Some(update), Some(lowered)) = (update, lowered) {
                update.b.add_product(&lowered, y, rows.start)?;
            }
        }
    }
    Ok(())
}

/// Returns `x A^T` of each update: computed as one product if every layer has one.
fn lower<const N: usize>(
    updates: [Option<&LowRank>; N],
    x: &Tensor,
) -> Result<[Option<Tensor>; N]> {
    if updates.iter().all(Option::is_some) {
        let all = updates.map(|update| &update.expect("all are there; this is a bug").a);
        return Ok(Linear::forward_all(all, x, &[])?.map(Some));
    }
    let mut lowered = [const { None }; N];
    for (lowered, update) in lowered.iter_mut().zip(updates) {
        *lowered = update.map(|update| update.a.forward(x, &[])).transpose()?;
    }
    Ok(lowered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{PackedLinear, WeightFormat};
    use crate::testing::{max_difference, random};

    fn packed(shape: [usize; 2], seed: u64) -> (Tensor, Linear) {
        let weight = random(&shape, seed);
        let packed = PackedLinear::from_tensor(&weight, None, WeightFormat::F32).unwrap();
        (weight, Linear::packed(packed, None))
    }

    #[test]
    fn each_adapter_changes_its_rows_and_no_others() -> Result<()> {
        let x = random(&[7, 12], 1);
        let (q, q_layer) = packed([20, 12], 2);
        let (k, k_layer) = packed([9, 12], 3);
        let (q_layer, k_layer) = (q_layer.at(0), k_layer.at(1));
        // The first adapter changes both layers, the second one of them.
        let pair = |out, r, seed| {
            let ((a, a_layer), (b, b_layer)) = (packed([r, 12], seed), packed([out, r], seed + 1));
            let update = LowRank {
                a: a_layer,
                b: b_layer,
            };
            (b.matmul(&a), update)
        };
        let ((q_one, one), (k_one, two), (k_two, three)) =
            (pair(20, 4, 10), pair(9, 4, 20), pair(9, 2, 30));
        let first = Adapter::new(vec![Some(one), Some(two)]);
        let second = Adapter::new(vec![None, Some(three)]);
        let adapted = [
            AdaptedRows {
                rows: 1..4,
                adapter: &first,
            },
            AdaptedRows {
                rows: 4..6,
                adapter: &second,
            },
        ];
        let ys = Linear::forward_all([&q_layer, &k_layer], &x, &adapted)?;
        let merged = |weight: &Tensor, update: Option<&Tensor>, rows: Range<usize>| {
            let weight = match update {
                Some(update) => (weight + update)?,
                None => weight.clone(),
            };
            x.narrow(0, rows.start, rows.len())?.matmul(&weight.t()?)
        };
        let (q_one, k_one, k_two) = (q_one?, k_one?, k_two?);
        for (y, weight, of_first, of_second) in [
            (&ys[0], &q, Some(&q_one), None),
            (&ys[1], &k, Some(&k_one), Some(&k_two)),
        ] {
            for (update, rows) in [
                (None, 0..1),
                (of_first, 1..4),
                (of_second, 4..6),
                (None, 6..7),
            ] {
                let want = merged(weight, update, rows.clone())?;
                let got = y.narrow(0, rows.start, rows.len())?;
                let difference = max_difference(&got, &want)?;
                assert!(difference < 1e-5, "{rows:?}: {difference}");
            }
        }
        Ok(())
    }
}

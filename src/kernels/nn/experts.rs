//! A mixture of experts in place of an MLP: a router sends each row to a few of many MLPs, and adds their weighted results (Shazeer et al.
//! 2017; softmax over all experts before the choice, as in Qwen3-MoE).
//!
//! An expert's rows are multiplied together. The results of a row are added in the order of the experts' numbers, so it has the same bits
//! whatever rows are computed with it.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax;

use super::{Linear, Mlp};

/// The MLPs and their router.
#[derive(Debug, Clone)]
pub struct Experts {
    /// Gives the score of every expert.
    pub router: Linear,
    pub experts: Vec<Mlp>,
    /// The experts of a row: at least 1, at most all.
    pub per_row: usize,
    /// Whether the weights of a row's experts are divided by their sum.
    pub normalised: bool,
}

impl Experts {
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.dim(0)? == 0 {
            return Ok(x.clone());
        }
        let scores = self.router.forward(x, &[])?.to_dtype(DType::F32)?;
        let weights = softmax(&scores, D::Minus1)?;
        let routes = Routes::of(&weights.to_vec2()?, self.per_row);
        let weights = weights.gather(&routes.chosen(x.device())?, 1)?;
        let weights = match self.normalised {
            true => weights.broadcast_div(&weights.sum_keepdim(1)?)?,
            false => weights,
        };
        let weights = weights.to_dtype(x.dtype())?;
        let mut results = Vec::new();
        for (expert, rows) in self.experts.iter().zip(routes.rows(self.experts.len())) {
            if !rows.is_empty() {
                let own = x.index_select(&Tensor::new(rows, x.device())?, 0)?;
                results.push(expert.forward(&own, &[])?);
            }
        }
        let results = Tensor::cat(&results, 0)?;
        let mut sum: Option<Tensor> = None;
        for (slot, places) in routes.places(self.experts.len()).into_iter().enumerate() {
            let of_slot = results.index_select(&Tensor::new(places, x.device())?, 0)?;
            let weighted = of_slot.broadcast_mul(&weights.narrow(1, slot, 1)?)?;
            sum = Some(match sum {
                Some(sum) => (sum + weighted)?,
                None => weighted,
            });
        }
        Ok(sum.expect("a row has at least one expert; this is a bug"))
    }
}

/// The experts of each row.
struct Routes {
    /// The numbers of a row's experts, ascending, row by row.
    chosen: Vec<u32>,
    per_row: usize,
}

impl Routes {
    /// Chooses the experts of the largest weights; of equal ones those of lower numbers.
    fn of(weights: &[Vec<f32>], per_row: usize) -> Self {
        let mut chosen = Vec::with_capacity(weights.len() * per_row);
        for row in weights {
            let mut order: Vec<u32> = (0..row.len() as u32).collect();
            let larger = |&a: &u32, &b: &u32| {
                let (of_a, of_b) = (row[a as usize], row[b as usize]);
                of_b.total_cmp(&of_a).then(a.cmp(&b))
            };
            if per_row < order.len() {
                order.select_nth_unstable_by(per_row, larger);
                order.truncate(per_row);
            }
            order.sort_unstable();
            chosen.extend(order);
        }
        Self { chosen, per_row }
    }

    /// Returns the numbers of the experts, `[rows, per_row]`.
    fn chosen(&self, device: &Device) -> Result<Tensor> {
        let rows = self.chosen.len() / self.per_row;
        Tensor::from_slice(&self.chosen, (rows, self.per_row), device)
    }

    /// Returns the rows of each expert, ascending.
    fn rows(&self, experts: usize) -> Vec<Vec<u32>> {
        let mut rows = vec![Vec::new(); experts];
        for (at, &expert) in self.chosen.iter().enumerate() {
            rows[expert as usize].push((at / self.per_row) as u32);
        }
        rows
    }

    /// Returns the place of each row's result among those of all experts, which lie one expert after the other: a list for the first
    /// expert of every row, one for the second, and so on.
    fn places(&self, experts: usize) -> Vec<Vec<u32>> {
        let mut next = vec![0; experts + 1];
        for &expert in &self.chosen {
            next[expert as usize + 1] += 1;
        }
        for expert in 0..experts {
            next[expert + 1] += next[expert];
        }
        let mut places = vec![Vec::new(); self.per_row];
        for (at, &expert) in self.chosen.iter().enumerate() {
            places[at % self.per_row].push(next[expert as usize]);
            next[expert as usize] += 1;
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::super::Joint;
    use super::*;
    use crate::glu::Activation;
    use crate::linear::{PackedLinear, WeightFormat};
    use crate::testing::{assert_same_gradients, random};

    const WIDTH: usize = 6;

    /// Returns the mixture of a router and of all experts' matrices gate, up and down.
    fn mixture(tensors: &[Tensor], per_row: usize, normalised: bool) -> Experts {
        let plain = |tensor: &Tensor| Linear::plain(tensor.clone(), None, None);
        built(tensors, plain, per_row, normalised)
    }

    fn built(
        tensors: &[Tensor],
        layer: impl Fn(&Tensor) -> Linear,
        per_row: usize,
        normalised: bool,
    ) -> Experts {
        let expert = |matrices: &[Tensor]| Mlp {
            gate_up: Joint::separate([layer(&matrices[0]), layer(&matrices[1])]),
            down: layer(&matrices[2]),
            activation: Activation::Silu,
        };
        Experts {
            router: layer(&tensors[0]),
            experts: tensors[1..].chunks(3).map(expert).collect(),
            per_row,
            normalised,
        }
    }

    fn tensors(hidden: usize, experts: usize) -> Vec<Tensor> {
        let mut all = vec![(random(&[experts, hidden], 5) * 3.0).unwrap()];
        for expert in 0..experts as u64 {
            let matrix = |seed, shape: &[usize]| random(shape, 10 + 3 * expert + seed);
            all.push(matrix(0, &[WIDTH, hidden]));
            all.push(matrix(1, &[WIDTH, hidden]));
            all.push(matrix(2, &[hidden, WIDTH]));
        }
        all
    }

    /// Computes every expert for every row, with weight 0 where it is not chosen.
    fn plain(x: &Tensor, tensors: &[Tensor], per_row: usize, normalised: bool) -> Result<Tensor> {
        let mixture = mixture(tensors, per_row, normalised);
        let weights = softmax(&mixture.router.forward(x, &[])?, D::Minus1)?;
        let mut mask = weights.zeros_like()?.to_vec2::<f32>()?;
        for (mask, row) in mask.iter_mut().zip(weights.to_vec2::<f32>()?) {
            for _ in 0..per_row {
                let free = (0..row.len()).filter(|&at| mask[at] == 0.0);
                let best = free.reduce(|a, b| if row[b] > row[a] { b } else { a });
                mask[best.unwrap()] = 1.0;
            }
        }
        let weights = (weights * Tensor::new(mask, x.device())?)?;
        let weights = match normalised {
            true => weights.broadcast_div(&weights.sum_keepdim(1)?)?,
            false => weights,
        };
        let mut sum = x.zeros_like()?;
        for (at, expert) in mixture.experts.iter().enumerate() {
            let y = expert.forward(x, &[])?;
            sum = (sum + y.broadcast_mul(&weights.narrow(1, at, 1)?)?)?;
        }
        Ok(sum)
    }

    #[test]
    fn grouped_rows_give_what_all_experts_of_all_rows_give_forward_and_backward() -> Result<()> {
        for (rows, hidden, experts, per_row) in [
            (17, 5, 1, 1),
            (29, 4, 3, 2),
            (64, 7, 8, 2),
            (9, 3, 5, 5),
            (40, 12, 6, 1),
        ] {
            for normalised in [false, true] {
                let x = random(&[rows, hidden], 1);
                let tensors = tensors(hidden, experts);
                let inputs: Vec<&Tensor> = [&x].into_iter().chain(&tensors).collect();
                assert_same_gradients(
                    &inputs,
                    |t| mixture(&t[1..], per_row, normalised).forward(&t[0]),
                    |t| plain(&t[0], &t[1..], per_row, normalised),
                    1e-5,
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() -> Result<()> {
        let hidden = 32;
        let tensors = tensors(hidden, 7);
        for format in [
            WeightFormat::F32,
            WeightFormat::Bf16,
            WeightFormat::Int8,
            WeightFormat::Int4,
        ] {
            let packed = |weight: &Tensor| {
                let packed = PackedLinear::from_tensor(weight, None, format).unwrap();
                Linear::packed(packed, None)
            };
            let mixture = built(&tensors, packed, 3, true);
            let x = random(&[41, hidden], 2);
            let together = mixture.forward(&x)?.to_vec2::<f32>()?;
            for (row, want) in together.iter().enumerate() {
                let alone = mixture.forward(&x.narrow(0, row, 1)?)?;
                assert_eq!(alone.to_vec2::<f32>()?[0], *want, "{format} {row}");
            }
            let part = mixture.forward(&x.narrow(0, 11, 16)?)?.to_vec2::<f32>()?;
            assert_eq!(part, together[11..27], "{format}");
        }
        Ok(())
    }

    #[test]
    fn of_equal_experts_the_first_are_chosen_and_no_rows_need_none() -> Result<()> {
        let weights = vec![vec![0.25; 4], vec![0.1, 0.4, 0.1, 0.4]];
        let routes = Routes::of(&weights, 2);
        assert_eq!(routes.chosen, [0, 1, 1, 3]);
        assert_eq!(routes.rows(4), [vec![0], vec![0, 1], vec![], vec![1]]);
        assert_eq!(routes.places(4), [[0, 2], [1, 3]]);
        let mixture = mixture(&tensors(5, 3), 2, true);
        let none = mixture.forward(&random(&[0, 5], 1))?;
        assert_eq!(none.dims(), [0, 5]);
        Ok(())
    }
}

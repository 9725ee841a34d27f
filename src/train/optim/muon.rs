//! Muon: momentum, orthogonalised by Newton-Schulz, for hidden matrices (Jordan 2024, <https://kellerjordan.github.io/posts/muon>).
//!
//! ```text
//! b ← μ·b + (1 − μ)·g              u = (1 − μ)·g + μ·b        (Nesterov)
//! O = NewtonSchulz5(u)             ≈ U·Vᵀ of u's singular value decomposition
//! w ← w · (1 − lr·λ) − lr · 0.2·√max(rows, columns) · O
//! ```
//!
//! The factor `0.2·√max(rows, columns)` gives an update the root mean square that AdamW's updates usually have (Liu et al. 2025, arXiv
//! 2502.16982, section 2.2; `match_rms_adamw` in `torch.optim.Muon`). Unlike in those, the iteration runs in f32: the CPU has no bf16
//! matmul, and the matrices are small.

use candle_core::{Device, Tensor, Var};

use super::grads::Buffer;
use crate::TrainError;

/// The quintic's coefficients (Jordan 2024): steep at zero, at the cost of singular values that are only near 1.
const QUINTIC: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;

/// Returns whether Muon updates this parameter: hidden matrices only. LoRA factors are left to AdamW: orthogonalising the factors does
/// not orthogonalise their product.
pub(super) fn applies(name: &str, var: &Var) -> bool {
    var.rank() == 2
        && !super::is_embedding(name)
        && !name.contains("lm_head")
        && !name.contains("lora_")
}

/// The momentum of one matrix, in f32, on the matrix's device.
#[derive(Debug)]
pub(super) struct Momentum(pub(super) Tensor);

impl Momentum {
    pub(super) fn zeros(var: &Var) -> Result<Self, TrainError> {
        Ok(Self(var.zeros_like()?.detach()))
    }

    pub(super) fn step(
        &mut self,
        var: &Var,
        grad: &Buffer,
        clip: f32,
        lr: f64,
        weight_decay: f64,
        momentum: f32,
    ) -> Result<(), TrainError> {
        let grad = match grad {
            Buffer::Host(g) => Tensor::from_slice(g, var.shape(), &Device::Cpu)?,
            Buffer::Device(g) => g.clone(),
        };
        let mu = f64::from(momentum);
        let grad = grad.affine(f64::from(clip) * (1.0 - mu), 0.0)?;
        self.0 = (self.0.affine(mu, 0.0)? + &grad)?;
        let update = (grad + self.0.affine(mu, 0.0)?)?;
        let (rows, columns) = var.dims2()?;
        let size = lr * 0.2 * (rows.max(columns) as f64).sqrt();
        let kept = var
            .as_detached_tensor()
            .affine(1.0 - lr * weight_decay, 0.0)?;
        var.set(&(kept - newton_schulz(&update)?.affine(size, 0.0)?)?)?;
        Ok(())
    }
}

/// Returns approximately the nearest semi-orthogonal matrix, with singular values of about 0.7 to 1.2. Takes and returns `[rows,
/// columns]`.
fn newton_schulz(matrix: &Tensor) -> Result<Tensor, TrainError> {
    let (rows, columns) = matrix.dims2()?;
    let tall = rows > columns;
    // The short side first: the iteration multiplies square matrices of that side.
    let mut x = if tall {
        matrix.t()?.contiguous()?
    } else {
        matrix.clone()
    };
    let norm = x.sqr()?.sum_all()?.sqrt()?.affine(1.0, 1e-7)?;
    x = x.broadcast_div(&norm)?;
    let (a, b, c) = QUINTIC;
    for _ in 0..ITERATIONS {
        let gram = x.matmul(&x.t()?)?;
        let poly = (gram.affine(b, 0.0)? + gram.matmul(&gram)?.affine(c, 0.0)?)?;
        x = (x.affine(a, 0.0)? + poly.matmul(&x)?)?;
    }
    Ok(if tall { x.t()?.contiguous()? } else { x })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newton_schulz_orthogonalises() {
        for (rows, columns) in [(5, 9), (9, 5), (6, 6), (1, 4)] {
            let values: Vec<f32> = (0..rows * columns)
                .map(|i| ((i * 37 + i * i * 11) % 23) as f32 / 7.0 - 1.5)
                .collect();
            let x = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
            let o = newton_schulz(&x).unwrap();
            assert_eq!(o.dims(), x.dims());
            let o = if rows > columns { o.t().unwrap() } else { o };
            let gram = o.matmul(&o.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            for (i, row) in gram.iter().enumerate() {
                for (j, &value) in row.iter().enumerate() {
                    // Singular values within 0.7..1.25: the Gram matrix is near the identity.
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((value - expected).abs() < 0.55, "{rows}x{columns} {value}");
                }
            }
        }
    }
}

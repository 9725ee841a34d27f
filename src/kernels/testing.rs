//! Common helpers of the ops' parity tests.

use candle_core::{Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Returns uniform values in [-1, 1), the same for the same seed.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("shape and length agree")
}

/// Returns the largest absolute difference of two tensors.
pub fn max_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    assert_eq!(a.dims(), b.dims());
    if a.elem_count() == 0 {
        return Ok(0.0);
    }
    (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

/// Runs both versions on the same inputs and compares outputs and every input's gradient.
pub fn assert_same_gradients(
    inputs: &[&Tensor],
    fast: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
    tolerance: f32,
) -> Result<()> {
    let run = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| -> Result<(Tensor, Vec<Tensor>)> {
        let vars: Vec<Var> = inputs
            .iter()
            .map(|t| Var::from_tensor(t))
            .collect::<Result<_>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&tensors)?;
        // A loss that weighs every output differently, so that no error can cancel.
        let loss = (&y * random(y.dims(), 99))?.sum_all()?;
        let mut grads = loss.backward()?;
        let grads = vars
            .iter()
            .map(|v| grads.remove(v).expect("every input has a gradient"))
            .collect();
        Ok((y, grads))
    };
    let (y_fast, g_fast) = run(&fast)?;
    let (y_plain, g_plain) = run(&plain)?;
    let shapes: Vec<_> = inputs.iter().map(|t| t.dims().to_vec()).collect();
    let difference = max_difference(&y_fast, &y_plain)?;
    assert!(
        difference <= tolerance,
        "outputs differ by {difference} on {shapes:?}"
    );
    for (i, (a, b)) in g_fast.iter().zip(&g_plain).enumerate() {
        let largest: f32 = b.abs()?.flatten_all()?.max(0)?.to_scalar()?;
        let difference = max_difference(a, b)? / largest.max(1.0);
        assert!(
            difference <= tolerance,
            "gradient of input {i} differs by {difference} on {shapes:?}"
        );
    }
    Ok(())
}

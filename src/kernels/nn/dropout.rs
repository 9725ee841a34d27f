//! Dropout on an adapter's input in training (PEFT's `lora_dropout`), with masks that are a function of the pass.
//!
//! A mask depends on the key of the pass, the layer and the shape alone: the backward pass can compute a block again, and a run resumed
//! from a checkpoint draws the same masks as without the interruption.

use std::cell::Cell;

use candle_core::{Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

thread_local! {
    /// The key of this thread's training pass; `None` outside of training, where there is no dropout.
    static PASS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Restores the previous key when dropped.
struct Before(Option<u64>);

impl Drop for Before {
    fn drop(&mut self) {
        PASS.set(self.0);
    }
}

/// Runs `compute` with dropout if `pass` is the key of a training pass, without if it is `None`.
pub fn with_dropout<T>(pass: Option<u64>, compute: impl FnOnce() -> T) -> T {
    let _before = Before(PASS.replace(pass));
    compute()
}

/// The dropout of an adapter's input at one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// The fraction of elements that become zero, below 1; the others are scaled by `1 / (1 - rate)`.
    pub rate: f64,
    /// The layer's own number: different layers have different masks.
    pub layer: u64,
}

impl Dropout {
    /// Returns the input with some elements dropped, or `None` outside of a training pass.
    pub(super) fn of(&self, x: &Tensor) -> Result<Option<Tensor>> {
        match PASS.get() {
            Some(pass) if self.rate > 0.0 => Ok(Some((x * self.mask(pass, x)?)?)),
            _ => Ok(None),
        }
    }

    fn mask(&self, pass: u64, x: &Tensor) -> Result<Tensor> {
        let mut rng = ChaCha8Rng::seed_from_u64(pass);
        rng.set_stream(self.layer);
        let dropped = (self.rate * (1u64 << 32) as f64) as u64;
        let kept = (1.0 / (1.0 - self.rate)) as f32;
        let values: Vec<f32> = (0..x.elem_count())
            .map(|_| match u64::from(rng.next_u32()) < dropped {
                true => 0.0,
                false => kept,
            })
            .collect();
        Tensor::from_vec(values, x.shape(), x.device())?.to_dtype(x.dtype())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn dropped(rate: f64, layer: u64, pass: Option<u64>) -> Option<Vec<f32>> {
        let x = Tensor::ones((64, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
        let of = with_dropout(pass, || Dropout { rate, layer }.of(&x).unwrap());
        of.map(|x| x.flatten_all().unwrap().to_vec1().unwrap())
    }

    #[test]
    fn masks_are_a_function_of_the_pass_and_the_layer() {
        let mask = dropped(0.25, 3, Some(7)).unwrap();
        assert_eq!(dropped(0.25, 3, Some(7)), Some(mask.clone()));
        assert_ne!(dropped(0.25, 3, Some(8)), Some(mask.clone()));
        assert_ne!(dropped(0.25, 4, Some(7)), Some(mask.clone()));
        assert!(mask.iter().all(|&x| x == 0.0 || x == 1.0 / 0.75));
        // A quarter of 4096 draws, within six standard deviations.
        let zeros = mask.iter().filter(|&&x| x == 0.0).count();
        assert!((858..1190).contains(&zeros), "{zeros}");
        assert_eq!(
            dropped(0.25, 3, None),
            None,
            "nothing is dropped outside of training"
        );
        assert_eq!(dropped(0.0, 3, Some(7)), None);
    }
}

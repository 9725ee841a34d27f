//! An adapter for serving: unmerged, checked, and in its own memory.

use candle_core::{DType, Device, Tensor};

use super::{AdapterError, AdapterWeights, LoraConfig, PREFIX, check_finite, check_fit};
use crate::Decoder;
use kernels::{
    linear::{PackedLinear, WeightFormat},
    nn::{Adapter, Linear, LowRank},
};

/// Returns the adapter over `base`. It shares no memory with the given factors, so the caller can continue to change
/// them. On the CPU its factors are packed f32, so that its products are batch invariant; elsewhere they have the
/// base's dtype.
///
/// # Errors
/// Errors if a factor has no layer in the base, has another shape or rank, or contains a NaN or infinity; the message names it.
pub fn for_serving(
    config: &LoraConfig,
    weights: &AdapterWeights,
    base: &Decoder,
) -> Result<Adapter, AdapterError> {
    let spec = base.spec();
    check_fit(weights, |path| spec.linear_shape(path))?;
    let mut places = vec![None; spec.num_places()];
    for (path, pair) in weights {
        let (rank, of_b) = (pair.a.dim(0)?, pair.b.dim(1)?);
        if rank != config.rank(path) || of_b != rank {
            return Err(AdapterError::Tensor(format!(
                "`{PREFIX}{path}` has factors of ranks {rank} and {of_b}, but the configuration says {}",
                config.rank(path)
            )));
        }
        let a = values(&format!("{PREFIX}{path}.lora_A.weight"), &pair.a)?;
        let b = values(&format!("{PREFIX}{path}.lora_B.weight"), &pair.b)?;
        let b = (b * config.scale(path))?;
        let place = spec
            .linear_place(path)
            .expect("a factor that fits has a layer; this is a bug");
        places[place] = Some(LowRank {
            a: layer(&a, base)?,
            b: layer(&b, base)?,
        });
    }
    Ok(Adapter::new(places))
}

/// Returns a factor as f32 on the CPU.
fn values(name: &str, factor: &Tensor) -> Result<Tensor, AdapterError> {
    let factor = factor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    check_finite(name, &factor)?;
    Ok(factor)
}

/// Returns a layer in its own memory: packing copies the weight, and so does a transfer to another device.
fn layer(weight: &Tensor, base: &Decoder) -> Result<Linear, AdapterError> {
    match base.device().is_cpu() {
        true => {
            let packed = PackedLinear::from_tensor(weight, None, WeightFormat::F32)?;
            Ok(Linear::packed(packed, None))
        }
        false => {
            let weight = weight.to_device(base.device())?.to_dtype(base.dtype())?;
            Ok(Linear::plain(weight, None, None))
        }
    }
}

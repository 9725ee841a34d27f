//! Copies of whole blocks within a cache, for copy-on-write of shared blocks.

use candle_core::Result;

use super::KvCache;

/// Copies block `from` over block `to` for every pair, in order: a later pair reads the results of earlier ones.
///
/// # Errors
/// Errors if a block is outside the cache; the pairs before it have been copied.
pub fn copy_blocks(cache: &KvCache, pairs: &[(u32, u32)]) -> Result<()> {
    let blocks = cache.num_blocks();
    for &(from, to) in pairs {
        if from as usize >= blocks || to as usize >= blocks {
            candle_core::bail!("copy_blocks: {from} to {to} in a cache of {blocks} blocks");
        }
        for tensor in [cache.k(), cache.v()] {
            // Not `copy`: on the CPU it copies the whole storage of the view, that is the whole cache.
            let block = tensor.narrow(0, from as usize, 1)?.force_contiguous()?;
            tensor.slice_set(&block, 0, to as usize)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_store::kv_store;
    use crate::testing::{max_difference, random};
    use candle_core::{DType, Device};

    #[test]
    fn copies_run_in_order_and_touch_nothing_else() -> Result<()> {
        for dtype in [DType::F32, DType::BF16] {
            let cache = KvCache::new(4, 2, 3, 5, dtype, &Device::Cpu)?;
            let rows = random(&[8, 3, 5], 1);
            kv_store(&cache, &rows, &rows, &(0..8).collect::<Vec<u32>>())?;
            let before = cache.v().copy()?;
            copy_blocks(&cache, &[(0, 2), (2, 3)])?;
            for (block, origin) in [(0, 0), (1, 1), (2, 0), (3, 0)] {
                let (now, then) = (cache.v().get(block)?, before.get(origin)?);
                let difference =
                    max_difference(&now.to_dtype(DType::F32)?, &then.to_dtype(DType::F32)?)?;
                assert_eq!(difference, 0.0, "block {block}");
            }
            assert!(copy_blocks(&cache, &[(0, 4)]).is_err());
        }
        Ok(())
    }
}

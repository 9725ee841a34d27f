//! The paged KV cache of one layer, and the op that writes new rows into it.
//!
//! A cache is a pool of blocks of `block_size` tokens. A *slot* is a token's place: `block * block_size + offset`; which
//! slots are whose is the business of whoever hands out blocks (see
//! [`AttentionMetadata`](crate::kernels::attention::AttentionMetadata)).
//!
//! # Layout
//! K and V are `[num_blocks, kv_heads, block_size, head_dim]`: attention reads one head at a time, and a head's rows of a
//! block lie side by side. The block comes first so that copying or moving one is a copy along the first axis.

mod copy;

pub use copy::copy_blocks;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor};

use crate::kernels::{Backward, fused, input};

/// K and V of one layer. Clones share the storage.
#[derive(Clone, Debug)]
pub struct KvCache {
    k: Tensor,
    v: Tensor,
}

impl KvCache {
    /// A cache of zeros.
    ///
    /// # Errors
    /// When a size is zero, or memory does not suffice on a device that says so.
    pub fn new(
        num_blocks: usize,
        block_size: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = [num_blocks, kv_heads, block_size, head_dim];
        if shape.contains(&0) || u32::try_from(num_blocks * block_size).is_err() {
            candle_core::bail!("kv cache: a cache of shape {shape:?} cannot be addressed");
        }
        Ok(Self {
            k: Tensor::zeros(&shape, dtype, device)?,
            v: Tensor::zeros(&shape, dtype, device)?,
        })
    }

    /// `[num_blocks, kv_heads, block_size, head_dim]`
    pub fn k(&self) -> &Tensor {
        &self.k
    }

    /// `[num_blocks, kv_heads, block_size, head_dim]`
    pub fn v(&self) -> &Tensor {
        &self.v
    }

    pub fn num_blocks(&self) -> usize {
        self.k.dims()[0]
    }

    pub fn kv_heads(&self) -> usize {
        self.k.dims()[1]
    }

    pub fn block_size(&self) -> usize {
        self.k.dims()[2]
    }

    pub fn head_dim(&self) -> usize {
        self.k.dims()[3]
    }

    /// Bytes of K and V together.
    pub fn bytes(&self) -> usize {
        2 * self.k.elem_count() * self.k.dtype().size_in_bytes()
    }

    fn check(&self, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
        let expected = [slots.len(), self.kv_heads(), self.head_dim()];
        if k.dims() != expected || v.dims() != expected {
            candle_core::bail!(
                "kv_store: k {:?} and v {:?}, where {} slots of this cache take {expected:?}",
                k.dims(),
                v.dims(),
                slots.len()
            );
        }
        let end = self.num_blocks() * self.block_size();
        if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= end) {
            candle_core::bail!("kv_store: slot {slot} in a cache of {end} slots");
        }
        Ok(())
    }
}

/// Writes row `i` of `k` and `v` (`[tokens, kv_heads, head_dim]`) to slot `slots[i]` of the cache, in place.
///
/// # Errors
/// When shapes do not fit or a slot is outside the cache. Of rows for one slot, some one row stays.
pub fn kv_store(cache: &KvCache, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
    if !fused(&[&cache.k, &cache.v, k, v], Backward::None) {
        return plain(cache, k, v, slots);
    }
    cache.check(k, v, slots)?;
    let op = StoreRows { slots };
    cache.k.inplace_op2(&k.contiguous()?, &op)?;
    cache.v.inplace_op2(&v.contiguous()?, &op)
}

/// Composed from candle ops; on any device and into a cache of any float dtype.
///
/// # Errors
/// As [`kv_store`].
pub fn plain(cache: &KvCache, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
    cache.check(k, v, slots)?;
    if slots.is_empty() {
        return Ok(());
    }
    let (heads, block_size, head_dim) = (cache.kv_heads(), cache.block_size(), cache.head_dim());
    // The row of (slot, head) among all rows of head_dim.
    let rows: Vec<u32> = slots
        .iter()
        .flat_map(|&slot| {
            let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
            (0..heads).map(move |head| ((block * heads + head) * block_size + offset) as u32)
        })
        .collect();
    let count = rows.len();
    let rows = Tensor::from_vec(rows, (count, 1), cache.k.device())?
        .broadcast_as((count, head_dim))?
        .contiguous()?;
    for (cache, new) in [(&cache.k, k), (&cache.v, v)] {
        let new = new
            .detach()
            .to_dtype(cache.dtype())?
            .reshape((count, head_dim))?
            .contiguous()?;
        // A reshape of a contiguous tensor is a view of the same storage.
        cache.reshape(((), head_dim))?.scatter_set(&rows, &new, 0)?;
    }
    Ok(())
}

struct StoreRows<'a> {
    slots: &'a [u32],
}

impl InplaceOp2 for StoreRows<'_> {
    fn name(&self) -> &'static str {
        "kv_store"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        new: &CpuStorage,
        new_layout: &Layout,
    ) -> Result<()> {
        let (_, heads, block_size, head_dim) = cache_layout.shape().dims4()?;
        let new = input(new, new_layout)?;
        let Some((start, end)) = cache_layout.contiguous_offsets() else {
            candle_core::bail!("kv_store: a strided cache")
        };
        let CpuStorage::F32(cache) = cache else {
            candle_core::bail!("kv_store: the cache is not f32")
        };
        let cache = &mut cache[start..end];
        for (&slot, token) in self.slots.iter().zip(new.chunks_exact(heads * head_dim)) {
            let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
            for (head, row) in token.chunks_exact(head_dim).enumerate() {
                let at = ((block * heads + head) * block_size + offset) * head_dim;
                cache[at..at + head_dim].copy_from_slice(row);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{max_difference, random};

    #[test]
    fn rows_land_in_their_slots_and_nowhere_else() -> Result<()> {
        for (num_blocks, block_size, heads, head_dim) in
            [(7, 4, 2, 6), (3, 1, 1, 1), (5, 17, 3, 24)]
        {
            let fast = KvCache::new(
                num_blocks,
                block_size,
                heads,
                head_dim,
                DType::F32,
                &Device::Cpu,
            )?;
            let slow = KvCache::new(
                num_blocks,
                block_size,
                heads,
                head_dim,
                DType::F32,
                &Device::Cpu,
            )?;
            let end = (num_blocks * block_size) as u32;
            let slots: Vec<u32> = (0..end).rev().step_by(2).collect();
            let k = random(&[slots.len(), heads, head_dim], 1);
            let v = random(&[slots.len(), heads, head_dim], 2);
            kv_store(&fast, &k, &v, &slots)?;
            plain(&slow, &k, &v, &slots)?;
            assert_eq!(max_difference(fast.k(), slow.k())?, 0.0);
            assert_eq!(max_difference(fast.v(), slow.v())?, 0.0);
            let rows =
                fast.v()
                    .transpose(1, 2)?
                    .reshape((num_blocks * block_size, heads, head_dim))?;
            for (i, &slot) in slots.iter().enumerate() {
                let want = v.get(i)?;
                assert_eq!(max_difference(&rows.get(slot as usize)?, &want)?, 0.0);
            }
            let stored: f32 = fast.v().abs()?.sum_all()?.to_scalar()?;
            let given: f32 = v.abs()?.sum_all()?.to_scalar()?;
            assert!((stored - given).abs() < 1e-3 * given, "{stored} {given}");
        }
        Ok(())
    }

    #[test]
    fn a_cache_of_another_dtype_takes_the_plain_way() -> Result<()> {
        let cache = KvCache::new(2, 4, 2, 8, DType::BF16, &Device::Cpu)?;
        let k = random(&[1, 2, 8], 1);
        kv_store(&cache, &k, &k, &[5])?;
        let row = cache.k().get(1)?.narrow(1, 1, 1)?.reshape((1, 2, 8))?;
        let difference = max_difference(&row.to_dtype(DType::F32)?, &k)?;
        assert!(difference > 0.0 && difference < 0.004, "{difference}");
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        assert!(KvCache::new(0, 4, 2, 8, DType::F32, &Device::Cpu).is_err());
        let cache = KvCache::new(2, 4, 2, 8, DType::F32, &Device::Cpu)?;
        let k = random(&[1, 2, 8], 1);
        for store in [kv_store, plain] {
            assert!(store(&cache, &k, &k, &[8]).is_err());
            assert!(store(&cache, &k, &k, &[1, 2]).is_err());
            assert!(store(&cache, &k, &random(&[1, 2, 9], 1), &[1]).is_err());
            assert!(store(&cache, &random(&[0, 2, 8], 1), &random(&[0, 2, 8], 1), &[]).is_ok());
        }
        Ok(())
    }
}

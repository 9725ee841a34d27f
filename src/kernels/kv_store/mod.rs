//! The paged KV cache of one layer, and the op that writes new rows into it.
//!
//! A cache is a pool of blocks of `block_size` tokens. A *slot* is the position of a token: `block * block_size + offset`. Slots are
//! assigned by the allocator of blocks (see [`AttentionMetadata`](crate::attention::AttentionMetadata)).
//!
//! # Layout
//! K and V are `[num_blocks, kv_heads, block_size, head_dim]`: attention reads one head at a time, and a head's rows of a
//! block are contiguous. The block is the first axis, so that copying or moving a block is a copy along that axis.
//!
//! # Precision
//! A cache of f32 stores rows unchanged; a cache of bf16 rounds them once, when they are written, to nearest, ties
//! to even.

mod copy;

pub use copy::copy_blocks;

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use rayon::prelude::*;

use crate::{Backward, fused, input};

/// K and V of one layer. Clones share the storage.
#[derive(Clone, Debug)]
pub struct KvCache {
    k: Tensor,
    v: Tensor,
}

impl KvCache {
    /// Creates a cache of zeros, all of it resident in memory.
    ///
    /// # Errors
    /// Errors if a size is zero, or if memory does not suffice and the system reports it. A system that overcommits kills the
    /// program here, rather than when the cache fills.
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
            candle_core::bail!(
                "kv cache: the shape {shape:?} has a dimension of 0 or too many slots"
            );
        }
        Ok(Self {
            k: zeros(shape, dtype, device)?,
            v: zeros(shape, dtype, device)?,
        })
    }

    /// Returns the keys, `[num_blocks, kv_heads, block_size, head_dim]`.
    pub fn k(&self) -> &Tensor {
        &self.k
    }

    /// Returns the values, `[num_blocks, kv_heads, block_size, head_dim]`.
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

    /// Returns the dtype of keys and values.
    pub fn dtype(&self) -> DType {
        self.k.dtype()
    }

    /// Returns whether the fused ops can read and write it: f32 and bf16 on the CPU. No gradient goes through a cache.
    pub(super) fn fused(&self) -> bool {
        self.k.device().is_cpu() && matches!(self.dtype(), DType::F32 | DType::BF16)
    }

    /// Returns a separate cache with the same numbers in another dtype.
    #[cfg(test)]
    pub(super) fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let convert = |t: &Tensor| t.to_dtype(dtype)?.force_contiguous();
        Ok(Self {
            k: convert(&self.k)?,
            v: convert(&self.v)?,
        })
    }

    /// Returns the bytes of K and V together.
    pub fn bytes(&self) -> usize {
        2 * self.k.elem_count() * self.k.dtype().size_in_bytes()
    }

    fn check(&self, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
        let expected = [slots.len(), self.kv_heads(), self.head_dim()];
        if k.dims() != expected || v.dims() != expected {
            candle_core::bail!(
                "kv_store: k {:?} and v {:?}, but {} slots of this cache need {expected:?}",
                k.dims(),
                v.dims(),
                slots.len()
            );
        }
        let end = self.num_blocks() * self.block_size();
        if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= end) {
            candle_core::bail!("kv_store: slot {slot} is outside the cache of {end} slots");
        }
        Ok(())
    }
}

fn zeros(shape: [usize; 4], dtype: DType, device: &Device) -> Result<Tensor> {
    let count = shape.iter().product();
    match dtype {
        DType::F32 if device.is_cpu() => Tensor::from_vec(resident::<f32>(count)?, &shape, device),
        DType::BF16 if device.is_cpu() => {
            let zeros = resident::<u16>(count)?.reinterpret_into::<bf16>();
            Tensor::from_vec(zeros, &shape, device)
        }
        _ => Tensor::zeros(&shape, dtype, device),
    }
}

/// Returns zeros that have been written. Zeroed allocations are pages that the system only promises, and allocates when they are first
/// touched.
fn resident<T: Copy + Default + Send>(count: usize) -> Result<Vec<T>> {
    /// A part large enough to be worth a task.
    const PART: usize = 1 << 18;
    let mut zeros = Vec::new();
    if zeros.try_reserve_exact(count).is_err() {
        let bytes = count.saturating_mul(size_of::<T>());
        candle_core::bail!("kv cache: cannot allocate {bytes} bytes of memory");
    }
    let room: &mut [MaybeUninit<T>] = &mut zeros.spare_capacity_mut()[..count];
    prefer_huge_pages(room);
    room.par_chunks_mut(PART).for_each(|part| {
        for value in part {
            value.write(T::default());
        }
    });
    // SAFETY: all values have just been written.
    unsafe { zeros.set_len(count) };
    Ok(zeros)
}

/// Asks the system for huge pages: the first touch of four gigabytes takes a fraction of the time, and reads miss fewer translations.
#[cfg(target_os = "linux")]
fn prefer_huge_pages<T>(room: &mut [MaybeUninit<T>]) {
    const PAGE: usize = 2 << 20;
    let (start, end) = (
        room.as_ptr_range().start as usize,
        room.as_ptr_range().end as usize,
    );
    let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
    if start < end {
        // SAFETY: whole pages within `room`; the advice changes no contents. Where it is refused, small pages serve as well.
        let _ = unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages<T>(_room: &mut [MaybeUninit<T>]) {}

/// Writes row `i` of `k` and `v` (`[tokens, kv_heads, head_dim]`) to slot `slots[i]` of the cache, in place.
///
/// # Errors
/// Errors if shapes do not match or a slot is outside the cache. If several rows have the same slot, one of them is stored.
pub fn kv_store(cache: &KvCache, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
    if !(cache.fused() && fused(&[k, v], Backward::None)) {
        return plain(cache, k, v, slots);
    }
    cache.check(k, v, slots)?;
    let op = StoreRows { slots };
    cache.k.inplace_op2(&k.contiguous()?, &op)?;
    cache.v.inplace_op2(&v.contiguous()?, &op)
}

/// Does the same with candle ops, on any device and into a cache of any float dtype.
///
/// # Errors
/// Same as [`kv_store`].
pub fn plain(cache: &KvCache, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
    cache.check(k, v, slots)?;
    if slots.is_empty() {
        return Ok(());
    }
    let (heads, block_size, head_dim) = (cache.kv_heads(), cache.block_size(), cache.head_dim());
    // The index of (slot, head) among all rows of head_dim.
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
        let shape = cache_layout.shape().dims4()?;
        let new = input(new, new_layout)?;
        let Some((start, end)) = cache_layout.contiguous_offsets() else {
            candle_core::bail!("kv_store: the cache is not contiguous")
        };
        match cache {
            CpuStorage::F32(cache) => self.store(&mut cache[start..end], shape, new, |row, to| {
                to.copy_from_slice(row);
            }),
            CpuStorage::BF16(cache) => self.store(&mut cache[start..end], shape, new, |row, to| {
                to.convert_from_f32_slice(row);
            }),
            _ => candle_core::bail!("kv_store: the cache is neither f32 nor bf16"),
        }
        Ok(())
    }
}

impl StoreRows<'_> {
    /// Stores rows `new` in their slots of a cache of this shape; `write` converts one value.
    fn store<T>(
        &self,
        cache: &mut [T],
        (_, heads, block_size, head_dim): (usize, usize, usize, usize),
        new: &[f32],
        write: impl Fn(&[f32], &mut [T]),
    ) {
        for (&slot, token) in self.slots.iter().zip(new.chunks_exact(heads * head_dim)) {
            let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
            for (head, row) in token.chunks_exact(head_dim).enumerate() {
                let at = ((block * heads + head) * block_size + offset) * head_dim;
                write(row, &mut cache[at..at + head_dim]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{max_difference, random};
    use crate::with_slices;

    #[test]
    fn rows_land_in_their_slots_and_nowhere_else() -> Result<()> {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (num_blocks, block_size, heads, head_dim) in
                [(7, 4, 2, 6), (3, 1, 1, 1), (5, 17, 3, 24)]
            {
                let cache =
                    || KvCache::new(num_blocks, block_size, heads, head_dim, dtype, &Device::Cpu);
                let (fast, slow) = (cache()?, cache()?);
                let end = (num_blocks * block_size) as u32;
                let slots: Vec<u32> = (0..end).rev().step_by(2).collect();
                let k = random(&[slots.len(), heads, head_dim], 1);
                let v = random(&[slots.len(), heads, head_dim], 2);
                kv_store(&fast, &k, &v, &slots)?;
                plain(&slow, &k, &v, &slots)?;
                let (fast, slow) = (fast.to_dtype(DType::F32)?, slow.to_dtype(DType::F32)?);
                assert_eq!(max_difference(fast.k(), slow.k())?, 0.0);
                assert_eq!(max_difference(fast.v(), slow.v())?, 0.0);
                let rows = fast.v().transpose(1, 2)?.reshape((
                    num_blocks * block_size,
                    heads,
                    head_dim,
                ))?;
                let v = v.to_dtype(dtype)?.to_dtype(DType::F32)?;
                for (i, &slot) in slots.iter().enumerate() {
                    let want = v.get(i)?;
                    assert_eq!(max_difference(&rows.get(slot as usize)?, &want)?, 0.0);
                }
                let stored: f32 = fast.v().abs()?.sum_all()?.to_scalar()?;
                let given: f32 = v.abs()?.sum_all()?.to_scalar()?;
                assert!((stored - given).abs() < 1e-3 * given, "{stored} {given}");
            }
        }
        Ok(())
    }

    /// Returns the number of resident pages of a slice, and of all its pages.
    #[cfg(target_os = "linux")]
    fn pages<T>(values: &[T]) -> (usize, usize) {
        // SAFETY: a plain call.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let first = values.as_ptr() as usize / page * page;
        let bytes = (values.as_ptr_range().end as usize).next_multiple_of(page) - first;
        let mut there = vec![0u8; bytes / page];
        // SAFETY: the pages are mapped, and there is one byte for each.
        let asked = unsafe { libc::mincore(first as *mut libc::c_void, bytes, there.as_mut_ptr()) };
        assert_eq!(asked, 0);
        let resident = there.iter().filter(|&&flags| flags & 1 == 1).count();
        (resident, there.len())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn all_of_it_is_in_memory_from_the_start() -> Result<()> {
        // More than any allocator keeps of freed memory, so untouched pages are not resident.
        const BYTES: usize = 40 << 20;
        let (there, all) = pages(&vec![0u8; BYTES]);
        if there > all / 2 {
            eprintln!(
                "skipped: the system says of {there} pages of {all} that they are there, and none was touched"
            );
            return Ok(());
        }
        for (dtype, size) in [(DType::F32, 4), (DType::BF16, 2)] {
            let cache = KvCache::new(BYTES / (16 * 64 * size), 16, 1, 64, dtype, &Device::Cpu)?;
            let (there, all) = match dtype {
                DType::F32 => with_slices([cache.v()], |[v]: [&[f32]; 1]| pages(v))?,
                _ => with_slices([cache.v()], |[v]: [&[bf16]; 1]| pages(v))?,
            };
            assert_eq!(there, all, "{dtype:?}");
            assert!(all * 4096 >= BYTES);
        }
        Ok(())
    }

    #[test]
    fn more_than_there_is_is_an_error() {
        // Less than the address space, more than any machine's memory.
        let blocks = 1 << 20;
        assert!(KvCache::new(blocks, 1, 1 << 20, 1 << 20, DType::F32, &Device::Cpu).is_err());
    }

    #[test]
    fn bf16_rounds_to_nearest_even() -> Result<()> {
        let cache = KvCache::new(1, 1, 1, 6, DType::BF16, &Device::Cpu)?;
        // Values halfway to an even and to an odd neighbour, of both signs; just past halfway; with a carry into the exponent.
        let given = [
            1.0f32 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
            -1.0 - 1.0 / 256.0,
            -1.0 - 3.0 / 256.0,
            1.003_906_4,
            1.998_046_9,
        ];
        let row = Tensor::from_slice(&given, (1, 1, 6), &Device::Cpu)?;
        kv_store(&cache, &row, &row, &[0])?;
        let stored = cache.k().to_dtype(DType::F32)?.flatten_all()?;
        let want = [1.0, 1.015_625, -1.0, -1.015_625, 1.007_812_5, 2.0];
        assert_eq!(stored.to_vec1::<f32>()?, want);
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

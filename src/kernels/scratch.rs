//! Cache-line-aligned memory: the storage of packed weights, and per-thread buffers that kernels reuse from call to call.

use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;

/// Sixteen f32: one cache line, one AVX-512 register, one row of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [f32; 16]);

/// The same memory as sixteen pairs of bf16, or as sixteen values of any 4-byte type.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct PairLine(pub [u32; 16]);

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on a buffer of at least `len` f32, 64-byte aligned, with arbitrary contents.
///
/// Each thread has one such buffer: `f` must neither call this function again nor wait on the thread pool (a waiting
/// thread may run another task of the same kernel).
pub fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|lines| {
        let needed = len.div_ceil(16);
        if lines.len() < needed {
            lines.resize(needed, Line([0.0; 16]));
        }
        f(floats(&mut lines[..needed]))
    })
}

thread_local! {
    static SHARED: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Works as [`with_scratch`] for data that tasks of a parallel loop share: the buffer is another one, and `f` may wait
/// on the thread pool.
/// A nested call does not find the buffer and allocates one.
pub fn with_shared_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut lines = SHARED.take();
    if lines.len() < len.div_ceil(16) {
        lines.resize(len.div_ceil(16), Line([0.0; 16]));
    }
    let result = f(floats(&mut lines));
    SHARED.set(lines);
    result
}

fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: `Line` is sixteen f32 without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), lines.len() * 16) }
}

/// A pointer that tasks of one parallel loop share while each writes to its own positions.
#[derive(Clone, Copy)]
pub struct SharedOut(*mut f32);

// SAFETY: the creator promises, at `new`, that tasks write to disjoint positions.
unsafe impl Send for SharedOut {}
// SAFETY: as above.
unsafe impl Sync for SharedOut {}

impl SharedOut {
    /// # Safety
    /// Tasks that share the value must write to disjoint positions, within the slice and its lifetime.
    pub unsafe fn new(out: &mut [f32]) -> Self {
        Self(out.as_mut_ptr())
    }

    /// Takes uninitialised memory, which must be written before it is read.
    ///
    /// # Safety
    /// Same as [`SharedOut::new`].
    pub unsafe fn new_uninit(out: &mut [MaybeUninit<f32>]) -> Self {
        Self(out.as_mut_ptr().cast())
    }

    /// Returns the pointer. A method, so that closures capture the whole (shareable) value and not the bare pointer in it.
    pub fn get(self) -> *mut f32 {
        self.0
    }
}

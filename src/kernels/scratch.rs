//! Cache-line-aligned memory: what packed weights live in, and per-thread buffers that kernels reuse from call to call.

use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;

/// Sixteen f32, one cache line, one AVX-512 register, one row of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [f32; 16]);

/// The same place seen as sixteen pairs of bf16, or as sixteen rows of anything 4 bytes wide.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct PairLine(pub [u32; 16]);

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on a buffer of at least `len` f32, 64-byte aligned, with whatever it held before.
///
/// The buffer is the thread's own and there is one: `f` must neither call this again nor wait on the thread pool (a
/// thread that waits may be given another task of the same kernel).
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

/// [`with_scratch`] for what tasks of a parallel loop share: another buffer, and `f` may wait on the thread pool. The
/// buffer is with `f` meanwhile: a call within finds none and allocates.
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

/// A pointer that tasks of one parallel loop share while each writes its own places.
#[derive(Clone, Copy)]
pub struct SharedOut(*mut f32);

// SAFETY: the holder promises, at `new`, that tasks write disjoint places.
unsafe impl Send for SharedOut {}
// SAFETY: as above.
unsafe impl Sync for SharedOut {}

impl SharedOut {
    /// # Safety
    /// Tasks that share the value write disjoint places, within the slice and its lifetime.
    pub unsafe fn new(out: &mut [f32]) -> Self {
        Self(out.as_mut_ptr())
    }

    /// For a result that is yet to be written: it must be before it is read.
    ///
    /// # Safety
    /// As for [`SharedOut::new`].
    pub unsafe fn new_uninit(out: &mut [MaybeUninit<f32>]) -> Self {
        Self(out.as_mut_ptr().cast())
    }

    /// A method, so that closures capture the whole (shareable) value and not the bare pointer in it.
    pub fn get(self) -> *mut f32 {
        self.0
    }
}

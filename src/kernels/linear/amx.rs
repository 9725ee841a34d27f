//! bf16 products on AMX tiles: `tdpbf16ps` multiplies a tile of 16 rows of x by one of 16 columns of the weight, 32 deep.
//!
//! The compiler's intrinsics are unstable, so the instructions are inline assembly. Two row tiles are multiplied with two panels at a
//! time: four accumulators and four operands use all eight tile registers. A panel in bf16 pairs ([`panels`](super::panels)) is
//! a column of tiles in its memory layout: 16 lines each.
//!
//! The driver is generic over [`Engine`], so that its logic can run on any machine with an emulation of the instruction.

use super::rounded::Rows;
use super::widen::Block;
use crate::micro::PANEL;
use crate::scratch::PairLine;

/// The number of rows of a tile of x, and of columns of a tile of the weight.
pub const TILE: usize = 16;

/// The depth of a tile.
const DEPTH: usize = 32;

/// The f32 of the four tiles of the result.
pub const RESULT: usize = 4 * TILE * TILE;

/// The start addresses of four tiles' operands.
#[derive(Clone, Copy)]
pub struct TileOperands {
    /// Two tiles of rows; the second may equal the first.
    x: [*const u16; 2],
    /// The distance between rows, in bytes.
    x_stride: usize,
    /// Two panels; the second may equal the first.
    w: [*const u32; 2],
    /// The number of steps of [`DEPTH`], at least one.
    steps: usize,
}

/// An implementation of the tile product.
pub trait Engine {
    /// Configures the engine. It is created at the start of a block and dropped at its end.
    ///
    /// # Safety
    /// The instructions exist and are permitted.
    unsafe fn new() -> Self;

    /// Stores the product of row tile i and panel j at `c + (2 i + j) * TILE * TILE`, for i below `row_tiles` (1 or 2).
    ///
    /// # Safety
    /// The operands are readable, and `c` has room for [`RESULT`].
    unsafe fn multiply(&self, row_tiles: usize, o: TileOperands, c: *mut f32);
}

/// Computes the block, tile by tile.
///
/// # Safety
/// Same as [`dot::run`](super::dot::run); `result` has room for [`RESULT`].
pub unsafe fn product<E: Engine>(
    block: &Block,
    rows: &Rows,
    lines: &[PairLine],
    result: &mut [f32],
) {
    let n = block.n;
    let steps = rows.depth / DEPTH;
    let panel_lines = rows.depth / 2;
    // SAFETY: the caller's promise.
    let engine = unsafe { E::new() };
    for p in (block.panels.0..block.panels.1).step_by(2) {
        let second = (p + 1).min(block.panels.1 - 1);
        let w = [p, second].map(|p| lines[p * panel_lines..].as_ptr().cast::<u32>());
        for from in (0..rows.rows).step_by(2 * TILE) {
            let row_tiles = (rows.rows - from).div_ceil(TILE).min(2);
            let x = [from, from + (row_tiles - 1) * TILE]
                .map(|row| rows.values[row * rows.stride..].as_ptr());
            let operands = TileOperands {
                x,
                x_stride: rows.stride * 2,
                w,
                steps,
            };
            // SAFETY: rows are padded to whole tiles and depth to whole steps.
            unsafe { engine.multiply(row_tiles, operands, result.as_mut_ptr()) };
            for r in from..rows.rows.min(from + 2 * TILE) {
                for panel in p..=second {
                    let tile = (r - from) / TILE * 2 + (panel - p);
                    let at = tile * TILE * TILE + (r - from) % TILE * TILE;
                    let columns = PANEL.min(n - panel * PANEL);
                    // SAFETY: this block's rows and columns.
                    unsafe {
                        let out = block.out.add(r * n + panel * PANEL);
                        out.copy_from_nonoverlapping(result[at..at + columns].as_ptr(), columns);
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use real::Tiles;

#[cfg(target_arch = "x86_64")]
mod real {
    use super::{Engine, TILE, TileOperands};
    use std::arch::asm;

    /// The processor's tile registers, configured while the value exists.
    pub struct Tiles(());

    /// The operand of `ldtilecfg`: palette 1, every tile 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes_per_row: [u16; 16],
        rows: [u8; 16],
    }

    static CONFIG: Config = Config {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    impl Engine for Tiles {
        unsafe fn new() -> Self {
            // SAFETY: the caller promises AMX; the operand is the 64 bytes the instruction reads.
            unsafe {
                asm!("ldtilecfg [{0}]", in(reg) &raw const CONFIG, options(nostack, preserves_flags));
            }
            Self(())
        }

        unsafe fn multiply(&self, row_tiles: usize, o: TileOperands, c: *mut f32) {
            const ROW: usize = 64; // bytes of a row of a weight tile and of a result tile
            const RESULT_TILE: usize = TILE * ROW;
            // SAFETY: `new` configured the tiles; the caller promises the operands.
            unsafe {
                if row_tiles == 2 {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "2:",
                        "tileloadd tmm4, [{x0} + {xs}*1]",
                        "tileloadd tmm6, [{w0} + {ws}*1]",
                        "tileloadd tmm7, [{w1} + {ws}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{x1} + {xs}*1]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        "add {x0}, 64",
                        "add {x1}, 64",
                        "add {w0}, 1024",
                        "add {w1}, 1024",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{c} + {ws}*1], tmm0",
                        "tilestored [{c} + {ws}*1 + {tile}], tmm1",
                        "tilestored [{c} + {ws}*1 + 2*{tile}], tmm2",
                        "tilestored [{c} + {ws}*1 + 3*{tile}], tmm3",
                        x0 = inout(reg) o.x[0] => _,
                        x1 = inout(reg) o.x[1] => _,
                        xs = in(reg) o.x_stride,
                        w0 = inout(reg) o.w[0] => _,
                        w1 = inout(reg) o.w[1] => _,
                        ws = in(reg) ROW,
                        steps = inout(reg) o.steps => _,
                        c = in(reg) c,
                        tile = const RESULT_TILE,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                } else {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "2:",
                        "tileloadd tmm4, [{x0} + {xs}*1]",
                        "tileloadd tmm6, [{w0} + {ws}*1]",
                        "tileloadd tmm7, [{w1} + {ws}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "add {x0}, 64",
                        "add {w0}, 1024",
                        "add {w1}, 1024",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{c} + {ws}*1], tmm0",
                        "tilestored [{c} + {ws}*1 + {tile}], tmm1",
                        x0 = inout(reg) o.x[0] => _,
                        xs = in(reg) o.x_stride,
                        w0 = inout(reg) o.w[0] => _,
                        w1 = inout(reg) o.w[1] => _,
                        ws = in(reg) ROW,
                        steps = inout(reg) o.steps => _,
                        c = in(reg) c,
                        tile = const RESULT_TILE,
                        out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            }
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: the value exists, so the processor has AMX.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::dot::tests::{check, halves};

    /// An emulation of `tdpbf16ps`, with the operands that `tileloadd` would load.
    struct Emulated;

    impl Engine for Emulated {
        unsafe fn new() -> Self {
            Self
        }

        unsafe fn multiply(&self, row_tiles: usize, o: TileOperands, c: *mut f32) {
            for i in 0..row_tiles {
                for j in 0..2 {
                    let mut tile = [[0f32; TILE]; TILE];
                    for step in 0..o.steps {
                        for (m, sums) in tile.iter_mut().enumerate() {
                            for pair in 0..DEPTH / 2 {
                                // SAFETY: the caller promises the operands.
                                let x = unsafe {
                                    o.x[i]
                                        .cast::<u8>()
                                        .add(m * o.x_stride)
                                        .cast::<u32>()
                                        .add(step * DEPTH / 2 + pair)
                                        .read_unaligned()
                                };
                                let (x0, x1) = halves(x);
                                for (n, sum) in sums.iter_mut().enumerate() {
                                    // SAFETY: as above.
                                    let w = unsafe {
                                        *o.w[j].add((step * DEPTH / 2 + pair) * TILE + n)
                                    };
                                    let (w0, w1) = halves(w);
                                    *sum = x0.mul_add(w0, *sum);
                                    *sum = x1.mul_add(w1, *sum);
                                }
                            }
                        }
                    }
                    // SAFETY: room for four tiles.
                    unsafe {
                        c.add((2 * i + j) * TILE * TILE)
                            .cast::<[[f32; TILE]; TILE]>()
                            .write_unaligned(tile);
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_meet_the_right_rows_and_panels() {
        check(|block, rows, lines, result| {
            // SAFETY: the engine is plain Rust; the block's output is complete.
            unsafe { product::<Emulated>(block, rows, lines, result) }
        });
    }
}

//! Blocks of a GGUF file as groups of integers, without rounding them again.
//!
//! The layouts are those of llama.cpp's `ggml-quants`. Scales of `Q4_K` and `Q5_K` are products of a f16 and a small integer; they are
//! rounded to f16, by at most one part in 2048. `Q6_K` has a scale for each 16 weights, which groups of 32 do not hold.

use half::f16;
use kernels::linear::{Bits, GROUP, Grid, Group};

use super::BlockFormat;

impl BlockFormat {
    /// Returns the grid whose groups hold the numbers of the blocks; none if there is none.
    pub(crate) fn grid(&self) -> Option<Grid> {
        let grid = |bits, offsets| Some(Grid { bits, offsets });
        match self.name {
            "Q4_0" => grid(Bits::Four, false),
            "Q4_1" | "Q4_K" => grid(Bits::Four, true),
            "Q5_0" | "Q8_0" => grid(Bits::Eight, false),
            "Q5_1" | "Q5_K" => grid(Bits::Eight, true),
            _ => None,
        }
    }

    /// Reads the blocks of a row; a format without a [grid](Self::grid) leaves the groups as they are.
    pub(crate) fn read_groups(&self, blocks: &[u8], to: &mut [Group]) {
        let groups = to.chunks_mut(self.values / GROUP);
        for (block, to) in blocks.chunks_exact(self.bytes).zip(groups) {
            match self.name {
                "Q4_0" => to[0] = simple(block, 1, Five::None, 0),
                "Q4_1" => to[0] = simple(block, 2, Five::None, 0),
                // Integers of five bits from -16, and of eight from -128.
                "Q5_0" => to[0] = simple(block, 1, Five::Fifth, 128 - 16),
                "Q5_1" => to[0] = simple(block, 2, Five::Fifth, 0),
                "Q8_0" => {
                    to[0] = Group {
                        scale: half_at(block, 0),
                        offset: f16::ZERO,
                        values: std::array::from_fn(|l| block[2 + l].wrapping_add(128)),
                    };
                }
                "Q4_K" => of_k(block, 16, to, |_, _| 0),
                "Q5_K" => of_k(block, 48, to, |sub, l| (block[16 + l] >> sub & 1) << 4),
                _ => {}
            }
        }
    }
}

/// Whether integers have a fifth bit, in four bytes before the others.
#[derive(Clone, Copy, PartialEq)]
enum Five {
    None,
    Fifth,
}

fn half_at(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// Reads a block of one group: `head` numbers of 16 bits (scale and offset), then the integers, the first half of them in the low bits.
fn simple(block: &[u8], head: usize, five: Five, add: u8) -> Group {
    let (numbers, rest) = block.split_at(2 * head);
    let (fifth, halves) = match five {
        Five::None => ([0; 4], rest),
        Five::Fifth => ([rest[0], rest[1], rest[2], rest[3]], &rest[4..]),
    };
    let fifth = u32::from_le_bytes(fifth);
    Group {
        scale: half_at(numbers, 0),
        offset: if head == 2 {
            half_at(numbers, 2)
        } else {
            f16::ZERO
        },
        values: std::array::from_fn(|l| {
            let low = halves[l % 16] >> (l / 16 * 4) & 15;
            let high = (fifth >> l & 1) as u8;
            (low | high << 4) + add
        }),
    }
}

/// Reads a block of eight groups: two numbers of 16 bits, a scale and a minimum of six bits for each group, and from byte `start` on the low
/// four bits of the integers. `high` returns the others of integer `l` of a group.
fn of_k(block: &[u8], start: usize, to: &mut [Group], high: impl Fn(usize, usize) -> u8) {
    let (scale, least) = (half_at(block, 0).to_f32(), half_at(block, 2).to_f32());
    let six = &block[4..16];
    for (sub, to) in to.iter_mut().enumerate() {
        let (of_scale, of_least) = match sub {
            0..4 => (six[sub] & 63, six[sub + 4] & 63),
            _ => (
                six[sub + 4] & 15 | six[sub - 4] >> 6 << 4,
                six[sub + 4] >> 4 | six[sub] >> 6 << 4,
            ),
        };
        let bytes = &block[start + sub / 2 * 32..];
        *to = Group {
            scale: f16::from_f32(scale * f32::from(of_scale)),
            offset: f16::from_f32(-least * f32::from(of_least)),
            values: std::array::from_fn(|l| (bytes[l] >> (sub % 2 * 4) & 15) | high(sub, l)),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::CpuStorage;
    use kernels::linear::PackedLinear;

    use super::*;

    /// The numbers of the formats with a grid, in files.
    const FORMATS: [u32; 7] = [2, 3, 6, 7, 8, 12, 13];

    #[test]
    fn groups_have_the_numbers_that_candle_reads() {
        for id in FORMATS {
            let format = BlockFormat::of(id).unwrap();
            let grid = format.grid().unwrap();
            let (n, k) = (5, 512);
            let row = k / format.values * format.bytes;
            let mut state = id;
            let mut bytes: Vec<u8> = (0..n * row)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            // Scales of ordinary size.
            for block in bytes.chunks_mut(format.bytes) {
                for at in [0, 2] {
                    let number = f16::from_f32(0.01 + f32::from(block[at]) / 1000.0);
                    if at == 0 || (grid.offsets && at == 2) {
                        block[at..at + 2].copy_from_slice(&number.to_le_bytes());
                    }
                }
            }
            let read = format.dtype.from_data(Cow::Borrowed(&bytes));
            let CpuStorage::F32(want) = read.dequantize(n * k).unwrap() else {
                panic!("candle dequantises to f32");
            };
            let packed = PackedLinear::of_groups((n, k), grid, None, |at, to| {
                format.read_groups(&bytes[at * row..(at + 1) * row], to);
                Ok(())
            });
            let rows: Vec<u32> = (0..n as u32).collect();
            let own = packed.unwrap().rows(&rows).unwrap();
            let own: Vec<f32> = own.flatten_all().unwrap().to_vec1().unwrap();
            let exact = !format.name.ends_with("_K");
            for (at, (own, want)) in own.iter().zip(&want).enumerate() {
                let most = if exact { 0.0 } else { 31.0 * 17.0 / 2048.0 };
                assert!(
                    (own - want).abs() <= most,
                    "{} {at}: {own} for {want}",
                    format.name
                );
            }
        }
    }

    #[test]
    fn only_formats_of_other_groups_have_no_grid() {
        for id in 0..64 {
            if let Ok(format) = BlockFormat::of(id) {
                let without = ["F32", "F16", "BF16", "Q6_K"].contains(&format.name);
                assert_eq!(format.grid().is_none(), without, "{}", format.name);
            }
        }
    }
}

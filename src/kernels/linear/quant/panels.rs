//! The memory layout of quantised weights.
//!
//! A weight `[n, k]` is cut into panels of [`PANEL`] outputs, and a panel into groups of depth. A line of 64 bytes holds four steps of depth
//! of all outputs of a panel, side by side for each output, as `vpdpbusd` and AMX tiles want them. With eight bits a group is eight
//! lines. With four it is four: the low halves of line `j` are steps `8 j..8 j + 4` of the group, the high halves the next four. Scales and
//! offsets are `[panel][group][output]`. Missing outputs and missing depth are zeros.

use candle_core::Result;
use half::f16;
use rayon::prelude::*;

use super::grid::{Bits, GROUP, Grid, Group};
use crate::micro::PANEL;

/// Four steps of depth for each output of a panel; with four bits, eight steps.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct ByteLine(pub [u8; 4 * PANEL]);

/// A quantised weight.
#[derive(Clone)]
pub struct Panels {
    pub grid: Grid,
    /// The number of groups of a row.
    pub groups: usize,
    pub lines: Vec<ByteLine>,
    pub scales: Vec<[f16; PANEL]>,
    /// Empty without offsets.
    pub offsets: Vec<[f16; PANEL]>,
}

impl Bits {
    /// Returns the lines of a group.
    pub const fn lines(self) -> usize {
        match self {
            Self::Four => GROUP / 8,
            Self::Eight => GROUP / 4,
        }
    }
}

impl Panels {
    /// Packs a weight `[n, k]`, whose row `i` is what `row(i, groups)` writes, `k / GROUP` groups rounded up.
    ///
    /// # Errors
    /// Errors if `row` does.
    pub fn pack(
        (n, k): (usize, usize),
        grid: Grid,
        row: impl Fn(usize, &mut [Group]) -> Result<()> + Sync,
    ) -> Result<Self> {
        let (groups, panels, lines) = (k.div_ceil(GROUP), n.div_ceil(PANEL), grid.bits.lines());
        let units = panels * groups;
        let mut packed = Self {
            grid,
            groups,
            lines: vec![ByteLine([0; 4 * PANEL]); units * lines],
            scales: vec![[f16::ZERO; PANEL]; units],
            offsets: vec![[f16::ZERO; PANEL]; if grid.offsets { units } else { 0 }],
        };
        if units == 0 {
            return Ok(packed);
        }
        let offsets: Vec<&mut [[f16; PANEL]]> = match grid.offsets {
            true => packed.offsets.chunks_mut(groups).collect(),
            false => (0..panels).map(|_| Default::default()).collect(),
        };
        packed
            .lines
            .par_chunks_mut(groups * lines)
            .zip(packed.scales.par_chunks_mut(groups))
            .zip(offsets)
            .enumerate()
            .try_for_each(|(p, ((lines, scales), offsets))| {
                let mut filled = vec![Group::zeros(); groups];
                for (column, at) in (p * PANEL..n.min((p + 1) * PANEL)).enumerate() {
                    row(at, &mut filled)?;
                    for (g, group) in filled.iter().enumerate() {
                        scales[g][column] = group.scale;
                        if let Some(offsets) = offsets.get_mut(g) {
                            offsets[column] = group.offset;
                        }
                        let size = grid.bits.lines();
                        put(
                            &mut lines[g * size..(g + 1) * size],
                            column,
                            group,
                            grid.bits,
                        );
                    }
                }
                Ok::<(), candle_core::Error>(())
            })?;
        Ok(packed)
    }

    /// Returns the bytes in memory.
    pub fn bytes(&self) -> usize {
        let lines = size_of_val(self.lines.as_slice());
        lines + size_of_val(self.scales.as_slice()) + size_of_val(self.offsets.as_slice())
    }

    /// Writes row `row` of the weight to `to`, `[k]`.
    pub fn unpack(&self, row: usize, to: &mut [f32]) {
        let (panel, column) = (row / PANEL, row % PANEL);
        for (g, to) in to.chunks_mut(GROUP).enumerate() {
            let values = self
                .grid
                .values(&self.group(panel * self.groups + g, column));
            to.copy_from_slice(&values[..to.len()]);
        }
    }

    /// Returns the group of an output; `unit` counts the groups of all panels.
    fn group(&self, unit: usize, column: usize) -> Group {
        let size = self.grid.bits.lines();
        let lines = &self.lines[unit * size..(unit + 1) * size];
        let mut values = [0; GROUP];
        let steps = values.chunks_exact_mut(GROUP / size);
        for (line, steps) in lines.iter().zip(steps) {
            let four = &line.0[4 * column..4 * column + 4];
            match self.grid.bits {
                Bits::Eight => steps.copy_from_slice(four),
                Bits::Four => {
                    let (low, high) = steps.split_at_mut(4);
                    for (at, both) in four.iter().enumerate() {
                        (low[at], high[at]) = (both & 15, both >> 4);
                    }
                }
            }
        }
        Group {
            scale: self.scales[unit][column],
            offset: self.offsets.get(unit).map_or(f16::ZERO, |all| all[column]),
            values,
        }
    }
}

/// Writes a group's integers to the lines of its panel.
fn put(lines: &mut [ByteLine], column: usize, group: &Group, bits: Bits) {
    for (l, value) in group.values.iter().enumerate() {
        match bits {
            Bits::Eight => lines[l / 4].0[4 * column + l % 4] = *value,
            Bits::Four => lines[l / 8].0[4 * column + l % 4] |= (value & 15) << (l / 4 % 2 * 4),
        }
    }
}

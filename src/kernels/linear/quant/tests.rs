//! Quantised products against their definition, bit for bit, on every engine of the machine.

use half::f16;

use super::grid::{Bits, GROUP, Grid, Group};
use super::panels::Panels;
use super::product::{Block, SCRATCH, run};
use super::rows::Rows;
use crate::isa::Isa;
use crate::micro::PANEL;
use crate::testing::random;

const GRIDS: [Grid; 4] = [
    Grid::symmetric(Bits::Four),
    Grid::symmetric(Bits::Eight),
    Grid {
        bits: Bits::Four,
        offsets: true,
    },
    Grid {
        bits: Bits::Eight,
        offsets: true,
    },
];

fn values(count: usize, seed: u64) -> Vec<f32> {
    random(&[count], seed).to_vec1().unwrap()
}

/// Returns groups of random integers that use the whole range.
fn groups(n: usize, k: usize, grid: Grid) -> Vec<Vec<Group>> {
    let per_row = k.div_ceil(GROUP);
    let all = values(n * per_row * (GROUP + 2), 5);
    let mut all = all.into_iter();
    let mut next = || all.next().unwrap();
    let most = f32::from(grid.bits.most());
    (0..n)
        .map(|_| {
            (0..per_row)
                .map(|_| Group {
                    scale: f16::from_f32(next()),
                    offset: f16::from_f32(next()),
                    values: std::array::from_fn(|_| {
                        ((next() * 3.0).sin().abs() * (most + 1.0)).min(most) as u8
                    }),
                })
                .collect()
        })
        .collect()
}

/// Rounds a group of a row as its definition says.
fn rounded(x: &[f32]) -> (Vec<i32>, f32) {
    let most = x.iter().fold(0f32, |all, x| all.max(x.abs()));
    if most < 1e-30 {
        return (vec![0; x.len()], 0.0);
    }
    let factor = 127.0 / most;
    let integers = x.iter().map(|x| (x * factor).round_ties_even() as i32);
    (integers.collect(), most / 127.0)
}

/// Packs the groups of each output of a weight with `k` inputs.
fn packed(weight: &[Vec<Group>], k: usize, grid: Grid) -> Panels {
    let panels = Panels::pack((weight.len(), k), grid, |row, to| {
        to.copy_from_slice(&weight[row]);
        Ok(())
    });
    panels.unwrap()
}

/// Computes one element as its definition says.
fn element(x: &[f32], w: &[Group], grid: Grid) -> f32 {
    let mut total = 0f32;
    for (x, w) in x.chunks(GROUP).zip(w) {
        let (integers, scale) = rounded(x);
        let dot: i32 = integers
            .iter()
            .zip(w.values)
            .map(|(q, u)| q * (i32::from(u) - grid.zero()))
            .sum();
        total += scale * w.scale.to_f32() * dot as f32;
        if grid.offsets {
            let sum: i32 = integers.iter().sum();
            total += scale * sum as f32 * w.offset.to_f32();
        }
    }
    total
}

#[test]
fn every_engine_gives_the_bits_of_the_definition() {
    const ROWS: usize = 19;
    for (n, k) in [
        (1, 1),
        (5, 31),
        (16, 32),
        (17, 33),
        (40, 96),
        (131, 257),
        (64, 600),
        (300, 64),
    ] {
        let mut x = values(ROWS * k, 3);
        // A group of zeros, and one that is too small to be rounded.
        x[..k.min(GROUP)].fill(0.0);
        x[k..k + k.min(GROUP)].fill(1e-35);
        for grid in GRIDS {
            let weight = groups(n, k, grid);
            let panels = packed(&weight, k, grid);
            let want: Vec<u32> = (0..ROWS * n)
                .map(|at| element(&x[at / n * k..][..k], &weight[at % n], grid).to_bits())
                .collect();
            for isa in Isa::available() {
                for rows in [1, 2, 3, 4, 5, 7, 8, 13, ROWS] {
                    let mut space = vec![u32::MAX; Rows::space(rows, k)];
                    let rounded = Rows::round(&x[..rows * k], rows, k, &mut space);
                    let mut y = vec![f32::NAN; rows * n];
                    let all = n.div_ceil(PANEL);
                    for panels_of in [(0, all / 2), (all / 2, all)] {
                        let block = Block {
                            rows: rounded,
                            weight: &panels,
                            panels: panels_of,
                            n,
                            out: y.as_mut_ptr(),
                        };
                        // SAFETY: the isa is available; the block's output is complete.
                        unsafe { run(isa, &block, &mut [f32::NAN; SCRATCH]) };
                    }
                    let got: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
                    assert!(got == want[..rows * n], "{isa} {grid:?} {rows}x{n}x{k}");
                }
            }
        }
    }
}

#[test]
fn rows_of_a_weight_are_what_was_packed() {
    let (n, k) = (37, 75);
    for grid in GRIDS {
        let weight = groups(n, k, grid);
        let panels = packed(&weight, k, grid);
        for (row, weight) in weight.iter().enumerate() {
            let mut found = vec![f32::NAN; k];
            panels.unpack(row, &mut found);
            let want: Vec<f32> = weight.iter().flat_map(|group| grid.values(group)).collect();
            assert_eq!(found, want[..k], "{grid:?} row {row}");
        }
        let row = grid.row_bytes(k as u64);
        assert_eq!(
            panels.bytes() as u64,
            n.next_multiple_of(PANEL) as u64 * row
        );
    }
}

#[test]
fn weights_are_rounded_to_the_nearest_integers() {
    let weights = values(GROUP, 1);
    let largest = weights.iter().fold(0f32, |all, w| all.max(w.abs()));
    for (bits, steps) in [(Bits::Eight, 127.0), (Bits::Four, 8.0)] {
        let grid = Grid::symmetric(bits);
        for some in [&weights[..], &weights[..7]] {
            let group = Group::round(some, bits).unwrap();
            let kept = grid.values(&group);
            for (w, kept) in some.iter().zip(kept) {
                // Half a step, or for four bits the cut of the end that has one integer less.
                let most = largest / steps * if bits == Bits::Four { 1.2 } else { 0.51 };
                assert!((w - kept).abs() <= most, "{bits:?}: {w} as {kept}");
            }
            assert!(kept[some.len()..].iter().all(|w| *w == 0.0));
        }
        // The sign of the largest weight does not matter, nor weights too small for a scale of their own.
        let turned: Vec<f32> = weights.iter().map(|w| -w).collect();
        let (one, other) = (Group::round(&weights, bits), Group::round(&turned, bits));
        let error = |group: Group, of: &[f32]| {
            let pairs = grid.values(&group).into_iter().zip(of);
            pairs.map(|(kept, w)| (kept - w).powi(2)).sum::<f32>()
        };
        let (one, other) = (
            error(one.unwrap(), &weights),
            error(other.unwrap(), &turned),
        );
        assert!((one - other).abs() < 1e-5, "{bits:?}: {one} and {other}");
        assert_eq!(grid.values(&Group::round(&[], bits).unwrap()), [0.0; GROUP]);
        let tiny = grid.values(&Group::round(&[1e-7, -2e-7], bits).unwrap());
        assert!(
            (tiny[0] - 1e-7).abs() < 5e-8 && (tiny[1] + 2e-7).abs() < 5e-8,
            "{tiny:?}"
        );
        for wrong in [f32::NAN, f32::INFINITY, 1e10] {
            assert!(Group::round(&[1.0, wrong], bits).is_err(), "{wrong}");
        }
    }
    // Four bits: the scale is one of several, and not worse than that of the largest magnitude.
    let error = |scale: f32| -> f32 {
        let kept = weights
            .iter()
            .map(|w| (w / scale).round().clamp(-8.0, 7.0) * scale);
        weights
            .iter()
            .zip(kept)
            .map(|(w, kept)| (w - kept).powi(2))
            .sum()
    };
    let group = Group::round(&weights, Bits::Four).unwrap();
    let kept = Grid::symmetric(Bits::Four).values(&group);
    let found: f32 = weights
        .iter()
        .zip(kept)
        .map(|(w, kept)| (w - kept).powi(2))
        .sum();
    assert!(found <= error(largest / 8.0) * 1.01 && found <= error(largest / 7.0) * 1.01);
}

#[test]
fn a_number_that_is_not_finite_stays_visible() {
    let (n, k) = (16, 64);
    let weight = groups(n, k, GRIDS[1]);
    let panels = Panels::pack((n, k), GRIDS[1], |row, to| {
        to.copy_from_slice(&weight[row]);
        Ok(())
    })
    .unwrap();
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = values(k, 3);
        x[40] = wrong;
        for isa in Isa::available() {
            let mut space = vec![0; Rows::space(1, k)];
            let mut y = vec![0.0; n];
            let block = Block {
                rows: Rows::round(&x, 1, k, &mut space),
                weight: &panels,
                panels: (0, 1),
                n,
                out: y.as_mut_ptr(),
            };
            // SAFETY: the isa is available; the block's output is complete.
            unsafe { run(isa, &block, &mut [0.0; SCRATCH]) };
            assert!(y.iter().all(|y| !y.is_finite()), "{isa} {wrong}: {y:?}");
        }
    }
}

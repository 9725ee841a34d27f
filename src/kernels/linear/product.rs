//! Products with packed weights: division into tasks, and their distribution over threads.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::PackedLinear;
use super::quant;
use super::rounded::Rows;
use crate::device::team;
use crate::scratch::{SharedOut, with_shared_scratch};

/// The single-thread time in nanoseconds below which waking another thread costs more than it saves: that thread has to wake up and get a
/// core, which other processes may use, and the product waits for the slower thread.
const SERIAL_BELOW: usize = 20_000;

/// The number of multiply-adds that are worth a task.
const TASK: usize = 1 << 20;

/// The f32 of packed rows that a task keeps at once: half a second-level cache.
const ROWS_BUDGET: usize = 64 * 1024;

/// The number of panels that stay in one task: few rows take them together.
const UNIT: usize = 4;

/// Returns whether this many rows of these layers, as one product, are worth more than one thread.
pub fn spreads<'a>(layers: impl IntoIterator<Item = &'a PackedLinear>, m: usize) -> bool {
    let time = layers.into_iter().map(|layer| layer.estimated_ns(m));
    time.sum::<usize>() >= SERIAL_BELOW
}

/// The rows of x as layers read them: all of them, or those of a task.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// In f32, `[rows, k]`.
    pub x: &'a [f32],
    /// Rounded to bf16, if a layer [rounds](PackedLinear::rounds).
    pub rounded: Option<Rows<'a>>,
    /// Rounded to integers, if a layer [quantises](PackedLinear::quantises).
    pub quantised: Option<quant::Rows<'a>>,
}

impl Inputs<'_> {
    /// Returns rows `from..to` of `k` numbers.
    fn part(&self, from: usize, to: usize, k: usize) -> Self {
        Self {
            x: &self.x[from * k..to * k],
            rounded: self.rounded.map(|all| all.part(from, to)),
            quantised: self.quantised.map(|all| all.part(from, to)),
        }
    }
}

/// Some panels of one of the layers, and the destination of their result.
struct Span<'a> {
    layer: &'a PackedLinear,
    panels: Range<usize>,
    out: SharedOut,
}

/// Computes `outs[i][m, n_i] = x[m, k] · Wᵢᵀ + bᵢ` for layers of one input, as one parallel loop. All of `outs` is written.
///
/// # Panics
/// Panics if the layers do not share `k`, or a slice has the wrong length.
pub fn forward_all(
    layers: &[&PackedLinear],
    x: &[f32],
    m: usize,
    outs: &mut [&mut [MaybeUninit<f32>]],
) {
    assert_eq!(
        layers.len(),
        outs.len(),
        "linear: the numbers of layers and outputs differ"
    );
    let Some(first) = layers.first() else { return };
    let k = first.in_features();
    assert_eq!(x.len(), m * k, "linear: x is not [{m}, {k}]");
    for (layer, out) in layers.iter().zip(&*outs) {
        let n = layer.out_features();
        assert_eq!(
            layer.in_features(),
            k,
            "linear: the layers' input sizes differ"
        );
        assert_eq!(out.len(), m * n, "linear: out is not [{m}, {n}]");
    }
    if m == 0 {
        return;
    }
    if k == 0 {
        // The sum is empty; biases are still added.
        outs.iter_mut()
            .for_each(|out| out.fill(MaybeUninit::new(0.0)));
    }
    let spans: Vec<Span> = layers
        .iter()
        .zip(outs)
        .map(|(layer, out)| Span {
            layer,
            panels: 0..layer.panels(),
            // SAFETY: tasks write disjoint rows or columns.
            out: unsafe { SharedOut::new_uninit(out) },
        })
        .collect();
    let needs = |needs: fn(&PackedLinear) -> bool| k > 0 && layers.iter().any(|layer| needs(layer));
    let (rounds, quantises) = (needs(PackedLinear::rounds), needs(PackedLinear::quantises));
    // Both kinds of words in one buffer: the integers, then the bf16.
    let words = match quantises {
        true => quant::Rows::space(m, k).next_multiple_of(16),
        false => 0,
    };
    let pairs = match rounds {
        true => Rows::space(m, k).div_ceil(2),
        false => 0,
    };
    with_shared_scratch(words + pairs, |space| {
        // SAFETY: an f32 is one u32, or two u16, and any bit pattern is valid for both.
        let (integers, halves) = unsafe {
            let start = space.as_mut_ptr();
            (
                std::slice::from_raw_parts_mut(start.cast::<u32>(), words),
                std::slice::from_raw_parts_mut(start.add(words).cast::<u16>(), 2 * pairs),
            )
        };
        let inputs = Inputs {
            x,
            rounded: rounds.then(|| Rows::round(x, m, k, halves)),
            quantised: quantises.then(|| quant::Rows::round(x, m, k, integers)),
        };
        spread(&spans, inputs, m, k);
    });
}

fn spread(spans: &[Span], inputs: Inputs, m: usize, k: usize) {
    let units: usize = spans.iter().map(Span::units).sum();
    let outputs: usize = spans.iter().map(|span| span.layer.out_features()).sum();
    let most_rows = (ROWS_BUDGET / k.max(1)).clamp(96, 192);
    let row_blocks = m.div_ceil(most_rows);
    let threads = team::threads();
    let work = m.saturating_mul(outputs * k);
    let serial = threads == 1 || !spreads(spans.iter().map(|span| span.layer), m);
    let unit_chunks = if serial {
        1
    } else {
        // A few tasks per thread, so that a delayed thread does not delay the others.
        (work / TASK)
            .clamp(4 * threads, 16 * threads)
            .div_ceil(row_blocks)
            .clamp(1, units.max(1))
    };
    let task = |index: usize| {
        let (i, j) = (index / unit_chunks, index % unit_chunks);
        let rows = m * i / row_blocks..m * (i + 1) / row_blocks;
        let mut units = units * j / unit_chunks..units * (j + 1) / unit_chunks;
        for span in spans {
            let panels = span.part(&units);
            units =
                units.start.saturating_sub(span.units())..units.end.saturating_sub(span.units());
            if panels.is_empty() {
                continue;
            }
            let n = span.layer.out_features();
            // SAFETY: the rows are within out, and only this task has these panels of them.
            unsafe {
                span.layer.block(
                    inputs.part(rows.start, rows.end, k),
                    rows.len(),
                    (panels.start, panels.end),
                    span.out.get().add(rows.start * n),
                );
            }
        }
    };
    let tasks = row_blocks * unit_chunks;
    if serial {
        (0..tasks).for_each(task);
    } else {
        team::run(tasks, task);
    }
}

impl Span<'_> {
    fn units(&self) -> usize {
        self.panels.len().div_ceil(UNIT)
    }

    /// Returns the panels of these units, counted from the span's first panel and cut at its last.
    fn part(&self, units: &Range<usize>) -> Range<usize> {
        let panel = |unit: usize| (unit * UNIT).min(self.panels.len());
        panel(units.start)..panel(units.end)
    }
}

//! One packed batch through the decoder, one layer at a time: forward, and backward with or without recomputing.
//!
//! Every layer's graph ends at the layer's boundaries, so a graph spans one block: gradients are propagated from boundary to boundary,
//! moved to the accumulators, and freed. No computation runs between two layers; there `pace` is called, which may let other work on the
//! machine go first.

use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::TrainError;
use super::optim::GradBuffers;
use kernels::nn::{AttentionBackend, Rotations, with_dropout};
use model::{Decoder, PackedBatch};

/// The destination of gradients: the variables, by the index of their buffer.
pub struct Accumulator<'a> {
    pub vars: &'a [(String, Var)],
    pub grads: &'a mut GradBuffers,
}

impl Accumulator<'_> {
    fn collect(&mut self, store: &mut GradStore) -> Result<(), TrainError> {
        for (name, var) in self.vars {
            if let Some(grad) = store.remove(var) {
                self.grads.add_named(name, &grad, 1.0)?;
            }
        }
        Ok(())
    }
}

/// A packed batch and the decoder it goes through.
pub struct Pass<'a> {
    decoder: &'a Decoder,
    tokens: &'a PackedBatch,
    prefixes: &'a [Range<u32>],
    rotations: Rotations,
    /// The rows whose hidden states are requested: the last block computes no others.
    rows: Tensor,
    /// The key of the dropout masks, in training.
    dropout: Option<u64>,
}

/// The saved state of a layer for the backward pass.
struct Layer {
    input: Tensor,
    /// Absent if it is recomputed.
    output: Option<Tensor>,
}

impl<'a> Pass<'a> {
    /// Creates a pass. `rows` may contain a row twice. `prefixes` is empty, or gives for each sequence the earlier rows that it continues
    /// ([`AttentionBackend::Branched`]).
    pub fn new(
        decoder: &'a Decoder,
        tokens: &'a PackedBatch,
        prefixes: &'a [Range<u32>],
        rows: &[u32],
    ) -> Result<Self, TrainError> {
        Ok(Self {
            decoder,
            tokens,
            prefixes,
            rotations: decoder.rotations(tokens.as_packed())?,
            rows: Tensor::new(rows, decoder.device())?,
            dropout: None,
        })
    }

    /// Enables the adapter's dropout, if it has any. The dropped elements are a function of the run's seed, the step and the batch's
    /// tokens: they are the same in a resumed run and in every lane.
    pub fn with_dropout(self, seed: u64, step: u64) -> Self {
        const PRIME: u64 = 0x0100_0000_01b3;
        let parts = [seed, step].into_iter();
        let parts = parts.chain(self.tokens.ids().iter().map(|&id| u64::from(id)));
        // FNV-1a, one word at a time.
        let key = parts.fold(0xcbf2_9ce4_8422_2325, |hash: u64, part| {
            (hash ^ part).wrapping_mul(PRIME)
        });
        Self {
            dropout: Some(key),
            ..self
        }
    }

    fn block(&self, layer: usize, x: &Tensor) -> Result<Tensor, TrainError> {
        let last = layer + 1 == self.decoder.num_layers();
        let cu_seqlens = self.tokens.cu_seqlens();
        let backend = match self.prefixes {
            [] => AttentionBackend::Dense { cu_seqlens },
            prefixes => AttentionBackend::Branched {
                cu_seqlens,
                prefixes,
            },
        };
        let rows = last.then_some(&self.rows);
        Ok(with_dropout(self.dropout, || {
            self.decoder
                .block(layer, x, rows, &self.rotations, &backend)
        })?)
    }

    /// Returns the hidden states of the rows after the last norm, `[rows, hidden]`, without a gradient.
    pub fn forward(&self, pace: &mut dyn FnMut()) -> Result<Tensor, TrainError> {
        let mut x = self.decoder.embed(self.tokens.ids())?.detach();
        for layer in 0..self.decoder.num_layers() {
            pace();
            x = self.block(layer, &x)?.detach();
        }
        Ok(self.decoder.final_norm(&x)?.detach())
    }

    /// Runs forward, the `loss` on the rows' hidden states after the last norm, and backward into the accumulator.
    ///
    /// With `recompute`, block activations are dropped after the forward pass and recomputed in the backward pass, one block at a time:
    /// memory is the block boundaries plus one block (Chen et al. 2016), for one more forward pass.
    pub fn backward<S>(
        &self,
        recompute: bool,
        accumulator: &mut Accumulator<'_>,
        pace: &mut dyn FnMut(),
        loss: impl FnOnce(&Tensor) -> Result<(Tensor, S), TrainError>,
    ) -> Result<S, TrainError> {
        let embedded = self.decoder.embed(self.tokens.ids())?;
        // A frozen embedding needs no gradient: the first block does not compute it.
        let mut x = match embedded.track_op() {
            true => Var::from_tensor(&embedded)?.into_inner(),
            false => embedded.clone(),
        };
        let mut layers = Vec::with_capacity(self.decoder.num_layers());
        for layer in 0..self.decoder.num_layers() {
            pace();
            let output = self.block(layer, &x)?;
            let next = Var::from_tensor(&output.detach())?.into_inner();
            layers.push(Layer {
                input: x,
                output: (!recompute).then_some(output),
            });
            x = next;
        }
        pace();
        let (loss, scored) = loss(&self.decoder.final_norm(&x)?)?;
        let mut grads = loss.backward()?;
        drop(loss);
        for (index, layer) in layers.into_iter().enumerate().rev() {
            let gradient = take(&mut grads, &x)?;
            accumulator.collect(&mut grads)?;
            pace();
            let output = match layer.output {
                Some(output) => output,
                None => self.block(index, &layer.input)?,
            };
            // The gradient of <y, g> with respect to x is g propagated back through the block.
            grads = (output * gradient)?.sum_all()?.backward()?;
            x = layer.input;
        }
        if embedded.track_op() {
            let gradient = take(&mut grads, &x)?;
            accumulator.collect(&mut grads)?;
            grads = (embedded * gradient)?.sum_all()?.backward()?;
        }
        accumulator.collect(&mut grads)?;
        Ok(scored)
    }
}

fn take(grads: &mut GradStore, boundary: &Tensor) -> Result<Tensor, TrainError> {
    grads.remove(boundary).map(|g| g.detach()).ok_or_else(|| {
        TrainError::Mismatch("a block boundary received no gradient; this is a bug".into())
    })
}

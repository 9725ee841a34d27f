//! Gradient accumulators: one flat f32 buffer per parameter.

use std::collections::HashMap;

use candle_core::{DType, Device, Storage, Tensor, Var};
use rayon::prelude::*;

use super::super::TrainError;

/// Elements that one task sums or updates. A constant: the order of a sum must not depend on the number of threads.
pub(super) const CHUNK: usize = 16 * 1024;

/// One parameter's accumulator, on the parameter's device.
#[derive(Debug)]
pub(super) enum Buffer {
    /// CPU: row-major.
    Host(Vec<f32>),
    /// Any other device: f32, in the parameter's shape.
    Device(Tensor),
}

/// The gradients of one optimizer step, summed over its micro-batches. Indices follow the order of the names.
#[derive(Debug)]
pub struct GradBuffers {
    names: Vec<String>,
    index: HashMap<String, usize>,
    shapes: Vec<Vec<usize>>,
    buffers: Vec<Buffer>,
}

impl GradBuffers {
    /// Creates zeroed accumulators for these parameters, in the order of their names.
    ///
    /// # Errors
    /// If a name occurs twice, or allocation on a device fails.
    pub fn new(params: &[(String, Var)]) -> Result<Self, TrainError> {
        let mut this = Self {
            names: Vec::new(),
            index: HashMap::new(),
            shapes: Vec::new(),
            buffers: Vec::new(),
        };
        for (name, var) in super::sorted(params)? {
            this.index.insert(name.clone(), this.names.len());
            this.names.push(name);
            this.shapes.push(var.dims().to_vec());
            this.buffers.push(match var.device() {
                Device::Cpu => Buffer::Host(vec![0.0; var.elem_count()]),
                device => Buffer::Device(Tensor::zeros(var.shape(), DType::F32, device)?),
            });
        }
        Ok(this)
    }

    /// Returns the parameters' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Returns the number of parameters.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Returns the index of a parameter.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// Adds `scale * grad` to accumulator `index`.
    ///
    /// # Errors
    /// If the shape is not the parameter's.
    ///
    /// # Panics
    /// If `index` is out of range.
    pub fn add(&mut self, index: usize, grad: &Tensor, scale: f32) -> Result<(), TrainError> {
        if grad.dims() != self.shapes[index] {
            return Err(TrainError::Mismatch(format!(
                "gradient of `{}` has shape {:?}, the parameter {:?}",
                self.names[index],
                grad.dims(),
                self.shapes[index]
            )));
        }
        let grad = grad.to_dtype(DType::F32)?.contiguous()?;
        match &mut self.buffers[index] {
            Buffer::Host(sum) => {
                let (storage, layout) = grad.storage_and_layout();
                let Storage::Cpu(storage) = &*storage else {
                    return Err(TrainError::Mismatch(format!(
                        "gradient of `{}` is not on the parameter's device",
                        self.names[index]
                    )));
                };
                let from = layout.start_offset();
                let grad = &storage.as_slice::<f32>()?[from..from + sum.len()];
                sum.par_chunks_mut(CHUNK)
                    .zip(grad.par_chunks(CHUNK))
                    .for_each(|(sum, grad)| {
                        for (s, g) in sum.iter_mut().zip(grad) {
                            *s += scale * g;
                        }
                    });
            }
            Buffer::Device(sum) => {
                // Detached: an accumulator that kept its graph would keep every micro-batch alive.
                *sum = (&*sum + grad.detach().affine(f64::from(scale), 0.0)?)?.detach();
            }
        }
        Ok(())
    }

    /// Adds a gradient as [`Self::add`], by name.
    ///
    /// # Errors
    /// If no parameter has the name; also as [`Self::add`].
    pub fn add_named(&mut self, name: &str, grad: &Tensor, scale: f32) -> Result<(), TrainError> {
        let index = self.index_of(name).ok_or_else(|| {
            TrainError::Mismatch(format!(
                "there is a gradient for `{name}`, which is not a trained parameter"
            ))
        })?;
        self.add(index, grad, scale)
    }

    /// Returns the accumulator itself, row-major, for a backward pass that writes it directly; `None` if it is not on the CPU.
    pub fn host_mut(&mut self, index: usize) -> Option<&mut [f32]> {
        match &mut self.buffers[index] {
            Buffer::Host(sum) => Some(sum),
            Buffer::Device(_) => None,
        }
    }

    /// Returns a copy of one accumulator as a tensor of the parameter's shape.
    ///
    /// # Errors
    /// If allocation fails.
    pub fn to_tensor(&self, index: usize) -> Result<Tensor, TrainError> {
        Ok(match &self.buffers[index] {
            Buffer::Host(sum) => {
                Tensor::from_slice(sum, self.shapes[index].as_slice(), &Device::Cpu)?
            }
            Buffer::Device(sum) => sum.copy()?,
        })
    }

    /// Multiplies all gradients by `factor`, for a normaliser known only after the last micro-batch.
    ///
    /// # Errors
    /// Those of the device.
    pub fn scale(&mut self, factor: f32) -> Result<(), TrainError> {
        for buffer in &mut self.buffers {
            match buffer {
                Buffer::Host(sum) => sum
                    .par_chunks_mut(CHUNK)
                    .for_each(|sum| sum.iter_mut().for_each(|s| *s *= factor)),
                Buffer::Device(sum) => *sum = sum.affine(f64::from(factor), 0.0)?,
            }
        }
        Ok(())
    }

    /// Adds another set of sums for the same parameters.
    ///
    /// # Errors
    /// If the buffers are of other parameters; those of the device.
    pub fn add_all(&mut self, other: &Self) -> Result<(), TrainError> {
        if self.names != other.names || self.shapes != other.shapes {
            return Err(TrainError::Mismatch(
                "gradient buffers of different parameters cannot be added".to_owned(),
            ));
        }
        for (buffer, other) in self.buffers.iter_mut().zip(&other.buffers) {
            match (buffer, other) {
                (Buffer::Host(sum), Buffer::Host(terms)) => sum
                    .par_chunks_mut(CHUNK)
                    .zip(terms.par_chunks(CHUNK))
                    .for_each(|(sum, terms)| {
                        sum.iter_mut().zip(terms).for_each(|(s, t)| *s += t);
                    }),
                (Buffer::Device(sum), Buffer::Device(terms)) => *sum = (&*sum + terms)?,
                _ => {
                    return Err(TrainError::Mismatch(
                        "gradient buffers of different devices cannot be added".to_owned(),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Resets everything to zero for the next step; the host buffers' memory is kept.
    ///
    /// # Errors
    /// Those of the device.
    pub fn zero(&mut self) -> Result<(), TrainError> {
        for buffer in &mut self.buffers {
            match buffer {
                Buffer::Host(sum) => sum.fill(0.0),
                Buffer::Device(sum) => *sum = sum.zeros_like()?,
            }
        }
        Ok(())
    }

    /// Returns the L2 norm over all gradients, summed in f64 over fixed chunks in a fixed order.
    ///
    /// # Errors
    /// [`TrainError::NonFiniteGradient`] with the first tensor that holds a NaN or infinity. (Squares of finite f32 cannot overflow an
    /// f64 sum, so checking the sum is enough.)
    pub fn global_norm(&self) -> Result<f64, TrainError> {
        let mut total = 0.0;
        for (name, square_sum) in self.names.iter().zip(self.square_sums()?) {
            if !square_sum.is_finite() {
                return Err(TrainError::NonFiniteGradient {
                    tensor: name.clone(),
                });
            }
            total += square_sum;
        }
        Ok(total.sqrt())
    }

    /// Returns the sum of squares of each parameter's gradient.
    fn square_sums(&self) -> Result<Vec<f64>, TrainError> {
        let mut sums = vec![0.0; self.buffers.len()];
        let mut on_device = Vec::new();
        for (i, buffer) in self.buffers.iter().enumerate() {
            match buffer {
                Buffer::Host(g) => {
                    let chunks: Vec<f64> = g.par_chunks(CHUNK).map(square_sum).collect();
                    sums[i] = chunks.iter().sum();
                }
                Buffer::Device(g) => {
                    on_device.push((i, g.to_dtype(DType::F64)?.sqr()?.sum_all()?));
                }
            }
        }
        if !on_device.is_empty() {
            // One transfer for all of them: each single transfer would wait for the device.
            let all: Vec<&Tensor> = on_device.iter().map(|(_, s)| s).collect();
            let values = Tensor::stack(&all, 0)?.to_vec1::<f64>()?;
            for ((i, _), value) in on_device.iter().zip(values) {
                sums[*i] = value;
            }
        }
        Ok(sums)
    }

    pub(super) fn buffers(&self) -> impl Iterator<Item = &Buffer> {
        self.buffers.iter()
    }
}

/// Uses eight fixed lanes, so that the compiler may vectorise without changing the sum.
fn square_sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let mut eights = values.chunks_exact(8);
    for eight in &mut eights {
        for (lane, &v) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(v) * f64::from(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(eights.remainder()) {
        *lane += f64::from(v) * f64::from(v);
    }
    lanes.iter().sum()
}

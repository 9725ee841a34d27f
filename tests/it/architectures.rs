//! Every architecture is trained and adapted as it is served.

use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use kernels::nn::{AdaptedRows, AttentionBackend};
use model::{
    LanguageModel, LoadOptions, PackedBatch,
    adapter::{self, LoraConfig},
};
use train::{
    base::{Adapter, FrozenBase},
    batch::pack,
    merge::merge,
    mixture::{ExampleKind, TrainExample},
    optim::{OptimConfig, Optimizer},
    pass::Accumulator,
    step::forward_backward,
    trainable::{Factors, Trainable},
};

use crate::parity::{architectures, decoder, dense, difference, golden, trainable};
use crate::support::{data, fixture};

/// The sum of the squares, as a length.
fn norm(tensor: &Tensor) -> f64 {
    let squares = tensor.sqr().unwrap().sum_all().unwrap();
    f64::from(squares.to_scalar::<f32>().unwrap()).sqrt()
}

/// Moves each variable a little along its gradient, there and back: the loss has to change as the gradient says.
#[test]
fn the_gradients_of_every_architecture_predict_the_loss() {
    for dir in architectures() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let (decoder, vars) = trainable(&dir);
        let (sequences, _) = golden(&dir);
        let examples: Vec<TrainExample> = sequences
            .iter()
            .map(|ids| TrainExample {
                ids: ids.clone(),
                weights: (0..ids.len()).map(|at| at.min(1) as f32).collect(),
                kind: ExampleKind::Sft,
                label: None,
            })
            .collect();
        let batch = pack(&examples, usize::MAX).remove(0);
        let weight = batch.rows.len() as f64;
        let gradients = |recompute| {
            let optimizer = Optimizer::new(&vars, OptimConfig::default()).unwrap();
            let mut grads = optimizer.grad_buffers().unwrap();
            let mut accumulator = Accumulator {
                vars: &vars,
                grads: &mut grads,
            };
            let stats = forward_backward(
                &decoder,
                &batch,
                weight,
                recompute,
                (0, 0),
                &mut accumulator,
            );
            (stats.unwrap().loss, grads)
        };
        let (_, grads) = gradients(false);
        let (_, recomputed) = gradients(true);
        for (path, var) in &vars {
            let at = grads.index_of(path).unwrap();
            let gradient = grads.to_tensor(at).unwrap();
            let again = recomputed.to_tensor(at).unwrap();
            assert!(difference(&gradient, &again) < 1e-5, "{name} {path}");
            let slope = norm(&gradient);
            assert!(slope > 1e-4, "{name}: {path} has a gradient of {slope}");
            let step = (2e-3 / slope).min(0.02);
            let before = var.as_tensor().copy().unwrap();
            let loss_at = |step: f64| {
                let moved = (&before + (&gradient * (step / slope)).unwrap()).unwrap();
                var.set(&moved).unwrap();
                gradients(false).0
            };
            // Within a step a router may send a token to another expert, and the loss jumps: then shorter steps are measured.
            let shorter: &[f64] = match decoder.spec().experts {
                Some(_) => &[1.0, 8.0, 32.0],
                None => &[1.0],
            };
            let measured = shorter.iter().map(|by| {
                let step = step / by;
                let measured = (loss_at(step) - loss_at(-step)) / (2.0 * step);
                let bound = 0.03 * slope + 2e-6 / step;
                ((measured - slope).abs() < bound, measured)
            });
            let measured: Vec<(bool, f64)> = measured.collect();
            var.set(&before).unwrap();
            assert!(
                measured.iter().any(|(near, _)| *near),
                "{name}: along the gradient of {path} the loss changes by {measured:?}, and the gradient says {slope}"
            );
        }
    }
}

/// Replaces an adapter's factors, whose updates are zero, by others.
pub fn disturbed(base: &FrozenBase, config: LoraConfig) -> Adapter {
    let trainable = Trainable::adapter(base, config, Factors::Fresh { seed: 3 }).unwrap();
    for (at, (_, var)) in trainable.vars.iter().enumerate() {
        let count = var.elem_count();
        let values: Vec<f32> = (0..count)
            .map(|i| ((i * 7 + at * 3) % 11) as f32 / 40.0 - 0.12)
            .collect();
        set(var, values);
    }
    trainable.to_adapter().unwrap().unwrap()
}

fn set(var: &Var, values: Vec<f32>) {
    let tensor = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
    var.set(&tensor).unwrap();
}

/// Gives a fixture the tokenizer that a server needs.
fn served(dir: &Path) -> LanguageModel {
    served_with(dir, &LoadOptions::default())
}

/// [`served`] with other options.
pub fn served_with(dir: &Path, options: &LoadOptions) -> LanguageModel {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let tokenizer = data("stories260k").join("tokenizer.json");
    std::fs::copy(tokenizer, copy.path().join("tokenizer.json")).unwrap();
    LanguageModel::load(copy.path(), options).unwrap()
}

#[test]
fn an_adapter_of_all_layers_is_trained_saved_served_and_merged_alike() {
    for name in [
        "phi3",
        "phi3_longrope",
        "olmo2",
        "granite",
        "gemma2",
        "gemma3",
        "qwen3_moe",
        "qwen3_moe_step",
    ] {
        let dir = fixture("arch").join(name);
        let base = FrozenBase::load(&dir, &Device::Cpu).unwrap();
        let adapter = disturbed(&base, LoraConfig::default());
        let modules = &adapter.config.target_modules;
        match name {
            "phi3" | "phi3_longrope" => assert_eq!(
                *modules,
                ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
            ),
            // Experts are not adapted; some layers of the other fixture have none.
            "qwen3_moe" => assert_eq!(*modules, ["q_proj", "k_proj", "v_proj", "o_proj"]),
            _ => assert_eq!(modules.len(), 7),
        }
        let saved = tempfile::tempdir().unwrap();
        adapter.save(saved.path()).unwrap();
        let adapter = Adapter::load(saved.path()).unwrap();
        let (sequences, logits) = golden(&dir);
        let (ids, bare) = (&sequences[2], &logits[2]);
        let trained = dense(&base.decoder(Some(&adapter)).unwrap(), &[ids]);
        assert!(difference(&trained, bare) > 0.1, "{name}");

        let merged = tempfile::tempdir().unwrap();
        let out = merged.path().join("model");
        merge(&dir, saved.path(), &out).unwrap();
        let merged = dense(&decoder(&out), &[ids]);
        // Weights in bf16 are rounded by the merge.
        let bound = match name {
            "olmo2" | "gemma2" | "gemma3" | "qwen3_moe_step" => 1e-4,
            _ => 0.2,
        };
        let d = difference(&merged, &trained);
        assert!(d < bound, "{name}: merged differs by {d}");

        let serving = served(&dir);
        let decoder = serving.decoder();
        let lora = adapter::for_serving(&adapter.config, &adapter.weights, decoder).unwrap();
        let batch: PackedBatch = [&ids[..]].into_iter().collect();
        let backend = AttentionBackend::Dense {
            cu_seqlens: batch.cu_seqlens(),
        };
        let rows: Vec<u32> = (0..ids.len() as u32).collect();
        let adapted = [AdaptedRows {
            rows: 0..ids.len(),
            adapter: &lora,
        }];
        let hidden = decoder.forward_adapted(batch.as_packed(), &rows, &backend, &adapted);
        let logits = decoder.logits(&hidden.unwrap()).unwrap();
        // Weights in bf16 multiply inputs that are rounded to bf16.
        let bound = match decoder.weights_dtype() {
            DType::BF16 => 0.2,
            _ => 1e-4,
        };
        let d = difference(&logits, &trained);
        assert!(d < bound, "{name}: served differs by {d}");
    }
}

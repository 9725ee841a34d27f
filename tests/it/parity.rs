//! The decoder against transformers, and its ways of running against one another.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use kernels::{attention::AttentionMetadata, kv_store::KvCache, nn::AttentionBackend};
use model::{
    Checkpoint, Decoder, DecoderSpec, ModelConfig, ModelError, PackedBatch, ParameterSource,
};
use train::{
    batch::{MicroBatch, pack},
    mixture::{ExampleKind, TrainExample},
    optim::{OptimConfig, Optimizer},
    pass::Accumulator,
    step::forward_backward,
};

use crate::support::{data, fixture};

/// A checkpoint's tensors in f32, as variables where they are to be trained.
struct Tensors {
    checkpoint: Checkpoint,
    vars: Option<BTreeMap<String, Var>>,
}

impl ParameterSource for Tensors {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let device = Device::Cpu;
        let tensor = self
            .checkpoint
            .tensor(name, shape.to_vec(), DType::F32, &device)?;
        let Some(vars) = &mut self.vars else {
            return Ok(tensor);
        };
        // A tied head asks for the embedding a second time: it must get the same variable.
        if !vars.contains_key(name) {
            vars.insert(name.to_owned(), Var::from_tensor(&tensor)?);
        }
        Ok(vars[name].as_tensor().clone())
    }
}

pub fn decoder(dir: &Path) -> Decoder {
    decoder_of(ModelConfig::from_dir(dir).unwrap().spec, dir)
}

/// The decoder of this architecture with the weights of a directory.
pub fn decoder_of(spec: DecoderSpec, dir: &Path) -> Decoder {
    let mut source = Tensors {
        checkpoint: Checkpoint::open(dir).unwrap(),
        vars: None,
    };
    Decoder::new(spec, &mut source).unwrap()
}

/// The decoder with its weights as variables, by name.
pub fn trainable(dir: &Path) -> (Decoder, Vec<(String, Var)>) {
    let config = ModelConfig::from_dir(dir).unwrap();
    let mut source = Tensors {
        checkpoint: Checkpoint::open(dir).unwrap(),
        vars: Some(BTreeMap::new()),
    };
    let decoder = Decoder::new(config.spec, &mut source).unwrap();
    (decoder, source.vars.unwrap().into_iter().collect())
}

fn arrays(path: &Path) -> std::collections::HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

pub fn difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}

/// Logits of sequences that go through the decoder together, each attending to itself.
pub fn dense<S: AsRef<[u32]>>(decoder: &Decoder, sequences: &[S]) -> Tensor {
    let batch: PackedBatch = sequences.iter().map(S::as_ref).collect();
    let backend = AttentionBackend::Dense {
        cu_seqlens: batch.cu_seqlens(),
    };
    let hidden = decoder.forward(batch.as_packed(), &backend).unwrap();
    decoder.logits(&hidden).unwrap()
}

/// The fixture's three sequences end to end, and their golden logits.
pub fn golden(dir: &Path) -> (Vec<Vec<u32>>, Vec<Tensor>) {
    let golden = arrays(&dir.join("golden.safetensors"));
    (0..3)
        .map(|i| {
            let ids = golden[&format!("ids.{i}")].to_vec1().unwrap();
            (ids, golden[&format!("logits.{i}")].clone())
        })
        .unzip()
}

/// The folders of all fixtures.
pub fn architectures() -> Vec<std::path::PathBuf> {
    let mut dirs: Vec<_> = std::fs::read_dir(fixture("arch"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    dirs.sort();
    assert!(dirs.len() >= 25, "{} fixtures", dirs.len());
    dirs
}

#[test]
fn every_architecture_gives_transformers_logits_alone_and_packed() {
    for dir in architectures() {
        let decoder = decoder(&dir);
        let (sequences, logits) = golden(&dir);
        for (ids, want) in sequences.iter().zip(&logits) {
            let d = difference(&dense(&decoder, &[ids]), want);
            assert!(d < 1e-4, "{} differs by {d}", dir.display());
        }
        let packed = dense(&decoder, &sequences);
        let mut start = 0;
        for (i, ids) in sequences.iter().enumerate() {
            let part = packed.narrow(0, start, ids.len()).unwrap();
            start += ids.len();
            let d = difference(&part, &dense(&decoder, &[ids]));
            assert!(
                d < 1e-5,
                "{} sequence {i}: packing changes the logits by {d}",
                dir.display()
            );
        }
    }
}

/// Runs the sequences over a paged cache, `chunk` new tokens of each at a time, blocks handed out in a scattered order.
fn paged(
    decoder: &Decoder,
    sequences: &[Vec<u32>],
    block_size: usize,
    chunk: usize,
) -> Vec<Tensor> {
    let prompts: Vec<usize> = sequences.iter().map(Vec::len).collect();
    paged_behind(decoder, sequences, &prompts, block_size, chunk)
}

/// [`paged`], the first tokens of each sequence being its prompt.
fn paged_behind(
    decoder: &Decoder,
    sequences: &[Vec<u32>],
    prompts: &[usize],
    block_size: usize,
    chunk: usize,
) -> Vec<Tensor> {
    let spec = decoder.spec();
    let longest = sequences.iter().map(Vec::len).max().unwrap();
    let per_sequence = longest.div_ceil(block_size);
    let num_blocks = per_sequence * sequences.len();
    let caches: Vec<KvCache> = (0..decoder.num_layers())
        .map(|_| {
            let (heads, dim) = (spec.num_kv_heads, spec.head_dim);
            KvCache::new(num_blocks, block_size, heads, dim, DType::F32, &Device::Cpu).unwrap()
        })
        .collect();
    // A stride that shares no factor with the count visits every block once, in an order of its own.
    let stride = (2..).find(|s| gcd(*s, num_blocks) == 1).unwrap();
    let blocks: Vec<u32> = (0..num_blocks)
        .map(|i| (i * stride % num_blocks) as u32)
        .collect();
    let mut logits: Vec<Vec<Tensor>> = vec![Vec::new(); sequences.len()];
    let mut done = 0;
    while done < longest {
        let mut batch = PackedBatch::default();
        let (mut tables, mut running) = (Vec::new(), Vec::new());
        for (s, sequence) in sequences.iter().enumerate().filter(|(_, q)| q.len() > done) {
            let end = (done + chunk).min(sequence.len());
            batch.push_beside(&sequence[done..end], end, prompts[s], sequence.len());
            tables.push(blocks[s * per_sequence..(s + 1) * per_sequence].to_vec());
            running.push(s);
        }
        let metadata = AttentionMetadata::new(
            batch.cu_seqlens().to_vec(),
            batch.seq_lens().to_vec(),
            tables,
            block_size,
            num_blocks,
        )
        .unwrap();
        let backend = AttentionBackend::Paged {
            caches: &caches,
            metadata: &metadata,
        };
        let hidden = decoder.forward(batch.as_packed(), &backend).unwrap();
        let rows = decoder.logits(&hidden).unwrap();
        for (&s, w) in running.iter().zip(batch.cu_seqlens().windows(2)) {
            logits[s].push(
                rows.narrow(0, w[0] as usize, (w[1] - w[0]) as usize)
                    .unwrap(),
            );
        }
        done += chunk;
    }
    logits
        .iter()
        .map(|parts| Tensor::cat(parts, 0).unwrap())
        .collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[test]
fn a_paged_cache_in_any_layout_and_chunking_is_the_dense_forward() {
    for dir in architectures() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let decoder = decoder(&dir);
        let (sequences, logits) = golden(&dir);
        for (block_size, chunk) in [(1, 1), (4, 7), (16, 64), (5, 3)] {
            for (s, got) in paged(&decoder, &sequences, block_size, chunk)
                .iter()
                .enumerate()
            {
                let d = difference(got, &logits[s]);
                assert!(
                    d < 1e-4,
                    "{name}, blocks of {block_size}, chunks of {chunk}: {d}"
                );
            }
        }
    }
}

/// Of tests/fixtures/make_dynamic_rope.py: a prompt, what follows it, and the logits that transformers' formula gives over its cache.
#[test]
fn dynamic_scaling_gives_the_logits_of_transformers_generation_served_and_trained() {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("dynamic_rope.json")).unwrap()).unwrap();
    let decoder = decoder(&fixture("arch/llama_dynamic"));
    let mut sequences: Vec<Vec<u32>> = Vec::new();
    let (mut prompts, mut wanted) = (Vec::new(), Vec::new());
    for case in golden["logits"].as_array().unwrap() {
        sequences.push(serde_json::from_value(case["ids"].clone()).unwrap());
        prompts.push(case["prompt"].as_u64().unwrap() as usize);
        let rows: Vec<Vec<f32>> = serde_json::from_value(case["logits"].clone()).unwrap();
        wanted.push(rows);
    }
    assert!(wanted.len() >= 4);
    let check = |how: &str, s: usize, logits: &Tensor| {
        let rows: Vec<Vec<f32>> = logits.to_vec2().unwrap();
        assert_eq!(rows.len(), wanted[s].len());
        for (at, (row, wanted)) in rows.iter().zip(&wanted[s]).enumerate() {
            for (got, wanted) in row.iter().zip(wanted) {
                assert!(
                    (got - wanted).abs() < 1e-4,
                    "{how}, sequence {s}, token {at}: {got} for {wanted}"
                );
            }
        }
    };
    for (block_size, chunk) in [(1, 1), (4, 7), (16, 64), (5, 3)] {
        let served = paged_behind(&decoder, &sequences, &prompts, block_size, chunk);
        for (s, logits) in served.iter().enumerate() {
            check(&format!("chunks of {chunk}"), s, logits);
        }
    }
    let mut batch = PackedBatch::default();
    for (ids, &prompt) in sequences.iter().zip(&prompts) {
        batch.push_answered(ids, prompt);
    }
    let backend = AttentionBackend::Dense {
        cu_seqlens: batch.cu_seqlens(),
    };
    let hidden = decoder.forward(batch.as_packed(), &backend).unwrap();
    let logits = decoder.logits(&hidden).unwrap();
    let mut start = 0;
    for (s, ids) in sequences.iter().enumerate() {
        check("training", s, &logits.narrow(0, start, ids.len()).unwrap());
        start += ids.len();
    }
}

#[test]
fn stories260k_reproduces_its_goldens() {
    let dir = data("stories260k");
    let decoder = decoder(&dir);
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    let ids_of =
        |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let mut checked = 0;
    for prompt in golden["prompts"].as_array().unwrap() {
        let ids = ids_of(&prompt["prompt_ids"]);
        let logits = dense(&decoder, &[&ids]);
        let last: Vec<f32> = logits.get(ids.len() - 1).unwrap().to_vec1().unwrap();
        let want: Vec<f32> = serde_json::from_value(prompt["last_logits_first16"].clone()).unwrap();
        for (got, want) in last.iter().zip(&want) {
            // The goldens are rounded to five digits.
            assert!((got - want).abs() < 1e-4, "{got} against {want}");
        }
        // The continuation, token by token over the cache.
        let want = ids_of(&prompt["greedy_ids"]);
        let mut whole = ids.clone();
        whole.extend_from_slice(&want);
        let logits = &paged(&decoder, &[whole], 8, 1)[0];
        let greedy: Vec<u32> = logits.argmax(1).unwrap().to_vec1().unwrap();
        assert_eq!(greedy[ids.len() - 1..ids.len() - 1 + want.len()], want);
        checked += 1;
    }
    assert!(checked >= 4);
}

/// The fixture's packed batch as the trainer sees it.
fn fixture_batch(dir: &Path) -> (MicroBatch, f64) {
    let batch = arrays(&dir.join("batch.safetensors"));
    let ids: Vec<u32> = batch["ids"].to_vec1().unwrap();
    let weights: Vec<f32> = batch["weights"].to_vec1().unwrap();
    let cu_seqlens: Vec<u32> = batch["cu_seqlens"].to_vec1().unwrap();
    let examples: Vec<TrainExample> = cu_seqlens
        .windows(2)
        .map(|w| {
            let range = w[0] as usize..w[1] as usize;
            TrainExample {
                ids: ids[range.clone()].to_vec(),
                weights: weights[range].to_vec(),
                kind: ExampleKind::Sft,
                label: None,
            }
        })
        .collect();
    let mut packed = pack(&examples, usize::MAX);
    (
        packed.remove(0),
        weights.iter().map(|&w| f64::from(w)).sum(),
    )
}

#[test]
fn loss_gradients_and_steps_are_pytorchs() {
    for name in ["llama", "qwen3"] {
        let dir = fixture("jsft").join(name);
        let golden: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        let want = arrays(&dir.join("grads.safetensors"));
        let (batch, weight) = fixture_batch(&dir);
        for recompute in [false, true] {
            let (decoder, vars) = trainable(&dir);
            let config = OptimConfig {
                beta1: number(&golden["betas"][0]),
                beta2: number(&golden["betas"][1]),
                eps: number(&golden["eps"]),
                weight_decay: number(&golden["weight_decay"]),
                max_grad_norm: number(&golden["max_grad_norm"]),
                ..OptimConfig::default()
            };
            let mut optimizer = Optimizer::new(&vars, config).unwrap();
            let mut grads = optimizer.grad_buffers().unwrap();
            for step in 0..3 {
                grads.zero().unwrap();
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
                )
                .unwrap();
                let loss = number(&golden["losses"][step]);
                assert!(
                    (stats.loss - loss).abs() < 1e-5,
                    "{name} step {step}: {} against {loss}",
                    stats.loss
                );
                if step == 0 {
                    assert_eq!(want.len(), vars.len());
                    for (name, _) in &vars {
                        let index = grads.index_of(name).unwrap();
                        let got = grads.to_tensor(index).unwrap();
                        let d = difference(&got, &want[name]);
                        assert!(d < 1e-4, "the gradient of {name} differs by {d}");
                        let values: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
                        assert!(values.iter().all(|g| g.is_finite()));
                        assert!(
                            values.iter().any(|&g| g != 0.0),
                            "{name} receives no gradient"
                        );
                    }
                }
                optimizer
                    .clip_and_step(&grads, number(&golden["lr"]))
                    .unwrap();
            }
            let after = arrays(&dir.join("after.safetensors"));
            for (name, var) in &vars {
                let d = difference(var.as_tensor(), &after[name]);
                assert!(d < 1e-4, "{name} differs by {d} after three steps");
            }
        }
    }
}

#[test]
fn splitting_a_batch_changes_nothing_but_rounding() {
    let dir = fixture("jsft/llama");
    let (whole, weight) = fixture_batch(&dir);
    let examples: Vec<TrainExample> = whole
        .tokens
        .cu_seqlens()
        .windows(2)
        .map(|w| {
            let range = w[0] as usize..w[1] as usize;
            let ids = whole.tokens.ids()[range.clone()].to_vec();
            let mut weights = vec![0.0; ids.len()];
            for (&row, &weight) in whole.rows.iter().zip(&whole.weights) {
                if range.contains(&(row as usize)) {
                    weights[row as usize + 1 - range.start] = weight;
                }
            }
            TrainExample {
                ids,
                weights,
                kind: ExampleKind::Sft,
                label: None,
            }
        })
        .collect();
    let (decoder, vars) = trainable(&dir);
    let gradients = |max_tokens: usize| {
        let optimizer = Optimizer::new(&vars, OptimConfig::default()).unwrap();
        let mut grads = optimizer.grad_buffers().unwrap();
        let mut loss = 0.0;
        for batch in pack(&examples, max_tokens) {
            let mut accumulator = Accumulator {
                vars: &vars,
                grads: &mut grads,
            };
            let stats = forward_backward(&decoder, &batch, weight, false, (0, 0), &mut accumulator);
            loss += stats.unwrap().loss;
        }
        (loss, grads)
    };
    let (loss, together) = gradients(usize::MAX);
    let (split_loss, apart) = gradients(1);
    assert!((loss - split_loss).abs() < 1e-6);
    for i in 0..together.len() {
        let (a, b) = (together.to_tensor(i).unwrap(), apart.to_tensor(i).unwrap());
        assert!(difference(&a, &b) < 1e-5);
    }
}

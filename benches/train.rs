//! A benchmark of training: tokens a second of a whole optimizer step, and the time of its parts.
//!
//! `cargo bench --bench train -- [--hidden N --layers N --heads N --kv-heads N --ffn N --vocab N --tokens N --lanes N
//! --recompute]` prints one JSON line. `benches/peers/jsft_torch.py` prints the same for PyTorch.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::{Tensor, Var};
use model::{Decoder, ModelConfig, ModelError, ParameterSource, random_parameters};
use train::{
    batch::pack,
    lanes::Lanes,
    mixture::{ExampleKind, TrainExample},
    optim::{OptimConfig, Optimizer},
    pass::Accumulator,
    step::forward_backward,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Vars(BTreeMap<String, Var>);

impl ParameterSource for Vars {
    fn tensor(&mut self, name: &str, _shape: &[usize]) -> Result<Tensor, ModelError> {
        Ok(self.0[name].as_tensor().clone())
    }
}

fn argument(name: &str, default: usize) -> usize {
    let mut args = std::env::args();
    args.find(|a| a == &format!("--{name}"))
        .and_then(|_| args.next())
        .map_or(default, |v| v.parse().expect("a number"))
}

fn main() -> anyhow::Result<()> {
    kernels::device::init_threads(None)?;
    let recompute = std::env::args().any(|a| a == "--recompute");
    let (hidden, layers, vocab) = (
        argument("hidden", 192),
        argument("layers", 6),
        argument("vocab", 640),
    );
    let (heads, kv_heads, ffn) = (
        argument("heads", 6),
        argument("kv-heads", 6),
        argument("ffn", 512),
    );
    let (tokens, steps) = (argument("tokens", 8192), argument("steps", 8));
    let lane_count = argument("lanes", 1);
    let json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": ffn, "vocab_size": vocab, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu",
    });
    let spec = ModelConfig::from_json(&json.to_string())?.spec;
    let parameters = spec.num_parameters();
    let vars: Vec<(String, Var)> = random_parameters(&spec, 1)?
        .into_iter()
        .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?)))
        .collect::<candle_core::Result<_>>()?;
    let decoder = Decoder::new(spec, &mut Vars(vars.iter().cloned().collect()))?;

    // Lengths are those of the default model's mixture: a third are answers, and two thirds are judgments with one target.
    let mut examples = Vec::new();
    let (mut total, mut i) = (0, 0usize);
    while total < tokens {
        let judge = i % 3 != 0;
        let len = if judge {
            60 + i * 7 % 30
        } else {
            25 + i * 5 % 20
        };
        examples.push(TrainExample {
            ids: (0..len)
                .map(|t| ((t * 31 + i * 17) % vocab) as u32)
                .collect(),
            weights: (0..len)
                .map(|t| f32::from(if judge { t == len - 1 } else { t > 15 }))
                .collect(),
            kind: if judge {
                ExampleKind::Judge
            } else {
                ExampleKind::Sft
            },
            label: judge.then(|| len - 1),
        });
        total += len;
        i += 1;
    }
    let batches = pack(&examples, tokens / lane_count);
    let mut optimizer = Optimizer::new(&vars, OptimConfig::default())?;
    let threads = rayon::current_num_threads();
    let mut lanes = Lanes::new(lane_count, threads, || optimizer.grad_buffers())?;
    let mut times = Vec::new();
    for _ in 0..steps {
        let start = Instant::now();
        lanes.run(&batches, |batch, grads| {
            let mut accumulator = Accumulator { vars: &vars, grads };
            forward_backward(&decoder, batch, 100.0, recompute, (0, 0), &mut accumulator)
        })?;
        optimizer.clip_and_step(lanes.gradients(), 1e-4)?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{}",
        serde_json::json!({
            "parameters": parameters, "tokens_per_step": total, "seconds_per_step": median,
            "tokens_per_second": total as f64 / median,
            "gflops": 6.0 * parameters as f64 * total as f64 / median / 1e9,
        })
    );
    Ok(())
}

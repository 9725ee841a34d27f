//! A benchmark of one DPO step: seconds and peak memory of reference, policy, backward pass and update.
//! `benches/peers/dpo_trl.py` measures the same with TRL.
//!
//! `cargo bench --bench dpo -- --model DIR [--pairs 4 --prompt-tokens 128 --response-tokens 128 --rank 16 --steps 5]` `
//! [--micro-batch-tokens 1024] [--recompute] [--precompute-ref]` prints one JSON line. The first step is not counted. Token ids
//! are random, since the cost of a step does not depend on them.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use train::{
    base::FrozenBase,
    dpo::{DpoConfig, DpoTrainer, PairExample},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn text(name: &str) -> Option<String> {
    let mut args = std::env::args();
    args.find(|a| a == &format!("--{name}"))?;
    args.next()
}

fn argument(name: &str, default: usize) -> usize {
    text(name).map_or(default, |v| v.parse().expect("a number"))
}

fn flag(name: &str) -> bool {
    std::env::args().any(|a| a == format!("--{name}"))
}

/// Returns the peak resident memory in MiB, where the system reports it.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

fn main() -> anyhow::Result<()> {
    kernels::device::init_threads(None)?;
    let Some(model) = text("model").map(PathBuf::from) else {
        eprintln!("skipped: --model DIR is missing");
        return Ok(());
    };
    let base = FrozenBase::load(&model, &Device::Cpu)?;
    let vocab = base.spec().vocab_size as u32;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut ids = |count| (0..count).map(|_| rng.random_range(0..vocab)).collect();
    let (prompt, response) = (
        argument("prompt-tokens", 128),
        argument("response-tokens", 128),
    );
    let pairs: Vec<PairExample> = (0..argument("pairs", 4))
        .map(|_| PairExample::new(ids(prompt), ids(response), ids(response)))
        .collect();
    let mut config = DpoConfig {
        micro_batch_tokens: argument("micro-batch-tokens", 1024),
        recompute: flag("recompute"),
        ..DpoConfig::default()
    };
    config.lora.r = argument("rank", 16);
    config.lora.lora_alpha = 2.0 * config.lora.r as f64;
    // A small rate keeps the loss near ln 2.
    config.schedule.learning_rate = 1e-7;
    let steps = argument("steps", 5);
    let mut trainer = DpoTrainer::new(&base, None, None, config, steps as u64 + 1)?;
    let loaded = peak_memory();

    let mut reference = None;
    let (mut times, mut loss) = (Vec::new(), f64::NAN);
    for step in 0..=steps {
        let began = Instant::now();
        if !flag("precompute-ref") || reference.is_none() {
            reference = Some(trainer.reference_logps(&pairs, &mut || {})?);
        }
        if let Some(reference) = &reference {
            loss = trainer.update(&pairs, reference, &mut || {})?.loss;
        }
        if step > 0 {
            times.push(began.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{}",
        serde_json::json!({
            "pairs": pairs.len(), "prompt_tokens": prompt, "response_tokens": response,
            "tokens_computed": pairs.len() * (prompt + 2 * response),
            "threads": rayon::current_num_threads(), "loss": loss,
            "seconds_per_step": times.get(times.len() / 2),
            "memory_mib_loaded": loaded, "memory_mib_peak": peak_memory(),
        })
    );
    Ok(())
}

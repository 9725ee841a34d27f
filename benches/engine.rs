//! A benchmark of whole engine steps, compared with the limits of this machine.
//!
//! `cargo bench --bench engine [-- FILTER] [--threads N]` prints one table: first prompts computed alone, then steps in which B
//! sequences decode one token each. Weights are random, in bf16, int8 and int4, of the shape of SmolLM2-135M. Requests go through the engine's
//! handle, so a step is all of scheduling, model, sampling and delivery. Times are medians.

mod roofs;

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use engine::{Engine, EngineConfig, GenerateRequest, SamplingParams, StreamEvent};
use kernels::{
    linear::{PackedLinear, WeightFormat},
    nn::Linear,
};
use model::{Decoder, DecoderSpec, ModelConfig, ModelError, ParameterSource, WeightStore};
use roofs::Roofs;
use telemetry::Metrics;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The length of the prompts before the steps that decode.
const CONTEXT: usize = 128;

/// The number of tokens that each sequence decodes.
const STEPS: usize = 64;

/// Weights with a normal distribution, packed in a format as in serving.
struct Random(WeightFormat);

impl ParameterSource for Random {
    fn tensor(&mut self, _name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        Ok(match shape.len() {
            1 => Tensor::ones(shape, DType::F32, &Device::Cpu)?,
            _ => Tensor::randn(0f32, 0.02, shape, &Device::Cpu)?,
        })
    }

    fn linear(&mut self, path: &str, shape: [usize; 2], _bias: bool) -> Result<Linear, ModelError> {
        let weight = self.tensor(path, &shape)?.to_dtype(DType::BF16)?;
        let format = match (self.0, path) {
            (WeightFormat::Int4, "model.embed_tokens") => WeightFormat::Int8,
            (format, _) => format,
        };
        let packed = PackedLinear::from_tensor(&weight, None, format)?;
        Ok(Linear::packed(packed, None))
    }
}

fn medium() -> Result<DecoderSpec, ModelError> {
    let json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu",
    });
    Ok(ModelConfig::from_json(&json.to_string())?.spec)
}

fn argument(name: &str) -> Option<usize> {
    let mut args = std::env::args();
    args.find(|a| a == name)?;
    args.next()?.parse().ok()
}

fn main() -> anyhow::Result<()> {
    kernels::device::init_threads(argument("--threads"))?;
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let wants = |row: &str| filter.as_ref().is_none_or(|f| row.contains(f.as_str()));
    let roofs = Roofs::measure();
    println!("{roofs}");
    println!(
        "{:<18} {:>9} {:>9} {:>9} {:>5} {:>7} {:>5}",
        "step", "ms", "tokens/s", "GFLOP/s", "%", "GB/s", "%"
    );
    for format in [WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
        if wants_any(format, &wants) {
            measure(format, &roofs, &wants)?;
        }
    }
    Ok(())
}

const PREFILLS: [usize; 4] = [128, 256, 512, 1024];
const DECODES: [usize; 5] = [1, 4, 8, 16, 64];

/// The name of a row.
fn row(format: WeightFormat, step: &str, count: usize) -> String {
    format!("{step} {count} {format}")
}

fn wants_any(format: WeightFormat, wants: &impl Fn(&str) -> bool) -> bool {
    let prefills = PREFILLS.map(|tokens| row(format, "prefill", tokens));
    let decodes = DECODES.map(|sequences| row(format, "decode", sequences));
    prefills.iter().chain(&decodes).any(|row| wants(row))
}

/// Measures a model whose weights are kept in this format.
fn measure(
    format: WeightFormat,
    roofs: &Roofs,
    wants: &impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    let spec = medium()?;
    let mut work = Work::of(&spec);
    let decoder = Decoder::new(spec, &mut Random(format))?;
    work.weights = decoder.bytes() as f64;
    let weights = WeightStore::new(decoder);
    let config = EngineConfig {
        kv_cache_memory: 1 << 30,
        prefix_caching: false,
        // A step computes one token of each sequence, and whole prompts.
        max_drafts: 0,
        target_itl: None,
        ..EngineConfig::default()
    };
    let (engine, thread) = Engine::start(weights, &config, Metrics::new("medium").engine)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for tokens in PREFILLS {
        let row = row(format, "prefill", tokens);
        if wants(&row) {
            let seconds = runtime.block_on(prefill(&engine, tokens))?;
            work.print(&row, roofs, seconds, tokens, 1, tokens);
        }
    }
    for sequences in DECODES {
        let row = row(format, "decode", sequences);
        if wants(&row) {
            let seconds = runtime.block_on(decode(&engine, sequences))?;
            work.print(
                &row,
                roofs,
                seconds,
                sequences,
                sequences,
                CONTEXT + STEPS / 2,
            );
        }
    }
    drop(engine);
    thread.join();
    Ok(())
}

/// The least work of a step.
struct Work {
    /// The numbers in the linear layers of all blocks. `head` has those of the head.
    blocks: f64,
    head: f64,
    /// The bytes of all of them in memory.
    weights: f64,
    /// The keys and values of a token. A query head does as many multiply-adds with its own.
    kv: f64,
    /// The number of query heads that share a KV head.
    group: f64,
}

impl Work {
    fn of(spec: &DecoderSpec) -> Self {
        let count = |shape: [usize; 2]| (shape[0] * shape[1]) as f64;
        let layers = spec.num_layers() as f64;
        let block: f64 = spec
            .block_linears(0)
            .into_iter()
            .map(|(_, shape)| count(shape))
            .sum();
        Self {
            blocks: layers * block,
            head: count([spec.vocab_size, spec.hidden_size]),
            weights: 0.0,
            kv: layers * (2 * spec.num_kv_heads * spec.head_dim) as f64,
            group: (spec.num_heads / spec.num_kv_heads) as f64,
        }
    }

    /// Prints a row. `tokens` tokens are computed, `rows` of them go through the head, and each sequence ends with `context`
    /// keys.
    fn print(
        &self,
        row: &str,
        roofs: &Roofs,
        seconds: f64,
        tokens: usize,
        rows: usize,
        context: usize,
    ) {
        let (tokens, rows, context) = (tokens as f64, rows as f64, context as f64);
        // Attention is causal: a token of a prompt attends to half of the prompt on average.
        let seen = if tokens > rows {
            context / 2.0
        } else {
            context
        };
        let attention = tokens * seen * self.kv * self.group;
        let gflops = 2e-9 * (tokens * self.blocks + rows * self.head + attention) / seconds;
        // Keys and values are kept in bf16.
        let kv = rows * context * self.kv * size_of::<half::bf16>() as f64;
        let gbytes = 1e-9 * (self.weights + kv) / seconds;
        println!(
            "{row:<18} {:>9.2} {:>9.1} {gflops:>9.1} {:>5.0} {gbytes:>7.1} {:>5.0}",
            seconds * 1e3,
            tokens / seconds,
            100.0 * gflops / roofs.gflops,
            100.0 * gbytes / roofs.gbytes,
        );
    }
}

fn request(tokens: usize, sequence: usize, new_tokens: usize) -> GenerateRequest {
    let prompt = (0..tokens).map(|t| ((t * 31 + sequence * 1009) % 49152) as u32);
    let mut params = SamplingParams::new(new_tokens, Vec::new());
    params.seed = Some(sequence as u64);
    GenerateRequest::new(prompt.collect(), params)
}

/// Returns the seconds from a prompt that runs alone to its first token.
async fn prefill(engine: &Engine, tokens: usize) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for i in 0..11 {
        let start = Instant::now();
        let mut stream = engine.submit(request(tokens, i, 1))?;
        while stream.next().await.is_some() {}
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

/// Returns the seconds of a step in which all sequences decode: the gaps between tokens of the sequence that began last.
async fn decode(engine: &Engine, sequences: usize) -> anyhow::Result<f64> {
    let mut gaps = Vec::new();
    for _ in 0..3 {
        // The last sequence ends first, so that all others run during its steps.
        let streams: Vec<_> = (0..sequences)
            .map(|i| {
                let last = i + 1 == sequences;
                let more = if last { 0 } else { sequences };
                engine.submit(request(CONTEXT, i, STEPS + more))
            })
            .collect::<Result<_, _>>()?;
        let mut tasks: Vec<_> = streams
            .into_iter()
            .map(|mut stream| async move {
                let mut times = Vec::new();
                while let Some(event) = stream.next().await {
                    if matches!(event, StreamEvent::Token { .. }) {
                        times.push(Instant::now());
                    }
                }
                times
            })
            .collect();
        let last = tasks.pop().expect("there is a sequence");
        let (times, _) = futures::join!(last, futures::future::join_all(tasks));
        gaps.extend(times.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()));
    }
    Ok(median(gaps))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

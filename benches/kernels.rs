//! A benchmark of the CPU's fused ops, compared with their plain versions on candle and with the limits of this machine.
//!
//! `cargo bench --bench kernels [-- FILTER]` prints one table. The limits are measured first, in the same run: the rate of
//! independent multiply-adds in registers, and the rate at which all threads read memory. A share of bandwidth above 100 % means
//! that a cache served the bytes. Times are the best of many, since other work on the machine can only add to them.

mod roofs;

use std::hint::black_box;

use candle_core::{DType, Device, Result, Tensor};
use kernels::{
    attention::{AttentionMetadata, AttentionParams, paged_attention, paged_plain},
    glu::{self, Activation},
    kv_store::{self, KvCache, kv_store},
    linear::{PackedLinear, WeightFormat, gemm_f32},
    logprob, rms_norm, rope,
};
use roofs::{Roofs, best};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The least work of a call.
struct Work {
    flops: f64,
    bytes: f64,
}

struct Table {
    roofs: Roofs,
    filter: Option<String>,
}

impl Table {
    fn wants(&self, op: &str) -> bool {
        self.filter.as_ref().is_none_or(|f| op.contains(f))
    }

    fn header(&self) {
        println!(
            "{:<16} {:<34} {:>11} {:>11} {:>7} {:>9} {:>5} {:>8} {:>5}",
            "op", "shape", "plain us", "fused us", "times", "GFLOP/s", "%", "GB/s", "%"
        );
    }

    fn row(&self, op: &str, shape: &str, plain: Option<f64>, fused: f64, work: &Work) {
        let (gflops, gbytes) = (work.flops / fused / 1e9, work.bytes / fused / 1e9);
        println!(
            "{op:<16} {shape:<34} {:>11} {:>11.1} {:>7} {gflops:>9.1} {:>5.0} {gbytes:>8.1} {:>5.0}",
            plain.map_or("-".to_owned(), |p| format!("{:.1}", p * 1e6)),
            fused * 1e6,
            plain.map_or("-".to_owned(), |p| format!("{:.1}", p / fused)),
            100.0 * gflops / self.roofs.gflops,
            100.0 * gbytes / self.roofs.gbytes,
        );
    }
}

fn main() -> Result<()> {
    // Cargo passes `--bench`. The first other argument is the filter.
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let roofs = Roofs::measure();
    println!("{roofs}");
    let table = Table { roofs, filter };
    table.header();
    gemm(&table);
    linear(&table)?;
    attention(&table)?;
    store(&table)?;
    rows(&table)
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::rand(-1f32, 1f32, shape, &Device::Cpu)
}

/// Measures the three matrix products of training, one way of transposing each.
fn gemm(table: &Table) {
    if !table.wants("gemm") {
        return;
    }
    for (tokens, k, n) in [(8192, 192, 512), (2048, 576, 1536)] {
        let x = vec![0.5f32; tokens * k];
        let w = vec![0.5f32; n * k];
        let mut y = vec![0f32; tokens * n];
        let (mut dx, mut dw) = (vec![0f32; tokens * k], vec![0f32; n * k]);
        let work = Work {
            flops: 2.0 * (tokens * k * n) as f64,
            bytes: 4.0 * (tokens * (k + n) + k * n) as f64,
        };
        let shape = format!("{tokens} tokens, {k} -> {n}");
        let time = best(|| {
            gemm_f32(tokens, n, k, &x, (k, 1), &w, (1, k), &mut y, (n, 1), false);
        });
        table.row("gemm y", &shape, None, time, &work);
        let time = best(|| {
            gemm_f32(tokens, k, n, &y, (n, 1), &w, (k, 1), &mut dx, (k, 1), false);
        });
        table.row("gemm dx", &shape, None, time, &work);
        let time = best(|| {
            gemm_f32(n, k, tokens, &y, (1, n), &x, (k, 1), &mut dw, (k, 1), true);
        });
        table.row("gemm dw", &shape, None, time, &work);
    }
}

/// Measures layers of a model of 135 million parameters and of one of a billion.
fn linear(table: &Table) -> Result<()> {
    if !table.wants("linear") {
        return Ok(());
    }
    for (k, n) in [(576, 1536), (2048, 8192)] {
        let weight = random(&[n, k])?;
        let layers = [
            WeightFormat::F32,
            WeightFormat::Bf16,
            WeightFormat::Int8,
            WeightFormat::Int4,
        ]
        .map(|format| PackedLinear::from_tensor(&weight, None, format));
        for m in [1, 4, 16, 64, 512] {
            let x = random(&[m, k])?;
            let plain = best(|| {
                black_box(
                    x.matmul(&weight.t().expect("a matrix"))
                        .expect("shapes fit"),
                );
            });
            for layer in &layers {
                let Ok(layer) = layer else { continue };
                let time = best(|| {
                    black_box(layer.apply(&x).expect("shapes fit"));
                });
                let work = Work {
                    flops: 2.0 * (m * k * n) as f64,
                    bytes: (layer.bytes() + 4 * m * (k + n)) as f64,
                };
                let op = format!("linear {:?}", layer.format()).to_lowercase();
                table.row(&op, &format!("m {m}, {k} -> {n}"), Some(plain), time, &work);
            }
        }
    }
    Ok(())
}

/// Returns a batch of equal sequences over a cache whose blocks are in no order.
fn batch(
    sequences: usize,
    context: usize,
    q_len: usize,
    heads: (usize, usize, usize),
    dtype: DType,
) -> Result<(Tensor, KvCache, AttentionMetadata)> {
    const BLOCK: usize = 16;
    let (heads, kv_heads, head_dim) = heads;
    let each = context / BLOCK;
    let blocks = sequences * each;
    let cache = KvCache::new(blocks, BLOCK, kv_heads, head_dim, dtype, &Device::Cpu)?;
    let kv = random(&[blocks * BLOCK, kv_heads, head_dim])?;
    let slots: Vec<u32> = (0..(blocks * BLOCK) as u32).collect();
    kv_store(&cache, &kv, &kv, &slots)?;
    // The number 7919 is prime, so the tables visit every block once.
    let tables = (0..sequences)
        .map(|s| {
            (0..each)
                .map(|b| ((s * each + b) * 7919 % blocks) as u32)
                .collect()
        })
        .collect();
    let metadata = AttentionMetadata::new(
        (0..=sequences as u32).map(|s| s * q_len as u32).collect(),
        vec![context as u32; sequences],
        tables,
        BLOCK,
        blocks,
    )
    .map_err(candle_core::Error::wrap)?;
    Ok((
        random(&[sequences * q_len, heads, head_dim])?,
        cache,
        metadata,
    ))
}

fn attention(table: &Table) -> Result<()> {
    if !table.wants("attention") {
        return Ok(());
    }
    let params = AttentionParams {
        scale: 0.125,
        window: None,
        soft_cap: None,
    };
    for heads in [(9, 3, 64), (32, 8, 64)] {
        for (sequences, context, q_len) in [
            (1, 128, 1),
            (1, 1024, 1),
            (1, 4096, 1),
            (4, 1024, 1),
            (16, 128, 1),
            (16, 1024, 1),
            (16, 4096, 1),
            (1, 128, 128),
            (1, 1024, 1024),
            (1, 4096, 256),
            (8, 256, 256),
        ] {
            for dtype in [DType::F32, DType::BF16] {
                let (q, cache, metadata) = batch(sequences, context, q_len, heads, dtype)?;
                let plain = best(|| {
                    black_box(paged_plain(&q, &cache, &metadata, params).expect("shapes fit"));
                });
                let time = best(|| {
                    black_box(paged_attention(&q, &cache, &metadata, params).expect("shapes fit"));
                });
                let (heads, kv_heads, head_dim) = heads;
                let seen: usize = (context - q_len + 1..=context).sum();
                let read = 2 * sequences * context * kv_heads * head_dim;
                let work = Work {
                    flops: 4.0 * (sequences * heads * head_dim * seen) as f64,
                    bytes: (read * dtype.size_in_bytes()) as f64,
                };
                let op = if q_len == 1 {
                    "attention decode"
                } else {
                    "attention prefill"
                };
                let kept = match dtype {
                    DType::F32 => "",
                    _ => ", bf16",
                };
                let shape = format!(
                    "{heads}/{kv_heads} x{head_dim}, {sequences} of {q_len} in {context}{kept}"
                );
                table.row(op, &shape, Some(plain), time, &work);
            }
        }
    }
    Ok(())
}

fn store(table: &Table) -> Result<()> {
    if !table.wants("kv_store") {
        return Ok(());
    }
    for (tokens, kv_heads, head_dim) in [(1, 3, 64), (16, 3, 64), (512, 3, 64), (4096, 8, 64)] {
        let blocks = 4096;
        let cache = KvCache::new(blocks, 16, kv_heads, head_dim, DType::F32, &Device::Cpu)?;
        let kv = random(&[tokens, kv_heads, head_dim])?;
        let slots: Vec<u32> = (0..tokens)
            .map(|t| (t * 7919 % (blocks * 16)) as u32)
            .collect();
        let plain = best(|| kv_store::plain(&cache, &kv, &kv, &slots).expect("shapes fit"));
        let time = best(|| kv_store(&cache, &kv, &kv, &slots).expect("shapes fit"));
        let work = Work {
            flops: 0.0,
            bytes: (tokens * kv_heads * head_dim * 4 * 2 * 2) as f64,
        };
        table.row(
            "kv_store",
            &format!("{tokens} tokens, {kv_heads} x{head_dim}"),
            Some(plain),
            time,
            &work,
        );
    }
    Ok(())
}

/// Measures the ops on rows, of a layer of width 576 or a vocabulary of 49152.
fn rows(table: &Table) -> Result<()> {
    for tokens in [1, 64, 2048] {
        let shape = |what: &str| format!("{tokens} x {what}");
        let bytes = |elements: usize| Work {
            flops: 0.0,
            bytes: (tokens * elements * 4) as f64,
        };
        if table.wants("rms_norm") {
            let (x, w) = (random(&[tokens, 576])?, random(&[576])?);
            let plain = best(|| {
                black_box(rms_norm::plain(&x, &w, 1e-5).expect("shapes fit"));
            });
            let time = best(|| {
                black_box(rms_norm::rms_norm(&x, &w, 1e-5).expect("shapes fit"));
            });
            table.row(
                "rms_norm",
                &shape("576"),
                Some(plain),
                time,
                &bytes(2 * 576),
            );
        }
        if table.wants("rope") {
            let x = random(&[tokens, 9, 64])?;
            let (cos, sin) = (random(&[tokens, 32])?, random(&[tokens, 32])?);
            let plain = best(|| {
                black_box(rope::plain(&x, &cos, &sin).expect("shapes fit"));
            });
            let time = best(|| {
                black_box(rope::rope(&x, &cos, &sin).expect("shapes fit"));
            });
            table.row(
                "rope",
                &shape("9 x64"),
                Some(plain),
                time,
                &bytes(2 * 576 + 64),
            );
        }
        if table.wants("glu") {
            let (gate, up) = (random(&[tokens, 1536])?, random(&[tokens, 1536])?);
            let plain = best(|| {
                black_box(glu::plain(Activation::Silu, &gate, &up).expect("shapes fit"));
            });
            let time = best(|| {
                black_box(glu::glu(Activation::Silu, &gate, &up).expect("shapes fit"));
            });
            table.row("glu", &shape("1536"), Some(plain), time, &bytes(3 * 1536));
        }
    }
    if table.wants("logprob") {
        let (tokens, hidden, vocabulary) = (256, 576, 49152);
        let (x, w) = (random(&[tokens, hidden])?, random(&[vocabulary, hidden])?);
        let targets: Vec<u32> = (0..tokens as u32).collect();
        let plain = best(|| {
            black_box(logprob::plain(&x, &w, &targets, None).expect("shapes fit"));
        });
        let time = best(|| {
            black_box(logprob::logprob(&x, &w, &targets, None).expect("shapes fit"));
        });
        let work = Work {
            flops: 2.0 * (tokens * hidden * vocabulary) as f64,
            bytes: 4.0 * (vocabulary * hidden) as f64,
        };
        let shape = format!("{tokens} of {vocabulary} from {hidden}");
        table.row("logprob", &shape, Some(plain), time, &work);
    }
    Ok(())
}

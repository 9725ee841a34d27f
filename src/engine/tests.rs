//! The engine against the model alone: a request gets the same bits in any mix of requests as it gets alone.

use std::path::Path;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::model_runner::block_bytes;
use super::*;
use kernels::linear::WeightFormat;
use model::{Decoder, LanguageModel, LoadOptions};
use telemetry::{EngineMetrics, Metrics};

pub(super) fn pocket() -> Decoder {
    pocket_in(None)
}

pub(super) fn pocket_in(format: Option<WeightFormat>) -> Decoder {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let options = LoadOptions {
        format,
        ..LoadOptions::default()
    };
    let model = LanguageModel::load(&dir, &options).expect("the model is committed");
    model.decoder().clone()
}

pub(super) fn start(decoder: &Decoder, config: &EngineConfig) -> (Engine, EngineThread) {
    start_store(WeightStore::new(decoder.clone()), config)
}

pub(super) fn start_store(store: WeightStore, config: &EngineConfig) -> (Engine, EngineThread) {
    start_measured(store, config, metrics())
}

fn start_measured(
    store: WeightStore,
    config: &EngineConfig,
    metrics: EngineMetrics,
) -> (Engine, EngineThread) {
    let (engine, thread) = Engine::start(store, config, metrics).unwrap();
    runtime().block_on(engine.ready()).unwrap();
    (engine, thread)
}

/// Returns the default configuration with a cache that is quick to reserve.
pub(super) fn small() -> EngineConfig {
    EngineConfig {
        kv_cache_memory: 16 << 20,
        ..EngineConfig::default()
    }
}

fn metrics() -> EngineMetrics {
    Metrics::new("test").engine
}

/// Returns the bytes of a cache of this many tokens.
pub(super) fn memory(decoder: &Decoder, tokens: usize) -> usize {
    tokens * block_bytes(decoder.spec(), 1, KvCacheDtype::Auto.of(decoder))
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

/// The output of one sample: its tokens, and the bits of their log-probabilities.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Heard {
    pub ids: Vec<u32>,
    pub bits: Vec<u32>,
    pub finished: Option<FinishReason>,
}

pub(super) fn listen(
    stream: &mut RequestStream,
    samples: usize,
) -> (Vec<Heard>, Option<RequestFailure>) {
    runtime().block_on(hear(stream, samples))
}

/// Collects the events of a request.
pub(super) async fn hear(
    stream: &mut RequestStream,
    samples: usize,
) -> (Vec<Heard>, Option<RequestFailure>) {
    let mut heard = vec![Heard::default(); samples];
    let mut failure = None;
    while let Some(event) = stream.next().await {
        match event {
            StreamEvent::Started { .. } | StreamEvent::Prompt(_) => {}
            StreamEvent::Token {
                index,
                id,
                logprobs,
                finished,
            } => {
                let sample = &mut heard[index];
                sample.ids.push(id);
                sample.finished = finished;
                if let Some(logprobs) = logprobs {
                    sample.bits.push(logprobs.token.to_bits());
                    sample
                        .bits
                        .extend(logprobs.chosen.iter().map(|p| p.to_bits()));
                }
            }
            StreamEvent::Failed(why) => failure = Some(why),
        }
    }
    (heard, failure)
}

/// Returns requests of all kinds; many share prefixes of odd lengths.
pub(super) fn requests(rng: &mut ChaCha8Rng, count: usize) -> Vec<GenerateRequest> {
    let shared: Vec<u32> = (0..70).map(|_| rng.random_range(5..380)).collect();
    (0..count)
        .map(|i| {
            let mut prompt = shared[..rng.random_range(1..70)].to_vec();
            prompt.extend((0..rng.random_range(0..30)).map(|_| rng.random_range(5..380u32)));
            let mut params = SamplingParams::new(rng.random_range(1..14), vec![3]);
            params.seed = Some(i as u64);
            params.temperature = [0.0, 0.7, 1.3][i % 3];
            params.top_p = [1.0, 0.9][i % 2];
            params.repetition_penalty = [1.0, 1.2][i / 2 % 2];
            params.logprobs = Some(0);
            params.logprob_ids = vec![7, 11];
            let mut request = GenerateRequest::new(prompt, params);
            request.samples = [1, 1, 3][i / 3 % 3];
            request.priority = rng.random_range(-1..=1);
            request
        })
        .collect()
}

#[test]
fn a_request_gets_the_same_bits_alone_and_in_any_mix() {
    let decoder = pocket();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let requests = requests(&mut rng, 24);
    let alone: Vec<Vec<Heard>> = {
        let config = EngineConfig {
            prefix_caching: false,
            ..small()
        };
        let (engine, _thread) = start(&decoder, &config);
        let one = |request: &GenerateRequest| {
            let mut stream = engine.submit(request.clone()).unwrap();
            listen(&mut stream, request.samples).0
        };
        requests.iter().map(one).collect()
    };
    let mut preemptions = 0;
    // Chunks of all sizes, blocks of odd sizes, pools so small that requests are preempted.
    for (block_size, max_batch_tokens, max_concurrent, kv_tokens) in [
        (16, 512, 64, 8192),
        (7, 9, 8, 600),
        (1, 200, 64, 530),
        (33, 100, 40, 600),
    ] {
        let config = EngineConfig {
            kv_cache_memory: memory(&decoder, kv_tokens),
            block_size,
            max_batch_tokens,
            max_concurrent,
            ..small()
        };
        let (store, metrics) = (WeightStore::new(decoder.clone()), metrics());
        let (engine, thread) = start_measured(store, &config, metrics.clone());
        for round in 0..2 {
            let mut streams: Vec<RequestStream> = requests
                .iter()
                .map(|request| engine.submit(request.clone()).unwrap())
                .collect();
            for ((stream, request), alone) in streams.iter_mut().zip(&requests).zip(&alone) {
                let (heard, failure) = listen(stream, request.samples);
                assert_eq!(failure, None);
                assert_eq!(&heard, alone, "round {round} of {config:?}");
            }
        }
        drop(engine);
        thread.join();
        assert!(metrics.prefix_cache_hits.get() > 0);
        preemptions += metrics.preemptions.get();
    }
    assert!(preemptions > 0);
}

#[test]
fn samples_differ_and_one_seed_repeats_them() {
    let (engine, _thread) = start(&pocket(), &small());
    let draw = |seed| {
        let mut params = SamplingParams::new(12, vec![]);
        params.temperature = 1.5;
        params.seed = seed;
        let mut request = GenerateRequest::new(vec![9, 8, 7], params);
        request.samples = 4;
        listen(&mut engine.submit(request).unwrap(), 4).0
    };
    let drawn = draw(Some(5));
    assert_ne!(drawn[0], drawn[1]);
    assert_eq!(drawn, draw(Some(5)));
    assert_ne!(drawn, draw(Some(6)));
    assert_ne!(draw(None), draw(None));
}

#[test]
fn deadlines_end_requests_that_run_and_requests_that_wait() {
    let config = EngineConfig {
        max_concurrent: 1,
        ..small()
    };
    let (engine, _thread) = start(&pocket(), &config);
    let mut request = GenerateRequest::new(vec![9; 10], SamplingParams::new(400, vec![]));
    request.deadline = Some(Instant::now() + Duration::from_millis(20));
    let mut running = engine.submit(request.clone()).unwrap();
    let mut waiting = engine.submit(request).unwrap();
    for stream in [&mut running, &mut waiting] {
        assert_eq!(listen(stream, 1).1, Some(RequestFailure::DeadlineExceeded));
    }
}

#[test]
fn what_cannot_be_served_is_refused_at_once() {
    let decoder = pocket();
    let config = EngineConfig {
        max_concurrent: 4,
        queue: QueueLimits {
            max_requests: 2,
            max_tokens: 1000,
        },
        ..small()
    };
    let (engine, _thread) = start(&decoder, &config);
    let request = GenerateRequest::new(vec![9; 10], SamplingParams::new(400, vec![]));
    let submit = |change: fn(&mut GenerateRequest)| {
        let mut request = request.clone();
        change(&mut request);
        engine.submit(request).unwrap_err()
    };
    assert_eq!(submit(|r| r.prompt.clear()), SubmitError::EmptyPrompt);
    assert_eq!(
        submit(|r| r.prompt[3] = 384),
        SubmitError::UnknownToken(384)
    );
    assert!(matches!(
        submit(|r| r.prompt = vec![9; 512]),
        SubmitError::PromptTooLong { tokens: 512, .. }
    ));
    assert!(matches!(
        submit(|r| r.samples = 5),
        SubmitError::TooManySamples { .. }
    ));
    assert!(matches!(
        submit(|r| r.params.top_p = f32::NAN),
        SubmitError::Invalid(_)
    ));
    // Four run and two wait: however many requests the engine finishes in the meantime, the queue becomes full.
    let mut streams = Vec::new();
    let refused = loop {
        assert!(streams.len() < 100_000, "the queue is not bounded");
        match engine.submit(request.clone()) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SubmitError::Overloaded(_)), "{refused}");
    assert!(!streams.is_empty());
}

#[test]
fn an_engine_that_could_not_work_is_refused_with_the_numbers() {
    let decoder = pocket();
    let weights = || WeightStore::new(decoder.clone());
    let too_small = EngineConfig {
        kv_cache_memory: memory(&decoder, 496),
        ..small()
    };
    let error = Engine::start(weights(), &too_small, metrics())
        .err()
        .unwrap()
        .to_string();
    let least = memory(&decoder, 512).to_string();
    assert!(
        error.contains("496 tokens") && error.contains(&least),
        "{error}"
    );
    type Change = fn(&mut EngineConfig);
    let none: [(&str, Change); 5] = [
        ("--block-size", |config| config.block_size = 0),
        ("--max-batch-tokens", |config| config.max_batch_tokens = 0),
        ("--max-concurrent", |config| config.max_concurrent = 0),
        ("--max-queued-requests", |config| {
            config.queue.max_requests = 0
        }),
        ("--max-queued-tokens", |config| config.queue.max_tokens = 0),
    ];
    for (flag, change) in none {
        let mut config = small();
        change(&mut config);
        let error = Engine::start(weights(), &config, metrics()).err().unwrap();
        assert_eq!(error.to_string(), format!("{flag} must be at least 1"));
    }
    let stuck = EngineConfig {
        max_batch_tokens: 128,
        max_concurrent: 128,
        ..small()
    };
    assert!(matches!(
        Engine::start(weights(), &stuck, metrics()),
        Err(EngineError::Sizes { .. })
    ));
    for asked in [0, 1, 513] {
        let context = EngineConfig {
            max_model_len: Some(asked),
            ..EngineConfig::default()
        };
        let error = Engine::start(weights(), &context, metrics()).err().unwrap();
        assert!(
            matches!(error, EngineError::Context { most: 512, .. }),
            "{error}"
        );
    }
}

#[test]
fn a_shorter_context_is_kept_to_and_needs_a_smaller_cache() {
    let decoder = pocket();
    let config = EngineConfig {
        max_model_len: Some(64),
        kv_cache_memory: memory(&decoder, 64),
        ..EngineConfig::default()
    };
    let (engine, _thread) = start(&decoder, &config);
    assert_eq!(engine.capacity().max_context, 64);
    let ask = |tokens| {
        engine.submit(GenerateRequest::new(
            vec![9; tokens],
            SamplingParams::new(100, vec![]),
        ))
    };
    let (heard, failure) = listen(&mut ask(60).unwrap(), 1);
    assert_eq!((heard[0].ids.len(), failure), (4, None));
    let error = ask(64).unwrap_err();
    assert!(
        matches!(
            error,
            SubmitError::PromptTooLong {
                max_context: 64,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn levels_of_priority_are_bounded() {
    let (engine, _thread) = start(&pocket(), &EngineConfig::default());
    for (priority, served) in [(-100, true), (100, true), (-101, false), (i32::MAX, false)] {
        let request = GenerateRequest {
            priority,
            ..GenerateRequest::new(vec![9], SamplingParams::new(1, vec![]))
        };
        match engine.submit(request) {
            Ok(_) => assert!(served, "{priority}"),
            Err(SubmitError::Invalid(invalid)) => {
                assert_eq!((invalid.name, served), ("priority", false));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_cache_in_bf16_holds_twice_the_tokens_of_one_in_f32() {
    use KvCacheDtype::{Auto, Bf16, F32};
    /// Sixteen keys and values of two heads of 32, in five layers.
    const BLOCK_BYTES: usize = 16 * 2 * 2 * 32 * 5 * 4;
    let capacity = |format, kv_cache_dtype| {
        let config = EngineConfig {
            // This many blocks of f32, to the byte.
            kv_cache_memory: 200 * BLOCK_BYTES,
            kv_cache_dtype,
            ..small()
        };
        let (engine, _thread) = start(&pocket_in(Some(format)), &config);
        let Capacity {
            kv_tokens,
            kv_bytes,
            kv_dtype,
            ..
        } = engine.capacity();
        (kv_dtype, kv_tokens, kv_bytes)
    };
    let wide = capacity(WeightFormat::F32, F32);
    let narrow = capacity(WeightFormat::Bf16, Bf16);
    assert_eq!((wide.0, narrow.0), (DType::F32, DType::BF16));
    assert_eq!((narrow.1, narrow.2), (2 * wide.1, wide.2));
    // By default the cache has the dtype of the weights; any other can be requested.
    assert_eq!(capacity(WeightFormat::F32, Auto), wide);
    assert_eq!(capacity(WeightFormat::Bf16, Auto), narrow);
    assert_eq!(capacity(WeightFormat::F32, Bf16), narrow);
    assert_eq!(capacity(WeightFormat::Bf16, F32), wide);
}

#[test]
fn the_last_handle_lets_it_finish() {
    let (engine, thread) = start(&pocket(), &small());
    let request = GenerateRequest::new(vec![9; 10], SamplingParams::new(50, vec![]));
    let mut stream = engine.submit(request).unwrap();
    drop(engine);
    thread.join();
    let (heard, failure) = listen(&mut stream, 1);
    assert_eq!((heard[0].ids.len(), failure), (50, None));
}

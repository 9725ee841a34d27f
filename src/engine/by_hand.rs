//! A test engine whose steps the test makes itself, and tests of single steps.

use tokio::sync::mpsc;

use super::core::{Command, EngineCore, Submission};
use super::kv_cache::KvCacheManager;
use super::model_runner::ModelRunner;
use super::request::RequestId;
use super::scheduler::{Scheduler, SchedulerConfig};
use super::tests::{listen, pocket};
use super::*;
use kernels::device::DeviceArbiter;
use model::Decoder;
use telemetry::{EngineMetrics, Metrics};

/// A test engine whose steps the test makes itself.
pub(super) struct ByHand {
    pub core: EngineCore,
    pub metrics: EngineMetrics,
    weights: WeightStore,
    queue: Admission,
    commands: mpsc::UnboundedSender<Command>,
    inbox: mpsc::UnboundedReceiver<Command>,
    next_id: u64,
}

impl ByHand {
    pub fn limits(max_batch_tokens: usize, max_sequences: usize) -> SchedulerConfig {
        SchedulerConfig {
            max_batch_tokens,
            max_sequences,
            target_itl: None,
            max_drafts: 0,
            background: BackgroundConfig::default().limits,
        }
    }

    /// Creates an engine with a cache of `num_blocks` blocks, however few.
    pub fn new(
        decoder: &Decoder,
        limits: SchedulerConfig,
        num_blocks: usize,
        block_size: usize,
    ) -> Self {
        let dtype = KvCacheDtype::Auto.of(decoder);
        let runner = ModelRunner::new(decoder.clone(), num_blocks, block_size, dtype).unwrap();
        let kv = KvCacheManager::new(num_blocks as u32, block_size, true);
        let metrics = Metrics::new("test").engine;
        let arbiter = DeviceArbiter::default();
        let scheduler = Scheduler::new(limits, kv);
        let (commands, inbox) = mpsc::unbounded_channel();
        Self {
            core: EngineCore::new(scheduler, runner, metrics.clone(), arbiter),
            metrics,
            weights: WeightStore::new(decoder.clone()),
            queue: Admission::new(EngineConfig::default().queue, TenantShare::WHOLE),
            commands,
            inbox,
            next_id: 0,
        }
    }

    /// Submits a request and returns the id of its first sample and its stream.
    pub fn submit(&mut self, request: GenerateRequest) -> (RequestId, RequestStream) {
        let (events, receiver) = mpsc::unbounded_channel();
        let (first, samples) = (RequestId(self.next_id), request.samples);
        self.next_id += samples as u64;
        let place = self
            .queue
            .try_enter(request.tenant, request.prompt.len())
            .unwrap();
        self.core
            .handle_command(Command::Submit(Box::new(Submission {
                first,
                weights: self.weights.base().clone(),
                request,
                events,
                place,
                call: None,
            })));
        let engine = self.commands.downgrade();
        (first, RequestStream::new(first, samples, receiver, engine))
    }

    pub fn step(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            self.core.handle_command(command);
        }
        self.core.step();
        self.core.scheduler().kv().check();
    }

    /// Returns the number of requests that wait in the queue.
    pub fn queued(&self) -> usize {
        self.queue.load().requests
    }

    fn used_blocks(&self) -> usize {
        let kv = self.core.scheduler().kv();
        kv.num_blocks() - kv.num_free_blocks()
    }

    fn failed(&self, reason: &str) -> u64 {
        self.metrics
            .requests_failed
            .with_label_values(&[reason])
            .get()
    }
}

/// Returns a request whose answers nearly fill the context.
fn endless(prompt: usize, samples: usize) -> GenerateRequest {
    let mut request = GenerateRequest::new(vec![9; prompt], SamplingParams::new(400, vec![]));
    request.samples = samples;
    request
}

#[test]
fn samplers_are_made_for_what_runs_and_not_for_what_waits() {
    let mut engine = ByHand::new(&pocket(), ByHand::limits(32, 4), 512, 4);
    let streams: Vec<_> = (0..20).map(|_| engine.submit(endless(5, 4)).1).collect();
    assert_eq!(engine.core.samplers(), 0);
    for _ in 0..10 {
        engine.step();
        assert!(engine.core.samplers() <= 4);
    }
    assert_eq!(engine.core.samplers(), 4);
    drop(streams);
    engine.step();
    assert_eq!(engine.core.samplers(), 0);
}

#[test]
fn one_step_after_a_caller_is_gone_its_blocks_are_free() {
    let mut engine = ByHand::new(&pocket(), ByHand::limits(32, 8), 512, 4);
    // Two requests that decode, one in the middle of its prompt (with siblings to follow), and one that waits.
    let mut streams = vec![
        engine.submit(endless(5, 1)).1,
        engine.submit(endless(6, 3)).1,
    ];
    for _ in 0..3 {
        engine.step();
    }
    streams.push(engine.submit(endless(100, 3)).1);
    engine.step();
    streams.push(engine.submit(endless(7, 4)).1);
    engine.step();
    let scheduler = engine.core.scheduler();
    assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (5, 1));
    assert_eq!(engine.queued(), 1);
    let generated = engine.metrics.generation_tokens.get();
    assert!(generated >= 16 && engine.used_blocks() > 15);
    drop(streams);
    engine.step();
    assert_eq!(engine.used_blocks(), 0);
    assert_eq!(engine.core.scheduler().kv().holders(), 0);
    assert!(engine.core.is_idle());
    assert_eq!(engine.queued(), 0);
    assert_eq!(engine.failed("aborted"), 11);
    assert_eq!(engine.metrics.generation_tokens.get(), generated);
    assert_eq!(engine.metrics.kv_cache_usage.get(), 0.0);
    assert_eq!(engine.metrics.requests_running.get(), 0);
}

#[test]
fn whoever_stays_keeps_its_blocks_and_goes_on() {
    let mut engine = ByHand::new(&pocket(), ByHand::limits(32, 8), 512, 4);
    let gone = engine.submit(endless(40, 2)).1;
    let mut stays = endless(6, 1);
    stays.params.stop.max_tokens = 12;
    let (_, mut stays) = engine.submit(stays);
    for _ in 0..4 {
        engine.step();
    }
    drop(gone);
    engine.step();
    let kv = engine.core.scheduler().kv();
    assert_eq!(kv.holders(), 1);
    assert!(engine.used_blocks() <= 4);
    while !engine.core.is_idle() {
        engine.step();
    }
    let (heard, failure) = listen(&mut stays, 1);
    assert_eq!((heard[0].ids.len(), failure), (12, None));
    assert_eq!((engine.failed("aborted"), engine.used_blocks()), (2, 0));
}

#[test]
fn the_others_go_on_where_the_first_sample_is_closed_before_its_prompt_is_computed() {
    let mut engine = ByHand::new(&pocket(), ByHand::limits(16, 4), 64, 4);
    let mut request = GenerateRequest::new(vec![9; 40], SamplingParams::new(5, vec![]));
    (request.samples, request.params.seed) = (3, Some(1));
    let finished = |engine: &mut ByHand, mut stream: RequestStream| {
        while !engine.core.is_idle() {
            engine.step();
        }
        listen(&mut stream, 3)
    };
    let (_, whole) = engine.submit(request.clone());
    let (whole, _) = finished(&mut engine, whole);
    // Before the first step of the request, and after a part of it has been computed.
    for steps in [0, 1] {
        let mut fresh = request.clone();
        // Nothing of the request is in the cache.
        fresh.prompt[0] = 20 + steps as u32;
        let (_, mut stream) = engine.submit(fresh);
        for _ in 0..steps {
            engine.step();
        }
        stream.close(0);
        let (heard, failure) = finished(&mut engine, stream);
        assert_eq!(failure, None);
        let lens: Vec<usize> = heard.iter().map(|sample| sample.ids.len()).collect();
        assert_eq!(lens, [0, 5, 5], "after {steps} steps");
        assert_eq!(engine.queued(), 0);
        assert_eq!(engine.used_blocks(), 0);
    }
    let (_, mut stream) = engine.submit(request);
    stream.close(0);
    let (heard, _) = finished(&mut engine, stream);
    assert_eq!(
        heard[1..],
        whole[1..],
        "each sample draws from a stream of its own"
    );
}

#[test]
fn a_closed_sample_ends_and_its_siblings_go_on() {
    let mut engine = ByHand::new(&pocket(), ByHand::limits(64, 8), 512, 4);
    let mut request = GenerateRequest::new(vec![9; 10], SamplingParams::new(60, vec![]));
    request.samples = 3;
    // Before the prompt is computed, and in the middle of the answer.
    for (steps, heard_of_it) in [(0, 0), (13, 13)] {
        let (_, mut stream) = engine.submit(request.clone());
        for _ in 0..steps {
            engine.step();
        }
        let mut counts = [0; 3];
        let hear = |stream: &mut RequestStream, counts: &mut [usize; 3], events: usize| {
            super::tests::runtime().block_on(async {
                for _ in 0..events {
                    match stream.next().await {
                        Some(StreamEvent::Token { index, .. }) => counts[index] += 1,
                        Some(StreamEvent::Started { .. } | StreamEvent::Prompt(_)) => {}
                        Some(StreamEvent::Failed(failure)) => panic!("{failure}"),
                        None => break,
                    }
                }
            });
        };
        // The `Started` event, and three tokens a step.
        hear(&mut stream, &mut counts, usize::from(steps > 0) + 3 * steps);
        stream.close(1);
        while !engine.core.is_idle() {
            engine.step();
        }
        hear(&mut stream, &mut counts, usize::MAX);
        assert_eq!(counts, [60, heard_of_it, 60], "after {steps} steps");
        assert_eq!((engine.used_blocks(), engine.queued()), (0, 0));
    }
    let finished = |reason| {
        let counter = &engine.metrics.requests_finished;
        counter.with_label_values(&[reason]).get()
    };
    assert_eq!((finished("length"), finished("stop")), (4, 2));
    assert_eq!(engine.metrics.kv_cache_usage.get(), 0.0);
    assert_eq!(engine.metrics.requests_running.get(), 0);
    // A sample that is closed before it starts produces no token; one closed in the middle produces none after that.
    assert_eq!(engine.metrics.generation_tokens.get(), 4 * 60 + 13);
}

#[test]
fn who_has_its_last_token_finds_it_counted_and_everything_given_back() {
    let config = EngineConfig {
        kv_cache_memory: 16 << 20,
        ..EngineConfig::default()
    };
    let metrics = Metrics::new("test").engine;
    let store = WeightStore::new(pocket());
    let (engine, _thread) = Engine::start(store.clone(), &config, metrics.clone()).unwrap();
    let finished = metrics.requests_finished.with_label_values(&["length"]);
    let failed = metrics.requests_failed.with_label_values(&["deadline"]);
    for round in 1..=200 {
        let request = GenerateRequest::new(vec![9; 3], SamplingParams::new(2, vec![]));
        let late = GenerateRequest {
            deadline: Some(Instant::now()),
            ..request.clone()
        };
        let (heard, failure) = listen(&mut engine.submit(request).unwrap(), 1);
        assert_eq!((heard[0].ids.len(), failure), (2, None));
        assert_eq!(
            (finished.get(), metrics.e2e_latency.get_sample_count()),
            (round, round)
        );
        let failure = listen(&mut engine.submit(late).unwrap(), 1).1;
        assert_eq!(failure, Some(RequestFailure::DeadlineExceeded));
        assert_eq!(failed.get(), round);
        assert_eq!(metrics.generation_tokens.get(), 2 * round);
        assert_eq!(metrics.requests_running.get(), 0);
        assert_eq!(metrics.requests_waiting.get(), 0);
        assert_eq!(metrics.kv_cache_usage.get(), 0.0);
        assert_eq!(engine.queue_load(Class::Foreground).requests, 0);
        assert_eq!(store.versions()[0].leases, 0, "no weights are held");
    }
}

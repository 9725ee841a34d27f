//! Warm-up: the model computes a short request before the first client is served.
//!
//! Resources that are created on first use (threads, scratch memory, a GPU's kernels) are ready after it, and a model that
//! cannot compute is detected before the engine reports that it is ready. The request runs through the engine's own code, with a scheduler
//! and metrics that are discarded: it is neither counted nor found in the cache. The blocks it wrote are free.

use tokio::sync::mpsc;

use super::admission::{Admission, QueueLimits, TenantShare};
use super::core::{Command, EngineCore, Submission};
use super::kv_cache::KvCacheManager;
use super::model_runner::ModelRunner;
use super::output::{RequestFailure, StreamEvent};
use super::request::RequestId;
use super::scheduler::{Scheduler, SchedulerConfig};
use super::tenant::Tenant;
use super::{GenerateRequest, SamplingParams};
use kernels::device::DeviceArbiter;
use model::WeightsLease;
use telemetry::Metrics;

/// The number of tokens of the prompt, if the context has room for them.
const PROMPT: usize = 16;
/// The first token is sampled after the prompt, the second after a decode step.
const ANSWER: usize = 2;

/// Computes a prompt and a decode step with `runner`, and returns it.
///
/// # Errors
/// Errors if the model cannot compute, with the reason.
pub fn warm_up(
    runner: ModelRunner,
    limits: SchedulerConfig,
    weights: WeightsLease,
) -> Result<ModelRunner, RequestFailure> {
    let max_context = runner.spec().max_context();
    let prompt = PROMPT.min(max_context.saturating_sub(1));
    if prompt == 0 {
        // The context is too short for any request.
        return Ok(runner);
    }
    let cache = &runner.caches()[0];
    let kv = KvCacheManager::new(cache.num_blocks() as u32, cache.block_size(), false);
    let metrics = Metrics::new("warm-up").engine;
    let scheduler = Scheduler::new(limits, kv);
    let mut core = EngineCore::new(scheduler, runner, metrics, DeviceArbiter::default());
    let mut params = SamplingParams::new(ANSWER.min(max_context - prompt), Vec::new());
    params.temperature = 0.0;
    let only = QueueLimits {
        max_requests: 1,
        max_tokens: prompt,
    };
    let queue = Admission::new(only, TenantShare::WHOLE);
    let place = queue.try_enter(Tenant::server(), prompt);
    let (events, mut heard) = mpsc::unbounded_channel();
    core.handle_command(Command::Submit(Box::new(Submission {
        first: RequestId(0),
        request: GenerateRequest::new(vec![0; prompt], params),
        weights,
        events,
        place: place.expect("the queue was empty; this is a bug"),
        call: None,
    })));
    while !core.is_idle() {
        core.step();
    }
    while let Ok(event) = heard.try_recv() {
        if let StreamEvent::Failed(failure) = event {
            return Err(failure);
        }
    }
    Ok(core.into_runner())
}

#[cfg(test)]
mod tests {
    use super::super::by_hand::ByHand;
    use super::super::tests::{memory, pocket, runtime};
    use super::super::{Engine, EngineConfig, EngineError, KvCacheDtype, Readiness};
    use super::*;
    use model::WeightStore;

    #[test]
    fn it_computes_a_prompt_and_a_step_and_leaves_its_blocks_free() {
        let decoder = pocket();
        let dtype = KvCacheDtype::F32.of(&decoder);
        let runner = ModelRunner::new(decoder.clone(), 4, 16, dtype).unwrap();
        let sums = |runner: &ModelRunner| -> Vec<f32> {
            let sum = |block| {
                let keys = runner.caches()[0].k().get(block).unwrap();
                keys.abs().unwrap().sum_all().unwrap().to_scalar().unwrap()
            };
            (0..4).map(sum).collect()
        };
        assert_eq!(sums(&runner), [0.0; 4]);
        let limits = ByHand::limits(8, 4);
        let store = WeightStore::new(decoder);
        let runner = warm_up(runner, limits, store.base().clone()).unwrap();
        let written = sums(&runner);
        let blocks = written.iter().filter(|&&sum| sum > 0.0).count();
        assert_eq!(
            blocks, 2,
            "a block of the prompt, and one of what was decoded"
        );
        assert_eq!(store.versions()[0].leases, 0);
    }

    #[test]
    fn nothing_of_it_is_counted_or_found() {
        let decoder = pocket();
        let config = EngineConfig {
            kv_cache_memory: memory(&decoder, 1024),
            ..EngineConfig::default()
        };
        let metrics = Metrics::new("test");
        let store = WeightStore::new(decoder);
        let (engine, _thread) = Engine::start(store, &config, metrics.engine.clone()).unwrap();
        runtime().block_on(engine.ready()).unwrap();
        assert_eq!(engine.readiness(), Readiness::Ready);
        // The process's own metrics (CPU time, memory) move with the clock, and the bytes of the weights are no work.
        let own = |metrics: &Metrics| -> Vec<String> {
            let lines = metrics.render();
            let own = lines.lines().filter(|line| line.starts_with("selfjudge:"));
            let own = own.filter(|line| !line.starts_with("selfjudge:weights_bytes"));
            own.map(str::to_owned).collect()
        };
        assert_eq!(own(&metrics), own(&Metrics::new("test")));
        let mut request = GenerateRequest::new(vec![0; PROMPT], SamplingParams::new(1, vec![]));
        request.params.temperature = 0.0;
        let mut stream = engine.submit(request).unwrap();
        let first = runtime().block_on(stream.next());
        let found = matches!(
            first,
            Some(StreamEvent::Started {
                num_cached_tokens: 0,
                ..
            })
        );
        assert!(found, "{first:?}");
    }

    #[test]
    fn nobody_is_told_that_it_is_ready_before() {
        let decoder = pocket();
        let config = EngineConfig {
            kv_cache_memory: memory(&decoder, 512),
            ..EngineConfig::default()
        };
        let store = WeightStore::new(decoder);
        let (mut engine, _thread) =
            Engine::start(store, &config, Metrics::new("test").engine).unwrap();
        let outcome = |sent| {
            let (sender, warmed_up) = tokio::sync::watch::channel(None);
            engine.warmed_up = warmed_up;
            assert_eq!(engine.readiness(), Readiness::WarmingUp);
            if let Some(sent) = sent {
                sender.send(Some(sent)).unwrap();
            }
            drop(sender);
            (runtime().block_on(engine.ready()), engine.readiness())
        };
        let outcomes: Vec<_> = [
            Some(Ok(())),
            Some(Err(RequestFailure::Model("no".into()))),
            None,
        ]
        .into_iter()
        .map(outcome)
        .collect();
        assert!(matches!(outcomes[0], (Ok(()), Readiness::Ready)));
        assert!(matches!(
            outcomes[1],
            (Err(EngineError::WarmUp(_)), Readiness::Down)
        ));
        assert!(matches!(outcomes[2].0, Err(EngineError::Ended)));
    }
}

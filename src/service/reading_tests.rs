//! When reads come to the engine.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::engine::EngineConfig;
use crate::model::LoadOptions;
use crate::preference::Role;
use crate::telemetry::{CallTimes, Metrics};

/// Latencies of the engine are those of its requests; how long a call has been there is the call's.
#[tokio::test]
async fn a_read_is_as_old_as_itself_and_not_as_its_call() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket");
    let model = LanguageModel::load(&dir, &LoadOptions::default()).unwrap();
    let weights = WeightStore::new(model.decoder().clone());
    let metrics = Metrics::new("test");
    let engine = Engine::start(weights, &EngineConfig::default(), metrics.engine.clone());
    let service = Service::new(engine.unwrap().0, &model, &dir, metrics.judge.clone()).unwrap();
    let age = Duration::from_secs(100);
    let task = JudgeTask {
        context: vec![Message::new(Role::User, "What is 34 plus 28?")],
        principles: Vec::new(),
        orders: Orders::Both,
        weights: None,
        turn: Turn {
            arrival: Instant::now().checked_sub(age).unwrap(),
            ..Turn::now()
        },
    };
    let call = CallTimes::default();
    let judged = call.clone().scope(service.judge_pair(&task, "62", "52"));
    judged.await.unwrap();
    let engine = &metrics.engine;
    for histogram in [
        &engine.queue_time,
        &engine.time_to_first_token,
        &engine.e2e_latency,
    ] {
        assert_eq!(histogram.get_sample_count(), 2);
        assert!(histogram.get_sample_sum() < age.as_secs_f64());
    }
    assert!(call.report().unwrap().queue.unwrap() >= age.as_secs_f64());
}

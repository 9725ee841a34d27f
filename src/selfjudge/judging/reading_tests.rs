//! Arrival times of reads at the engine.

use std::path::Path;
use std::time::Instant;

use super::*;
use engine::EngineConfig;
use model::{LanguageModel, LoadOptions, WeightStore};
use telemetry::{CallTimes, Metrics};
use text::Role;

/// The engine's latencies count from the arrival of its requests; the time since the arrival of the call is the call's own.
#[tokio::test]
async fn a_read_is_as_old_as_itself_and_not_as_its_call() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let model = LanguageModel::load(&dir, &LoadOptions::default()).unwrap();
    let weights = WeightStore::new(model.decoder().clone());
    let metrics = Metrics::new("test");
    let engine = Engine::start(weights, &EngineConfig::default(), metrics.engine.clone());
    let (tokenizer, chat) = (model.tokenizer().clone(), model.chat_template().clone());
    let judge = Judge::from_model_dir(&dir, tokenizer, chat, model.max_context()).unwrap();
    let model_judge = ModelJudge::new(engine.unwrap().0, judge, metrics.judge.clone());
    let arrival = Instant::now();
    let judge = async |arrival: Instant, call: &CallTimes, number: usize| {
        let task = JudgeTask {
            context: vec![Message::new(Role::User, "What is 34 plus 28?")],
            principles: Vec::new(),
            orders: Orders::Both,
            on_disagreement: OnDisagreement::default(),
            weights: None,
            turn: Turn {
                arrival,
                ..Turn::now()
            },
        };
        let (a, b) = (format!("{number} it is"), format!("{number} is it"));
        let judged = call.clone().scope(model_judge.judge_pair(&task, &a, &b));
        judged.await.unwrap();
    };
    // The call waits while some others run, including the engine's first steps.
    for number in 0..20 {
        judge(Instant::now(), &CallTimes::default(), number).await;
    }
    let engine = &metrics.engine;
    let histograms = [
        &engine.queue_time,
        &engine.time_to_first_token,
        &engine.e2e_latency,
    ];
    let before = histograms.map(|histogram| histogram.get_sample_sum());
    let (sent, call) = (Instant::now(), CallTimes::default());
    judge(arrival, &call, 100).await;
    let own = sent.elapsed().as_secs_f64();
    let waited = (sent - arrival).as_secs_f64();
    for (histogram, before) in histograms.into_iter().zip(before) {
        // Metrics are counted before the answer is sent.
        assert_eq!(histogram.get_sample_count(), 2 * 21);
        // Counted from the arrival of the call, each would exceed `waited`.
        let both = histogram.get_sample_sum() - before;
        assert!(both <= 2.0 * own, "{both} of {own}, after {waited}");
    }
    assert!(call.report().unwrap().queue.unwrap() >= waited);
}

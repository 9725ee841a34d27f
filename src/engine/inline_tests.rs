//! The engine on the caller's thread.

use std::path::Path;
use std::time::Duration;

use super::tests::{hear, listen, pocket, runtime, small, start};
use super::*;
use kernels::linear::WeightFormat;
use model::{LanguageModel, LoadOptions};

fn loaded(format: Option<WeightFormat>) -> LanguageModel {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let options = LoadOptions {
        format,
        ..LoadOptions::default()
    };
    LanguageModel::load(&dir, &options).unwrap()
}

fn inline(model: &LanguageModel) -> InlineEngine {
    InlineEngine::with_config(WeightStore::new(model.decoder().clone()), &small()).unwrap()
}

fn prompts(model: &LanguageModel) -> Vec<Vec<u32>> {
    [
        "Reverse the word tamo.",
        "What is 12 plus 7?",
        "Sort 5 3 9 from low to high.",
    ]
    .iter()
    .map(|text| model.tokenizer().encode_text(text).unwrap())
    .collect()
}

fn params(model: &LanguageModel, max_tokens: usize, temperature: f32, seed: u64) -> SamplingParams {
    SamplingParams {
        temperature,
        seed: Some(seed),
        ..SamplingParams::new(max_tokens, model.stop_ids().to_vec())
    }
}

#[test]
fn a_continuation_does_not_depend_on_its_batch() {
    let model = loaded(None);
    let mut engine = inline(&model);
    let prompts = prompts(&model);
    let params = params(&model, 12, 0.0, 3);
    let together = engine.complete(&prompts, &params).unwrap();
    for (prompt, want) in prompts.iter().zip(&together) {
        let alone = engine
            .complete(std::slice::from_ref(prompt), &params)
            .unwrap();
        assert_eq!(&alone[0], want);
        assert!(!want.ids.is_empty());
    }
    let labels = [5, 9];
    let read = engine.label_logprobs(&prompts, labels).unwrap();
    for (prompt, want) in prompts.iter().zip(&read) {
        let alone = engine
            .label_logprobs(std::slice::from_ref(prompt), labels)
            .unwrap();
        assert_eq!(
            &alone[0], want,
            "a judge's read must not depend on its neighbours"
        );
    }
}

#[test]
fn the_same_seed_draws_the_same_and_another_does_not() {
    let model = loaded(None);
    let mut engine = inline(&model);
    let prompts = vec![prompts(&model).remove(0); 8];
    let mut draw = |seed| {
        engine
            .complete(&prompts, &params(&model, 16, 1.5, seed))
            .unwrap()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert!(
        draw(1).windows(2).any(|w| w[0] != w[1]),
        "streams must differ"
    );
    assert!(
        draw(1)[1..]
            .iter()
            .zip(draw(2))
            .all(|(one, two)| *one != two),
        "prompts of adjacent seeds must not share streams"
    );
}

#[test]
fn prompts_that_cannot_be_continued_are_errors() {
    let model = loaded(None);
    let mut engine = inline(&model);
    for prompt in [vec![], vec![1; model.max_context()], vec![1_000_000]] {
        let prompt = std::slice::from_ref(&prompt);
        assert!(engine.complete(prompt, &params(&model, 4, 0.0, 0)).is_err());
    }
    assert!(engine.label_logprobs(&[vec![]], [1, 2]).is_err());
    assert!(engine.label_logprobs(&[vec![1]], [1, 1_000_000]).is_err());
    // The other prompts of a refused call are given up, and the next call is answered.
    let refused = engine.complete(
        &[vec![9; 30], vec![1_000_000]],
        &params(&model, 400, 1.0, 0),
    );
    assert!(refused.is_err());
    assert!(engine.label_logprobs(&[vec![1]], [1, 2]).is_ok());
    assert_eq!(engine.handle().queue_load(Class::Foreground).requests, 0);
}

#[test]
fn bf16_kept_in_memory_computes_what_f32_does() {
    let (wide, narrow) = (
        loaded(Some(WeightFormat::F32)),
        loaded(Some(WeightFormat::Bf16)),
    );
    let prompts = prompts(&wide);
    let a = inline(&wide).label_logprobs(&prompts, [5, 9]).unwrap();
    let b = inline(&narrow).label_logprobs(&prompts, [5, 9]).unwrap();
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        // Exact where weights are widened; activations are rounded where the processor multiplies bf16.
        assert!((a - b).abs() < 0.1 + 0.02 * a.abs(), "{a} against {b}");
    }
}

#[test]
fn integers_kept_in_memory_compute_nearly_what_f32_does() {
    let wide = loaded(Some(WeightFormat::F32));
    let prompts = prompts(&wide);
    let exact = inline(&wide).label_logprobs(&prompts, [5, 9]).unwrap();
    for (format, most) in [(WeightFormat::Int8, 0.5), (WeightFormat::Int4, 4.0)] {
        let narrow = loaded(Some(format));
        let all = inline(&narrow).label_logprobs(&prompts, [5, 9]).unwrap();
        for (own, exact) in all.iter().flatten().zip(exact.iter().flatten()) {
            assert!(
                (own - exact).abs() < most,
                "{format}: {own} against {exact}"
            );
        }
        // Alone each prompt has the bits that it has among the others.
        for (prompt, want) in prompts.iter().zip(&all) {
            let alone = inline(&narrow).label_logprobs(std::slice::from_ref(prompt), [5, 9]);
            assert_eq!(alone.unwrap()[0], *want, "{format}");
        }
    }
}

#[test]
fn its_answers_are_the_bits_of_the_engine_with_a_thread() {
    let decoder = pocket();
    let request = || GenerateRequest {
        samples: 3,
        ..GenerateRequest::new(
            vec![9; 20],
            SamplingParams {
                seed: Some(4),
                logprobs: Some(2),
                ..SamplingParams::new(24, vec![])
            },
        )
    };
    let (served, _thread) = start(&decoder, &small());
    let want = listen(&mut served.submit(request()).unwrap(), 3);
    let store = WeightStore::new(decoder);
    let mut engine = InlineEngine::with_config(store, &small()).unwrap();
    let mut stream = engine.handle().submit(request()).unwrap();
    assert_eq!(engine.run(hear(&mut stream, 3)), want);
}

/// More prompts than the queue holds, in an order that is not that of their ends.
#[test]
fn more_prompts_than_the_queue_holds_are_answered_in_their_order() {
    let model = loaded(None);
    let config = EngineConfig {
        queue: QueueLimits {
            max_requests: 3,
            max_tokens: 100,
        },
        max_concurrent: 4,
        ..small()
    };
    let store = WeightStore::new(model.decoder().clone());
    let mut engine = InlineEngine::with_config(store, &config).unwrap();
    let prompts: Vec<Vec<u32>> = (0..40_u32)
        .map(|at| vec![9 + at; 1 + at as usize % 7])
        .collect();
    let params = params(&model, 9, 1.0, 2);
    let together = engine.complete(&prompts, &params).unwrap();
    let larger = inline(&model).complete(&prompts, &params).unwrap();
    assert_eq!(together, larger);
    assert!(
        together
            .iter()
            .any(|one| one.finished == FinishReason::Stop || one.ids.len() == 9)
    );
}

#[test]
fn a_future_may_wait_for_another_thread() {
    let mut engine = InlineEngine::with_config(WeightStore::new(pocket()), &small()).unwrap();
    let (done, wait) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        done.send(7).unwrap();
    });
    assert_eq!(engine.run(wait).unwrap(), 7);
    thread.join().unwrap();
    assert_eq!(runtime().block_on(engine.handle().ready()).ok(), Some(()));
    assert_eq!(engine.handle().readiness(), Readiness::Ready);
}

//! Drafts change no bit of an answer, whatever the request asks for.

use std::time::Duration;

use super::by_hand::ByHand;
use super::scheduler::Work;
use super::scheduler_tests::{World, config};
use super::tests::{Heard, listen, pocket_in};
use super::*;
use kernels::linear::WeightFormat;
use model::Decoder;

/// Returns the answers to the requests one after the other, with up to `drafts` drafts a step, and the number of steps.
fn answers(decoder: &Decoder, requests: &[GenerateRequest], drafts: usize) -> (Vec<Heard>, usize) {
    let mut limits = ByHand::limits(64, 8);
    limits.max_drafts = drafts;
    let mut engine = ByHand::new(decoder, limits, 64, 4);
    let (mut heard, mut steps) = (Vec::new(), 0);
    for request in requests {
        let (_, mut stream) = engine.submit(request.clone());
        while !engine.core.is_idle() {
            // Steps of equal cost, whatever this machine measures: drafts pay.
            for tokens in [1, 2, 4, 8, 16] {
                engine
                    .core
                    .observe(Work::after(0, tokens), Duration::from_millis(1));
            }
            engine.step();
            steps += 1;
        }
        let (samples, failure) = listen(&mut stream, request.samples);
        assert_eq!(failure, None);
        heard.extend(samples);
    }
    let kv = engine.core.scheduler().kv();
    assert_eq!(kv.num_free_blocks(), kv.num_blocks());
    (heard, steps)
}

/// Returns requests of every kind of draw, with prompts that repeat themselves.
fn requests() -> Vec<GenerateRequest> {
    let mut requests = Vec::new();
    for case in 0..24u64 {
        let period = 3 + case as u32 % 5;
        let prompt = (0..40).map(|at| 20 + at % period).collect();
        let mut params = SamplingParams::new(5 + 7 * case as usize % 60, vec![3]);
        params.temperature = [0.0, 0.0, 0.7][case as usize % 3];
        params.seed = Some(case);
        params.top_k = [0, 10][case as usize % 2];
        params.repetition_penalty = [1.0, 1.0, 1.2][case as usize / 2 % 3];
        params.frequency_penalty = [0.0, 0.4][case as usize / 4 % 2];
        params.logit_bias = vec![(21, 2.0), (22, 2.0)];
        params.logprobs = Some(2);
        params.stop.min_tokens = case as usize % 4;
        let mut request = GenerateRequest::new(prompt, params);
        request.samples = [1, 1, 1, 2][case as usize % 4];
        requests.push(request);
    }
    requests
}

#[test]
fn answers_are_the_same_to_the_bit_and_take_fewer_steps() {
    for format in [WeightFormat::F32, WeightFormat::Bf16] {
        let decoder = pocket_in(Some(format));
        let requests = requests();
        let (without, steps) = answers(&decoder, &requests, 0);
        for drafts in [1, 3, 8] {
            let (with, fewer) = answers(&decoder, &requests, drafts);
            for (case, (with, without)) in with.iter().zip(&without).enumerate() {
                assert_eq!(
                    with, without,
                    "case {case} with {drafts} drafts in {format:?}"
                );
            }
            assert!(fewer < steps, "{fewer} steps instead of {steps}");
        }
    }
}

#[test]
fn a_sequence_that_repeats_itself_takes_a_step_for_all_drafts_and_one_token() {
    let produced = |drafts: usize, second_sequence: bool| {
        let mut config = config(64, 4);
        config.max_drafts = drafts;
        let mut world = World::new(200, config, true);
        let mut expected = [4, 5, 6].into_iter().cycle();
        let first = world.add(&[4, 5, 6, 4, 5, 6], 300, 1);
        if second_sequence {
            world.add(&[1, 2, 3], 300, 1);
        }
        for _ in 0..40 {
            let (output, _) = world.step(|id| match id == first {
                true => expected.next().unwrap(),
                false => 7,
            });
            world
                .scheduler
                .observe(output.work, Duration::from_millis(1));
        }
        let request = world.scheduler.request(first).unwrap();
        request.num_output_tokens()
    };
    assert_eq!(produced(0, false), 40);
    let with_drafts = produced(4, false);
    assert!((180..=200).contains(&with_drafts), "{with_drafts}");
    assert_eq!(produced(4, true), 40, "only a sequence that runs alone");
}

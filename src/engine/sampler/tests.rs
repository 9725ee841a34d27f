use std::collections::BTreeMap;

use serde::Deserialize;

use super::draw::{draw, draw_from_all};
use super::truncation;
use super::*;
use kernels::logits::weights;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    repetition_penalty: f32,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    prompt: Vec<u32>,
    output: Vec<u32>,
    logits: Vec<f32>,
    probabilities: Vec<f64>,
}

impl Sampler {
    /// Draws one token and takes it.
    pub fn sample(
        &mut self,
        params: &SamplingParams,
        logits: &[f32],
    ) -> Result<SampledToken, DrawError> {
        self.advance(params);
        let drawn = self.spec(params).draw(logits)?;
        Ok(self.accept(params, drawn).unwrap())
    }
}

fn params() -> SamplingParams {
    SamplingParams::new(100, vec![])
}

#[test]
fn distributions_are_those_of_transformers() {
    let golden: Golden =
        serde_json::from_str(include_str!("../../../tests/fixtures/sampling.json")).unwrap();
    assert!(golden.cases.len() > 100);
    for case in golden.cases {
        let params = SamplingParams {
            repetition_penalty: case.repetition_penalty,
            temperature: case.temperature,
            top_k: case.top_k,
            top_p: case.top_p,
            min_p: case.min_p,
            ..params()
        };
        let mut logits = case.logits.clone();
        if let Some(mut seen) = Seen::new(&params, &case.prompt) {
            case.output.iter().for_each(|&id| seen.push(id));
            seen.penalise(&params, &mut logits);
        }
        let candidates = truncation::candidates(&params, &logits);
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut ours = vec![0.0; logits.len()];
        for (id, weight) in candidates {
            ours[id as usize] = weight / total;
        }
        // Which of several equally probable tokens stay at the edge of the nucleus depends on the sort: they are compared as a group.
        let mut by_logit: BTreeMap<u32, Vec<(f64, f64)>> = BTreeMap::new();
        for (logit, pair) in logits.iter().zip(ours.into_iter().zip(case.probabilities)) {
            by_logit.entry(logit.to_bits()).or_default().push(pair);
        }
        for (logit, equals) in by_logit {
            let sorted = |which: fn(&(f64, f64)) -> f64| {
                let mut values: Vec<f64> = equals.iter().map(which).collect();
                values.sort_by(f64::total_cmp);
                values
            };
            for (ours, theirs) in sorted(|pair| pair.0).into_iter().zip(sorted(|pair| pair.1)) {
                assert!(
                    (ours - theirs).abs() < 2e-6,
                    "{ours} where transformers has {theirs} for logit {}: {params:?}",
                    f32::from_bits(logit)
                );
            }
        }
    }
}

#[test]
fn a_nucleus_beyond_the_first_look_is_found() {
    // Nearly uniform over 5000: half the mass takes half the tokens.
    let logits: Vec<f32> = (0..5000).map(|i| 1e-6 * i as f32).collect();
    let params = SamplingParams {
        top_p: 0.5,
        ..params()
    };
    let kept = truncation::candidates(&params, &logits);
    assert!((2490..=2500).contains(&kept.len()), "{}", kept.len());
    assert!(kept.iter().all(|&(id, _)| id > 2400));
}

#[test]
fn presence_counts_once_and_frequency_every_time() {
    let params = SamplingParams {
        temperature: 0.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        ..params()
    };
    let mut sampler = Sampler::new(&params, &[1, 1, 1], 0, 0);
    let logits = [0.0, 1.0, 0.2];
    // 1 (1.0), 1 (0.25 left), 2 (0.2 against 0.0 and 0.0), ...: the prompt does not count.
    let drawn: Vec<u32> = (0..4)
        .map(|_| sampler.sample(&params, &logits).unwrap().id)
        .collect();
    assert_eq!(drawn, [1, 1, 2, 0]);
}

#[test]
fn greedy_takes_the_first_of_the_most_probable() {
    let params = SamplingParams {
        temperature: 0.0,
        top_k: 1,
        ..params()
    };
    let mut sampler = Sampler::new(&params, &[], 0, 0);
    assert_eq!(sampler.sample(&params, &[0.0, 2.0, 2.0]).unwrap().id, 1);
}

#[test]
fn bias_bans_and_minimum_lengths_hold() {
    let mut params = SamplingParams::new(4, vec![2]);
    params.temperature = 0.0;
    params.stop.min_tokens = 1;
    params.logit_bias = vec![(0, -100.0)];
    let mut sampler = Sampler::new(&params, &[], 0, 0);
    let logits = [9.0, 1.0, 5.0];
    assert_eq!(sampler.sample(&params, &logits).unwrap().id, 1);
    assert_eq!(sampler.sample(&params, &logits).unwrap().id, 2);
}

#[test]
fn draws_follow_the_distribution_the_seed_and_the_index() {
    let params = params();
    let logits = [0.0, 2f32.ln(), -1e30];
    let draw = |seed, index| {
        let mut sampler = Sampler::new(&params, &[], seed, index);
        (0..3000)
            .map(|_| sampler.sample(&params, &logits).unwrap().id)
            .collect::<Vec<_>>()
    };
    let drawn = draw(1, 0);
    let ones = drawn.iter().filter(|&&id| id == 1).count() as f64 / 3000.0;
    assert!((ones - 2.0 / 3.0).abs() < 0.03, "{ones}");
    assert!(!drawn.contains(&2));
    assert_eq!(drawn, draw(1, 0));
    assert_ne!(drawn, draw(2, 0));
    assert_ne!(drawn, draw(1, 1));
}

#[test]
fn log_probabilities_are_those_before_any_change() {
    let mut params = params();
    params.temperature = 0.0;
    params.logprobs = Some(1);
    params.logprob_ids = vec![0];
    let draw = |params: &SamplingParams| {
        let mut sampler = Sampler::new(params, &[], 0, 0);
        sampler.sample(params, &[0.0, 1.0]).unwrap()
    };
    let plain = draw(&params);
    params.logit_bias = vec![(0, 50.0)];
    let biased = draw(&params);
    assert_eq!((plain.id, biased.id), (1, 0));
    let (plain, biased) = (plain.logprobs.unwrap(), biased.logprobs.unwrap());
    assert_eq!(plain.top, biased.top);
    assert_eq!(plain.chosen, biased.chosen);
    assert_eq!(biased.token, biased.chosen[0]);
}

#[test]
fn drawing_by_blocks_is_drawing() {
    let logits: Vec<f32> = (0..2000).map(|i| ((i * 37) % 101) as f32 * 0.05).collect();
    let weights = weights(&logits, 0.7);
    let candidates = truncation::candidates(
        &SamplingParams {
            temperature: 0.7,
            ..params()
        },
        &logits,
    );
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    for i in 0..500 {
        let share = (f64::from(i) + 0.5) / 500.0;
        assert_eq!(
            draw_from_all(&weights, share),
            draw(&candidates, share * total),
            "{share}"
        );
    }
    assert_eq!(draw_from_all(&[], 0.5), None);
    assert_eq!(draw_from_all(&[0.0, 1.0, 0.0], 1.0), Some(1));
}

#[test]
fn equal_descriptions_draw_equal_tokens() {
    let params = SamplingParams {
        top_p: 0.9,
        repetition_penalty: 1.2,
        ..params()
    };
    let logits: Vec<f32> = (0..300).map(|i| ((i * 37) % 101) as f32 * 0.05).collect();
    let mut sampler = Sampler::new(&params, &[5, 7], 3, 1);
    for _ in 0..20 {
        sampler.advance(&params);
        let spec = sampler.spec(&params);
        let drawn = spec.draw(&logits).unwrap();
        assert_eq!(spec.draw(&logits).unwrap(), drawn);
        sampler.accept(&params, drawn).unwrap();
    }
}

#[test]
fn a_row_that_is_not_finite_is_an_error() {
    let params = params();
    let mut sampler = Sampler::new(&params, &[], 0, 0);
    for bad in [f32::NAN, f32::INFINITY] {
        let drawn = sampler.sample(&params, &[0.0, bad]);
        assert_eq!(drawn, Err(DrawError::NotFinite));
    }
}

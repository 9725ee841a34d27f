//! LongRoPE in the engine: a call that may pass the original length is rotated by the long list from its first token on, so that where its
//! tokens are computed, before the border, across it or beyond it, changes no bit.

use super::by_hand::ByHand;
use super::dynamic_tests::{cached_tokens, finish, served};
use super::tests::{Heard, listen};
use super::*;
use model::Decoder;

/// The length in tokens up to which the short list is meant.
const ORIGINAL: usize = 24;

/// The numbers that [`listen`] hears of a token: its own log-probability and those of two ids.
const NUMBERS: usize = 3;

fn longrope() -> Decoder {
    let decoder = served("phi3_longrope");
    let rope = &decoder.spec().rope;
    assert!(rope.depends_on_length(ORIGINAL + 1) && !rope.depends_on_length(ORIGINAL));
    decoder
}

fn prompt(length: usize) -> Vec<u32> {
    (0..length)
        .map(|i| (i * i * 5 + i * 13) as u32 % 70 + 5)
        .collect()
}

fn request(prompt: Vec<u32>, answer: usize) -> GenerateRequest {
    let mut params = SamplingParams::new(answer, vec![]);
    params.temperature = 0.0;
    params.logprobs = Some(0);
    params.logprob_ids = vec![7, 11];
    GenerateRequest::new(prompt, params)
}

/// Answers a call on an engine that knows nothing, with so many tokens in a step.
fn fresh(decoder: &Decoder, call: GenerateRequest, budget: usize) -> Heard {
    let mut engine = ByHand::new(decoder, ByHand::limits(budget, 4), 256, 4);
    let (_, mut stream) = engine.submit(call);
    finish(&mut engine);
    let (mut heard, failure) = listen(&mut stream, 1);
    assert_eq!(failure, None);
    heard.remove(0)
}

#[test]
fn an_answer_that_crosses_the_original_length_has_the_bits_of_a_fresh_computation() {
    let decoder = longrope();
    for first in [3, ORIGINAL - 1, ORIGINAL, ORIGINAL + 5] {
        let length = ORIGINAL + 18;
        let (prompt, answer) = (prompt(first), length - first);
        let whole = fresh(&decoder, request(prompt.clone(), answer), 64);
        assert_eq!(whole.ids.len(), answer);
        assert_eq!(whole.bits.len(), NUMBERS * answer);
        // The same sequence, its beginning computed as a prompt: one that ends before the border, at it, and beyond it.
        for known in 1..answer {
            for budget in [64, 7] {
                let begun = [&prompt[..], &whole.ids[..known]].concat();
                let rest = fresh(&decoder, request(begun, answer - known), budget);
                assert_eq!(rest.ids, whole.ids[known..], "{first} and {known} tokens");
                let bits = &whole.bits[NUMBERS * known..];
                assert_eq!(rest.bits, bits, "{first} and {known} tokens");
            }
        }
    }
}

#[test]
fn the_list_is_that_of_the_longest_that_a_call_can_become() {
    let decoder = longrope();
    let first = 10;
    let short = fresh(&decoder, request(prompt(first), ORIGINAL - first), 64);
    let long = fresh(&decoder, request(prompt(first), ORIGINAL - first + 1), 64);
    assert_ne!(short.bits[..NUMBERS], long.bits[..NUMBERS]);
    // The border alone counts, not the length beyond it.
    let longer = fresh(&decoder, request(prompt(first), 50), 64);
    let both = long.ids.len();
    assert_eq!(long.ids, longer.ids[..both]);
    assert_eq!(long.bits, longer.bits[..NUMBERS * both]);
}

#[test]
fn keys_of_one_list_are_not_found_by_calls_of_the_other() {
    let decoder = longrope();
    let found = |first: (usize, usize), then: (usize, usize)| {
        let mut engine = ByHand::new(&decoder, ByHand::limits(256, 8), 256, 4);
        let mut found = None;
        for (length, answer) in [first, then] {
            let (_, mut stream) = engine.submit(request(prompt(length), answer));
            finish(&mut engine);
            found = cached_tokens(&mut stream);
        }
        found.unwrap()
    };
    assert_eq!(found((12, 2), (16, 8)), 12);
    assert_eq!(found((16, 20), (30, 4)), 16);
    assert_eq!(found((16, 2), (16, 20)), 0);
    assert_eq!(found((30, 4), (16, 2)), 0);
}

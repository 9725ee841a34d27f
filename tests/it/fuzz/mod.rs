//! Tests of random damage to all input from outside: requests and files. No input may cause a panic, and every refusal has a
//! message.
//!
//! Every run makes the same damage, as a function of the seed. `SELFJUDGE_FUZZ_SEED` sets another seed, and
//! `SELFJUDGE_FUZZ_CASES` multiplies the number of cases.

mod bodies;
mod checkpoints;
mod damage;
mod gguf;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Returns the random generator of one part of the tests.
fn rng(part: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(number("SELFJUDGE_FUZZ_SEED", 1));
    rng.set_stream(part);
    rng
}

/// Returns the number of cases, of which a run by default has `few`.
fn cases(few: usize) -> usize {
    few * number("SELFJUDGE_FUZZ_CASES", 1) as usize
}

//! Random damage to all that comes from outside: requests and files. Whatever comes, nothing panics, and what is refused is
//! refused with a word.
//!
//! Every run does the same: the damage is a function of the seed. `SELFJUDGE_FUZZ_SEED` draws another, `SELFJUDGE_FUZZ_CASES`
//! that many times as much.

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

/// The generator of one part of the work.
fn rng(part: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(number("SELFJUDGE_FUZZ_SEED", 1));
    rng.set_stream(part);
    rng
}

/// How many cases to try where an ordinary run tries `few`.
fn cases(few: usize) -> usize {
    few * number("SELFJUDGE_FUZZ_CASES", 1) as usize
}

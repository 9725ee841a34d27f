//! Seeds of random draws, so that a restarted stage draws what it drew before.

/// The purpose of a random draw. Each purpose has its own stream, so that a stage does not reuse the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    Order,
    Update,
    Contrast,
    Gate,
    Replay,
    /// The offset of a stage among the held-out rows.
    Turn,
}

/// Returns a seed that depends only on the settings, the stage and the prompt's position (MurmurHash3's finaliser, applied twice).
pub fn seed(config: u64, stage: i64, draw: Draw, place: u64) -> u64 {
    let stream = mix(config ^ mix(stage as u64 ^ ((draw as u64) << 56)));
    of_stream(stream, place)
}

/// Returns a seed of another stream for the same prompt: answers that are compared must not be sampled with the same numbers.
pub fn another_seed(seed: u64, stream: u64) -> u64 {
    of_stream(mix(seed), stream)
}

fn of_stream(stream: u64, place: u64) -> u64 {
    // JSON numbers are exact up to 2^53, and both clients' and these seeds appear in JSON.
    mix(stream ^ mix(place.wrapping_add(0x9e37_79b9_7f4a_7c15))) >> 11
}

fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn seeds_differ_by_all_they_depend_on() {
        let mut seen = HashSet::new();
        for stage in 0..4 {
            for draw in [
                Draw::Order,
                Draw::Update,
                Draw::Contrast,
                Draw::Gate,
                Draw::Replay,
                Draw::Turn,
            ] {
                for place in 0..200 {
                    assert!(seen.insert(seed(0, stage, draw, place)));
                }
            }
        }
        assert_eq!(seed(1, 2, Draw::Gate, 3), seed(1, 2, Draw::Gate, 3));
        for stream in 1..3 {
            for of in 0..200 {
                assert!(seen.insert(another_seed(seed(0, 1, Draw::Update, of), stream)));
            }
        }
        assert!(seen.iter().all(|seed| *seed < 1 << 53));
    }
}

//! The encoded mixture in memory, and the order in which it is trained.
//!
//! There may be a few hundred thousand examples, and most of their tokens have no weight: ids are stored flat (two bytes each if the
//! vocabulary allows), weights as runs.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{ExampleKind, TrainExample};

/// The order of examples in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The order of the pairs: for files that already are a curriculum.
    AsGiven,
    #[default]
    Shuffled,
    /// Drawn from a buffer of that many examples, refilled in order: shuffled locally, in the given order globally.
    Windowed(usize),
}

impl Order {
    /// Returns a permutation of `0..count` for one epoch. The same seed and epoch give the same order.
    pub fn indices(self, count: usize, seed: u64, epoch: u64) -> Vec<u32> {
        let mut indices: Vec<u32> = (0..count as u32).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch);
        match self {
            Self::AsGiven => {}
            Self::Shuffled => indices.shuffle(&mut rng),
            Self::Windowed(window) => {
                let mut buffer: Vec<u32> = Vec::with_capacity(window.max(1));
                let mut drawn = Vec::with_capacity(indices.len());
                for index in indices {
                    if buffer.len() < window.max(1) {
                        buffer.push(index);
                    } else {
                        let slot = rng.random_range(0..buffer.len());
                        drawn.push(std::mem::replace(&mut buffer[slot], index));
                    }
                }
                buffer.shuffle(&mut rng);
                drawn.extend(buffer);
                return drawn;
            }
        }
        indices
    }
}

/// Token ids, two bytes each if the vocabulary allows.
#[derive(Debug, Clone)]
enum Ids {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

/// A run of equal, non-zero weights.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u32,
    length: u32,
    weight: f32,
}

/// Examples, in the order of their pairs.
#[derive(Debug, Clone)]
pub struct Examples {
    ids: Ids,
    runs: Vec<Run>,
    /// The ends of each example's ids and runs.
    ends: Vec<(usize, usize)>,
    kinds: Vec<ExampleKind>,
    labels: Vec<Option<u32>>,
}

impl Examples {
    /// Creates an empty store for ids below `vocab_size`.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            ids: if vocab_size <= 1 << 16 {
                Ids::Narrow(Vec::new())
            } else {
                Ids::Wide(Vec::new())
            },
            runs: Vec::new(),
            ends: Vec::new(),
            kinds: Vec::new(),
            labels: Vec::new(),
        }
    }

    pub fn push(&mut self, example: &TrainExample) {
        // Sparse ids of added tokens may be above the vocabulary's size.
        if let Ids::Narrow(narrow) = &self.ids
            && example.ids.iter().any(|id| *id > u32::from(u16::MAX))
        {
            self.ids = Ids::Wide(narrow.iter().map(|id| u32::from(*id)).collect());
        }
        let end = match &mut self.ids {
            Ids::Narrow(ids) => {
                ids.extend(example.ids.iter().map(|id| *id as u16));
                ids.len()
            }
            Ids::Wide(ids) => {
                ids.extend_from_slice(&example.ids);
                ids.len()
            }
        };
        let mut at = 0;
        for run in example.weights.chunk_by(|a, b| a == b) {
            if run[0] != 0.0 {
                self.runs.push(Run {
                    start: at,
                    length: run.len() as u32,
                    weight: run[0],
                });
            }
            at += run.len() as u32;
        }
        self.ends.push((end, self.runs.len()));
        self.kinds.push(example.kind);
        self.labels.push(example.label.map(|label| label as u32));
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the number of tokens of all examples.
    pub fn total_tokens(&self) -> usize {
        self.ends.last().map_or(0, |end| end.0)
    }

    fn start(&self, index: usize) -> (usize, usize) {
        index
            .checked_sub(1)
            .map_or((0, 0), |before| self.ends[before])
    }

    /// Returns the number of tokens of one example. Panics beyond [`Self::len`], like the other accessors.
    pub fn tokens(&self, index: usize) -> usize {
        self.ends[index].0 - self.start(index).0
    }

    pub fn kind(&self, index: usize) -> ExampleKind {
        self.kinds[index]
    }

    pub fn get(&self, index: usize) -> TrainExample {
        let ((from, first_run), (to, last_run)) = (self.start(index), self.ends[index]);
        let ids: Vec<u32> = match &self.ids {
            Ids::Narrow(ids) => ids[from..to].iter().map(|id| u32::from(*id)).collect(),
            Ids::Wide(ids) => ids[from..to].to_vec(),
        };
        let mut weights = vec![0.0; ids.len()];
        for run in &self.runs[first_run..last_run] {
            weights[run.start as usize..(run.start + run.length) as usize].fill(run.weight);
        }
        TrainExample {
            ids,
            weights,
            kind: self.kinds[index],
            label: self.labels[index].map(|label| label as usize),
        }
    }

    /// Returns the indices of one epoch; every example occurs once.
    pub fn order(&self, order: Order, seed: u64, epoch: u64) -> Vec<u32> {
        order.indices(self.len(), seed, epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(ids: &[u32], weights: &[f32]) -> TrainExample {
        TrainExample {
            ids: ids.to_vec(),
            weights: weights.to_vec(),
            kind: ExampleKind::Sft,
            label: None,
        }
    }

    #[test]
    fn examples_come_back_as_they_went_in() {
        let all = [
            example(&[1, 2, 3, 4], &[0.0, 1.0, 1.0, 0.5]),
            example(&[], &[]),
            example(&[9], &[0.0]),
            example(&[65535, 7], &[0.0, 0.25]),
            example(&[70_000, 7, 8], &[0.0, 2.0, 0.0]),
            example(&[5, 6, 7], &[0.0, 0.0, 1.0]),
        ];
        for vocab in [100, 100_000] {
            let mut store = Examples::new(vocab);
            all.iter().for_each(|example| store.push(example));
            assert_eq!(store.len(), all.len());
            assert_eq!(store.total_tokens(), 13);
            for (index, example) in all.iter().enumerate() {
                assert_eq!(&store.get(index), example);
                assert_eq!(store.tokens(index), example.ids.len());
            }
        }
    }

    #[test]
    fn orders_are_permutations_decided_by_seed_and_epoch() {
        let mut store = Examples::new(10);
        (0..500).for_each(|_| store.push(&example(&[1, 2], &[0.0, 1.0])));
        let given: Vec<u32> = (0..500).collect();
        assert_eq!(store.order(Order::AsGiven, 1, 0), given);
        assert_eq!(store.order(Order::Windowed(1), 1, 0), given);
        for order in [Order::Shuffled, Order::Windowed(20)] {
            let drawn = store.order(order, 1, 0);
            assert_eq!(drawn, store.order(order, 1, 0));
            assert_ne!(drawn, store.order(order, 2, 0));
            assert_ne!(drawn, store.order(order, 1, 1));
            assert_ne!(drawn, given);
            let mut sorted = drawn.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, given);
        }
        // With a window, no example comes earlier than the window's size.
        let drawn = store.order(Order::Windowed(20), 3, 0);
        assert!(
            drawn
                .iter()
                .enumerate()
                .all(|(at, index)| *index as usize <= at + 20)
        );
    }

    #[test]
    fn orders_have_plain_names_in_toml() {
        #[derive(Deserialize)]
        struct Config {
            order: Order,
        }
        let read = |text: &str| toml::from_str::<Config>(text).unwrap().order;
        assert_eq!(read("order = 'as_given'"), Order::AsGiven);
        assert_eq!(read("order = 'shuffled'"), Order::Shuffled);
        assert_eq!(read("order = { windowed = 300 }"), Order::Windowed(300));
    }
}

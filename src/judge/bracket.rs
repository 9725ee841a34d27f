//! Tournament brackets: which candidates meet in each round, and which remain. No I/O and no model; the caller supplies the verdicts.
//!
//! [`Method::Knockout`] is SELF-JUDGE's tournament (papers.md 1.8): in every round the survivors are shuffled, one of an odd number
//! advances by a bye, and the winners advance; N-1 matches, ceil(log2 N) rounds. Deviations: the shuffle is seeded, and an exact tie
//! is decided by a seeded coin flip, where the released code takes the second candidate. The other two methods play more matches and rank
//! all candidates by Bradley-Terry strength.

use std::collections::HashSet;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::JudgeError;
use super::bradley_terry::{Game, bradley_terry};

/// The method that finds the best of N candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Single elimination: N-1 matches.
    #[default]
    Knockout,
    /// Every candidate against every other: N(N-1)/2 matches.
    RoundRobin,
    /// A ring in which every candidate meets two others; then all candidates meet the `pivots` strongest of the ring: about N(1 + pivots)
    /// matches.
    Ring { pivots: usize },
}

/// One match: two different candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Match {
    pub first: usize,
    pub second: usize,
}

/// The winner of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Winner {
    A,
    B,
    Tie,
}

/// The result of a match.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// The winner; `A` is the match's first candidate.
    pub winner: Winner,
    /// Probability that the first candidate is better; strengths are fitted to it.
    pub p: f32,
}

/// A running bracket over candidates `0..n`.
///
/// `round` returns the matches to judge and `record` takes their results; an empty round means the bracket is over.
#[derive(Debug, Clone)]
pub struct Bracket {
    candidates: usize,
    method: Method,
    rng: ChaCha8Rng,
    /// Remaining candidates (knockout); the one with a bye comes first.
    survivors: Vec<usize>,
    /// Eliminated candidates, the most recent last (knockout).
    eliminated: Vec<usize>,
    games: Vec<Game>,
    pending: Vec<Match>,
    rounds: usize,
}

impl Bracket {
    /// Creates a bracket and draws its first round.
    ///
    /// # Errors
    /// If there is no candidate.
    pub fn new(candidates: usize, method: Method, seed: u64) -> Result<Self, JudgeError> {
        if candidates == 0 {
            return Err(JudgeError::NoCandidates);
        }
        let mut bracket = Self {
            candidates,
            method,
            rng: ChaCha8Rng::seed_from_u64(seed),
            survivors: (0..candidates).collect(),
            eliminated: Vec::new(),
            games: Vec::new(),
            pending: Vec::new(),
            rounds: 0,
        };
        bracket.pair_up();
        Ok(bracket)
    }

    /// Returns the matches to judge now, all independent of each other; empty once the bracket is over.
    pub fn round(&self) -> &[Match] {
        &self.pending
    }

    /// Returns the candidate that advances without a match in the round of [`Self::round`].
    pub fn bye(&self) -> Option<usize> {
        let odd = self.method == Method::Knockout && !self.survivors.len().is_multiple_of(2);
        (odd && !self.pending.is_empty()).then(|| self.survivors[0])
    }

    /// Returns the number of rounds recorded so far.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// Records the results of the matches of [`Self::round`], in their order, and draws the next round.
    ///
    /// # Errors
    /// If the number of outcomes is not the number of matches; nothing is recorded then.
    pub fn record(&mut self, outcomes: &[Outcome]) -> Result<(), JudgeError> {
        if outcomes.len() != self.pending.len() {
            return Err(JudgeError::VerdictCount {
                expected: self.pending.len(),
                got: outcomes.len(),
            });
        }
        if outcomes.is_empty() {
            return Ok(());
        }
        self.rounds += 1;
        let mut out = vec![false; self.candidates];
        for (played, outcome) in std::mem::take(&mut self.pending).iter().zip(outcomes) {
            self.games.push(Game {
                first: played.first,
                second: played.second,
                p: f64::from(outcome.p),
            });
            if self.method == Method::Knockout {
                let first_wins = match outcome.winner {
                    Winner::A => true,
                    Winner::B => false,
                    Winner::Tie => self.rng.random(),
                };
                let loser = if first_wins {
                    played.second
                } else {
                    played.first
                };
                out[loser] = true;
                self.eliminated.push(loser);
            }
        }
        self.survivors.retain(|&candidate| !out[candidate]);
        self.pair_up();
        Ok(())
    }

    /// Returns the best candidate, once the bracket is over.
    pub fn winner(&self) -> Option<usize> {
        self.ranking().first().copied()
    }

    /// Returns all candidates, best first, once the bracket is over (empty before). A knockout orders only by the round in which each
    /// candidate was eliminated; the other methods order by strength, equal strengths by index.
    pub fn ranking(&self) -> Vec<usize> {
        if !self.pending.is_empty() {
            return Vec::new();
        }
        if self.method == Method::Knockout {
            let out = self.eliminated.iter().rev();
            return self.survivors.iter().chain(out).copied().collect();
        }
        self.by_strength()
    }

    fn by_strength(&self) -> Vec<usize> {
        let strengths = bradley_terry(self.candidates, &self.games);
        let mut order: Vec<usize> = (0..self.candidates).collect();
        order.sort_by(|&i, &j| strengths[j].total_cmp(&strengths[i]));
        order
    }

    /// Draws the next round into `pending`, which stays empty if there is none.
    fn pair_up(&mut self) {
        self.pending = match self.method {
            Method::Knockout => {
                self.survivors.shuffle(&mut self.rng);
                // The first candidate after the shuffle has the bye of an odd round.
                let playing = &self.survivors[self.survivors.len() % 2..];
                pairs(playing.as_chunks::<2>().0.iter().map(|[i, j]| (*i, *j)))
            }
            Method::RoundRobin if self.rounds == 0 => {
                let all = (0..self.candidates).flat_map(|i| (0..i).map(move |j| (j, i)));
                pairs(all)
            }
            Method::Ring { .. } if self.rounds == 0 => {
                self.survivors.shuffle(&mut self.rng);
                let ring = &self.survivors;
                // With two candidates the ring has one edge: they meet once, not once in each direction.
                let edges = if ring.len() < 3 {
                    ring.len() - 1
                } else {
                    ring.len()
                };
                pairs((0..edges).map(|at| (ring[at], ring[(at + 1) % ring.len()])))
            }
            Method::Ring { pivots } if self.rounds == 1 => {
                let order = self.by_strength();
                let (strong, _) = order.split_at(pivots.min(order.len()));
                let games = self.games.iter();
                let met: HashSet<(usize, usize)> = games
                    .flat_map(|game| [(game.first, game.second), (game.second, game.first)])
                    .collect();
                let new = strong.iter().enumerate().flat_map(|(rank, &pivot)| {
                    let rest = order[rank + 1..].iter();
                    rest.map(move |&other| (pivot, other))
                });
                pairs(new.filter(|pair| !met.contains(pair)))
            }
            Method::RoundRobin | Method::Ring { .. } => Vec::new(),
        };
    }
}

fn pairs(pairs: impl Iterator<Item = (usize, usize)>) -> Vec<Match> {
    pairs
        .map(|(first, second)| Match { first, second })
        .collect()
}

#[cfg(test)]
mod tests;

//! Runs brackets with a judge: all matches of a round in one call, for one prompt or for many.

use super::bracket::{Bracket, Method, Outcome};
use super::{JudgeError, Verdict};

/// A match in one of several brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duel {
    /// Index of the bracket (prompt).
    pub bracket: usize,
    pub first: usize,
    pub second: usize,
}

/// A match and its verdict; on-policy preference pairs are made from these.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Played {
    /// The round, counted from 0.
    pub round: usize,
    pub first: usize,
    pub second: usize,
    pub verdict: Verdict,
}

/// The final standing of a bracket.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    pub winner: usize,
    /// All candidates, best first; see [`Bracket::ranking`] for the precision of each method.
    pub ranking: Vec<usize>,
    pub matches: Vec<Played>,
    pub rounds: usize,
}

/// Runs one bracket for each of `candidates`, side by side: `judge` gets the matches of one round of all brackets at once.
///
/// Each bracket `i` has a seed of its own, so its result does not depend on the other brackets.
///
/// # Errors
/// If a bracket has no candidate, `judge` fails, or `judge` returns a number of verdicts that is not the number of matches.
pub fn run_many<E: From<JudgeError>>(
    candidates: &[usize],
    method: Method,
    seed: u64,
    mut judge: impl FnMut(&[Duel]) -> Result<Vec<Verdict>, E>,
) -> Result<Vec<Standing>, E> {
    let mut brackets = Vec::with_capacity(candidates.len());
    for (index, &count) in candidates.iter().enumerate() {
        // Adjacent seeds give unrelated streams: seed_from_u64 mixes them.
        brackets.push(Bracket::new(
            count,
            method,
            seed.wrapping_add(index as u64),
        )?);
    }
    let mut matches: Vec<Vec<Played>> = vec![Vec::new(); brackets.len()];
    loop {
        let duels: Vec<Duel> = brackets
            .iter()
            .enumerate()
            .flat_map(|(bracket, state)| {
                state.round().iter().map(move |played| Duel {
                    bracket,
                    first: played.first,
                    second: played.second,
                })
            })
            .collect();
        if duels.is_empty() {
            break;
        }
        let verdicts = judge(&duels)?;
        if verdicts.len() != duels.len() {
            let (expected, got) = (duels.len(), verdicts.len());
            return Err(JudgeError::VerdictCount { expected, got }.into());
        }
        let mut rest = verdicts.as_slice();
        for (bracket, matches) in brackets.iter_mut().zip(&mut matches) {
            let (mine, later) = rest.split_at(bracket.round().len());
            rest = later;
            let round = bracket.rounds();
            let played = bracket
                .round()
                .iter()
                .zip(mine)
                .map(|(played, verdict)| Played {
                    round,
                    first: played.first,
                    second: played.second,
                    verdict: *verdict,
                });
            matches.extend(played);
            let outcomes: Vec<Outcome> = mine.iter().map(Outcome::from).collect();
            bracket.record(&outcomes)?;
        }
    }
    let standings = brackets.iter().zip(matches).map(|(bracket, matches)| {
        let ranking = bracket.ranking();
        Standing {
            winner: *ranking
                .first()
                .expect("a bracket without matches is over, this is a bug"),
            ranking,
            matches,
            rounds: bracket.rounds(),
        }
    });
    Ok(standings.collect())
}

#[cfg(test)]
mod tests {
    use super::super::{Rule, decide};
    use super::*;

    /// A verdict for the larger of two values.
    fn verdict(first: usize, second: usize) -> Verdict {
        let p: f32 = if first > second { 0.8 } else { 0.3 };
        let read = [p.ln(), (1.0 - p).ln()];
        decide(&[[read, [read[1], read[0]]]], Rule::Average, false)
    }

    #[test]
    fn many_brackets_share_their_rounds() {
        let sizes = [1, 7, 16, 2, 1];
        let mut calls = Vec::new();
        let standings = run_many(&sizes, Method::Knockout, 3, |duels: &[Duel]| {
            calls.push(duels.len());
            Ok::<_, JudgeError>(
                duels
                    .iter()
                    .map(|duel| verdict(duel.first, duel.second))
                    .collect(),
            )
        })
        .unwrap();
        // Matches per round: 3, 2, 1 for 7 candidates; 8, 4, 2, 1 for 16; 1 for 2.
        assert_eq!(calls, [12, 6, 3, 1]);
        for (standing, size) in standings.iter().zip(sizes) {
            assert_eq!(standing.winner, size - 1);
            assert_eq!(standing.matches.len(), size - 1);
            assert_eq!(standing.ranking.len(), size);
        }
        assert_eq!(standings[2].matches.last().unwrap().round, 3);
        assert!(
            standings[2]
                .matches
                .iter()
                .all(|played| played.verdict == verdict(played.first, played.second))
        );
    }

    #[test]
    fn a_bracket_is_the_same_alone_and_among_others() {
        let play = |sizes: &[usize], seed| {
            run_many(sizes, Method::Knockout, seed, |duels: &[Duel]| {
                Ok::<_, JudgeError>(
                    duels
                        .iter()
                        .map(|duel| verdict(duel.first, duel.second))
                        .collect(),
                )
            })
            .unwrap()
        };
        let alone = play(&[9], 5);
        assert_eq!(play(&[9, 4, 9], 5)[0], alone[0]);
        assert_eq!(play(&[3, 9], 4)[1], alone[0]);
    }

    #[test]
    fn failures_pass_through() {
        let run = |candidates, judge: fn(&[Duel]) -> Result<Vec<Verdict>, JudgeError>| {
            run_many(&[candidates], Method::Knockout, 0, judge)
        };
        let fail = run(3, |_| Err(JudgeError::TextRewritten));
        assert!(matches!(fail, Err(JudgeError::TextRewritten)));
        let none = run(0, |_| Ok(Vec::new()));
        assert!(matches!(none, Err(JudgeError::NoCandidates)));
        let short = run(4, |_| Ok(Vec::new()));
        assert!(matches!(
            short,
            Err(JudgeError::VerdictCount {
                expected: 2,
                got: 0
            })
        ));
    }
}

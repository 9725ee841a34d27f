//! Brackets played to their end by judges that are right, random or partial.

use super::*;

fn outcome(first_wins: bool) -> Outcome {
    Outcome {
        winner: if first_wins { Winner::A } else { Winner::B },
        p: if first_wins { 0.9 } else { 0.1 },
    }
}

/// Plays a bracket to its end with `judge`; returns it and all matches in order.
fn play(mut bracket: Bracket, mut judge: impl FnMut(Match) -> Outcome) -> (Bracket, Vec<Match>) {
    let mut all = Vec::new();
    while !bracket.round().is_empty() {
        let round = bracket.round().to_vec();
        let mut seen = HashSet::new();
        for played in &round {
            assert_ne!(played.first, played.second);
            if bracket.method == Method::Knockout {
                assert!(seen.insert(played.first) && seen.insert(played.second));
            }
        }
        let outcomes: Vec<_> = round.iter().map(|played| judge(*played)).collect();
        bracket.record(&outcomes).unwrap();
        all.extend(round);
    }
    (bracket, all)
}

#[test]
fn knockouts_hold_their_invariants_over_thousands_of_runs() {
    for run in 0..4000u64 {
        let candidates = 1 + (run % 37) as usize;
        let mut coin = ChaCha8Rng::seed_from_u64(run);
        let mut losses = vec![0; candidates];
        let bracket = Bracket::new(candidates, Method::Knockout, run).unwrap();
        let (bracket, matches) = play(bracket, |played| {
            let first_wins = coin.random();
            losses[if first_wins {
                played.second
            } else {
                played.first
            }] += 1;
            outcome(first_wins)
        });
        assert_eq!(matches.len(), candidates - 1);
        assert_eq!(
            bracket.rounds(),
            candidates.next_power_of_two().ilog2() as usize
        );
        let winner = bracket.winner().unwrap();
        assert_eq!(losses[winner], 0);
        assert_eq!(
            losses.iter().filter(|&&lost| lost == 1).count(),
            candidates - 1
        );
        let mut ranking = bracket.ranking();
        assert_eq!(ranking[0], winner);
        if let (Some(last), Some(second)) = (matches.last(), ranking.get(1)) {
            assert!(last.first == *second || last.second == *second);
        }
        ranking.sort_unstable();
        assert!(ranking.into_iter().eq(0..candidates));
    }
}

/// Returns the candidates' strengths: a total order that is unrelated to the indices.
fn strengths(candidates: usize, seed: u64) -> Vec<usize> {
    let mut strengths: Vec<usize> = (0..candidates).collect();
    strengths.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    strengths
}

fn stronger(strengths: &[usize], played: Match) -> Outcome {
    outcome(strengths[played.first] > strengths[played.second])
}

#[test]
fn a_true_judge_finds_the_best_of_any_number() {
    for candidates in 2..=65 {
        let everyone = Method::Ring { pivots: candidates };
        let methods = [
            (Method::Knockout, 100),
            (Method::RoundRobin, 2),
            (everyone, 2),
        ];
        for (method, draws) in methods {
            for seed in 0..draws {
                let strengths = strengths(candidates, seed);
                let bracket = Bracket::new(candidates, method, seed).unwrap();
                let (bracket, _) = play(bracket, |played| stronger(&strengths, played));
                let winner = bracket.winner().unwrap();
                let strength = strengths[winner];
                assert_eq!(strength, candidates - 1, "{method:?}, seed {seed}");
            }
        }
    }
}

/// Returns a redraw of the same survivors in which `bye` has the bye.
fn redrawn(bracket: &Bracket, bye: usize) -> Bracket {
    let draws = (0..).map(|seed| {
        let mut drawn = bracket.clone();
        drawn.rng = ChaCha8Rng::seed_from_u64(seed);
        drawn.pair_up();
        drawn
    });
    let mut fitting = draws.filter(|drawn| drawn.bye() == Some(bye));
    fitting.next().expect("there is always another draw")
}

/// Plays on from `bracket` with every survivor of every odd round as its bye; returns the number of ways.
fn every_bye(mut bracket: Bracket, strengths: &[usize]) -> usize {
    if bracket.round().is_empty() {
        let winner = bracket.winner().unwrap();
        assert_eq!(strengths[winner], strengths.len() - 1);
        return 1;
    }
    let record = |mut bracket: Bracket| {
        let played = bracket.round().iter();
        let outcomes: Vec<_> = played.map(|played| stronger(strengths, *played)).collect();
        bracket.record(&outcomes).unwrap();
        every_bye(bracket, strengths)
    };
    if bracket.bye().is_none() {
        return record(bracket);
    }
    bracket.survivors.sort_unstable();
    let byes = bracket.survivors.clone().into_iter();
    byes.map(|bye| record(redrawn(&bracket, bye))).sum()
}

#[test]
fn a_true_judge_finds_the_best_whoever_has_the_byes() {
    for candidates in 2..=32usize {
        let strengths = strengths(candidates, candidates as u64);
        let bracket = Bracket::new(candidates, Method::Knockout, 1).unwrap();
        let (mut ways, mut left) = (1, candidates);
        while left > 1 {
            ways *= if left % 2 == 1 { left } else { 1 };
            left = left.div_ceil(2);
        }
        assert_eq!(every_bye(bracket, &strengths), ways, "of {candidates}");
    }
}

#[test]
fn a_ring_with_pivots_nearly_always_finds_the_best() {
    // Not always the best: strengths fitted to unequal opponents are estimates even if every match is judged correctly.
    let mut best = 0;
    for seed in 0..1000 {
        let bracket = Bracket::new(12, Method::Ring { pivots: 3 }, seed).unwrap();
        let (bracket, matches) = play(bracket, |played| outcome(played.first > played.second));
        assert!(matches.len() < 12 * 4);
        assert!(bracket.winner() >= Some(9));
        best += usize::from(bracket.winner() == Some(11));
    }
    assert!(best >= 900, "{best}");
}

#[test]
fn seeds_decide_the_draw_and_nothing_else_does() {
    let draw = |seed| {
        Bracket::new(16, Method::Knockout, seed)
            .unwrap()
            .round()
            .to_vec()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    // Byes are spread: over many seeds every candidate gets one.
    let mut byes = HashSet::new();
    for seed in 0..200 {
        let bracket = Bracket::new(5, Method::Knockout, seed).unwrap();
        let playing: HashSet<usize> = bracket
            .round()
            .iter()
            .flat_map(|m| [m.first, m.second])
            .collect();
        let bye = bracket.bye().unwrap();
        assert!(!playing.contains(&bye));
        byes.insert(bye);
    }
    assert_eq!(byes.len(), 5);
}

#[test]
fn ties_are_a_fair_coin() {
    let tie = Outcome {
        winner: Winner::Tie,
        p: 0.5,
    };
    let mut first = 0;
    for seed in 0..2000 {
        let (bracket, matches) = play(Bracket::new(2, Method::Knockout, seed).unwrap(), |_| tie);
        first += usize::from(bracket.winner() == Some(matches[0].first));
    }
    // 1000 expected, standard deviation 22.
    assert!((900..1100).contains(&first), "{first}");
}

#[test]
fn round_robin_and_ring_play_each_pair_at_most_once() {
    for candidates in 1..20 {
        for pivots in [0, 1, 3, 50] {
            let ring = Bracket::new(candidates, Method::Ring { pivots }, 9).unwrap();
            let (ring, matches) = play(ring, |played| outcome(played.first > played.second));
            let met: HashSet<_> = matches
                .iter()
                .map(|m| (m.first.min(m.second), m.first.max(m.second)))
                .collect();
            assert_eq!(met.len(), matches.len());
            assert!(matches.len() <= candidates * (1 + pivots));
            if pivots >= candidates {
                assert_eq!(matches.len(), candidates * (candidates - 1) / 2);
            }
            assert_eq!(ring.ranking().len(), candidates);
        }
        let robin = Bracket::new(candidates, Method::RoundRobin, 9).unwrap();
        let (robin, matches) = play(robin, |played| outcome(played.first > played.second));
        assert_eq!(matches.len(), candidates * (candidates - 1) / 2);
        assert!(robin.ranking().into_iter().eq((0..candidates).rev()));
    }
}

/// A bracket whose work grew with the square of this size would take hours.
#[test]
fn brackets_of_very_many_candidates_are_drawn() {
    let (bracket, matches) = play(
        Bracket::new(1 << 20, Method::Knockout, 3).unwrap(),
        |played| outcome(played.first > played.second),
    );
    assert_eq!(matches.len(), (1 << 20) - 1);
    assert_eq!(bracket.winner(), Some((1 << 20) - 1));
    let mut ring = Bracket::new(40_000, Method::Ring { pivots: 3 }, 3).unwrap();
    let first: Vec<Outcome> = ring.round().iter().map(|_| outcome(true)).collect();
    ring.record(&first).unwrap();
    assert!((119_000..120_000).contains(&ring.round().len()));
}

#[test]
fn no_candidates_and_miscounted_outcomes_are_errors() {
    assert!(matches!(
        Bracket::new(0, Method::Knockout, 0),
        Err(JudgeError::NoCandidates)
    ));
    let mut bracket = Bracket::new(4, Method::Knockout, 0).unwrap();
    let error = bracket.record(&[outcome(true)]).unwrap_err();
    assert!(matches!(
        error,
        JudgeError::VerdictCount {
            expected: 2,
            got: 1
        }
    ));
    assert_eq!(bracket.round().len(), 2);
    assert_eq!(bracket.winner(), None);
}

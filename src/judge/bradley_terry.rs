//! Bradley-Terry strengths from pairwise results: `P(i beats j) = s_i / (s_i + s_j)`.

/// One comparison: two players and the probability (or share) with which the first won.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Game {
    pub first: usize,
    pub second: usize,
    pub p: f64,
}

/// Weight of the draw that every player is assumed to have played against a phantom of strength one. It keeps the strength of a player
/// that won or lost every game finite.
const PRIOR: f64 = 0.2;

/// Returns the log-strengths of `players` players, by Hunter's minorise-maximise iteration (Annals of Statistics 2004), with a weak
/// prior.
///
/// Wins may be fractional. Players without games have log-strength 0.
pub fn bradley_terry(players: usize, games: &[Game]) -> Vec<f64> {
    let mut wins = vec![PRIOR / 2.0; players];
    for game in games {
        wins[game.first] += game.p;
        wins[game.second] += 1.0 - game.p;
    }
    let mut strength = vec![1.0f64; players];
    for _ in 0..1000 {
        let mut faced: Vec<f64> = strength.iter().map(|s| PRIOR / (s + 1.0)).collect();
        for game in games {
            let share = 1.0 / (strength[game.first] + strength[game.second]);
            faced[game.first] += share;
            faced[game.second] += share;
        }
        let mut change = 0.0f64;
        for player in 0..players {
            let next = wins[player] / faced[player];
            change = change.max((next / strength[player]).ln().abs());
            strength[player] = next;
        }
        if change < 1e-10 {
            break;
        }
    }
    strength.into_iter().map(f64::ln).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn game(first: usize, second: usize, p: f64) -> Game {
        Game { first, second, p }
    }

    #[test]
    fn soft_results_are_reproduced() {
        // With enough games the prior's influence vanishes, and the strengths reproduce the probabilities they came from.
        let truth = [0.0f64, 0.7, -1.1, 2.0];
        let mut games = Vec::new();
        for i in 0..4 {
            for j in 0..i {
                let p = 1.0 / (1.0 + (truth[j] - truth[i]).exp());
                games.extend((0..1000).map(|_| game(i, j, p)));
            }
        }
        let found = bradley_terry(4, &games);
        for i in 0..4 {
            assert!((found[i] - found[0] - truth[i]).abs() < 1e-3, "{found:?}");
        }
    }

    #[test]
    fn two_players_with_a_prior_by_hand() {
        // One win: s = (1 + 0.1) / (1/(s + t) + 0.2/(s + 1)) and t its reciprocal; both equations hold at the fixed point.
        let found = bradley_terry(2, &[game(0, 1, 1.0)]);
        let (s, t) = (found[0].exp(), found[1].exp());
        assert!((s - 1.1 / (1.0 / (s + t) + 0.2 / (s + 1.0))).abs() < 1e-6);
        assert!((s * t - 1.0).abs() < 1e-6);
        assert!(s > 2.0);
    }

    #[test]
    fn sweeps_stay_finite_and_idle_players_stay_at_zero() {
        let found = bradley_terry(4, &[game(0, 1, 1.0), game(0, 2, 1.0), game(1, 2, 1.0)]);
        assert!(found.iter().all(|s| s.is_finite()));
        assert!(found[0] > found[1] && found[1] > found[2]);
        assert_eq!(found[3], 0.0);
        assert!(bradley_terry(0, &[]).is_empty());
    }
}

//! The pool: the waiting prompts that a stage takes, with the easy ones first across stages.
//!
//! sDPO (arXiv 2403.19270, section 3.3) cuts its data into parts from easy to hard; a random partition, such as the order of traffic,
//! gains nothing there. Here the data never end, so they are cut pool by pool: a pool holds the prompts of `stage.pool` stages. Its
//! prompts are ranked once, by the judge's certainty about a pair of the reference's answers. The stage that ranks them takes the most
//! certain and leaves the rest, in that order, to the stages after it. The next pool is drawn when less than a stage is left over, and
//! begins with the leftover prompts, so no prompt is deferred beyond its pool.
//!
//! Nothing is ranked twice, so a pool costs the same as ranking each stage separately. Leftover prompts are in the stage's saved state;
//! those that were deleted or lost their consent since are not taken.

use std::collections::HashMap;
use std::time::Duration;

use super::config::LearnConfig;
use super::seed::{Draw, seed};
use traffic_log::{DrawSpec, DrawnRow, Principal, RecordId, Split, StageId};

/// A pool before it is ranked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pool {
    /// Prompts left over by an earlier stage, in their order, then new ones by age.
    pub rows: Vec<RecordId>,
    /// Number of leftover prompts.
    pub carried: usize,
}

impl Pool {
    /// Creates a pool: `left` alone if it has at least the `prompts` of a stage, otherwise up to `size` rows, filled from `drawn`.
    pub fn new(left: Vec<RecordId>, drawn: Vec<RecordId>, prompts: usize, size: usize) -> Self {
        let carried = left.len();
        let mut rows = left;
        if carried < prompts {
            let new = drawn.into_iter().filter(|id| !rows.contains(id));
            let new: Vec<RecordId> = new.take(size - carried).collect();
            rows.extend(new);
        }
        Self { rows, carried }
    }
}

/// Returns the first `spec.limit` rows, and the ids of the others in the same order. No principal has more than its share of the limit
/// (but always at least one row). The cap of the pool alone would not stop a flood, because easy prompts are easily written.
pub fn take(rows: Vec<DrawnRow>, spec: &DrawSpec) -> (Vec<RecordId>, Vec<RecordId>) {
    let wanted = spec.limit;
    let cap = ((wanted as f64 * spec.max_share) as usize).max(1);
    let mut of: HashMap<String, usize> = HashMap::new();
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for row in rows {
        let count = of.entry(row.principal.to_string()).or_default();
        let capped = spec.uncapped.as_ref() != Some(&row.principal);
        if taken.len() < wanted && (!capped || *count < cap) {
            *count += 1;
            taken.push(row.id);
        } else {
            left.push(row.id);
        }
    }
    (taken, left)
}

/// Returns the settings of a draw of `limit` rows that may be trained on.
pub fn train_spec(config: &LearnConfig, uncapped: Option<&Principal>, limit: usize) -> DrawSpec {
    let stage = &config.stage;
    DrawSpec {
        quarantine: Duration::from_secs(stage.quarantine),
        max_share: stage.principal_share,
        uncapped: uncapped.cloned(),
        held_out_per_mille: (stage.held_out * 1000.0).round() as u16,
        ..DrawSpec::new(limit)
    }
}

/// Returns the settings of a draw of the rows that evaluate stage `id`. These rows are never trained on or claimed, so every stage would
/// get the same ones; each stage therefore starts at another offset among the held-out rows.
pub fn gate_spec(config: &LearnConfig, uncapped: Option<&Principal>, id: StageId) -> DrawSpec {
    DrawSpec {
        split: Split::HeldOut,
        turn: Some(gate_turn(config, id)),
        ..train_spec(config, uncapped, config.gates.prompts)
    }
}

/// Returns the offset of stage `id` among the held-out rows.
fn gate_turn(config: &LearnConfig, id: StageId) -> u64 {
    seed(config.stage.seed, id.0, Draw::Turn, 0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn id(n: usize) -> RecordId {
        RecordId::parse(&format!("{n:026}")).unwrap()
    }

    fn rows(owned: impl IntoIterator<Item = (usize, &'static str)>) -> Vec<DrawnRow> {
        let row = |(n, owner)| DrawnRow {
            id: id(n),
            principal: Principal::of_key(owner),
        };
        owned.into_iter().map(row).collect()
    }

    /// Returns the stages of `prompts` over the prompts that arrive before each of them. The difficulty of a prompt is its number with
    /// the digits reversed, which is unrelated to its age.
    fn stages(prompts: usize, pool: usize, arriving: &[usize]) -> Vec<Vec<usize>> {
        let hardness = |n: usize| n % 10 * 100 + n / 10 % 10 * 10 + n / 100;
        let number = |id: &RecordId| id.as_str().trim_start_matches('0').parse().unwrap_or(0);
        let (mut waiting, mut next) = (Vec::new(), 0);
        let (mut left, mut stages) = (Vec::new(), Vec::new());
        for arriving in arriving {
            waiting.extend((next..next + arriving).map(id));
            next += arriving;
            let size = prompts * pool;
            let drawn = waiting.iter().take(size).cloned().collect();
            let pool = Pool::new(left, drawn, prompts, size);
            let (head, fresh) = pool.rows.split_at(pool.carried);
            let mut fresh = fresh.to_vec();
            fresh.sort_by_key(|id| hardness(number(id)));
            let ranked = head.iter().chain(&fresh).cloned();
            let ranked = ranked.map(|id| DrawnRow {
                id,
                principal: Principal::anonymous(),
            });
            let taken;
            (taken, left) = take(ranked.collect(), &DrawSpec::new(prompts));
            waiting.retain(|id| !taken.contains(id));
            stages.push(taken.iter().map(|id| hardness(number(id))).collect());
        }
        stages
    }

    #[test]
    fn the_stages_of_a_pool_go_from_easy_to_hard() {
        let stages = stages(10, 3, &[30, 10, 10, 30]);
        let last = |at: usize| *stages[at].last().unwrap();
        assert!(
            last(0) <= stages[1][0] && last(1) <= stages[2][0],
            "{stages:?}"
        );
        assert!(
            stages[3][0] < last(2),
            "a new pool begins with its easy ones"
        );
        assert!(
            stages
                .iter()
                .all(|stage| stage.is_sorted() && stage.len() == 10)
        );
    }

    #[test]
    fn a_pool_of_one_stage_is_the_order_of_age_between_stages() {
        // Each stage takes the next ten prompts in order of arrival.
        let ten = |from: usize| -> Vec<usize> {
            let mut ten: Vec<usize> = (from..from + 10)
                .map(|n| n % 10 * 100 + n / 10 % 10 * 10)
                .collect();
            ten.sort_unstable();
            ten
        };
        assert_eq!(stages(10, 1, &[30, 0, 0]), [ten(0), ten(10), ten(20)]);
    }

    #[test]
    fn nothing_is_passed_over_for_longer_than_its_pool() {
        // The hardest prompts of the first pool are in its second stage, however many easy ones arrive in between.
        let stages = stages(50, 2, &[100, 400]);
        assert!(stages[1].contains(&990));
    }

    #[test]
    fn what_is_left_of_too_few_comes_first_in_the_next_pool() {
        let left = vec![id(3), id(1)];
        let drawn: Vec<RecordId> = (1..9).map(id).collect();
        let pool = Pool::new(left.clone(), drawn.clone(), 3, 6);
        assert_eq!(pool.carried, 2);
        assert_eq!(pool.rows, [3, 1, 2, 4, 5, 6].map(id));
        let enough = Pool::new(left.clone(), drawn, 2, 4);
        assert_eq!((enough.rows, enough.carried), (left, 2));
    }

    #[test]
    fn a_principal_whose_prompts_are_easiest_has_its_share_and_no_more() {
        let flood = (0..8).map(|n| (n, "flood"));
        let others = [(8, "a"), (9, "b"), (10, "c"), (11, "d")];
        let spec = |limit, max_share| DrawSpec {
            max_share,
            ..DrawSpec::new(limit)
        };
        let (taken, left) = take(rows(flood.chain(others)), &spec(4, 0.5));
        assert_eq!(taken, [0, 1, 8, 9].map(id));
        assert_eq!(left, [2, 3, 4, 5, 6, 7, 10, 11].map(id));
        let (taken, _) = take(rows([(0, "a"), (1, "a")]), &spec(2, 0.1));
        assert_eq!(taken, [id(0)], "one it always may have");
        let nobody = DrawSpec {
            uncapped: Some(Principal::of_key("a")),
            ..spec(3, 0.1)
        };
        let (taken, _) = take(rows([(0, "a"), (1, "b"), (2, "a"), (3, "b")]), &nobody);
        assert_eq!(
            taken,
            [0, 1, 2].map(id),
            "a cap is for those who can be told apart"
        );
    }

    #[test]
    fn stages_are_measured_from_different_places_on() {
        let config = LearnConfig::default();
        let turn = |id| gate_turn(&config, StageId(id));
        assert_eq!(turn(3), turn(3));
        let turns: HashSet<_> = (1..20).map(turn).collect();
        assert_eq!(turns.len(), 19);
    }
}

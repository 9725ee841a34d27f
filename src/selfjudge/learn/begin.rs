//! The beginning of a stage: drawing enough prompts that no earlier stage has used, and ordering them for training.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::LearnError;
use super::config::{LearnConfig, StageOrder};
use super::learner::{Learner, POLL, Running};
use super::pool::{Pool, take};
use super::stage::{Draw, FeedbackRow, StageState, joining, seed};
use super::status::Phase;
use super::waiting::{Supply, Waiting};
use judge::PrincipleTable;
use judge::WeightedPrinciple;
use traffic_log::{
    DrawSpec, DrawnRow, FeedbackTrust, NewStage, RecordId, Scope, Split, Stage, StageId,
    TrafficLog, TrainerLease,
};

impl Learner {
    /// Waits until the log has enough prompts for a stage, and opens the stage.
    pub(super) async fn begin<'a>(
        &self,
        lease: &'a TrainerLease,
    ) -> Result<Running<'a>, LearnError> {
        let config = &self.config;
        let mut look = Look::new(config);
        loop {
            self.unpaused().await?;
            if self.control.status().unattended >= config.stage.unattended {
                tracing::info!(
                    "learning: paused after {} stages that passed",
                    config.stage.unattended
                );
                lease.pause_learning().await?;
                continue;
            }
            if !look.is_due(&self.log).await? {
                tokio::time::sleep(POLL).await;
                continue;
            }
            let last = self.log.last_stage().await?;
            // The number of the new stage. No other process opens stages while this one holds the lease.
            let id = StageId(last.as_ref().map_or(1, |last| last.id.0 + 1));
            let begun = Instant::now();
            let left = left_by(config, last.as_ref());
            let spec = self.train_spec(config, left.len());
            let left = ids(self.log.free_for(id, &spec, &left).await?);
            let supply = self.supply(id, left.len()).await?;
            let needed = (config.stage.prompts + config.gates.prompts) as u64;
            let short = Waiting::for_prompts(config, &supply);
            self.control.change(|status| {
                let train = supply.train.drawable.max(supply.left);
                let train = train.min(config.stage.pooled());
                let held_out = supply.held_out.drawable.min(config.gates.prompts);
                status.prompts_waiting = (train + held_out) as u64;
                status.prompts_needed = needed;
                status.error = None;
                status.of_other_tokenizers = supply.of_other_tokenizers;
            });
            if let Some(waiting) = short {
                self.control.wait(Phase::Waiting, waiting);
                look.again_after(begun.elapsed());
                continue;
            }
            let pool = self.pool(left).await?;
            let gate_rows = self.log.draw_ids(&self.gate_spec(id)).await?;
            if pool.rows.len() < config.stage.prompts || gate_rows.len() < config.gates.prompts {
                // Rows were deleted after they were counted.
                look.again_after(begun.elapsed());
                continue;
            }
            let pointers = self.log.pointers().await?;
            // A generation of another base cannot be the start of a stage. This is checked before prompts are claimed.
            for generation in [
                &pointers.policy,
                &pointers.train,
                &pointers.reference,
                &pointers.judge,
            ] {
                self.generations.is_extrapolated(generation.as_str())?;
            }
            self.principles.refresh()?;
            let table = self.principles.current();
            let principles = judged_by(&table.table, &config.judging.principles)?;
            let pool = (pool.rows, pool.carried);
            let mut state =
                StageState::new((**config).clone(), &pointers, principles, pool, gate_rows);
            state.base = Some(self.workshop.base_digest.clone());
            state.tokenizer = Some(self.bases.tokenizer().to_owned());
            state.corroborate = self.log.trust() == FeedbackTrust::Corroborated;
            state.feedback = self.feedback().await?;
            let stage = NewStage {
                reference: pointers.reference,
                state: serde_json::to_value(&state)?,
            };
            let id = lease.open_stage(stage).await?;
            return Ok(Running { lease, id, state });
        }
    }

    /// Counts the prompts that the log has for stage `id`.
    async fn supply(&self, id: StageId, left: usize) -> Result<Supply, LearnError> {
        let config = &self.config;
        let size = config.stage.pooled().max(config.stage.prompts);
        Ok(Supply {
            train: self.log.eligible(&self.train_spec(config, size)).await?,
            left,
            held_out: self.log.eligible(&self.gate_spec(id)).await?,
            of_other_tokenizers: self.log.of_other_tokenizers().await?,
        })
    }

    /// Returns the pool of prompts from which the next stage takes its own; `left` are the prompts left over by an earlier stage.
    async fn pool(&self, left: Vec<RecordId>) -> Result<Pool, LearnError> {
        let stage = &self.config.stage;
        let easy_first = stage.order == StageOrder::EasyFirst;
        let size = if easy_first {
            stage.pooled()
        } else {
            stage.prompts
        };
        let drawn = if left.len() < stage.prompts {
            self.log
                .draw_ids(&self.train_spec(&self.config, size))
                .await?
        } else {
            Vec::new()
        };
        Ok(Pool::new(left, drawn, stage.prompts, size))
    }

    /// Returns the callers' feedback that may be used for training.
    async fn feedback(&self) -> Result<Vec<FeedbackRow>, LearnError> {
        let config = &self.config;
        let wanted = joining(config.stage.prompts, config.feedback.share);
        if self.log.trust() == FeedbackTrust::Never || wanted == 0 {
            return Ok(Vec::new());
        }
        let spec = self.train_spec(config, wanted);
        let mut rows = Vec::new();
        for held in self.log.draw_preferences(&spec).await? {
            // The record was deleted in between.
            let Some(record) = self.log.get(&held.record, &Scope::All).await? else {
                continue;
            };
            rows.push(FeedbackRow {
                record: held.record,
                chosen: held.pair.chosen,
                rejected: held.pair.rejected,
                redacted: record.redacted,
            });
        }
        Ok(rows)
    }

    /// Takes the stage's rows from its pool, in the pool's order, and claims them permanently. Rows deleted in between are left out.
    pub(super) async fn claim(&self, running: &mut Running<'_>) -> Result<(), LearnError> {
        if running.state.ordered {
            return Ok(());
        }
        let (id, lease) = (running.id, running.lease);
        let stage = running.state.config.stage.clone();
        let spec = self.train_spec(&running.state.config, stage.prompts);
        let pool = self.log.free_for(id, &spec, &running.state.rows).await?;
        let pool = match stage.order {
            StageOrder::AsLogged => pool,
            StageOrder::EasyFirst => self.easy_first(running, pool).await?,
        };
        let (taken, left) = take(pool, &spec);
        let state = &mut running.state;
        state.rows = lease.claim_rows(id, &taken).await?;
        state.left = left;
        let said: Vec<RecordId> = state
            .feedback
            .iter()
            .map(|row| row.record.clone())
            .collect();
        let own = lease.claim_feedback(id, &said).await?;
        state.feedback.retain(|row| own.contains(&row.record));
        state.ordered = true;
        running.save().await
    }

    /// Orders a pool: rows left over by an earlier stage first, then rows by the judge's certainty about a pair of their answers, and last
    /// the rows whose answers make no pair.
    async fn easy_first(
        &self,
        running: &Running<'_>,
        pool: Vec<DrawnRow>,
    ) -> Result<Vec<DrawnRow>, LearnError> {
        let state = &running.state;
        let carried: HashSet<&RecordId> = state.rows.iter().take(state.carried).collect();
        let (mut ordered, fresh): (Vec<_>, Vec<_>) =
            pool.into_iter().partition(|row| carried.contains(&row.id));
        if ordered.len() >= state.config.stage.prompts {
            return Ok(ordered);
        }
        self.control.enter(Phase::Judging);
        let judge = self.judge(state).await?;
        let maker = self.pair_maker(running.id, state, judge);
        let start = self.start_weights(running.id, state).await?;
        let places = (0_u64..).zip(fresh.iter().map(|row| &row.id));
        let prompts = maker.prompts(Draw::Order, places).await?;
        let mut sure = maker.certainty(prompts, &start).await?;
        // The sort is stable: rows of equal certainty keep their order of arrival.
        sure.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (id, _) in sure {
            ordered.extend(fresh.iter().find(|row| row.id == id).cloned());
        }
        Ok(ordered)
    }
}

fn ids(rows: Vec<DrawnRow>) -> Vec<RecordId> {
    rows.into_iter().map(|row| row.id).collect()
}

impl Learner {
    /// Returns the settings of a draw of `limit` rows that may be trained on.
    fn train_spec(&self, config: &LearnConfig, limit: usize) -> DrawSpec {
        let stage = &config.stage;
        DrawSpec {
            quarantine: Duration::from_secs(stage.quarantine),
            max_share: stage.principal_share,
            uncapped: self.uncapped.clone(),
            held_out_per_mille: (stage.held_out * 1000.0).round() as u16,
            ..DrawSpec::new(limit)
        }
    }

    /// Returns the settings of a draw of the rows that evaluate stage `id`. These rows are never trained on or claimed, so every stage
    /// would get the same ones; each stage therefore starts at another offset among the held-out rows.
    fn gate_spec(&self, id: StageId) -> DrawSpec {
        DrawSpec {
            split: Split::HeldOut,
            turn: Some(gate_turn(&self.config, id)),
            ..self.train_spec(&self.config, self.config.gates.prompts)
        }
    }
}

/// Returns the offset of stage `id` among the held-out rows.
fn gate_turn(config: &LearnConfig, id: StageId) -> u64 {
    seed(config.stage.seed, id.0, Draw::Turn, 0)
}

/// Returns the rows that the last stage left over from its pool. If its state was written by another version of the program and cannot
/// be read, no rows are left over, and rows are drawn by age.
fn left_by(config: &LearnConfig, last: Option<&Stage>) -> Vec<RecordId> {
    match (config.stage.order, last) {
        (StageOrder::EasyFirst, Some(last)) => {
            let state = serde_json::from_value::<StageState>(last.state.clone());
            state.map_or_else(|_| Vec::new(), |state| state.left)
        }
        _ => Vec::new(),
    }
}

/// The schedule for counting again in a log that had too few prompts: when a new record has arrived, but so rarely that counting, which
/// reads the whole log, takes at most a twentieth of the time.
struct Look {
    /// True without a quarantine: then only a new record or new consent adds rows.
    by_newest: bool,
    newest: Option<RecordId>,
    not_before: Option<Instant>,
    /// Time of the next unconditional count, which finds consent given later and rows whose quarantine has ended.
    at_latest: Option<Instant>,
}

impl Look {
    /// Minimum pause after a count, in multiples of the time that the count took.
    const REST: u32 = 19;
    const LONGEST: Duration = Duration::from_secs(60);

    fn new(config: &LearnConfig) -> Self {
        Self {
            by_newest: config.stage.quarantine == 0,
            newest: None,
            not_before: None,
            at_latest: None,
        }
    }

    async fn is_due(&mut self, log: &TrafficLog) -> Result<bool, LearnError> {
        let now = Instant::now();
        if self.not_before.is_some_and(|then| now < then) {
            return Ok(false);
        }
        if !self.by_newest || self.at_latest.is_none_or(|then| now >= then) {
            self.newest = log.newest_record().await?;
            return Ok(true);
        }
        let newest = log.newest_record().await?;
        Ok(std::mem::replace(&mut self.newest, newest.clone()) != newest)
    }

    fn again_after(&mut self, counting: Duration) {
        let now = Instant::now();
        let rest = counting.saturating_mul(Self::REST);
        self.not_before = now.checked_add(rest.clamp(POLL, Self::LONGEST));
        self.at_latest = now.checked_add(Self::LONGEST);
    }
}

/// Returns the principles by which pairs are judged: the named ones with the table's current weights, and those that the table marks
/// `always` (SALMON's prohibitions against reward hacking). If none is named, only the judge template's own question is used.
///
/// # Errors
/// Names the first principle that the table does not have.
pub fn judged_by(
    table: &PrincipleTable,
    names: &[String],
) -> Result<Vec<WeightedPrinciple>, LearnError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut asked = Vec::new();
    for name in names {
        asked.push(table.get(name).ok_or_else(|| {
            LearnError::Config(format!(
                "judging.principles names `{name}`, which the table does not have"
            ))
        })?);
    }
    let always = table.iter().filter(|principle| principle.always);
    asked.extend(always.filter(|principle| !names.contains(&principle.id)));
    let asked = asked.into_iter().filter(|principle| principle.weight > 0.0);
    Ok(asked.map(WeightedPrinciple::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use judge::Polarity;

    #[test]
    fn what_the_table_always_asks_is_asked_beside_what_is_named() {
        let table = PrincipleTable::from_toml(
            "[[principle]]\nid = 'correct'\ntext = 'correct'\nweight = 3\n\
             [[principle]]\nid = 'brief'\ntext = 'brief'\n\
             [[principle]]\nid = 'preaching'\ntext = 'It preaches.'\npolarity = 'forbid'\nalways = true\nweight = 0.5\n\
             [[principle]]\nid = 'off'\ntext = 'off'\nalways = true\nweight = 0",
        )
        .unwrap();
        let asked = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            judged_by(&table, &names).map(|asked| {
                let shown = asked.into_iter().map(|p| (p.name, p.weight, p.polarity));
                shown.collect::<Vec<_>>()
            })
        };
        let correct = ("correct".to_owned(), 3.0, Polarity::Encourage);
        let preaching = ("preaching".to_owned(), 0.5, Polarity::Forbid);
        assert_eq!(
            asked(&["correct"]).unwrap(),
            [correct.clone(), preaching.clone()]
        );
        // A principle that is named and also marked `always` is used once.
        assert_eq!(
            asked(&["preaching", "correct"]).unwrap(),
            [preaching, correct]
        );
        assert!(
            asked(&[]).unwrap().is_empty(),
            "the template's own question stands alone"
        );
        let error = asked(&["kind"]).unwrap_err().to_string();
        assert!(error.contains("`kind`"), "{error}");
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

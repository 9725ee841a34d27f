//! The opening of a stage: waiting until the log has enough prompts that no earlier stage has used, and drawing its pool from them.

use std::time::{Duration, Instant};

use super::LearnError;
use super::config::{LearnConfig, StageOrder};
use super::learner::{Learner, POLL, RETRY};
use super::open_stage::OpenStage;
use super::pool::{Pool, gate_spec, train_spec};
use super::stage::{FeedbackRow, StagePlan, StageProgress, pairs_to_add};
use super::stage_state::read_state;
use super::status::LearnState;
use super::waiting::{Supply, Waiting};
use judge::{PrincipleTable, WeightedPrinciple};
use traffic_log::{
    DrawSpec, DrawnRow, FeedbackTrust, NewStage, Pointers, RecordId, Scope, Stage, StageId,
    TrafficLog, TrainerLease,
};

/// Opens stages.
pub(super) struct StageOpener<'a> {
    learner: &'a Learner,
    lease: &'a TrainerLease,
}

impl<'a> StageOpener<'a> {
    pub fn new(learner: &'a Learner, lease: &'a TrainerLease) -> Self {
        Self { learner, lease }
    }

    /// Waits until the log has enough prompts for a stage, and opens the stage.
    ///
    /// # Errors
    /// Errors from the log and from the principles' table.
    pub async fn open(&self) -> Result<OpenStage<'a>, LearnError> {
        let Learner {
            log,
            control,
            config,
            ..
        } = self.learner;
        let mut schedule = CountSchedule::new(config);
        let mut reported = None;
        loop {
            self.learner.unpaused().await?;
            if control.status().unattended >= config.stage.unattended {
                tracing::info!(
                    "learning: paused after {} stages that passed",
                    config.stage.unattended
                );
                self.lease.pause_learning().await?;
                continue;
            }
            if !schedule.is_due(log).await? {
                tokio::time::sleep(POLL).await;
                continue;
            }
            let last = log.stages.last().await?;
            // The number of the new stage. No other process opens stages while this one holds the lease.
            let id = StageId(last.as_ref().map_or(1, |last| last.id.0 + 1));
            let begun = Instant::now();
            let left = left_by(config, last.as_ref());
            let spec = self.train_spec(left.len());
            let left = ids(log.replay.free_for(id, &spec, &left).await?);
            let supply = self.supply(id, left.len()).await?;
            let needed = (config.stage.prompts + config.gates.prompts) as u64;
            let short = Waiting::for_prompts(config, &supply);
            control.change(|status| {
                let train = supply.train.drawable.max(supply.left);
                let train = train.min(config.stage.pooled());
                let held_out = supply.held_out.drawable.min(config.gates.prompts);
                status.prompts_waiting = (train + held_out) as u64;
                status.prompts_needed = needed;
                status.error = None;
                status.of_other_tokenizers = supply.of_other_tokenizers;
            });
            if let Some(waiting) = short {
                control.wait(LearnState::Waiting, waiting);
                schedule.again_after(begun.elapsed());
                continue;
            }
            let pool = self.pool(left).await?;
            let gate_rows = log.replay.draw_ids(&self.gate_spec(id)).await?;
            if pool.rows.len() < config.stage.prompts || gate_rows.len() < config.gates.prompts {
                // Rows were deleted after they were counted.
                schedule.again_after(begun.elapsed());
                continue;
            }
            let pointers = log.generations.pointers().await?;
            // A generation of another base cannot be the start of a stage. This is checked before prompts are claimed.
            match self.check_pointers(&pointers) {
                Err(error @ LearnError::OtherBase { .. }) => {
                    let message = error.to_string();
                    if reported.as_ref() != Some(&message) {
                        tracing::warn!("learning: {message}");
                    }
                    self.learner.show_failure(&error, message.clone());
                    reported = Some(message);
                    tokio::time::sleep(RETRY).await;
                    schedule = CountSchedule::new(config);
                    continue;
                }
                checked => checked?,
            }
            self.learner.principles.refresh()?;
            let table = self.learner.principles.current();
            let principles = judged_by(&table.table, &config.judging.principles)?;
            let pool = (pool.rows, pool.carried);
            let mut plan =
                StagePlan::new((**config).clone(), &pointers, principles, pool, gate_rows);
            plan.base = Some(self.learner.trainers.base_digest.clone());
            plan.tokenizer = Some(self.learner.bases.tokenizer().to_owned());
            plan.corroborate = log.feedback.trust() == FeedbackTrust::Corroborated;
            plan.feedback = self.feedback().await?;
            let stage = NewStage {
                reference: pointers.reference,
                state: serde_json::to_value(&plan)?,
            };
            return Ok(OpenStage {
                lease: self.lease,
                id: self.lease.open_stage(stage).await?,
                plan,
                progress: StageProgress::default(),
            });
        }
    }

    /// Checks that the generations from which a stage would start belong to this model.
    fn check_pointers(&self, pointers: &Pointers) -> Result<(), LearnError> {
        for generation in [
            &pointers.policy,
            &pointers.train,
            &pointers.reference,
            &pointers.judge,
        ] {
            self.learner
                .generations
                .is_extrapolated(generation.as_str())?;
        }
        Ok(())
    }

    fn train_spec(&self, limit: usize) -> DrawSpec {
        let learner = self.learner;
        learner.answerable(train_spec(
            &learner.config,
            learner.uncapped.as_ref(),
            limit,
        ))
    }

    fn gate_spec(&self, id: StageId) -> DrawSpec {
        let learner = self.learner;
        learner.answerable(gate_spec(&learner.config, learner.uncapped.as_ref(), id))
    }

    /// Counts the prompts that the log has for stage `id`.
    async fn supply(&self, id: StageId, left: usize) -> Result<Supply, LearnError> {
        let config = &self.learner.config;
        let size = config.stage.pooled().max(config.stage.prompts);
        Ok(Supply {
            train: self
                .learner
                .log
                .replay
                .eligible(&self.train_spec(size))
                .await?,
            left,
            held_out: self
                .learner
                .log
                .replay
                .eligible(&self.gate_spec(id))
                .await?,
            of_other_tokenizers: self.learner.log.model.of_other_tokenizers().await?,
        })
    }

    /// Returns the pool of prompts from which the next stage takes its own; `left` are the prompts left over by an earlier stage.
    async fn pool(&self, left: Vec<RecordId>) -> Result<Pool, LearnError> {
        let stage = &self.learner.config.stage;
        let easy_first = stage.order == StageOrder::EasyFirst;
        let size = if easy_first {
            stage.pooled()
        } else {
            stage.prompts
        };
        let drawn = if left.len() < stage.prompts {
            self.learner
                .log
                .replay
                .draw_ids(&self.train_spec(size))
                .await?
        } else {
            Vec::new()
        };
        Ok(Pool::new(left, drawn, stage.prompts, size))
    }

    /// Returns the callers' feedback that may be used for training.
    async fn feedback(&self) -> Result<Vec<FeedbackRow>, LearnError> {
        let config = &self.learner.config;
        let wanted = pairs_to_add(config.stage.prompts, config.feedback.share);
        if self.learner.log.feedback.trust() == FeedbackTrust::Never || wanted == 0 {
            return Ok(Vec::new());
        }
        let spec = self.train_spec(wanted);
        let mut rows = Vec::new();
        for held in self.learner.log.replay.draw_preferences(&spec).await? {
            // The record was deleted in between.
            let Some(record) = self
                .learner
                .log
                .records
                .get(&held.record, &Scope::All)
                .await?
            else {
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
}

fn ids(rows: Vec<DrawnRow>) -> Vec<RecordId> {
    rows.into_iter().map(|row| row.id).collect()
}

/// Returns the rows that the last stage left over from its pool. If its state was written by another version of the program and cannot
/// be read, no rows are left over, and rows are drawn by age.
fn left_by(config: &LearnConfig, last: Option<&Stage>) -> Vec<RecordId> {
    match (config.stage.order, last) {
        (StageOrder::EasyFirst, Some(last)) => {
            read_state(last).map_or_else(|_| Vec::new(), |(plan, _)| plan.left)
        }
        _ => Vec::new(),
    }
}

/// The schedule for counting again in a log that had too few prompts: when a new record has arrived, but so rarely that counting, which
/// reads the whole log, takes at most a twentieth of the time.
struct CountSchedule {
    /// True without a quarantine: then only a new record or new consent adds rows.
    by_newest: bool,
    newest: Option<RecordId>,
    not_before: Option<Instant>,
    /// Time of the next unconditional count, which finds consent given later and rows whose quarantine has ended.
    at_latest: Option<Instant>,
}

impl CountSchedule {
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
            self.newest = log.records.newest().await?;
            return Ok(true);
        }
        let newest = log.records.newest().await?;
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
}

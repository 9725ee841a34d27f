//! The phase `Pooling`: the stage's prompts are chosen from its pool and claimed.

use std::collections::HashSet;

use super::LearnError;
use super::config::StageOrder;
use super::learner::Learner;
use super::open_stage::OpenStage;
use super::phase::StageEvent;
use super::pool::{take, train_spec};
use super::seed::Draw;
use super::status::LearnState;
use traffic_log::{DrawnRow, RecordId};

/// Chooses and claims the prompts of a stage.
pub(super) struct Pooling<'a> {
    learner: &'a Learner,
}

impl<'a> Pooling<'a> {
    pub fn new(learner: &'a Learner) -> Self {
        Self { learner }
    }

    /// Runs the phase: takes the stage's rows from its pool, in the pool's order, and claims them permanently. Rows deleted in between are left out.
    ///
    /// # Errors
    /// Errors from the log and from the service.
    pub async fn run(&self, stage: &mut OpenStage<'_>) -> Result<(), LearnError> {
        let (id, lease) = (stage.id, stage.lease);
        let settings = stage.plan.config.stage.clone();
        let uncapped = self.learner.uncapped.as_ref();
        let spec = train_spec(&stage.plan.config, uncapped, settings.prompts);
        let spec = self.learner.answerable(spec);
        let log = &self.learner.log;
        let pool = log.replay.free_for(id, &spec, &stage.plan.rows).await?;
        let pool = match settings.order {
            StageOrder::AsLogged => pool,
            StageOrder::EasyFirst => self.easy_first(stage, pool).await?,
        };
        let (taken, left) = take(pool, &spec);
        let plan = &mut stage.plan;
        plan.rows = lease.claim_rows(id, &taken).await?;
        plan.left = left;
        let records = plan.feedback.iter().map(|row| row.record.clone());
        let records: Vec<RecordId> = records.collect();
        let own = lease.claim_feedback(id, &records).await?;
        plan.feedback.retain(|row| own.contains(&row.record));
        stage.advance_with_plan(StageEvent::Claimed).await
    }

    /// Orders a pool: rows left over by an earlier stage first, then rows by the judge's certainty about a pair of their answers, and last
    /// the rows whose answers make no pair.
    async fn easy_first(
        &self,
        stage: &OpenStage<'_>,
        pool: Vec<DrawnRow>,
    ) -> Result<Vec<DrawnRow>, LearnError> {
        let plan = &stage.plan;
        let carried: HashSet<&RecordId> = plan.rows.iter().take(plan.carried).collect();
        let (mut ordered, fresh): (Vec<_>, Vec<_>) =
            pool.into_iter().partition(|row| carried.contains(&row.id));
        if ordered.len() >= plan.config.stage.prompts {
            return Ok(ordered);
        }
        self.learner.control.enter(LearnState::Judging);
        let judge = self.learner.judge(plan).await?;
        let maker = self.learner.pair_maker(stage.id, plan, judge);
        let start = self.learner.start_weights(stage.id, plan).await?;
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

//! How a stage begins: enough prompts that no stage has used, in the order in which they are learned from.

use super::LearnError;
use super::config::StageOrder;
use super::learner::{Learner, Running};
use super::stage::{Draw, StageState};
use super::status::Phase;
use crate::preference::log::{DrawSpec, NewStage, RecordId, Split, TrainerLease};
use crate::service::WeightedPrinciple;

impl Learner {
    /// Waits until the log has what a stage needs, and opens it.
    pub(super) async fn begin<'a>(
        &self,
        lease: &'a TrainerLease,
    ) -> Result<Running<'a>, LearnError> {
        let config = &self.config;
        loop {
            self.control.unpaused().await;
            if self.control.status().unattended >= config.stage.unattended {
                tracing::info!(
                    "learning: paused after {} promoted stages",
                    config.stage.unattended
                );
                self.control.pause();
                continue;
            }
            let rows = self.log.draw_ids(&self.draw_spec(Split::Train)).await?;
            let gate_rows = self.log.draw_ids(&self.draw_spec(Split::HeldOut)).await?;
            let waiting = (rows.len() + gate_rows.len()) as u64;
            let needed = (config.stage.prompts + config.gates.prompts) as u64;
            self.control.change(|status| {
                status.state = Phase::Waiting;
                (status.prompts_waiting, status.prompts_needed) = (waiting, needed);
            });
            if rows.len() < config.stage.prompts || gate_rows.len() < config.gates.prompts {
                tokio::time::sleep(super::learner::POLL).await;
                continue;
            }
            let pointers = self.log.pointers().await?;
            let principles = self.stage_principles()?;
            let state =
                StageState::new((**config).clone(), &pointers, &principles, rows, gate_rows);
            let stage = NewStage {
                reference: pointers.policy,
                state: serde_json::to_value(&state)?,
            };
            let id = lease.open_stage(stage).await?;
            return Ok(Running { lease, id, state });
        }
    }

    fn draw_spec(&self, split: Split) -> DrawSpec {
        let stage = &self.config.stage;
        DrawSpec {
            quarantine: std::time::Duration::from_secs(stage.quarantine),
            max_share: stage.principal_share,
            split,
            held_out_per_mille: (stage.held_out * 1000.0).round() as u16,
            ..DrawSpec::new(match split {
                Split::Train => stage.prompts,
                Split::HeldOut => self.config.gates.prompts,
            })
        }
    }

    /// What pairs are judged by: the named principles with the table's weights of now.
    fn stage_principles(&self) -> Result<Vec<WeightedPrinciple>, LearnError> {
        let current = self.principles.current();
        let mut weighted = Vec::new();
        for name in &self.config.judging.principles {
            let principle = current.table.get(name).ok_or_else(|| {
                LearnError::Config(format!(
                    "judging.principles names `{name}`, which the table does not have"
                ))
            })?;
            if principle.weight > 0.0 {
                weighted.push(WeightedPrinciple::from(principle));
            }
        }
        Ok(weighted)
    }

    /// Claims the stage's rows for good and brings them into their order. What another stage got in between, or was deleted, is
    /// left out.
    pub(super) async fn claim(&self, running: &mut Running<'_>) -> Result<(), LearnError> {
        if running.state.ordered {
            return Ok(());
        }
        let rows = running
            .lease
            .claim_rows(running.id, &running.state.rows)
            .await?;
        running.state.rows = match running.state.config.stage.order {
            StageOrder::AsLogged => rows,
            StageOrder::EasyFirst => self.easy_first(running, rows).await?,
        };
        running.state.ordered = true;
        running.save().await
    }

    /// The rows on whose answers the judge is surest first; those of whose answers no pair can be made last.
    async fn easy_first(
        &self,
        running: &Running<'_>,
        rows: Vec<RecordId>,
    ) -> Result<Vec<RecordId>, LearnError> {
        self.control.enter(Phase::Judging);
        let judge = self.judge(&running.state).await?;
        let maker = self.pair_maker(running.id, &running.state, judge);
        let start = self.publisher.weights(&running.state.reference).await?;
        let places = (0_u64..).zip(&rows);
        let prompts = maker.prompts(Draw::Order, places).await?;
        let mut sure = maker.certainty(&prompts, &start).await?;
        // Equally sure ones stay in the order in which they came.
        sure.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(sure.into_iter().map(|(id, _)| id).collect())
    }
}

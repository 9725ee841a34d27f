//! The judge with its model: prompts from the judge's templates, reads through the engine, verdicts, and the tournament driver.
//!
//! Everything without a model is in crate `judge`: the prompt, the labels, the join of orders and principles, the bracket. Service,
//! learner, gates and evaluation are clients of this room.
//!
//! | file | content |
//! |---|---|
//! | `encode` | the prompts of pairs |
//! | `reading` | one-token requests for the log-probabilities of labels |
//! | `pairs` | verdicts on pairs |
//! | `tournament` | the driver of brackets |
//! | `self_test` | pairs with a known better answer |

#[cfg(test)]
mod attack_tests;
mod encode;
mod pairs;
mod reading;
#[cfg(test)]
mod reading_tests;
mod self_test;
mod tournament;

use std::sync::Arc;

pub use reading::Judged;
pub(crate) use reading::{Account, LabelPrompt};
pub use self_test::{SELF_TEST_FILE, SelfTest, SelfTestSet, SelfTestSource};
pub use tournament::{PlayedMatch, Tournament, TournamentTask};

use crate::call::Turn;
use engine::Engine;
use judge::{Judge, JudgeError, OnDisagreement, Orders, PrincipleTable, WeightedPrinciple};
use model::WeightsLease;
use self_test::LastSelfTest;
use telemetry::JudgeMetrics;
use text::Message;

/// The context, principles and settings of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgeTask {
    pub context: Vec<Message>,
    /// If empty, the judge template's default principle.
    pub principles: Vec<WeightedPrinciple>,
    pub orders: Orders,
    pub on_disagreement: OnDisagreement,
    /// The weights that judge; by default those that serve as judge. All reads of a call use one version.
    pub weights: Option<WeightsLease>,
    pub turn: Turn,
}

impl JudgeTask {
    /// Returns the number of forward passes of one comparison.
    pub fn reads(&self) -> usize {
        self.orders.reads().len() * self.principles.len().max(1)
    }
}

/// A judge with its model. Clones share all state.
#[derive(Clone)]
pub struct ModelJudge {
    engine: Engine,
    judge: Arc<Judge>,
    metrics: JudgeMetrics,
    self_test: LastSelfTest,
}

impl ModelJudge {
    pub fn new(engine: Engine, judge: Judge, metrics: JudgeMetrics) -> Self {
        Self {
            engine,
            judge: Arc::new(judge),
            metrics,
            self_test: LastSelfTest::default(),
        }
    }

    /// Returns the table of named principles.
    pub fn table(&self) -> &PrincipleTable {
        self.judge.table()
    }

    /// Returns why the model cannot judge, if it cannot.
    pub fn unusable(&self) -> Option<&str> {
        self.judge.unusable()
    }

    /// Returns an error if the model cannot judge.
    ///
    /// # Errors
    /// [`JudgeError::Unusable`].
    pub fn check(&self) -> Result<(), JudgeError> {
        self.judge.check()
    }
}

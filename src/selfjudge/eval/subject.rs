//! The subject of an evaluation: it answers conversations, compares answers and finds the best of them.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::EvalError;
use crate::call::{CallError, Turn};
use crate::judging::{JudgeTask, ModelJudge, TournamentTask};
use engine::{InlineEngine, SamplingParams};
use judge::{
    Comparison, Judge, Method, OnDisagreement, Orders, PairVerdict, PrincipleTable,
    WeightedPrinciple,
};
use model::LanguageModel;
use telemetry::Metrics;
use text::{ChatTemplate, Message, RenderOptions, Tokenizer};

/// The maximum number of comparisons or tournaments at once.
const AT_ONCE: usize = 64;

/// A knockout between answers to one conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contest {
    pub context: Vec<Message>,
    pub candidates: Vec<String>,
    pub seed: u64,
}

/// A policy that is its own judge.
pub trait Subject {
    /// Returns one answer to each conversation: greedy at temperature 0, otherwise sampled with `seed` and a separate random stream per
    /// conversation, numbered by its position.
    fn answer(
        &mut self,
        conversations: &[Vec<Message>],
        temperature: f32,
        seed: u64,
    ) -> Result<Vec<String>, EvalError>;

    /// Returns a verdict on each comparison, with both orders read.
    fn compare(&mut self, comparisons: &[Comparison]) -> Result<Vec<PairVerdict>, EvalError>;

    /// Returns the index of each contest's winner.
    fn winners(&mut self, contests: &[Contest]) -> Result<Vec<usize>, EvalError>;
}

/// A model as policy and judge, computed and judged as the server does it.
pub struct ModelSubject {
    engine: InlineEngine,
    judge: ModelJudge,
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    stop_ids: Vec<u32>,
    max_new_tokens: usize,
}

impl ModelSubject {
    /// Creates a subject whose answers have at most `max_new_tokens` tokens. The judge's prompts should be cut to the engine's context.
    pub fn new(
        engine: InlineEngine,
        model: &LanguageModel,
        judge: Judge,
        max_new_tokens: usize,
    ) -> Self {
        let metrics = Metrics::new("evaluation").judge;
        Self {
            judge: ModelJudge::new(engine.handle().clone(), judge, metrics),
            engine,
            tokenizer: model.tokenizer().clone(),
            chat: model.chat_template().clone(),
            stop_ids: model.stop_ids().to_vec(),
            max_new_tokens,
        }
    }
}

impl Subject for ModelSubject {
    fn answer(
        &mut self,
        conversations: &[Vec<Message>],
        temperature: f32,
        seed: u64,
    ) -> Result<Vec<String>, EvalError> {
        let options = RenderOptions::for_generation();
        let prompts = conversations
            .iter()
            .map(|messages| {
                let rendered = self.chat.render(messages, &options)?;
                Ok(self.tokenizer.encode_rendered(&rendered)?.ids)
            })
            .collect::<Result<Vec<_>, EvalError>>()?;
        let params = SamplingParams {
            temperature,
            seed: Some(seed),
            ..SamplingParams::new(self.max_new_tokens, self.stop_ids.clone())
        };
        let completions = self.engine.complete(&prompts, &params)?;
        completions
            .iter()
            .map(|completion| Ok(self.tokenizer.decode(&completion.ids, true)?))
            .collect()
    }

    fn compare(&mut self, comparisons: &[Comparison]) -> Result<Vec<PairVerdict>, EvalError> {
        let judge = &self.judge;
        let verdicts = comparisons.iter().map(|comparison| async move {
            let task = task(judge.table(), &comparison.context, &comparison.principles);
            let judged = judge
                .judge_pair(&task, &comparison.a, &comparison.b)
                .await?;
            Ok::<_, CallError>(judged.result)
        });
        let verdicts = stream::iter(verdicts).buffered(AT_ONCE).try_collect();
        Ok(self.engine.run(verdicts)?)
    }

    fn winners(&mut self, contests: &[Contest]) -> Result<Vec<usize>, EvalError> {
        let judge = &self.judge;
        let winners = contests.iter().map(|contest| async move {
            let task = task(judge.table(), &contest.context, &[]);
            let how = TournamentTask {
                method: Method::Knockout,
                seed: contest.seed,
            };
            let held = judge.hold_tournament(&task, how, &contest.candidates);
            Ok::<_, CallError>(held.await?.result.winner)
        });
        let winners = stream::iter(winners).buffered(AT_ONCE).try_collect();
        Ok(self.engine.run(winners)?)
    }
}

/// Returns the task of a comparison under the principles with these names or texts.
fn task(table: &PrincipleTable, context: &[Message], principles: &[String]) -> JudgeTask {
    let principles = principles
        .iter()
        .map(|name| WeightedPrinciple::named(table, name));
    JudgeTask {
        context: context.to_vec(),
        principles: principles.filter(|p| p.weight > 0.0).collect(),
        orders: Orders::Both,
        on_disagreement: OnDisagreement::Average,
        weights: None,
        turn: Turn::now(),
    }
}

//! Evaluation of weights on held-out instructions, graded by the program.

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::{ClaimsError, ClaimsOptions};
use crate::world::{Dice, Grade, Principle, Split, Task};
use judge::{Method, OnDisagreement, Orders};
use model::WeightsLease;
use selfjudge::{
    call::Turn,
    eval::stats::{Cluster, Estimate, bootstrap},
    judging::{JudgeTask, TournamentTask},
    learn::config::RolloutConfig,
    learn::rollout::{Answer, Prompt, roll_out},
    service::Service,
};
use text::{Message, Role};

/// The seed of the instructions. It is the same for every variant and seed, so that differences are due to the weights.
const TASKS: u64 = 0x68_656c_646f;

/// The measured numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Shares of sampled answers (temperature 1) that satisfy each principle without a prompt for it.
    pub correct: Estimate,
    pub brief: Estimate,
    pub polite: Estimate,
    /// Mean tokens of an answer.
    pub tokens: f64,
    /// Accuracy of the tournament's winner among N, with the weights as their own judge.
    pub best_of: Vec<BestOfN>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BestOfN {
    pub n: usize,
    pub correct: Estimate,
}

pub async fn measure(
    options: &ClaimsOptions,
    service: &Service,
    weights: &WeightsLease,
) -> Result<Measured, ClaimsError> {
    let tasks: Vec<Task> = (0..options.yardstick.instructions as u64)
        .map(|at| Task::sample(Split::HeldOut, &mut Dice::new(TASKS, at)))
        .collect();
    let mut prompts = Vec::with_capacity(tasks.len());
    for (at, task) in (0_u64..).zip(&tasks) {
        let messages = vec![Message::new(Role::User, task.prompt.clone())];
        prompts.push(Prompt {
            ids: service.encode_chat(&messages).await?,
            messages,
            seed: at,
        });
    }
    let rollout = RolloutConfig {
        samples: options.yardstick.samples.max(options.yardstick.best_of),
        top_p: 1.0,
        max_tokens: 64,
        ..RolloutConfig::default()
    };
    let answers = roll_out(service, weights, &rollout, &prompts).await?;
    let grades: Vec<Vec<Grade>> = tasks
        .iter()
        .zip(&answers)
        .map(|(task, answers)| {
            answers
                .iter()
                .map(|answer| task.check(&answer.text))
                .collect()
        })
        .collect();
    let tokens = answers.iter().flatten().map(|answer| answer.ids.len());
    let (sum, count) = tokens.fold((0, 0), |(sum, count), tokens| (sum + tokens, count + 1));
    Ok(Measured {
        correct: share(&grades, Principle::Correct)?,
        brief: share(&grades, Principle::Brief)?,
        polite: share(&grades, Principle::Polite)?,
        tokens: sum as f64 / f64::from(count.max(1)),
        best_of: best_of(options, service, weights, &prompts, &answers, &grades).await?,
    })
}

fn share(grades: &[Vec<Grade>], principle: Principle) -> Result<Estimate, ClaimsError> {
    let clusters: Vec<Cluster> = grades
        .iter()
        .map(|grades| {
            let mut cluster = Cluster::default();
            for grade in grades {
                cluster.push(f64::from(u8::from(principle.satisfied(grade))));
            }
            cluster
        })
        .collect();
    estimate(&clusters)
}

fn estimate(clusters: &[Cluster]) -> Result<Estimate, ClaimsError> {
    bootstrap(clusters)
        .ok_or_else(|| ClaimsError::Failed("no instructions were measured".to_owned()))
}

/// Runs tournaments among the first 1, 2, 4, ... answers.
async fn best_of(
    options: &ClaimsOptions,
    service: &Service,
    weights: &WeightsLease,
    prompts: &[Prompt],
    answers: &[Vec<Answer>],
    grades: &[Vec<Grade>],
) -> Result<Vec<BestOfN>, ClaimsError> {
    let mut rows = Vec::new();
    let mut n = 1;
    while n <= options.yardstick.best_of {
        let winners = prompts
            .iter()
            .zip(answers)
            .enumerate()
            .map(|(at, (prompt, answers))| {
                let task = JudgeTask {
                    context: prompt.messages.clone(),
                    principles: Vec::new(),
                    orders: Orders::Both,
                    on_disagreement: OnDisagreement::default(),
                    turn: Turn::background(),
                    weights: Some(weights.clone()),
                };
                let how = TournamentTask {
                    method: Method::Knockout,
                    seed: at as u64,
                };
                let texts: Vec<String> = answers[..n]
                    .iter()
                    .map(|answer| answer.text.clone())
                    .collect();
                async move {
                    match texts.len() {
                        1 => Ok(0),
                        _ => service
                            .judge()
                            .hold_tournament(&task, how, &texts)
                            .await
                            .map(|held| held.result.winner),
                    }
                }
            });
        let winners: Vec<usize> = stream::iter(winners).buffered(8).try_collect().await?;
        let clusters: Vec<Cluster> = winners
            .iter()
            .zip(grades)
            .map(|(&winner, grades)| {
                let mut cluster = Cluster::default();
                cluster.push(f64::from(u8::from(grades[winner].correct)));
                cluster
            })
            .collect();
        // For N = 1 every sample counts as the winner.
        let correct = match n {
            1 => share(grades, Principle::Correct)?,
            _ => estimate(&clusters)?,
        };
        rows.push(BestOfN { n, correct });
        n *= 2;
    }
    Ok(rows)
}

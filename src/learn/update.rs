//! One update's data: prompts of the log, fresh answers, verdicts, pairs, and what of it goes back into the log.

use std::sync::Arc;

use super::LearnError;
use super::config::LearnConfig;
use super::contrast::{OpposedAnswers, OpposedPrompts};
use super::judging::{Dropped, JudgedPair, PinnedJudge};
use super::rollout::{Answer, Prompt, roll_out};
use super::stage::{Draw, seed};
use super::trainer::Trainer;
use crate::model::WeightsLease;
use crate::preference::log::{
    self, Addition, LoggedPair, LoggedVerdict, PairSource, RecordId, Sample, Scope, TrafficLog,
};
use crate::preference::{Message, Role};
use crate::service::{PairVerdict, Service};
use crate::train::dpo::{PairExample, Scorer};

/// A pair on its way to the trainer.
#[derive(Debug, Clone)]
pub struct UpdatePair {
    pub record: RecordId,
    pub prompt: Vec<u32>,
    pub pair: JudgedPair,
    /// None of a pair of an earlier stage: the log has it already.
    pub source: Option<PairSource>,
}

impl UpdatePair {
    pub fn example(&self) -> PairExample {
        let ids = |answer: &Answer| answer.ids.clone();
        PairExample {
            label: self.pair.label,
            ..PairExample::new(
                self.prompt.clone(),
                ids(&self.pair.chosen),
                ids(&self.pair.rejected),
            )
        }
    }

    /// What the log keeps of it. A pair nobody judged has no verdict.
    fn addition(&self, source: PairSource, config: &LearnConfig, judge: &PinnedJudge) -> Addition {
        let JudgedPair {
            chosen,
            rejected,
            verdict,
            ..
        } = &self.pair;
        let principles: Vec<String> = judge.principles.iter().map(|p| p.name.clone()).collect();
        let first = |shown: [usize; 2]| {
            let read = verdict.orders.iter().find(|read| read.shown == shown);
            read.map(|read| {
                if shown[0] == 0 {
                    read.p_first
                } else {
                    1.0 - read.p_first
                }
            })
        };
        let read = first([0, 1]).zip(first([1, 0]));
        let verdicts = read.map(|(given, turned)| LoggedVerdict {
            a: 0,
            b: 1,
            orders: [given, turned],
            p: verdict.p,
            consistent: verdict.consistent == Some(true),
            label_mass: verdict.label_mass,
            principles: principles.clone(),
            version: judge.weights.name().to_string(),
        });
        Addition {
            samples: [chosen, rejected]
                .map(|answer| sample(config, answer))
                .into(),
            verdicts: verdicts.into_iter().collect(),
            pairs: vec![LoggedPair {
                chosen: 0,
                rejected: 1,
                margin: verdict.p,
                source,
                principles,
            }],
        }
    }
}

fn sample(config: &LearnConfig, answer: &Answer) -> Sample {
    let rollout = &config.rollout;
    Sample {
        token_ids: answer.ids.clone(),
        text: answer.text.clone(),
        logprobs: answer.logprobs.clone(),
        seed: Some(answer.seed),
        sampling: serde_json::json!({
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "max_tokens": rollout.max_tokens,
        }),
        finish_reason: Some(if answer.complete { "stop" } else { "length" }.to_owned()),
        version: Some(answer.weights.clone()),
    }
}

/// What an update is made of.
#[derive(Debug, Default)]
pub struct Batch {
    pub pairs: Vec<UpdatePair>,
    pub dropped: Vec<Dropped>,
    /// Prompts of these pairs with the answers the policy gave to the bare prompt, for the estimate of its drift.
    pub own_answers: Vec<(Vec<u32>, Answer)>,
}

impl Batch {
    pub fn additions(
        &self,
        config: &LearnConfig,
        judge: &PinnedJudge,
    ) -> Vec<(RecordId, Addition)> {
        let fresh = self
            .pairs
            .iter()
            .filter_map(|pair| Some((pair, pair.source?)));
        fresh
            .map(|(pair, source)| (pair.record.clone(), pair.addition(source, config, judge)))
            .collect()
    }
}

/// Makes the pairs of updates.
#[derive(Clone)]
pub struct PairMaker {
    pub service: Service,
    pub log: TrafficLog,
    pub judge: PinnedJudge,
    pub config: Arc<LearnConfig>,
    pub stage: i64,
}

impl PairMaker {
    /// The prompts of `rows` that may still be learned from: of a record that was deleted or whose consent was withdrawn since the
    /// stage began nothing is left to learn.
    ///
    /// # Errors
    /// The log's, and the template's.
    pub async fn prompts<'a>(
        &self,
        draw: Draw,
        rows: impl IntoIterator<Item = (u64, &'a RecordId)>,
    ) -> Result<Vec<(RecordId, Prompt)>, LearnError> {
        let mut prompts = Vec::new();
        for (place, id) in rows {
            let Some(record) = self.log.get(id, &Scope::All).await? else {
                continue;
            };
            if !record.consent.train {
                continue;
            }
            // What was logged is what the policy saw, whatever the template says today. Redaction leaves no tokens.
            let mut ids = record.prompt_token_ids;
            let messages = match record.prompt {
                log::Prompt::Messages(messages) => {
                    if ids.is_empty() {
                        ids = self.service.encode_chat(&messages).await?;
                    }
                    messages
                }
                log::Prompt::Text(text) => {
                    if ids.is_empty() {
                        ids = self.service.encode_text(text.clone()).await?;
                    }
                    vec![Message::new(Role::User, text)]
                }
            };
            let seed = seed(self.config.stage.seed, self.stage, draw, place);
            prompts.push((
                id.clone(),
                Prompt {
                    messages,
                    ids,
                    seed,
                },
            ));
        }
        Ok(prompts)
    }

    /// Pairs of an update. `policy` answers; `opposed` answers under opposed principles (the policy itself, or a generator).
    ///
    /// # Errors
    /// The service's, the log's and the trainer's.
    pub async fn make(
        &self,
        prompts: Vec<(RecordId, Prompt)>,
        policy: &WeightsLease,
        opposed: &WeightsLease,
        trainer: &mut Trainer,
    ) -> Result<Batch, LearnError> {
        let share = self.config.contrast.share;
        // The seed is as good as a draw, and the same after a restart.
        let is_opposed = |prompt: &Prompt| ((prompt.seed >> 20) % 10_000) as f64 / 10_000.0 < share;
        let (contrasted, plain): (Vec<_>, Vec<_>) = prompts
            .into_iter()
            .partition(|(_, prompt)| is_opposed(prompt));
        let mut batch = self.plain(plain, policy).await?;
        if !contrasted.is_empty() {
            let more = self
                .contrasted(contrasted, policy, opposed, trainer)
                .await?;
            batch.pairs.extend(more.pairs);
            batch.dropped.extend(more.dropped);
            batch.own_answers.extend(more.own_answers);
        }
        Ok(batch)
    }

    /// SELF-JUDGE: fresh answers, judged.
    async fn plain(
        &self,
        prompts: Vec<(RecordId, Prompt)>,
        policy: &WeightsLease,
    ) -> Result<Batch, LearnError> {
        let (records, prompts): (Vec<_>, Vec<_>) = prompts.into_iter().unzip();
        let answers = roll_out(&self.service, policy, &self.config.rollout, &prompts).await?;
        let mut batch = Batch::default();
        let firsts = prompts.iter().zip(&answers);
        let firsts = firsts
            .filter_map(|(prompt, answers)| Some((prompt.ids.clone(), answers.first()?.clone())));
        batch.own_answers = firsts.collect();
        let answered = prompts
            .iter()
            .map(|prompt| prompt.messages.clone())
            .zip(answers);
        let judged = self
            .judge
            .pairs(&self.service, &self.config.judging, answered.collect());
        let made = records.into_iter().zip(prompts).zip(judged.await?);
        for ((record, prompt), pair) in made {
            match pair {
                Ok(pair) => batch.pairs.push(UpdatePair {
                    record,
                    prompt: prompt.ids,
                    pair,
                    source: Some(PairSource::OnPolicy),
                }),
                Err(why) => batch.dropped.push(why),
            }
        }
        Ok(batch)
    }

    /// How sure the judge is of a pair of each prompt's answers: how far from a half; nothing, where there is no pair.
    ///
    /// # Errors
    /// The service's.
    pub async fn certainty(
        &self,
        prompts: &[(RecordId, Prompt)],
        policy: &WeightsLease,
    ) -> Result<Vec<(RecordId, f32)>, LearnError> {
        let asked: Vec<Prompt> = prompts.iter().map(|(_, prompt)| prompt.clone()).collect();
        let answers = roll_out(&self.service, policy, &self.config.rollout, &asked).await?;
        let answered = asked.into_iter().map(|prompt| prompt.messages).zip(answers);
        let judged = self
            .judge
            .pairs(&self.service, &self.config.judging, answered.collect());
        let sure = judged.await?.into_iter().map(|pair| match pair {
            Ok(pair) => (pair.verdict.p - 0.5).abs(),
            Err(_) => -1.0,
        });
        Ok(prompts.iter().map(|(id, _)| id.clone()).zip(sure).collect())
    }

    /// SSO: answers under opposed principles, learned from without them.
    async fn contrasted(
        &self,
        prompts: Vec<(RecordId, Prompt)>,
        policy: &WeightsLease,
        opposed: &WeightsLease,
        trainer: &mut Trainer,
    ) -> Result<Batch, LearnError> {
        let config = &self.config.contrast;
        let (records, bare): (Vec<_>, Vec<_>) = prompts.into_iter().unzip();
        let (prompts, answers) = self.opposed_answers(&bare, policy, opposed).await?;
        // How probable both answers are where nobody names a principle.
        let asked: Vec<(Vec<u32>, Vec<u32>)> = prompts
            .iter()
            .zip(&answers)
            .flat_map(|(prompts, answers)| {
                [&answers.good, &answers.bad]
                    .map(|answer| (prompts.bare.ids.clone(), answer.ids.clone()))
            })
            .collect();
        let scored = trainer
            .with(move |trainer, pace| trainer.score(Scorer::Policy, &asked, pace))
            .await?;
        let mean =
            |logprobs: &Vec<f32>| logprobs.iter().sum::<f32>() / logprobs.len().max(1) as f32;
        let (bare_means, _) = scored.as_chunks::<2>();
        let verdicts: Vec<Option<PairVerdict>> = if config.confirmed {
            let texts = bare.iter().zip(&answers);
            let texts =
                texts.map(|(prompt, a)| (prompt.messages.clone(), &*a.good.text, &*a.bad.text));
            let verdicts = self.judge.judge_all(&self.service, texts).await?;
            verdicts.into_iter().map(Some).collect()
        } else {
            vec![None; answers.len()]
        };
        let mut batch = Batch::default();
        let all = records.into_iter().zip(bare).zip(answers);
        for (((record, prompt), answers), (bare, verdict)) in
            all.zip(bare_means.iter().zip(verdicts))
        {
            let own = (prompt.ids.clone(), answers.plain.clone());
            let means = [mean(&bare[0]), mean(&bare[1])];
            match answers.pair(config.max_distance, means, verdict) {
                Ok(pair) => batch.pairs.push(UpdatePair {
                    record,
                    prompt: prompt.ids,
                    pair,
                    source: Some(PairSource::Contrast),
                }),
                Err(why) => batch.dropped.push(why),
            }
            batch.own_answers.push(own);
        }
        Ok(batch)
    }

    /// The answers to each prompt by itself and under both of its principles.
    ///
    /// # Errors
    /// The service's and the template's.
    pub async fn opposed_answers(
        &self,
        bare: &[Prompt],
        policy: &WeightsLease,
        opposed: &WeightsLease,
    ) -> Result<(Vec<OpposedPrompts>, Vec<OpposedAnswers>), LearnError> {
        let principles = &self.config.contrast.principles;
        let mut prompts = Vec::with_capacity(bare.len());
        for prompt in bare {
            let pair = &principles[(prompt.seed % principles.len() as u64) as usize];
            prompts.push(OpposedPrompts::new(&self.service, prompt, pair).await?);
        }
        let one = super::config::RolloutConfig {
            samples: 1,
            ..self.config.rollout.clone()
        };
        let first = |answers: Vec<Vec<Answer>>| answers.into_iter().flatten();
        let side = |of: fn(&OpposedPrompts) -> &Prompt| {
            prompts.iter().map(|p| of(p).clone()).collect::<Vec<_>>()
        };
        let (plain, good, bad) = (side(|p| &p.bare), side(|p| &p.good), side(|p| &p.bad));
        let (plain, good, bad) = tokio::try_join!(
            roll_out(&self.service, policy, &one, &plain),
            roll_out(&self.service, opposed, &one, &good),
            roll_out(&self.service, opposed, &one, &bad),
        )?;
        let answers = first(plain).zip(first(good)).zip(first(bad));
        let answers = answers.map(|((plain, good), bad)| OpposedAnswers { plain, good, bad });
        let answers = answers.collect();
        Ok((prompts, answers))
    }

    /// Pairs of earlier stages, to be mixed in: `share` of the whole batch.
    ///
    /// # Errors
    /// The log's.
    pub async fn replayed(
        &self,
        update: u64,
        fresh: usize,
        earlier: &[RecordId],
    ) -> Result<Vec<UpdatePair>, LearnError> {
        let share = self.config.replay.share;
        let wanted = (fresh as f64 * share / (1.0 - share)).round() as usize;
        if wanted == 0 || earlier.is_empty() {
            return Ok(Vec::new());
        }
        let mut pairs = Vec::new();
        // Records without a usable pair are passed over, within reason.
        for draw in 0..(4 * wanted) as u64 {
            let number = seed(
                self.config.stage.seed,
                self.stage,
                Draw::Replay,
                (update << 20) | draw,
            );
            let id = &earlier[(number % earlier.len() as u64) as usize];
            pairs.extend(self.replayed_pair(id).await?);
            if pairs.len() == wanted {
                break;
            }
        }
        Ok(pairs)
    }

    /// What an earlier stage learned from this record, if it is still there and still may train.
    async fn replayed_pair(&self, id: &RecordId) -> Result<Option<UpdatePair>, LearnError> {
        let record = self.log.get(id, &Scope::All).await?;
        let Some(record) =
            record.filter(|record| record.consent.train && !record.prompt_token_ids.is_empty())
        else {
            return Ok(None);
        };
        let made =
            |pair: &&LoggedPair| matches!(pair.source, PairSource::OnPolicy | PairSource::Contrast);
        let Some(pair) = record.pairs.iter().find(made) else {
            return Ok(None);
        };
        let answer = |at: usize| {
            let sample = record
                .samples
                .get(at)
                .filter(|sample| !sample.token_ids.is_empty())?;
            Some(Answer {
                text: sample.text.clone(),
                ids: sample.token_ids.clone(),
                logprobs: sample.logprobs.clone(),
                complete: true,
                seed: sample.seed.unwrap_or_default(),
                weights: sample.version.clone().unwrap_or_default(),
            })
        };
        let Some((chosen, rejected)) = answer(pair.chosen).zip(answer(pair.rejected)) else {
            return Ok(None);
        };
        Ok(Some(UpdatePair {
            record: id.clone(),
            prompt: record.prompt_token_ids.clone(),
            pair: JudgedPair {
                chosen,
                rejected,
                label: if self.config.judging.soft_labels {
                    pair.margin
                } else {
                    1.0
                },
                verdict: PairVerdict::unread(),
            },
            source: None,
        }))
    }
}

/// Active preference learning (arXiv 2402.08114, section 3): the pairs whose prompts the policy is least sure of and whose implicit
/// reward is most certain, right or wrong. Returns the places of the `wanted` best.
///
/// `entropy` are the mean negative log-probabilities of a token of each pair's answers, `margins` the implicit reward margins. Both
/// are taken by rank, because nats a token and rewards have no common scale.
pub fn select(entropy: &[f64], margins: &[f64], weight: f64, wanted: usize) -> Vec<usize> {
    let ranks = |values: Vec<f64>| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]).then(b.cmp(&a)));
        let mut ranks = vec![0.0; values.len()];
        for (rank, at) in order.into_iter().enumerate() {
            ranks[at] = rank as f64;
        }
        ranks
    };
    let by_entropy = ranks(entropy.to_vec());
    let by_margin = ranks(margins.iter().map(|margin| margin.abs()).collect());
    let score = |at: usize| weight * by_entropy[at] + (1.0 - weight) * by_margin[at];
    let mut order: Vec<usize> = (0..entropy.len()).collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
    order.truncate(wanted);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_takes_the_least_sure_or_the_most_certain() {
        let entropy = [0.1, 0.9, 0.5, 0.2];
        let margins = [2.0, 0.0, -3.0, 0.1];
        assert_eq!(select(&entropy, &margins, 1.0, 2), [1, 2]);
        assert_eq!(select(&entropy, &margins, 0.0, 2), [0, 2]);
        assert_eq!(select(&entropy, &margins, 0.5, 1), [2]);
        // At step 0 every margin is 0, and the order is that of the prompts.
        assert_eq!(select(&entropy, &[0.0; 4], 0.0, 2), [0, 1]);
        assert_eq!(select(&[], &[], 0.5, 3), [0usize; 0]);
    }
}

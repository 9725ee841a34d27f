//! The data of one update: prompts of the log, fresh answers, verdicts and pairs, and the additions to the log.

use std::sync::Arc;

use super::LearnError;
use super::config::LearnConfig;
use super::contrast::{OpposedAnswers, OpposedPrompts};
use super::gate::measure::log_ratios;
use super::judging::{Dropped, JudgedPair, PinnedJudge};
use super::rollout::{Answer, Prompt, mean_logprob, roll_out};
use super::seed::{Draw, seed};
use super::trainer_pool::Trainer;
use crate::service::Service;
use judge::PairVerdict;
use model::WeightsLease;
use text::{Message, Role};
use traffic_log::{
    Addition, LoggedPair, LoggedRecord, LoggedVerdict, PairSource, RecordId, Sample, Scope,
    TrafficLog,
};
use train::dpo::{PairExample, Scorer};

/// A pair on its way to the trainer.
#[derive(Debug, Clone)]
pub struct UpdatePair {
    pub record: RecordId,
    pub prompt: Vec<u32>,
    pub pair: JudgedPair,
    /// How the pair was made; none for a logged pair, from an earlier stage or from a caller.
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

    /// Returns the log's entry for the pair. A pair without a judge has no verdict.
    fn addition(&self, source: PairSource, config: &LearnConfig, judge: &PinnedJudge) -> Addition {
        let JudgedPair {
            chosen,
            rejected,
            verdict,
            ..
        } = &self.pair;
        Addition {
            samples: [chosen, rejected]
                .map(|answer| sample(config, answer))
                .into(),
            verdicts: judge.logged([0, 1], verdict).into_iter().collect(),
            pairs: vec![LoggedPair {
                chosen: 0,
                rejected: 1,
                margin: verdict.p,
                source,
                principles: judge.principle_names(),
            }],
            corroborating: Vec::new(),
        }
    }
}

impl PinnedJudge {
    fn principle_names(&self) -> Vec<String> {
        self.principles.iter().map(|p| p.name.clone()).collect()
    }

    /// Returns a verdict in the log's form, on the samples at these indices; none if the judge did not read both orders.
    pub fn logged(&self, [a, b]: [usize; 2], verdict: &PairVerdict) -> Option<LoggedVerdict> {
        let first = |shown: [usize; 2]| {
            let read = verdict.orders.iter().find(|read| read.shown == shown)?;
            Some(match shown[0] {
                0 => read.p_first,
                _ => 1.0 - read.p_first,
            })
        };
        Some(LoggedVerdict {
            a,
            b,
            orders: [first([0, 1])?, first([1, 0])?],
            p: verdict.p,
            consistent: verdict.consistent == Some(true),
            label_mass: verdict.label_mass,
            principles: self.principle_names(),
            version: self.weights.name().to_string(),
        })
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

/// A logged prompt that is to be answered again.
#[derive(Debug, Clone)]
pub struct DrawnPrompt {
    pub record: RecordId,
    pub prompt: Prompt,
    /// Whether it is a conversation, rather than plain text.
    pub chat: bool,
}

/// The data of one update.
#[derive(Debug, Default)]
pub struct Batch {
    pub pairs: Vec<UpdatePair>,
    pub dropped: Vec<Dropped>,
    /// The judge's verdicts on callers' preferences between logged samples.
    pub corroborating: Vec<(RecordId, LoggedVerdict)>,
    /// Log-ratios, in nats, of the answering weights and the base on the answers to the bare prompts: see [`divergence`].
    ///
    /// [`divergence`]: super::gate::measure::divergence
    pub drift: Vec<f64>,
}

impl DrawnPrompt {
    /// Returns whether its pair is sampled under opposed principles, for this share of prompts. The decision is derived from the seed, so
    /// it is the same after a restart. Plain text has no place for a principle and never qualifies.
    fn is_contrasted(&self, share: f64) -> bool {
        self.chat && ((self.prompt.seed >> 20) % 10_000) as f64 / 10_000.0 < share
    }
}

impl Batch {
    pub fn extend(&mut self, other: Self) {
        self.pairs.extend(other.pairs);
        self.dropped.extend(other.dropped);
        self.corroborating.extend(other.corroborating);
        self.drift.extend(other.drift);
    }

    /// Returns the log's entries for the pairs that the trainer accepted, and for the judge's verdicts on feedback.
    pub fn additions(
        &self,
        taken: &[UpdatePair],
        config: &LearnConfig,
        judge: &PinnedJudge,
    ) -> Vec<(RecordId, Addition)> {
        let fresh = taken.iter().filter_map(|pair| Some((pair, pair.source?)));
        let fresh =
            fresh.map(|(pair, source)| (pair.record.clone(), pair.addition(source, config, judge)));
        let read = self.corroborating.iter().map(|(record, verdict)| {
            let addition = Addition {
                corroborating: vec![verdict.clone()],
                ..Addition::default()
            };
            (record.clone(), addition)
        });
        fresh.chain(read).collect()
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
    /// Returns the prompts of `rows` that may still be trained on: records deleted since the stage began, or whose consent was withdrawn,
    /// are left out.
    ///
    /// # Errors
    /// Errors from the log and the template.
    pub async fn prompts<'a>(
        &self,
        draw: Draw,
        rows: impl IntoIterator<Item = (u64, &'a RecordId)>,
    ) -> Result<Vec<DrawnPrompt>, LearnError> {
        let mut prompts = Vec::new();
        for (place, id) in rows {
            if let Some(record) = self.trainable(id).await? {
                let seed = seed(self.config.stage.seed, self.stage, draw, place);
                prompts.push(self.prompt(record, seed).await?);
            }
        }
        Ok(prompts)
    }

    /// Returns a record if it still exists and may still be trained on.
    pub(super) async fn trainable(
        &self,
        id: &RecordId,
    ) -> Result<Option<LoggedRecord>, LearnError> {
        let record = self.log.records.get(id, &Scope::All).await?;
        Ok(record.filter(|record| record.consent.train))
    }

    /// Returns the prompt with its logged tokens, which the policy saw, even if the template has changed since. A redacted record has no
    /// tokens, so its remaining text is encoded again.
    pub(super) async fn prompt(
        &self,
        record: LoggedRecord,
        seed: u64,
    ) -> Result<DrawnPrompt, LearnError> {
        let mut ids = record.prompt_token_ids;
        let chat = matches!(record.prompt, traffic_log::Prompt::Messages(_));
        let messages = match record.prompt {
            traffic_log::Prompt::Messages(messages) => {
                if ids.is_empty() {
                    ids = self.service.encode_chat(&messages).await?;
                }
                messages
            }
            traffic_log::Prompt::Text(text) => {
                if ids.is_empty() {
                    ids = self.service.encode_text(text.clone()).await?;
                }
                vec![Message::new(Role::User, text)]
            }
        };
        Ok(DrawnPrompt {
            record: record.id,
            prompt: Prompt {
                messages,
                ids,
                seed,
            },
            chat,
        })
    }

    /// Returns the pairs of an update. `policy` answers; `opposed` answers under opposed principles (the policy itself, or a generator).
    ///
    /// # Errors
    /// Errors from the service, the log and the trainer.
    pub async fn make(
        &self,
        prompts: Vec<DrawnPrompt>,
        policy: &WeightsLease,
        opposed: &WeightsLease,
        trainer: &mut Trainer,
    ) -> Result<Batch, LearnError> {
        let share = self.config.contrast.share;
        let (contrasted, plain): (Vec<_>, Vec<_>) = prompts
            .into_iter()
            .partition(|drawn| drawn.is_contrasted(share));
        let mut batch = self.plain(plain, policy, trainer).await?;
        if !contrasted.is_empty() {
            batch.extend(
                self.contrasted(contrasted, policy, opposed, trainer)
                    .await?,
            );
        }
        Ok(batch)
    }

    /// Makes pairs of fresh, judged answers (SELF-JUDGE).
    async fn plain(
        &self,
        prompts: Vec<DrawnPrompt>,
        policy: &WeightsLease,
        trainer: &mut Trainer,
    ) -> Result<Batch, LearnError> {
        let (records, prompts) = records_and_prompts(prompts);
        let answers = roll_out(&self.service, policy, &self.config.rollout, &prompts).await?;
        let firsts = prompts.iter().zip(&answers);
        let firsts = firsts.filter_map(|(prompt, answers)| {
            Some((prompt.ids.clone(), answers.first()?.ids.clone()))
        });
        let drift = self.drift(firsts.collect(), trainer);
        // The server and the trainer work concurrently. Neither is cancelled if the other fails, because the trainer must be returned.
        let (judged, drift) = tokio::join!(self.judged(&prompts, answers), drift);
        let mut batch = Batch {
            drift: drift?,
            ..Batch::default()
        };
        let made = records.into_iter().zip(prompts).zip(judged?);
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

    /// Returns the judge's certainty about a pair of each prompt's answers: the distance of its probability from 0.5, or -1 without a pair.
    ///
    /// # Errors
    /// Errors from the service.
    pub async fn certainty(
        &self,
        prompts: Vec<DrawnPrompt>,
        policy: &WeightsLease,
    ) -> Result<Vec<(RecordId, f32)>, LearnError> {
        let (records, prompts) = records_and_prompts(prompts);
        let answers = roll_out(&self.service, policy, &self.config.rollout, &prompts).await?;
        let judged = self.judged(&prompts, answers).await?.into_iter();
        let sure = judged.map(|pair| match pair {
            Ok(pair) => (pair.verdict.p - 0.5).abs(),
            Err(_) => -1.0,
        });
        Ok(records.into_iter().zip(sure).collect())
    }

    /// Returns the log-ratio of the answering weights and the base for each answer. Both sides use the trainer's forward pass, because the
    /// server's log-probabilities differ by the rounding of its kernels.
    async fn drift(
        &self,
        mut answered: Vec<(Vec<u32>, Vec<u32>)>,
        trainer: &mut Trainer,
    ) -> Result<Vec<f64>, LearnError> {
        let author = match self.config.rollout.on_policy {
            true => Scorer::Policy,
            false => Scorer::Reference,
        };
        answered.retain(|(_, answer)| !answer.is_empty());
        let ratios = trainer.with(move |trainer, pace| {
            let own = trainer.score(author, &answered, pace)?;
            let base = trainer.score(Scorer::Base, &answered, pace)?;
            Ok(log_ratios(&own, &base))
        });
        ratios.await
    }

    /// Returns the pair of each prompt's answers, or why there is none.
    async fn judged(
        &self,
        prompts: &[Prompt],
        answers: Vec<Vec<Answer>>,
    ) -> Result<Vec<Result<JudgedPair, Dropped>>, LearnError> {
        let messages = prompts.iter().map(|prompt| prompt.messages.clone());
        let answered = messages.zip(answers).collect();
        let (service, judging) = (&self.service, &self.config.judging);
        self.judge.pairs(service, judging, answered).await
    }

    /// Makes pairs of answers sampled under opposed principles (SSO); the prompts in the pairs lack the principles.
    async fn contrasted(
        &self,
        prompts: Vec<DrawnPrompt>,
        policy: &WeightsLease,
        opposed: &WeightsLease,
        trainer: &mut Trainer,
    ) -> Result<Batch, LearnError> {
        let (config, judging) = (&self.config.contrast, &self.config.judging);
        let (records, bare) = records_and_prompts(prompts);
        let (prompts, answers) = self.opposed_answers(&bare, policy, opposed).await?;
        // The log-probabilities of both answers under the bare prompt.
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
        let plain = bare.iter().zip(&answers);
        let plain = plain.map(|(prompt, a)| (prompt.ids.clone(), a.plain.ids.clone()));
        let mut batch = Batch {
            drift: self.drift(plain.collect(), trainer).await?,
            ..Batch::default()
        };
        let all = records.into_iter().zip(bare).zip(answers);
        for (((record, prompt), answers), (bare, verdict)) in
            all.zip(bare_means.iter().zip(verdicts))
        {
            if verdict.as_ref().is_some_and(|read| !judging.compares(read)) {
                batch.dropped.push(Dropped::LabelMass);
                continue;
            }
            let means = [mean_logprob(&bare[0]), mean_logprob(&bare[1])];
            match answers.pair(config.max_distance, means, verdict) {
                Ok(pair) => batch.pairs.push(UpdatePair {
                    record,
                    prompt: prompt.ids,
                    pair,
                    source: Some(PairSource::Contrast),
                }),
                Err(why) => batch.dropped.push(why),
            }
        }
        Ok(batch)
    }

    /// Returns the answers to each bare prompt and to the same prompt under both of its principles.
    ///
    /// # Errors
    /// Errors from the service and the template.
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
}

fn records_and_prompts(prompts: Vec<DrawnPrompt>) -> (Vec<RecordId>, Vec<Prompt>) {
    let both = prompts
        .into_iter()
        .map(|drawn| (drawn.record, drawn.prompt));
    both.unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principles_are_for_conversations() {
        let drawn = |chat| DrawnPrompt {
            record: RecordId::parse(&"0".repeat(26)).unwrap(),
            prompt: Prompt {
                messages: Vec::new(),
                ids: vec![1],
                seed: 1,
            },
            chat,
        };
        assert!(drawn(true).is_contrasted(1.0) && !drawn(true).is_contrasted(0.0));
        assert!(!drawn(false).is_contrasted(1.0));
    }
}

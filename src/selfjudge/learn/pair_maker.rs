//! Makes the pairs of updates: prompts of the log get fresh answers, verdicts and pairs.

use std::sync::Arc;

use super::LearnError;
use super::batch::{Batch, DrawnPrompt, UpdatePair};
use super::config::LearnConfig;
use super::contrast::{OpposedAnswers, OpposedPrompts};
use super::gate::measure::log_ratios;
use super::pairs::{Dropped, JudgedPair, PinnedJudge};
use super::rollout::{Answer, Prompt, mean_logprob, roll_out};
use super::seed::{Draw, seed};
use super::trainer_pool::Trainer;
use crate::service::Service;
use judge::PairVerdict;
use model::WeightsLease;
use text::{Message, Role};
use traffic_log::{LoggedRecord, PairSource, RecordId, Scope, TrafficLog};
use train::dpo::Scorer;

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
    /// are left out, and so are prompts that fill the context, which a server with a longer one has logged.
    ///
    /// # Errors
    /// Errors from the log and the template.
    pub async fn prompts<'a>(
        &self,
        draw: Draw,
        rows: impl IntoIterator<Item = (u64, &'a RecordId)>,
    ) -> Result<Vec<DrawnPrompt>, LearnError> {
        let context = self.service.engine().capacity().max_context;
        let mut prompts = Vec::new();
        for (place, id) in rows {
            if let Some(record) = self.trainable(id).await? {
                let seed = seed(self.config.stage.seed, self.stage, draw, place);
                let drawn = self.prompt(record, seed).await?;
                prompts.extend(Some(drawn).filter(|drawn| drawn.prompt.ids.len() < context));
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
        let mut batch = Batch::default();
        let (records, bare) = records_and_prompts(prompts);
        let (prompts, answers) = self.opposed_answers(&bare, policy, opposed).await?;
        let mut answered = Vec::new();
        for ((record, prompts), answers) in records.into_iter().zip(prompts).zip(answers) {
            match answers.all_answered() {
                true => answered.push((record, prompts.bare, answers)),
                false => batch.dropped.push(Dropped::TooLong),
            }
        }
        // The log-probabilities of both answers under the bare prompt.
        let asked: Vec<(Vec<u32>, Vec<u32>)> = answered
            .iter()
            .flat_map(|(_, bare, answers)| {
                [&answers.good, &answers.bad].map(|answer| (bare.ids.clone(), answer.ids.clone()))
            })
            .collect();
        let scored = trainer
            .with(move |trainer, pace| trainer.score(Scorer::Policy, &asked, pace))
            .await?;
        let (bare_means, _) = scored.as_chunks::<2>();
        let verdicts: Vec<Option<PairVerdict>> = if config.confirmed {
            let texts = answered
                .iter()
                .map(|(_, bare, a)| (bare.messages.clone(), &*a.good.text, &*a.bad.text));
            let verdicts = self.judge.judge_all(&self.service, texts).await?;
            verdicts.into_iter().map(Some).collect()
        } else {
            vec![None; answered.len()]
        };
        let plain = answered
            .iter()
            .map(|(_, bare, a)| (bare.ids.clone(), a.plain.ids.clone()));
        batch.drift = self.drift(plain.collect(), trainer).await?;
        for ((record, prompt, answers), (bare, verdict)) in
            answered.into_iter().zip(bare_means.iter().zip(verdicts))
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

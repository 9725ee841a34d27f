//! Pairs of logged answers: from earlier stages (replay) and from callers (feedback). Neither is on-policy.
//!
//! Their token ids are those that were sampled, and the reference scores them like any other pair. Redacted records have no tokens
//! left and cannot be trained on.

use super::LearnError;
use super::config::JudgingConfig;
use super::judging::{Dropped, JudgedPair, corroborated, label};
use super::rollout::Answer;
use super::seed::{Draw, seed};
use super::stage::{FeedbackRow, joining};
use super::update::{Batch, PairMaker, UpdatePair};
use judge::PairVerdict;
use text::{Message, Role};
use traffic_log::{LoggedPair, LoggedRecord, PairSource, RecordId, Sample};

/// Finish reasons of samples that were not cut off.
const WHOLE: [&str; 3] = ["stop", "stop_string", "complete"];

impl PairMaker {
    /// Returns pairs of earlier stages to be mixed in, `replay.share` of the whole batch.
    ///
    /// # Errors
    /// Errors from the log.
    pub async fn replayed(
        &self,
        update: u64,
        fresh: usize,
        earlier: &[RecordId],
    ) -> Result<Vec<UpdatePair>, LearnError> {
        let wanted = joining(fresh, self.config.replay.share);
        if wanted == 0 || earlier.is_empty() {
            return Ok(Vec::new());
        }
        let mut pairs = Vec::new();
        // Records without a usable pair are skipped, up to a bounded number of draws.
        for draw in 0..(4 * wanted) as u64 {
            let number = seed(
                self.config.stage.seed,
                self.stage,
                Draw::Replay,
                (update << 20) | draw,
            );
            let id = &earlier[(number % earlier.len() as u64) as usize];
            if let Some(record) = self.trainable(id).await? {
                pairs.extend(replayed(&self.config.judging, record));
            }
            if pairs.len() == wanted {
                break;
            }
        }
        Ok(pairs)
    }

    /// Returns pairs from callers' feedback: pairs of sampled answers, or of an edit and the answer it changed. With `corroborate`, only
    /// pairs on which the pinned judge, reading both orders, agrees; its verdicts are returned for the log in any case.
    ///
    /// # Errors
    /// Errors from the log, the template and the service.
    pub async fn feedback_pairs(
        &self,
        rows: &[FeedbackRow],
        corroborate: bool,
    ) -> Result<Batch, LearnError> {
        let mut batch = Batch::default();
        let mut found = Vec::new();
        for row in rows {
            match self.preference(row).await? {
                Some(Ok(preference)) => found.push((row, preference)),
                Some(Err(why)) => batch.dropped.push(why),
                // The record was deleted or its consent withdrawn since.
                None => {}
            }
        }
        let verdicts: Vec<Option<PairVerdict>> = if corroborate {
            let texts = found.iter().map(|(_, preference)| {
                let Preference {
                    messages,
                    answers: [chosen, rejected],
                    ..
                } = preference;
                (messages.clone(), &*chosen.text, &*rejected.text)
            });
            let verdicts = self.judge.judge_all(&self.service, texts).await?;
            verdicts.into_iter().map(Some).collect()
        } else {
            vec![None; found.len()]
        };
        for ((row, preference), verdict) in found.into_iter().zip(verdicts) {
            let logged = verdict
                .as_ref()
                .and_then(|verdict| self.judge.logged([row.chosen, row.rejected], verdict));
            let logged = logged.map(|verdict| (row.record.clone(), verdict));
            batch.corroborating.extend(logged);
            let [chosen, rejected] = preference.answers;
            match corroborated(&self.config.judging, chosen, rejected, verdict) {
                Ok(pair) => batch.pairs.push(UpdatePair {
                    record: row.record.clone(),
                    prompt: preference.prompt,
                    pair,
                    source: None,
                }),
                Err(why) => batch.dropped.push(why),
            }
        }
        Ok(batch)
    }

    async fn preference(
        &self,
        row: &FeedbackRow,
    ) -> Result<Option<Result<Preference, Dropped>>, LearnError> {
        let Some(record) = self.trainable(&row.record).await? else {
            return Ok(None);
        };
        // The tokens of the answers belong to the prompt before redaction.
        if row.redacted && record.prompt_token_ids.is_empty() {
            return Ok(Some(Err(Dropped::NoTokens)));
        }
        let samples = [row.chosen, row.rejected].map(|at| record.samples.get(at).cloned());
        let drawn = self.prompt(record, 0).await?;
        let mut answers = Vec::new();
        for sample in samples {
            let Some(sample) = sample else {
                return Ok(Some(Err(Dropped::NoTokens)));
            };
            let given = sample.token_ids.is_empty() && sample.version.is_none();
            let ids = match given {
                true if !drawn.chat || row.redacted => Vec::new(),
                true => {
                    self.written(&drawn.prompt.messages, &drawn.prompt.ids, &sample.text)
                        .await?
                }
                false => sample.token_ids.clone(),
            };
            if ids.is_empty() {
                return Ok(Some(Err(Dropped::NoTokens)));
            }
            answers.push(recorded(sample, ids));
        }
        let answers = answers.try_into();
        let answers = answers.expect("two samples make two answers; this is a bug");
        Ok(Some(Ok(Preference {
            messages: drawn.prompt.messages,
            prompt: drawn.prompt.ids,
            answers,
        })))
    }

    /// Returns the tokens of an edited answer as the chat template renders it after the recorded prompt, including the end token; none if
    /// the template renders that prompt differently today.
    async fn written(
        &self,
        messages: &[Message],
        prompt: &[u32],
        answer: &str,
    ) -> Result<Vec<u32>, LearnError> {
        if answer.is_empty() {
            return Ok(Vec::new());
        }
        let mut whole = messages.to_vec();
        whole.push(Message::new(Role::Assistant, answer));
        let ids = self.service.encode_conversation(&whole).await?;
        Ok(ids.strip_prefix(prompt).unwrap_or_default().to_vec())
    }
}

/// Two answers of a record of which a caller prefers the first.
struct Preference {
    messages: Vec<Message>,
    prompt: Vec<u32>,
    answers: [Answer; 2],
}

/// Converts a recorded sample to an answer. A sample without a finish reason was written by a caller and counts as complete.
fn recorded(sample: Sample, ids: Vec<u32>) -> Answer {
    let end = sample.finish_reason.as_deref();
    Answer {
        text: sample.text,
        ids,
        logprobs: sample.logprobs,
        complete: end.is_none_or(|end| WHOLE.contains(&end)),
        seed: sample.seed.unwrap_or_default(),
        weights: sample.version.unwrap_or_default(),
    }
}

/// Returns the pair that an earlier stage trained on for this record, if it is still available.
fn replayed(config: &JudgingConfig, record: LoggedRecord) -> Option<UpdatePair> {
    let made =
        |pair: &&LoggedPair| matches!(pair.source, PairSource::OnPolicy | PairSource::Contrast);
    let pair = record.pairs.iter().find(made)?;
    if record.prompt_token_ids.is_empty() {
        return None;
    }
    let answer = |at: usize| {
        let sample = record.samples.get(at)?;
        let ids = sample.token_ids.clone();
        (!ids.is_empty()).then(|| recorded(sample.clone(), ids))
    };
    let (chosen, rejected) = answer(pair.chosen).zip(answer(pair.rejected))?;
    let verdict = record
        .verdicts
        .iter()
        .find(|verdict| (verdict.a, verdict.b) == (pair.chosen, pair.rejected));
    // Logs of earlier versions contain pairs whose verdicts compared nothing.
    if verdict.is_some_and(|verdict| verdict.label_mass < config.min_label_mass) {
        return None;
    }
    let label = match pair.source {
        // For opposed principles the preference is given, and the judge at most confirms it.
        PairSource::Contrast => 1.0,
        _ => label(
            config,
            pair.margin,
            verdict.is_some_and(|verdict| !verdict.consistent),
        ),
    };
    Some(UpdatePair {
        prompt: record.prompt_token_ids,
        pair: JudgedPair {
            chosen,
            rejected,
            label,
            verdict: PairVerdict::unread(),
        },
        source: None,
        record: record.id,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::learn::config::Disagreement;
    use crate::learn::judging::PinnedJudge;
    use crate::service::Service;
    use engine::{Engine, EngineConfig};
    use model::{LanguageModel, LoadOptions, WeightStore};
    use telemetry::Metrics;
    use traffic_log::{
        Consent, Feedback, LogConfig, LoggedVerdict, NewRecord, Principal, Prompt, RecordKind,
        Scope, TrafficLog,
    };

    fn sample(ids: &[u32]) -> Sample {
        Sample {
            token_ids: ids.to_vec(),
            version: Some("base".to_owned()),
            finish_reason: Some("stop".to_owned()),
            ..Sample::given("text")
        }
    }

    /// Returns a record whose second sample was preferred to its first with probability 0.7; `consistent` sets whether the orders agree.
    fn record(consistent: bool, source: PairSource) -> LoggedRecord {
        let verdict = LoggedVerdict {
            a: 1,
            b: 0,
            orders: [0.9, 0.5],
            p: 0.7,
            consistent,
            label_mass: 1.0,
            principles: Vec::new(),
            version: "base".to_owned(),
        };
        LoggedRecord {
            id: RecordId::parse(&"0".repeat(26)).unwrap(),
            kind: RecordKind::Generate,
            principal: Principal::anonymous(),
            created_at: 0,
            consent: Consent {
                retain: true,
                train: true,
            },
            prompt: Prompt::Text("prompt".to_owned()),
            prompt_token_ids: vec![9],
            redacted: false,
            version: "base".to_owned(),
            samples: vec![sample(&[1]), sample(&[2])],
            verdicts: vec![verdict],
            pairs: vec![LoggedPair {
                chosen: 1,
                rejected: 0,
                margin: 0.7,
                source,
                principles: Vec::new(),
            }],
            feedback: Vec::new(),
        }
    }

    #[test]
    fn a_replayed_pair_has_the_label_it_would_have_fresh() {
        let with = |disagreement, soft_labels| JudgingConfig {
            disagreement,
            soft_labels,
            ..JudgingConfig::default()
        };
        let label = |config: &JudgingConfig, consistent, source| {
            let pair = replayed(config, record(consistent, source)).unwrap();
            assert_eq!(
                (&*pair.pair.chosen.ids, &*pair.pair.rejected.ids),
                (&[2][..], &[1][..])
            );
            pair.pair.label
        };
        let soften = with(Disagreement::Soften, false);
        assert_eq!(label(&soften, false, PairSource::OnPolicy), 0.7);
        assert_eq!(label(&soften, true, PairSource::OnPolicy), 1.0);
        let soft = with(Disagreement::Drop, true);
        assert_eq!(label(&soft, true, PairSource::OnPolicy), 0.7);
        assert_eq!(label(&soft, true, PairSource::Contrast), 1.0);
        let keep = with(Disagreement::Keep, false);
        assert_eq!(label(&keep, false, PairSource::OnPolicy), 1.0);
    }

    #[test]
    fn what_redaction_changed_is_not_replayed() {
        let config = JudgingConfig::default();
        let mut prompt = record(true, PairSource::OnPolicy);
        prompt.prompt_token_ids.clear();
        assert!(replayed(&config, prompt).is_none());
        let mut answer = record(true, PairSource::OnPolicy);
        answer.samples[0].token_ids.clear();
        assert!(replayed(&config, answer).is_none());
        let said = record(true, PairSource::Feedback);
        assert!(
            replayed(&config, said).is_none(),
            "feedback has a share of its own"
        );
    }

    /// Returns a log with one answered conversation whose samples end as given, and the pair maker that reads it.
    async fn maker(dir: &std::path::Path, ends: [&str; 2]) -> (PairMaker, RecordId, Vec<u32>) {
        let model_dir =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
        let model = LanguageModel::load(&model_dir, &LoadOptions::default()).unwrap();
        let weights = WeightStore::new(model.decoder().clone());
        let metrics = Metrics::new("test");
        let (engine, _thread) =
            Engine::start(weights, &EngineConfig::default(), metrics.engine).unwrap();
        let service = Service::new(engine, &model, &model_dir, metrics.judge).unwrap();
        let config = LogConfig::sqlite(&dir.join("log.sqlite"));
        let log = TrafficLog::open(&config).await.unwrap();
        let messages = vec![Message::new(Role::User, "What is 34 plus 28?")];
        let prompt = service.encode_chat(&messages).await.unwrap();
        let mut samples = Vec::new();
        for (text, end) in ["62", "7"].into_iter().zip(ends) {
            samples.push(Sample {
                text: text.to_owned(),
                finish_reason: Some(end.to_owned()),
                ..sample(&service.encode_text(text.to_owned()).await.unwrap())
            });
        }
        let new = NewRecord {
            kind: RecordKind::Generate,
            principal: Principal::anonymous(),
            consent: Consent {
                retain: true,
                train: true,
            },
            idempotency_key: None,
            prompt: Prompt::Messages(messages),
            prompt_token_ids: prompt.clone(),
            version: "base".to_owned(),
            samples,
            verdicts: Vec::new(),
            pairs: Vec::new(),
        };
        let id = log.records.append(new).await.unwrap();
        let maker = PairMaker {
            judge: PinnedJudge {
                weights: service.weights().base().clone(),
                principles: Vec::new(),
            },
            service,
            log,
            config: Arc::default(),
            stage: 1,
        };
        (maker, id, prompt)
    }

    #[tokio::test]
    async fn what_callers_prefer_is_learned_from_by_the_recorded_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let (maker, id, prompt) = maker(dir.path(), ["stop", "stop"]).await;
        let row = |chosen, rejected| FeedbackRow {
            record: id.clone(),
            chosen,
            rejected,
            redacted: false,
        };
        let pairs = async |row: FeedbackRow, corroborate| {
            maker.feedback_pairs(&[row], corroborate).await.unwrap()
        };
        let record = maker
            .log
            .records
            .get(&id, &Scope::All)
            .await
            .unwrap()
            .unwrap();
        let logged = |at: usize| record.samples[at].token_ids.clone();

        // A fully trusted caller needs no judge, whether right or wrong.
        for (chosen, rejected) in [(0, 1), (1, 0)] {
            let batch = pairs(row(chosen, rejected), false).await;
            assert!(batch.corroborating.is_empty() && batch.drift.is_empty());
            let pair = &batch.pairs[0];
            assert_eq!((&pair.prompt, pair.source), (&prompt, None));
            assert_eq!(pair.pair.chosen.ids, logged(chosen));
            assert_eq!(pair.pair.rejected.ids, logged(rejected));
        }

        // The judge reads both pairs and agrees with at most one of them; both verdicts are logged.
        let right = pairs(row(0, 1), true).await;
        let wrong = pairs(row(1, 0), true).await;
        assert_eq!(
            (right.pairs.len(), wrong.pairs.len()),
            (1, 0),
            "{:?}",
            right.corroborating
        );
        assert_eq!(wrong.dropped, [Dropped::NotConfirmed]);
        let (of, verdict) = &wrong.corroborating[0];
        assert_eq!(
            (of, verdict.a, verdict.b, &*verdict.version),
            (&id, 1, 0, "base")
        );
        assert!(verdict.p < 0.5 && verdict.consistent);

        // An edit becomes what the template renders after the recorded prompt. Redacted and deleted records give no pair.
        let edit = Feedback::Edited {
            sample: 1,
            text: "62".to_owned(),
        };
        let anonymous = Principal::anonymous();
        maker.log.feedback.add(&id, &anonymous, edit).await.unwrap();
        let edited = pairs(row(2, 1), false).await;
        let ids = &edited.pairs[0].pair.chosen.ids;
        assert!(
            ids.starts_with(&logged(0)) && ids.len() > logged(0).len(),
            "with its end token"
        );
        let redacted = FeedbackRow {
            redacted: true,
            ..row(2, 1)
        };
        assert_eq!(pairs(redacted, false).await.dropped, [Dropped::NoTokens]);
        assert_eq!(pairs(row(3, 1), false).await.dropped, [Dropped::NoTokens]);
        maker
            .log
            .deletions
            .withdraw_training(&anonymous)
            .await
            .unwrap();
        let withdrawn = pairs(row(0, 1), false).await;
        assert!(withdrawn.pairs.is_empty() && withdrawn.dropped.is_empty());
    }

    #[tokio::test]
    async fn nothing_is_learned_from_an_answer_that_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (maker, record, _) = maker(dir.path(), ["stop", "length"]).await;
        let row = FeedbackRow {
            record,
            chosen: 0,
            rejected: 1,
            redacted: false,
        };
        let batch = maker.feedback_pairs(&[row], false).await.unwrap();
        assert_eq!(batch.dropped, [Dropped::Truncated]);
    }

    #[test]
    fn an_answer_that_was_cut_off_stays_so_and_one_that_was_written_is_whole() {
        let cut = Sample {
            finish_reason: Some("length".to_owned()),
            ..sample(&[1])
        };
        assert!(!recorded(cut, vec![1]).complete);
        for end in WHOLE {
            let ended = Sample {
                finish_reason: Some(end.to_owned()),
                ..sample(&[1])
            };
            assert!(recorded(ended, vec![1]).complete);
        }
        assert!(recorded(Sample::given("written"), vec![1]).complete);
    }
}

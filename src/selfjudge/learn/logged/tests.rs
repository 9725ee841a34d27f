//! Pairs from the log: replayed ones, and callers' preferences.

use std::sync::Arc;

use super::*;
use crate::learn::config::Disagreement;
use crate::learn::pairs::PinnedJudge;
use crate::service::Service;
use engine::{Engine, EngineConfig};
use model::{LanguageModel, LoadOptions, WeightStore};
use telemetry::Metrics;
use traffic_log::{
    Consent, Feedback, LogConfig, LoggedVerdict, NewRecord, Principal, Prompt, RecordKind, Scope,
    TrafficLog,
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
    let feedback = record(true, PairSource::Feedback);
    assert!(
        replayed(&config, feedback).is_none(),
        "feedback has a share of its own"
    );
}

/// Returns a log with one answered conversation whose samples end as given, and the pair maker that reads it.
async fn maker(dir: &std::path::Path, ends: [&str; 2]) -> (PairMaker, RecordId, Vec<u32>) {
    let model_dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
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

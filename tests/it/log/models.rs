//! Whose token ids a record has, callers that cannot be distinguished, and abandoned stages.

use traffic_log::{
    Abandoned, DrawSpec, Eligible, GenerationId, GenerationState, MAX_DEATHS, ModelIdentity,
    NewGeneration, NewStage, StageOutcome, TrainerLease,
};

use super::*;

fn model(base: &str, tokenizer: &str) -> ModelIdentity {
    ModelIdentity {
        base: Some(base.to_owned()),
        tokenizer: tokenizer.to_owned(),
    }
}

async fn lease(log: &TrafficLog) -> TrainerLease {
    let lease = log.leases.acquire("test", Duration::from_secs(60)).await;
    lease.unwrap().unwrap()
}

fn stage() -> NewStage {
    NewStage {
        reference: GenerationId::base(),
        state: json!({"of": "another version"}),
    }
}

#[test]
fn only_records_of_the_models_own_tokenizer_are_drawn() {
    on_both(async |config| {
        // Written by a version that knew nothing of tokenizers; the first model that opens the log owns them.
        let log = open(&config).await;
        let unnamed = fill(&log, "ann", 2).await;
        log.close().await;
        let log = open(&config).await;
        log.model.bind(&model("b", "first")).await.unwrap();
        let own = fill(&log, "ann", 3).await;
        let all: Vec<RecordId> = unnamed.iter().chain(&own).cloned().collect();
        assert_eq!(log.replay.draw_ids(&DrawSpec::new(10)).await.unwrap(), all);
        assert_eq!(log.model.of_other_tokenizers().await.unwrap(), 0);
        log.model.bind(&model("b", "first")).await.unwrap();
        let other = log.model.bind(&model("b", "second")).await;
        assert!(matches!(other, Err(LogError::Invalid(_))), "{other:?}");
        log.close().await;

        let log = open(&config).await;
        log.model.bind(&model("c", "second")).await.unwrap();
        assert!(!log.model.owns_unnamed());
        assert_eq!(log.replay.draw_ids(&DrawSpec::new(10)).await.unwrap(), []);
        assert_eq!(log.model.of_other_tokenizers().await.unwrap(), 5);
        let third = fill(&log, "ann", 1).await;
        let spec = DrawSpec::new(10);
        assert_eq!(log.replay.draw_ids(&spec).await.unwrap(), third);
        let lease = lease(&log).await;
        let id = lease.open_stage(stage()).await.unwrap();
        let asked: Vec<RecordId> = all.iter().chain(&third).cloned().collect();
        let free = log.replay.free_for(id, &spec, &asked).await.unwrap();
        let free: Vec<_> = free.into_iter().map(|row| row.id).collect();
        assert_eq!(free, third);
        log.close().await;

        // Back on the first model, its records are there again and the second's are not.
        let log = open(&config).await;
        log.model.bind(&model("b", "first")).await.unwrap();
        assert_eq!(log.replay.draw_ids(&spec).await.unwrap(), all);
    });
}

#[test]
fn a_log_with_generations_of_other_weights_is_not_taken_over() {
    on_both(async |config| {
        let log = open(&config).await;
        fill(&log, "ann", 2).await;
        let lease = lease(&log).await;
        let new = NewGeneration {
            id: GenerationId::new("0".repeat(64)),
            parent: GenerationId::base(),
            reference: GenerationId::base(),
            stage: None,
            manifest: json!({"base": "others"}),
        };
        lease.insert_generation(new).await.unwrap();
        log.model
            .bind(&model("weights", "tokenizer"))
            .await
            .unwrap();
        assert_eq!(log.replay.draw_ids(&DrawSpec::new(10)).await.unwrap(), []);
        assert_eq!(log.model.of_other_tokenizers().await.unwrap(), 2);
    });
}

#[test]
fn what_a_draw_would_give_is_counted_and_anonymous_callers_have_no_cap_without_keys() {
    on_both(async |config| {
        let log = open(&config).await;
        assert_eq!(log.records.newest().await.unwrap(), None);
        for at in 0..40 {
            let anonymous = NewRecord {
                principal: Principal::anonymous(),
                ..record("", &format!("q {at}"))
            };
            log.records.append(anonymous).await.unwrap();
        }
        let capped = DrawSpec {
            max_share: 0.25,
            ..DrawSpec::new(20)
        };
        let counted = log.replay.eligible(&capped).await.unwrap();
        let expected = Eligible {
            rows: 40,
            principals: 1,
            drawable: 1,
        };
        assert_eq!(counted, expected);
        assert_eq!(log.replay.draw(&capped).await.unwrap().len(), 1);
        let uncapped = DrawSpec {
            uncapped: Some(Principal::anonymous()),
            ..capped.clone()
        };
        assert_eq!(log.replay.eligible(&uncapped).await.unwrap().drawable, 40);
        assert_eq!(log.replay.draw(&uncapped).await.unwrap().len(), 20);
        // Named callers keep their share of the twenty.
        let newest = fill(&log, "ann", 15).await.pop();
        assert_eq!(log.records.newest().await.unwrap(), newest);
        let later = DrawSpec {
            now: i64::MAX,
            ..uncapped
        };
        let counted = log.replay.eligible(&later).await.unwrap();
        assert_eq!(
            (counted.rows, counted.principals, counted.drawable),
            (55, 2, 45)
        );
    });
}

#[test]
fn an_abandoned_stage_gives_its_rows_back_or_keeps_them_and_is_in_the_audit_trail() {
    on_both(async |config| {
        let log = open(&config).await;
        let all = fill(&log, "ann", 6).await;
        let lease = lease(&log).await;
        let first = lease.open_stage(stage()).await.unwrap();
        lease.claim_rows(first, &all[..2]).await.unwrap();
        for death in 1..=MAX_DEATHS {
            assert_eq!(log.stages.count_death(first, "panic").await.unwrap(), death);
        }
        assert_eq!(log.stages.deaths(first).await.unwrap(), MAX_DEATHS);
        lease.abandon_stage(first, "it died", false).await.unwrap();
        let draw = async || log.replay.draw_ids(&DrawSpec::new(10)).await.unwrap();
        assert_eq!(draw().await, all[2..]);
        let again = lease.abandon_stage(first, "it died", false).await;
        assert!(matches!(again, Err(LogError::NotFound { .. })), "{again:?}");

        let second = lease.open_stage(stage()).await.unwrap();
        lease.claim_rows(second, &all[2..4]).await.unwrap();
        assert_eq!(log.stages.deaths(second).await.unwrap(), 0);
        lease
            .abandon_stage(second, "another model", true)
            .await
            .unwrap();
        assert_eq!(draw().await, all[2..]);

        // What a generation was made of stays used: its lineage would be lost.
        let third = lease.open_stage(stage()).await.unwrap();
        lease.claim_rows(third, &all[2..4]).await.unwrap();
        let new = NewGeneration {
            id: GenerationId::new("1".repeat(64)),
            parent: GenerationId::base(),
            reference: GenerationId::base(),
            stage: Some(third),
            manifest: json!({}),
        };
        lease.insert_generation(new).await.unwrap();
        lease
            .abandon_stage(third, "another model", true)
            .await
            .unwrap();
        assert_eq!(draw().await, all[4..]);
        assert_eq!(log.stages.rows_before(third).await.unwrap(), all[..2]);

        let made = GenerationId::new("1".repeat(64));
        let made = log.generations.get(&made).await.unwrap().unwrap();
        assert_eq!(made.state, GenerationState::Rejected);

        let stages = log.stages.all().await.unwrap();
        let failed = Some(StageOutcome::Failed);
        assert!(stages.iter().all(|stage| stage.outcome == failed));
        let events = log.audit.after(0, 100).await.unwrap();
        let of = |action: &str| events.iter().filter(|event| event.action == action).count();
        assert_eq!((of("stage.abandoned"), of("trainer.died")), (3, 3));
    });
}

#[test]
fn an_operator_leaves_a_stage_that_a_trainer_works_on() {
    on_both(async |config| {
        let log = open(&config).await;
        let all = fill(&log, "ann", 6).await;
        assert_eq!(log.stages.abandon_open("ann", "").await.unwrap(), None);
        let lease = lease(&log).await;
        let draw = async || log.replay.draw_ids(&DrawSpec::new(10)).await.unwrap();

        let first = lease.open_stage(stage()).await.unwrap();
        lease.claim_rows(first, &all[..2]).await.unwrap();
        let left = log.stages.abandon_open("ann", "no use").await.unwrap();
        let (released, kept) = (2, 0);
        assert_eq!(
            left,
            Some(Abandoned {
                stage: first,
                released,
                kept
            })
        );
        assert_eq!(draw().await, all);
        // The trainer still holds its lease, and can do nothing more for that stage.
        let new = NewGeneration {
            id: GenerationId::new("1".repeat(64)),
            parent: GenerationId::base(),
            reference: GenerationId::base(),
            stage: Some(first),
            manifest: json!({}),
        };
        for late in [
            lease.save_progress(first, &json!({})).await,
            lease.record_update(first, &json!({}), &[]).await.map(drop),
            lease.claim_rows(first, &all).await.map(drop),
            lease.insert_generation(new).await,
            lease.promote(first, &[], "", &json!({})).await,
            lease
                .close_stage(first, StageOutcome::Passed, &json!({}))
                .await,
        ] {
            assert!(matches!(late, Err(LogError::NotFound { .. })), "{late:?}");
        }
        assert_eq!(log.generations.all().await.unwrap(), []);

        // One of the prompts of a stage in which the learner died may be the cause.
        let second = lease.open_stage(stage()).await.unwrap();
        lease.claim_rows(second, &all[..2]).await.unwrap();
        log.stages.count_death(second, "panic").await.unwrap();
        let left = log.stages.abandon_open("ann", "it dies").await.unwrap();
        let (released, kept) = (0, 2);
        assert_eq!(
            left,
            Some(Abandoned {
                stage: second,
                released,
                kept
            })
        );
        assert_eq!(draw().await, all[2..]);

        let events = log.audit.after(0, 100).await.unwrap();
        let events = events.iter().filter(|one| one.action == "stage.abandoned");
        let actors: Vec<_> = events.map(|event| event.actor.as_str()).collect();
        assert_eq!(actors, ["ann", "ann"]);
        log.audit.verify().await.unwrap();
    });
}

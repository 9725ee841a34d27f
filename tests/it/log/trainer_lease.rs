//! Tests of the trainer's lease: it has one holder at a time, and serving writes beside it.

use traffic_log::{Addition, DrawSpec, GenerationId, NewGeneration, Scope, StageOutcome};

use super::learning::{LONG, add, lease, stage};
use super::*;

#[test]
fn one_trainer_at_a_time_and_the_old_one_is_fenced() {
    on_both(async |config| {
        let log = open(&config).await;
        let ids = fill(&log, "ann", 1).await;
        let old = log.leases.acquire("a", LONG).await.unwrap().unwrap();
        assert!(log.leases.acquire("b", LONG).await.unwrap().is_none());
        old.renew().await.unwrap();
        let stage_id = old.open_stage(stage()).await.unwrap();
        // The same holder takes the lease after a restart. Its old process may still run.
        let new = log.leases.acquire("a", LONG).await.unwrap().unwrap();
        assert_eq!(new.epoch(), old.epoch() + 1);
        let id = GenerationId::new("g");
        let generation = NewGeneration {
            id: id.clone(),
            parent: GenerationId::base(),
            reference: GenerationId::base(),
            stage: Some(stage_id),
            manifest: json!({}),
        };
        let added = [(ids[0].clone(), Addition::default())];
        for refused in [
            old.renew().await,
            old.open_stage(stage()).await.map(drop),
            old.save_stage(stage_id, &json!(1), &json!(1)).await,
            old.save_progress(stage_id, &json!(1)).await,
            old.abandon_stage(stage_id, "", true).await,
            old.claim_rows(stage_id, &ids).await.map(drop),
            add(&old, stage_id, &added).await.map(drop),
            old.claim_feedback(stage_id, &ids).await.map(drop),
            old.close_stage(stage_id, StageOutcome::Failed, &json!(1))
                .await,
            old.insert_generation(generation).await,
            old.record_gates(&id, &json!(1), None).await,
            old.promote(stage_id, &[], "", &json!(1)).await,
        ] {
            let epoch = old.epoch();
            assert!(
                matches!(refused, Err(LogError::Fenced { epoch: e }) if e == epoch),
                "{refused:?}"
            );
        }
        // A release of the old lease does not release the new one.
        old.release().await.unwrap();
        new.save_progress(stage_id, &json!(2)).await.unwrap();
        assert!(log.leases.acquire("b", LONG).await.unwrap().is_none());
        new.release().await.unwrap();
        let short = log.leases.acquire("b", Duration::ZERO).await.unwrap();
        let short = short.expect("a released lease must be free");
        let taken = log.leases.acquire("c", LONG).await.unwrap();
        assert!(taken.is_some(), "an expired lease must be free");
        assert!(short.renew().await.is_err());
        log.audit.verify().await.unwrap();
    });
}

#[test]
fn serving_and_training_write_without_meeting() {
    on_both(async |config| {
        // Two logs on one database stand for two processes.
        let (serving, training) = (open(&config).await, open(&config).await);
        let lease = lease(&training).await;
        let stage = lease.open_stage(stage()).await.unwrap();
        let appends = async {
            for at in 0..30 {
                let id = serving.records.append(record("ann", &at.to_string())).await;
                serving
                    .records
                    .get(&id.unwrap(), &Scope::All)
                    .await
                    .unwrap();
            }
        };
        let saves = async {
            for at in 0..30 {
                let state = json!({ "step": at });
                lease.save_progress(stage, &state).await.unwrap();
                training.records.append(record("bob", "")).await.unwrap();
            }
        };
        tokio::join!(appends, saves);
        let drawn = training.replay.draw_ids(&DrawSpec::new(100)).await.unwrap();
        assert_eq!(drawn.len(), 60);
    });
}

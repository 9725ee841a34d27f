//! Tests of generations and pointers.

use std::time::Duration;

use traffic_log::{
    GenerationId, GenerationState, NewGeneration, NewStage, Pointer, PointerMove, StageId,
    StageOutcome, TrainerLease,
};

use super::*;

async fn lease(log: &TrafficLog) -> TrainerLease {
    let ttl = Duration::from_secs(3600);
    log.leases.acquire("trainer", ttl).await.unwrap().unwrap()
}

async fn open_stage(lease: &TrainerLease) -> StageId {
    let stage = NewStage {
        reference: GenerationId::base(),
        state: json!({}),
    };
    lease.open_stage(stage).await.unwrap()
}

fn id(name: &str) -> GenerationId {
    match name {
        "base" => GenerationId::base(),
        name => GenerationId::new(name),
    }
}

pub(super) fn generation(name: &str) -> NewGeneration {
    NewGeneration {
        id: id(name),
        parent: GenerationId::base(),
        reference: GenerationId::base(),
        stage: None,
        manifest: json!({"rank": 16}),
    }
}

pub(super) fn to(pointer: Pointer, from: &str, to: &str) -> PointerMove {
    PointerMove {
        pointer,
        from: id(from),
        to: id(to),
    }
}

async fn state(log: &TrafficLog, name: &str) -> GenerationState {
    log.generations.get(&id(name)).await.unwrap().unwrap().state
}

#[test]
fn pointers_move_together_or_not_at_all() {
    on_both(async |config| {
        let log = open(&config).await;
        let lease = lease(&log).await;
        for name in ["one", "two"] {
            lease.insert_generation(generation(name)).await.unwrap();
        }
        // A trainer that died after the insert repeats it.
        lease.insert_generation(generation("one")).await.unwrap();
        assert_eq!(log.generations.all().await.unwrap().len(), 2);
        let before = log.generations.pointers().await.unwrap();
        assert!(before.policy.is_base() && before.judge.is_base() && before.canary.is_base());

        let stale = [
            to(Pointer::Policy, "base", "one"),
            to(Pointer::Reference, "two", "one"),
        ];
        let result = log.generations.move_pointers(&stale, "ann", "").await;
        let Err(LogError::Conflict {
            pointer,
            expected,
            found,
        }) = result
        else {
            panic!("{result:?}")
        };
        assert_eq!(pointer, Pointer::Reference);
        assert_eq!((expected, found), (id("two"), id("base")));
        assert_eq!(log.generations.pointers().await.unwrap(), before);
        assert_eq!(state(&log, "one").await, GenerationState::Candidate);

        let moves = [
            to(Pointer::Policy, "base", "one"),
            to(Pointer::Reference, "base", "one"),
            to(Pointer::Judge, "base", "base"),
        ];
        let stage = open_stage(&lease).await;
        let end = json!({"phase": "closed"});
        let reason = "all gates passed";
        lease.promote(stage, &moves, reason, &end).await.unwrap();
        let closed = log.stages.last().await.unwrap().unwrap();
        assert_eq!(
            (closed.outcome, closed.progress),
            (Some(StageOutcome::Promoted), end)
        );
        let after = log.generations.pointers().await.unwrap();
        assert_eq!((&after.policy, &after.reference), (&id("one"), &id("one")));
        assert!(after.judge.is_base() && after.train.is_base());
        assert_eq!(state(&log, "one").await, GenerationState::Promoted);
        let events = log.audit.after(0, 100).await.unwrap();
        let moved = events
            .iter()
            .rev()
            .find(|one| one.action == "pointers.moved");
        assert_eq!(moved.unwrap().detail["reason"], "all gates passed");
        assert_eq!(events.last().unwrap().action, "stage.closed");
        log.audit.verify().await.unwrap();
    });
}

#[test]
fn going_back_rolls_back_what_was_left() {
    on_both(async |config| {
        let log = open(&config).await;
        let lease = lease(&log).await;
        for name in ["one", "two"] {
            lease.insert_generation(generation(name)).await.unwrap();
        }
        let go = async |from: &str, target: &str| {
            log.generations
                .move_pointers(&[to(Pointer::Policy, from, target)], "ann", "")
                .await
                .unwrap();
        };
        go("base", "one").await;
        go("one", "two").await;
        assert_eq!(state(&log, "one").await, GenerationState::Promoted);
        go("two", "one").await;
        assert_eq!(state(&log, "two").await, GenerationState::RolledBack);
        assert_eq!(state(&log, "one").await, GenerationState::Promoted);
        go("one", "two").await;
        assert_eq!(state(&log, "two").await, GenerationState::Promoted);
        assert_eq!(state(&log, "one").await, GenerationState::Promoted);
        go("two", "base").await;
        assert_eq!(state(&log, "two").await, GenerationState::RolledBack);
    });
}

#[test]
fn gates_are_kept_and_broken_generations_are_not_pointed_at() {
    on_both(async |config| {
        let log = open(&config).await;
        let lease = lease(&log).await;
        lease.insert_generation(generation("one")).await.unwrap();
        let gates = json!({"win_rate": {"value": 0.61, "passed": true}});
        lease.record_gates(&id("one"), &gates, None).await.unwrap();
        let read = log.generations.get(&id("one")).await.unwrap().unwrap();
        assert_eq!(
            (read.gates, read.state),
            (gates.clone(), GenerationState::Candidate)
        );
        assert_eq!(read.manifest, json!({"rank": 16}));
        lease
            .record_gates(&id("one"), &gates, Some(GenerationState::Failed))
            .await
            .unwrap();
        let stage = open_stage(&lease).await;
        let none = json!({});
        let moves = [to(Pointer::Policy, "base", "one")];
        let result = lease.promote(stage, &moves, "", &none).await;
        assert!(matches!(result, Err(LogError::Invalid(_))), "{result:?}");
        let moves = [to(Pointer::Canary, "base", "nobody")];
        let result = lease.promote(stage, &moves, "", &none).await;
        assert!(
            matches!(result, Err(LogError::NotFound { .. })),
            "{result:?}"
        );
        let result = lease.record_gates(&id("nobody"), &gates, None).await;
        assert!(
            matches!(result, Err(LogError::NotFound { .. })),
            "{result:?}"
        );
        assert!(log.generations.pointers().await.unwrap().policy.is_base());
        assert_eq!(
            log.stages.outcome_of(stage).await.unwrap(),
            None,
            "a refused promotion must not close the stage"
        );
    });
}

#[test]
fn lineage_outlives_the_record() {
    on_both(async |config| {
        let log = open(&config).await;
        let ids = fill(&log, "ann", 2).await;
        let lease = lease(&log).await;
        let stage = open_stage(&lease).await;
        lease.claim_rows(stage, &ids[..1]).await.unwrap();
        let mut made = generation("one");
        made.stage = Some(stage);
        lease.insert_generation(made).await.unwrap();
        let principal = Principal::of_key("ann");
        assert_eq!(log.deletions.delete_principal(&principal).await.unwrap(), 2);
        assert_eq!(log.stages.lineage(&ids[0]).await.unwrap(), [id("one")]);
        assert_eq!(log.stages.lineage(&ids[1]).await.unwrap(), []);
    });
}

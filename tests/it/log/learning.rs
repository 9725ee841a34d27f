//! What the trainer sees and writes: draws and stages. Its lease is in `trainer_lease.rs`, preferences in `preferences.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use traffic_log::{
    Addition, DrawSpec, GenerationId, LoggedPair, NewStage, PairSource, RedactCommand, Result,
    Scope, Split, StageId, StageOutcome, TrainerLease,
};

use super::*;

pub(super) const LONG: Duration = Duration::from_secs(3600);

pub(super) async fn lease(log: &TrafficLog) -> TrainerLease {
    let taken = log.leases.acquire("trainer", LONG).await.unwrap();
    taken.expect("no other trainer holds the lease")
}

pub(super) fn stage() -> NewStage {
    NewStage {
        reference: GenerationId::base(),
        state: json!({"step": 0}),
    }
}

/// What an update of the stage made.
pub(super) async fn add(
    lease: &TrainerLease,
    stage: StageId,
    additions: &[(RecordId, Addition)],
) -> Result<usize> {
    lease
        .record_update(stage, &json!({"step": 1}), additions)
        .await
}

#[test]
fn rows_without_consent_cannot_be_reached() {
    on_both(async |config| {
        let log = open(&config).await;
        let mut unwilling = record("ann", "not for training");
        unwilling.consent.train = false;
        let refused = log.records.append(unwilling).await.unwrap();
        let willing = fill(&log, "bob", 3).await;
        let rows = log.replay.draw(&DrawSpec::new(10)).await.unwrap();
        let ids: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
        assert_eq!(ids, willing);
        assert_eq!(rows[0].principal, Principal::of_key("bob"));
        assert_eq!(
            log.replay.draw_ids(&DrawSpec::new(10)).await.unwrap(),
            willing
        );

        // Claiming by name does not reach it either.
        let lease = lease(&log).await;
        let stage = lease.open_stage(stage()).await.unwrap();
        let asked = [refused.clone(), willing[0].clone()];
        let claimed = lease.claim_rows(stage, &asked).await.unwrap();
        assert_eq!(claimed, willing[..1]);
        let added = [(refused, Addition::default())];
        assert_eq!(add(&lease, stage, &added).await.unwrap(), 0);

        // Nor does the view that all of it goes through.
        let mut operator = Operator::connect(&config.url).await;
        let seen = operator.texts("SELECT id FROM trainable ORDER BY id").await;
        let seen: BTreeSet<String> = seen.into_iter().collect();
        let expected = willing.iter().map(|id| id.to_string()).collect();
        assert_eq!(seen, expected);

        log.deletions
            .delete(&willing[1], &Scope::All)
            .await
            .unwrap();
        assert_eq!(
            log.replay.draw_ids(&DrawSpec::new(10)).await.unwrap(),
            willing[2..]
        );
        let bob = Principal::of_key("bob");
        assert_eq!(log.deletions.withdraw_training(&bob).await.unwrap(), 2);
        assert_eq!(log.replay.draw_ids(&DrawSpec::new(10)).await.unwrap(), []);
    });
}

#[test]
fn a_prompt_that_is_too_long_is_not_drawn() {
    on_both(async |config| {
        let log = open(&config).await;
        let mut ids = Vec::new();
        for tokens in [3, 8, 9, 40] {
            let mut record = record("alice", &format!("{tokens} tokens"));
            record.prompt_token_ids = (0..tokens).collect();
            ids.push(log.records.append(record).await.unwrap());
        }
        let stage = lease(&log).await.open_stage(stage()).await.unwrap();
        for (longest, drawn) in [(2, 0), (3, 1), (8, 2), (9, 3), (usize::MAX, 4)] {
            let spec = DrawSpec {
                longest,
                ..DrawSpec::new(10)
            };
            assert_eq!(log.replay.draw_ids(&spec).await.unwrap(), ids[..drawn]);
            assert_eq!(log.replay.eligible(&spec).await.unwrap().rows, drawn);
            let free = log.replay.free_for(stage, &spec, &ids).await.unwrap();
            assert_eq!(free.len(), drawn);
        }
    });
}

#[test]
fn a_flood_of_one_principal_is_capped() {
    on_both(async |config| {
        let log = open(&config).await;
        let flood = fill(&log, "mallory", 40).await;
        for at in 0..10 {
            fill(&log, &format!("user {at}"), 2).await;
        }
        let spec = DrawSpec {
            max_share: 0.1,
            ..DrawSpec::new(50)
        };
        let drawn = log.replay.draw(&spec).await.unwrap();
        let mallory = Principal::of_key("mallory");
        let hers = drawn.iter().filter(|row| row.principal == mallory).count();
        // 2 of 22 are under a tenth, 3 of 23 are not.
        assert_eq!((hers, drawn.len()), (2, 22));
        // What a stage has claimed is drawn by no other.
        let lease = lease(&log).await;
        let stage = lease.open_stage(stage()).await.unwrap();
        lease.claim_rows(stage, &flood[..39]).await.unwrap();
        let spec = DrawSpec {
            max_share: 0.1,
            ..DrawSpec::new(50)
        };
        let drawn = log.replay.draw(&spec).await.unwrap();
        let hers: Vec<_> = drawn
            .iter()
            .filter(|row| row.principal == mallory)
            .collect();
        assert_eq!(hers.len(), 1);
        assert_eq!(hers[0].id, flood[39]);

        for share in [0.0, -1.0, 1.5, f64::NAN] {
            let spec = DrawSpec {
                max_share: share,
                ..DrawSpec::new(1)
            };
            let result = log.replay.draw(&spec).await;
            assert!(matches!(result, Err(LogError::Invalid(_))), "{share}");
        }
    });
}

#[test]
fn quarantine_and_held_out_rows_are_kept_back() {
    on_both(async |config| {
        let log = open(&config).await;
        let all = fill(&log, "ann", 60).await;
        let mut spec = DrawSpec {
            quarantine: Duration::from_secs(24 * 3600),
            ..DrawSpec::new(100)
        };
        assert_eq!(log.replay.draw_ids(&spec).await.unwrap(), []);
        spec.now += 25 * 3_600_000;
        assert_eq!(log.replay.draw_ids(&spec).await.unwrap(), all);

        let spec = |split| DrawSpec {
            split,
            held_out_per_mille: 300,
            ..DrawSpec::new(100)
        };
        let train = log.replay.draw_ids(&spec(Split::Train)).await.unwrap();
        let held = log.replay.draw_ids(&spec(Split::HeldOut)).await.unwrap();
        assert!(!train.is_empty() && !held.is_empty(), "{}", held.len());
        let mut both: Vec<_> = train.iter().chain(&held).cloned().collect();
        both.sort();
        assert_eq!(both, all);
        assert_eq!(
            log.replay.draw_ids(&DrawSpec::new(7)).await.unwrap(),
            all[..7]
        );

        // Turns begin at different places and go round.
        let turn = |limit, turn| DrawSpec {
            turn: Some(turn),
            limit,
            ..spec(Split::HeldOut)
        };
        let mut seen = BTreeSet::new();
        for at in 0..300 {
            let drawn = log.replay.draw_ids(&turn(3, at)).await.unwrap();
            assert_eq!(drawn, log.replay.draw_ids(&turn(3, at)).await.unwrap());
            seen.extend(drawn);
        }
        assert_eq!(seen, held.iter().cloned().collect());
        let round = log.replay.draw_ids(&turn(100, 77)).await.unwrap();
        assert_ne!(round, held);
        assert_eq!(BTreeSet::from_iter(round), seen);
    });
}

#[test]
fn stages_train_on_disjoint_rows() {
    on_both(async |config| {
        let log = open(&config).await;
        let all = fill(&log, "ann", 4).await;
        let lease = lease(&log).await;
        let first = lease.open_stage(stage()).await.unwrap();
        assert_eq!(lease.claim_rows(first, &all[..2]).await.unwrap(), all[..2]);
        // Claiming again, as a trainer that died in between does, changes nothing.
        assert_eq!(lease.claim_rows(first, &all[..2]).await.unwrap(), all[..2]);
        let again = lease.open_stage(stage()).await;
        assert!(matches!(again, Err(LogError::StageOpen(open)) if open == first));
        // Before anything is saved, the progress is what the stage was opened with.
        let open = log.stages.current().await.unwrap().unwrap();
        assert_eq!(
            (&open.state, &open.progress),
            (&stage().state, &stage().state)
        );
        let (plan, began) = (json!({"rows": 2}), json!({"step": 7}));
        lease.save_stage(first, &plan, &began).await.unwrap();
        let open = log.stages.current().await.unwrap().unwrap();
        assert_eq!((open.id, open.rows), (first, 2));
        assert_eq!((&open.state, &open.progress), (&plan, &began));
        lease
            .save_progress(first, &json!({"step": 8}))
            .await
            .unwrap();
        let open = log.stages.current().await.unwrap().unwrap();
        assert_eq!((&open.state, open.progress), (&plan, json!({"step": 8})));
        assert_eq!(log.stages.outcome_of(first).await.unwrap(), None);
        let end = json!({"step": 9});
        lease
            .close_stage(first, StageOutcome::Rejected, &end)
            .await
            .unwrap();
        assert!(log.stages.current().await.unwrap().is_none());
        assert_eq!(
            log.replay.draw_ids(&DrawSpec::new(10)).await.unwrap(),
            all[2..]
        );

        let second = lease.open_stage(stage()).await.unwrap();
        let free = async |stage| {
            let spec = DrawSpec::new(10);
            let free = log.replay.free_for(stage, &spec, &all).await.unwrap();
            free.into_iter().map(|row| row.id).collect::<Vec<_>>()
        };
        assert_eq!(free(first).await, all);
        assert_eq!(free(second).await, all[2..]);
        assert_eq!(lease.claim_rows(second, &all).await.unwrap(), all[2..]);
        assert_eq!(
            (free(first).await, free(second).await),
            (all[..2].to_vec(), all[2..].to_vec())
        );
        assert_eq!(log.stages.rows_of(second).await.unwrap(), all[2..]);
        for closed in [
            lease.save_stage(first, &json!(1), &json!(1)).await,
            lease.save_progress(first, &json!(1)).await,
            add(&lease, first, &[]).await.map(drop),
            lease.promote(first, &[], "", &json!(1)).await,
            lease.claim_rows(first, &all).await.map(drop),
            lease
                .close_stage(first, StageOutcome::Failed, &json!(1))
                .await,
        ] {
            assert!(matches!(closed, Err(LogError::NotFound { .. })));
        }
        let stages = log.stages.all().await.unwrap();
        let ids: Vec<_> = stages.iter().map(|stage| stage.id).collect();
        assert_eq!(ids, [second, first]);
        assert_eq!(stages[1].outcome, Some(StageOutcome::Rejected));
        assert!(stages[1].closed_at.is_some() && stages[1].progress == end);
        assert_eq!(stages[1].state, plan);
        let rejected = Some(StageOutcome::Rejected);
        assert_eq!(log.stages.outcome_of(first).await.unwrap(), rejected);
        let summaries = log.stages.summaries().await.unwrap();
        assert_eq!(
            (summaries[1].outcome, &summaries[1].progress),
            (rejected, &end)
        );
    });
}

#[test]
fn an_update_is_added_whole_and_skips_what_was_deleted() {
    on_both(async |config| {
        let log = open(&config).await;
        let ids = fill(&log, "ann", 3).await;
        let lease = lease(&log).await;
        let addition = Addition {
            samples: vec![sample("worse"), sample("better")],
            verdicts: vec![verdict(0, 1, 0.2)],
            pairs: vec![LoggedPair {
                chosen: 1,
                rejected: 0,
                margin: 0.8,
                source: PairSource::OnPolicy,
                principles: Vec::new(),
            }],
            ..Addition::default()
        };
        let stage = lease.open_stage(stage()).await.unwrap();
        log.deletions.delete(&ids[1], &Scope::All).await.unwrap();
        let additions: Vec<_> = ids
            .iter()
            .map(|id| (id.clone(), addition.clone()))
            .collect();
        assert_eq!(add(&lease, stage, &additions).await.unwrap(), 2);
        let read = log
            .records
            .get(&ids[0], &Scope::All)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read.samples.len(), 4);
        assert_eq!(read.samples[3], addition.samples[1]);
        assert_eq!((read.verdicts[1].a, read.verdicts[1].b), (2, 3));
        assert_eq!((read.pairs[0].chosen, read.pairs[0].rejected), (3, 2));
        assert!(
            log.records
                .get(&ids[1], &Scope::All)
                .await
                .unwrap()
                .is_none()
        );

        let mut wrong = additions;
        wrong[2].1.pairs[0].chosen = 5;
        let result = add(&lease, stage, &wrong).await;
        assert!(matches!(result, Err(LogError::Invalid(_))));
        let read = log
            .records
            .get(&ids[0], &Scope::All)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read.samples.len(), 4, "nothing of a refused update stays");
    });
}

#[test]
fn what_the_trainer_adds_is_redacted_like_everything_else() {
    on_both(async |config| {
        let log = open(&config).await;
        let ids = fill(&log, "ann", 2).await;
        let lease = lease(&log).await;
        let leaking = Addition {
            samples: vec![sample("write to ann@example.com"), sample("no")],
            verdicts: vec![verdict(0, 1, 0.8)],
            ..Addition::default()
        };
        let harmless = Addition {
            samples: vec![sample("yes"), sample("no")],
            ..Addition::default()
        };
        let additions = [(ids[0].clone(), leaking), (ids[1].clone(), harmless)];
        let stage = lease.open_stage(stage()).await.unwrap();
        assert_eq!(add(&lease, stage, &additions).await.unwrap(), 2);
        let read = log
            .records
            .get(&ids[0], &Scope::All)
            .await
            .unwrap()
            .unwrap();
        let [leaking, no] = &read.samples[2..] else {
            panic!("two samples were added to {:?}", read.samples)
        };
        assert!(
            leaking.text.starts_with("write to [EMAIL-"),
            "{}",
            leaking.text
        );
        // They would spell out what was taken out.
        assert!(leaking.token_ids.is_empty() && leaking.logprobs.is_empty());
        assert_eq!(*no, additions[0].1.samples[1]);
        assert!(read.redacted && !read.prompt_token_ids.is_empty());
        let read = log
            .records
            .get(&ids[1], &Scope::All)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read.samples[2..], additions[1].1.samples);
        assert!(!read.redacted);
    });
}

#[test]
fn what_cannot_be_redacted_is_not_added_and_the_rest_is() {
    on_both(async |mut config| {
        let log = open(&config).await;
        let ids = fill(&log, "ann", 2).await;
        log.close().await;
        let script =
            "read -r texts; case $texts in *unspeakable*) exit 1;; esac; printf %s \"$texts\"";
        config.redaction.command = Some(RedactCommand {
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            timeout: Duration::from_secs(120),
        });
        let log = open(&config).await;
        let lease = lease(&log).await;
        let additions = [(0, "unspeakable"), (1, "fine")].map(|(at, text): (usize, &str)| {
            let addition = Addition {
                samples: vec![sample(text)],
                ..Addition::default()
            };
            (ids[at].clone(), addition)
        });
        let stage = lease.open_stage(stage()).await.unwrap();
        assert_eq!(add(&lease, stage, &additions).await.unwrap(), 1);
        assert_eq!(log.stats().failed, 1);
        let read = log
            .records
            .get(&ids[0], &Scope::All)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read.samples.len(), 2);
        let read = log
            .records
            .get(&ids[1], &Scope::All)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read.samples[2], additions[1].1.samples[0]);
        // Nothing to redact needs no program.
        let nothing = [(ids[0].clone(), Addition::default())];
        assert_eq!(add(&lease, stage, &nothing).await.unwrap(), 1);
    });
}

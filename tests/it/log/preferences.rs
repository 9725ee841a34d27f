//! Preferences of callers: draws of them, claims, and the judge's verdict on each.

use traffic_log::{Addition, DrawSpec, Feedback, FeedbackTrust, Scope, StageOutcome};

use super::learning::{LONG, add, lease, stage};
use super::*;

#[test]
fn preferences_are_learned_from_once_and_no_caller_has_more_than_its_share() {
    on_both(async |mut config| {
        config.trust = FeedbackTrust::Corroborated;
        let log = open(&config).await;
        let liked = |sample| Feedback::Preferred { sample };
        let mut given = Vec::new();
        for (name, count) in [("mallory", 8), ("ann", 1), ("bob", 1)] {
            let principal = Principal::of_key(name);
            for id in fill(&log, name, count).await {
                log.feedback.add(&id, &principal, liked(0)).await.unwrap();
                given.push(id);
            }
        }
        // A thumb alone is no preference, and an unwilling record is never drawn.
        let ann = Principal::of_key("ann");
        let thumbed = fill(&log, "ann", 1).await.remove(0);
        let up = Feedback::Thumbs {
            sample: 0,
            up: true,
        };
        log.feedback.add(&thumbed, &ann, up).await.unwrap();
        let mut unwilling = record("ann", "not for training");
        unwilling.consent.train = false;
        let unwilling = log.records.append(unwilling).await.unwrap();
        log.feedback.add(&unwilling, &ann, liked(0)).await.unwrap();

        // Each draws what has been given until then.
        let spec = || DrawSpec {
            max_share: 0.34,
            ..DrawSpec::new(8)
        };
        let held = log.replay.draw_preferences(&spec()).await.unwrap();
        let drawn: Vec<_> = held.iter().map(|held| held.record.clone()).collect();
        // One of the flood: two of four would be half.
        let flood = |id: &&RecordId| given[..8].contains(id);
        assert_eq!((drawn.len(), drawn.iter().filter(flood).count()), (3, 1));
        let newest = DrawSpec::new(1);
        let newest = log
            .replay
            .draw_preferences(&newest)
            .await
            .unwrap()
            .remove(0);
        assert!(
            !flood(&&newest.record),
            "the newest preference must not be one of the flood"
        );
        assert!(
            held.iter()
                .all(|held| (held.pair.chosen, held.pair.rejected) == (0, 1))
        );
        let rested = DrawSpec {
            quarantine: LONG,
            ..DrawSpec::new(8)
        };
        assert_eq!(log.replay.draw_preferences(&rested).await.unwrap(), []);
        let held_out = DrawSpec {
            held_out_per_mille: 1000,
            ..DrawSpec::new(8)
        };
        assert_eq!(log.replay.draw_preferences(&held_out).await.unwrap(), []);

        // An edit of the same record comes before what was preferred of it.
        let edited = Feedback::Edited {
            sample: 1,
            text: "better".to_owned(),
        };
        log.feedback.add(&given[8], &ann, edited).await.unwrap();
        let held = log.replay.draw_preferences(&spec()).await.unwrap();
        let edited = held.iter().find(|held| held.record == given[8]).unwrap();
        assert_eq!((edited.pair.chosen, edited.pair.rejected), (2, 1));

        // It is claimed whether or not a stage used the prompt.
        let lease = lease(&log).await;
        let first = lease.open_stage(stage()).await.unwrap();
        lease.claim_rows(first, &given[9..]).await.unwrap();
        assert_eq!(lease.claim_feedback(first, &drawn).await.unwrap(), drawn);
        assert_eq!(lease.claim_feedback(first, &drawn).await.unwrap(), drawn);
        let left = log.replay.draw_preferences(&spec()).await.unwrap();
        assert!(
            left.iter()
                .all(|held| given[..8].contains(&held.record) && !drawn.contains(&held.record)),
            "{left:?}"
        );

        // What the judge says of it then is with the record, and decides what is exported.
        let pairs = async |id: &RecordId| {
            let read = log.records.get(id, &Scope::All).await.unwrap().unwrap();
            let pairs = read.pairs.iter().map(|pair| (pair.chosen, pair.rejected));
            (read.verdicts.len(), pairs.collect::<Vec<_>>())
        };
        assert_eq!(pairs(&drawn[0]).await, (1, vec![]));
        let read = |p| Addition {
            corroborating: vec![verdict(0, 1, p)],
            ..Addition::default()
        };
        let additions = [(drawn[0].clone(), read(0.8)), (drawn[2].clone(), read(0.2))];
        assert_eq!(add(&lease, first, &additions).await.unwrap(), 2);
        assert_eq!(pairs(&drawn[0]).await, (2, vec![(0, 1)]));
        assert_eq!(pairs(&drawn[2]).await, (2, vec![]));
        lease
            .close_stage(first, StageOutcome::Promoted, &json!({}))
            .await
            .unwrap();
        let second = lease.open_stage(stage()).await.unwrap();
        assert_eq!(lease.claim_feedback(second, &drawn).await.unwrap(), []);
    });
}

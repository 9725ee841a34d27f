//! Tests of appending, reading, deleting, feedback and the audit trail.

use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use text::{Message, Role};
use traffic_log::{
    Feedback, FeedbackTrust, LogError, PairSource, Principal, Prompt, RedactCommand, Scope, now,
};

use super::*;

#[test]
fn a_record_comes_back_as_it_was_appended() {
    on_both(async |config| {
        let log = open(&config).await;
        let mut new = record("ann", "What is 2 + 2?");
        let pairs = new
            .verdicts
            .iter()
            .filter_map(|v| v.default_pair(PairSource::Tournament));
        new.pairs.extend(pairs);
        let id = log.records.append(new.clone()).await.unwrap();
        let read = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
        assert_eq!(read.id, id);
        assert_eq!(read.prompt, new.prompt);
        assert_eq!(read.prompt_token_ids, new.prompt_token_ids);
        assert_eq!(read.samples, new.samples);
        assert_eq!(read.verdicts, new.verdicts);
        assert_eq!(read.pairs, new.pairs);
        assert_eq!((read.pairs[0].chosen, read.pairs[0].rejected), (1, 0));
        assert_eq!(read.consent, new.consent);
        assert!(!read.redacted && read.feedback.is_empty());
        assert!((read.created_at - now()).abs() < 3_600_000);

        let chat = vec![Message::new(Role::User, "zero \0 and \"quotes\"")];
        let mut second = record("ann", "");
        second.prompt = Prompt::Messages(chat);
        second.samples[0].text = "zero \0".to_owned();
        let id = log.records.append(second).await.unwrap();
        let read = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
        assert_eq!(read.samples[0].text, "zero \u{fffd}");
        assert_eq!(log.stats().records, 2);
        log.close().await;
        assert!(matches!(
            log.records.append(record("ann", "")).await,
            Err(LogError::Unavailable(_))
        ));
        assert_eq!(open(&config).await.stats().records, 2);
    });
}

#[test]
fn verdicts_and_pairs_of_a_large_tournament_come_back_in_order() {
    on_both(async |config| {
        let log = open(&config).await;
        let mut new = record("ann", "many");
        new.verdicts = (0..150u8)
            .map(|at| verdict(0, 1, f32::from(at) / 1000.0))
            .collect();
        let pairs = new
            .verdicts
            .iter()
            .filter_map(|v| v.default_pair(PairSource::Tournament));
        new.pairs.extend(pairs);
        let id = log.records.append(new.clone()).await.unwrap();
        let read = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
        assert_eq!(read.verdicts, new.verdicts);
        assert_eq!(read.pairs, new.pairs);
    });
}

#[test]
fn only_its_principal_and_the_operator_see_a_record() {
    on_both(async |config| {
        let log = open(&config).await;
        let id = log.records.append(record("ann", "mine")).await.unwrap();
        let (ann, bob) = (Principal::of_key("ann"), Principal::of_key("bob"));
        let (ann, bob) = (Scope::Only(ann), Scope::Only(bob));
        assert!(log.records.get(&id, &ann).await.unwrap().is_some());
        assert!(log.records.get(&id, &bob).await.unwrap().is_none());
        assert!(!log.deletions.delete(&id, &bob).await.unwrap());
        assert!(log.records.get(&id, &Scope::All).await.unwrap().is_some());
        assert!(log.deletions.delete(&id, &ann).await.unwrap());
        assert!(!log.deletions.delete(&id, &Scope::All).await.unwrap());
        assert!(log.records.get(&id, &Scope::All).await.unwrap().is_none());
    });
}

#[test]
fn one_idempotency_key_names_one_record_of_its_principal() {
    on_both(async |config| {
        let log = open(&config).await;
        let keyed = |principal: &str| {
            let mut new = record(principal, "once");
            new.idempotency_key = Some(named("k", 1));
            new
        };
        // The repetition is in the same commit, and then in another.
        let same = join_all([
            log.records.append(keyed("ann")),
            log.records.append(keyed("ann")),
        ])
        .await;
        let ids: Vec<_> = same.into_iter().map(Result::unwrap).collect();
        assert_eq!(ids[0], ids[1]);
        assert_eq!(log.records.append(keyed("ann")).await.unwrap(), ids[0]);
        assert_ne!(log.records.append(keyed("bob")).await.unwrap(), ids[0]);
        assert_eq!(log.stats().appended, 2);
        let read = log
            .records
            .get(&ids[0], &Scope::All)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read.samples.len(), 2);
    });
}

#[test]
fn what_cannot_be_kept_is_refused() {
    on_both(async |config| {
        let log = open(&config).await;
        let mut unwilling = record("ann", "no");
        unwilling.consent.retain = false;
        let mut short = record("ann", "no");
        short.samples[0].logprobs.pop();
        let mut outside = record("ann", "no");
        outside.verdicts[0].b = 2;
        let mut itself = record("ann", "no");
        itself.verdicts[0].b = 0;
        let mut endless = record("ann", "no");
        endless.verdicts[0].p = f32::NAN;
        for wrong in [unwilling, short, outside, itself, endless] {
            let result = log.records.append(wrong).await;
            assert!(matches!(result, Err(LogError::Invalid(_))), "{result:?}");
        }
        assert_eq!(log.stats().records, 0);
    });
}

#[test]
fn a_full_queue_is_said_at_once() {
    on_both(async |mut config| {
        config.queue = 1;
        let log = open(&config).await;
        // On one thread the writer does not run before all three appends have been queued.
        let asked = (0..3).map(|_| log.records.append(record("ann", "")));
        let result = join_all(asked).await;
        assert!(result[0].is_ok());
        assert!(matches!(result[1], Err(LogError::Overloaded)));
        assert!(matches!(result[2], Err(LogError::Overloaded)));
        let stats = log.stats();
        assert_eq!((stats.appended, stats.overloaded), (1, 2));
        assert!(stats.healthy && stats.queue_depth == 0 && stats.commits == 1);
        assert!(log.records.append(record("ann", "")).await.is_ok());
    });
}

#[test]
fn records_that_come_together_share_a_commit() {
    on_both(async |config| {
        let log = open(&config).await;
        let asked = (0..300).map(|at| log.records.append(record("ann", &at.to_string())));
        let ids: Vec<_> = join_all(asked)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert!(log.stats().commits < 300, "{:?}", log.stats());
        for id in ids.iter().step_by(50) {
            assert!(log.records.get(id, &Scope::All).await.unwrap().is_some());
        }
    });
}

#[test]
fn personal_data_is_not_written() {
    on_both(async |config| {
        let mut new = record("ann", "I am ann.lee@example.org, who are you?");
        new.samples[1].text = "Hello ann.lee@example.org".to_owned();
        let mut surrogates = Vec::new();
        // After the log is opened again, the same address has the same surrogate.
        for _ in 0..2 {
            let log = open(&config).await;
            let id = log.records.append(new.clone()).await.unwrap();
            let read = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
            let Prompt::Text(prompt) = read.prompt else {
                panic!("the logged prompt must be a text")
            };
            assert!(!prompt.contains("ann.lee"), "{prompt}");
            let surrogate = read.samples[1].text.strip_prefix("Hello ").unwrap();
            assert!(prompt.contains(surrogate), "{prompt}");
            surrogates.push(surrogate.to_owned());
            // The tokens would contain the address. Those of the other sample contain nothing personal.
            assert!(read.redacted && read.prompt_token_ids.is_empty());
            assert!(read.samples[1].token_ids.is_empty() && read.samples[1].logprobs.is_empty());
            assert_eq!(read.samples[0], new.samples[0]);
            log.close().await;
        }
        assert_eq!(surrogates[0], surrogates[1]);
    });
}

#[test]
fn stop_strings_and_principles_are_redacted_too() {
    on_both(async |config| {
        let mut new = record("ann", "Who are you?");
        let secret = "ann.lee@example.org";
        let sampling = json!({"stop": [secret, "END"], "user": secret, "deep": {"er": [[secret]]}, "top_k": 5});
        new.samples[0].sampling = sampling;
        new.verdicts[0].principles = vec![format!("like {secret} would")];
        let pairs = new
            .verdicts
            .iter()
            .filter_map(|v| v.default_pair(PairSource::Tournament));
        new.pairs.extend(pairs);
        let log = open(&config).await;
        let id = log.records.append(new.clone()).await.unwrap();
        let read = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
        let stored = serde_json::to_string(&read).unwrap();
        assert!(!stored.contains("ann.lee"), "{stored}");
        let sampling = &read.samples[0].sampling;
        assert!(sampling["stop"][0].as_str().unwrap().starts_with("[EMAIL-"));
        assert_eq!(
            (&sampling["stop"][1], &sampling["top_k"]),
            (&"END".into(), &5.into())
        );
        assert_eq!(sampling["deep"]["er"][0][0], sampling["stop"][0]);
        // A sample's tokens end with its stop string. Those of the prompt and of the other sample contain nothing personal.
        assert!(
            read.redacted
                && read.samples[0].token_ids.is_empty()
                && read.samples[0].logprobs.is_empty()
        );
        assert_eq!(read.samples[1].token_ids, new.samples[1].token_ids);
        assert_eq!(read.prompt_token_ids, new.prompt_token_ids);
        assert!(
            read.pairs
                .iter()
                .all(|pair| pair.principles[0].starts_with("like [EMAIL-"))
        );
    });
}

#[test]
fn a_card_that_is_cut_over_two_messages_is_redacted() {
    on_both(async |config| {
        let message = |role, content: &str| Message {
            role,
            content: content.to_owned(),
        };
        let mut new = record("ann", "");
        new.prompt = Prompt::Messages(vec![
            message(Role::User, "my card is 4111 1111"),
            message(Role::Assistant, "Go on."),
            message(Role::User, "1111 1111, thanks"),
        ]);
        let log = open(&config).await;
        let id = log.records.append(new).await.unwrap();
        let read = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
        assert!(read.redacted && read.prompt_token_ids.is_empty());
        let Prompt::Messages(messages) = read.prompt else {
            panic!("the logged prompt must be messages")
        };
        assert!(messages[0].content.starts_with("my card is [CARD-"));
        assert!(messages[2].content.ends_with("], thanks"));
        assert_eq!(messages[1].content, "Go on.");
    });
}

#[test]
fn a_redactor_that_fails_keeps_the_record_out() {
    on_both(async |mut config| {
        let program = |script: &str| RedactCommand {
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            timeout: Duration::from_secs(120),
        };
        config.redaction.command = Some(program("exit 1"));
        let log = open(&config).await;
        let result = log.records.append(record("ann", "Ann")).await;
        assert!(matches!(result, Err(LogError::Redaction(_))), "{result:?}");
        assert_eq!((log.stats().records, log.stats().failed), (0, 1));
        log.close().await;

        config.redaction.command = Some(program("sed s/Ann/N.N./"));
        let log = open(&config).await;
        let id = log.records.append(record("ann", "Ann")).await.unwrap();
        let read = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
        assert_eq!(read.prompt, Prompt::Text("N.N.".to_owned()));
        assert!(read.redacted && read.prompt_token_ids.is_empty());
    });
}

#[test]
fn deletion_takes_all_of_a_principal_and_leaves_the_others() {
    on_both(async |mut config| {
        config.trust = FeedbackTrust::Always;
        let log = open(&config).await;
        let anns = fill(&log, "ann", 3).await;
        let bobs = fill(&log, "bob", 1).await;
        let (ann, carl) = (Principal::of_key("ann"), Principal::of_key("carl"));
        let edited = Feedback::Edited {
            sample: 0,
            text: "Ann's own words".to_owned(),
        };
        log.feedback.add(&bobs[0], &ann, edited).await.unwrap();
        let liked = Feedback::Preferred { sample: 1 };
        log.feedback.add(&bobs[0], &carl, liked).await.unwrap();
        assert_eq!(log.deletions.delete_principal(&ann).await.unwrap(), 3);
        for id in &anns {
            assert!(log.records.get(id, &Scope::All).await.unwrap().is_none());
        }
        let read = log
            .records
            .get(&bobs[0], &Scope::All)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read.feedback.len(), 1);
        assert_eq!(read.samples[2].text, "");
        assert_eq!(read.pairs.len(), 1);
        assert_eq!((read.pairs[0].chosen, read.pairs[0].rejected), (1, 0));
        assert_eq!(log.stats().records, 1);
        assert_eq!(log.audit.verify().await.unwrap(), 1);
    });
}

#[test]
fn what_is_older_than_the_retention_goes() {
    on_both(async |mut config| {
        config.retention = Some(Duration::from_secs(3600));
        let log = open(&config).await;
        let ids = fill(&log, "ann", 2).await;
        assert_eq!(log.deletions.expire(now()).await.unwrap(), 0);
        assert_eq!(
            log.deletions.expire(now() + 2 * 3_600_000).await.unwrap(),
            2
        );
        assert!(
            log.records
                .get(&ids[0], &Scope::All)
                .await
                .unwrap()
                .is_none()
        );
        let events = log.audit.after(0, 10).await.unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].action, "records.expired");
        log.close().await;
        config.retention = None;
        let log = open(&config).await;
        fill(&log, "ann", 1).await;
        assert_eq!(log.deletions.expire(i64::MAX).await.unwrap(), 0);
    });
}

#[test]
fn feedback_is_kept_and_believed_as_the_policy_says() {
    for (trust, after_one, after_two) in [
        (FeedbackTrust::Never, 0, 0),
        (FeedbackTrust::Corroborated, 0, 0),
        (FeedbackTrust::Always, 1, 1),
    ] {
        on_both(async |mut config| {
            config.trust = trust;
            let log = open(&config).await;
            let id = fill(&log, "ann", 1).await.remove(0);
            let (ann, bob) = (Principal::of_key("ann"), Principal::of_key("bob"));
            // The verdict prefers sample 1, so the judge does not support this feedback.
            let liked = || Feedback::Preferred { sample: 0 };
            for _ in 0..2 {
                let result = log.feedback.add(&id, &ann, liked()).await.unwrap();
                assert_eq!(result.pairs, after_one, "{trust}");
            }
            let result = log.feedback.add(&id, &bob, liked()).await.unwrap();
            assert_eq!(result.pairs, after_two, "{trust}");
            let read = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
            assert_eq!(read.feedback.len(), 2);
            assert_eq!(read.pairs.len(), after_two);
            let unknown = log
                .feedback
                .add(&id, &ann, Feedback::Preferred { sample: 2 })
                .await;
            assert!(matches!(unknown, Err(LogError::Invalid(_))));
            assert!(log.deletions.delete(&id, &Scope::All).await.unwrap());
            let gone = log.feedback.add(&id, &ann, liked()).await;
            assert!(matches!(gone, Err(LogError::NotFound { .. })));
        });
    }
}

#[test]
fn an_event_cannot_be_changed_unseen() {
    on_both(async |config| {
        let log = open(&config).await;
        for at in 0..4 {
            log.audit
                .append("ann", "train.paused", json!({ "at": at }))
                .await
                .unwrap();
        }
        assert_eq!(log.audit.verify().await.unwrap(), 4);
        let events = log.audit.after(1, 2).await.unwrap();
        assert_eq!((events[0].sequence, events[1].sequence), (2, 3));
        assert_eq!(events[1].previous, events[0].hash);
        assert_eq!(events[0].detail, json!({ "at": 1 }));
        for tampering in [
            "UPDATE events SET body = REPLACE(body, 'ann', 'bob') WHERE sequence = 3",
            "DELETE FROM events WHERE sequence = 3",
            "DELETE FROM events WHERE sequence = 4",
        ] {
            assert_eq!(execute(&config.url, tampering).await, 1);
            let result = log.audit.verify().await;
            assert!(matches!(result, Err(LogError::Corrupt(_))), "{tampering}");
        }
    });
}

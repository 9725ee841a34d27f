//! Tests of idempotency keys: the records that they name, and their stored form.

use traffic_log::{Principal, Scope};

use super::*;

fn called(name: &str, request: u8, prompt: &str) -> NewRecord {
    let mut new = record("ann", prompt);
    new.idempotency_key = Some(named(name, request));
    new
}

#[test]
fn another_request_under_a_name_is_refused_and_spares_its_neighbours() {
    on_both(async |config| {
        let log = open(&config).await;
        let first = log.records.append(called("k", 1, "one")).await.unwrap();
        // The other calls of the same commit are written.
        let (reused, other, again) = tokio::join!(
            log.records.append(called("k", 2, "two")),
            log.records.append(called("l", 2, "two")),
            log.records.append(called("k", 1, "one")),
        );
        assert!(
            matches!(reused, Err(LogError::IdempotencyReused)),
            "{reused:?}"
        );
        assert_ne!(other.unwrap(), first);
        assert_eq!(again.unwrap(), first);
        assert_eq!(log.stats().records, 2);
        assert!(log.stats().healthy);
        let ann = Principal::of_key("ann");
        let found = log.records.find_by_key(&ann, &named("k", 1)).await.unwrap();
        assert_eq!(found, Some(first));
        let reused = log.records.find_by_key(&ann, &named("k", 2)).await;
        assert!(matches!(reused, Err(LogError::IdempotencyReused)));
        let bobs = log
            .records
            .find_by_key(&Principal::of_key("bob"), &named("k", 2))
            .await;
        assert_eq!(bobs.unwrap(), None);
    });
}

#[test]
fn a_repetition_takes_consent_back_and_never_gives_it() {
    on_both(async |config| {
        let log = open(&config).await;
        let with = |train| {
            let mut new = called("k", 1, "one");
            new.consent.train = train;
            new
        };
        let id = log.records.append(with(true)).await.unwrap();
        for (train, held) in [(true, true), (false, false), (true, false)] {
            assert_eq!(log.records.append(with(train)).await.unwrap(), id);
            let record = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
            assert_eq!(record.consent.train, held);
        }
    });
}

#[test]
fn a_name_from_before_stands_for_its_prompt() {
    on_both(async |config| {
        let log = open(&config).await;
        let id = log
            .records
            .append(called("order-17", 1, "one"))
            .await
            .unwrap();
        let names = execute(
            &config.url,
            "UPDATE records SET idempotency_key = 'order-17', request_digest = NULL",
        );
        assert_eq!(names.await, 1);
        assert_eq!(
            log.records
                .append(called("order-17", 9, "one"))
                .await
                .unwrap(),
            id
        );
        let reused = log.records.append(called("order-17", 1, "two")).await;
        assert!(
            matches!(reused, Err(LogError::IdempotencyReused)),
            "{reused:?}"
        );
        assert_eq!(log.stats().records, 1);
    });
}

#[test]
fn a_name_is_stored_as_a_digest() {
    on_both(async |config| {
        let log = open(&config).await;
        log.records
            .append(called("ann@example.org", 1, "one"))
            .await
            .unwrap();
        let mut operator = Operator::connect(&config.url).await;
        let stored = operator.texts("SELECT idempotency_key FROM records").await;
        let stored = &stored[0];
        assert!(
            stored.starts_with("v1:") && !stored.contains("ann"),
            "{stored}"
        );
    });
}

//! Tests of the quota, which bounds the disk space of a principal's records.

use std::time::Duration;

use traffic_log::{Principal, Scope};

use super::*;

fn large(principal: &str) -> NewRecord {
    record(principal, &"x".repeat(10_000))
}

#[test]
fn a_principal_has_its_share_and_others_have_theirs() {
    on_both(async |mut config| {
        config.principal_quota = Some(35_000);
        let log = open(&config).await;
        let mut kept = Vec::new();
        let refused = loop {
            match log.records.append(large("ann")).await {
                Ok(id) => kept.push(id),
                Err(error) => break error,
            }
        };
        assert!(matches!(
            refused,
            LogError::PrincipalQuota { quota: 35_000 }
        ));
        assert_eq!(kept.len(), 3);
        assert!(
            log.stats().healthy,
            "a full quota must not make the log unhealthy"
        );
        // In one commit a principal with a full quota does not affect the others.
        let (ann, bob) = tokio::join!(
            log.records.append(large("ann")),
            log.records.append(large("bob"))
        );
        assert!(matches!(ann, Err(LogError::PrincipalQuota { .. })));
        bob.unwrap();
        // Deleted records free their space, and the sums are right after a restart.
        let scope = Scope::Only(Principal::of_key("ann"));
        assert!(log.deletions.delete(&kept[0], &scope).await.unwrap());
        log.records.append(large("ann")).await.unwrap();
        log.close().await;
        let log = open(&config).await;
        let refused = log.records.append(large("ann")).await;
        assert!(matches!(refused, Err(LogError::PrincipalQuota { .. })));
        log.deletions
            .delete_principal(&Principal::of_key("ann"))
            .await
            .unwrap();
        log.records.append(large("ann")).await.unwrap();
    });
}

#[test]
fn all_principals_together_have_a_share_too() {
    on_both(async |mut config| {
        config.quota = Some(35_000);
        let log = open(&config).await;
        for principal in ["ann", "bob", "carl"] {
            log.records.append(large(principal)).await.unwrap();
        }
        let refused = log.records.append(large("dora")).await;
        assert!(matches!(refused, Err(LogError::Full(_))), "{refused:?}");
        log.deletions
            .delete_principal(&Principal::of_key("bob"))
            .await
            .unwrap();
        log.records.append(large("dora")).await.unwrap();
    });
}

#[test]
fn samples_count_as_much_as_prompts() {
    on_both(async |mut config| {
        config.principal_quota = Some(10_000);
        let log = open(&config).await;
        let mut many = record("ann", "x");
        many.samples = vec![sample(&"y".repeat(1000)); 20];
        let refused = log.records.append(many).await;
        assert!(matches!(refused, Err(LogError::PrincipalQuota { .. })));
        assert_eq!(log.stats().records, 0);
    });
}

/// A repetition is no second record, so it needs no space.
#[test]
fn a_repetition_is_answered_where_there_is_no_room() {
    on_both(async |mut config| {
        config.principal_quota = Some(15_000);
        let log = open(&config).await;
        let once = || {
            let mut new = large("ann");
            new.idempotency_key = Some(named("k", 1));
            new
        };
        let id = log.records.append(once()).await.unwrap();
        assert_eq!(log.records.append(once()).await.unwrap(), id);
        assert!(log.records.append(large("ann")).await.is_err());
    });
}

/// Records of another process count after a while, and deletions of this process at once.
#[test]
fn expired_records_make_room() {
    on_both(async |mut config| {
        config.principal_quota = Some(15_000);
        config.retention = Some(Duration::from_secs(60));
        let log = open(&config).await;
        log.records.append(large("ann")).await.unwrap();
        assert!(log.records.append(large("ann")).await.is_err());
        let later = traffic_log::now() + 3_600_000;
        assert_eq!(log.deletions.expire(later).await.unwrap(), 1);
        log.records.append(large("ann")).await.unwrap();
    });
}

#[test]
fn edits_count_and_an_edit_over_an_edit_counts_once() {
    use traffic_log::Feedback;
    on_both(async |mut config| {
        config.principal_quota = Some(20_000);
        let log = open(&config).await;
        let id = log.records.append(record("ann", "x")).await.unwrap();
        let ann = Principal::of_key("ann");
        let edit = |sample, bytes| Feedback::Edited {
            sample,
            text: "y".repeat(bytes),
        };
        for _ in 0..5 {
            log.feedback.add(&id, &ann, edit(0, 8_000)).await.unwrap();
        }
        let refused = log.feedback.add(&id, &ann, edit(1, 8_000)).await;
        assert!(
            matches!(refused, Err(LogError::PrincipalQuota { .. })),
            "{refused:?}"
        );
        let read = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
        assert_eq!((read.samples.len(), read.feedback.len()), (3, 1));
        log.feedback.add(&id, &ann, edit(0, 10)).await.unwrap();
        log.feedback.add(&id, &ann, edit(1, 8_000)).await.unwrap();
    });
}

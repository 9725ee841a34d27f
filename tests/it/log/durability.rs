//! Tests of the log after `kill -9`, a lost connection, a locked file and a full disk.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use traffic_log::{GenerationId, NewStage, Pointer, Scope};

use super::versions::{generation, to};
use super::*;

/// The variable with the URL of a child's database.
const URL: &str = "SELFJUDGE_TEST_LOG_URL";

fn url() -> Option<String> {
    std::env::var(URL).ok()
}

/// Not a test: the process that [`killed_at_any_moment_nothing_acknowledged_is_lost`] kills.
#[test]
#[ignore = "run by other tests as a process of its own"]
fn child_that_writes() {
    let Some(url) = url() else { return };
    run(async {
        let log = open(&LogConfig::new(url)).await;
        for at in 0.. {
            let mut new = record("ann", &at.to_string());
            new.idempotency_key = Some(named(&at.to_string(), 1));
            let id = log.records.append(new).await.unwrap();
            println!("acknowledged {id}");
        }
    });
}

/// Not a test: the process of [`killed_at_the_swap_the_pointer_is_old_or_new`].
#[test]
#[ignore = "run by other tests as a process of its own"]
fn child_that_promotes() {
    let Some(url) = url() else { return };
    run(async {
        let log = open(&LogConfig::new(url)).await;
        let ttl = Duration::from_secs(3600);
        let lease = log.leases.acquire("trainer", ttl).await.unwrap().unwrap();
        lease.insert_generation(generation("one")).await.unwrap();
        let moves = [
            to(Pointer::Policy, "base", "one"),
            to(Pointer::Reference, "base", "one"),
        ];
        let stage = NewStage {
            reference: GenerationId::base(),
            state: json!({}),
        };
        let stage = lease.open_stage(stage).await.unwrap();
        let progress = json!({});
        lease.promote(stage, &moves, "", &progress).await.unwrap();
        println!("acknowledged");
    });
}

/// Returns the record id that a line of a child's output acknowledges. libtest may have written the beginning of the line.
fn acknowledged(line: &str) -> Option<RecordId> {
    let (_, id) = line.split_once("acknowledged ")?;
    RecordId::parse(id.trim())
}

#[test]
fn killed_at_any_moment_nothing_acknowledged_is_lost() {
    on_both(async |config| {
        open(&config).await.close().await;
        let mut child = child("log::durability::child_that_writes", &[(URL, &config.url)])
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut ids = Vec::new();
        while ids.len() < 40 {
            let line = lines.next().expect("the child must go on writing").unwrap();
            ids.extend(acknowledged(&line));
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        // These ids were printed before the process died.
        ids.extend(
            lines
                .map_while(Result::ok)
                .filter_map(|line| acknowledged(&line)),
        );
        let log = open(&config).await;
        for id in &ids {
            let read = log.records.get(id, &Scope::All).await.unwrap();
            assert_eq!(
                read.expect("an acknowledged record must be in the log")
                    .samples
                    .len(),
                2
            );
        }
        assert!(log.records.append(record("ann", "after")).await.is_ok());
    });
}

#[test]
fn killed_around_a_commit_a_record_is_whole_or_absent() {
    // Each of the child's records is a commit of its own, so the visits of the fault point count records.
    for (place, kept) in [("log.before_commit:4", 3), ("log.after_commit:4", 4)] {
        on_both(async |config| {
            open(&config).await.close().await;
            let environment = [(URL, config.url.as_str()), ("SELFJUDGE_FAULT", place)];
            let output = child("log::durability::child_that_writes", &environment)
                .output()
                .unwrap();
            assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{place}");
            let printed = String::from_utf8_lossy(&output.stdout);
            assert_eq!(printed.lines().filter_map(acknowledged).count(), 3);
            let log = open(&config).await;
            assert_eq!(log.stats().records, kept, "{place}");
            // A client without an answer repeats its call, and the log has one record of it.
            let mut again = record("ann", "3");
            again.idempotency_key = Some(named("3", 1));
            log.records.append(again).await.unwrap();
            assert_eq!(log.stats().records, 4, "{place}");
        });
    }
}

#[test]
fn killed_at_the_swap_the_pointer_is_old_or_new() {
    for (place, moved) in [
        ("log.pointer.before_commit", false),
        ("log.pointer.after_commit", true),
    ] {
        on_both(async |config| {
            open(&config).await.close().await;
            let environment = [(URL, config.url.as_str()), ("SELFJUDGE_FAULT", place)];
            let output = child("log::durability::child_that_promotes", &environment)
                .output()
                .unwrap();
            assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{place}");
            let log = open(&config).await;
            let pointers = log.generations.pointers().await.unwrap();
            assert_eq!(!pointers.policy.is_base(), moved, "{place}");
            assert_eq!(pointers.policy, pointers.reference, "{place}");
            let events = log.audit.after(0, 100).await.unwrap();
            let recorded = events.iter().any(|event| event.action == "pointers.moved");
            assert_eq!(recorded, moved, "{place}");
            log.audit.verify().await.unwrap();
            // The restarted trainer need not wait for its old lease.
            let ttl = Duration::from_secs(3600);
            assert!(log.leases.acquire("trainer", ttl).await.unwrap().is_some());
        });
    }
}

#[test]
fn a_locked_file_is_unavailable_and_then_works_again() {
    let (_dir, mut config) = sqlite();
    config.patience = Duration::from_secs(3);
    run(async {
        let log = open(&config).await;
        let first = append_when_back(&log, &record("ann", "before")).await;
        let mut other = Operator::connect(&config.url).await;
        other.run("BEGIN IMMEDIATE").await;
        let refused = log.records.append(record("ann", "during")).await;
        assert!(
            matches!(refused, Err(LogError::Unavailable(_))),
            "{refused:?}"
        );
        assert!(!log.stats().healthy);
        // Reads still work.
        assert!(
            log.records
                .get(&first, &Scope::All)
                .await
                .unwrap()
                .is_some()
        );
        other.run("ROLLBACK").await;
        let id = append_when_back(&log, &record("ann", "after")).await;
        assert!(log.records.get(&id, &Scope::All).await.unwrap().is_some());
        assert!(log.stats().healthy);
    });
}

#[test]
fn a_lost_connection_is_made_again() {
    run(async {
        let Some(url) = fresh_schema().await else {
            return;
        };
        let log = open(&LogConfig::new(url.as_str())).await;
        let before = fill(&log, "ann", 3).await;
        let name = url.rsplit_once('=').unwrap().1;
        let server = std::env::var(POSTGRES).unwrap();
        let ended = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'"
        );
        execute(&server, &ended).await;
        let after = append_when_back(&log, &record("ann", "after")).await;
        for id in before.iter().chain([&after]) {
            assert!(log.records.get(id, &Scope::All).await.unwrap().is_some());
        }
        assert!(
            log.leases
                .acquire("t", Duration::ZERO)
                .await
                .unwrap()
                .is_some()
        );
        log.audit.verify().await.unwrap();
    });
}

/// Not a test: a process whose files may not grow, as on a full disk.
#[test]
#[ignore = "run by other tests as a process of its own"]
fn child_that_runs_out_of_space() {
    let Some(url) = url() else { return };
    let mut before = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit writes one struct, which outlives the call.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut before) };
    assert_eq!(read, 0);
    let limit = |bytes: libc::rlim_t| {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            ..before
        };
        // SAFETY: setrlimit reads one struct, which outlives the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    };
    // SAFETY: signal takes no pointers here. Ignoring SIGXFSZ makes a write fail, where the signal would end the process.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    run(async {
        let log = open(&LogConfig::new(url)).await;
        let kept = fill(&log, "ann", 5).await;
        limit(1 << 20);
        let large = record("ann", &"x".repeat(256 << 10));
        let mut refused = false;
        for _ in 0..32 {
            match log.records.append(large.clone()).await {
                Ok(_) => {}
                Err(LogError::Unavailable(_)) => {
                    refused = true;
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(
            refused,
            "a write of 8 MiB must fail where files may have 1 MiB"
        );
        limit(before.rlim_cur);
        let after = append_when_back(&log, &large).await;
        for id in kept.iter().chain([&after]) {
            assert!(log.records.get(id, &Scope::All).await.unwrap().is_some());
        }
        println!("survived");
    });
}

#[test]
fn a_full_disk_refuses_records_until_there_is_room() {
    let (_dir, config) = sqlite();
    let mut child = child(
        "log::durability::child_that_runs_out_of_space",
        &[(URL, &config.url)],
    )
    .spawn()
    .unwrap();
    let mut printed = String::new();
    let mut out = child.stdout.take().unwrap();
    out.read_to_string(&mut printed).unwrap();
    assert!(child.wait().unwrap().success(), "{printed}");
    assert!(printed.contains("survived"), "{printed}");
}

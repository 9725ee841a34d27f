//! Tests of the way from traffic to new weights that serve, seen from outside.

use std::path::Path;

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use traffic_log::{LogConfig, RecordId, Scope, TrafficLog};

use super::support::{LEARN, Program, Setup, question, wait_for, with_traffic};

#[test]
fn traffic_becomes_weights_that_serve_without_a_pause() {
    let dir = with_traffic();
    // With all of the model's anchors.
    let lines = LEARN.lines().filter(|line| !line.starts_with("anchor"));
    let learn: String = lines.map(|line| format!("{line}\n")).collect();
    let program = Program::start(&Setup::learning(dir.path(), &learn));
    let over = AtomicBool::new(false);
    let versions = std::thread::scope(|scope| {
        // Callers send calls without a pause while the weights are swapped.
        let callers: Vec<_> = (0..3)
            .map(|caller| {
                let (program, over) = (&program, &over);
                scope.spawn(move || {
                    let mut versions = Vec::new();
                    let mut number = 100 * (caller + 1);
                    while !over.load(Ordering::Relaxed) {
                        let mut call = question(number);
                        call["log"] = json!({"retain": false});
                        let answer = program.post("/generate", &call);
                        versions.push(answer["version"].as_str().unwrap().to_owned());
                        number += 1;
                    }
                    versions
                })
            })
            .collect();
        let id = program.learned();
        // Each caller sends one more call after the swap.
        for number in 0..3 {
            program.post("/generate", &question(number));
        }
        over.store(true, Ordering::Relaxed);
        let versions = callers
            .into_iter()
            .flat_map(|caller| caller.join().unwrap());
        (id, versions.collect::<Vec<_>>())
    });
    let (id, versions) = versions;
    assert!(
        versions
            .iter()
            .all(|version| *version == "base" || *version == id),
        "{versions:?}"
    );
    let answer = program.post("/generate", &question(1));
    assert_eq!(answer["version"], json!(id));

    // The program logged each update.
    let planned = program.admin_get("/train")["planned"].as_u64().unwrap();
    let number = |line: &str, name: &str| -> f64 {
        let (_, rest) = line
            .split_once(name)
            .unwrap_or_else(|| panic!("{line} has no {name}"));
        let end = rest.find(|c: char| c != '-' && c != '.' && !c.is_ascii_digit());
        rest[..end.unwrap_or(rest.len())]
            .parse()
            .unwrap_or_else(|_| panic!("{line}"))
    };
    for update in 1..=planned {
        let line =
            program.hears(|line| line.contains(&format!("stage 1: update {update}/{planned}, ")));
        if !line.contains("no pair to learn from") {
            assert!(number(&line, "loss ") > 0.0, "{line}");
            number(&line, "reward margin ");
        }
        assert!(line.contains("INFO") && line.len() < 300, "{line}");
    }
    let train = program.admin_get("/train");
    assert_eq!(train["last_outcome"], "promoted", "{train}");
    assert!(train["pairs"].as_u64().unwrap() > 0, "{train}");
    let gates = train["gates"].as_array().unwrap();
    assert_eq!(gates.len(), 14, "{train}");
    assert!(gates.iter().all(|gate| gate["passed"] == true), "{train}");
    // Before the first update, policy and reference are equal.
    let step_zero = gates
        .iter()
        .find(|gate| gate["gate"] == "step_zero")
        .unwrap();
    assert!(step_zero["value"].as_f64().unwrap() < 1e-3, "{step_zero}");
    assert!(program.metrics().contains("selfjudge:train_updates_total"));

    let generations = program.admin_get("/generations");
    let generation = &generations["generations"][0];
    assert_eq!(
        (&generation["id"], &generation["state"]),
        (&json!(id), &json!("promoted"))
    );
    assert_eq!(generations["pointers"]["reference"], json!(id));
    assert_eq!(
        generations["pointers"]["judge"], "base",
        "the judge must be pinned"
    );

    // A rollback needs the expected version of the policy.
    let stale = json!({"expected": "base"});
    assert_eq!(
        program.admin_post("/generations/base/rollback", &stale).0,
        409
    );
    let known = json!({"expected": id});
    assert_eq!(
        program.admin_post("/generations/base/rollback", &known).0,
        200
    );
    assert_eq!(program.post("/generate", &question(1))["version"], "base");
    let (status, answer) =
        program.admin_post(&format!("/generations/{}/promote", "0".repeat(64)), &stale);
    assert_eq!(status, 404, "{answer}");
    // A promotion moves the policy forward again.
    assert_eq!(
        program
            .admin_post(&format!("/generations/{id}/promote"), &stale)
            .0,
        200
    );
    assert_eq!(
        program.post("/generate", &question(1))["version"],
        json!(id)
    );
    let trail = program.admin_get("/events?verify=true");
    assert_eq!(trail["valid"], true, "{trail}");
    program.stop();

    // After a restart the last served version serves again.
    let program = Program::start(&Setup::new(dir.path()));
    assert_eq!(
        program.post("/generate", &question(1))["version"],
        json!(id)
    );
    program.stop();
}

#[test]
fn learning_pauses_and_goes_on_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(&Setup::learning(dir.path(), LEARN));
    let (status, train) = program.admin_post("/train/pause", &Value::Null);
    assert_eq!((status, &train["paused"]), (200, &json!(true)), "{train}");
    for number in 0..40 {
        program.ask(number);
    }
    let train = program.admin_get("/train");
    assert_eq!(
        (&train["updates"], &train["stage"]),
        (&json!(0), &json!(0)),
        "{train}"
    );
    assert_eq!(program.admin_post("/train/resume", &Value::Null).0, 200);
    assert_ne!(program.learned(), "base");
    program.stop();
}

/// Reads the log of a data directory that no program has open.
pub fn in_log(dir: &Path, look: impl AsyncFnOnce(&TrafficLog)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let config = LogConfig::sqlite(&dir.join("traffic.sqlite"));
        let log = TrafficLog::open(&config).await.unwrap();
        look(&log).await;
        log.close().await;
    });
}

#[test]
fn nobody_is_learned_from_who_does_not_consent_and_a_flood_is_no_majority() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "flood:one\nothers:two\nsilent:three no-train\n").unwrap();
    let keys = keys.to_str().unwrap();
    let learn = LEARN.replace("principal_share = 1.0", "principal_share = 0.5");
    // Each of two owners has two of these prompts.
    let learn = learn.replace("prompts = 3", "prompts = 4");
    let setup = Setup {
        arguments: &["--api-key-file", keys],
        ..Setup::learning(dir.path(), &learn)
    };
    let program = Program::start(&setup);
    program.admin_post("/train/pause", &Value::Null);
    let mut owners = std::collections::HashMap::new();
    for (key, calls) in [("one", 60), ("three", 20), ("two", 30)] {
        for number in 0..calls {
            let id = program.ask_with_key(number, key);
            owners.insert(id, key);
        }
    }
    program.admin_post("/train/resume", &Value::Null);
    program.learned();
    program.stop();

    in_log(dir.path(), async |log| {
        let stage = log.stages.all().await.unwrap().pop().unwrap();
        let rows = stage.state["rows"].as_array().unwrap();
        let of = |key: &str| {
            let is = |id: &&Value| owners[id.as_str().unwrap()] == key;
            rows.iter().filter(is).count()
        };
        assert_eq!(rows.len(), 8);
        assert_eq!(of("three"), 0);
        assert!(of("one") <= 4, "{}", of("one"));
        // The trainer's answers, verdicts and pairs are in the record of their prompt.
        let mut made = 0;
        for id in rows {
            let id = RecordId::parse(id.as_str().unwrap()).unwrap();
            let record = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
            made += record.pairs.len();
            for pair in &record.pairs {
                assert_ne!(
                    record.samples[pair.chosen].token_ids,
                    record.samples[pair.rejected].token_ids
                );
            }
        }
        assert!(made > 0);
    });
}

/// One caller prefers the second of its answers thirty times, and another one ten times.
#[test]
fn a_flood_of_feedback_has_its_share_of_a_stage_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "flood:one\nothers:two\n").unwrap();
    let keys = keys.to_str().unwrap();
    let learn = LEARN.replace("principal_share = 1.0", "principal_share = 0.5");
    let learn = learn.replace("prompts = 3", "prompts = 2") + "\n[feedback]\nshare = 0.5\n";
    let setup = Setup {
        arguments: &["--api-key-file", keys, "--trust-feedback", "always"],
        ..Setup::learning(dir.path(), &learn)
    };
    let program = Program::start(&setup);
    program.admin_post("/train/pause", &Value::Null);
    let mut owners = std::collections::HashMap::new();
    for (key, calls, said) in [("one", 60, 30), ("two", 30, 10)] {
        for number in 0..calls {
            let mut call = question(number);
            call["n"] = 2.into();
            let answer = program.post_with_key("/generate", key, &call);
            let id = answer["record_id"].as_str().unwrap().to_owned();
            if number < said {
                let body = serde_json::json!({"record_id": id, "preferred": 1});
                program.post_with_key("/feedback", key, &body);
            }
            owners.insert(id, key);
        }
    }
    program.admin_post("/train/resume", &Value::Null);
    program.learned();
    program.stop();

    in_log(dir.path(), async |log| {
        let stage = log.stages.all().await.unwrap().pop().unwrap();
        let heard = stage.state["feedback"].as_array().unwrap();
        let of = |key: &str| {
            let is = |row: &&Value| owners[row["record"].as_str().unwrap()] == key;
            heard.iter().filter(is).count()
        };
        assert!(of("two") > 0, "{heard:?}");
        assert!(2 * of("one") <= heard.len(), "{heard:?}");
    });
}

#[test]
fn what_was_learned_is_shown_after_a_restart() {
    let dir = with_traffic();
    let setup = Setup::learning(dir.path(), LEARN);
    let program = Program::start(&setup);
    let id = program.learned();
    let before = program.admin_get("/train");
    program.stop();

    let program = Program::start(&setup);
    let after = wait_for("the stages before the restart", || {
        let train = program.admin_get("/train");
        (train["stage"] == before["stage"]).then_some(train)
    });
    for what in [
        "updates",
        "pairs",
        "gates",
        "last_outcome",
        "update",
        "planned",
        "kl",
    ] {
        assert_eq!(after[what], before[what], "{what}: {after}");
    }
    assert!(after["updates"].as_u64().unwrap() > 0, "{after}");
    for number in ["loss", "rewards_margin", "grad_norm"] {
        let (then, now) = (
            &before["last_update"][number],
            &after["last_update"][number],
        );
        assert_eq!(now, then, "{number}: {after}");
    }
    let metrics = program.metrics();
    let series = |start: &str| {
        let line = metrics.lines().find(|line| line.starts_with(start));
        let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("{start}: {metrics}"))
    };
    let updates = after["updates"].as_f64();
    assert_eq!(Some(series("selfjudge:train_updates_total{")), updates);
    assert_eq!(
        series(r#"selfjudge:train_stages_total{outcome="promoted""#),
        1.0
    );
    assert_eq!(
        series(r#"selfjudge:train_gate_passed{gate="win_rate""#),
        1.0
    );
    series(r#"selfjudge:train_last{number="loss""#);
    let serving = format!(r#"selfjudge:generation_info{{id="{id}",role="policy""#);
    assert_eq!(series(&serving), 1.0);
}

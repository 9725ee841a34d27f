//! Tests of the size of records: a record above the bound is not kept, and text that samples share is kept once.

use super::*;

#[test]
fn a_record_that_is_too_large_is_not_kept_and_that_is_said() {
    let config = keyed();
    let logged = logged_with(&config, TrafficConfig::default(), |log| LogConfig {
        max_record: 3000,
        ..log
    });
    let small = json!({"prompt": "x", "candidates": ["a", "b"], "log": {"retain": true}});
    let kept = posted("/judge", "a", &small).ok(&logged.server);
    assert!(kept["record_id"].is_string(), "{kept}");
    let principles: Vec<String> = (0..40).map(|at| format!("{at:0>60}")).collect();
    for body in [
        json!({"prompt": "x", "candidates": ["a".repeat(3000), "b"], "log": {"retain": true}}),
        json!({"prompt": "x", "candidates": ["a", "b"], "principles": principles, "log": {"retain": true}}),
    ] {
        let answer = posted("/judge", "a", &body).ok(&logged.server);
        assert_eq!(answer["logged"], false, "{answer}");
        assert!(answer.get("record_id").is_none(), "{answer}");
    }
    // An operator reads the metrics.
    let page = RUNTIME.block_on(async {
        let request = Request::get("/metrics")
            .header("x-api-key", "r")
            .body(Body::empty())
            .unwrap();
        text(logged.admin.clone().oneshot(request).await.unwrap()).await
    });
    let counted = "log_dropped_total{reason=\"record_too_large\",model_name=\"pocket\"} 2";
    assert!(page.contains(counted), "{page}");
}

#[test]
fn how_samples_were_drawn_is_kept_once_and_read_of_each() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let stop: Vec<String> = (0..16).map(|at| format!("{at:x>1024}")).collect();
    let body =
        json!({"prompt": "2 plus", "n": 8, "max_tokens": 1, "stop": stop, "log": {"retain": true}});
    let answer = posted("/generate", "a", &body).ok(&logged.server);
    let record = record_of(&logged.server, "a", &answer);
    let samples = record["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 8);
    for sample in samples {
        assert_eq!(sample["sampling"]["stop"], json!(stop), "{sample}");
    }
    let file = logged.dir.path().join("traffic.sqlite");
    let stored: u64 = ["", "-wal"]
        .iter()
        .filter_map(|end| std::fs::metadata(format!("{}{end}", file.display())).ok())
        .map(|file| file.len())
        .sum();
    let empty = logged_bytes_of_nothing();
    assert!(
        stored < empty + 4 * 16 * 1024,
        "{stored} bytes, {empty} without the record"
    );
}

/// Returns the bytes of a log without records.
fn logged_bytes_of_nothing() -> u64 {
    let logged = logged(&keyed(), TrafficConfig::default());
    let file = logged.dir.path().join("traffic.sqlite");
    let files = ["", "-wal"].iter();
    files
        .filter_map(|end| std::fs::metadata(format!("{}{end}", file.display())).ok())
        .map(|file| file.len())
        .sum()
}

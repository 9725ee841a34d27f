use super::*;

#[test]
fn everything_is_exported_under_the_prefix_and_the_model() {
    let metrics = Metrics::new("a \"model\"");
    metrics.engine.preemptions.inc();
    metrics
        .engine
        .requests_finished
        .with_label_values(&["stop"])
        .inc_by(2);
    metrics.judge.label_mass.observe(0.97);
    let text = metrics.render();
    let line = r#"selfjudge:num_preemptions_total{model_name="a \"model\""} 1"#;
    assert!(text.contains(line), "{text}");
    assert!(text.contains(r#"finished_reason="stop"#));
    assert!(
        text.contains(r#"selfjudge:judge_label_mass_bucket{model_name="a \"model\"",le="0.98"} 1"#)
    );
}

/// A rate over a series that starts with its first event misses that event.
#[test]
fn what_is_watched_is_there_from_the_start() {
    let text = Metrics::new("m").render();
    for (name, label, values) in [
        ("request_failure", "reason", &FAILURES[..]),
        ("request_success", "finished_reason", &FINISHES),
        ("http_rejected", "reason", &REFUSALS),
        ("log_dropped", "reason", &LOG_DROPS),
        ("log_feedback", "kind", &FEEDBACK),
    ] {
        for value in values {
            let line = format!(r#"selfjudge:{name}_total{{{label}="{value}",model_name="m"}} 0"#);
            assert!(text.contains(&line), "{line}: {text}");
        }
    }
}

/// Returns the edges of a histogram, as exported.
fn exported(metrics: &Metrics, name: &str) -> Vec<f64> {
    let families = metrics.registry.gather();
    let family = families
        .iter()
        .find(|f| f.name() == format!("selfjudge:{name}"));
    let buckets = family.unwrap().get_metric()[0].get_histogram().get_bucket();
    let edges = buckets.iter().map(|bucket| bucket.upper_bound());
    edges.filter(|edge| edge.is_finite()).collect()
}

/// The lists are copied from vLLM 0.11 (`vllm/v1/metrics/loggers.py`), not from the code above: with other edges a dashboard
/// moved over from vLLM would show other quantiles. Additional edges below its first one only add resolution.
#[rustfmt::skip] // lists
#[test]
fn the_edges_are_vllms() {
    let metrics = Metrics::new("test");
    let latency = [
        0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
        1920.0, 7680.0,
    ];
    for name in [
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
    ] {
        assert_eq!(exported(&metrics, name), [&[0.001, 0.01, 0.03, 0.1], &latency[..]].concat(), "{name}");
    }
    assert_eq!(
        exported(&metrics, "time_to_first_token_seconds"),
        [
            0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
            160.0, 640.0, 2560.0,
        ]
    );
    assert_eq!(
        exported(&metrics, "inter_token_latency_seconds"),
        [
            0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, // and then vLLM's
            0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
        ]
    );
    assert_eq!(
        exported(&metrics, "iteration_tokens_total"),
        [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0]
    );
    // The series 1, 2, 5, 10, …: in vLLM up to the model's context, here up to a million for every model.
    let tokens = exported(&metrics, "request_prompt_tokens");
    assert_eq!(tokens[..7], [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
    assert_eq!(tokens.last(), Some(&1e6));
    assert_eq!(exported(&metrics, "request_generation_tokens"), tokens);
}

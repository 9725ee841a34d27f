//! Tests of the files in `docker/`: their metrics exist in the server, and the files that they name exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use telemetry::Metrics;

fn docker(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docker")
        .join(path)
}

/// Returns the names of the server's metrics in a query.
fn names(query: &str) -> impl Iterator<Item = &str> {
    query.match_indices("selfjudge:").map(|(at, _)| {
        let end = query[at..].find(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
        &query[at..at + end.unwrap_or(query.len() - at)]
    })
}

/// Collects every string of a document under `key`.
fn strings<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| strings(value, key, found)),
        Value::Object(map) => {
            for (name, value) in map {
                match value {
                    Value::String(text) if name == key => found.push(text),
                    value => strings(value, key, found),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn every_metric_of_the_dashboard_exists() {
    let text = std::fs::read_to_string(docker("grafana/dashboards/selfjudge.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    strings(&dashboard, "expr", &mut queries);
    let exported: BTreeSet<String> = Metrics::new("x").names().into_iter().collect();
    let mut shown = BTreeSet::new();
    for query in &queries {
        let of_process = query.contains("process_");
        assert!(
            of_process || names(query).count() > 0,
            "{query} has no metric of the server"
        );
        for name in names(query) {
            let of_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .filter(|name| exported.contains(*name));
            assert!(
                exported.contains(name) || of_histogram.is_some(),
                "{query}: no metric {name} exists"
            );
            shown.insert(of_histogram.unwrap_or(name).to_owned());
        }
    }
    let missing: Vec<_> = exported
        .iter()
        .filter(|name| name.starts_with("selfjudge:") && !shown.contains(*name))
        .collect();
    assert!(missing.is_empty(), "no panel shows {missing:?}");
    // Annotations have their own queries.
    let marks = dashboard["annotations"]["list"].as_array().unwrap();
    assert!(marks.iter().all(|mark| mark["expr"].is_string()) && marks.len() >= 2);
    // Every panel has another id.
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().filter_map(|p| p["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len());
}

#[test]
fn every_metric_of_the_alerts_exists() {
    let rules = std::fs::read_to_string(docker("rules.yml")).unwrap();
    let exported: BTreeSet<String> = Metrics::new("x").names().into_iter().collect();
    let exprs = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    let mut alerts = 0;
    for expr in exprs {
        alerts += 1;
        for name in names(expr) {
            let name = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(exported.contains(name), "{expr}: no metric {name} exists");
        }
    }
    let named = rules.matches("- alert: ").count();
    assert!(alerts == named && alerts >= 10, "{alerts} of {named}");
}

#[test]
fn what_compose_mounts_is_there() {
    let compose = std::fs::read_to_string(docker("compose.yaml")).unwrap();
    let mut mounts = 0;
    for mount in compose.split('"').filter(|part| part.starts_with("./")) {
        let source = mount.split(':').next().unwrap();
        assert!(docker(source).exists(), "{mount}");
        mounts += 1;
    }
    assert!(mounts >= 4, "{compose}");
}

#[test]
fn compose_publishes_nothing_but_on_this_machine_and_prometheus_reads_the_listener_for_metrics() {
    let compose = std::fs::read_to_string(docker("compose.yaml")).unwrap();
    let ports: Vec<&str> = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ports: "))
        .collect();
    assert_eq!(ports.len(), 3, "{compose}");
    for published in ports {
        assert!(published.starts_with("[\"127.0.0.1:"), "{published}");
    }
    let port = compose
        .split("SELFJUDGE_METRICS_LISTEN: 0.0.0.0:")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    let scrape = std::fs::read_to_string(docker("prometheus.yml")).unwrap();
    let target = format!("\"selfjudge:{}\"", port.unwrap());
    assert!(scrape.contains(&target), "{scrape}");
}

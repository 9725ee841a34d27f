//! Tests of spans: every call has one, as a line of the log and at a collector; and the server works without a collector.

use std::net::TcpListener;
use std::sync::mpsc;

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::{Value, json};

use crate::http::RUNTIME;
use crate::patience::{PATIENCE, client, eventually};
use crate::process::Server;

/// Starts a collector on a port of its own. Returns its address and the bodies that it receives.
fn collector() -> (String, mpsc::Receiver<Bytes>) {
    let (sender, received) = mpsc::channel();
    let take = move |body: Bytes| {
        // The test may have ended and dropped the receiver.
        let _ = sender.send(body);
        async {}
    };
    let listener = RUNTIME
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new().route("/v1/traces", post(take));
    RUNTIME.spawn(async move { axum::serve(listener, routes).await });
    (format!("http://{address}"), received)
}

fn attribute(span: &Span, name: &str) -> Option<Attribute> {
    let found = span.attributes.iter().find(|found| found.key == name)?;
    found.value.as_ref()?.value.clone()
}

fn seconds(span: &Span, name: &str) -> f64 {
    match attribute(span, name) {
        Some(Attribute::DoubleValue(seconds)) => seconds,
        other => panic!("{name} is {other:?} of {span:?}"),
    }
}

fn number(span: &Span, name: &str) -> i64 {
    match attribute(span, name) {
        Some(Attribute::IntValue(number)) => number,
        other => panic!("{name} is {other:?} of {span:?}"),
    }
}

/// Waits for the span of the request with this id.
fn span_of(id: &str, received: &mpsc::Receiver<Bytes>, seen: &mut Vec<Span>) -> Span {
    let named = |span: &&Span| attribute(span, "id") == Some(Attribute::StringValue(id.into()));
    loop {
        if let Some(span) = seen.iter().find(named) {
            return span.clone();
        }
        let body = received
            .recv_timeout(PATIENCE)
            .expect("the collector must receive a span");
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        for resource in request.resource_spans {
            let about = resource.resource.unwrap_or_default().attributes;
            assert!(about.iter().any(|it| it.key == "service.name"));
            let scopes = resource.scope_spans.into_iter();
            seen.extend(scopes.flat_map(|scope| scope.spans));
        }
    }
}

#[test]
fn a_collector_is_sent_the_times_of_every_call() {
    let (url, received) = collector();
    let server = Server::start(&["--otlp-endpoint", &url]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let ask = |id: &str, path: &str, body: Value| {
        let request = client().post(server.url(path)).json(&body);
        let request = request.header("x-request-id", id);
        let parent = format!("00-{trace}-00f067aa0ba902b7-01");
        let answer = request.header("traceparent", parent).send().unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().unwrap()
    };
    let prompt = "What is 34 plus 28?";
    let whole = ask("whole", "/generate", json!({"prompt": prompt, "n": 2}));
    ask(
        "pieces",
        "/generate",
        json!({"prompt": prompt, "stream": true}),
    );
    let judged = ask(
        "judged",
        "/judge",
        json!({"prompt": prompt, "candidates": ["62", "52", "60"]}),
    );
    ask("counted", "/tokenize", json!({"text": prompt}));

    let mut seen = Vec::new();
    for id in ["whole", "pieces", "judged"] {
        let span = span_of(id, &received, &mut seen);
        assert_eq!(span.name, "request");
        assert_eq!(span.kind(), SpanKind::Server);
        let hex: String = span.trace_id.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, trace, "the span must be part of the caller's trace");
        for name in ["queue_seconds", "prefill_seconds", "decode_seconds"] {
            let seconds = seconds(&span, name);
            assert!(seconds.is_finite() && seconds >= 0.0, "{name}: {seconds}");
        }
        assert!(
            seconds(&span, "prefill_seconds") > 0.0,
            "the span must have a time of computing"
        );
        assert_eq!(number(&span, "status"), 200);
    }
    let usage = |answer: &str| serde_json::from_str::<Value>(answer).unwrap()["usage"].clone();
    let (span, usage_of) = (span_of("whole", &received, &mut seen), usage(&whole));
    let generated = usage_of["completion_tokens"].as_i64().unwrap();
    assert_eq!(number(&span, "generated_tokens"), generated);
    assert!(seconds(&span, "decode_seconds") > 0.0);
    // Two samples share one prompt, which is computed once.
    assert_eq!(
        number(&span, "prompt_tokens"),
        usage_of["prompt_tokens"].as_i64().unwrap()
    );
    let (span, usage_of) = (span_of("judged", &received, &mut seen), usage(&judged));
    assert_eq!(
        number(&span, "prompt_tokens"),
        usage_of["prompt_tokens"].as_i64().unwrap()
    );
    // A call that needs no engine has a span without times of the engine.
    let span = span_of("counted", &received, &mut seen);
    assert_eq!(attribute(&span, "queue_seconds"), None);
    assert_eq!(number(&span, "status"), 200);
}

#[test]
fn a_collector_that_is_down_or_silent_disturbs_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let down = {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap()
    };
    for address in [silent.local_addr().unwrap(), down] {
        let mut server = Server::start(&["--otlp-endpoint", &format!("http://{address}")]);
        let client = client();
        for seed in 0..30 {
            let body = json!({"prompt": "What is 34 plus 28?", "seed": seed});
            let answer = client.post(server.url("/generate")).json(&body).send();
            assert_eq!(answer.unwrap().status(), 200);
        }
        server.signal(libc::SIGTERM);
        assert!(server.wait().success());
    }
}

#[test]
fn an_endpoint_that_is_no_address_is_refused_at_start() {
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_selfjudge"))
        .args(["openapi", "--otlp-endpoint", "localhost:4318"])
        .output()
        .unwrap();
    assert!(!run.status.success());
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(
        said.contains("localhost:4318") && said.contains("http://"),
        "{said}"
    );
}

#[test]
fn the_log_has_a_line_of_json_for_every_call() {
    let server = Server::start(&["--log-format", "json"]);
    let body = json!({"prompt": "What is 34 plus 28?"});
    let request = client().post(server.url("/generate")).json(&body);
    let answer = request.header("x-request-id", "mine").send().unwrap();
    assert_eq!(answer.status(), 200);
    let line = eventually("the line of the call", || {
        let lines = server.said().into_iter();
        let parsed = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        let mut mine = parsed.filter(|line| line["span"]["id"] == "mine");
        mine.find(|line| line["message"] == "answered")
    });
    let span = &line["span"];
    assert_eq!(
        (&line["level"], &span["status"]),
        (&json!("INFO"), &json!(200))
    );
    assert_eq!(span["route"], "/generate");
    for name in ["queue_seconds", "prefill_seconds", "decode_seconds"] {
        assert!(span[name].is_number(), "{name} of {line}");
    }
}

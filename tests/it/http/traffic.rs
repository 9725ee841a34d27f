//! Tests of the log: which calls are kept and for whom, what their records hold, and what happens when a call cannot be kept.

use axum::body::BodyDataStream;
use futures::StreamExt;
use selfjudge::service::{OnLogFailure, Permitted};
use traffic_log::Consent;

use super::*;
use crate::patience::until;

const RETAIN: Consent = Consent {
    retain: true,
    train: false,
};

/// Returns the ids of a list.
fn ids(list: &Value) -> Vec<u64> {
    let list = list.as_array().unwrap_or_else(|| panic!("{list}"));
    list.iter().map(|id| id.as_u64().unwrap()).collect()
}

fn numbers(list: &Value) -> Vec<f32> {
    let list = list.as_array().unwrap_or_else(|| panic!("{list}"));
    list.iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn a_call_is_kept_if_the_server_the_key_and_the_call_agree() {
    let both = Consent {
        retain: true,
        train: true,
    };
    let (nothing, all) = (Consent::default(), Permitted::default());
    // The columns: the server's default, its ceiling, the key, the call's `log` field, and the consent of the record, if there is
    // one.
    for (default, allowed, key, log, kept) in [
        (nothing, all, "a", json!(null), None),
        (nothing, all, "a", json!({}), None),
        (
            nothing,
            all,
            "a",
            json!({"retain": true}),
            Some((true, false)),
        ),
        (
            nothing,
            all,
            "a",
            json!({"train": true}),
            Some((true, true)),
        ),
        (
            nothing,
            all,
            "a",
            json!({"retain": true, "train": true}),
            Some((true, true)),
        ),
        (RETAIN, all, "a", json!(null), Some((true, false))),
        (RETAIN, all, "a", json!({"retain": false}), None),
        (both, all, "a", json!(null), Some((true, true))),
        (both, all, "a", json!({"train": false}), Some((true, false))),
        (both, all, "c", json!({"train": true}), Some((true, false))),
        (both, all, "d", json!({"train": true}), None),
        (
            both,
            Permitted(RETAIN),
            "a",
            json!({"train": true}),
            Some((true, false)),
        ),
        (both, Permitted(nothing), "a", json!({"retain": true}), None),
    ] {
        let traffic = TrafficConfig {
            default,
            allowed,
            ..TrafficConfig::default()
        };
        let logged = logged(&keyed(), traffic);
        let body = json!({"prompt": "What is 3 plus 4?", "max_tokens": 3, "log": log});
        let answer = posted("/generate", key, &body).ok(&logged.server);
        let case = format!("{default:?} {allowed:?} {key} {log}: {answer}");
        let Some((retain, train)) = kept else {
            assert!(answer.get("record_id").is_none(), "{case}");
            let asked = log["retain"] == true || log["train"] == true;
            assert_eq!(
                answer.get("logged"),
                asked.then_some(&json!(false)),
                "{case}"
            );
            assert_eq!(logged.log.stats().records, 0, "{case}");
            continue;
        };
        let record = record_of(&logged.server, key, &answer);
        assert_eq!(
            record["log"],
            json!({"retain": retain, "train": train}),
            "{case}"
        );
        assert!(answer.get("logged").is_none(), "{case}");
    }
}

#[test]
fn a_record_holds_what_was_drawn_and_how() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let mut body = json!({"prompt": "What is 34 plus 28?", "n": 3, "max_tokens": 6, "temperature": 0.7, "top_p": 0.6,
        "log": {"retain": true}});
    let answer = posted("/generate", "a", &body).ok(&logged.server);
    let record = record_of(&logged.server, "a", &answer);
    assert_eq!(record["kind"], "generate");
    assert_eq!(
        record["prompt"],
        json!([{"role": "user", "content": "What is 34 plus 28?"}])
    );
    assert_eq!(
        record["prompt_token_ids"].as_array().unwrap().len() as u64,
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    );
    let samples = record["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3);
    for (sample, output) in samples.iter().zip(answer["outputs"].as_array().unwrap()) {
        assert_eq!(sample["token_ids"], output["token_ids"]);
        assert_eq!(sample["text"], output["text"]);
        assert_eq!(sample["finish_reason"], output["finish_reason"]);
        assert!(
            output.get("logprobs").is_none(),
            "log-probabilities were not asked for"
        );
        assert_eq!(sample["sampling"]["top_p"], json!(0.6f32));
        assert_eq!(sample["sampling"]["max_tokens"], 6);
        assert!(!sample["version"].as_str().unwrap().is_empty());
    }
    // The drawn seed gives the same answer again. Its raw log-probabilities are those of the record, whatever the sampling
    // parameters are.
    body["seed"] = samples[0]["seed"].clone();
    body["logprobs"] = json!(1);
    let again = posted("/generate", "a", &body).ok(&logged.server);
    for (sample, output) in samples.iter().zip(again["outputs"].as_array().unwrap()) {
        assert_eq!(ids(&sample["token_ids"]), ids(&output["token_ids"]));
        let raw = output["logprobs"].as_array().unwrap().iter();
        let raw: Vec<f32> = raw
            .map(|token| token["logprob"].as_f64().unwrap() as f32)
            .collect();
        assert_eq!(numbers(&sample["logprobs"]), raw);
    }
}

#[test]
fn every_match_of_a_tournament_is_a_verdict_and_a_pair() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let body = json!({"prompt": "What is 34 plus 28?", "best_of": 6, "seed": 5, "log": {"retain": true, "train": true},
        "judge": {"orders": "both"}});
    let answer = posted("/generate", "a", &body).ok(&logged.server);
    let record = record_of(&logged.server, "a", &answer);
    assert_eq!(
        record["samples"].as_array().unwrap().len(),
        6,
        "the record must have all candidates"
    );
    let rounds = answer["tournament"]["rounds"].as_array().unwrap();
    let matches = rounds.iter().flat_map(|round| round.as_array().unwrap());
    let text = |index: &Value| &record["samples"][index.as_u64().unwrap() as usize]["text"];
    // Equal answers are not judged.
    let judged: Vec<&Value> = matches.filter(|m| text(&m["a"]) != text(&m["b"])).collect();
    let verdicts = record["verdicts"].as_array().unwrap();
    assert_eq!(verdicts.len(), judged.len());
    assert!(!judged.is_empty());
    for (verdict, played) in verdicts.iter().zip(&judged) {
        assert_eq!((&verdict["a"], &verdict["b"]), (&played["a"], &played["b"]));
        assert_eq!(
            verdict["p"].as_f64().unwrap() as f32,
            played["p_a"].as_f64().unwrap() as f32
        );
        assert_eq!(verdict["principles"], json!([]));
        let orders = numbers(&verdict["orders"]);
        let p = verdict["p"].as_f64().unwrap() as f32;
        assert!(
            ((orders[0] + orders[1]) / 2.0 - p).abs() < 1e-4,
            "{verdict}"
        );
    }
    let winners = judged.iter().filter(|m| !m["winner"].is_null());
    let pairs = record["pairs"].as_array().unwrap();
    let chosen: Vec<&Value> = pairs.iter().map(|pair| &pair["chosen"]).collect();
    let won: Vec<&Value> = winners.map(|m| &m["winner"]).collect();
    assert_eq!(chosen, won);
    assert!(pairs.iter().all(|pair| pair["source"] == "tournament"));
}

#[test]
fn what_was_judged_is_kept_with_its_verdicts() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let mut body = json!({"prompt": "What is 34 plus 28?", "candidates": ["62", "[52]"], "principles": ["correct", "brief"],
        "log": {"retain": true}});
    let answer = posted("/judge", "a", &body).ok(&logged.server);
    let record = record_of(&logged.server, "a", &answer);
    assert_eq!(record["kind"], "judge");
    let samples = record["samples"].as_array().unwrap();
    let texts: Vec<&Value> = samples.iter().map(|sample| &sample["text"]).collect();
    assert_eq!(texts, ["62", "[52]"]);
    assert!(
        samples
            .iter()
            .all(|sample| sample["finish_reason"].is_null())
    );
    let verdict = &record["verdicts"][0];
    assert_eq!(verdict["principles"], json!(["correct", "brief"]));
    assert_eq!(verdict["version"], answer["version"]);
    assert_eq!(
        verdict["p"].as_f64().unwrap() as f32,
        answer["p"].as_f64().unwrap() as f32
    );
    // Verdicts under a caller's own principles make no pairs.
    assert_eq!(record["pairs"], json!([]));
    body["principles"] = json!([]);
    let answer = posted("/judge", "a", &body).ok(&logged.server);
    let record = record_of(&logged.server, "a", &answer);
    assert_eq!(record["pairs"][0]["chosen"], answer["winner"]);

    body["candidates"] = json!(["62", "52", "63", "Sure! 62."]);
    let answer = posted("/judge", "a", &body).ok(&logged.server);
    let record = record_of(&logged.server, "a", &answer);
    assert_eq!(record["verdicts"].as_array().unwrap().len(), 3);
    body["log"] = json!(null);
    assert!(
        posted("/judge", "a", &body)
            .ok(&logged.server)
            .get("record_id")
            .is_none()
    );
}

#[test]
fn a_stream_names_its_record_at_the_end() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let body = json!({"prompt": "Spell piano with hyphens.", "n": 2, "seed": 3, "stream": true, "log": {"retain": true}});
    let stream = |path, body: &Value| {
        let stream = RUNTIME
            .block_on(async { text(posted(path, "a", body).response(&logged.server).await).await });
        events_of(&stream)
    };
    let events = stream("/generate", &body);
    let (last, pieces) = events.split_last().unwrap();
    assert!(last["usage"].is_object());
    assert!(pieces.iter().all(|event| event.get("record_id").is_none()));
    let record = record_of(&logged.server, "a", last);
    let mut drawn = [Vec::new(), Vec::new()];
    for output in pieces
        .iter()
        .flat_map(|event| event["outputs"].as_array().unwrap())
    {
        drawn[output["index"].as_u64().unwrap() as usize].extend(ids(&output["token_ids"]));
        assert!(output.get("logprobs").is_none());
    }
    for (sample, drawn) in record["samples"].as_array().unwrap().iter().zip(drawn) {
        assert_eq!(ids(&sample["token_ids"]), drawn);
        assert_eq!(numbers(&sample["logprobs"]).len(), drawn.len());
        assert_eq!(sample["finish_reason"], "stop");
    }
    // OpenAI's streams have no event of the record at their end, unless the call asks for a record.
    let mut chat =
        json!({"messages": [{"role": "user", "content": "What is 3 plus 4?"}], "stream": true});
    assert!(
        stream("/v1/chat/completions", &chat)
            .iter()
            .all(|event| event["choices"] != json!([]))
    );
    chat["log"] = json!({"retain": true});
    let events = stream("/v1/chat/completions", &chat);
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], last.get("usage")), (&json!([]), None));
    record_of(&logged.server, "a", last);
    let completion =
        json!({"prompt": ["2 plus", "3 plus"], "max_tokens": 4, "log": {"retain": true}});
    let answer = posted("/v1/completions", "a", &completion).ok(&logged.server);
    let records = answer["record_ids"].as_array().unwrap();
    assert_eq!(records.len(), 2);
    for (id, prompt) in records.iter().zip(["2 plus", "3 plus"]) {
        assert_eq!(
            record_of(&logged.server, "a", &json!({"record_id": id}))["prompt"],
            prompt
        );
    }
}

#[test]
fn what_a_reader_had_who_left_is_kept_as_aborted() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let body = json!({"prompt": "What is 34 plus 28?", "ignore_eos": true, "max_tokens": 400, "n": 2, "stream": true,
        "log": {"retain": true}});
    let call = Call {
        idempotency: Some("left"),
        ..posted("/generate", "a", &body)
    };
    RUNTIME.block_on(async {
        let mut pieces: BodyDataStream = call
            .response(&logged.server)
            .await
            .into_body()
            .into_data_stream();
        pieces.next().await.unwrap().unwrap();
        drop(pieces);
        until(async || logged.log.stats().records == 1).await;
    });
    // The idempotency key still names the record.
    let mut whole = body.clone();
    whole["stream"] = json!(false);
    let again = Call {
        idempotency: Some("left"),
        ..posted("/generate", "a", &whole)
    };
    let record = record_of(&logged.server, "a", &again.ok(&logged.server));
    let samples = record["samples"].as_array().unwrap();
    assert!(!samples.is_empty());
    for sample in samples {
        assert_eq!(sample["finish_reason"], "aborted");
        assert_eq!(
            numbers(&sample["logprobs"]).len(),
            ids(&sample["token_ids"]).len()
        );
    }
}

#[test]
fn a_call_made_again_under_its_name_is_no_second_record() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let body = json!({"prompt": "Reverse the word piano.", "n": 2, "log": {"retain": true}});
    let named = |key, name| Call {
        idempotency: Some(name),
        ..posted("/generate", key, &body)
    };
    let first = named("a", "one").ok(&logged.server);
    let again = named("a", "one").ok(&logged.server);
    assert_eq!(again["record_id"], first["record_id"]);
    assert_eq!(
        again["outputs"], first["outputs"],
        "the same seed must give the same text"
    );
    for (key, name) in [("a", "two"), ("b", "one")] {
        assert_ne!(
            named(key, name).ok(&logged.server)["record_id"],
            first["record_id"]
        );
    }
    assert_eq!(logged.log.stats().records, 3);
    let (status, answer) = named("a", " ").of(&logged.server);
    assert_eq!(
        (status, &answer["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!("Idempotency-Key"))
    );
}

#[test]
fn a_log_that_takes_nothing_is_gone_without_or_refuses() {
    let body = json!({"prompt": "What is 3 plus 4?", "max_tokens": 3, "log": {"retain": true}});
    let broken = |on_failure| {
        let traffic = TrafficConfig {
            on_failure,
            ..TrafficConfig::default()
        };
        let logged = logged(&HttpConfig::default(), traffic);
        RUNTIME.block_on(logged.log.close());
        logged
    };
    let serving = broken(OnLogFailure::ServeUnlogged);
    let (status, answer) = RUNTIME.block_on(post_to(&serving.server, "/generate", &body));
    assert_eq!((status, &answer["logged"]), (StatusCode::OK, &json!(false)));
    assert!(answer.get("record_id").is_none());
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    RUNTIME.block_on(async {
        let stream = text(call(&serving.server, "/generate", streamed.to_string()).await).await;
        assert_eq!(events_of(&stream).last().unwrap()["logged"], false);
        let dropped = r#"log_dropped_total{reason="unavailable",model_name="pocket"} 2"#;
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let page = text(serving.server.clone().oneshot(request).await.unwrap()).await;
        assert!(page.contains(dropped), "{page}");
    });

    let refusing = broken(OnLogFailure::Refuse);
    RUNTIME.block_on(async {
        for _ in 0..2 {
            let response = call(&refusing.server, "/generate", body.to_string()).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(response.headers().contains_key("retry-after"));
            assert!(text(response).await.contains("log_unavailable"));
        }
        let unlogged = json!({"prompt": "What is 3 plus 4?", "max_tokens": 3});
        let response = call(&refusing.server, "/generate", unlogged.to_string()).await;
        assert_eq!(
            response.status(),
            StatusCode::OK,
            "a call without a record must not need the log"
        );
    });
}

#[test]
fn what_is_kept_is_counted() {
    let traffic = TrafficConfig {
        default: RETAIN,
        ..TrafficConfig::default()
    };
    let logged = logged(&HttpConfig::default(), traffic);
    RUNTIME.block_on(async {
        for _ in 0..3 {
            call(
                &logged.server,
                "/generate",
                r#"{"prompt": "2 plus", "max_tokens": 1}"#,
            )
            .await;
        }
        for (name, value) in [
            ("log_commits_total", 3.0),
            ("log_commit_seconds_count", 3.0),
            ("log_records", 3.0),
            ("log_queue_depth", 0.0),
            ("log_healthy", 1.0),
        ] {
            assert_eq!(metric(&logged.server, name).await, value, "{name}");
        }
        assert!(metric(&logged.server, "log_commit_lag_seconds").await > 0.0);
    });
}

#[test]
fn a_server_without_a_log_says_so() {
    let body = json!({"prompt": "x", "log": {"retain": true}});
    for path in ["/generate", "/v1/completions"] {
        let (status, answer) = post(path, &body);
        assert_eq!(
            (status, &answer["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!("log"))
        );
        assert!(
            answer["error"]["message"]
                .as_str()
                .unwrap()
                .contains("keeps no log")
        );
    }
    ok(
        "/generate",
        &json!({"prompt": "x", "max_tokens": 1, "log": {"retain": false}}),
    );
    let id = "/records/01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for (method, path) in [("GET", id), ("DELETE", id), ("DELETE", "/records")] {
        let call = Call {
            method,
            path,
            ..Call::default()
        };
        let (status, answer) = call.of(&SERVER);
        assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}");
        assert_eq!(answer["error"]["code"], "no_log", "{method} {path}");
    }
    let (status, answer) = post(
        "/feedback",
        &json!({"record_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "thumbs": "up"}),
    );
    assert_eq!(
        (status, &answer["error"]["code"]),
        (StatusCode::NOT_FOUND, &json!("no_log"))
    );
}

#[test]
fn what_a_call_says_of_its_uses_must_make_sense() {
    let logged = logged(&HttpConfig::default(), TrafficConfig::default());
    for (log, param) in [
        (json!({"retain": false, "train": true}), "log"),
        (json!({"retain": "yes"}), "log.retain"),
        (json!({"keep": true}), "log.keep"),
        (json!(true), "log"),
    ] {
        let body = json!({"prompt": "x", "log": log});
        let (status, answer) = RUNTIME.block_on(post_to(&logged.server, "/generate", &body));
        assert_eq!(status, StatusCode::BAD_REQUEST, "{log}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{log}: {answer}");
    }
}

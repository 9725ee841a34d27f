//! Tests of `/v1/responses` as typed events, and of the records of its calls.

use super::responses::{PATH, QUESTION, text_of, with};
use super::*;

/// Returns the events of a stream: the name in the event line, and the data.
fn typed_events(body: &Value) -> Vec<(String, Value)> {
    let stream =
        RUNTIME.block_on(async { text(call(&SERVER, PATH, body.to_string()).await).await });
    typed_events_of(&stream)
}

fn typed_events_of(stream: &str) -> Vec<(String, Value)> {
    let events = stream
        .split_terminator("\n\n")
        .filter(|event| *event != ":");
    let parsed = events.map(|event| {
        let (name, data) = event.split_once('\n').unwrap_or_else(|| panic!("{event}"));
        let name = name
            .strip_prefix("event: ")
            .unwrap_or_else(|| panic!("{event}"));
        let data = data
            .strip_prefix("data: ")
            .unwrap_or_else(|| panic!("{event}"));
        (name.to_owned(), serde_json::from_str(data).unwrap())
    });
    parsed.collect()
}

#[test]
fn a_stream_is_the_documented_events_in_their_order() {
    for (tokens, last) in [(64, "response.completed"), (2, "response.incomplete")] {
        for logprobs in [false, true] {
            let mut asked = with("max_output_tokens", &json!(tokens));
            asked["metadata"] = json!({"a": "b"});
            if logprobs {
                asked["include"] = json!(["message.output_text.logprobs"]);
                asked["top_logprobs"] = json!(1);
            }
            let whole = ok(PATH, &asked);
            asked["stream"] = json!(true);
            let events = typed_events(&asked);
            for (at, (name, event)) in events.iter().enumerate() {
                assert_eq!(
                    (&event["type"], &event["sequence_number"]),
                    (&json!(name), &json!(at))
                );
            }
            let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
            let deltas = names
                .iter()
                .filter(|name| **name == "response.output_text.delta")
                .count();
            assert!(deltas >= 1, "{names:?}");
            let expected: Vec<&str> = [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
            ]
            .into_iter()
            .chain(std::iter::repeat_n("response.output_text.delta", deltas))
            .chain([
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                last,
            ])
            .collect();
            assert_eq!(names, expected);

            let at = |name: &str| &events[names.iter().position(|known| *known == name).unwrap()].1;
            for name in ["response.created", "response.in_progress"] {
                let response = &at(name)["response"];
                assert_eq!(
                    (
                        &response["status"],
                        &response["output"],
                        &response["usage"],
                        &response["metadata"]
                    ),
                    (
                        &json!("in_progress"),
                        &json!([]),
                        &Value::Null,
                        &json!({"a": "b"})
                    )
                );
            }
            let item = &at("response.output_item.added")["item"];
            assert_eq!(
                (&item["status"], &item["content"]),
                (&json!("in_progress"), &json!([]))
            );
            assert_eq!(at("response.content_part.added")["part"]["text"], "");
            let of = |name: &'static str| events.iter().filter(move |(known, _)| known == name);
            let text: String = of("response.output_text.delta")
                .map(|(_, event)| event["delta"].as_str().unwrap())
                .collect();
            let told: Vec<Value> = of("response.output_text.delta")
                .flat_map(|(_, event)| event["logprobs"].as_array().unwrap().clone())
                .collect();
            for (_, event) in of("response.output_text.delta") {
                assert_eq!(event["item_id"], item["id"]);
                assert_eq!(
                    (&event["output_index"], &event["content_index"]),
                    (&json!(0), &json!(0))
                );
            }
            let part = &whole["output"][0]["content"][0];
            assert_eq!(part["text"], text);
            assert_eq!(part["logprobs"], json!(told));
            let done = at("response.output_text.done");
            assert_eq!(
                (&done["text"], &done["logprobs"]),
                (&part["text"], &part["logprobs"])
            );
            assert_eq!(at("response.content_part.done")["part"], *part);
            assert_eq!(at("response.output_item.done")["item"]["id"], item["id"]);
            // The last event has the whole response, as without a stream.
            let mut response = at(last)["response"].clone();
            assert_eq!(response["id"], at("response.created")["response"]["id"]);
            assert_eq!(
                response["output"][0],
                at("response.output_item.done")["item"]
            );
            let mut plain = whole;
            for answer in [&mut response, &mut plain] {
                for name in ["id", "created_at", "completed_at", "usage"] {
                    assert!(!answer[name].take().is_null(), "{name}");
                }
                answer["output"][0]["id"].take();
            }
            assert_eq!(response, plain);
        }
    }
}

#[test]
fn a_stream_that_fails_says_so_in_its_last_events() {
    let asked = json!({"input": QUESTION, "ignore_eos": true, "max_output_tokens": 480, "timeout": 1e-6, "stream": true});
    let events = typed_events(&asked);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.first(), Some(&"response.created"), "{names:?}");
    assert!(names.ends_with(&["error", "response.failed"]), "{names:?}");
    let numbers: Vec<u64> = events
        .iter()
        .map(|(_, event)| event["sequence_number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let [(_, error), (_, failed)] = &events[events.len() - 2..] else {
        panic!("{events:?}");
    };
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("deadline_exceeded"), &json!("timeout"))
    );
    let response = &failed["response"];
    assert_eq!(
        (&response["status"], &response["error"]["code"]),
        (&json!("failed"), &json!("server_error"))
    );
    assert_eq!(response["error"]["message"], error["message"]);
}

/// Records, consent, idempotency keys and quota follow the same rules as for chats.
#[test]
fn a_response_is_kept_and_named_as_a_chat_is() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let asked = json!({"input": QUESTION, "instructions": "Be brief.", "max_output_tokens": 8, "log": {"retain": true, "train": true}});
    let answer = posted(PATH, "a", &asked).ok(&logged.server);
    let record = record_of(&logged.server, "a", &answer);
    assert_eq!(
        record["prompt"],
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}])
    );
    assert_eq!(record["samples"][0]["text"], text_of(&answer));
    assert_eq!(record["log"], json!({"retain": true, "train": true}));
    // Another caller cannot read the record, and a caller without consent has none.
    let id = answer["record_id"].as_str().unwrap();
    let path = format!("/records/{id}");
    let other = Call {
        method: "GET",
        path: &path,
        key: Some("b"),
        ..Call::default()
    };
    assert_eq!(other.of(&logged.server).0, StatusCode::NOT_FOUND);
    let unkept = posted(PATH, "d", &asked).ok(&logged.server);
    assert_eq!(
        (unkept.get("record_id"), &unkept["logged"]),
        (None, &json!(false))
    );

    let named = Call {
        idempotency: Some("once"),
        ..posted(PATH, "a", &asked)
    };
    let (first, again) = (named.ok(&logged.server), named.ok(&logged.server));
    assert_eq!(first["record_id"], again["record_id"]);
    assert_eq!(text_of(&first), text_of(&again));
    let mut other = asked.clone();
    other["input"] = json!("2 plus");
    let (status, error) = Call {
        body: Some(&other),
        ..named
    }
    .of(&logged.server);
    assert_eq!(
        (status, &error["error"]["code"]),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            &json!("idempotency_key_reused")
        )
    );
    assert_eq!(
        Call { key: None, ..named }.of(&logged.server).0,
        StatusCode::UNAUTHORIZED
    );

    let mut streamed = asked;
    streamed["stream"] = json!(true);
    let stream = RUNTIME.block_on(async {
        text(posted(PATH, "a", &streamed).response(&logged.server).await).await
    });
    let events = typed_events_of(&stream);
    let response = &events.last().unwrap().1["response"];
    let record = record_of(&logged.server, "a", response);
    assert_eq!(record["samples"][0]["text"], text_of(response));
}

//! Tests of tools that are offered, called and answered, on a model without its own tool format. Refusals are in
//! `tools_refused.rs`.

use std::collections::HashSet;

use super::*;

pub(super) const CHAT: &str = "/v1/chat/completions";

pub(super) fn tool(name: &str, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

pub(super) fn tools() -> Value {
    json!([
        tool(
            "weather",
            &json!({"type": "object", "properties": {"city": {"enum": ["Bonn", "Köln", "a \"b\" <|end|>"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
                    "required": ["city", "days"]}),
        ),
        tool("now", &json!({"type": "object", "properties": {}})),
    ])
}

pub(super) fn body(choice: Value) -> Value {
    json!({"messages": [{"role": "user", "content": "Weather?"}], "tools": tools(), "tool_choice": choice, "max_tokens": 200})
}

pub(super) fn named(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

/// Checks a tool call against the schemas, and returns the name of its function.
fn checked(call: &Value) -> String {
    let id = call["id"].as_str().unwrap();
    assert!(id.starts_with("call_") && id.len() > 20, "{call}");
    assert_eq!(call["type"], "function");
    let name = call["function"]["name"].as_str().unwrap();
    let arguments = call["function"]["arguments"].as_str().unwrap();
    let Value::Object(arguments) = serde_json::from_str(arguments).unwrap() else {
        panic!("{call}");
    };
    match name {
        "weather" => {
            let cities = ["Bonn", "Köln", "a \"b\" <|end|>"];
            assert!(
                cities.contains(&arguments["city"].as_str().unwrap()),
                "{call}"
            );
            assert!(
                (1..=9).contains(&arguments["days"].as_u64().unwrap()),
                "{call}"
            );
            assert_eq!(arguments.len(), 2);
        }
        "now" => assert!(arguments.is_empty(), "{call}"),
        other => panic!("{other} was not offered"),
    }
    name.to_owned()
}

/// Builds the message and the finish reason of a choice from its events, as a client does.
fn accumulated(events: &[Value], index: usize) -> (Value, Value) {
    let mut message = json!({"role": null, "content": null});
    let (mut calls, mut finish) = (Vec::<Value>::new(), Value::Null);
    for event in events {
        for choice in event["choices"].as_array().unwrap() {
            if choice["index"] != index {
                continue;
            }
            assert_eq!(finish, Value::Null, "no event may follow the finish reason");
            let delta = &choice["delta"];
            if let Some(role) = delta.get("role") {
                assert_eq!(message["role"], Value::Null);
                message["role"] = role.clone();
            }
            assert_ne!(
                message["role"],
                Value::Null,
                "the first event must have the role"
            );
            if let Some(text) = delta.get("content") {
                let before = message["content"].as_str().unwrap_or_default();
                message["content"] = json!(format!("{before}{}", text.as_str().unwrap()));
            }
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let at = call["index"].as_u64().unwrap() as usize;
                let more = call["function"]["arguments"].as_str().unwrap();
                if at == calls.len() {
                    assert_eq!(
                        more, "",
                        "the first event of a tool call must have no arguments"
                    );
                    let mut call = call.clone();
                    call.as_object_mut().unwrap().remove("index");
                    calls.push(call);
                } else {
                    assert_eq!(at + 1, calls.len());
                    assert!(call.get("id").is_none() && call.get("type").is_none());
                    assert!(call["function"].get("name").is_none() && !more.is_empty());
                    let arguments = &mut calls[at]["function"]["arguments"];
                    *arguments = json!(format!("{}{more}", arguments.as_str().unwrap()));
                }
            }
            finish = choice["finish_reason"].clone();
        }
    }
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    (message, finish)
}

fn without_ids(mut message: Value) -> Value {
    for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
        call["id"] = json!("call");
    }
    message
}

#[test]
fn required_and_named_calls_are_bound_whatever_the_model_would_say() {
    let (mut functions, mut counts, mut ids) = (HashSet::new(), HashSet::new(), HashSet::new());
    for seed in 0..12 {
        let mut body = body(json!("required"));
        body["seed"] = json!(seed);
        body["n"] = json!(2);
        let answer = ok(CHAT, &body);
        for choice in answer["choices"].as_array().unwrap() {
            let message = &choice["message"];
            assert_eq!(message["content"], Value::Null, "{answer}");
            if choice["finish_reason"] == "length" {
                continue;
            }
            assert_eq!(choice["finish_reason"], "tool_calls");
            let calls = message["tool_calls"].as_array().unwrap();
            counts.insert(calls.len());
            for call in calls {
                functions.insert(checked(call));
                assert!(ids.insert(call["id"].clone()), "ids must differ");
            }
        }
        body["parallel_tool_calls"] = json!(false);
        let answer = ok(CHAT, &body);
        for choice in answer["choices"].as_array().unwrap() {
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), 1);
            checked(&calls[0]);
            assert_eq!(choice["finish_reason"], "tool_calls");
        }
        for name in ["weather", "now"] {
            body["tool_choice"] = named(name);
            body["parallel_tool_calls"] = Value::Null;
            let answer = ok(CHAT, &body);
            for choice in answer["choices"].as_array().unwrap() {
                let calls = choice["message"]["tool_calls"].as_array().unwrap();
                assert_eq!((calls.len(), checked(&calls[0]).as_str()), (1, name));
                // OpenAI's API reports `stop` where the caller chose the function.
                assert_eq!(choice["finish_reason"], "stop");
            }
        }
    }
    assert_eq!(functions.len(), 2, "{functions:?}");
    assert!(!counts.is_empty());
}

/// The pocket model alone would never end a string.
#[test]
fn a_small_model_ends_what_has_no_bound() {
    let weather = tool(
        "get_weather",
        &json!({"type": "object", "properties": {"location": {"type": "string"}, "days": {"type": "integer"}}, "required": ["location", "days"]}),
    );
    for seed in 0..8 {
        let mut body = body(json!("required"));
        body["tools"] = json!([weather]);
        body["seed"] = json!(seed);
        let answer = ok(CHAT, &body);
        assert_eq!(
            answer["choices"][0]["finish_reason"], "tool_calls",
            "{answer}"
        );
        let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert!(
            arguments["location"].is_string() && arguments["days"].is_i64(),
            "{answer}"
        );
    }
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let response_format = json!({"type": "json_schema", "json_schema": {"name": "a", "strict": true,
        "schema": {"type": "object", "properties": {"sum": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["sum"], "additionalProperties": false}}});
    for (choice, format) in [
        (json!("auto"), Value::Null),
        (json!("auto"), response_format.clone()),
        (json!("required"), Value::Null),
        (json!("required"), response_format),
        (named("weather"), Value::Null),
        (json!("none"), Value::Null),
    ] {
        for seed in 0..4 {
            let mut body = body(choice.clone());
            body["seed"] = json!(seed);
            body["n"] = json!(2);
            body["response_format"] = format.clone();
            let whole = ok(CHAT, &body);
            body["stream"] = json!(true);
            let events = events(CHAT, &body);
            for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
                let (message, finish) = accumulated(&events, index);
                assert_eq!(
                    without_ids(message),
                    without_ids(choice["message"].clone()),
                    "{body}"
                );
                assert_eq!(finish, choice["finish_reason"]);
            }
        }
    }
}

#[test]
fn arguments_come_in_pieces_and_log_probs_with_every_token() {
    let mut body = body(named("weather"));
    body["seed"] = json!(3);
    body["logprobs"] = json!(true);
    let whole = ok(CHAT, &body);
    let tokens = |choice: &Value| -> Vec<String> {
        let content = choice["logprobs"]["content"]
            .as_array()
            .into_iter()
            .flatten();
        content
            .map(|token| token["token"].as_str().unwrap().to_owned())
            .collect()
    };
    let listed = tokens(&whole["choices"][0]);
    // The list has all drawn tokens, with the marks of the tool format.
    assert!(
        listed
            .concat()
            .starts_with("{\"name\": \"weather\", \"arguments\": {"),
        "{listed:?}"
    );
    body["stream"] = json!(true);
    let events = events(CHAT, &body);
    let streamed: Vec<String> = events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap())
        .flat_map(tokens)
        .collect();
    assert_eq!(streamed, listed);
    let pieces = events.iter().filter(|event| {
        let calls = &event["choices"][0]["delta"]["tool_calls"];
        calls[0]["function"]["arguments"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    });
    assert!(pieces.count() > 5);
}

#[test]
fn calls_and_results_go_back_into_the_conversation() {
    let mut body = body(named("weather"));
    body["seed"] = json!(1);
    let answer = ok(CHAT, &body);
    let message = answer["choices"][0]["message"].clone();
    let id = message["tool_calls"][0]["id"].clone();
    let mut dumped = message.clone();
    // The message gets the fields with which clients keep it.
    dumped["refusal"] = Value::Null;
    dumped["function_call"] = Value::Null;
    dumped["annotations"] = json!([]);
    dumped["tool_calls"][0]["index"] = json!(0);
    dumped["tool_calls"][0]["function"]["parsed_arguments"] = json!({"city": "Bonn"});
    let user = json!({"role": "user", "content": "Weather?"});
    let result = |content: Value| json!({"role": "tool", "tool_call_id": id, "content": content});
    let asked = |messages: Value| json!({"messages": messages, "tools": [tools()[1]], "seed": 2, "max_tokens": 8});
    let plain = ok(
        CHAT,
        &asked(json!([user, message, result(json!("18 degrees"))])),
    );
    let text = json!([{"type": "text", "text": "18 degrees"}]);
    for messages in [
        json!([user, dumped, result(text)]),
        json!([user, message, {"role": "tool", "tool_call_id": id, "content": "18 degrees", "name": "weather"}]),
    ] {
        let same = ok(CHAT, &asked(messages));
        assert_eq!(same["choices"], plain["choices"]);
        let tokens = |answer: &Value| answer["usage"]["total_tokens"].clone();
        assert_eq!(tokens(&same), tokens(&plain));
    }
    // The model reads the result.
    let other = ok(
        CHAT,
        &asked(json!([
            user,
            message,
            result(json!("18 degrees, and so on"))
        ])),
    );
    assert_ne!(
        other["usage"]["prompt_tokens"],
        plain["usage"]["prompt_tokens"]
    );
    // A conversation with tool calls needs no `tools`.
    let mut untold = asked(json!([user, message, result(json!("18"))]));
    untold.as_object_mut().unwrap().remove("tools");
    let untold = ok(CHAT, &untold);
    assert!(untold["choices"][0]["message"]["content"].is_string());
}

#[test]
fn tools_are_shown_to_the_model_unless_none_may_be_called() {
    let tokens = |body: &Value| ok(CHAT, body)["usage"]["prompt_tokens"].as_u64().unwrap();
    let mut none = body(json!("none"));
    none["max_tokens"] = json!(2);
    let mut plain = none.clone();
    for field in ["tools", "tool_choice"] {
        plain.as_object_mut().unwrap().remove(field);
    }
    let mut auto = none.clone();
    auto["tool_choice"] = json!("auto");
    assert_eq!(tokens(&none), tokens(&plain));
    assert!(tokens(&auto) > tokens(&plain) + 50);
    auto["tool_choice"] = Value::Null;
    assert!(tokens(&auto) > tokens(&plain) + 50);
    // The model reads a description.
    let before = tokens(&auto);
    auto["tools"][1]["function"]["description"] = json!("Tells the time.");
    assert!(tokens(&auto) > before);
}

#[test]
fn what_is_left_out_is_named() {
    let mut strict = body(json!("auto"));
    strict["tools"][0]["function"]["strict"] = json!(true);
    strict["max_tokens"] = json!(4);
    let warnings = ok(CHAT, &strict)["warnings"].to_string();
    assert!(
        warnings.contains("strict") && warnings.contains("weather"),
        "{warnings}"
    );
    strict["tool_choice"] = json!("required");
    strict["max_tokens"] = json!(200);
    assert!(ok(CHAT, &strict).get("warnings").is_none());
    let mut loose = body(json!("required"));
    loose["tools"][0]["function"]["parameters"]["properties"]["list"] =
        json!({"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3, "uniqueItems": true});
    let warnings = ok(CHAT, &loose)["warnings"].to_string();
    assert!(
        warnings.contains("tools: ") && warnings.contains("uniqueItems"),
        "{warnings}"
    );
    loose["tools"][0]["function"]["strict"] = json!(true);
    let (status, answer) = post(CHAT, &loose);
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"]["param"], "tools");
}

/// A record holds messages of text and would misrepresent tools. So a conversation with tools has no record, and the answer says
/// so.
#[test]
fn conversations_with_tools_are_in_no_record() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let mut asked = body(json!("required"));
    asked["log"] = json!({"retain": true, "train": true});
    let answer = posted(CHAT, "a", &asked).ok(&logged.server);
    assert!(answer.get("record_id").is_none(), "{answer}");
    assert_eq!(answer["logged"], false);
    assert!(
        answer["warnings"].to_string().contains("not recorded"),
        "{answer}"
    );
    asked["tool_choice"] = json!("none");
    asked["max_tokens"] = json!(4);
    let answer = posted(CHAT, "a", &asked).ok(&logged.server);
    assert!(
        answer["record_id"].is_string(),
        "a call without tools must be kept: {answer}"
    );
    // A conversation with earlier tool calls has no record either.
    let call =
        json!({"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}});
    let history = json!({"messages": [
        {"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "12:00"}
    ], "max_tokens": 4, "log": {"retain": true}});
    let answer = posted(CHAT, "a", &history).ok(&logged.server);
    assert!(
        answer.get("record_id").is_none() && answer["logged"] == false,
        "{answer}"
    );
    assert!(
        answer["warnings"].to_string().contains("not recorded"),
        "{answer}"
    );
}

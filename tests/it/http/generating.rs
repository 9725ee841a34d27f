//! Tests of `/generate`: whole and streamed answers with all that was asked for, and best-of-N.

use super::*;

#[test]
fn answers_have_what_was_asked_for() {
    let body = json!({"prompt": "Reverse the word piano.", "n": 3, "seed": 7, "logprobs": 2, "logprob_token_ids": [65]});
    let answer = ok("/generate", &body);
    let outputs = answer["outputs"].as_array().unwrap();
    assert_eq!(outputs.len(), 3);
    let mut tokens = 0;
    for (index, output) in outputs.iter().enumerate() {
        assert_eq!(output["index"], index);
        assert_eq!(output["finish_reason"], "stop");
        let ids = output["token_ids"].as_array().unwrap();
        let logprobs = output["logprobs"].as_array().unwrap();
        assert_eq!(ids.len(), logprobs.len());
        tokens += ids.len();
        for (id, logprob) in ids.iter().zip(logprobs) {
            assert_eq!(&logprob["token_id"], id);
            assert_eq!(logprob["top"].as_array().unwrap().len(), 2);
            assert_eq!(logprob["chosen"][0]["token_id"], 65);
        }
    }
    assert_eq!(answer["usage"]["completion_tokens"], tokens);
    assert_eq!(answer["version"], "base");
    // The same seed gives the same outputs.
    assert_eq!(ok("/generate", &body)["outputs"], answer["outputs"]);
    let messages = json!({"messages": [{"role": "user", "content": "Reverse the word piano."}], "n": 3, "seed": 7,
        "logprobs": 2, "logprob_token_ids": [65]});
    assert_eq!(ok("/generate", &messages)["outputs"], answer["outputs"]);
}

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let mut body = json!({"prompt": "Spell piano with hyphens.", "n": 2, "seed": 3, "stop": ["a"], "max_tokens": 40,
        "logprobs": 2, "logprob_token_ids": [65]});
    let whole = ok("/generate", &body);
    body["stream"] = json!(true);
    let events = events("/generate", &body);
    let mut texts = [String::new(), String::new()];
    let mut reasons = [Value::Null, Value::Null];
    let lists = ["token_ids", "logprobs"];
    let mut pieces = [[const { Vec::new() }; 2], [const { Vec::new() }; 2]];
    for output in events
        .iter()
        .flat_map(|event| event["outputs"].as_array().unwrap())
    {
        let index = output["index"].as_u64().unwrap() as usize;
        assert!(
            reasons[index].is_null(),
            "no event may follow the finish reason"
        );
        texts[index].push_str(output["text"].as_str().unwrap());
        for (list, pieces) in lists.iter().zip(&mut pieces[index]) {
            pieces.extend(output[list].as_array().unwrap().clone());
        }
        reasons[index] = output["finish_reason"].clone();
    }
    for (index, output) in whole["outputs"].as_array().unwrap().iter().enumerate() {
        assert_eq!(output["text"], texts[index]);
        for (list, pieces) in lists.iter().zip(&pieces[index]) {
            assert_eq!(output[list], json!(pieces), "{list}");
        }
        assert!(
            !texts[index].contains('a'),
            "the text must not have the stop string"
        );
        assert_eq!(output["finish_reason"], reasons[index]);
        assert_eq!(output["stop_reason"], "a");
    }
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(
        usage["completion_tokens"],
        whole["usage"]["completion_tokens"]
    );
}

#[test]
fn the_best_of_many_is_the_tournaments_winner() {
    let body = json!({"prompt": "What is 34 plus 28?", "best_of": 9, "n": 2, "seed": 1});
    let answer = ok("/generate", &body);
    let tournament = &answer["tournament"];
    assert_eq!(tournament["comparisons"], 8);
    assert_eq!(tournament["truncated"], false);
    let outputs = answer["outputs"].as_array().unwrap();
    assert_eq!(outputs.len(), 2);
    for (rank, output) in outputs.iter().enumerate() {
        assert_eq!(output["index"], tournament["ranking"][rank]);
    }
    assert_eq!(tournament["winner"], outputs[0]["index"]);
    let byes = tournament["byes"].as_array().unwrap();
    assert!(
        byes[0].is_u64(),
        "one of nine candidates must have no match in the first round"
    );
}

#[test]
fn answers_have_the_shape_that_was_asked_for() {
    let schema = json!({"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": false});
    let ask = |shape: &Value| {
        let mut body =
            json!({"prompt": "What is 34 plus 28?", "n": 4, "seed": 2, "max_tokens": 100});
        for (key, value) in shape.as_object().unwrap() {
            body[key] = value.clone();
        }
        post("/generate", &body)
    };
    let texts = |shape: Value| {
        let (status, answer) = ask(&shape);
        assert_eq!(status, StatusCode::OK, "{answer}");
        let outputs = answer["outputs"].as_array().unwrap().iter();
        let texts = outputs.map(|output| output["text"].as_str().unwrap().to_owned());
        texts.collect::<Vec<_>>()
    };
    let by_format = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}});
    // A schema that is not strict asks for less, and is held all the same.
    let mut loose = by_format.clone();
    loose["response_format"]["json_schema"]["strict"] = json!(false);
    for shape in [
        by_format,
        loose,
        json!({"structured_outputs": {"json": schema}}),
    ] {
        for text in texts(shape) {
            let parsed: Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert!(
                parsed["sum"].is_i64() || parsed["sum"].is_number(),
                "{text}"
            );
        }
    }
    for text in texts(json!({"structured_outputs": {"choice": ["yes", "no"]}})) {
        assert!(["yes", "no"].contains(&&*text), "{text}");
    }
    for text in texts(json!({"structured_outputs": {"regex": "[0-9]{2}"}})) {
        assert!(
            text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit()),
            "{text}"
        );
    }
    for text in texts(json!({"structured_outputs": {"grammar": "start: \"a\" | \"b\" start"}})) {
        assert!(
            text.ends_with('a') && text.trim_start_matches('b') == "a",
            "{text}"
        );
    }
    texts(json!({"response_format": {"type": "text"}}));
    for (shape, param) in [
        (
            json!({"structured_outputs": {"regex": "("}}),
            "structured_outputs",
        ),
        (
            json!({"structured_outputs": {"grammar": "no"}}),
            "structured_outputs",
        ),
        (
            json!({"structured_outputs": {"choice": []}}),
            "structured_outputs",
        ),
        (
            json!({"structured_outputs": {"xml": ""}}),
            "structured_outputs.xml",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}),
            "response_format",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "structured_outputs": {"choice": ["a"]}}),
            "structured_outputs",
        ),
    ] {
        let (status, answer) = ask(&shape);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{shape}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{shape}: {answer}");
    }
}

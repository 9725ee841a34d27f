//! Tests of the shapes of OpenAI's API.

use super::*;

#[test]
fn completions_are_openais() {
    let prompt = "Reverse the word piano.";
    let mut body = json!({"model": "pocket", "prompt": [prompt, prompt, "2 plus"], "n": 2, "max_tokens": 9, "seed": 4,
        "logprobs": 1});
    let whole = ok("/v1/completions", &body);
    assert_eq!(whole["object"], "text_completion");
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let list = |name: &str| choice["logprobs"][name].as_array().unwrap().len();
        assert_eq!(list("tokens"), list("token_logprobs"));
        assert_eq!(list("tokens"), list("top_logprobs"));
        assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()));
    }
    // The same prompt and seed give the same text. The samples of a prompt differ.
    assert_eq!(choices[0]["text"], choices[2]["text"]);
    assert_eq!(choices[1]["text"], choices[3]["text"]);
    let usage = &whole["usage"];
    let sum =
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);

    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let events = events("/v1/completions", &body);
    let mut texts = vec![String::new(); 6];
    for event in &events {
        for choice in event["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            assert_eq!(
                choice["logprobs"]["text_offset"][0],
                texts[index].chars().count()
            );
            texts[index].push_str(choice["text"].as_str().unwrap());
        }
    }
    for (choice, text) in choices.iter().zip(&texts) {
        assert_eq!(choice["text"], *text);
    }
    assert_eq!(
        events.last().unwrap()["usage"]["completion_tokens"],
        usage["completion_tokens"]
    );

    let best = ok(
        "/v1/completions",
        &json!({"prompt": prompt, "best_of": 4, "n": 2, "max_tokens": 9, "seed": 4}),
    );
    let best = best["choices"].as_array().unwrap();
    assert_eq!(best.len(), 2);
    // The same samples are judged as answers to the prompt's text. The choices are the first two of that tournament.
    let drawn = ok(
        "/v1/completions",
        &json!({"prompt": prompt, "n": 4, "max_tokens": 9, "seed": 4}),
    );
    let drawn = drawn["choices"].as_array().unwrap().iter();
    let texts: Vec<&Value> = drawn.map(|choice| &choice["text"]).collect();
    let held = ok("/judge", &json!({"prompt": prompt, "candidates": texts}));
    for (choice, rank) in best.iter().zip(held["ranking"].as_array().unwrap()) {
        assert_eq!(
            choice["text"],
            *texts[rank.as_u64().unwrap() as usize],
            "{held}"
        );
    }
    for (body, status) in [
        (
            json!({"model": "gpt-4", "prompt": prompt}),
            StatusCode::NOT_FOUND,
        ),
        (
            json!({"prompt": prompt, "suffix": "x"}),
            StatusCode::BAD_REQUEST,
        ),
        (json!({"prompt": []}), StatusCode::BAD_REQUEST),
        (json!({"prompt": ""}), StatusCode::BAD_REQUEST),
        (json!({"prompt": [1, 2, 9999]}), StatusCode::BAD_REQUEST),
        (
            json!({"prompt": prompt, "logprobs": 21}),
            StatusCode::BAD_REQUEST,
        ),
        (json!({"prompt": vec!["x"; 1025]}), StatusCode::BAD_REQUEST),
        (
            json!({"prompt": prompt, "best_of": 2, "stream": true}),
            StatusCode::BAD_REQUEST,
        ),
        (
            json!({"prompt": prompt, "stream_options": {"include_usage": true}}),
            StatusCode::BAD_REQUEST,
        ),
    ] {
        assert_eq!(post("/v1/completions", &body).0, status, "{body}");
    }
}

#[test]
fn a_chat_is_openais() {
    let messages = json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Reverse the word "}, {"type": "text", "text": "piano."}]}
    ]);
    let mut body = json!({"model": "pocket", "messages": messages, "n": 2, "seed": 4, "max_completion_tokens": 20,
        "logprobs": true, "top_logprobs": 2, "user": "someone"});
    let whole = ok("/v1/chat/completions", &body);
    assert_eq!(whole["object"], "chat.completion");
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["role"], "assistant");
        assert!(choice.get("delta").is_none());
        for logprob in choice["logprobs"]["content"].as_array().unwrap() {
            assert_eq!(logprob["top_logprobs"].as_array().unwrap().len(), 2);
            assert!(logprob["logprob"].as_f64().unwrap() <= 0.0);
        }
    }
    // The same conversation on the other route gives the same text.
    let same = ok(
        "/generate",
        &json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Reverse the word piano."}],
            "n": 2, "seed": 4, "max_tokens": 20}),
    );
    assert_eq!(same["outputs"][1]["text"], choices[1]["message"]["content"]);

    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let events = events("/v1/chat/completions", &body);
    let mut texts = vec![String::new(); 2];
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert!(event["usage"]["prompt_tokens"].as_u64().unwrap() > 0);
        for choice in event["choices"].as_array().unwrap() {
            let text = &mut texts[choice["index"].as_u64().unwrap() as usize];
            // The first event of a choice has the role, and no other has.
            assert_eq!(choice["delta"].get("role").is_some(), text.is_empty());
            text.push_str(choice["delta"]["content"].as_str().unwrap());
        }
    }
    for (choice, text) in choices.iter().zip(&texts) {
        assert_eq!(choice["message"]["content"], *text);
    }
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(usage["total_tokens"], whole["usage"]["total_tokens"]);

    for (change, param) in [
        (json!({"max_tokens": 3}), "max_tokens"),
        (json!({"logprobs": false}), "top_logprobs"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
        (
            json!({"messages": [{"role": "user", "content": "seven ".repeat(3000)}]}),
            "messages",
        ),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "messages[0].tool_call_id",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0].type",
        ),
        (json!({"stream": false}), "stream_options"),
    ] {
        let mut body = body.clone();
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (status, answer) = post("/v1/chat/completions", &body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{change}");
        assert_eq!(answer["error"]["param"], param, "{change}: {answer}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
    }
}

#[test]
fn null_is_as_good_as_nothing() {
    let plain = json!({"prompt": "2 plus", "seed": 5});
    let nulls = json!({"prompt": "2 plus", "seed": 5, "stop": null, "n": null, "logit_bias": null, "stream": null,
        "stream_options": null, "temperature": null, "max_tokens": null, "logprobs": null, "model": null});
    assert_eq!(
        ok("/v1/completions", &plain)["choices"],
        ok("/v1/completions", &nulls)["choices"]
    );
}

//! What a call may ask for: at each bound it is answered, one above it is refused by the name of what is too much.

use std::path::Path;

use engine::QueueLimits;
use text::Tokenizer;

use super::*;

/// A server of its own: calls at their bounds would fill the queue of the one that other tests call.
static LARGE: LazyLock<Router> = LazyLock::new(|| {
    let engine = EngineConfig {
        queue: QueueLimits {
            max_requests: 1 << 14,
            max_tokens: 1 << 22,
        },
        ..engine()
    };
    start(&engine, &HttpConfig::default())
});

fn post(path: &str, body: &Value) -> (StatusCode, Value) {
    RUNTIME.block_on(post_to(&LARGE, path, body))
}

fn ok(path: &str, body: &Value) -> Value {
    let (status, answer) = post(path, body);
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

/// A grammar of so many bytes; all but the first are a comment.
fn grammar(bytes: usize) -> Value {
    let grammar = "start: \"a\"\n//";
    json!({"grammar": format!("{grammar}{}", "x".repeat(bytes - grammar.len()))})
}

/// A bound: where, what is at it, and what is one above it, the parameter that is named and the code of the error.
struct Bound {
    path: &'static str,
    at: Value,
    above: Value,
    param: &'static str,
    code: &'static str,
}

fn bound(path: &'static str, param: &'static str, at: Value, above: Value) -> Bound {
    Bound {
        path,
        at,
        above,
        param,
        code: "invalid_parameter",
    }
}

/// A body of `/generate` with one more parameter.
fn generate(name: &str, value: Value) -> Value {
    let mut body = json!({"prompt": "2 plus", "max_tokens": 1, "temperature": 0});
    body[name] = value;
    body
}

fn choices(count: usize) -> Value {
    let choices: Vec<String> = (0..count).map(|at| format!("choice {at}")).collect();
    json!({"choice": choices})
}

fn stops(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("stop {at}")).collect()
}

fn judged(name: &str, value: Value) -> Value {
    let mut body = json!({"prompt": "x", "candidates": ["same", "same"]});
    body[name] = value;
    body
}

fn decisions(questions: usize) -> Value {
    let question = json!({"type": "predicate", "instructions": "x"});
    json!({"input": "x", "questions": vec![question; questions]})
}

fn bounds() -> Vec<Bound> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json")).unwrap();
    let detokenized = (256 << 10) / tokenizer.longest_token();
    let counted = "1".repeat(256 << 10);
    vec![
        bound(
            "/generate",
            "stop",
            generate("stop", json!(stops(16))),
            generate("stop", json!(stops(17))),
        ),
        bound(
            "/generate",
            "stop",
            generate("stop", json!("x".repeat(1024))),
            generate("stop", json!("x".repeat(1025))),
        ),
        bound(
            "/generate",
            "stop_token_ids",
            generate("stop_token_ids", json!(vec![5; 1024])),
            generate("stop_token_ids", json!(vec![5; 1025])),
        ),
        bound(
            "/generate",
            "logprob_token_ids",
            generate("logprob_token_ids", json!(vec![5; 128])),
            generate("logprob_token_ids", json!(vec![5; 129])),
        ),
        bound(
            "/generate",
            "logprobs",
            generate("logprobs", json!(20)),
            generate("logprobs", json!(21)),
        ),
        // 128 × 195 × 21 are 524,160 log-probabilities, and 524,288 is the most; the seed answers briefly.
        bound(
            "/generate",
            "logprobs",
            json!({"prompt": "2 plus", "n": 128, "max_tokens": 195, "logprobs": 20, "stop_token_ids": (0..380).collect::<Vec<u32>>()}),
            json!({"prompt": "2 plus", "n": 128, "max_tokens": 196, "logprobs": 20}),
        ),
        bound(
            "/v1/completions",
            "n",
            json!({"prompt": vec!["a"; 64], "n": 128, "max_tokens": 1}),
            json!({"prompt": vec!["a"; 65], "n": 128, "max_tokens": 1}),
        ),
        // 1,024 × 8 × 128 are 1,048,576 tokens; any token ends an answer.
        bound(
            "/v1/completions",
            "max_tokens",
            json!({"prompt": vec!["a"; 64], "n": 128, "max_tokens": 128, "stop_token_ids": (0..380).collect::<Vec<u32>>()}),
            json!({"prompt": vec!["a"; 64], "n": 128, "max_tokens": 129}),
        ),
        bound(
            "/v1/completions",
            "prompt",
            json!({"prompt": vec!["a"; 1024], "max_tokens": 1}),
            json!({"prompt": vec!["a"; 1025], "max_tokens": 1}),
        ),
        bound(
            "/generate",
            "structured_outputs",
            generate("structured_outputs", choices(5000)),
            generate("structured_outputs", choices(5001)),
        ),
        bound(
            "/generate",
            "structured_outputs",
            generate("structured_outputs", grammar(256 << 10)),
            generate("structured_outputs", grammar((256 << 10) + 1)),
        ),
        bound(
            "/judge",
            "principles",
            judged("principles", json!(vec!["kind"; 64])),
            judged("principles", json!(vec!["kind"; 65])),
        ),
        bound(
            "/judge",
            "principles",
            judged("principles", json!(["x".repeat(4096)])),
            judged("principles", json!(["x".repeat(4097)])),
        ),
        bound(
            "/judge",
            "candidates",
            json!({"prompt": "x", "candidates": vec!["a"; 20_001]}),
            json!({"prompt": "x", "candidates": vec!["a"; 20_002]}),
        ),
        bound("/v1/decisions", "questions", decisions(400), decisions(401)),
        Bound {
            code: "context_length_exceeded",
            ..bound(
                "/tokenize",
                "text",
                json!({"text": counted}),
                json!({"text": counted.clone() + "1"}),
            )
        },
        bound(
            "/detokenize",
            "tokens",
            json!({"tokens": vec![5; detokenized]}),
            json!({"tokens": vec![5; detokenized + 1]}),
        ),
    ]
}

#[test]
fn a_call_is_answered_at_each_bound_and_refused_above_it() {
    for Bound {
        path,
        at,
        above,
        param,
        code,
    } in bounds()
    {
        let (status, answer) = post(path, &at);
        assert_eq!(
            status,
            StatusCode::OK,
            "{path} at the bound of {param}: {answer}"
        );
        let (status, answer) = post(path, &above);
        assert_eq!(
            status,
            StatusCode::BAD_REQUEST,
            "{path} above the bound of {param}: {answer}"
        );
        let error = &answer["error"];
        assert_eq!(error["param"], param, "{path}: {answer}");
        assert_eq!(error["code"], code, "{path}: {answer}");
        assert!(error["message"].as_str().unwrap().len() < 300, "{answer}");
    }
}

/// Each of these is refused before anything of it is done, or it would take minutes or gigabytes.
#[test]
fn what_is_far_too_much_is_a_400() {
    let long = "1".repeat(7 << 20);
    let many: Vec<u32> = vec![5; 900_000];
    let biases: serde_json::Map<_, _> = (0..1025).map(|id| (id.to_string(), json!(1))).collect();
    let messages =
        |content: &str, count: usize| vec![json!({"role": "user", "content": content}); count];
    for (path, body, param) in [
        (
            "/v1/completions",
            json!({"prompt": vec!["hi"; 1023], "max_tokens": 1, "stop": long}),
            "stop",
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "stop": stops(100_000)}),
            "stop",
        ),
        (
            "/generate",
            json!({"prompt": "a", "n": 64, "stop_token_ids": many}),
            "stop_token_ids",
        ),
        (
            "/generate",
            json!({"prompt": "a", "logit_bias": biases}),
            "logit_bias",
        ),
        (
            "/generate",
            json!({"prompt": "a", "logit_bias": {"1": 1, "01": 2}}),
            "logit_bias",
        ),
        (
            "/generate",
            json!({"prompt": "a", "logit_bias": {"+7": 1}}),
            "logit_bias",
        ),
        // Without an answer there is nothing to be long, of a shape or the best.
        (
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 0, "min_tokens": 1}),
            "min_tokens",
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 0, "response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 0, "structured_outputs": {"choice": ["a", "b"]}}),
            "structured_outputs",
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 0, "best_of": 2}),
            "best_of",
        ),
        (
            "/v1/completions",
            json!({"prompt": vec!["a"; 1024], "n": 128, "max_tokens": 500, "ignore_eos": true}),
            "n",
        ),
        // Without a limit of its own a chat's answer may be as long as the context.
        (
            "/v1/chat/completions",
            json!({"messages": messages("a", 1), "n": 128, "logprobs": true, "top_logprobs": 20}),
            "logprobs",
        ),
        (
            "/generate",
            json!({"prompt": "a", "n": 32, "max_tokens": 480, "logprobs": 20, "logprob_token_ids": vec![5; 128]}),
            "logprobs",
        ),
        ("/generate", json!({"prompt": long}), "prompt"),
        ("/generate", json!({"prompt": "1".repeat(60_000)}), "prompt"),
        (
            "/generate",
            json!({"messages": messages("", 40_000)}),
            "prompt",
        ),
        ("/v1/completions", json!({"prompt": long}), "prompt"),
        (
            "/v1/completions",
            json!({"prompt": ["a", "1".repeat(60_000)]}),
            "prompt",
        ),
        ("/v1/completions", json!({"prompt": many}), "prompt"),
        (
            "/v1/chat/completions",
            json!({"messages": messages(&long, 1)}),
            "messages",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages("1", 30_000)}),
            "messages",
        ),
        (
            "/v1/decisions",
            json!({"input": long, "questions": [{"type": "predicate", "instructions": "x"}]}),
            "input",
        ),
        ("/tokenize", json!({"text": long}), "text"),
        (
            "/tokenize",
            json!({"messages": messages(&long, 1)}),
            "messages",
        ),
        ("/detokenize", json!({"tokens": many}), "tokens"),
        ("/judge", judged("principles", json!([long])), "principles"),
        (
            "/judge",
            judged("candidates", json!(vec!["a"; 400_000])),
            "candidates",
        ),
        (
            "/generate",
            generate("structured_outputs", choices(60_000)),
            "structured_outputs",
        ),
        (
            "/generate",
            generate("structured_outputs", json!({"choice": [long]})),
            "structured_outputs",
        ),
        (
            "/generate",
            generate("structured_outputs", json!({"grammar": long})),
            "structured_outputs",
        ),
        (
            "/generate",
            generate("structured_outputs", json!({"json": {"const": long}})),
            "structured_outputs",
        ),
    ] {
        let (status, answer) = post(path, &body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {param}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{path}: {answer}");
        assert!(
            answer["error"]["message"].as_str().unwrap().len() < 300,
            "{answer}"
        );
    }
}

#[test]
fn a_body_of_too_many_values_is_refused() {
    for body in [
        format!("{{\"x\": [{}0]}}", "0,".repeat(3_000_000)),
        format!("{{\"x\": [{}[]]}}", "[],".repeat(2_000_000)),
    ] {
        let (status, answer) = RUNTIME.block_on(async {
            let response = call(&LARGE, "/generate", body).await;
            let status = response.status();
            (status, text(response).await)
        });
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert!(answer.contains("too_many_values"), "{answer}");
    }
}

#[test]
fn long_candidates_are_cut_once_and_judged() {
    let long = |letter: &str| format!("{letter}{}", "12 plus 3 is 15. ".repeat(20_000));
    let principles: Vec<String> = (0..64).map(|at| format!("principle {at}")).collect();
    let body =
        json!({"prompt": "x", "candidates": [long("a"), long("b")], "principles": principles});
    let answer = ok("/judge", &body);
    assert_eq!(answer["truncated"], true, "{answer}");
    assert_eq!(answer["principles"].as_array().unwrap().len(), 64);
}

/// What cannot be compiled, or cannot be followed to an end, is the caller's to mend.
#[test]
fn grammars_that_lead_nowhere_are_400s() {
    let optional: serde_json::Map<_, _> = (0..2000)
        .map(|at| (format!("property{at}"), json!({"type": "string"})))
        .collect();
    let schema = json!({"type": "object", "properties": optional, "additionalProperties": false});
    let named: String = (0..2000).map(|at| format!("r{at}: \"a\"\n")).collect();
    for (at, (name, value)) in [
        ("structured_outputs", choices(10_000)),
        ("structured_outputs", json!({"choice": []})),
        ("structured_outputs", json!({"json": schema.clone()})),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
        ),
        (
            "structured_outputs",
            json!({"grammar": "start: <|user|> \"hi\" <|end|>"}),
        ),
        ("structured_outputs", json!({"grammar": "start: <|end|>"})),
        (
            "structured_outputs",
            json!({"grammar": "start: <|user|> start"}),
        ),
        ("structured_outputs", json!({"grammar": "start: nowhere"})),
        ("structured_outputs", json!({"grammar": "start: start"})),
        (
            "structured_outputs",
            json!({"grammar": format!("start: r0\n{named}r0: \"b\"")}),
        ),
        ("structured_outputs", json!({"regex": "("})),
        (
            "structured_outputs",
            json!({"regex": "(a|b)*c".repeat(20_000)}),
        ),
        (
            "structured_outputs",
            json!({"regex": "(a{1,1000}){1,1000}"}),
        ),
        ("structured_outputs", json!({"regex": "[^\\s\\S]"})),
        (
            "structured_outputs",
            json!({"json": {"$ref": "https://example.org/schema"}}),
        ),
        (
            "structured_outputs",
            json!({"json": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut body = json!({"prompt": "2 plus", "max_tokens": 200, "seed": 3});
        body[name] = value;
        for stream in [false, true] {
            body["stream"] = json!(stream);
            let (status, answer) = RUNTIME.block_on(async {
                let response = call(&LARGE, "/generate", body.to_string()).await;
                let status = response.status();
                (status, text(response).await)
            });
            assert!(!answer.contains("\"internal\""), "{at}: {answer}");
            let fine = status == StatusCode::OK || status == StatusCode::BAD_REQUEST;
            assert!(fine, "{at}: {status} {answer}");
        }
    }
}

#[test]
fn five_thousand_long_choices_are_chosen_from() {
    // Together just below the bound of a grammar's bytes.
    let choices: Vec<String> = (0..5000)
        .map(|at| format!("{:0>40} {at}", at * 7919 % 5000))
        .collect();
    let body = json!({"prompt": "2 plus", "max_tokens": 200, "structured_outputs": {"choice": choices}, "n": 4});
    for output in ok("/generate", &body)["outputs"].as_array().unwrap() {
        let text = output["text"].as_str().unwrap();
        assert!(choices.iter().any(|choice| choice == text), "{output}");
    }
}

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
    // As an operator sees it.
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

/// Bytes of a log without records.
fn logged_bytes_of_nothing() -> u64 {
    let logged = logged(&keyed(), TrafficConfig::default());
    let file = logged.dir.path().join("traffic.sqlite");
    let files = ["", "-wal"].iter();
    files
        .filter_map(|end| std::fs::metadata(format!("{}{end}", file.display())).ok())
        .map(|file| file.len())
        .sum()
}

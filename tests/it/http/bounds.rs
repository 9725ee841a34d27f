//! Tests of the bounds of a call: a value at its bound is answered, and one above it is refused with the name of the parameter.

use std::path::Path;

use engine::QueueLimits;
use text::Tokenizer;

use super::*;

/// A server of its own, since calls at their bounds would fill the queue of the shared server.
pub(super) static LARGE: LazyLock<Router> = LazyLock::new(|| {
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

pub(super) fn ok(path: &str, body: &Value) -> Value {
    let (status, answer) = post(path, body);
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

/// Returns a grammar of this many bytes. Those after its one rule are a comment.
fn grammar(bytes: usize) -> Value {
    let grammar = "start: \"a\"\n//";
    json!({"grammar": format!("{grammar}{}", "x".repeat(bytes - grammar.len()))})
}

/// A bound: the route, a body at the bound, a body above it, the named parameter and the error's code.
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

/// Returns a body of `/generate` with one more parameter.
fn generate(name: &str, value: Value) -> Value {
    let mut body = json!({"prompt": "2 plus", "max_tokens": 1, "temperature": 0});
    body[name] = value;
    body
}

pub(super) fn choices(count: usize) -> Value {
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
        // 128 × 195 × 21 are 524,160 log-probabilities, and the bound is 524,288. Any token ends an answer, so answers are short.
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
        // 1,024 × 8 × 128 are 1,048,576 tokens. Any token ends an answer.
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

/// Each of these calls is refused before its work begins. Otherwise it would take minutes or gigabytes.
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
        // A call that asks for no answer cannot ask for a length, a shape or the best answer.
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
        // A chat without a limit may have an answer as long as the context.
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

//! Tests of grammars that cannot be compiled or followed to an end, and of the largest that can.

use super::bounds::{LARGE, choices, ok};
use super::*;

/// A grammar that cannot be compiled, or followed to an end, is an error of the caller.
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
    // Together the choices are just below the bound of a grammar's bytes.
    let choices: Vec<String> = (0..5000)
        .map(|at| format!("{:0>40} {at}", at * 7919 % 5000))
        .collect();
    let body = json!({"prompt": "2 plus", "max_tokens": 200, "structured_outputs": {"choice": choices}, "n": 4});
    for output in ok("/generate", &body)["outputs"].as_array().unwrap() {
        let text = output["text"].as_str().unwrap();
        assert!(choices.iter().any(|choice| choice == text), "{output}");
    }
}

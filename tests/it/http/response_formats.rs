//! Tests of formats of answers: every key of `response_format` is read, and schemas are enforced or refused.

use super::unchanged::{CHAT, chat_body, with};
use super::*;

#[test]
fn formats_are_read_to_the_last_key() {
    let schema = json!({"type": "object"});
    let at = |format: Value| with(&chat_body(), "response_format", &format);
    for (format, param) in [
        (
            json!({"type": "json_object", "schema": schema}),
            "response_format.schema",
        ),
        (json!({"type": "text", "x": 1}), "response_format.x"),
        (
            json!({"type": "json_schema"}),
            "response_format.json_schema",
        ),
        (
            json!({"type": "json_schema", "json_schema": {}}),
            "response_format.json_schema.schema",
        ),
        (
            json!({"type": "json_schema", "schema": schema}),
            "response_format.schema",
        ),
        (
            json!({"type": "json_schema", "json_schema": {"schema": schema, "x": 1}}),
            "response_format.json_schema.x",
        ),
        (
            json!({"type": "json_schema", "json_schema": {"schema": schema, "strict": "yes"}}),
            "response_format.json_schema.strict",
        ),
        (
            json!({"type": "text", "json_schema": {"schema": schema}}),
            "response_format.json_schema",
        ),
        (json!({}), "response_format.type"),
        (json!({"type": "structural_tag"}), "response_format.type"),
    ] {
        let (status, error) = post(CHAT, &at(format.clone()));
        assert_eq!(status, StatusCode::BAD_REQUEST, "{format}");
        assert_eq!(error["error"]["param"], param, "{error}");
    }
}

#[test]
fn what_a_schema_cannot_hold_is_refused_or_named_in_warnings() {
    let body = |schema: &Value, strict: Value| {
        let named = json!({"name": "x", "schema": schema, "strict": strict});
        let mut body = chat_body();
        body["max_tokens"] = json!(60);
        body["response_format"] = json!({"type": "json_schema", "json_schema": named});
        body
    };
    let path = json!({"type": "object", "properties": {"file": {"type": "string", "format": "path", "maxLength": 5}},
        "required": ["file"], "additionalProperties": false});
    for (schema, told) in [
        (path, "\"path\""),
        (
            json!({"type": "integer", "minimum": 0, "maximum": 99, "not": {"const": 7}}),
            "not",
        ),
        (
            json!({"type": "object", "propertyNames": {"maxLength": 3}, "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
                "required": ["a"], "additionalProperties": false}),
            "propertyNames",
        ),
        (
            json!({"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "number", "minimum": 0, "maximum": 9}]}),
            "oneOf",
        ),
    ] {
        let (status, error) = post(CHAT, &body(&schema, json!(true)));
        assert_eq!(status, StatusCode::BAD_REQUEST, "{schema}");
        assert_eq!(error["error"]["param"], "response_format", "{error}");
        for strict in [json!(false), Value::Null] {
            let answer = ok(CHAT, &body(&schema, strict.clone()));
            let warnings = answer["warnings"].to_string();
            assert!(
                warnings.contains(told) || warnings.contains(&told.replace('"', "\\\"")),
                "{warnings}"
            );
            let mut streamed = body(&schema, strict);
            streamed["stream"] = json!(true);
            let told: Vec<Value> = events(CHAT, &streamed)
                .iter()
                .filter(|event| event.get("warnings").is_some())
                .map(|event| event["warnings"].clone())
                .collect();
            assert_eq!(told, std::slice::from_ref(&answer["warnings"]));
        }
    }
    let whole = json!({"type": "integer", "minimum": 0, "maximum": 9});
    for strict in [json!(true), json!(false)] {
        assert!(ok(CHAT, &body(&whole, strict)).get("warnings").is_none());
    }
    for schema in [
        json!({"enum": [1_139_942_813_846_405_121_u64, 1_139_942_813_846_405_123_u64]}),
        json!({"const": 9_007_199_254_740_993_u64}),
        json!({"const": 18_446_744_073_709_551_615_u64}),
        json!({"type": "integer", "minimum": 9_007_199_254_740_993_u64}),
    ] {
        for strict in [json!(true), json!(false)] {
            let (status, error) = post(CHAT, &body(&schema, strict));
            assert_eq!(status, StatusCode::BAD_REQUEST, "{schema}");
            assert!(
                error["error"]["message"].as_str().unwrap().contains("2^53"),
                "{error}"
            );
        }
    }
    let exact = json!({"const": 9_007_199_254_740_992_u64});
    assert_eq!(
        ok(CHAT, &body(&exact, json!(true)))["choices"][0]["message"]["content"],
        "9007199254740992"
    );
    for (reference, name) in [
        ("#/$defs/a~1b", "a/b"),
        ("#/$defs/a%20b", "a b"),
        ("#here", "c"),
    ] {
        let schema =
            json!({"$ref": reference, "$defs": {name: {"const": "yes", "$anchor": "here"}}});
        let answer = ok(CHAT, &body(&schema, json!(true)));
        assert_eq!(
            answer["choices"][0]["message"]["content"], "\"yes\"",
            "{reference}"
        );
    }
}

//! Tests of tools, choices of tools and tool calls that are refused by name.

use super::tools::{CHAT, body, named, tool, tools};
use super::*;

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "now", "arguments": arguments}});
    let said = |messages: Value| json!({"messages": messages});
    let user = json!({"role": "user", "content": "x"});
    let called = |calls: Value| json!({"role": "assistant", "content": null, "tool_calls": calls});
    let many: Vec<Value> = (0..129)
        .map(|at| tool(&format!("t{at}"), &json!({})))
        .collect();
    let wide = json!({"type": "object", "description": "x".repeat(140_000)});
    for (change, param) in [
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (
            json!({"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
            "tools[0].type",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"parameters": {}}}]}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "mood": 1}}]}),
            "tools[0].function.mood",
        ),
        (
            json!({"tools": [tool("a b", &json!({}))]}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": [tool("", &json!({}))]}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": [tool(&"x".repeat(65), &json!({}))]}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": [tool("é", &json!({}))]}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": [tools()[0], tools()[0]]}),
            "tools[1].function.name",
        ),
        (
            json!({"tools": [tool("f", &json!([]))]}),
            "tools[0].function.parameters",
        ),
        (
            json!({"tools": [tool("f", &json!({"type": "string"}))]}),
            "tools[0].function.parameters.type",
        ),
        (
            json!({"tools": [tool("f", &json!({"properties": {"<|end|>": {}}}))]}),
            "tools",
        ),
        (
            json!({"tools": [tool("f", &json!({"properties": {"a": {"type": "strin"}}}))], "tool_choice": "required"}),
            "tools",
        ),
        (json!({"tools": many}), "tools"),
        (json!({"tools": [tool("f", &wide)]}), "tools"),
        (json!({"tools": {}}), "tools"),
        (
            json!({"tools": null, "tool_choice": "required"}),
            "tool_choice",
        ),
        (
            json!({"tools": [], "tool_choice": named("now")}),
            "tool_choice",
        ),
        (json!({"tool_choice": named("other")}), "tool_choice"),
        (json!({"tool_choice": "any"}), "tool_choice"),
        (json!({"tool_choice": 7}), "tool_choice"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice"),
        (
            json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}),
            "tool_choice",
        ),
        (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"function_call": {"name": "f"}}), "function_call"),
        (json!({"best_of": 2}), "best_of"),
        (
            json!({"continue_final_message": true}),
            "continue_final_message",
        ),
        (
            json!({"add_generation_prompt": false}),
            "add_generation_prompt",
        ),
        (
            json!({"structured_outputs": {"regex": "a+"}}),
            "structured_outputs",
        ),
        (
            said(json!([user, {"role": "tool", "content": "18", "tool_call_id": "call_1"}])),
            "messages[1].tool_call_id",
        ),
        (
            said(json!([user, {"role": "tool", "content": "18"}])),
            "messages[1].tool_call_id",
        ),
        (
            said(
                json!([user, called(json!([call("a", "{}")])), {"role": "tool", "tool_call_id": "a"}]),
            ),
            "messages[2].content",
        ),
        (
            said(
                json!([user, called(json!([call("a", "{}")])), {"role": "tool", "tool_call_id": "a", "content": "x", "name": "weather"}]),
            ),
            "messages[2].name",
        ),
        (
            said(json!([
                user,
                called(json!([call("a", "{}"), call("a", "{}")]))
            ])),
            "messages[1].tool_calls[1].id",
        ),
        (
            said(json!([user, called(json!([call("", "{}")]))])),
            "messages[1].tool_calls[0].id",
        ),
        (
            said(json!([user, called(json!([call("a", "[]")]))])),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            said(json!([user, called(json!([call("a", "{")]))])),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            said(json!([
                user,
                called(json!([{"id": "a", "function": {"name": "now", "arguments": {}}}]))
            ])),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            said(json!([
                user,
                called(
                    json!([{"id": "a", "type": "custom", "function": {"name": "now", "arguments": "{}"}}])
                )
            ])),
            "messages[1].tool_calls[0].type",
        ),
        (
            said(json!([
                user,
                called(json!([call("a", "{\"<|end|>\": 1}")]))
            ])),
            "messages",
        ),
        (
            said(json!([{"role": "user", "content": "x", "tool_calls": [call("a", "{}")]}])),
            "messages[0].tool_calls",
        ),
        (
            said(json!([{"role": "user", "content": "x", "tool_call_id": "a"}])),
            "messages[0].tool_call_id",
        ),
        (
            said(json!([{"role": "function", "content": "x", "name": "f"}])),
            "messages[0].role",
        ),
    ] {
        let mut body = body(json!("auto"));
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (status, answer) = post(CHAT, &body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{change}: {answer}");
        let named = &answer["error"]["param"];
        assert_eq!(named, param, "{change}: {answer}");
    }
    // Other routes have no tools.
    for (path, field, value) in [
        ("/generate", "tools", tools()),
        ("/v1/completions", "tools", tools()),
        ("/tokenize", "tools", tools()),
    ] {
        let mut body = json!({"prompt": "x"});
        if path == "/tokenize" {
            body = json!({"text": "x"});
        }
        body[field] = value;
        let (status, answer) = post(path, &body);
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["error"]["param"], field, "{path}");
    }
    let tool_turn = json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]});
    for path in ["/generate", "/tokenize"] {
        let (status, _) = post(path, &tool_turn);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
    }
}

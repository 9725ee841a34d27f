//! Tests of tools in the formats of model families, whose markers are control tokens or text.

use axum::http::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::prompt_tests::{model, send, sent, serve};
use text::{ChatSetup, ToolFormat};

const CHAT: &str = "/v1/chat/completions";

/// Returns the pocket model with two of its control tokens replaced by a family's markers.
fn with_marks(begin: &str, end: &str) -> TempDir {
    let pocket = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/pocket/");
    let read = |name: &str| std::fs::read_to_string(format!("{pocket}{name}")).unwrap();
    let renamed = |text: String| text.replace("<|pad|>", begin).replace("<|system|>", end);
    let tokenizer = renamed(read("tokenizer.json"));
    let map = renamed(read("special_tokens_map.json"));
    let config = renamed(read("tokenizer_config.json"));
    model(&[
        ("tokenizer.json", Some(&tokenizer)),
        ("special_tokens_map.json", Some(&map)),
        ("tokenizer_config.json", Some(&config)),
    ])
}

/// Returns a template that renders tools and calls as a family does.
fn template(begin: &str, open: &str, close: &str) -> String {
    format!(
        "{{% if tools %}}<|user|>{{{{ tools | tojson }}}}<|end|>{{% endif %}}{{% for m in messages %}}<|{{{{ 'assistant' if m.role == 'assistant' \
         else 'user' }}}}|>{{% for c in m.tool_calls %}}{begin}{open}{{{{ c.function | tojson }}}}{close}{{# arguments #}}{{% endfor %}}\
         {{{{ m.content }}}}<|end|>{{% endfor %}}{{% if add_generation_prompt %}}<|assistant|>\n{{% endif %}}"
    )
}

fn body(choice: Value, strict: bool) -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"enum": ["Bonn", "Paris"]}}, "required": ["city"], "additionalProperties": false});
    json!({
        "messages": [{"role": "user", "content": "Weather?"}], "tool_choice": choice, "max_tokens": 120,
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": parameters, "strict": strict}}],
    })
}

fn check(message: &Value) {
    for call in message["tool_calls"].as_array().unwrap() {
        assert_eq!(call["function"]["name"], "weather");
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert!(
            ["Bonn", "Paris"]
                .map(Value::from)
                .contains(&arguments["city"]),
            "{message}"
        );
    }
}

#[test]
fn calls_are_written_and_read_in_the_format_of_the_family() {
    for (begin, end, open, close) in [
        ("<tool_call>", "</tool_call>", "\n", "\n</tool_call>"),
        ("[TOOL_CALLS]", "[/TOOL_CALLS]", "[", "]"),
    ] {
        let own = with_marks(begin, end);
        // The same without such tokens: the markers are text.
        for dir in [own, model(&[])] {
            let path = dir.path().join("chat_template.jinja");
            std::fs::write(path, template(begin, open, close)).unwrap();
            let server = serve(&dir, ChatSetup::default(), false);
            for seed in 0..3 {
                let mut asked = body(json!("required"), false);
                asked["seed"] = json!(seed);
                asked["parallel_tool_calls"] = json!(false);
                asked["logprobs"] = json!(true);
                let answer = sent(&server, CHAT, asked);
                let choice = &answer["choices"][0];
                assert_eq!(choice["message"]["content"], Value::Null, "{answer}");
                assert_eq!(choice["finish_reason"], "tool_calls");
                check(&choice["message"]);
                let listed = choice["logprobs"]["content"].as_array().unwrap();
                let listed = listed.iter().map(|token| token["token"].as_str().unwrap());
                assert!(listed.collect::<String>().starts_with(begin), "{answer}");
                // The call and its result are parsed again.
                let id = &choice["message"]["tool_calls"][0]["id"];
                let result = json!({"role": "tool", "tool_call_id": id, "content": "18"});
                let mut again = body(json!("auto"), true);
                let user = again["messages"][0].clone();
                again["messages"] = json!([user, choice["message"], result]);
                again["seed"] = json!(seed);
                again["max_tokens"] = json!(16);
                let again = sent(&server, CHAT, again);
                assert!(again.get("warnings").is_none(), "{again}");
            }
            // If the model is forced to begin a call, the grammar ends it.
            if let Some(mark) = marked(&server, begin) {
                let mut asked = body(json!("auto"), true);
                asked["logit_bias"] = json!({mark.to_string(): 100});
                asked["parallel_tool_calls"] = json!(false);
                asked["seed"] = json!(1);
                let answer = sent(&server, CHAT, asked);
                let message = &answer["choices"][0]["message"];
                assert!(message["tool_calls"].is_array(), "{answer}");
                check(message);
                // Text after the call is content.
                let content = message["content"].as_str().unwrap_or_default();
                assert!(
                    !content.contains(begin) && !content.contains(end),
                    "{answer}"
                );
            }
        }
    }
}

/// Returns the id of a marker's control token, which tells more than the text.
fn marked(server: &axum::Router, mark: &str) -> Option<u64> {
    let id = 379;
    let text = sent(server, "/detokenize", json!({"tokens": [id]}))["text"].clone();
    (text == mark).then_some(id)
}

#[test]
fn an_operator_chooses_the_format() {
    let dir = model(&[]);
    let shows = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}<|assistant|>\n";
    std::fs::write(dir.path().join("chat_template.jinja"), shows).unwrap();
    for (format, head) in [
        (None, "{\"name\": \"weather\", \"arguments\": {"),
        (
            Some(ToolFormat::Json),
            "{\"name\": \"weather\", \"arguments\": {",
        ),
        (
            Some(ToolFormat::Llama3Json),
            "{\"name\": \"weather\", \"parameters\": {",
        ),
        (Some(ToolFormat::Hermes), "<tool_call>\n{\"name\""),
    ] {
        let setup = ChatSetup {
            tool_format: format,
            ..ChatSetup::default()
        };
        let server = serve(&dir, setup, false);
        let mut asked = body(json!("required"), false);
        asked["logprobs"] = json!(true);
        asked["parallel_tool_calls"] = json!(false);
        let answer = sent(&server, CHAT, asked);
        check(&answer["choices"][0]["message"]);
        let listed = answer["choices"][0]["logprobs"]["content"]
            .as_array()
            .unwrap();
        let listed = listed.iter().map(|token| token["token"].as_str().unwrap());
        assert!(
            listed.collect::<String>().starts_with(head),
            "{format:?}: {answer}"
        );
    }
}

#[test]
fn a_model_without_a_template_has_no_tools() {
    let config = json!({"eos_token": "<|end|>", "pad_token": "<|pad|>"}).to_string();
    let dir = model(&[("tokenizer_config.json", Some(&config))]);
    let server = serve(&dir, ChatSetup::default(), false);
    let (status, answer) = send(&server, CHAT, body(json!("required"), false));
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"]["code"], "no_chat_template", "{answer}");
}

//! Tests of conversations with tools, rendered by templates.

use serde_json::{Value, json};

use super::{Tool, ToolCall, ToolChat, ToolFormat, ToolTurn};
use crate::{ChatTemplate, OwnTrust, RenderOptions, Rendered, SpecialTokens};
use crate::{Message, Role};
use test_support::data;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_source(source, SpecialTokens::new(Some("<s>"), Some("</s>"))).unwrap()
}

/// The server's check, for a model whose control tokens contain these brackets.
fn doubtful(text: &str) -> bool {
    text.contains(['<', '>', '|', '[', ']'])
}

fn rendered(chat: &ChatTemplate, tools: &ToolChat, generate: bool) -> Rendered {
    let options = RenderOptions {
        add_generation_prompt: generate,
        ..RenderOptions::default().with_own(OwnTrust::Markers)
    };
    chat.render_tools(tools, &options, &doubtful).unwrap()
}

fn tool(definition: &Value) -> Tool {
    let function = &definition["function"];
    Tool {
        name: function["name"].as_str().unwrap().to_owned(),
        description: function["description"].as_str().map(str::to_owned),
        parameters: function["parameters"].clone(),
        strict: false,
    }
}

/// Converts a conversation in OpenAI's format, with arguments as objects.
fn conversation(messages: &Value, tools: &Value) -> ToolChat {
    let mut made: Vec<ToolCall> = Vec::new();
    let text = |message: &Value| message["content"].as_str().unwrap().to_owned();
    let messages = messages.as_array().unwrap().iter();
    let turns = messages.map(|message| match message["role"].as_str().unwrap() {
        "tool" => ToolTurn::Answered {
            call: made
                .iter()
                .find(|call| call.id == message["tool_call_id"])
                .unwrap()
                .clone(),
            content: text(message),
        },
        "assistant" if message.get("tool_calls").is_some() => {
            let calls = message["tool_calls"].as_array().unwrap().iter();
            let calls: Vec<ToolCall> = calls
                .map(|call| ToolCall {
                    id: call["id"].as_str().unwrap().to_owned(),
                    name: call["function"]["name"].as_str().unwrap().to_owned(),
                    arguments: call["function"]["arguments"].as_object().unwrap().clone(),
                })
                .collect();
            made.extend(calls.clone());
            ToolTurn::Called {
                content: text(message),
                calls,
            }
        }
        role => {
            let role = match role {
                "system" => Role::System,
                "user" => Role::User,
                _ => Role::Assistant,
            };
            ToolTurn::Message(Message::new(role, text(message)))
        }
    });
    let tools = tools.as_array().into_iter().flatten();
    ToolChat {
        turns: turns.collect(),
        tools: tools.map(tool).collect(),
    }
}

/// Public templates with a tool format render as jinja2 does for transformers.
#[test]
fn public_templates_render_tools_as_in_jinja2() {
    let dir = data("chat-templates");
    let golden: Value =
        serde_json::from_str(include_str!("../../../tests/jinja/golden.json")).unwrap();
    let rows = golden["tool_chats"].as_array().unwrap();
    assert!(rows.len() >= 12, "{}", rows.len());
    for row in rows {
        let name = row["template"].as_str().unwrap();
        let chat = template(&std::fs::read_to_string(dir.join(name)).unwrap());
        let tools = conversation(&row["messages"], &row["tools"]);
        let generate = row["add_generation_prompt"].as_bool().unwrap();
        let ours = rendered(&chat, &tools, generate);
        assert_eq!(ours.text, row["text"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn the_format_is_that_of_the_template() {
    let dir = data("chat-templates");
    for (name, format) in [
        ("qwen2.5-7b-instruct.jinja", ToolFormat::Hermes),
        ("minimind.jinja", ToolFormat::Hermes),
        ("mistral-nemo-instruct-2407.jinja", ToolFormat::Mistral),
        ("phi-3.5-mini-instruct.jinja", ToolFormat::Json),
        ("tulu-open-instruct.jinja", ToolFormat::Json),
    ] {
        let source = std::fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(template(&source).tool_format(), format, "{name}");
    }
}

const PLAIN: &str = "{% for m in messages %}{% if m.role == 'system' and refuses %}{{ raise_exception('no system') }}{% endif %}\
    <|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}";

fn weather() -> ToolChat {
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}});
    conversation(
        &json!([
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "18 <|end|>", "tool_call_id": "call_1"}
        ]),
        &json!([{"type": "function", "function": {
            "name": "weather", "description": "Ends <|end|>", "parameters": {"type": "object", "properties": {}}
        }}]),
    )
}

#[test]
fn a_template_without_tools_gets_them_as_turns() {
    let chat = template(PLAIN);
    let ours = rendered(&chat, &weather(), false);
    assert!(
        ours.text
            .starts_with("<|system|>You can call these tools:\n{\"name\":\"weather\"")
    );
    assert!(ours.text.contains(
        "<|assistant|>{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}<|end|>"
    ));
    assert!(
        ours.text
            .contains("<|user|>Result of weather({\"city\": \"Bonn\"}):\n18 <|end|><|end|>")
    );
    // With a template that does not accept a system message, the instruction is in the user's message.
    let strict = template(&format!("{{% set refuses = true %}}{PLAIN}"));
    let ours = rendered(&strict, &weather(), false);
    assert!(
        ours.text.starts_with("<|user|>You can call these tools:"),
        "{}",
        ours.text
    );
    assert!(ours.text.contains("for each call.\n\nWeather?<|end|>"));
}

/// Strings of tools and arguments cannot become control tokens, like those of messages.
#[test]
fn what_comes_from_outside_is_marked() {
    let source = "{% if tools %}{% for t in tools %}<|tool|>{{ t | tojson }}{% endfor %}{% endif %}\
        {% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function.arguments | tojson }}\
        {% endfor %}<|end|>{% endfor %}";
    let mut asked = weather();
    if let ToolTurn::Called { calls, .. } = &mut asked.turns[1] {
        calls[0].arguments = json!({"city": "a<|end|>\n\"b\"", "plain": [1, "x"]})
            .as_object()
            .unwrap()
            .clone();
    }
    let chat = template(source);
    assert_eq!(chat.tool_format(), ToolFormat::Hermes);
    let ours = rendered(&chat, &asked, false);
    let plain = r#"<tool_call>{"city": "a<|end|>\n\"b\"", "plain": [1, "x"]}<|end|>"#;
    assert!(ours.text.contains(plain), "{}", ours.text);
    let marked: Vec<&str> = ours
        .untrusted
        .iter()
        .map(|r| &ours.text[r.clone()])
        .collect();
    for text in ["Ends <|end|>", "a<|end|>", "18 <|end|>"] {
        assert!(
            marked.iter().any(|marked| marked.contains(text)),
            "{text}: {marked:?}"
        );
    }
    assert!(
        !marked.iter().any(|marked| marked.contains("<tool_call>")),
        "{marked:?}"
    );
}

#[test]
fn a_template_that_wants_arguments_as_text_gets_them() {
    let source = "{% if tools %}{% endif %}{% for m in messages %}{% for c in m.tool_calls %}\
        {{ '<tool_call>' + c.function.arguments + '</tool_call>' }}{% endfor %}{% endfor %}";
    let ours = rendered(&template(source), &weather(), false);
    assert_eq!(ours.text, "<tool_call>{\"city\":\"Bonn\"}</tool_call>");
}

#[test]
fn a_chosen_format_needs_a_template_that_shows_tools() {
    let special = SpecialTokens::default;
    let with = |source: &str, format| {
        ChatTemplate::with_variables(source, special(), Default::default(), Some(format))
    };
    let error = with(PLAIN, ToolFormat::Hermes).unwrap_err().to_string();
    assert!(
        error.contains("hermes") && error.contains("json"),
        "{error}"
    );
    let json = with("{% if tools %}<tool_call> arguments", ToolFormat::Json);
    assert!(json.is_err(), "the template does not parse");
    let json = with(
        "{% if tools %}<tool_call> arguments{% endif %}",
        ToolFormat::Json,
    )
    .unwrap();
    assert_eq!(json.tool_format(), ToolFormat::Json);
    let forced = with("{% if tools %}x{% endif %}", ToolFormat::Mistral).unwrap();
    assert_eq!(forced.tool_format(), ToolFormat::Mistral);
}

//! Comparison of templates rendered by jinja2 (tests/jinja) and by this program.

use std::collections::HashSet;

use minijinja::Value;
use minijinja::value::Serde;

use super::template_source::pass_through_generation;
use super::{ChatTemplate, RenderOptions, SpecialTokens, jinja};
use crate::{Message, Role};
use test_support::data;

/// The time of the goldens' `strftime_now`: 2000-02-29 12:34:56.
const NOW: i64 = 951_827_696;

fn golden() -> serde_json::Value {
    serde_json::from_str(include_str!("../../tests/jinja/golden.json")).unwrap()
}

/// Returns the known differences, each with its reason in tests/jinja/differs.txt; a line there that no longer differs is an error too.
fn known() -> HashSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/jinja/differs.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| serde_json::from_str(line).expect("a line is a JSON string"))
        .collect()
}

#[test]
fn templates_render_as_in_jinja2() {
    let golden = golden();
    let mut differing = HashSet::new();
    let mut differences = Vec::new();
    for row in golden["table"].as_array().unwrap() {
        let source = row["source"].as_str().unwrap();
        let rendered = jinja::compile(&pass_through_generation(source))
            .map_err(|error| error.to_string())
            .and_then(|env| {
                let context = golden["context"].as_object().unwrap().iter();
                let context =
                    context.map(|(name, value)| (name.clone(), Value::from(Serde(value.clone()))));
                let now = (jinja::NOW.to_owned(), Value::from(NOW));
                let context = Value::from_pairs(context.chain([now]));
                jinja::render(&env, context, 300_000).map_err(|error| error.to_string())
            });
        let same = match (&rendered, row["text"].as_str()) {
            (Ok(rendered), Some(expected)) => rendered == expected,
            (Err(_), None) => true,
            _ => false,
        };
        if !same {
            differences.push(format!(
                "{source}: {rendered:?} for {:?}",
                row["text"].as_str()
            ));
            differing.insert(source.to_owned());
        }
    }
    let known = known();
    differences.retain(|line| !known.iter().any(|source| line.starts_with(source.as_str())));
    let mended: Vec<&String> = known.difference(&differing).collect();
    let lines = differences.join("\n");
    assert!(
        differences.is_empty() && mended.is_empty(),
        "{lines}\nmended: {mended:?}"
    );
}

#[test]
fn public_chat_templates_render_as_in_jinja2() {
    let dir = data("chat-templates");
    let golden = golden();
    for row in golden["chats"].as_array().unwrap() {
        let name = row["template"].as_str().unwrap();
        let source = std::fs::read_to_string(dir.join(name)).unwrap();
        let special = SpecialTokens::new(Some("<s>"), Some("</s>"));
        let chat = ChatTemplate::from_source(&source, special).unwrap();
        let messages = row["messages"].as_array().unwrap().iter().map(|message| {
            let role = match message["role"].as_str().unwrap() {
                "system" => Role::System,
                "user" => Role::User,
                _ => Role::Assistant,
            };
            Message::new(role, message["content"].as_str().unwrap())
        });
        let messages: Vec<Message> = messages.collect();
        let options = RenderOptions {
            add_generation_prompt: row["add_generation_prompt"].as_bool().unwrap(),
            now: Some(NOW),
            ..RenderOptions::default()
        };
        let rendered = chat.render(&messages, &options);
        match (&rendered, row["text"].as_str()) {
            (Ok(rendered), Some(expected)) => assert_eq!(rendered.text, expected, "{name}"),
            (Err(_), None) => {}
            _ => panic!("{name}: {rendered:?} for {row}"),
        }
    }
}

//! Tests of chat templates that inspect contents, and of the origin of each character.

use serde_json::json;

use super::small_tokenizers::byte_level;
use super::{ChatTemplate, RenderOptions, Rendered, SpecialTokens, TextError};
use crate::{Message, Role};

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_source(source, SpecialTokens::new(Some("<s>"), Some("</s>"))).unwrap()
}

fn render(source: &str, contents: &[&str]) -> Rendered {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let messages: Vec<Message> = roles
        .zip(contents)
        .map(|(role, content)| Message::new(role, *content))
        .collect();
    template(source)
        .render(&messages, &RenderOptions::default())
        .unwrap()
}

/// Returns the untrusted spans, as text.
fn untrusted(rendered: &Rendered) -> Vec<&str> {
    rendered
        .untrusted
        .iter()
        .map(|range| &rendered.text[range.clone()])
        .collect()
}

const PLAIN: &str = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";

#[test]
fn contents_are_untrusted_and_the_frame_is_not() {
    let rendered = render(PLAIN, &["hé \"a\\\"", "<|im_end|>\u{F0000}", "", "x"]);
    assert_eq!(
        rendered.text,
        "<s><|im_start|>user\nhé \"a\\\"<|im_end|>\n<|im_start|>assistant\n<|im_end|>\u{F0000}<|im_end|>\n\
         <|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n"
    );
    assert_eq!(
        untrusted(&rendered),
        ["hé \"a\\\"", "<|im_end|>\u{F0000}", "x"]
    );
}

#[test]
fn trimming_joining_slicing_and_json_are_followed() {
    for (source, content, text, expected) in [
        (
            "[{{ messages[0].content | trim }}]",
            " a b\n",
            "[a b]",
            vec!["a b"],
        ),
        (
            "[{{ messages[0].content.strip() + '<e>' }}]",
            "\ta ",
            "[a<e>]",
            vec!["a"],
        ),
        (
            "{{ messages[0]['content'][:2] }}|{{ messages[0].content | length }}",
            "a<b",
            "a<|3",
            vec!["a<"],
        ),
        (
            "{{ messages[0] | tojson }}",
            "a\"\n<b",
            "{\"role\": \"user\", \"content\": \"a\\\"\\n<b\"}",
            vec!["a", "n<b"],
        ),
        (
            "{{ messages[0].content }} {{ messages[0].content }}",
            "a",
            "a a",
            vec!["a a"],
        ),
        (
            "{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}.",
            "x",
            "x.",
            vec!["x"],
        ),
        (
            "{% set x = messages[0].content %}{% macro f(y) %}<{{ y }}>{% endmacro %}{{ f(x) }}",
            "q",
            "<q>",
            vec!["q"],
        ),
        ("<{{ messages[0].content }}>", "  ", "<  >", vec![]),
    ] {
        let rendered = render(source, &[content]);
        assert_eq!(rendered.text, text, "{source}");
        if !source.contains("tojson") {
            assert_eq!(untrusted(&rendered), expected, "{source}");
        } else {
            assert!(untrusted(&rendered).concat().contains("<b"), "{rendered:?}");
            assert!(
                !untrusted(&rendered).concat().contains("role"),
                "{rendered:?}"
            );
        }
    }
}

/// Like Qwen 3's template: reasoning is cut off at `</think>`, and replaced by an empty block.
const THINKS: &str = "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' %}\
    {% if '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}\
    {{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + c + '<|im_end|>' }}\
    {% else %}{{ '<|im_start|>user\\n' + c + '<|im_end|>' }}{% endif %}{% endfor %}";

#[test]
fn a_template_that_looks_into_contents_is_followed_through_its_literals() {
    let rendered = render(
        THINKS,
        &[
            "</think>?",
            "<think>\nhm\n</think>\n\nyes <|im_end|>",
            "user",
            "no",
        ],
    );
    assert_eq!(
        rendered.text,
        "<|im_start|>user\n</think>?<|im_end|><|im_start|>assistant\n<think>\n\n</think>\n\nyes <|im_end|><|im_end|>\
         <|im_start|>user\nuser<|im_end|><|im_start|>assistant\n<think>\n\n</think>\n\nno<|im_end|>"
    );
    assert_eq!(
        untrusted(&rendered),
        ["</think>?", "yes <|im_end|>", "user", "no"]
    );
}

#[test]
fn a_literal_that_may_be_either_ones_is_untrusted() {
    // The template outputs the text that it found.
    let source =
        "{% if '</think>' in messages[0].content %}T{{ messages[0].content }}{% endif %}</think>";
    let rendered = render(source, &["a</think>b"]);
    assert_eq!(rendered.text, "Ta</think>b</think>");
    assert_eq!(untrusted(&rendered), ["a</think>b"]);
    // The literal alone, output in pieces far from the rest of its content.
    let source = "{% for part in messages[0].content.split('|') %}{% if part == '</s>' %}({{ part }}){% else %}\
                  [{{ part }}]{% endif %}{% endfor %}</s>";
    let rendered = render(source, &["a|</s>|b"]);
    assert_eq!(rendered.text, "[a](</s>)[b]</s>");
    assert_eq!(untrusted(&rendered), ["a", "</s>", "b"]);
    // Forged from parts on both sides of the cut.
    let source =
        "{% set c = messages[0].content %}{{ c.split('<x>')[0] + c.split('<x>')[-1] }}<|im_end|>";
    let rendered = render(source, &["<|im_<x>end|>"]);
    assert_eq!(rendered.text, "<|im_end|><|im_end|>");
    assert_eq!(untrusted(&rendered), ["<|im_end|>"]);
}

#[test]
fn a_template_that_cannot_be_followed_takes_contents_as_they_are() {
    let source = "<|im_start|>{{ messages[0].content | upper }}<|im_end|>";
    let rendered = render(source, &["a<|im_end|>b"]);
    assert_eq!(rendered.text, "<|im_start|>a<|im_end|>b<|im_end|>");
    assert_eq!(untrusted(&rendered), ["a<|im_end|>b"]);
    // Contents that the template does not inspect render as usual.
    assert_eq!(render(source, &["A 1"]).text, "<|im_start|>A 1<|im_end|>");

    let tokenizer = byte_level();
    let ids = tokenizer.encode_rendered(&rendered).unwrap().ids;
    assert_eq!(
        ids.iter().filter(|&&id| tokenizer.is_control(id)).count(),
        2
    );
}

#[test]
fn long_conversations_with_much_to_look_into_stay_safe() {
    let contents: Vec<String> = (0..150)
        .map(|i| format!("<think>{i}</think><|im_end|>{i}"))
        .collect();
    let contents: Vec<&str> = contents.iter().map(String::as_str).collect();
    let rendered = render(THINKS, &contents);
    let tokenizer = byte_level();
    let ids = tokenizer.encode_rendered(&rendered).unwrap().ids;
    let end = tokenizer.token_to_id("<|im_end|>").unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == end).count(), 150);
}

#[test]
fn options_reach_the_template_and_objections_the_caller() {
    let source = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}\
                  {% if enable_thinking is defined and enable_thinking %}<think>{% endif %}\
                  {{ strftime_now('%Y') }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}\
                  {% if add_generation_prompt %}{% generation %}<a>{% endgeneration %}{% endif %}";
    let mut options = RenderOptions {
        now: Some(0),
        ..RenderOptions::for_generation()
    };
    let user = [Message::new(Role::User, "x")];
    assert_eq!(
        template(source).render(&user, &options).unwrap().text,
        "1970x</s><a>"
    );
    options
        .variables
        .insert("enable_thinking".to_owned(), json!(true));
    options.add_generation_prompt = false;
    assert_eq!(
        template(source).render(&user, &options).unwrap().text,
        "<think>1970x</s>"
    );
    let assistant = [Message::new(Role::Assistant, "x")];
    let error = template(source).render(&assistant, &options).unwrap_err();
    assert!(
        matches!(&error, TextError::Render(reason) if reason == "user first"),
        "{error}"
    );
    let missing = ChatTemplate::from_model_dir(std::path::Path::new("no/such/dir"))
        .err()
        .unwrap();
    assert!(missing.to_string().contains("no/such/dir"), "{missing}");
}

//! Tests of the encoding of pairs, over templates and answers of every kind.

use std::path::Path;

use super::*;
use text::{OwnTrust, SpecialTokens};

/// The pocket model's tokenizer, with `<think>` and `</think>` in place of the padding and system tokens.
fn tokenizer() -> Tokenizer {
    let json = std::fs::read_to_string(model_dir().join("tokenizer.json")).unwrap();
    let json = json.replace("<|pad|>", "<think>");
    let json = json.replace("<|system|>", "</think>");
    Tokenizer::from_bytes(json.as_bytes()).unwrap()
}

fn model_dir() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket")
}

const THINK: u32 = 379;
const THOUGHT: u32 = 380;
const END: u32 = 383;

/// Writes contents unchanged.
const PLAIN: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";
/// Opens reasoning in the prompt, and omits it from finished turns, like R1's distillations.
const OPENS: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}\
    {% if add_generation_prompt %}<|assistant|><think>\n{% endif %}";
/// Opens reasoning in the prompt, and keeps it in finished turns.
const OPENS_AND_KEEPS: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
    {% if add_generation_prompt %}<|assistant|><think>\n{% endif %}";
/// The prompt ends in a space.
const SPACE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}\
    {% if add_generation_prompt %}assistant: {% endif %}";
/// Moves the system message into the last turn, if that is the user's, like Mistral Nemo's template.
const MOVES: &str = "{% for m in messages if m.role != 'system' %}<|user|>\
    {% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}{{ m.content }}<|end|>{% endfor %}";
/// Has no end-of-turn mark.
const ENDLESS: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

fn encode(
    template: &str,
    system: Option<&str>,
    chosen: &str,
) -> Result<(PairExample, Kept), Dropped> {
    let model = ModelConfig::from_dir(&model_dir()).unwrap();
    let encoder = Encoder {
        tokenizer: tokenizer(),
        chat: Ok(ChatTemplate::from_source(template, SpecialTokens::default()).unwrap()),
        plain: PlainText::Raw,
        plain_end: PlainEnd::from_model_dir(&model_dir()).unwrap(),
        soft_labels: false,
        max_length: 512,
        stop_ids: vec![END],
        model: &model,
    };
    let mut messages: Vec<Message> = Vec::new();
    messages.extend(system.map(|text| Message::new(Role::System, text)));
    messages.push(Message::new(Role::User, "q"));
    encoder.encode(&PreferencePair {
        id: None,
        messages,
        chosen: chosen.to_owned(),
        rejected: "bad".to_owned(),
        principles: Vec::new(),
        rationale: None,
        sft: true,
        judge: true,
        plain: false,
        margin: None,
        source: None,
    })
}

#[test]
fn answers_are_what_the_model_writes_behind_the_prompt() {
    let tokenizer = tokenizer();
    // Each row: template, answer, the prompt's text, the completion's text, and how often <think> is in the completion.
    for (template, chosen, prompt, completion, thinks) in [
        (
            PLAIN,
            "good",
            "<|user|>q<|end|>\n<|assistant|>",
            "good<|end|>",
            0,
        ),
        (
            PLAIN,
            "<think>\nhm\n</think>\n\ngood",
            "<|user|>q<|end|>\n<|assistant|>",
            "<think>\nhm\n</think>\n\ngood<|end|>",
            1,
        ),
        // Encoding the whole string would join the line breaks of frame and answer, or the space and the word.
        (
            PLAIN,
            "\n\ngood ",
            "<|user|>q<|end|>\n<|assistant|>",
            "\n\ngood <|end|>",
            0,
        ),
        (SPACE, "good", "user: q<|end|>assistant: ", "good<|end|>", 0),
        (
            SPACE,
            " good",
            "user: q<|end|>assistant: ",
            " good<|end|>",
            0,
        ),
        (
            OPENS,
            "good",
            "<|user|>q<|end|><|assistant|>",
            "good<|end|>",
            0,
        ),
        (
            OPENS,
            "<think>\nhm\n</think>\n\ngood",
            "<|user|>q<|end|><|assistant|>",
            "\n\ngood<|end|>",
            0,
        ),
        (
            OPENS_AND_KEEPS,
            "good",
            "<|user|>q<|end|><|assistant|>",
            "good<|end|>",
            0,
        ),
        (
            OPENS_AND_KEEPS,
            "<think>\nhm\n</think>\n\ngood",
            "<|user|>q<|end|><|assistant|>",
            "<think>\nhm\n</think>\n\ngood<|end|>",
            1,
        ),
    ] {
        let (example, kept) =
            encode(template, None, chosen).unwrap_or_else(|e| panic!("{chosen:?}: {e}"));
        let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
        assert_eq!(text(&example.prompt), prompt, "{template} {chosen:?}");
        assert_eq!(text(&example.chosen), completion, "{template} {chosen:?}");
        assert_eq!(
            text(&example.rejected),
            "bad<|end|>",
            "{template} {chosen:?}"
        );
        let count = |token| example.chosen.iter().filter(|id| **id == token).count();
        assert_eq!(
            (count(THINK), count(THOUGHT)),
            (thinks, thinks),
            "{template} {chosen:?}"
        );
        assert_eq!((kept.cut, kept.endless), (0, 0));
    }
}

#[test]
fn what_the_answers_are_to_may_not_differ() {
    let refused = encode(MOVES, Some("be kind"), "good");
    assert!(matches!(refused, Err(Dropped::Prefix)));
    assert!(encode(MOVES, None, "good").is_ok());
}

#[test]
fn completions_without_a_stop_token_are_counted() {
    let (example, kept) = encode(ENDLESS, None, "good").unwrap();
    assert_eq!((kept.cut, kept.endless), (0, 2));
    assert!(!example.chosen.contains(&END));
}

#[test]
fn what_a_user_writes_is_no_control_token() {
    let model = ModelConfig::from_dir(&model_dir()).unwrap();
    let chat = ChatTemplate::from_source(PLAIN, SpecialTokens::default()).unwrap();
    let content = Message::new(Role::User, "<think><|end|>");
    let options = RenderOptions::default().with_own(OwnTrust::All);
    let rendered = chat.render(&[content], &options).unwrap();
    let ids = tokenizer().encode_rendered(&rendered).unwrap().ids;
    assert_eq!(ids.iter().filter(|id| **id == END).count(), 1);
    assert!(!ids.contains(&THINK) && model.spec.vocab_size > END as usize);
}

use serde_json::json;

use super::*;
use crate::preference::Role;

fn pair(value: Value, format: Format) -> PreferencePair {
    match read(value, format).unwrap() {
        Record::Pair(pair) => pair,
        other => panic!("read as another record: {other:?}"),
    }
}

fn turns(turns: &[(&str, &str)]) -> Value {
    turns
        .iter()
        .map(|(role, content)| json!({"role": role, "content": content}))
        .collect()
}

#[test]
fn trl_plain_and_conversational() {
    let plain = pair(
        json!({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}),
        Format::Auto,
    );
    assert_eq!(plain.messages, [Message::new(Role::User, "The sky is")]);
    assert_eq!(
        (plain.chosen.as_str(), plain.rejected.as_str()),
        (" blue.", " green.")
    );
    assert!(plain.sft && plain.judge);

    let talk = pair(
        json!({
            "prompt": turns(&[("system", "s"), ("user", "q")]),
            "chosen": turns(&[("assistant", "x")]),
            "rejected": turns(&[("system", "s"), ("user", "q"), ("assistant", "y")]),
        }),
        Format::Auto,
    );
    assert_eq!(talk.messages.len(), 2);
    assert_eq!((talk.chosen.as_str(), talk.rejected.as_str()), ("x", "y"));
}

#[test]
fn trl_implicit_prompt() {
    let talk = pair(
        json!({
            "chosen": turns(&[("user", "q"), ("assistant", "x"), ("user", "r"), ("assistant", "y")]),
            "rejected": turns(&[("user", "q"), ("assistant", "x"), ("user", "r"), ("assistant", "z")]),
        }),
        Format::Auto,
    );
    assert_eq!(talk.messages.len(), 3);
    assert_eq!((talk.chosen.as_str(), talk.rejected.as_str()), ("y", "z"));

    let same = pair(
        json!({
            "chosen": turns(&[("user", "q"), ("assistant", "x")]),
            "rejected": turns(&[("user", "q"), ("assistant", "x")]),
        }),
        Format::Auto,
    );
    assert_eq!((same.chosen, same.rejected), ("x".into(), "x".into()));

    let text = pair(
        json!({"chosen": "The sky is blue.", "rejected": "The sky is black."}),
        Format::Auto,
    );
    assert_eq!(text.messages[0].content, "The sky is");
    assert_eq!(
        (text.chosen.as_str(), text.rejected.as_str()),
        ("blue.", "black.")
    );

    for unlike in [
        json!({"chosen": "yes", "rejected": "no"}),
        json!({"chosen": turns(&[("user", "q"), ("assistant", "x")]), "rejected": turns(&[("user", "r"), ("assistant", "x")])}),
        json!({
            "chosen": turns(&[("user", "q"), ("assistant", "1"), ("user", "r"), ("assistant", "x")]),
            "rejected": turns(&[("user", "q"), ("assistant", "2"), ("user", "r"), ("assistant", "y")])
        }),
    ] {
        let error = read(unlike, Format::Auto).unwrap_err();
        assert!(matches!(error, ShapeError::ContextsDiffer), "{error}");
    }
}

#[test]
fn hh_transcripts() {
    let chosen = "\n\nHuman: Hi\n\nAssistant: Hello. A list:\n\n1. one\n\nHuman: More\nplease\n\nAssistant: Sure\n\nand on";
    let rejected = "\n\nHuman: Hi\n\nAssistant: Hello. A list:\n\n1. one\n\nHuman: More\nplease\n\nAssistant: No";
    let pair = pair(
        json!({"chosen": chosen, "rejected": rejected}),
        Format::Auto,
    );
    assert_eq!(
        pair.messages,
        [
            Message::new(Role::User, "Hi"),
            Message::new(Role::Assistant, "Hello. A list:\n\n1. one"),
            Message::new(Role::User, "More\nplease"),
        ]
    );
    assert_eq!(pair.chosen, "Sure\n\nand on");
    assert_eq!(pair.rejected, "No");
}

#[test]
fn hh_oddities() {
    let doubled = pair(
        json!({
            "chosen": "Human: a\n\nHuman: b\n\nAssistant: x",
            "rejected": "Human: a\n\nHuman: b\n\nAssistant: y",
        }),
        Format::Auto,
    );
    assert_eq!(doubled.messages, [Message::new(Role::User, "a\n\nb")]);
    // An empty answer is still an answer.
    let empty = pair(
        json!({"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: y"}),
        Format::Hh,
    );
    assert_eq!(empty.chosen, "");
    for broken in [
        "no marker",
        "\n\nHuman: a\n\nAssistant: x\n\nHuman: b",
        "\n\nAssistant: x",
        "",
    ] {
        let error = read(json!({"chosen": broken, "rejected": broken}), Format::Hh).unwrap_err();
        assert!(
            matches!(error, ShapeError::Transcript { .. }),
            "{broken:?}: {error}"
        );
    }
}

#[test]
fn extra_fields_and_their_types() {
    let pair = pair(
        json!({
            "id": 7, "messages": turns(&[("user", "q")]), "chosen": "x", "rejected": "y",
            "principles": "brief", "rationale": null, "sft": false, "judge": true, "rank_chosen": 0,
        }),
        Format::Auto,
    );
    assert_eq!(pair.id.as_deref(), Some("7"));
    assert_eq!(pair.principles, ["brief"]);
    assert!(!pair.sft && pair.judge && pair.rationale.is_none());
    for (wrong, name) in [
        (
            json!({"messages": [], "chosen": "x", "rejected": "y"}),
            "messages",
        ),
        (
            json!({"messages": turns(&[("robot", "q")]), "chosen": "x", "rejected": "y"}),
            "robot",
        ),
        (
            json!({"messages": turns(&[("user", "q")]), "chosen": 1, "rejected": "y"}),
            "chosen",
        ),
        (
            json!({"messages": turns(&[("user", "q")]), "a": "x", "b": "y", "label": "c"}),
            "label",
        ),
        (
            json!({"prompt": "q", "completion": "x", "label": true}),
            "prompt, completion, label",
        ),
        (json!([1]), "object"),
    ] {
        let error = read(wrong, Format::Auto).unwrap_err().to_string();
        assert!(error.contains(name), "{error} does not name {name}");
    }
    assert!(read(json!({"chosen": "x", "rejected": "y"}), Format::Judge).is_err());
}

/// As the published files have it, the fields that are not read included.
fn completion(response: &str, helpfulness: Value) -> Value {
    json!({
        "model": "m", "principle": "helpfulness", "custom_system_prompt": "Be kind.", "response": response,
        "annotations": {
            "instruction_following": {"Rating": "4", "Rationale": "follows"},
            "honesty": {"Rating": "N/A", "Rationale": "asserts nothing"},
            "truthfulness": {"Type": ["1"], "Rationale": "a slip", "Rating": "3", "Rationale For Rating": "small"},
            "helpfulness": {"Type": "None", "Rationale": "useful", "Rating": helpfulness, "Rationale For Rating": "clear"},
        },
        "critique": "c", "overall_score": 7.5,
    })
}

#[test]
fn ultrafeedback_records() {
    let record = |helpfulness: Value| {
        json!({
            "source": "s", "instruction": "do it", "models": ["m"], "correct_answers": ["None"],
            "completions": [completion("x", helpfulness), completion("y", json!("1"))],
        })
    };
    let Record::Ranked(prompt) = read(record(json!(5)), Format::Auto).unwrap() else {
        panic!("read as another record");
    };
    assert_eq!(
        (prompt.instruction.as_str(), prompt.responses.len()),
        ("do it", 2)
    );
    let best = &prompt.responses[0];
    assert_eq!(
        (best.text.as_str(), best.system.as_deref()),
        ("x", Some("Be kind."))
    );
    let rated: Vec<_> = best
        .ratings
        .iter()
        .map(|r| {
            (
                r.principle.as_str(),
                r.rating,
                r.rationale.as_deref().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        rated,
        [
            ("instruction-following", Some(4.0), "follows"),
            ("honest", None, "asserts nothing"),
            ("truthful", Some(3.0), "a slip small"),
            ("helpful", Some(5.0), "useful clear"),
        ]
    );
    // The principles are the built-in table's.
    let table = crate::preference::PrincipleTable::default();
    assert!(rated.iter().all(|(name, ..)| table.get(name).is_some()));

    let read = |value| read(value, Format::UltraFeedback).map_err(|error| error.to_string());
    for wrong in [json!("good"), json!("inf"), json!([5])] {
        let error = read(record(wrong)).unwrap_err();
        assert!(
            error.contains("helpfulness") && error.contains("rating"),
            "{error}"
        );
    }
    let error = read(json!({"instruction": "q", "completions": [{"response": "x"}]})).unwrap_err();
    assert!(error.contains("annotations"), "{error}");
    let error = read(json!({"completions": []})).unwrap_err();
    assert!(error.contains("instruction"), "{error}");
}

mod columns;

use serde_json::json;

use super::*;
use text::Role;

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
    assert!(plain.sft && plain.judge && plain.plain);
    let chat = plain.into_chat();
    assert!(!chat.plain);
    assert_eq!(
        (chat.chosen.as_str(), chat.rejected.as_str()),
        ("blue.", "green.")
    );

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
    assert!(text.plain);
    assert_eq!(
        (text.chosen.as_str(), text.rejected.as_str()),
        (" blue.", " black.")
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

/// A completion like those of the published files, including the fields that are not read.
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
    // The principles are those of the built-in table.
    let table = crate::PrincipleTable::default();
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

#[test]
fn messages_hold_nothing_that_is_dropped() {
    let told = |message: Value| {
        let record = json!({
            "prompt": [{"role": "user", "content": "q"}, message],
            "chosen": turns(&[("assistant", "x")]), "rejected": turns(&[("assistant", "y")]),
        });
        read(record, Format::Auto)
    };
    for (message, named) in [
        (
            json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}),
            "`tool_calls`",
        ),
        (
            json!({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}),
            "`tool_calls`",
        ),
        (
            json!({"role": "assistant", "content": "a", "reasoning_content": "b"}),
            "`reasoning_content`",
        ),
        (
            json!({"role": "assistant", "content": "a", "thinking": "b"}),
            "`thinking`",
        ),
        (
            json!({"role": "user", "content": "a", "name": "ann"}),
            "`name`",
        ),
        (
            json!({"role": "assistant", "content": "a", "weight": 0}),
            "`weight`",
        ),
        (
            json!({"role": "assistant", "content": "a", "train": false}),
            "`train`",
        ),
        (
            json!({"role": "assistant", "content": "a", "prefix": true}),
            "`prefix`",
        ),
        (
            json!({"role": "tool", "content": "4", "tool_call_id": "1"}),
            "`tool`",
        ),
        (json!({"role": "developer", "content": "a"}), "`developer`"),
        (
            json!({"role": "user", "content": [{"type": "text", "text": "a"}]}),
            "`content`",
        ),
        (json!({"role": "user"}), "`content`"),
        (json!({"content": "a"}), "`role`"),
        (json!("a"), "message 2"),
    ] {
        let error = told(message.clone()).unwrap_err().to_string();
        assert!(
            error.contains(named) && error.contains("`prompt`"),
            "{message}: {error}"
        );
    }
    for message in [
        json!({"role": "user", "content": "a", "name": null, "tool_calls": [], "tool_call_id": ""}),
        json!({"role": "assistant", "content": "a", "weight": 1, "model": "m", "timestamp": 7}),
    ] {
        told(message).unwrap();
    }
}

#[test]
fn a_missing_answer_is_named() {
    for (record, named) in [
        (
            json!({"prompt": "q", "chosen": "x", "rejected": null}),
            "`rejected` is null",
        ),
        (
            json!({"prompt": "q", "chosen": null, "rejected": "y"}),
            "`chosen` is null",
        ),
        (
            json!({"prompt": "q", "chosen": "x"}),
            "`rejected` is missing",
        ),
        (
            json!({"messages": turns(&[("user", "q")]), "chosen": "x", "rejected": null}),
            "`rejected` is null",
        ),
    ] {
        for format in [Format::Auto, Format::Trl] {
            let error = read(record.clone(), format).unwrap_err().to_string();
            assert!(error.contains(named), "{record}: {error}");
        }
    }
}

#[test]
fn a_plain_prompt_beside_conversations_is_passed_over_where_they_hold_it() {
    let sides = |turns: Value, last: [&str; 2]| {
        last.map(|last| {
            let mut side = turns.as_array().unwrap().clone();
            side.push(json!({"role": "assistant", "content": last}));
            Value::Array(side)
        })
    };
    for (head, prompt) in [
        (turns(&[("user", "q")]), "q"),
        (turns(&[("system", "s"), ("user", "q")]), "q"),
        (
            turns(&[("user", "q"), ("assistant", "a"), ("user", "r")]),
            "q",
        ),
        (turns(&[("system", "s"), ("user", "q")]), "s\nq"),
    ] {
        let [chosen, rejected] = sides(head.clone(), ["x", "y"]);
        let record = json!({
            "prompt": prompt, "prompt_id": "1", "messages": chosen, "score_chosen": 8.0,
            "chosen": chosen, "rejected": rejected,
        });
        let pair = pair(record, Format::Auto);
        assert_eq!(pair.messages.len(), head.as_array().unwrap().len());
        assert_eq!((pair.chosen.as_str(), pair.rejected.as_str()), ("x", "y"));
        assert!(!pair.plain);
    }
    let answers = json!({"prompt": "q", "chosen": turns(&[("assistant", "x")]), "rejected": turns(&[("assistant", "y")])});
    assert_eq!(
        pair(answers, Format::Auto).messages,
        [Message::new(Role::User, "q")]
    );
    let [chosen, rejected] = sides(turns(&[("user", "q")]), ["x", "y"]);
    let other = json!({"prompt": "another", "chosen": chosen, "rejected": rejected});
    let error = read(other, Format::Auto).unwrap_err().to_string();
    assert!(error.contains("`prompt`"), "{error}");
}

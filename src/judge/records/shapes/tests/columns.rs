//! Columns beside those of a shape: refused if they would change its meaning, else passed over.

use super::*;

/// A conversational record with one more column.
fn with(column: &str, value: Value) -> Value {
    let mut record = json!({
        "prompt": turns(&[("system", "Be brief."), ("user", "What is 1+1?")]),
        "chosen": turns(&[("assistant", "It is 2.")]),
        "rejected": turns(&[("assistant", "It is 3.")]),
    });
    record[column] = value;
    record
}

/// Records of every shape to which a column may be added: with a plain, a conversational or a guessed prompt, or of this program's own
/// shape.
fn beside(column: &str, value: &Value) -> Vec<Value> {
    let mut records = vec![
        with(column, Value::Null),
        json!({"prompt": "What is 1+1?", "chosen": "It is 2.", "rejected": "It is 3."}),
        json!({"chosen": "The sum is 2.", "rejected": "The sum is 3."}),
        json!({"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"}),
        json!({"messages": turns(&[("user", "q")]), "chosen": "x", "rejected": "y"}),
        json!({"messages": turns(&[("user", "q")]), "a": "x", "b": "y", "label": "a"}),
    ];
    for record in &mut records {
        record[column] = value.clone();
    }
    records
}

#[test]
fn columns_that_would_change_the_meaning_are_refused_by_name() {
    let tool = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    for (column, value) in [
        ("tools", tool),
        ("chat_template_kwargs", json!({"enable_thinking": false})),
        ("chat_template", json!("{{ messages }}")),
        ("reasoning_content", json!("because")),
        ("images", json!([{"path": "a.png", "bytes": null}])),
        ("weight", json!(0.5)),
        ("system", json!("Answer in French.")),
        ("System", json!("Answer in French.")),
        ("systemPrompt", json!("Answer in French.")),
        ("question", json!("What is 2+2?")),
        ("instruction", json!("Add the numbers.")),
        ("query", json!("2+2?")),
        ("input", json!("2 2")),
        ("inputs", json!(["seven", "eight"])),
        ("context", json!("A long passage.")),
        ("history", json!([["What?", "That."]])),
        (
            "conversations",
            json!([{"from": "human", "value": "What is 2+2?"}]),
        ),
        ("talk", json!([{"role": "user", "content": "What is 2+2?"}])),
    ] {
        for record in beside(column, &value) {
            let error = read(record.clone(), Format::Auto).unwrap_err().to_string();
            assert!(error.contains(&format!("`{column}`")), "{record}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        // Null and empty values are ignored.
        for nothing in [json!(null), json!(""), json!([]), json!({}), json!([""])] {
            for record in beside(column, &nothing) {
                read(record, Format::Auto).unwrap();
            }
        }
    }
    // If the prompt is guessed, any text column may be the real one.
    let record = json!({"chosen": "The sum is 2.", "rejected": "The sum is 3.", "riddle": "1+1"});
    let error = read(record, Format::Auto).unwrap_err().to_string();
    assert!(error.contains("`riddle`"), "{error}");
}

#[test]
fn metadata_and_what_the_conversation_holds_already_are_passed_over() {
    for (column, value) in [
        ("prompt_id", json!("3f")),
        ("source", json!("evol_instruct")),
        ("dataset", json!("a set of sets")),
        ("score_chosen", json!(8.5)),
        ("chosen_score", json!(8.5)),
        ("chosen-model", json!("a model of somebody")),
        ("chosen-rating", json!(5)),
        ("margin", json!(2.5)),
        ("in_gsm8k_train", json!(false)),
        ("order", json!(["chosen", "rejected"])),
        ("labelling_model", json!("a judge model")),
        (
            "labelling_prompt",
            json!([{"role": "user", "content": "Rate these two."}]),
        ),
        ("raw_labelling_response", json!("5 and 3")),
        ("input_tokens", json!(17)),
        ("question_type", json!("a sum of two")),
        ("weight", json!(1.0)),
        ("language", json!("British English")),
        ("timestamp", json!("2024-01-01 10:00")),
        ("metadata", json!({"prompt": "of somebody"})),
    ] {
        for record in beside(column, &value) {
            read(record, Format::Auto).unwrap();
        }
    }
    for (column, value) in [
        ("question", json!("What is 1+1?")),
        ("instruction", json!(" What is 1+1?\n")),
        ("system", json!("Be brief.")),
        (
            "messages",
            turns(&[
                ("system", "Be brief."),
                ("user", "What is 1+1?"),
                ("assistant", "It is 2."),
            ]),
        ),
    ] {
        let pair = pair(with(column, value), Format::Auto);
        assert_eq!(pair.messages.len(), 2);
    }
    let kept = pair(with("source", json!("somewhere")), Format::Auto);
    assert_eq!(kept.source.as_deref(), Some("somewhere"));
    assert_eq!(
        pair(with("margin", json!(0.75)), Format::Auto).margin,
        Some(0.75)
    );
}

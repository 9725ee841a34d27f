//! The share of public prompts that redaction changes: they hardly name persons, so nearly every change is a mistake.

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::Value;
use test_support::shared_data;

use super::rules;

/// Returns all texts of a file of JSON lines.
fn texts(file: &str) -> Vec<String> {
    let mut lines = String::new();
    let bytes = std::fs::read(shared_data(file)).unwrap();
    GzDecoder::new(&*bytes).read_to_string(&mut lines).unwrap();
    let mut texts = Vec::new();
    for line in lines.lines() {
        collect(&serde_json::from_str(line).unwrap(), &mut texts);
    }
    texts
}

fn collect(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| collect(value, texts)),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, texts)),
        _ => {}
    }
}

/// Returns pseudo-random rows of numbers as the default model's instructions have them, with the answers.
fn rows() -> Vec<String> {
    let mut state = 1u64;
    let mut draw = move |most: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        1 + (state >> 33) % most
    };
    let mut rows = Vec::new();
    for (length, most) in [(3, 9), (4, 50), (5, 99), (6, 99), (7, 99)] {
        for _ in 0..200 {
            let mut numbers: Vec<u64> = (0..length).map(|_| draw(most)).collect();
            let row = |numbers: &[u64], between: &str| {
                let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
                words.join(between)
            };
            let list = row(&numbers, " ");
            rows.extend([
                format!("Sort {list} from low to high."),
                format!("Put {list} in falling order."),
                format!("Order {list}, smallest first."),
                format!("Which is the largest of {list}?"),
                format!("Name two numbers from {list} that add up to {}.", draw(99)),
                format!("The numbers are {list}."),
                format!("What is {}?", row(&numbers, " + ")),
                format!("Compute {}.", row(&numbers, "+")),
                format!("[{}]", row(&numbers, ", ")),
            ]);
            numbers.sort_unstable();
            numbers.dedup();
            rows.push(row(&numbers, " "));
            numbers.reverse();
            rows.push(row(&numbers, " "));
        }
    }
    rows
}

/// Returns the texts that redaction changes by a telephone number.
fn with_phones(texts: Vec<String>) -> Vec<String> {
    let rules = rules();
    let found = |text: &String| {
        let redacted = rules.apply(text);
        redacted.is_some_and(|redacted| redacted.contains("[PHONE-"))
    };
    texts.into_iter().filter(found).collect()
}

#[test]
fn rows_of_numbers_are_left() {
    let rows = rows();
    assert_eq!(rows.len(), 11_000);
    let changed = with_phones(rows);
    // Four numbers of two digits alone are also how numbers are written in Denmark and Norway.
    let is_four = |row: &String| row.len() == 11 && row.split(' ').all(|part| part.len() == 2);
    assert!(changed.iter().all(is_four), "{changed:?}");
    for row in [
        "12 7 33 81 5 90",
        "Sort 22 81 33 90 from low to high.",
        "The numbers are 612 345 678.",
        "31 + 26 + 94",
        "My number is 12 7 33 81 5 90",
        "61 33 90 55 12 and 5 61 33 90 55",
    ] {
        assert_eq!(with_phones(vec![row.to_owned()]), [""; 0], "{row}");
    }
    for number in [
        "22 81 33 90",
        "call 22 81 33 90",
        "612 345 678",
        "dial 5 5 5 0 1 3 2",
    ] {
        // Some are identity numbers, too.
        let redacted = rules().apply(number);
        assert!(redacted.is_some(), "{number}");
    }
}

#[test]
#[cfg_attr(not(has_data), ignore = "needs ../shared/data")]
fn public_prompts_are_left() {
    let files = [
        "prompts/arena_hard_v01",
        "prompts/arena_hard_v20",
        "prompts/ifeval",
        "prompts/koala",
        "prompts/mt_bench",
        "prompts/self_instruct_seed",
        "prompts/self_instruct_user",
        "prompts/truthfulqa",
        "prompts/vicuna",
        "gsm8k/train",
    ];
    let texts: Vec<String> = (files.iter())
        .flat_map(|file| texts(&format!("{file}.jsonl.gz")))
        .collect();
    assert!(texts.len() > 30_000, "{}", texts.len());
    let changed = with_phones(texts);
    assert!(changed.len() <= 5, "{changed:?}");
}

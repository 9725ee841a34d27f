//! Tests of parsing calls in answers, for any split into pieces.

use std::sync::Arc;

use super::{CallReader, Read, ToolFormat};

/// The result of parsing: content and calls.
type Output = (String, Vec<(String, String)>);

fn reader(format: ToolFormat, bound: bool, most: usize) -> CallReader {
    let names: Arc<[String]> = ["f".to_owned(), "get_weather".to_owned()].into();
    CallReader::new(format, names, most).bound(bound)
}

fn read_all(mut reader: CallReader, pieces: &[&str]) -> Output {
    let mut output = Output::default();
    let mut read: Vec<Read> = pieces.iter().flat_map(|piece| reader.feed(piece)).collect();
    read.extend(reader.finish());
    for read in read {
        match read {
            Read::Text(text) => {
                assert!(!text.is_empty());
                output.0.push_str(&text);
            }
            Read::Call { index, name } => {
                assert_eq!(index, output.1.len());
                output.1.push((name, String::new()));
            }
            Read::Arguments { index, text } => {
                assert_eq!(index + 1, output.1.len());
                output.1[index].1.push_str(&text);
            }
        }
    }
    output
}

/// Parses a whole text; asserts the same result for any split into two or three pieces, and character by character.
fn read(format: ToolFormat, bound: bool, most: usize, text: &str) -> Output {
    let reader = || reader(format, bound, most);
    let whole = read_all(reader(), &[text]);
    let cuts: Vec<usize> = (0..=text.len())
        .filter(|&cut| text.is_char_boundary(cut))
        .collect();
    let letters: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
    assert_eq!(read_all(reader(), &letters), whole, "{format:?}: {text}");
    for (at, &first) in cuts.iter().enumerate() {
        let halves = [&text[..first], &text[first..]];
        assert_eq!(read_all(reader(), &halves), whole, "{format:?}: {halves:?}");
        for &second in cuts[at..].iter().step_by(3) {
            let parts = [&text[..first], &text[first..second], &text[second..]];
            assert_eq!(read_all(reader(), &parts), whole, "{format:?}: {parts:?}");
        }
    }
    whole
}

fn check(format: ToolFormat, text: &str, content: &str, calls: &[(&str, &str)]) {
    let calls = calls.iter();
    let calls: Vec<(String, String)> = calls.map(|(n, a)| ((*n).into(), (*a).into())).collect();
    let expected = (content.to_owned(), calls);
    assert_eq!(
        read(format, false, usize::MAX, text),
        expected,
        "{format:?}: {text}"
    );
}

#[test]
fn calls_of_hermes_are_read() {
    for (text, content, calls) in [
        (
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
            "",
            &[("f", "{\"a\": 1}")][..],
        ),
        (
            "I look.\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln }\\\" {\"}}\n</tool_call>\n",
            "I look.",
            &[("f", "{}"), ("get_weather", "{\"city\": \"Köln }\\\" {\"}")],
        ),
        // Another order, other white space, no end.
        (
            " <tool_call>{\"arguments\":{\"a\":[1,{}]} , \"name\":\"f\"}",
            "",
            &[("f", "{\"a\":[1,{}]}")],
        ),
        // Arguments as a string, and Llama's key.
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call><tool_call>{\"name\": \"f\", \"parameters\": {}}</tool_call>",
            "",
            &[("f", "{\"a\": 1}"), ("f", "{}")],
        ),
        // An extra bracket.
        (
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}}\n</tool_call>",
            "",
            &[("f", "{}")],
        ),
        (
            "a\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n b",
            "a\nb",
            &[("f", "{}")],
        ),
        // Reasoning may mention calls.
        (
            "<think>\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call></think>\n\n<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>",
            "<think>\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call></think>",
            &[("f", "{\"a\": 1}")],
        ),
    ] {
        check(ToolFormat::Hermes, text, content, calls);
    }
}

#[test]
fn calls_of_llama_are_read() {
    for (text, content, calls) in [
        (
            "{\"name\": \"f\", \"parameters\": {\"a\": \"é\"}}",
            "",
            &[("f", "{\"a\": \"é\"}")][..],
        ),
        (
            "\n<|python_tag|>{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}; {\"name\": \"get_weather\", \"parameters\": {\"b\": 2}}",
            "",
            &[("f", "{}"), ("get_weather", "{\"b\": 2}")],
        ),
        ("{\"name\": \"f\", \"arguments\": {}} ", "", &[("f", "{}")]),
        (
            "See: {\"name\": \"f\", \"parameters\": {}}",
            "See: {\"name\": \"f\", \"parameters\": {}}",
            &[],
        ),
        ("{\"sum\": 62} and more", "{\"sum\": 62} and more", &[]),
        ("<|python_tag|>print(1)", "<|python_tag|>print(1)", &[]),
    ] {
        check(ToolFormat::Llama3Json, text, content, calls);
    }
}

#[test]
fn calls_of_mistral_are_read() {
    for (text, content, calls) in [
        (
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": [1]}}]",
            "",
            &[("f", "{\"a\": [1]}")][..],
        ),
        (
            "Wait.[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}, \"id\": \"123456789\"} ,\n {\"name\": \"get_weather\", \"arguments\": {\"x\": null}}] ",
            "Wait.",
            &[("f", "{}"), ("get_weather", "{\"x\": null}")],
        ),
        (
            "[TOOL_CALLS]{\"name\": \"f\", \"arguments\": {}}",
            "",
            &[("f", "{}")],
        ),
        ("[TOOL_CALLS][]", "[TOOL_CALLS][]", &[]),
        ("[TOOL_CALL] no", "[TOOL_CALL] no", &[]),
        (
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}, 7]",
            ", 7]",
            &[("f", "{}")],
        ),
    ] {
        check(ToolFormat::Mistral, text, content, calls);
    }
}

#[test]
fn calls_in_the_json_form_are_read() {
    for (text, content, calls) in [
        (
            "{\"name\": \"f\", \"arguments\": {\"a\": 1}}",
            "",
            &[("f", "{\"a\": 1}")][..],
        ),
        (
            "I look.\n{\"name\": \"f\", \"arguments\": {}}\n{\"name\": \"get_weather\", \"arguments\": {}}\nDone.",
            "I look.\nDone.",
            &[("f", "{}"), ("get_weather", "{}")],
        ),
        (
            "Call:\n```json\n{\n  \"name\": \"f\",\n  \"arguments\": {\"a\": 1}\n}\n```\n",
            "Call:",
            &[("f", "{\"a\": 1}")],
        ),
        // Other JSON, and code.
        (
            "{\"sum\": 62, \"list\": [\n{\"name\": \"f\", \"arguments\": {}}\n]}",
            "{\"sum\": 62, \"list\": [\n{\"name\": \"f\", \"arguments\": {}}\n]}",
            &[],
        ),
        (
            "fn main()\n{\n  let a = 1;\n}\n",
            "fn main()\n{\n  let a = 1;\n}\n",
            &[],
        ),
        (
            "```python\nd = {}\n```\n  {x",
            "```python\nd = {}\n```\n  {x",
            &[],
        ),
        (
            "Say {\"name\": \"f\", \"arguments\": {}}",
            "Say {\"name\": \"f\", \"arguments\": {}}",
            &[],
        ),
    ] {
        check(ToolFormat::Json, text, content, calls);
    }
}

/// An answer without a call stays unchanged, to the last space.
#[test]
fn what_is_no_call_stays_as_it_is() {
    let object = "{\"name\": \"f\", \"arguments\": {\"a\": 1}}";
    let texts = [
        "",
        " ",
        "\n Hello, world. \n\n",
        "é🙂 [x] <t> {y} `z`",
        "<tool_call",
        "<tool_call>",
        "<tool_call>\n",
        "a < b <tool_call> no object </tool_call>",
        "[TOOL_CALLS]",
        "[TOOL_CALLS] [",
        "``",
        "```json\n",
        "<think>",
        "<thin",
        "{",
        "{\"name",
        "{\"name\": \"f\"}",
        "{\"name\": \"f\", \"arguments\": {\"a\": 1}",
        "{\"name\": \"f\", \"arguments\": {\"a\": }}",
        "{\"name\": \"f\", \"arguments\": [1]}",
        "{\"name\": \"f\", \"arguments\": \"x\"}",
        "{\"name\": \"f\" \"arguments\": {}}",
        "{\"name\": 7, \"arguments\": {}}",
        "{\"name\": \"unknown\", \"arguments\": {}}",
        "{\"name\": \"f\", \"arguments\": {\"a\": 1,}}\n more",
    ];
    for format in ToolFormat::ALL {
        let marks = format.marks();
        for text in texts {
            check(format, text, text, &[]);
            let marked = format!("x{}{text}{}\n", marks.begin, marks.end);
            check(format, &marked, &marked, &[]);
        }
        let hidden = format!("<think>{}{object}{}", marks.begin, marks.end);
        check(format, &hidden, &hidden, &[]);
    }
}

#[test]
fn bound_calls_are_passed_on_as_they_come() {
    for (format, head, tail) in [
        (
            ToolFormat::Hermes,
            "<tool_call>\n{\"name\": \"f\", \"arguments\": ",
            "}\n</tool_call>",
        ),
        (
            ToolFormat::Llama3Json,
            "{\"name\": \"f\", \"parameters\": ",
            "}",
        ),
        (
            ToolFormat::Mistral,
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": ",
            "}]",
        ),
        (ToolFormat::Json, "{\"name\": \"f\", \"arguments\": ", "}"),
    ] {
        let arguments = "{\"city\": \"K\\\"ö}ln\", \"n\": [1, 2]}";
        let mut reader = reader(format, true, usize::MAX);
        assert!(reader.feed(head).is_empty());
        let mut sent = String::new();
        for (at, letter) in arguments.char_indices() {
            let read = reader.feed(&arguments[at..at + letter.len_utf8()]);
            for read in read {
                match read {
                    Read::Call { index: 0, name } => assert_eq!(name, "f"),
                    Read::Arguments { index: 0, text } => sent.push_str(&text),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(sent, arguments[..at + letter.len_utf8()], "{format:?}");
        }
        assert!(reader.feed(tail).is_empty());
        assert!(reader.finish().is_empty());
        let whole = format!("{head}{arguments}{tail}");
        let one = vec![("f".to_owned(), arguments.to_owned())];
        assert_eq!(read(format, true, usize::MAX, &whole), (String::new(), one));
        // Truncated, it is still a call.
        let cut = format!("{head}{}", &arguments[..20]);
        let one = vec![("f".to_owned(), arguments[..20].to_owned())];
        assert_eq!(read(format, true, usize::MAX, &cut), (String::new(), one));
    }
}

#[test]
fn no_more_calls_than_were_asked_for() {
    for format in ToolFormat::ALL {
        let marks = format.marks();
        let object = format!("{{\"name\": \"f\", \"{}\": {{}}}}", marks.arguments);
        let two = format!(
            "{}{object}{}\n{}{object}{}",
            marks.begin, marks.end, marks.begin, marks.end
        );
        let call = ("f".to_owned(), "{}".to_owned());
        assert_eq!(
            read(format, false, 1, &two),
            (String::new(), vec![call.clone()])
        );
        assert_eq!(read(format, false, 2, &two), (String::new(), vec![call; 2]));
    }
}

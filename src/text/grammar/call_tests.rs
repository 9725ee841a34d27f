//! Every text that a grammar of calls allows is parsed as calls of the offered tools, with arguments that fit their schemas.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::tests::{env, tokenizers};
use super::*;
use crate::Tokenizer;
use crate::tools::{CallReader, Read, Tool, ToolFormat};

fn tools() -> Vec<Tool> {
    let tool = |name: &str, parameters: Value| Tool {
        name: name.into(),
        description: None,
        parameters,
        strict: false,
    };
    vec![
        tool(
            "get_weather",
            json!({"type": "object", "properties": {
                "city": {"type": "string", "maxLength": 5}, "days": {"type": "integer", "minimum": 1, "maximum": 20}
            }, "required": ["city"]}),
        ),
        tool("now", json!({"type": "object", "properties": {}})),
        tool(
            "set",
            json!({"properties": {"on": {"$ref": "#/$defs/switch"}}, "required": ["on"],
                   "$defs": {"switch": {"enum": [true, false, "é \"x\" <|end|>"]}}}),
        ),
    ]
}

fn fits(name: &str, arguments: &str) -> bool {
    let Ok(Value::Object(arguments)) = serde_json::from_str(arguments) else {
        return false;
    };
    match name {
        "get_weather" => {
            let city = arguments.get("city").and_then(Value::as_str);
            let days = arguments.get("days");
            let known = arguments.keys().all(|key| key == "city" || key == "days");
            known
                && city.is_some_and(|city| city.chars().count() <= 5)
                && days.is_none_or(|days| days.as_u64().is_some_and(|d| (1..=20).contains(&d)))
        }
        "now" => arguments.is_empty(),
        "set" => {
            let on = arguments.get("on");
            let switch = on.is_some_and(|on| on.is_boolean() || on == "é \"x\" <|end|>");
            arguments.len() == 1 && switch
        }
        _ => false,
    }
}

fn spec(
    tokenizer: &Tokenizer,
    format: ToolFormat,
    tools: Vec<Tool>,
    otherwise: Otherwise,
) -> GrammarSpec {
    let marks = format.marks();
    let token = |mark: &str| {
        let id = tokenizer.token_to_id(mark)?;
        tokenizer.is_control(id).then_some(id)
    };
    GrammarSpec::Calls(CallGrammar {
        format,
        tools,
        most: marks.most,
        begin: token(marks.begin),
        end: token(marks.end),
        otherwise,
        brief: false,
    })
}

/// Samples allowed tokens uniformly, rare ones as often as others, and ends half the time if the end is allowed.
fn walk(tokenizer: &Tokenizer, grammar: &Grammar, seed: u64) -> Option<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut matcher = grammar.matcher();
    let mut ids = Vec::new();
    for _ in 0..500 {
        let allowed: Vec<u32> = (0..grammar.vocab_size() as u32)
            .filter(|&id| matcher.allowed().allows(id))
            .collect();
        if matcher.is_complete() || matcher.allowed().may_end() && rng.random_bool(0.3) {
            return Some(tokenizer.decode(&ids, false).unwrap());
        }
        let marks: Vec<u32> = allowed
            .iter()
            .copied()
            .filter(|&id| tokenizer.is_control(id))
            .collect();
        let from = match marks.is_empty() || rng.random_bool(0.5) {
            true => &allowed,
            false => &marks,
        };
        let id = from[rng.random_range(0..from.len())];
        matcher.accept(id).unwrap();
        ids.push(id);
    }
    None
}

/// Returns the content and the calls.
fn read_all(format: ToolFormat, text: &str) -> (String, Vec<(String, String)>) {
    let names = tools().into_iter().map(|tool| tool.name).collect();
    let mut reader = CallReader::new(format, names, usize::MAX).bound(true);
    let mut read = reader.feed(text);
    read.extend(reader.finish());
    let (mut content, mut calls) = (String::new(), Vec::new());
    for read in read {
        match read {
            Read::Text(text) => content.push_str(&text),
            Read::Call { name, .. } => calls.push((name, String::new())),
            Read::Arguments { index, text } => calls[index].1.push_str(&text),
        }
    }
    (content, calls)
}

#[test]
fn bound_answers_are_calls_whose_arguments_fit() {
    for tokenizer in tokenizers() {
        let env = env(&tokenizer);
        for format in ToolFormat::ALL {
            let spec = spec(&tokenizer, format, tools(), Otherwise::Nothing);
            let grammar = env.compile(&spec).unwrap();
            assert!(grammar.warnings().is_empty(), "{:?}", grammar.warnings());
            let texts: Vec<String> = (0..24)
                .filter_map(|seed| walk(&tokenizer, &grammar, seed))
                .collect();
            assert!(texts.len() >= 3, "{format:?} in {tokenizer:?}: {texts:?}");
            for text in texts {
                let (content, calls) = read_all(format, &text);
                assert!(
                    content.is_empty() && !calls.is_empty(),
                    "{format:?}: {text}"
                );
                assert!(calls.len() <= format.marks().most);
                for (name, arguments) in calls {
                    assert!(fits(&name, &arguments), "{format:?}: {text}");
                }
            }
        }
    }
}

#[test]
fn values_without_bounds_end_where_they_are_to_be_brief() {
    let tool = Tool {
        name: "note".into(),
        description: None,
        parameters: json!({"type": "object", "properties": {
            "text": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}, "n": {"type": "number"}, "any": {}
        }, "required": ["text", "tags", "n", "any"]}),
        strict: false,
    };
    let tokenizer = &tokenizers()[0];
    let GrammarSpec::Calls(calls) =
        spec(tokenizer, ToolFormat::Json, vec![tool], Otherwise::Nothing)
    else {
        unreachable!("it is one of calls");
    };
    let brief = GrammarSpec::Calls(CallGrammar {
        brief: true,
        most: 1,
        ..calls
    });
    let grammar = env(tokenizer).compile(&brief).unwrap();
    for seed in 0..20 {
        let text = walk(tokenizer, &grammar, seed).expect("it ends");
        let call: Value = serde_json::from_str(&text).unwrap();
        let arguments = &call["arguments"];
        assert!(
            arguments["text"].as_str().unwrap().chars().count() <= 16,
            "{text}"
        );
        assert!(arguments["tags"].as_array().unwrap().len() <= 3, "{text}");
        assert!(
            arguments["n"].is_number() && arguments["any"].is_string(),
            "{text}"
        );
    }
}

#[test]
fn free_answers_are_text_or_calls_whose_arguments_fit() {
    let mut called = 0;
    for tokenizer in tokenizers() {
        let env = env(&tokenizer);
        for format in [ToolFormat::Hermes, ToolFormat::Mistral] {
            let spec = spec(&tokenizer, format, tools(), Otherwise::Text);
            let grammar = env.compile(&spec).unwrap();
            for seed in 0..24 {
                let Some(text) = walk(&tokenizer, &grammar, seed) else {
                    continue;
                };
                let (content, calls) = read_all(format, &text);
                let mark = format.marks().begin;
                assert!(!content.contains(mark), "{format:?}: {text}");
                assert_eq!(text.contains(mark), !calls.is_empty(), "{format:?}: {text}");
                called += calls.len();
                for (name, arguments) in calls {
                    assert!(fits(&name, &arguments), "{format:?}: {text}");
                }
            }
            // Text that only resembles a mark, and a call after text.
            let object = "{\"name\": \"now\", \"arguments\": {}}";
            let marks = format.marks();
            let (open, close) = marks.list.unwrap_or((marks.padding, marks.padding));
            let call = format!("{}{open}{object}{close}{}", marks.begin, marks.end);
            for (text, whole) in [
                ("a < b [TOOL] x".to_owned(), true),
                (format!("Wait. {call}"), true),
                (call.clone(), true),
                (format!("{}{open}{{\"name\": \"other", marks.begin), false),
            ] {
                let mut rendered = crate::Rendered::new();
                rendered.push_trusted(&text);
                let ids = tokenizer.encode_rendered(&rendered).unwrap().ids;
                let mut matcher = grammar.matcher();
                let taken = ids.iter().try_for_each(|&id| matcher.accept(id));
                let ends = taken.is_ok() && matcher.allowed().may_end();
                assert_eq!(
                    ends, whole,
                    "{format:?} in {tokenizer:?}: {text}: {taken:?}"
                );
            }
        }
    }
    assert!(called > 10, "{called}");
}

#[test]
fn an_answer_is_a_call_or_json_of_its_own_shape() {
    let schema = json!({"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
                        "required": ["sum"], "additionalProperties": false});
    for tokenizer in tokenizers() {
        let env = env(&tokenizer);
        for format in ToolFormat::ALL {
            let other = Otherwise::Json(Box::new(GrammarSpec::LooseJsonSchema(schema.clone())));
            let grammar = env
                .compile(&spec(&tokenizer, format, tools(), other))
                .unwrap();
            for seed in 0..12 {
                let Some(text) = walk(&tokenizer, &grammar, seed) else {
                    continue;
                };
                let (content, calls) = read_all(format, &text);
                assert_eq!(content.is_empty(), !calls.is_empty(), "{format:?}: {text}");
                if !content.is_empty() {
                    let answer: Value = serde_json::from_str(&content).unwrap();
                    assert!(
                        answer["sum"].as_u64().is_some_and(|sum| sum <= 99),
                        "{text}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_no_grammar_holds_is_refused_of_strict_tools_and_named_of_others() {
    let tokenizer = &tokenizers()[0];
    let env = env(tokenizer);
    let mut tools = tools();
    tools[0].parameters =
        json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}});
    let compiled = |tools: Vec<Tool>| {
        let spec = spec(tokenizer, ToolFormat::Json, tools, Otherwise::Nothing);
        env.compile(&spec)
    };
    let loose = compiled(tools.clone()).unwrap();
    let warnings = loose.warnings().concat();
    assert!(warnings.contains("uniqueItems"), "{warnings}");
    tools[0].strict = true;
    let error = compiled(tools).unwrap_err().to_string();
    assert!(error.contains("uniqueItems"), "{error}");
}

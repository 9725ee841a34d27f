//! Tests of the answers that the description shows: each has the shape that its schema promises.

use selfjudge::http::api_doc;

use super::*;

/// Checks a value against a schema of the description, and returns what does not fit with its place.
fn misfit(doc: &Value, schema: &Value, value: &Value, place: &str) -> Option<String> {
    misfit_among(doc, schema, value, place, &[])
}

/// Returns the names of an object's properties in a schema.
fn names(doc: &Value, schema: &Value) -> Vec<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return names(doc, doc.pointer(&reference[1..]).unwrap());
    }
    let own = schema["properties"].as_object().into_iter().flatten();
    let parts = ["allOf", "oneOf", "anyOf"].into_iter();
    let parts = parts.flat_map(|key| schema[key].as_array().into_iter().flatten());
    let parts = parts.flat_map(|part| names(doc, part));
    own.map(|(name, _)| name.clone()).chain(parts).collect()
}

/// Checks as [`misfit`] does; `others` names the properties of the other parts of the same object.
fn misfit_among(
    doc: &Value,
    schema: &Value,
    value: &Value,
    place: &str,
    others: &[String],
) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let named = doc.pointer(&reference[1..]).unwrap();
        return misfit_among(doc, named, value, place, others);
    }
    for (key, exactly_one) in [("oneOf", true), ("anyOf", false)] {
        if let Some(shapes) = schema[key].as_array() {
            let misfits: Vec<String> = (shapes.iter())
                .filter_map(|shape| misfit_among(doc, shape, value, place, others))
                .collect();
            let fitting = shapes.len() - misfits.len();
            return match fitting {
                0 => Some(format!("{place} fits none of {misfits:?}")),
                1 => None,
                _ if exactly_one => Some(format!("{place} fits {fitting} shapes of one")),
                _ => None,
            };
        }
    }
    if let Some(parts) = schema["allOf"].as_array() {
        let all: Vec<String> = parts.iter().flat_map(|part| names(doc, part)).collect();
        let mut misfits = parts.iter();
        return misfits.find_map(|part| misfit_among(doc, part, value, place, &all));
    }
    if let Some(known) = schema["enum"].as_array()
        && !known.contains(value)
    {
        return Some(format!("{place}: {value} is none of {known:?}"));
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
        _ => return None,
    };
    let is = |kind: &&str| match *kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{place}: the type {other}"),
    };
    if !kinds.iter().any(is) {
        return Some(format!("{place}: {value} is not {kinds:?}"));
    }
    match value {
        Value::Array(values) => {
            let items = schema.get("items").unwrap_or(&Value::Null);
            let mut values = values.iter().enumerate();
            values.find_map(|(at, value)| misfit(doc, items, value, &format!("{place}[{at}]")))
        }
        Value::Object(fields) => {
            let required = schema["required"].as_array().into_iter().flatten();
            let mut missing = required.filter(|name| !fields.contains_key(name.as_str().unwrap()));
            if let Some(name) = missing.next() {
                return Some(format!("{place} lacks {name}"));
            }
            let own = schema["properties"].as_object();
            fields.iter().find_map(|(name, value)| {
                let place = format!("{place}.{name}");
                match own.and_then(|own| own.get(name)) {
                    Some(schema) => misfit(doc, schema, value, &place),
                    None if schema["additionalProperties"].is_object() => {
                        misfit(doc, &schema["additionalProperties"], value, &place)
                    }
                    None if others.contains(name) => None,
                    // A schema without properties describes any object.
                    None => own.map(|_| format!("{place} is not in the schema")),
                }
            })
        }
        _ => None,
    }
}

#[test]
fn the_check_finds_what_does_not_fit() {
    let doc = json!({"components": {"schemas": {"Inner": {
        "type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}, "b": {"type": ["string", "null"]}}
    }}}});
    let schema = json!({"type": "array", "items": {"$ref": "#/components/schemas/Inner"}});
    for (value, fits) in [
        (json!([{"a": 1}, {"a": 2, "b": null}]), true),
        (json!([{"b": "x"}]), false),
        (json!([{"a": 1.5}]), false),
        (json!([{"a": 1, "c": 1}]), false),
        (json!({"a": 1}), false),
    ] {
        assert_eq!(
            misfit(&doc, &schema, &value, "x").is_none(),
            fits,
            "{value}"
        );
    }
    let one = json!({"oneOf": [{"type": "string", "enum": ["x"]}, {"type": "null"}]});
    assert!(misfit(&doc, &one, &json!("x"), "x").is_none());
    assert!(misfit(&doc, &one, &json!("y"), "x").is_some());
}

#[test]
fn every_shown_body_and_answer_has_the_shape_of_its_schema() {
    let doc = serde_json::to_value(api_doc()).unwrap();
    let mut checked = 0;
    for (path, item) in doc["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let answers = operation["responses"].as_object().unwrap();
            let contents = (answers.iter())
                .map(|(status, answer)| (status.as_str(), &answer["content"]))
                .chain([("body", &operation["requestBody"]["content"])]);
            for (status, kinds) in contents {
                let Some(content) = kinds.get("application/json") else {
                    continue;
                };
                let named = content["examples"].as_object().into_iter().flatten();
                let named = named.map(|(_, example)| &example["value"]);
                for example in named.chain(content.get("example")) {
                    checked += 1;
                    let place = format!("{method} {path} {status}");
                    let found = misfit(&doc, &content["schema"], example, &place);
                    assert_eq!(found, None, "{example}");
                }
            }
        }
    }
    assert!(checked >= 60, "{checked}");
}

#[test]
fn the_shown_decisions_answer_the_shown_questions() {
    let doc = serde_json::to_value(api_doc()).unwrap();
    let operation = &doc["paths"]["/v1/decisions"]["post"];
    let asked = &operation["requestBody"]["content"]["application/json"]["example"];
    let shown = &operation["responses"]["200"]["content"]["application/json"]["example"];
    let answered = ok("/v1/decisions", asked);
    /// Returns an answer with its numbers and its id left out.
    fn shape(value: &Value) -> Value {
        match value {
            Value::Number(_) => json!(0),
            Value::Array(values) => values.iter().map(shape).collect(),
            Value::Object(fields) => (fields.iter())
                .map(|(name, value)| {
                    (
                        name.clone(),
                        if name == "id" {
                            json!("")
                        } else {
                            shape(value)
                        },
                    )
                })
                .collect(),
            other => other.clone(),
        }
    }
    assert_eq!(shape(&answered), shape(shown));
}

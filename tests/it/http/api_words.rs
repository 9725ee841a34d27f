//! Tests of the API's description: every item is described, and every operation has an example answer that fits its schema.

use std::collections::BTreeSet;

use selfjudge::http::api_doc;

use super::*;

fn doc() -> Value {
    serde_json::to_value(api_doc()).unwrap()
}

fn operations(doc: &Value) -> Vec<(String, &Value)> {
    let paths = doc["paths"].as_object().unwrap().iter();
    let all = paths.flat_map(|(path, item)| {
        let item = item.as_object().unwrap().iter();
        item.map(move |(method, operation)| {
            (format!("{} {path}", method.to_uppercase()), operation)
        })
    });
    all.collect()
}

fn says_something(text: Option<&Value>) -> bool {
    text.and_then(Value::as_str)
        .is_some_and(|text| text.trim().len() > 3)
}

/// Returns whether a property has a description, its own or that of its one shape beside null.
fn is_described(property: &Value) -> bool {
    let shapes = ["oneOf", "anyOf", "allOf"]
        .iter()
        .filter_map(|key| property.get(key));
    says_something(property.get("description"))
        || shapes
            .flat_map(|shapes| shapes.as_array().unwrap())
            .any(|shape| says_something(shape.get("description")))
}

/// Adds the names of all properties of `schema` without a description.
fn undescribed(place: &str, schema: &Value, found: &mut Vec<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let place = format!("{place}.{name}");
        if !is_described(property) {
            found.push(place.clone());
        }
        undescribed(&place, property, found);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(key) {
            undescribed(&format!("{place}[]"), inner, found);
        }
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        for shape in schema[key].as_array().into_iter().flatten() {
            undescribed(place, shape, found);
        }
    }
}

#[test]
fn everything_in_the_description_says_what_it_is() {
    let doc = doc();
    let mut found = Vec::new();
    for (name, operation) in operations(&doc) {
        for words in ["summary", "description"] {
            if !says_something(operation.get(words)) {
                found.push(format!("{name}: {words}"));
            }
        }
        for (status, response) in operation["responses"].as_object().unwrap() {
            if !says_something(response.get("description")) {
                found.push(format!("{name}: {status}"));
            }
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            if !says_something(parameter.get("description")) {
                found.push(format!("{name}: parameter {}", parameter["name"]));
            }
        }
    }
    for (name, schema) in doc["components"]["schemas"].as_object().unwrap() {
        if !is_described(schema) {
            found.push(name.clone());
        }
        undescribed(name, schema, &mut found);
    }
    for tag in doc["tags"].as_array().unwrap() {
        if !says_something(tag.get("description")) {
            found.push(format!("tag {}", tag["name"]));
        }
    }
    assert!(found.is_empty(), "no description of {found:#?}");
}

/// Returns how `value` differs from `schema`: in types, ranges, lists of values, or required and unknown properties.
fn misfit(doc: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let target = doc.pointer(name.trim_start_matches('#'));
        return misfit(doc, target.unwrap_or_else(|| panic!("{name}")), value, at);
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(shapes) = schema[key].as_array() {
            let misfits: Vec<_> = shapes
                .iter()
                .map(|shape| misfit(doc, shape, value, at))
                .collect();
            if misfits.iter().all(Option::is_some) {
                return Some(format!("{at} is none of: {misfits:?}"));
            }
        }
    }
    for shape in schema["allOf"].as_array().into_iter().flatten() {
        if let Some(misfit) = misfit(doc, shape, value, at) {
            return Some(misfit);
        }
    }
    let kinds: BTreeSet<&str> = match &schema["type"] {
        Value::String(kind) => BTreeSet::from([kind.as_str()]),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => BTreeSet::new(),
    };
    let fits = |kind: &&str| match *kind {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other}"),
    };
    if !kinds.is_empty() && !kinds.iter().any(fits) {
        return Some(format!("{at} is {value} and not {kinds:?}"));
    }
    if schema["enum"]
        .as_array()
        .is_some_and(|values| !values.contains(value))
    {
        return Some(format!("{at} is {value} and none of {}", schema["enum"]));
    }
    let below = schema["minimum"]
        .as_f64()
        .zip(value.as_f64())
        .is_some_and(|(least, is)| is < least);
    if below {
        return Some(format!("{at} is {value}"));
    }
    if let Some(items) = value.as_array() {
        let misfits = items.iter().enumerate();
        let mut misfits = misfits
            .filter_map(|(i, item)| misfit(doc, &schema["items"], item, &format!("{at}[{i}]")));
        return misfits.next();
    }
    let object = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten();
    if let Some(name) = required
        .filter_map(Value::as_str)
        .find(|name| !object.contains_key(*name))
    {
        return Some(format!("{at} has no {name}"));
    }
    let mut misfits = object.iter().filter_map(|(name, value)| {
        let property = schema["properties"]
            .get(name)
            .or_else(|| schema.get("additionalProperties"))?;
        match property {
            Value::Bool(false) => Some(format!("{at}.{name} is not described")),
            Value::Bool(true) => None,
            property => misfit(doc, property, value, &format!("{at}.{name}")),
        }
    });
    misfits.next()
}

#[test]
fn a_misfit_is_found() {
    let doc = json!({"named": {"type": "object", "required": ["a"], "properties": {
        "a": {"type": ["integer", "null"], "minimum": 0},
        "b": {"oneOf": [{"type": "string", "enum": ["x"]}, {"type": "array", "items": {"$ref": "#/named"}}]}
    }, "additionalProperties": false}});
    let schema = json!({"$ref": "#/named"});
    let found = |value: Value| misfit(&doc, &schema, &value, "");
    for fits in [
        json!({"a": 1}),
        json!({"a": null, "b": "x"}),
        json!({"a": 0, "b": [{"a": 2}]}),
    ] {
        assert_eq!(found(fits.clone()), None, "{fits}");
    }
    for other in [
        json!([]),
        json!({}),
        json!({"a": "1"}),
        json!({"a": -1}),
        json!({"a": 1.5}),
        json!({"a": 1, "c": 1}),
        json!({"a": 1, "b": "y"}),
        json!({"a": 1, "b": [{"b": "x"}]}),
    ] {
        assert!(found(other.clone()).is_some(), "{other}");
    }
}

#[test]
fn every_operation_shows_an_answer_that_is_as_described() {
    let doc = doc();
    let mut shown = 0;
    for (name, operation) in operations(&doc) {
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.contains_key("200"), "{name}");
        for (status, response) in responses {
            for (kind, content) in response["content"].as_object().into_iter().flatten() {
                let place = format!("{name} {status} {kind}");
                let example = content
                    .get("example")
                    .unwrap_or_else(|| panic!("{place} has no example"));
                if let Some(misfit) = misfit(&doc, &content["schema"], example, "") {
                    panic!("{place}: {misfit}");
                }
                shown += 1;
            }
        }
    }
    assert!(shown > 50, "{shown}");
}

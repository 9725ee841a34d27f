//! Preparation of JSON schemas for llguidance: references in every spelling are resolved, and numbers that llguidance would silently
//! change are rejected.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::GrammarError;
use super::bounds;

/// Largest integer up to which llguidance keeps every integer exact: it computes with f64.
const MOST_EXACT: u64 = 1 << 53;

/// Keywords of a schema that stay where they are when the rest of it becomes an alternative.
const OUTSIDE: [&str; 6] = [
    "$defs",
    "definitions",
    "$id",
    "$schema",
    "x-guidance",
    "description",
];

/// Keywords by which a schema defines the type of its values, directly or through other schemas.
const OF_A_KIND: [&str; 9] = [
    "type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "not", "if",
];

/// Keywords of objects and of lists: a schema with one of them and without a type is taken to have that type, as its author most likely
/// means.
const OF_OBJECTS: [&str; 4] = [
    "properties",
    "required",
    "patternProperties",
    "additionalProperties",
];
const OF_LISTS: [&str; 4] = ["items", "prefixItems", "minItems", "maxItems"];

/// Keywords whose values are data, not schemas.
const DATA: [&str; 7] = [
    "const",
    "enum",
    "default",
    "examples",
    "example",
    "required",
    "x-guidance",
];

/// Keywords whose values are schemas under names that the caller chooses.
const NAMED: [&str; 5] = [
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
];

/// Keywords whose numbers determine which texts match.
const NUMERIC_KEYWORDS: [&str; 7] = [
    "const",
    "enum",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];

/// Returns an equivalent schema that llguidance can read and that is within the compile limits. The copies that this takes have at most
/// `most` bytes.
///
/// # Errors
/// If an integer is beyond 2^53 or a `nullable` is not a boolean, with its place; if the copies have more bytes; those of
/// [`bounds::check`].
pub(super) fn prepare(schema: Value, most: usize) -> Result<Value, GrammarError> {
    let schema = rewritten(schema, most)?;
    bounds::check(&schema)?;
    Ok(schema)
}

/// Prepares a schema as [`prepare`], without the limits.
fn rewritten(mut schema: Value, most: usize) -> Result<Value, GrammarError> {
    let mut checked = Ok(());
    let (mut references, mut anchors) = (BTreeSet::new(), BTreeMap::new());
    visit(&mut schema, &mut String::new(), &mut |fields, place| {
        for name in NUMERIC_KEYWORDS {
            let number = fields.get(name).and_then(inexact);
            if let (Ok(()), Some(number)) = (&checked, number) {
                checked = Err(GrammarError::InexactNumber {
                    number,
                    place: format!("#{place}/{name}"),
                });
            }
        }
        for name in ["$anchor", "$dynamicAnchor"] {
            if let Some(Value::String(anchor)) = fields.get(name) {
                anchors.insert(anchor.clone(), place.to_owned());
            }
        }
        if let Some(Value::String(reference)) = fields.get("$ref") {
            references.insert(reference.clone());
        }
        if !place.contains("/not") && !place.contains("/if") {
            name_kind(fields);
        }
        match fields.remove("nullable") {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Bool(true)) => admit_null(fields),
            Some(_) if checked.is_ok() => {
                let message = format!("#{place}/nullable must be true or false");
                checked = Err(GrammarError::Invalid(message));
            }
            Some(_) => {}
        }
    });
    checked?;
    let id = schema.get("$id").and_then(Value::as_str).unwrap_or("");
    // The places that references in unusual spellings name, and the definitions that they become.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut rewritten = BTreeMap::new();
    for reference in references {
        let Some(place) = unusual(&reference, id, &anchors, &schema) else {
            continue;
        };
        let next = names.len();
        let name = names
            .entry(place)
            .or_insert_with(|| format!("reference-{next}"));
        rewritten.insert(reference, format!("#/$defs/{name}"));
    }
    if names.is_empty() {
        return Ok(schema);
    }
    visit(&mut schema, &mut String::new(), &mut |fields, _| {
        if let Some(Value::String(reference)) = fields.get_mut("$ref")
            && let Some(name) = rewritten.get(reference)
        {
            reference.clone_from(name);
        }
    });
    let mut copies = Map::new();
    let mut bytes = 0;
    for (place, name) in names {
        let target = schema.pointer(&place).cloned().unwrap_or(Value::Bool(true));
        bytes += target.to_string().len();
        if bytes > most {
            return Err(GrammarError::TooLong { bytes, most });
        }
        copies.insert(name, target);
    }
    if let Value::Object(root) = &mut schema {
        let definitions = root.entry("$defs").or_insert_with(|| json!({}));
        if let Value::Object(definitions) = definitions {
            definitions.append(&mut copies);
        }
    }
    Ok(schema)
}

/// Calls `see` with every schema in `value` and its place as a JSON pointer.
fn visit(
    value: &mut Value,
    place: &mut String,
    see: &mut impl FnMut(&mut Map<String, Value>, &str),
) {
    let length = place.len();
    match value {
        Value::Object(fields) => {
            see(fields, place);
            for (name, value) in fields.iter_mut() {
                if DATA.contains(&name.as_str()) {
                    continue;
                }
                step(place, name);
                match value {
                    Value::Object(named) if NAMED.contains(&name.as_str()) => {
                        let length = place.len();
                        for (name, value) in named.iter_mut() {
                            step(place, name);
                            visit(value, place, see);
                            place.truncate(length);
                        }
                    }
                    value => visit(value, place, see),
                }
                place.truncate(length);
            }
        }
        Value::Array(values) => {
            for (at, value) in values.iter_mut().enumerate() {
                step(place, &at.to_string());
                visit(value, place, see);
                place.truncate(length);
            }
        }
        _ => {}
    }
}

/// Appends the child `name` to a place.
fn step(place: &mut String, name: &str) {
    place.push('/');
    place.push_str(&name.replace('~', "~0").replace('/', "~1"));
}

/// Returns an integer in `value` that llguidance does not keep exactly.
fn inexact(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => {
            let beyond = match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(whole), _, _) => whole > MOST_EXACT,
                (_, Some(whole), _) => whole.unsigned_abs() > MOST_EXACT,
                // The JSON may have had digits that are already lost.
                (_, _, Some(real)) => real.fract() == 0.0 && real.abs() >= MOST_EXACT as f64,
                _ => true,
            };
            beyond.then(|| number.to_string())
        }
        Value::Array(values) => values.iter().find_map(inexact),
        Value::Object(fields) => fields.values().find_map(inexact),
        _ => None,
    }
}

/// Adds the type to a schema that has only keywords of objects or only keywords of lists. Every value of the result is a value of the
/// original schema.
fn name_kind(fields: &mut Map<String, Value>) {
    let has = |names: &[&str]| names.iter().any(|name| fields.contains_key(*name));
    let kind = match (has(&OF_A_KIND), has(&OF_OBJECTS), has(&OF_LISTS)) {
        (false, true, false) => "object",
        (false, false, true) => "array",
        _ => return,
    };
    fields.insert("type".to_owned(), kind.into());
}

/// Lets `null` match a schema, as required by OpenAPI's `nullable`.
fn admit_null(fields: &mut Map<String, Value>) {
    let plain = fields
        .keys()
        .all(|name| !["$ref", "anyOf", "oneOf", "allOf", "not", "if"].contains(&name.as_str()));
    if plain {
        match fields.get_mut("type") {
            Some(kind @ Value::String(_)) if *kind != "null" => {
                *kind = json!([kind.take(), "null"])
            }
            Some(Value::Array(kinds)) if !kinds.contains(&"null".into()) => {
                kinds.push("null".into());
            }
            _ => {}
        }
        if let Some(value) = fields.remove("const") {
            fields.insert("enum".to_owned(), json!([value]));
        }
        if let Some(Value::Array(values)) = fields.get_mut("enum")
            && !values.contains(&Value::Null)
        {
            values.push(Value::Null);
        }
        return;
    }
    let (outside, inside): (Map<_, _>, Map<_, _>) = std::mem::take(fields)
        .into_iter()
        .partition(|(name, _)| OUTSIDE.contains(&name.as_str()));
    *fields = outside;
    fields.insert("anyOf".to_owned(), json!([inside, {"type": "null"}]));
}

/// Returns the place that a reference names, if llguidance would not find it by the reference itself.
fn unusual(
    reference: &str,
    id: &str,
    anchors: &BTreeMap<String, String>,
    schema: &Value,
) -> Option<String> {
    let local = match reference.strip_prefix(id) {
        Some(local) if !id.is_empty() && (local.is_empty() || local.starts_with('#')) => local,
        _ => reference,
    };
    let fragment = match local.strip_prefix('#') {
        Some(fragment) => fragment,
        None if local.is_empty() => "",
        None => return None,
    };
    let plain =
        !fragment.contains(['~', '%']) && (fragment.is_empty() || fragment.starts_with('/'));
    if plain && local == reference {
        return None;
    }
    let decoded = percent_decoded(fragment);
    let place = match decoded.is_empty() || decoded.starts_with('/') {
        true => decoded,
        false => anchors.get(&decoded)?.clone(),
    };
    schema.pointer(&place).map(|_| place)
}

/// Returns a fragment with its percent-encoding decoded; an invalid encoding is returned unchanged.
fn percent_decoded(fragment: &str) -> String {
    let bytes = fragment.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| fragment.to_owned())
}

#[cfg(test)]
mod tests;

//! Limits on a JSON schema, checked before it is compiled. The compiler intersects patterns with each other, and with the names of
//! properties: for a schema of a few kilobytes this can take minutes, and cannot be interrupted.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::GrammarError;

/// Entries of `patternProperties` in a schema and all schemas combined with it: each is compared with each.
const MOST_PATTERN_PROPERTIES: usize = 32;

/// Entries of `patternProperties` in all schemas of a document.
const MOST_PATTERN_PROPERTIES_IN_ALL: usize = 64;

/// Patterns and formats that one text has to match at once (`allOf`): computing their intersection takes exponential time.
const MOST_PATTERNS_AT_ONCE: usize = 6;

/// Schemas combined with each other, if any of them has patterns, times the comparisons of their `patternProperties`.
const MOST_COMPARED: usize = 8192;

/// Properties of one object: at each step any of them may come next.
const MOST_PROPERTIES: usize = 1000;

/// Pairs of properties of one object, summed over all objects.
const MOST_PAIRS: usize = 4_000_000;

/// Schemas visited; a schema combined with others counts each time.
const MOST_SEEN: usize = 100_000;

/// Keywords with one schema for a part of the value.
const PARTS: [&str; 6] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
];

/// Checks a schema of which every reference is a JSON pointer.
///
/// # Errors
/// [`GrammarError::TooMuch`], with the limit that is exceeded.
pub(super) fn check(root: &Value) -> Result<(), GrammarError> {
    check_pattern_properties(root)?;
    let mut walk = Walk {
        root,
        groups: vec![Group {
            base: Vec::new(),
            fresh: vec![root],
        }],
        met: HashSet::new(),
        left: MOST_SEEN,
        pairs: 0,
    };
    while let Some(group) = walk.groups.pop() {
        walk.visit(&group)?;
    }
    Ok(())
}

/// Checks the number of `patternProperties` in the whole document.
fn check_pattern_properties(root: &Value) -> Result<(), GrammarError> {
    let (mut values, mut count) = (vec![root], 0);
    while let Some(value) = values.pop() {
        match value {
            Value::Object(fields) => {
                let named = fields.get("patternProperties").and_then(Value::as_object);
                count += named.map_or(0, serde_json::Map::len);
                values.extend(fields.values());
            }
            Value::Array(elements) => values.extend(elements),
            _ => {}
        }
    }
    bounded("patternProperties", count, MOST_PATTERN_PROPERTIES_IN_ALL)
}

fn bounded(what: &'static str, count: usize, most: usize) -> Result<(), GrammarError> {
    match count <= most {
        true => Ok(()),
        false => Err(GrammarError::TooMuch { what, count, most }),
    }
}

/// Schemas that one value has to match together.
struct Group<'a> {
    /// Schemas whose alternatives are already visited.
    base: Vec<&'a Value>,
    fresh: Vec<&'a Value>,
}

struct Walk<'a> {
    root: &'a Value,
    groups: Vec<Group<'a>>,
    /// Visited groups, by the addresses of their schemas: schemas may refer to themselves.
    met: HashSet<Vec<usize>>,
    left: usize,
    /// Pairs of properties so far.
    pairs: usize,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, group: &Group<'a>) -> Result<(), GrammarError> {
        let fresh = self.laid_over(&group.fresh)?;
        let all: Vec<&Value> = group
            .base
            .iter()
            .copied()
            .chain(fresh.iter().copied())
            .collect();
        let mut met: Vec<usize> = all.iter().map(|schema| address(schema)).collect();
        met.sort_unstable();
        met.dedup();
        if !self.met.insert(met) {
            return Ok(());
        }
        let properties = check_group(&all)?;
        self.pairs += properties * properties;
        bounded("pairs of properties", self.pairs, MOST_PAIRS)?;
        if group.base.is_empty() {
            // Of each list of alternatives one applies, and it may be any of them.
            let patterns = all
                .iter()
                .map(|schema| patterns(schema) + in_alternatives(schema));
            bounded("patterns in allOf", patterns.sum(), MOST_PATTERNS_AT_ONCE)?;
        }
        for schema in &fresh {
            for alternatives in ["anyOf", "oneOf"] {
                let alternatives = schema.get(alternatives).and_then(Value::as_array);
                for alternative in alternatives.into_iter().flatten() {
                    self.groups.push(Group {
                        base: all.clone(),
                        fresh: vec![alternative],
                    });
                }
            }
        }
        for part in parts(&all) {
            self.groups.push(Group {
                base: Vec::new(),
                fresh: part,
            });
        }
        Ok(())
    }

    /// Returns all schemas that apply together with these, through `allOf` and `$ref`, each once.
    fn laid_over(&mut self, schemas: &[&'a Value]) -> Result<Vec<&'a Value>, GrammarError> {
        let (mut found, mut met) = (Vec::new(), HashSet::new());
        let mut next = schemas.to_vec();
        while let Some(schema) = next.pop() {
            if !met.insert(address(schema)) {
                continue;
            }
            let left = self.left.checked_sub(1);
            self.left = left.ok_or(GrammarError::TooMuch {
                what: "schemas that apply to the same value",
                count: MOST_SEEN + 1,
                most: MOST_SEEN,
            })?;
            found.push(schema);
            let all = schema.get("allOf").and_then(Value::as_array);
            next.extend(all.into_iter().flatten());
            let target = schema.get("$ref").and_then(Value::as_str);
            let target = target.and_then(|target| self.root.pointer(target.strip_prefix('#')?));
            next.extend(target);
        }
        Ok(found)
    }
}

/// Returns a schema's address: the document is not changed meanwhile.
fn address(schema: &Value) -> usize {
    std::ptr::from_ref(schema) as usize
}

/// Checks schemas that one value has to match together. Returns their number of properties.
fn check_group(all: &[&Value]) -> Result<usize, GrammarError> {
    let entries = |keyword: &str| -> usize {
        let named = all
            .iter()
            .filter_map(|schema| schema.get(keyword)?.as_object());
        named.map(serde_json::Map::len).sum()
    };
    let properties = entries("properties");
    bounded("properties of one object", properties, MOST_PROPERTIES)?;
    let named = entries("patternProperties");
    bounded("patternProperties", named, MOST_PATTERN_PROPERTIES)?;
    let compared = all.len() * named * named;
    bounded(
        "patternProperties in allOf",
        compared,
        MOST_COMPARED.max(named * named),
    )?;
    let patterns = all.iter().map(|schema| patterns(schema)).sum();
    bounded("patterns in allOf", patterns, MOST_PATTERNS_AT_ONCE)?;
    Ok(properties)
}

/// Returns the number of patterns of the schema itself.
fn patterns(schema: &Value) -> usize {
    let texts = ["pattern", "format"].iter();
    let there = texts.filter(|&&text| schema.get(text).is_some_and(Value::is_string));
    there.count()
}

/// Returns the largest number of patterns that the alternatives of a schema add to it.
fn in_alternatives(schema: &Value) -> usize {
    let lists = ["anyOf", "oneOf"].iter();
    let lists = lists.filter_map(|&list| schema.get(list)?.as_array());
    lists
        .map(|list| list.iter().map(patterns).max().unwrap_or(0))
        .sum()
}

/// Returns the groups of schemas that a part of the value has to match: a property, or the elements.
fn parts<'a>(all: &[&'a Value]) -> Vec<Vec<&'a Value>> {
    let mut parts: BTreeMap<(&str, &str), Vec<&'a Value>> = BTreeMap::new();
    for schema in all {
        for keyword in PARTS {
            let part = schema.get(keyword);
            parts.entry((keyword, "")).or_default().extend(part);
        }
        for keyword in ["properties", "patternProperties", "dependentSchemas"] {
            let named = schema.get(keyword).and_then(Value::as_object);
            for (name, schema) in named.into_iter().flatten() {
                parts
                    .entry((keyword, name.as_str()))
                    .or_default()
                    .push(schema);
            }
        }
        let listed = schema.get("prefixItems").and_then(Value::as_array);
        for schema in listed.into_iter().flatten() {
            parts.entry(("prefixItems", "")).or_default().push(schema);
        }
    }
    // Elements with schemas by position are matched one by one.
    let listed = parts.remove(&("prefixItems", "")).unwrap_or_default();
    let listed = listed.into_iter().map(|schema| vec![schema]);
    let together = parts.into_values().filter(|part| !part.is_empty());
    together.chain(listed).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn named(count: usize, schema: impl Fn(usize) -> Value) -> Value {
        let fields = (0..count).map(|at| (format!("^n{at}.*z{at}$"), schema(at)));
        Value::Object(fields.collect())
    }

    fn list(count: usize, schema: impl Fn(usize) -> Value) -> Value {
        (0..count).map(schema).collect()
    }

    #[test]
    fn what_the_compiler_would_multiply_is_bounded() {
        let text = |_| json!({"type": "string"});
        let pattern = |at: usize| json!({"pattern": format!("a{at}.*z")});
        let pattern_of_x = move |at: usize| json!({"properties": {"x": pattern(at)}});
        // A schema with a number of repetitions, the largest allowed number, and the smallest rejected one.
        type Made = Box<dyn Fn(usize) -> Value>;
        let table: Vec<(Made, usize, usize)> = vec![
            (
                Box::new(move |n| json!({"patternProperties": named(n, text)})),
                32,
                33,
            ),
            (
                Box::new(move |n| {
                    let inner = move |_| json!({"patternProperties": named(16, text)});
                    json!({"properties": named(n, inner)})
                }),
                4,
                5,
            ),
            (
                Box::new(move |n| {
                    let one = move |at: usize| json!({"patternProperties": {format!("^a{at}z$"): text(0)}});
                    json!({"allOf": list(n, one)})
                }),
                16,
                33,
            ),
            (
                Box::new(move |n| json!({"properties": named(n, text)})),
                1000,
                1001,
            ),
            (
                Box::new(move |n| {
                    let object = move |_| json!({"properties": named(500, text)});
                    json!({"prefixItems": list(n, object)})
                }),
                16,
                17,
            ),
            (Box::new(move |n| json!({"allOf": list(n, pattern)})), 6, 7),
            (
                Box::new(move |n| json!({"pattern": "b", "allOf": list(n, pattern)})),
                5,
                6,
            ),
            (
                Box::new(move |n| {
                    let inner = move |at: usize| json!({"allOf": [pattern(at), pattern(at + 100)]});
                    json!({"allOf": list(n, inner)})
                }),
                3,
                4,
            ),
            (
                Box::new(move |n| json!({"allOf": list(n, pattern_of_x)})),
                6,
                7,
            ),
            (
                Box::new(move |n| {
                    let references = list(n, |at| json!({"$ref": format!("#/$defs/{at}")}));
                    let named: serde_json::Map<String, Value> =
                        (0..n).map(|at| (at.to_string(), pattern(at))).collect();
                    json!({"allOf": references, "$defs": named})
                }),
                6,
                7,
            ),
            (
                Box::new(
                    move |n| json!({"allOf": list(n, |at| json!({"anyOf": [pattern(at), {}]}))}),
                ),
                6,
                7,
            ),
        ];
        for (at, (made, fits, exceeds)) in table.iter().enumerate() {
            assert_eq!(check(&made(*fits)), Ok(()), "{at}: {fits}");
            let refused = check(&made(*exceeds));
            let too_much = matches!(refused, Err(GrammarError::TooMuch { .. }));
            assert!(too_much, "{at}: {exceeds}: {refused:?}");
        }
    }

    #[test]
    fn schemas_of_many_patterns_that_do_not_meet_are_kept() {
        let pattern = |at: usize| json!({"type": "string", "pattern": format!("^a{at}$")});
        for schema in [
            json!({"properties": named(500, pattern)}),
            json!({"anyOf": list(500, pattern)}),
            json!({"anyOf": list(100, |at| json!({"properties": {"id": pattern(at)}}))}),
            json!({"prefixItems": list(100, pattern)}),
            json!({"allOf": list(20, |at| json!({"properties": {format!("p{at}"): pattern(at)}}))}),
            // Schemas that refer to themselves.
            json!({"$ref": "#"}),
            json!({"properties": {"child": {"$ref": "#"}, "name": pattern(0)}}),
            json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}},
                "$ref": "#/$defs/a"}),
            json!(true),
        ] {
            assert_eq!(check(&schema), Ok(()), "{schema}");
        }
    }
}

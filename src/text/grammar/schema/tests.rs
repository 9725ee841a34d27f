use super::*;

fn prepared(schema: Value) -> Result<Value, GrammarError> {
    prepare(schema, 10_000)
}

#[test]
fn whole_numbers_beyond_what_is_kept_are_refused_by_place() {
    let most = json!(9_007_199_254_740_992_u64);
    for kept in [
        json!({"const": most}),
        json!({"const": 123_456_789.123_456_79}),
        json!({"enum": [-9_007_199_254_740_992_i64, 0.5, 1e-300]}),
        json!({"maximum": 1.5}),
        // Names of properties, and data that no text has to match.
        json!({"type": "object", "properties": {"const": {"default": 9_007_199_254_740_993_u64}}}),
        json!({"description": "9007199254740993", "examples": [9_007_199_254_740_993_u64]}),
    ] {
        assert_eq!(prepared(kept.clone()), Ok(kept));
    }
    for (refused, place) in [
        (json!({"const": 9_007_199_254_740_993_u64}), "#/const"),
        (json!({"const": u64::MAX}), "#/const"),
        (json!({"enum": [1, {"a": [i64::MIN]}]}), "#/enum"),
        (json!({"maximum": 9_007_199_254_740_993_u64}), "#/maximum"),
        (json!({"exclusiveMinimum": -1e20}), "#/exclusiveMinimum"),
        // The original text may have had another integer.
        (json!({"const": 9_007_199_254_740_992.0}), "#/const"),
        (
            json!({"items": {"anyOf": [{}, {"multipleOf": 1e300}]}}),
            "#/items/anyOf/1/multipleOf",
        ),
        (
            json!({"properties": {"a/b": {"const": 99_999_999_999_999_999_u64}}}),
            "#/properties/a~1b/const",
        ),
    ] {
        let error = prepared(refused.clone()).unwrap_err().to_string();
        assert!(error.contains(place), "{refused}: {error}");
    }
}

#[test]
fn nullable_admits_null_beside_any_keyword() {
    let nil = json!({"type": "null"});
    for (schema, expected) in [
        (
            json!({"type": "string"}),
            json!({"type": ["string", "null"]}),
        ),
        (
            json!({"type": ["integer"]}),
            json!({"type": ["integer", "null"]}),
        ),
        (
            json!({"type": ["integer", "null"]}),
            json!({"type": ["integer", "null"]}),
        ),
        (json!({"const": "a"}), json!({"enum": ["a", null]})),
        (
            json!({"type": "string", "const": "a"}),
            json!({"type": ["string", "null"], "enum": ["a", null]}),
        ),
        (
            json!({"enum": ["a", "b"]}),
            json!({"enum": ["a", "b", null]}),
        ),
        (
            json!({"properties": {"a": {}}}),
            json!({"properties": {"a": {}}, "type": ["object", "null"]}),
        ),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}),
            json!({"$defs": {"a": {"type": "integer"}}, "anyOf": [{"$ref": "#/$defs/a"}, nil]}),
        ),
        (
            json!({"anyOf": [{"type": "integer"}]}),
            json!({"anyOf": [{"anyOf": [{"type": "integer"}]}, nil]}),
        ),
        (
            json!({"oneOf": [{}]}),
            json!({"anyOf": [{"oneOf": [{}]}, nil]}),
        ),
        (
            json!({"allOf": [{}]}),
            json!({"anyOf": [{"allOf": [{}]}, nil]}),
        ),
    ] {
        let nullable = |value| {
            let mut schema = schema.clone();
            schema["nullable"] = value;
            schema
        };
        for (wrap, at) in [(false, ""), (true, "/items")] {
            let of = |schema| {
                if wrap {
                    json!({"type": "array", "items": schema})
                } else {
                    schema
                }
            };
            let admitted = prepared(of(nullable(json!(true)))).unwrap();
            assert_eq!(admitted.pointer(at), Some(&expected), "{schema}");
            let refused = prepared(of(nullable(json!("yes"))))
                .unwrap_err()
                .to_string();
            assert!(
                refused.contains(&format!("#{at}/nullable must be")),
                "{refused}"
            );
        }
        for absent in [json!(false), json!(null)] {
            assert_eq!(prepared(nullable(absent)), prepared(schema.clone()));
        }
    }
}

#[test]
fn keywords_of_a_type_name_it() {
    for (schema, kind) in [
        (json!({"properties": {}}), Some("object")),
        (json!({"required": ["a"]}), Some("object")),
        (json!({"items": {}}), Some("array")),
        (json!({"minItems": 1}), Some("array")),
        (json!({"items": {}, "properties": {}}), None),
        (json!({"enum": [1], "properties": {}}), None),
        (json!({"anyOf": [{}], "required": ["a"]}), None),
        (json!({"minimum": 1}), None),
        (json!({}), None),
    ] {
        let result = prepared(schema.clone()).unwrap();
        let named = result.get("type").and_then(Value::as_str);
        assert_eq!(named, kind, "{schema}");
    }
    let inner = prepared(json!({"anyOf": [{"required": ["a"]}]})).unwrap();
    assert_eq!(inner["anyOf"][0]["type"], "object");
    // Under `not`, a type would change the meaning of the schema.
    let schema = json!({"not": {"required": ["a"]}});
    assert_eq!(prepared(schema.clone()), Ok(schema));
}

#[test]
fn references_in_unusual_spellings_become_definitions() {
    let target = json!({"type": "integer"});
    for (reference, definitions) in [
        ("#/$defs/a~1b", json!({"a/b": target})),
        ("#/$defs/a~0b", json!({"a~b": target})),
        ("#/$defs/a%20b", json!({"a b": target})),
        ("#/$defs/%C3%A9", json!({"é": target})),
        ("#/$defs/a%25b", json!({"a%b": target})),
    ] {
        let schema = json!({"items": {"$ref": reference}, "$defs": definitions});
        let prepared = prepared(schema).unwrap();
        let name = prepared["items"]["$ref"].as_str().unwrap();
        let at = name.strip_prefix('#').unwrap();
        assert!(!name.contains(['~', '%']), "{name}");
        assert_eq!(prepared.pointer(at), Some(&target), "{reference}");
    }
    let anchored = json!({"type": "integer", "$anchor": "number"});
    let schema = json!({"$id": "https://x.example/s", "items": {"$ref": "#number"},
        "contains": {"$ref": "https://x.example/s#/$defs/n"}, "$defs": {"n": anchored}});
    let result = prepared(schema).unwrap();
    for keyword in ["items", "contains"] {
        let name = result[keyword]["$ref"].as_str().unwrap();
        assert_eq!(result.pointer(&name[1..]), Some(&anchored));
    }
    // Recursion through them ends.
    let schema = json!({"$anchor": "tree", "properties": {"child": {"$ref": "#tree"}}});
    let result = prepared(schema).unwrap();
    let name = result["properties"]["child"]["$ref"].as_str().unwrap();
    let copy = result.pointer(&name[1..]).unwrap();
    assert_eq!(copy["properties"]["child"]["$ref"], name);
    // Usual references, and those without a target, are left to llguidance.
    for reference in [
        "#/$defs/a",
        "#",
        "#/$defs/x~1y",
        "other.json#/a",
        "#nowhere",
    ] {
        let schema = json!({"type": "array", "items": {"$ref": reference}, "$defs": {"a": {}}});
        assert_eq!(prepared(schema.clone()), Ok(schema));
    }
    let wide =
        json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"description": "x".repeat(10_000)}}});
    assert!(matches!(prepared(wide), Err(GrammarError::TooLong { .. })));
}

#[test]
fn nullable_admits_null() {
    let schema = json!({"properties": {"a": {"type": "string", "nullable": true, "enum": ["x"]}, "nullable": true}});
    let prepared = prepared(schema).unwrap();
    assert_eq!(
        prepared["properties"]["a"]["type"],
        json!(["string", "null"])
    );
    assert_eq!(prepared["properties"]["a"]["enum"], json!(["x", null]));
}

//! Functions that damage JSON and bytes.

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// Returns a value that programs often handle wrongly.
fn odd(rng: &mut ChaCha8Rng) -> Value {
    let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
    let all = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(7),
        json!(0.5),
        json!(-0.0),
        json!(1e-320),
        json!(1e38),
        json!(1e308),
        json!(-1e308),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(u32::MAX),
        json!(1u64 << 40),
        json!(""),
        json!(" "),
        json!("\u{0}"),
        json!("🦀\u{202e}\u{feff}\u{1f468}\u{200d}\u{1f469}"),
        json!("<|end|>"),
        json!("{{ x }}{% for %}"),
        json!("((((a*)*)*)*)*"),
        json!("x".repeat(3000)),
        // These values are at bounds and one above them: see docs/limits.md.
        json!("x".repeat(1024)),
        json!("x".repeat(1025)),
        json!("7".repeat(70_000)),
        json!(vec!["stop"; 16]),
        json!(vec!["stop"; 17]),
        json!(vec![5; 1024]),
        json!(vec![5; 1025]),
        json!({"choice": (0..5000).collect::<Vec<_>>().iter().map(i32::to_string).collect::<Vec<_>>()}),
        json!({"choice": vec!["same"; 5001]}),
        json!({"regex": "(a{1,1000}){1,1000}"}),
        json!({"grammar": "start: <|user|> \"hi\" <|end|>"}),
        json!(128),
        json!(8193),
        json!([]),
        json!({}),
        json!([null]),
        json!({"": null}),
        json!(["a", 1, {}]),
        deep,
    ];
    all.choose(rng)
        .expect("there are odd values; this is a bug")
        .clone()
}

/// Returns the number of values in a document.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// Applies `change_it` to the value of that number, counted from the root.
fn change(value: &mut Value, at: &mut usize, change_it: &mut dyn FnMut(&mut Value)) {
    if *at == 0 {
        *at = usize::MAX;
        return change_it(value);
    }
    *at -= 1;
    let inner: Vec<&mut Value> = match value {
        Value::Array(values) => values.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => Vec::new(),
    };
    for value in inner {
        change(value, at, change_it);
        if *at == usize::MAX {
            return;
        }
    }
}

/// Damages a document in one to three places. In most cases it keeps its shape.
pub fn value(rng: &mut ChaCha8Rng, document: &mut Value) {
    for _ in 0..rng.random_range(1..=3) {
        let mut at = rng.random_range(0..count(document));
        change(document, &mut at, &mut |value| one(rng, value));
    }
}

fn one(rng: &mut ChaCha8Rng, value: &mut Value) {
    let new = odd(rng);
    match (value, rng.random_range(0..4)) {
        (Value::Object(map), 0) if !map.is_empty() => {
            let at = rng.random_range(0..map.len());
            let key = map.keys().nth(at).cloned().unwrap_or_default();
            map.remove(&key);
        }
        (Value::Object(map), 1) => {
            map.insert("unheard_of".into(), new);
        }
        (Value::Object(map), 2) if !map.is_empty() => {
            // Copies the value of one key to the name of another key.
            let at = rng.random_range(0..map.len());
            let keys: Vec<String> = map.keys().cloned().collect();
            let moved = map.values().next().cloned().unwrap_or_default();
            map.insert(keys[at].clone(), moved);
        }
        (Value::Array(values), 0) if !values.is_empty() => {
            values.remove(rng.random_range(0..values.len()));
        }
        (Value::Array(values), 1) => values.push(new),
        (Value::Array(values), 2) if values.len() < 200 => {
            let again = values.clone();
            values.extend(again);
        }
        (Value::Number(number), 0 | 1) => {
            let near = number.as_f64().unwrap_or(0.0) * rng.random_range(-2.0..3.0);
            *number = serde_json::Number::from_f64(near).unwrap_or_else(|| 0.into());
        }
        (Value::Number(number), 2) => {
            let near = number.as_i64().unwrap_or(0);
            *number = near.wrapping_add(rng.random_range(-2..=2)).into();
        }
        (Value::String(text), 0) => {
            let half: String = text.chars().take(text.chars().count() / 2).collect();
            *text = half;
        }
        (Value::String(text), 1) if text.len() < 1000 => *text = text.repeat(3),
        (value, _) => *value = new,
    }
}

/// Adds one or two of the `known` parameters with odd values to an object.
pub fn parameters(rng: &mut ChaCha8Rng, object: &mut Map<String, Value>, known: &[String]) {
    for _ in 0..rng.random_range(1..=2) {
        if let Some(name) = known.choose(rng) {
            let value = odd(rng);
            object.insert(name.clone(), value);
        }
    }
}

/// Damages bytes in one to four places: flips, gaps, doubled parts, an early end.
pub fn bytes(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.random_range(0..bytes.len());
        let end = (at + rng.random_range(1..64)).min(bytes.len());
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = *b"\"{}[],:\\0-\xff\0".choose(rng).unwrap_or(&0),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => bytes[at] = rng.random_range(0..=255),
        }
    }
}

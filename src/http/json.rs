//! JSON in which no object has a key twice.
//!
//! serde_json keeps the last of two values and says nothing: a caller that contradicts itself would be answered by half of what
//! it asked.

use std::cell::RefCell;
use std::fmt;

use axum::http::StatusCode;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// Reads one JSON document.
///
/// # Errors
/// What is no JSON, by line and column; a key that is there twice, by its path.
pub fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let doubled = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read = Unique {
        place: Place::Root,
        doubled: &doubled,
    };
    let value = read
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| match doubled.into_inner() {
        Some(path) => {
            let message = format!("`{path}` is given twice");
            ApiError::new(StatusCode::BAD_REQUEST, "duplicate_parameter", message).about(path)
        }
        None => ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", error.to_string()),
    })
}

/// Where in a document a value lies.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

/// As `messages[0].role`.
impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Place::Root, key) => f.write_str(key),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Reads the value at `place`, and notes the first key that comes twice.
#[derive(Clone, Copy)]
struct Unique<'a> {
    place: Place<'a>,
    doubled: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        Ok(Value::Number(
            number.ok_or_else(|| E::custom("number out of range"))?,
        ))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Unique {
            place: Place::Index(&self.place, values.len()),
            ..self
        })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let place = Place::Key(&self.place, &key);
            if object.contains_key(&key) {
                *self.doubled.borrow_mut() = Some(place.to_string());
                return Err(A::Error::custom("a key is there twice"));
            }
            let value = map.next_value_seed(Unique { place, ..self })?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_serde_json_reads() {
        for text in [
            r#"{"a": [1, -2, 2.5, 1e300, 18446744073709551615, -9223372036854775808], "b": {"c": null, "d": [true, "é\n"]}}"#,
            "[]",
            "{}",
            "7",
            r#""x""#,
            r#"[{"a": 1}, {"a": 1}]"#,
        ] {
            let theirs: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text.as_bytes()).unwrap(), theirs, "{text}");
        }
        let deep = "[".repeat(100_000);
        for text in ["", "{", "[1,]", "{} x", "NaN", "1e999", r#"{"a" 1}"#, &deep] {
            assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");
            let error = parse(text.as_bytes()).unwrap_err().into_body().error;
            assert_eq!(error.code, "invalid_json", "{text}");
        }
        assert!(parse(b"\"\xff\"").is_err());
    }

    #[test]
    fn a_key_that_is_there_twice_is_named_by_its_path() {
        for (text, path) in [
            (r#"{"seed": 1, "prompt": "x", "seed": 1}"#, "seed"),
            (
                r#"{"messages": [{}, {"role": 1, "role": 2}]}"#,
                "messages[1].role",
            ),
            (
                r#"{"a": {"b": [[{"c d": 1, "\u0063 d": 2}]]}}"#,
                "a.b[0][0].c d",
            ),
            (r#"[{"x": 1, "x": 2}]"#, "[0].x"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().into_body().error;
            assert_eq!(
                (error.code, error.param.as_deref()),
                ("duplicate_parameter", Some(path))
            );
            assert!(error.message.contains(path), "{}", error.message);
        }
    }
}

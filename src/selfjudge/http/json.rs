//! A JSON parser that rejects duplicate keys and bounds the number of values.
//!
//! A parsed value takes 32 bytes of memory and a key about 90 more, however short they are in the text: without a bound, a body of
//! 8 MiB would take half a gigabyte.
//!
//! serde_json silently keeps the last of two values of a key: half of a contradictory request would be ignored.
//!
//! Three deviations are accepted as by other servers: a byte order mark before the document is skipped, half a surrogate pair in
//! a string becomes U+FFFD, and a whole number with a zero fraction (`8.0`) equals that number.

use std::cell::{Cell, RefCell};
use std::fmt;

use axum::http::StatusCode;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// Maximum number of values in a document, including elements of lists and keys of objects.
pub const MAX_VALUES: usize = 1 << 20;

/// Estimates, without parsing, the bytes that a parsed document takes; never less than its values take.
pub fn memory_of(bytes: &[u8]) -> usize {
    /// Bytes of a value in a list whose capacity is twice its length.
    const VALUE: usize = 64;
    /// Bytes of a key and its value.
    const FIELD: usize = 160;
    let (mut values, mut text, mut escaped) = (0usize, false, false);
    for byte in bytes {
        match (text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => text = !text,
            (false, b',' | b'[' | b'{') => values += VALUE,
            (false, b':') => values += FIELD,
            _ => {}
        }
    }
    // Values beyond the bound are never created.
    bytes.len() + values.min(MAX_VALUES * FIELD)
}

/// Parses one JSON document.
///
/// # Errors
/// Invalid JSON, by line and column; a duplicate key, by its path; more than [`MAX_VALUES`] values.
pub fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    parse_within(MAX_VALUES, bytes)
}

fn parse_within(most: usize, bytes: &[u8]) -> Result<Value, ApiError> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    match parse_strictly(most, bytes) {
        Err(error) => match with_whole_surrogates(bytes) {
            Some(mended) => parse_strictly(most, &mended),
            None => Err(error),
        },
        parsed => parsed,
    }
}

/// Returns the document with U+FFFD for every escape of half a surrogate pair, which JSON permits but a Rust string cannot hold;
/// `None` if there is none.
fn with_whole_surrogates(bytes: &[u8]) -> Option<Vec<u8>> {
    let unit = |at: usize| {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut mended = None;
    let mut at = 0;
    while at < bytes.len() {
        at += match (bytes[at], unit(at)) {
            (b'\\', Some(0xD800..=0xDBFF)) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => 12,
            (b'\\', Some(0xD800..=0xDFFF)) => {
                let mended = mended.get_or_insert_with(|| bytes.to_vec());
                mended[at + 2..at + 6].copy_from_slice(b"FFFD");
                6
            }
            (b'\\', _) => 2,
            _ => 1,
        };
    }
    mended
}

fn parse_strictly(most: usize, bytes: &[u8]) -> Result<Value, ApiError> {
    let (doubled, left) = (RefCell::new(None), Cell::new(Some(most)));
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read = Unique {
        place: Place::Root,
        doubled: &doubled,
        left: &left,
    };
    let value = read
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| match doubled.into_inner() {
        Some(path) => {
            let message = format!("`{path}` is given twice");
            ApiError::new(StatusCode::BAD_REQUEST, "duplicate_parameter", message).about(path)
        }
        None if left.get().is_none() => ApiError::new(
            StatusCode::BAD_REQUEST,
            "too_many_values",
            format!("the body has more than {most} values"),
        ),
        None => {
            let message = match bytes.trim_ascii().is_empty() {
                true => "the body is empty, and must be a JSON object".to_owned(),
                false => format!("the body is not valid JSON: {error}"),
            };
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
        }
    })
}

/// The path of a value in a document.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

/// Formats the path, for example `messages[0].role`.
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

/// Deserializes the value at `place`, and records the first duplicate key.
#[derive(Clone, Copy)]
struct Unique<'a> {
    place: Place<'a>,
    doubled: &'a RefCell<Option<String>>,
    /// Remaining number of values; none after the limit was exceeded.
    left: &'a Cell<Option<usize>>,
}

impl Unique<'_> {
    /// Counts a value.
    fn count<E: Error>(&self) -> Result<(), E> {
        self.left
            .set(self.left.get().and_then(|left| left.checked_sub(1)));
        match self.left.get() {
            Some(_) => Ok(()),
            None => Err(E::custom("too many values")),
        }
    }
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
        /// Below this every whole number is exact in f64.
        const EXACT: f64 = (1u64 << 53) as f64;
        if value.fract() == 0.0 && value.abs() < EXACT {
            return Ok((value as i64).into());
        }
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
            self.count()?;
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key_seed(Key)? {
            self.count()?;
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
    fn spellings_of_other_servers_are_read() {
        for (text, same) in [
            ("\u{FEFF}{\"a\": 1}", r#"{"a": 1}"#),
            ("[8.0, -2.00, 0.0, 1e2, 8.5]", "[8, -2, 0, 100, 8.5]"),
            (r#""a\ud83d""#, "\"a\u{FFFD}\""),
            (r#""\uDE00 b""#, "\"\u{FFFD} b\""),
            (r#""\ude00\ud83d""#, "\"\u{FFFD}\u{FFFD}\""),
            (r#""\ud83d\ud83d\ude00""#, "\"\u{FFFD}\u{1F600}\""),
            (
                r#"{"\ud83d": "\\ud83d \ud83dx"}"#,
                "{\"\u{FFFD}\": \"\\\\ud83d \u{FFFD}x\"}",
            ),
            (
                r#"["\ud83d\n", "\ud83d\u0041"]"#,
                "[\"\u{FFFD}\\n\", \"\u{FFFD}A\"]",
            ),
        ] {
            let same: Value = serde_json::from_str(same).unwrap();
            assert_eq!(parse(text.as_bytes()).unwrap(), same, "{text}");
        }
        for text in [
            r#""\ud83""#,
            r#""\ud83d"#,
            r#""\ud83d\"#,
            "\u{FEFF}\u{FEFF}1",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn values_are_counted_wherever_they_are() {
        for (text, values) in [
            ("[0,0,0,0]", 4),
            ("[[],[],[[]]]", 4),
            (r#"{"a": {"b": 1}, "c": [2]}"#, 4),
            ("7", 0),
        ] {
            assert!(parse_within(values, text.as_bytes()).is_ok(), "{text}");
            if values > 0 {
                let error = parse_within(values - 1, text.as_bytes()).unwrap_err();
                assert_eq!(error.into_body().error.code, "too_many_values", "{text}");
            }
        }
        let list = |values: usize| format!("[{}0]", "0,".repeat(values - 1));
        assert!(parse(list(MAX_VALUES).as_bytes()).is_ok());
        assert!(parse(list(MAX_VALUES + 1).as_bytes()).is_err());
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

//! A deserializer of JSON values that takes no list for an object.
//!
//! serde also reads a struct from a list of its fields in their order, for formats without names. In JSON that would accept
//! `"messages": [["user", "hi"]]`, where a message was meant.

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};
use serde_json::{Error, Map, Value};

/// A value, from which structs are read by the names of their fields only.
pub struct Strict(pub Value);

/// Returns the fields of an object.
fn fields(map: Map<String, Value>) -> impl Iterator<Item = (String, Strict)> {
    map.into_iter().map(|(key, value)| (key, Strict(value)))
}

impl<'de> IntoDeserializer<'de, Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(values) => {
                let mut list = SeqDeserializer::new(values.into_iter().map(Strict));
                let read = visitor.visit_seq(&mut list)?;
                list.end().map(|()| read)
            }
            Value::Object(map) => {
                let mut map = MapDeserializer::new(fields(map));
                let read = visitor.visit_map(&mut map)?;
                map.end().map(|()| read)
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) if map.len() == 1 => {
                let map = MapDeserializer::new(fields(map));
                visitor.visit_enum(MapAccessDeserializer::new(map))
            }
            plain => plain.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        list: Vec<Inner>,
        map: BTreeMap<String, Inner>,
        maybe: Option<Inner>,
        word: Word,
        pair: (u8, f32),
        free: Value,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        a: Option<u64>,
        b: Option<String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Word {
        One,
        Other(Inner),
        Named { a: u8 },
    }

    fn whole() -> Value {
        json!({
            "list": [{"a": 1}, {"b": "x"}, {"a": null, "b": null}], "map": {"k": {"a": 18446744073709551615u64}}, "maybe": {"b": ""},
            "word": "one", "pair": [1, 2.5], "free": [[1], {"x": [true]}, null]
        })
    }

    #[test]
    fn it_reads_what_serde_json_reads() {
        for (field, value) in [
            ("maybe", json!(null)),
            ("maybe", json!({})),
            ("word", json!({"other": {"a": 3}})),
            ("word", json!({"named": {"a": 3}})),
            ("list", json!([])),
            ("pair", json!([1])),
            ("pair", json!([1, 2, 3])),
            ("pair", json!([-1, 2])),
            ("word", json!("two")),
            ("word", json!({})),
            ("word", json!({"other": {"a": 3}, "one": null})),
            ("word", json!(["one"])),
            ("list", json!([{"a": "1"}])),
            ("list", json!({"a": 1})),
            ("map", json!(3)),
            ("more", json!(3)),
        ] {
            let mut body = whole();
            body[field] = value.clone();
            let theirs: Result<Body, Error> = serde_json::from_value(body.clone());
            let ours = Body::deserialize(Strict(body));
            match (theirs, ours) {
                (Ok(theirs), Ok(ours)) => assert_eq!(theirs, ours, "{field} {value}"),
                (Err(_), Err(_)) => {}
                (theirs, ours) => panic!("{field} {value}: {theirs:?} {ours:?}"),
            }
        }
    }

    #[test]
    fn a_list_is_no_object() {
        for (field, value) in [
            ("list", json!([[1, "x"]])),
            ("map", json!({"k": [1, "x"]})),
            ("maybe", json!([1, "x"])),
            ("word", json!({"other": [1, "x"]})),
        ] {
            let mut body = whole();
            body[field] = value.clone();
            assert!(serde_json::from_value::<Body>(body.clone()).is_ok());
            let error = Body::deserialize(Strict(body)).unwrap_err().to_string();
            assert_eq!(
                error, "invalid type: sequence, expected struct Inner",
                "{field} {value}"
            );
        }
    }
}

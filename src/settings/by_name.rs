//! A deserializer of JSON and TOML values that takes no list for an object.
//!
//! serde also reads a struct from a list of its fields in their order, for formats without names. It would accept
//! `"messages": [["user", "hi"]]` where a message was meant, and `stage = [256, 32]` for a table.

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};

/// A value of a format, whose own deserializer reads what has no parts.
pub trait Tree: for<'de> Deserializer<'de, Error = Self::Failure> {
    type Failure: serde::de::Error;
    type Fields: ExactSizeIterator<Item = (String, Self)>;

    /// Returns the value's parts.
    fn open(self) -> Parts<Self>;

    fn is_null(&self) -> bool;
}

/// The parts of a value.
pub enum Parts<T: Tree> {
    List(Vec<T>),
    Object(T::Fields),
    /// A value without parts.
    None(T),
}

impl Tree for serde_json::Value {
    type Failure = serde_json::Error;
    type Fields = serde_json::map::IntoIter;

    fn open(self) -> Parts<Self> {
        match self {
            Self::Array(list) => Parts::List(list),
            Self::Object(map) => Parts::Object(map.into_iter()),
            plain => Parts::None(plain),
        }
    }

    fn is_null(&self) -> bool {
        serde_json::Value::is_null(self)
    }
}

impl Tree for toml::Value {
    type Failure = toml::de::Error;
    type Fields = toml::map::IntoIter<String, Self>;

    fn open(self) -> Parts<Self> {
        match self {
            Self::Array(list) => Parts::List(list),
            Self::Table(map) => Parts::Object(map.into_iter()),
            plain => Parts::None(plain),
        }
    }

    fn is_null(&self) -> bool {
        false
    }
}

/// A value, from which structs are read by the names of their fields only.
pub struct ByName<T>(pub T);

/// Returns the fields of an object.
fn fields<T: Tree>(fields: T::Fields) -> impl Iterator<Item = (String, ByName<T>)> {
    fields.map(|(key, value)| (key, ByName(value)))
}

impl<T: Tree> IntoDeserializer<'_, T::Failure> for ByName<T> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de, T: Tree> Deserializer<'de> for ByName<T> {
    type Error = T::Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, T::Failure> {
        match self.0.open() {
            Parts::List(values) => {
                let mut list = SeqDeserializer::new(values.into_iter().map(ByName));
                let read = visitor.visit_seq(&mut list)?;
                list.end().map(|()| read)
            }
            Parts::Object(map) => {
                let mut map = MapDeserializer::new(fields::<T>(map));
                let read = visitor.visit_map(&mut map)?;
                map.end().map(|()| read)
            }
            Parts::None(plain) => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, T::Failure> {
        match self.0.is_null() {
            true => visitor.visit_none(),
            false => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, T::Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, T::Failure> {
        match self.0.open() {
            Parts::List(_) => Err(T::Failure::invalid_type(Unexpected::Seq, &visitor)),
            Parts::Object(map) => {
                let mut map = MapDeserializer::new(fields::<T>(map));
                let read = visitor.visit_map(&mut map)?;
                map.end().map(|()| read)
            }
            Parts::None(plain) => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, T::Failure> {
        match self.0.open() {
            Parts::List(_) => Err(T::Failure::invalid_type(Unexpected::Seq, &"string or map")),
            Parts::Object(map) if map.len() != 1 => Err(T::Failure::invalid_value(
                Unexpected::Map,
                &"map with a single key",
            )),
            Parts::Object(map) => {
                let map = MapDeserializer::new(fields::<T>(map));
                visitor.visit_enum(MapAccessDeserializer::new(map))
            }
            Parts::None(plain) => plain.deserialize_enum(name, variants, visitor),
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
    use serde_json::{Error, Value, json};

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
            let ours = Body::deserialize(ByName(body));
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
            let error = Body::deserialize(ByName(body)).unwrap_err().to_string();
            assert_eq!(
                error, "invalid type: sequence, expected struct Inner",
                "{field} {value}"
            );
        }
    }

    #[test]
    fn a_list_is_no_table_of_settings() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct File {
            inner: Option<Inner>,
            all: Vec<Inner>,
        }
        let read = |text: &str| {
            let value: toml::Value = toml::from_str(text).unwrap();
            (
                File::deserialize(ByName(value.clone())),
                value.try_into::<File>(),
            )
        };
        let (ours, theirs) = read("all = [{a = 1}, {b = 'x'}]\ninner = {a = 2}");
        assert_eq!(ours.unwrap(), theirs.unwrap());
        for text in ["all = [[1, 'x']]", "all = []\ninner = [1, 'x']"] {
            let (ours, theirs) = read(text);
            assert!(theirs.is_ok(), "{text}");
            let error = ours.unwrap_err().to_string();
            assert!(error.contains("sequence, expected struct Inner"), "{error}");
        }
    }
}

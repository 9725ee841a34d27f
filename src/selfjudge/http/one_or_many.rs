//! Values that are one text, or something else. For a wrong element, serde's untagged enums reject the whole value without naming it;
//! these types name the element.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// One text, or several values.
pub enum Given<T> {
    Text(String),
    List(Vec<T>),
}

/// Deserializes a text or a list whose elements have their own paths in errors.
///
/// # Errors
/// Fails for any other type, and for a wrong element.
pub fn one_or_many<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
) -> Result<Given<T>, D::Error> {
    deserializer.deserialize_any(Read {
        expected,
        elements: PhantomData,
    })
}

struct Read<T> {
    expected: &'static str,
    elements: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Read<T> {
    type Value = Given<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Given::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
        Ok(Given::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Given::List(values))
    }
}

/// One text, or an object.
pub enum TextOr<T> {
    Text(String),
    Object(T),
}

/// Deserializes a text or an object whose fields have their own paths in errors.
///
/// # Errors
/// Fails for any other type, and for a wrong field.
pub fn text_or_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
) -> Result<TextOr<T>, D::Error> {
    deserializer.deserialize_any(ReadObject {
        expected,
        object: PhantomData,
    })
}

struct ReadObject<T> {
    expected: &'static str,
    object: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for ReadObject<T> {
    type Value = TextOr<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(TextOr::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
        Ok(TextOr::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(TextOr::Object)
    }
}

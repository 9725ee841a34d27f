//! The parameter `tool_choice`.

use std::borrow::Cow;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use utoipa::openapi::schema::{OneOfBuilder, Schema};
use utoipa::openapi::{ObjectBuilder, RefOr, Type};
use utoipa::{PartialSchema, ToSchema};

/// Whether and which tools are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoiceBody {
    None,
    Auto,
    Required,
    Named(String),
}

const WORDS: [&str; 3] = ["none", "auto", "required"];

const EXPECTED: &str = "must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ...}}";

impl<'de> Deserialize<'de> for ToolChoiceBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(word) => match word.as_str() {
                "none" => Ok(Self::None),
                "auto" => Ok(Self::Auto),
                "required" => Ok(Self::Required),
                _ => Err(D::Error::unknown_variant(&word, &WORDS)),
            },
            Value::Object(fields) => {
                let kind = fields.get("type").and_then(Value::as_str);
                let function = fields.get("function").and_then(Value::as_object);
                let name = function.and_then(|function| function.get("name"));
                let alone = fields.len() == 2 && function.is_some_and(|fields| fields.len() == 1);
                match (kind, name.and_then(Value::as_str)) {
                    (Some("function"), Some(name)) if alone => Ok(Self::Named(name.to_owned())),
                    (Some(kind), _) if kind != "function" => Err(D::Error::custom(format!(
                        "{EXPECTED}; the type {kind:?} is not supported"
                    ))),
                    _ => Err(D::Error::custom(EXPECTED)),
                }
            }
            _ => Err(D::Error::custom(EXPECTED)),
        }
    }
}

impl PartialSchema for ToolChoiceBody {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let name = text().description(Some("The name of the function."));
        let function = ObjectBuilder::new()
            .description(Some("The function that is called."))
            .property("name", name)
            .required("name");
        let kind = text().description(Some("Always `function`."));
        let named = ObjectBuilder::new()
            .property("type", kind.enum_values(Some(["function"])))
            .required("type")
            .property("function", function)
            .required("function");
        OneOfBuilder::new()
            .description(Some("Whether and which tools are called."))
            .item(text().enum_values(Some(WORDS)))
            .item(named)
            .into()
    }
}

impl ToSchema for ToolChoiceBody {
    fn name() -> Cow<'static, str> {
        "ToolChoiceBody".into()
    }
}

//! Configuration files, merged over the defaults of the whole configuration.
//!
//! A table that gives only some of its keys takes the others from the default of the whole configuration, which may differ from the
//! default of the table's own type: `[dpo.schedule]` has the type of JSFT's schedule, with its own default learning rate.

mod by_name;
mod spelling;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

pub use by_name::{ByName, Parts, Tree};
pub use spelling::{
    Kind, SettingsError, Unknown, did_you_mean, explain, hint, parse, unknown_name,
};

use spelling::by_name;

/// Returns the configuration that `text` describes; every key that it does not give, at any depth, has the default of `T`.
///
/// # Errors
/// If the text is not TOML, a key is unknown, or a value has the wrong type; the message names the line if it is known.
pub fn from_toml<T: Default + Serialize + DeserializeOwned>(
    text: &str,
) -> Result<T, SettingsError> {
    let merged = || {
        let given: Table = toml::from_str(text)?;
        let mut whole = Table::try_from(T::default()).map_err(serde::de::Error::custom)?;
        lay_over(&mut whole, given);
        Ok(whole)
    };
    let whole = merged().map_err(|error: toml::de::Error| explain(&error, text))?;
    // Values carry no line numbers; the error of parsing the text itself has one.
    by_name(whole).map_err(|error| match toml::from_str::<T>(text) {
        Err(error) => explain(&error, text),
        Ok(_) => error,
    })
}

/// Returns the keys that `text` gives in the table at `path`; empty if there is no such table.
pub fn given_keys(text: &str, path: &[&str]) -> Vec<String> {
    let Ok(mut table) = toml::from_str::<Table>(text) else {
        return Vec::new();
    };
    for part in path {
        match table.remove(*part) {
            Some(Value::Table(inner)) => table = inner,
            _ => return Vec::new(),
        }
    }
    table.keys().cloned().collect()
}

/// Overwrites keys with the given ones, table by table.
fn lay_over(whole: &mut Table, given: Table) {
    for (key, value) in given {
        match (whole.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(given)) if is_same_kind(inner, &given) => {
                lay_over(inner, given);
            }
            (_, value) => {
                whole.insert(key, value);
            }
        }
    }
}

/// Returns whether both tables hold the same keys: a table with another `type` has other keys, and keeps none of the default's.
fn is_same_kind(whole: &Table, given: &Table) -> bool {
    given
        .get("type")
        .is_none_or(|kind| whole.get("type") == Some(kind))
}

/// Asserts that each key of the default configuration, given alone in its table, leaves the rest at the default.
#[cfg(any(test, feature = "testing"))]
pub fn assert_each_key_alone_keeps_the_rest<T>()
where
    T: Default + Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    fn alone(whole: &Table) -> Vec<Table> {
        let mut found = Vec::new();
        for (key, value) in whole {
            let mut given = vec![value.clone()];
            if let Value::Table(inner) = value {
                given = alone(inner).into_iter().map(Value::Table).collect();
                given.push(Value::Table(Table::new()));
            }
            // An empty table of a tagged type is checked too: it keeps the default's type.
            found.extend(
                given
                    .into_iter()
                    .map(|value| Table::from_iter([(key.clone(), value)])),
            );
        }
        found
    }
    let whole = Table::try_from(T::default()).unwrap();
    let given = alone(&whole);
    assert!(given.len() > 10, "{given:?}");
    for given in given {
        let text = given.to_string();
        assert_eq!(from_toml::<T>(&text).unwrap(), T::default(), "{text}");
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        rate: f64,
        steps: Option<u64>,
    }

    impl Default for Inner {
        fn default() -> Self {
            Self {
                rate: 1.0,
                steps: None,
            }
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
    enum Kind {
        Plain,
        Scaled { by: f64 },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        name: String,
        inner: Inner,
        kind: Kind,
    }

    impl Default for Outer {
        fn default() -> Self {
            Self {
                name: "a".to_owned(),
                inner: Inner {
                    rate: 7.0,
                    steps: Some(3),
                },
                kind: Kind::Scaled { by: 2.0 },
            }
        }
    }

    #[test]
    fn a_partly_given_table_keeps_the_defaults_of_its_place() {
        let read = |text| from_toml::<Outer>(text).unwrap();
        assert_eq!(read(""), Outer::default());
        assert_eq!(read("inner = {}"), Outer::default());
        assert_eq!(
            read("[inner]\nsteps = 5").inner,
            Inner {
                rate: 7.0,
                steps: Some(5)
            }
        );
        assert_eq!(read("[inner]\nrate = 2").inner.steps, Some(3));
        assert_eq!(
            read("kind = { by = 4.0 }").kind,
            Kind::Scaled { by: 4.0 },
            "the default's type stays"
        );
        assert_eq!(read("kind = { type = 'plain' }").kind, Kind::Plain);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line) in [
            ("name = 'b'\n[inner]\nrte = 1", "line 3"),
            ("\nname = 7", "line 2"),
            ("name = ", "line 1"),
        ] {
            let error = from_toml::<Outer>(text).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
    }
}

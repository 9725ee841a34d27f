//! Differences between minijinja and jinja2 that chat templates can observe: tests, methods of strings, lists and dictionaries, `%`, and
//! the text form of values. tests/jinja holds the table by which both are compared.

mod collections;
mod meter;
mod modulo;
mod operator;
mod repr;
mod strings;
mod tags;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

use self::repr::repr;
use super::jinja_fuel::charge_for_text;
pub(super) use meter::meter;
pub(super) use modulo::name_modulo;

/// Adds the features that minijinja lacks to an environment.
pub(super) fn install(env: &mut Environment<'static>) {
    meter::install(env);
    env.add_function(operator::NAME, operator::modulo);
    env.add_function("dict", dict);
    env.add_function("joiner", |separator: Option<String>| {
        collections::Joiner::value(separator)
    });
    env.add_function("cycler", collections::Cycler::value);
    env.add_test("iterable", |value: &Value| {
        value.is_undefined() || !value.is_none() && value.try_iter().is_ok()
    });
    env.add_test("sequence", |value: &Value| {
        let kinds = [ValueKind::String, ValueKind::Seq, ValueKind::Map];
        value.is_undefined() || kinds.contains(&value.kind())
    });
    env.add_test("callable", |value: &Value| {
        // A macro or a function: a template cannot call anything else.
        let text = format!("{value:?}");
        text.starts_with("<macro") || text.contains("function")
    });
    env.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    env.add_filter("string", |state: &State, value: &Value| {
        written(state, value)
    });
    env.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    env.add_filter("center", |text: &str, width: Option<usize>| {
        strings::padded(
            text,
            width.unwrap_or(80).min(MOST_WIDTH),
            ' ',
            strings::Side::Both,
        )
    });
}

/// Limit on the width to which a text is padded, in characters.
const MOST_WIDTH: usize = 10_000;

/// Returns a value in the form of Python's `str`.
///
/// # Errors
/// If the fuel is not enough.
pub(super) fn written(state: &State, value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() || value.is_undefined() {
        return Ok(value.clone());
    }
    charge_for_text(state, value)?;
    Ok(Value::from(repr(value)))
}

/// Calls a method that minijinja lacks; returns `None` if this module does not have it either.
///
/// # Errors
/// Those of the method.
pub(super) fn method(
    state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => strings::method(state, text, method, args),
        (None, ValueKind::Map | ValueKind::Seq | ValueKind::Iterable) => {
            collections::method(state, value, method, args)
        }
        _ => Ok(None),
    }
}

/// Implements Python's `dict`.
fn dict(value: Option<Value>, named: minijinja::value::Kwargs) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    if let Some(value) = value {
        for key in value.try_iter()? {
            pairs.push((key.clone(), value.get_item(&key)?));
        }
    }
    for name in named.args() {
        pairs.push((Value::from(name), named.get(name)?));
    }
    Ok(Value::from_pairs(pairs))
}

fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

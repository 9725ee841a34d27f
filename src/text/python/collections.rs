//! The methods of Python's lists and dictionaries that minijinja lacks, and jinja2's `joiner` and `cycler`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Object, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::refused;

/// Calls a method of a list or a dictionary; returns `None` if minijinja's is right, or there is none.
pub(super) fn method(
    _state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    match (method, value.kind()) {
        ("copy", _) => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        ("index", ValueKind::Seq) => {
            let (what,): (&Value,) = from_args(args)?;
            let place = value.try_iter()?.position(|item| item == *what);
            let place = place.ok_or_else(|| refused("the value is not in the list"))?;
            Ok(Some(Value::from(place)))
        }
        // jinja2's sandbox rejects these, too.
        (
            "append" | "extend" | "insert" | "pop" | "remove" | "clear" | "update" | "setdefault"
            | "popitem",
            _,
        ) => Err(refused(format!(
            "{method} changes a value, which templates must not do"
        ))),
        _ => Ok(None),
    }
}

/// jinja2's `joiner`: empty at the first call, then the separator.
#[derive(Debug)]
pub(super) struct Joiner {
    separator: String,
    calls: AtomicUsize,
}

impl Joiner {
    pub(super) fn value(separator: Option<String>) -> Value {
        Value::from_object(Self {
            separator: separator.unwrap_or_else(|| ", ".to_owned()),
            calls: AtomicUsize::new(0),
        })
    }
}

impl Object for Joiner {
    fn call(self: &Arc<Self>, _: &mut State, args: &[Value]) -> Result<Value, Error> {
        let () = from_args(args)?;
        Ok(Value::from(
            match self.calls.fetch_add(1, Ordering::Relaxed) {
                0 => "",
                _ => &self.separator,
            },
        ))
    }
}

/// jinja2's `cycler`: one of its values after the other.
#[derive(Debug)]
pub(super) struct Cycler {
    values: Vec<Value>,
    at: AtomicUsize,
}

impl Cycler {
    pub(super) fn value(values: minijinja::value::Rest<Value>) -> Result<Value, Error> {
        match values.is_empty() {
            true => Err(refused("cycler needs at least one value")),
            false => Ok(Value::from_object(Self {
                values: values.to_vec(),
                at: AtomicUsize::new(0),
            })),
        }
    }

    fn current(&self) -> Value {
        self.values[self.at.load(Ordering::Relaxed) % self.values.len()].clone()
    }
}

impl Object for Cycler {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let () = from_args(args)?;
        let current = self.current();
        match method {
            "next" => self.at.fetch_add(1, Ordering::Relaxed),
            "reset" => self.at.swap(0, Ordering::Relaxed),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        };
        Ok(current)
    }
}

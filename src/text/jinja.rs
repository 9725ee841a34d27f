//! The Jinja environment of chat templates: what transformers offers them, in minijinja.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::TextError;
use super::python_json::{JsonStyle, dumps};
use super::strftime::strftime;

/// The name of the context variable with the moment that `strftime_now` reports.
pub(super) const NOW: &str = "__now";
const NAME: &str = "chat_template";

/// A template compiled in transformers' settings: blocks are trimmed as there, `raise_exception`,
/// `strftime_now`, `tojson` and Python's string and dictionary methods exist.
pub(super) fn compile(source: &str) -> Result<Environment<'static>, TextError> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    let syntax = syntax.build();
    env.set_syntax(syntax.map_err(|error| TextError::TemplateSyntax(error.to_string()))?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(python_method);
    env.set_formatter(|out, state, value| match value.kind() {
        // Python's words for these
        ValueKind::Bool if value.is_true() => out.write_str("True").map_err(Error::from),
        ValueKind::Bool => out.write_str("False").map_err(Error::from),
        ValueKind::None => out.write_str("None").map_err(Error::from),
        _ => escape_formatter(out, state, value),
    });
    env.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    env.add_function("strftime_now", |state: &State, format: String| {
        let given = state.lookup(NOW).and_then(|now| now.as_i64());
        strftime(&format, given.unwrap_or_else(unix_seconds))
    });
    env.add_filter("tojson", tojson);
    env.add_template_owned(NAME, source.to_owned())
        .map_err(|error| TextError::TemplateSyntax(error.to_string()))?;
    Ok(env)
}

/// Renders the one template of an environment made by [`compile`].
pub(super) fn render(env: &Environment, context: Value) -> Result<String, Error> {
    env.get_template(NAME)?.render(context)
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

/// transformers' `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = match indent {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(indent)?.min(64))),
        },
    };
    let separators: Option<Value> = kwargs.get("separators")?;
    let separators = match separators {
        None => None,
        Some(pair) if pair.is_none() => None,
        Some(pair) => {
            let part = |index| pair.get_item_by_index(index).map(|part| part.to_string());
            Some((part(0)?, part(1)?))
        }
    };
    let style = JsonStyle {
        indent,
        separators,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        let what = "an undefined value cannot be written as JSON";
        return Err(Error::new(ErrorKind::UndefinedError, what));
    }
    let value = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(dumps(&value, &style))
}

/// Python methods that minijinja-contrib lacks, then those it has.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, method, args);
    };
    match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "rsplit" => {
            let (separator, max): (&str, Option<usize>) = from_args(args)?;
            let mut parts: Vec<&str> = match max {
                Some(max) => text.rsplitn(max + 1, separator).collect(),
                None => text.rsplit(separator).collect(),
            };
            parts.reverse();
            Ok(parts.into_iter().collect())
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let parts = match method {
                "partition" => match text.split_once(separator) {
                    Some((before, after)) => [before, separator, after],
                    None => [text, "", ""],
                },
                _ => match text.rsplit_once(separator) {
                    Some((before, after)) => [before, separator, after],
                    None => ["", "", text],
                },
            };
            Ok(parts.into_iter().collect())
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;
    use minijinja::value::Serde;
    use serde_json::json;

    use super::*;

    fn run(source: &str) -> String {
        let env = compile(source).unwrap();
        let tool = json!({"name": "f", "args": {"x": [1, 2.5], "t": "é<'&"}});
        let context = context! { tool => Value::from(Serde(tool)), text => "a-b-c" };
        let context = context! { __now => 951_827_696i64, ..context };
        render(&env, context).unwrap_or_else(|error| panic!("{source}: {error:#}"))
    }

    #[test]
    fn helpers_of_transformers() {
        assert_eq!(
            run("{{ tool | tojson }}"),
            r#"{"name": "f", "args": {"x": [1, 2.5], "t": "é<'&"}}"#
        );
        assert_eq!(
            run("{{ tool.args.x | tojson(indent=1) }}"),
            "[\n 1,\n 2.5\n]"
        );
        assert_eq!(
            run("{{ tool | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}"),
            r#"{"args":{"t":"\u00e9<'&","x":[1,2.5]},"name":"f"}"#
        );
        assert_eq!(run("{{ strftime_now('%d %b %Y') }}"), "29 Feb 2000");
        let env = compile("{{ raise_exception('no ' ~ 3) }}").unwrap();
        let error = render(&env, context! {}).unwrap_err().to_string();
        assert!(error.contains("no 3"), "{error}");
        assert!(matches!(
            compile("{% if %}"),
            Err(TextError::TemplateSyntax(_))
        ));
    }

    /// Expectations from jinja2 with trim_blocks and lstrip_blocks.
    #[test]
    fn whitespace_loops_and_python_words() {
        assert_eq!(run("  {% if true %}\n  x\n  {% endif %}\ny\n"), "  x\ny");
        assert_eq!(
            run(
                "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
            ),
            "02"
        );
        assert_eq!(
            run("{{ true }} {{ 1 == 2 }} {{ none }} {{ gone }}"),
            "True False None "
        );
        assert_eq!(
            run(
                "{% set m = [1,2,3][1:] %}{{ m[0] }}{{ m[-1] }}{{ m | length }}{{ [1,2,3][::-1] | join }}"
            ),
            "232321"
        );
        assert_eq!(
            run("{% for k, v in tool.items() %}{{ k }};{% endfor %}{{ tool.get('z', 'd') }}"),
            "name;args;d"
        );
    }

    #[test]
    fn python_string_methods() {
        assert_eq!(
            run(
                "{{ text.removeprefix('a-') }} {{ text.removesuffix('-c') }} {{ text.removeprefix('c') }}"
            ),
            "b-c a-b a-b-c"
        );
        assert_eq!(
            run("{{ text.rsplit('-', 1) | join('|') }} {{ text.rsplit('-') | join('|') }}"),
            "a-b|c a|b|c"
        );
        assert_eq!(
            run(
                "{{ text.partition('-') | join('|') }} {{ text.rpartition('-')[0] }} {{ text.partition('+')[1] }}"
            ),
            "a|-|b-c a-b "
        );
        assert_eq!(
            run("{{ text.split('-')[-1] }}{{ ' x '.strip() }}{{ text.startswith('a') }}"),
            "cxTrue"
        );
    }
}

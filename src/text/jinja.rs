//! The Jinja environment of chat templates: the features that transformers provides, in minijinja.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::TextError;
use super::jinja_fuel::{charge, charge_for_json, charge_for_text};
use super::python;
use super::python_json::{JsonStyle, dumps};
use super::strftime::strftime;

/// The name of the context variable with the time for `strftime_now`.
pub(super) const NOW: &str = "__now";
const NAME: &str = "chat_template";

/// Compiles a template with transformers' settings: blocks are trimmed as there, and `raise_exception`, `strftime_now`, `tojson` and
/// Python's string and dictionary methods exist.
pub(super) fn compile(source: &str) -> Result<Environment<'static>, TextError> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    let syntax = syntax.build();
    env.set_syntax(syntax.map_err(|error| TextError::TemplateSyntax(error.to_string()))?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(python_method);
    env.set_formatter(|out, state, value| match value.kind() {
        // Python's spelling of these values.
        ValueKind::Bool if value.is_true() => out.write_str("True").map_err(Error::from),
        ValueKind::Bool => out.write_str("False").map_err(Error::from),
        ValueKind::None => out.write_str("None").map_err(Error::from),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            let written = python::written(state, value)?;
            out.write_str(written.as_str().unwrap_or_default())
                .map_err(Error::from)
        }
        _ => escape_formatter(out, state, value),
    });
    env.add_function(
        "raise_exception",
        |state: &State, message: Value| -> Result<Value, Error> {
            charge_for_text(state, &message)?;
            Err(Error::new(ErrorKind::InvalidOperation, message.to_string()))
        },
    );
    env.add_function("strftime_now", |state: &State, format: String| {
        let given = state.lookup(NOW).and_then(|now| now.as_i64());
        strftime(&format, given.unwrap_or_else(unix_seconds))
    });
    env.add_filter("tojson", tojson);
    python::install(&mut env);
    // jinja2 reads every line ending as a Unix one.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    env.add_template_owned(NAME, python::meter(&python::name_modulo(&source)))
        .map_err(|error| TextError::TemplateSyntax(error.to_string()))?;
    Ok(env)
}

/// Renders the single template of an environment made by [`compile`], for at most `fuel`: see [`jinja_fuel`].
///
/// # Errors
/// Errors that the template raises, errors in the template itself, and [`ErrorKind::OutOfFuel`].
pub(super) fn render(env: &Environment, context: Value, fuel: u64) -> Result<String, Error> {
    // A clone only increments a few reference counts.
    let mut env = env.clone();
    env.set_fuel(Some(fuel));
    let template = env.get_template(NAME)?;
    match may_nest(template.source()) {
        false => template.render(context),
        true => on_a_deep_stack(fuel, || template.render(context)),
    }
}

/// Returns whether a template can nest lists repeatedly: only a namespace survives an iteration of a loop, and without one a source of a
/// few kilobytes cannot nest deeply.
fn may_nest(source: &str) -> bool {
    const LONG: usize = 64 << 10;
    source.contains("namespace") || source.len() > LONG
}

/// Runs a rendering on a stack that is large enough to compare, write and drop deeply nested values, which minijinja does recursively. A
/// level also costs fuel, so fuel bounds the stack; only the used part becomes memory.
fn on_a_deep_stack(
    fuel: u64,
    render: impl FnOnce() -> Result<String, Error> + Send,
) -> Result<String, Error> {
    const BYTES_OF_FUEL: u64 = 256;
    let bytes = fuel.saturating_mul(BYTES_OF_FUEL).min(4 << 30);
    let failed = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("template".into())
            .stack_size(usize::try_from(bytes).unwrap_or(usize::MAX))
            .spawn_scoped(scope, render)
            .map_err(|error| failed(format!("cannot start a thread for rendering: {error}")))?
            .join()
            .unwrap_or_else(|_| Err(failed("the rendering panicked".to_owned())))
    })
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

/// Implements transformers' `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(state: &State, value: Value, kwargs: Kwargs) -> Result<String, Error> {
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
    charge_for_json(state, &value)?;
    let value = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(dumps(&value, &style))
}

/// Calls Python methods that minijinja-contrib lacks, then those it has.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        charge(state, text.len())?;
    }
    if let Some(made) = python::method(state, value, method, args)? {
        return Ok(made);
    }
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, method, args);
    };
    // Every method reads the text, and minijinja charges for its result; here results are charged that may be longer than text and
    // arguments.
    match method {
        "replace" => {
            let (old, new, count): (&str, &str, Option<i32>) = from_args(args)?;
            let most = count.and_then(|count| usize::try_from(count).ok());
            let found = text.matches(old).take(most.unwrap_or(usize::MAX)).count();
            charge(state, found.saturating_mul(new.len()))?;
            unknown_method_callback(state, value, method, args)
        }
        "format" => {
            charge(state, widths(text))?;
            args.iter()
                .try_for_each(|value| charge_for_text(state, value))?;
            unknown_method_callback(state, value, method, args)
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

/// Returns the sum of the numbers in a format string, which include widths and precisions.
pub(super) fn widths(format: &str) -> usize {
    let digits = format.split(|c: char| !c.is_ascii_digit());
    let numbers = digits.filter(|digits| !digits.is_empty());
    numbers.fold(0usize, |sum, digits| {
        sum.saturating_add(digits.parse().unwrap_or(usize::MAX))
    })
}

#[cfg(test)]
mod tests {
    use minijinja::context;
    use minijinja::value::Serde;
    use serde_json::json;

    use super::*;

    const FUEL: u64 = 300_000;

    fn run(source: &str) -> String {
        let env = compile(source).unwrap();
        let tool = json!({"name": "f", "args": {"x": [1, 2.5], "t": "é<'&"}});
        let context = context! { tool => Value::from(Serde(tool)), text => "a-b-c" };
        let context = context! { __now => 951_827_696i64, ..context };
        render(&env, context, FUEL).unwrap_or_else(|error| panic!("{source}: {error:#}"))
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
        let error = render(&env, context! {}, FUEL).unwrap_err().to_string();
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

    /// Each of these would take minutes or gigabytes, or crash the process.
    #[test]
    fn templates_without_measure_run_out_of_fuel() {
        let doubling = |operation: &str| {
            format!(
                "{{% set ns = namespace(s='ab') %}}{{% for i in range(60) %}}{{% set ns.s = {operation} %}}{{% endfor %}}{{{{ ns.s | length }}}}"
            )
        };
        let table = [
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
                .to_owned(),
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"
                .to_owned(),
            "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}".to_owned(),
            "{{ 'a' * 10000000000 }}".to_owned(),
            "{{ ('ab' * 1000000) * 1000000 }}".to_owned(),
            "{{ '{:>10000000000}'.format('x') }}".to_owned(),
            "{{ '{:.10000000000f}'.format(1.5) }}".to_owned(),
            "{{ '%10000000000d' | format(1) }}".to_owned(),
            "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}".to_owned(),
            "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}".to_owned(),
            "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}".to_owned(),
            "{{ ('b' * 1000000).join(range(100000)) }}".to_owned(),
            "{{ range(100000) | join('b' * 1000000) }}".to_owned(),
            "{{ ('a\n' * 1000000) | indent(1000000) }}".to_owned(),
            "{{ [1] | tojson(indent='x' * 100000000) }}".to_owned(),
            doubling("ns.s ~ ns.s"),
            doubling("ns.s + ns.s"),
            doubling("ns.s * 2"),
            doubling("ns.s.replace('a', 'aa').replace('b', 'bb')"),
            doubling("ns.s | replace('a', 'aa') | replace('b', 'bb')"),
            doubling("ns.s.join([ns.s, ns.s])"),
            doubling("[ns.s, ns.s] | join"),
            doubling("'{}{}'.format(ns.s, ns.s)"),
            doubling("'%s%s' | format(ns.s, ns.s)"),
            doubling("(ns.s ~ ns.s) | upper"),
            doubling("(ns.s ~ ns.s).title()"),
            doubling("(ns.s, ns.s) | string"),
            // Lists that hold the same list twice are small, but endless as text.
            doubling("[ns.s, ns.s]").replace("| length", ""),
            doubling("[ns.s, ns.s]").replace("| length", "| tojson"),
            doubling("[ns.s, ns.s]").replace("ns.s | length", "','.join(ns.s)"),
            doubling("[ns.s, ns.s]").replace("ns.s | length", "'{}'.format(ns.s)"),
            doubling("{'a': ns.s, 'b': ns.s}").replace("| length", "| tojson"),
        ];
        let mut table = Vec::from(table);
        // Nested lists that are equal but not identical.
        let nested = "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}";
        for end in [
            "{{ ns.l == ns.m }}",
            "{{ 1 if ns.l != ns.m }}",
            "{{ ns.l < ns.m }}",
            "{% if not ns.l >= ns.m %}{% endif %}",
            "{{ ns.m in [ns.l] }}",
            "{{ ns.m not in [ns.l] }}",
            "{{ ns.l is eq(ns.m) }}",
            "{{ ns.l is in([ns.m]) }}",
            "{{ [ns.l] | select('eq', ns.m) | list }}",
            "{{ [[ns.l]] | selectattr(0, 'equalto', ns.m) | list }}",
            "{{ [ns.m, ns.l] | sort }}",
            "{{ [ns.m, ns.l] | unique | list | length }}",
            "{{ [ns.m, ns.l] | max }}",
            "{{ [ns.m, ns.l] | min | length }}",
            "{{ [ns.m, ns.l] | join }}",
            "{{ ns.l | upper }}",
            "{{ ns.l | replace('a', 'b') }}",
            "{{ 'a' | replace(ns.l, 'b') }}",
            "{{ ns.l ~ ns.m }}",
            "{{ ns.l | string }}",
            "{{ ns.l }}",
            "{{ [ns.l].index(ns.m) }}",
            "{{ [ns.l].count(ns.m) }}",
            "{{ {'a': 1}[ns.l] }}",
            "{{ {ns.l: 1}[ns.m] }}",
            "{{ {ns.l: 1} | length }}",
            "{{ raise_exception(ns.l) }}",
            "{% for i in range(2) %}{{ loop.changed(ns.l) }}{% set ns.l = ns.m %}{% endfor %}",
            "{% macro f(a, b) %}{{ a == b }}{% endmacro %}{{ f(ns.l, b=ns.m) }}",
            "{% with a = ns.l, b = ns.m %}{{ a == b }}{% endwith %}",
        ] {
            table.push(format!("{nested}{end}"));
        }
        let grown = "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}";
        for end in ["", "{{ ns.l | length }}", "{{ ns.l == [1] }}", "{{ ns.l }}"] {
            table.push(format!("{grown}{end}"));
        }
        table.push("{% macro f(l, n) %}{{ f(l + l, n - 1) if n else l | length }}{% endmacro %}{{ f([1], 60) }}".to_owned());
        let mut rendered = Vec::new();
        for source in table {
            let env = compile(&source).unwrap();
            // Some are rejected by a limit of minijinja itself.
            let refused = [ErrorKind::OutOfFuel, ErrorKind::InvalidOperation];
            match render(&env, context! {}, FUEL) {
                Err(error) if refused.contains(&error.kind()) => {}
                Err(error) => rendered.push(format!("{source}: {error:#}")),
                Ok(text) => rendered.push(format!("{source}: {} bytes", text.len())),
            }
        }
        assert!(rendered.is_empty(), "{rendered:#?}");
    }

    #[test]
    fn lists_within_lists_do_not_overflow_the_stack() {
        let nested = "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% endfor %}";
        for end in ["", "{{ ns.l }}", "{{ ns.l | tojson }}", "{{ ns.l == [1] }}"] {
            let env = compile(&format!("{nested}{end}")).unwrap();
            // It may be rejected, but the process survives.
            let _ = render(&env, context! {}, FUEL);
        }
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

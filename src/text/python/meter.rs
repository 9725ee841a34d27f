//! The cost of comparisons and similar operations. minijinja charges for the items of a list that it compares, but not for values nested
//! in them: a list that repeatedly holds another one twice is small, but endless to walk. Therefore a template's source is rewritten:
//! every operand of a comparison, every argument of a filter or a function, and every index passes through a filter that charges fuel for
//! all values nested in it; operands of `+` pass through one that charges fuel for the items of a list.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::super::jinja_fuel::{charge, charge_for_text};
use super::tags::{self, Tokens, closes, is_operand, opens};

/// The filter for values that are walked completely.
const WHOLE: &str = "__whole";

/// The filter for values that are concatenated.
const ITEMS: &str = "__items";

/// The filter for values that are written into a text.
const TEXT: &str = "__text";

/// Bytes charged for each nested value.
const BYTES_OF_VALUE: usize = 4;

/// Filters that read no more than they charge fuel for.
const CHEAP: [&str; 13] = [
    "length", "count", "first", "last", "default", "d", "tojson", "string", "safe", "items", WHOLE,
    ITEMS, TEXT,
];

/// Filters that read nested values of a list. All others expect a text, and convert other values to one.
const WALKING: [&str; 18] = [
    "sort",
    "unique",
    "min",
    "max",
    "sum",
    "groupby",
    "map",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "dictsort",
    "list",
    "reverse",
    "batch",
    "slice",
    "zip",
    "chain",
];

/// Returns the filter that a value must pass before the filter of this name.
fn before(name: &str) -> Option<&'static str> {
    match () {
        () if CHEAP.contains(&name) => None,
        () if WALKING.contains(&name) => Some(WHOLE),
        () => Some(TEXT),
    }
}

/// Adds the filters, and tests that charge fuel for the values they compare.
pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter(WHOLE, |state: &State, value: Value| {
        whole(state, &value).map(|()| value)
    });
    env.add_filter(ITEMS, |state: &State, value: Value| {
        let items = match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => value.len().unwrap_or(0),
            _ => 0,
        };
        match items {
            0 => Ok(value),
            items => charge(state, items.saturating_mul(BYTES_OF_VALUE)).map(|()| value),
        }
    });
    env.add_filter(TEXT, |state: &State, value: Value| match is_whole(&value) {
        true => Ok(value),
        false => charge_for_text(state, &value).map(|()| value),
    });
    env.add_test("in", |state: &State, value: Value, list: Value| {
        both(state, &value, &list)?;
        minijinja::tests::is_in(state, &value, &list)
    });
    for name in ["eq", "equalto", "=="] {
        env.add_test(name, |state: &State, a: Value, b: Value| {
            both(state, &a, &b).map(|()| a == b)
        });
    }
    for name in ["ne", "!="] {
        env.add_test(name, |state: &State, a: Value, b: Value| {
            both(state, &a, &b).map(|()| a != b)
        });
    }
    for name in ["lt", "lessthan", "<"] {
        env.add_test(name, |state: &State, a: Value, b: Value| {
            both(state, &a, &b).map(|()| a < b)
        });
    }
    for name in ["le", "<="] {
        env.add_test(name, |state: &State, a: Value, b: Value| {
            both(state, &a, &b).map(|()| a <= b)
        });
    }
    for name in ["gt", "greaterthan", ">"] {
        env.add_test(name, |state: &State, a: Value, b: Value| {
            both(state, &a, &b).map(|()| a > b)
        });
    }
    for name in ["ge", ">="] {
        env.add_test(name, |state: &State, a: Value, b: Value| {
            both(state, &a, &b).map(|()| a >= b)
        });
    }
}

fn both(state: &State, a: &Value, b: &Value) -> Result<(), Error> {
    whole(state, a)?;
    whole(state, b)
}

/// Returns whether a value has no nested values.
fn is_whole(value: &Value) -> bool {
    !matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
    )
}

/// Pays for all values nested in a value, each as often as it occurs.
///
/// # Errors
/// If the fuel is not enough.
fn whole(state: &State, value: &Value) -> Result<(), Error> {
    if is_whole(value) {
        return Ok(());
    }
    let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
    let most = usize::try_from(left.saturating_mul(64)).unwrap_or(usize::MAX) / BYTES_OF_VALUE;
    let mut walked = 0usize;
    let mut open = vec![value.clone()];
    while let Some(value) = open.pop() {
        let is_map = value.kind() == ValueKind::Map;
        for item in value.try_iter()? {
            walked += 1;
            if walked > most {
                charge(state, usize::MAX)?;
                return Err(Error::from(ErrorKind::OutOfFuel));
            }
            let item = if is_map { value.get_item(&item)? } else { item };
            if !is_whole(&item) {
                open.push(item);
            }
        }
    }
    charge(state, walked.saturating_mul(BYTES_OF_VALUE))
}

/// Rewrites a template's source so that compared and filtered values, arguments and indices pass through the filters. The rest stays
/// unchanged, line for line.
pub(in super::super) fn meter(source: &str) -> String {
    tags::rewritten(source, &|tokens, statement| match statement {
        false => group(tokens, Around::Nothing),
        true => self::statement(tokens),
    })
}

/// The context of a group of tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Around {
    Nothing,
    /// The arguments of a call.
    Call,
    /// An index or a slice.
    Index,
    /// A dictionary: keys are looked up.
    Dictionary,
    /// The parameters of a macro.
    Parameters,
}

/// Rewrites a statement: its first word, and the rest.
fn statement(tokens: &mut Tokens<'_>) -> String {
    let Some(first) = tokens.next() else {
        return String::new();
    };
    let mut out = first.to_owned();
    match first.trim_start() {
        "if" | "elif" | "set" | "with" | "do" => out.push_str(&group(tokens, Around::Nothing)),
        "for" => {
            // The names, up to `in`, which is not a comparison here.
            for token in tokens.by_ref() {
                out.push_str(token);
                if token.trim_start() == "in" {
                    break;
                }
            }
            out.push_str(&group(tokens, Around::Nothing));
        }
        "macro" => {
            let name = tokens.next_if(|token| !opens(token.trim_start()));
            out.push_str(name.unwrap_or_default());
            out.push_str(&brackets(tokens, Around::Parameters));
            out.push_str(&group(tokens, Around::Nothing));
        }
        "call" => {
            if tokens.peek().is_some_and(|token| token.trim_start() == "(") {
                out.push_str(&brackets(tokens, Around::Parameters));
            }
            out.push_str(&group(tokens, Around::Nothing));
        }
        _ => out.extend(tokens.by_ref()),
    }
    out
}

/// Rewrites a bracket, its contents, and its closing bracket.
fn brackets(tokens: &mut Tokens<'_>, around: Around) -> String {
    let mut out = tokens.next().unwrap_or_default().to_owned();
    out.push_str(&group(tokens, around));
    out.push_str(tokens.next().unwrap_or_default());
    out
}

/// An expression between two words or operators that bind less tightly than a comparison.
#[derive(Default)]
struct Operand {
    /// The summands, and the operators before them.
    parts: Vec<(String, String)>,
    /// Whether it is on the right of a comparison.
    compared: bool,
    /// Whether it names a test.
    test: bool,
    tokens: usize,
    /// Whether it begins with a literal.
    literal: bool,
    /// Whether it is a list unpacked into arguments.
    splat: bool,
}

impl Operand {
    /// Returns the text of the last summand.
    fn last(&mut self) -> &mut String {
        if self.parts.is_empty() {
            self.parts.push((String::new(), String::new()));
        }
        let last = self.parts.len() - 1;
        &mut self.parts[last].1
    }

    fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Returns the whole expression, passed through a filter if it is `walked`.
    fn written(self, walked: bool) -> String {
        let plain = self.test || self.splat || self.literal && self.tokens == 1;
        let walked = walked && !plain && self.tokens > 0;
        let sum = self.parts.iter().any(|(sign, _)| sign.trim() == "+");
        let text = self.parts.iter().any(|(sign, _)| sign.trim() == "~");
        let filter = match (text, sum) {
            _ if self.test || self.splat => None,
            (true, _) => Some(TEXT),
            (_, true) => Some(ITEMS),
            _ => None,
        };
        let mut out = String::new();
        for (sign, part) in self.parts {
            out.push_str(&sign);
            match filter {
                Some(filter) => out.push_str(&through(filter, &part)),
                None => out.push_str(&part),
            }
        }
        match walked {
            true => through(WHOLE, &out),
            false => out,
        }
    }
}

/// Returns an expression passed through a filter; the space before it stays outside.
fn through(filter: &str, expression: &str) -> String {
    let bare = expression.trim_start();
    let is_text =
        bare.starts_with(['\'', '"']) && bare.ends_with(&bare[..1]) && !bare.contains('|');
    if bare.is_empty() || is_text && bare.matches(&bare[..1]).count() == 2 {
        return expression.to_owned();
    }
    let space = &expression[..expression.len() - bare.len()];
    format!("{space}({bare})|{filter}")
}

const COMPARISONS: [&str; 7] = ["==", "!=", "<", ">", "<=", ">=", "in"];

/// Rewrites tokens up to the bracket that closes the group, or the end.
fn group(tokens: &mut Tokens<'_>, around: Around) -> String {
    let mut out = String::new();
    let mut operand = Operand::default();
    // Whether a value has just ended, so that the next token is applied to it.
    let mut value = false;
    while let Some(token) = tokens.next_if(|token| !closes(token)) {
        let word = token.trim_start();
        let attribute = operand.last().trim_end().ends_with('.') || operand.last().ends_with('|');
        match word {
            _ if opens(word) => {
                let inner = match (word, value) {
                    ("(", true) => Around::Call,
                    ("[", true) => Around::Index,
                    ("{", _) => Around::Dictionary,
                    _ => Around::Nothing,
                };
                let inside = group(tokens, inner);
                let close = tokens.next().unwrap_or_default();
                operand.last().push_str(&format!("{token}{inside}{close}"));
                operand.tokens += 2;
                value = true;
            }
            "|" => {
                let next = tokens.peek().map_or("", |next| next.trim_start());
                if let Some(filter) = before(next) {
                    operand.last().push_str(&format!("|{filter}"));
                }
                operand.last().push_str(token);
                operand.tokens += 2;
                value = false;
            }
            "+" | "~" | "-" if value => {
                operand.parts.push((token.to_owned(), String::new()));
                operand.tokens += 2;
                value = false;
            }
            // `is not` names a test, too.
            "not" if operand.test && operand.is_empty() => operand.last().push_str(token),
            _ if !attribute && ends_operand(word) => {
                let not_in = word == "not"
                    && value
                    && tokens.peek().is_some_and(|next| next.trim_start() == "in");
                let compares = COMPARISONS.contains(&word) || not_in;
                let finished = std::mem::take(&mut operand);
                let walked = finished.compared || compares || is_walked(around, word);
                out.push_str(&finished.written(walked));
                out.push_str(token);
                if not_in {
                    out.push_str(tokens.next().unwrap_or_default());
                }
                operand.compared = compares;
                operand.test = word == "is";
                value = false;
            }
            _ => {
                if operand.is_empty() {
                    operand.splat = matches!(word, "*" | "**");
                    operand.literal = !word.starts_with(|c: char| c.is_alphabetic() || c == '_');
                }
                // The name of a test, and its argument.
                operand.last().push_str(token);
                operand.tokens += 1;
                value = is_operand(word) || attribute;
            }
        }
    }
    let walked = operand.compared || is_walked(around, "");
    out.push_str(&operand.written(walked));
    out
}

/// Returns whether the expression before a separator in a group is walked.
fn is_walked(around: Around, separator: &str) -> bool {
    match around {
        Around::Nothing | Around::Parameters => false,
        // The name of an argument comes before `=`.
        Around::Call => separator != "=",
        Around::Index => true,
        Around::Dictionary => separator == ":",
    }
}

/// Returns whether a word or operator is a comparison or binds less tightly than one.
fn ends_operand(word: &str) -> bool {
    const WORDS: [&str; 8] = ["and", "or", "not", "if", "else", "is", "recursive", "in"];
    WORDS.contains(&word) || COMPARISONS.contains(&word) || matches!(word, "," | "=" | ":")
}

#[cfg(test)]
mod tests {
    use super::meter;

    #[test]
    fn what_is_walked_is_paid_for_and_nothing_else_changes() {
        for (source, expected) in [
            ("{{ a }}", "{{ a }}"),
            ("{{- a.b -}} x {# a == b #}", "{{- a.b -}} x {# a == b #}"),
            ("{{ a == 'b' }}", "{{ (a)|__whole == 'b' }}"),
            (
                "{%- if not a.b != c[0] -%}",
                "{%- if not (a.b)|__whole != (c[0])|__whole -%}",
            ),
            (
                "{% if a in b and c not in d %}",
                "{% if (a)|__whole in (b)|__whole and (c)|__whole not in (d)|__whole %}",
            ),
            (
                "{% for a, b in c.items() if a < 1 %}",
                "{% for a, b in c.items() if (a)|__whole < 1 %}",
            ),
            (
                "{% if a is not none and b is string %}",
                "{% if a is not none and b is string %}",
            ),
            ("{{ a + b ~ 'c' }}", "{{ (a)|__text + (b)|__text ~ 'c' }}"),
            (
                "{% set x = a + [b] %}",
                "{% set x = (a)|__items + ([b])|__items %}",
            ),
            ("{{ a|trim }}", "{{ a|__text|trim }}"),
            ("{{ a | sort | first }}", "{{ a|__whole | sort | first }}"),
            (
                "{{ f(a, b=c, 'd')[e] }}",
                "{{ f((a)|__whole, b=(c)|__whole, 'd')[(e)|__whole] }}",
            ),
            (
                "{{ a[1:] ~ a[-1] }}",
                "{{ (a[1:])|__text ~ (a[(-1)|__whole])|__text }}",
            ),
            ("{{ {a: b} }}", "{{ {(a)|__whole: b} }}"),
            (
                "{% macro f(a, b=1) %}{% endmacro %}",
                "{% macro f(a, b=1) %}{% endmacro %}",
            ),
            ("{% set ns.a = ns.b %}", "{% set ns.a = ns.b %}"),
            (
                "{% raw %}{{ a == b }}{% endraw %}",
                "{% raw %}{{ a == b }}{% endraw %}",
            ),
        ] {
            assert_eq!(meter(source), expected, "{source}");
        }
    }
}

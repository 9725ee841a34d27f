//! Methods of Python's strings that minijinja lacks or implements differently.

use minijinja::value::{Kwargs, from_args};
use minijinja::{Error, State, Value};

use super::super::jinja_fuel::charge;
use super::{MOST_WIDTH, refused};

/// Calls a method of a string; returns `None` if minijinja's is right, or there is none.
pub(super) fn method(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let value = match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "split" | "rsplit" => split(text, args, method == "rsplit")?,
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            lines(text, keep)
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(refused("empty separator"));
            }
            let parts = match (
                method,
                text.split_once(separator),
                text.rsplit_once(separator),
            ) {
                ("partition", Some((before, after)), _) => [before, separator, after],
                ("rpartition", _, Some((before, after))) => [before, separator, after],
                ("partition", ..) => [text, "", ""],
                _ => ["", "", text],
            };
            let parts: Vec<Value> = parts.into_iter().map(Value::from).collect();
            Value::from(minijinja::value::Tuple::from(parts))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what, from, to): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let (skipped, slice) = sliced(text, from, to);
            let found = match method.starts_with('r') {
                true => slice.and_then(|slice| slice.rfind(what).map(|at| &slice[..at])),
                false => slice.and_then(|slice| slice.find(what).map(|at| &slice[..at])),
            };
            match found {
                Some(before) => Value::from(skipped + before.chars().count()),
                None if method.ends_with("index") => return Err(refused("substring not found")),
                None => Value::from(-1),
            }
        }
        "count" => {
            let (what, from, to): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let slice = sliced(text, from, to).1;
            Value::from(slice.map_or(0, |slice| slice.matches(what).count()))
        }
        "startswith" | "endswith" => {
            let (what, from, to): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let slice = sliced(text, from, to).1;
            let ends = |what: &str| {
                slice.is_some_and(|slice| match method {
                    "startswith" => slice.starts_with(what),
                    _ => slice.ends_with(what),
                })
            };
            let not_text = || refused(format!("{method} needs a string or a tuple of strings"));
            match what.as_str() {
                Some(what) => Value::from(ends(what)),
                None if what.is_tuple() => {
                    let mut found = false;
                    for what in what.try_iter()? {
                        found |= ends(what.as_str().ok_or_else(not_text)?);
                    }
                    Value::from(found)
                }
                None => return Err(not_text()),
            }
        }
        "casefold" => Value::from(text.replace('ß', "ss").to_lowercase()),
        "swapcase" => {
            let swap = |c: char| -> String {
                match c.is_uppercase() {
                    true => c.to_lowercase().collect(),
                    false => c.to_uppercase().collect(),
                }
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "title" => Value::from(title(text)),
        "center" | "ljust" | "rjust" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let mut fill = fill.unwrap_or(" ").chars();
            let (Some(fill), None) = (fill.next(), fill.next()) else {
                return Err(refused("the fill must be one character"));
            };
            if width > MOST_WIDTH {
                return Err(refused(format!("the width must be at most {MOST_WIDTH}")));
            }
            charge(state, width.saturating_mul(4))?;
            let side = match method {
                "ljust" => Side::Right,
                "rjust" => Side::Left,
                _ => Side::Both,
            };
            Value::from(padded(text, width, fill, side))
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            if width > MOST_WIDTH {
                return Err(refused(format!("the width must be at most {MOST_WIDTH}")));
            }
            let (sign, digits) = match text.starts_with(['-', '+']) {
                true => text.split_at(1),
                false => ("", text),
            };
            let width = width.saturating_sub(sign.len());
            Value::from(sign.to_owned() + &padded(digits, width, '0', Side::Left))
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            let size = size.unwrap_or(8).min(MOST_WIDTH);
            charge(state, text.matches('\t').count().saturating_mul(size))?;
            Value::from(expanded(text, size))
        }
        "istitle" => Value::from(is_title(text)),
        "isdigit" => Value::from(all(text, |c| {
            c.is_ascii_digit() || "⁰¹²³⁴⁵⁶⁷⁸⁹".contains(c)
        })),
        "isdecimal" => Value::from(all(text, |c| c.is_ascii_digit())),
        "isprintable" => Value::from(
            text.is_empty() || all(text, |c| c == ' ' || !c.is_control() && !c.is_whitespace()),
        ),
        "isidentifier" => {
            let start = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
            Value::from(start && all(text, |c| c.is_alphanumeric() || c == '_'))
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            let mut joined = String::new();
            for (at, value) in values.try_iter()?.enumerate() {
                let Some(part) = value.as_str() else {
                    return Err(refused(format!("join needs strings, not {}", value.kind())));
                };
                charge(state, text.len() + part.len())?;
                joined.push_str(if at > 0 { text } else { "" });
                joined.push_str(part);
            }
            Value::from(joined)
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// The side on which a text is padded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
    Both,
}

/// Returns a text padded to a width in characters.
pub(super) fn padded(text: &str, width: usize, fill: char, side: Side) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        // As in Python: the extra character goes left if the width is odd.
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let pad = |count: usize| std::iter::repeat_n(fill, count);
    pad(left)
        .chain(text.chars())
        .chain(pad(missing - left))
        .collect()
}

/// Returns `text[from:to]` and the number of characters before it; no text if `from` is beyond the end.
fn sliced(text: &str, from: Option<i64>, to: Option<i64>) -> (usize, Option<&str>) {
    let len = text.chars().count();
    let place = |at: i64| match at < 0 {
        true => len.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX)),
        false => usize::try_from(at).unwrap_or(usize::MAX),
    };
    let (from, to) = (from.map_or(0, place), to.map_or(len, place).min(len));
    if from > len || from > to {
        return (0, None);
    }
    let byte = |at: usize| {
        text.char_indices()
            .nth(at)
            .map_or(text.len(), |(byte, _)| byte)
    };
    (from, Some(&text[byte(from)..byte(to)]))
}

/// Implements `split` and `rsplit`, by a separator or by white space.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        Some(separator) => Some(separator),
        None => named.get::<Option<Value>>("sep")?,
    };
    let most = most.or(named.get("maxsplit")?).unwrap_or(-1);
    named.assert_all_used()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX - 1);
    let separator = separator.filter(|separator| !separator.is_none());
    let parts: Vec<&str> = match &separator {
        Some(separator) => {
            let separator = separator.as_str().filter(|text| !text.is_empty());
            let separator = separator.ok_or_else(|| refused("split needs a separator"))?;
            match from_right {
                true => {
                    let mut parts: Vec<&str> = text.rsplitn(most + 1, separator).collect();
                    parts.reverse();
                    parts
                }
                false => text.splitn(most + 1, separator).collect(),
            }
        }
        None if from_right => {
            let (mut parts, mut rest) = (Vec::new(), text.trim_end());
            while !rest.is_empty() && parts.len() < most {
                let at = rest.rfind(char::is_whitespace);
                let word = at.map_or(0, |at| {
                    at + rest[at..].chars().next().map_or(1, char::len_utf8)
                });
                parts.push(&rest[word..]);
                rest = rest[..word].trim_end();
            }
            parts.extend((!rest.is_empty()).then_some(rest));
            parts.reverse();
            parts
        }
        None => {
            let (mut parts, mut rest) = (Vec::new(), text.trim_start());
            while !rest.is_empty() && parts.len() < most {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                parts.push(&rest[..end]);
                rest = rest[end..].trim_start();
            }
            parts.extend((!rest.is_empty()).then_some(rest));
            parts
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Returns the lines by Python's definition of line endings.
fn lines(text: &str, keep: bool) -> Value {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((at, c)) = rest.char_indices().find(|&(_, c)| ends(c)) else {
            lines.push(Value::from(rest));
            break;
        };
        let mark = if rest[at..].starts_with("\r\n") {
            2
        } else {
            c.len_utf8()
        };
        lines.push(Value::from(&rest[..if keep { at + mark } else { at }]));
        rest = &rest[at + mark..];
    }
    Value::from(lines)
}

/// Returns the text with the first letter of every run of letters in upper case, and the others in lower case.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
    }
    out
}

fn is_title(text: &str) -> bool {
    let (mut inside, mut any) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() && inside || c.is_lowercase() && !inside {
            return false;
        }
        inside = c.is_uppercase() || c.is_lowercase();
        any |= inside;
    }
    any
}

fn expanded(text: &str, size: usize) -> String {
    let (mut out, mut column) = (String::with_capacity(text.len()), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            c => {
                column = if matches!(c, '\n' | '\r') {
                    0
                } else {
                    column + 1
                };
                out.push(c);
            }
        }
    }
    out
}

fn all(text: &str, of: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(of)
}

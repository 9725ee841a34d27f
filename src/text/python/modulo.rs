//! `%` between operands, found in a template's source and written as a call: minijinja's own is for numbers alone.

use super::operator::NAME;

/// Writes every `a % b` of a template as a call of the function that knows strings too. All else stays as it is, line for line.
pub(in super::super) fn name_modulo(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let close = match tag.as_bytes().get(1) {
            Some(b'#') => {
                let end = tag.find("#}").map_or(tag.len(), |end| end + 2);
                out.push_str(&tag[..end]);
                rest = &tag[end..];
                continue;
            }
            Some(b'%') => "%}",
            Some(b'{') => "}}",
            _ => {
                out.push('{');
                rest = &tag[1..];
                continue;
            }
        };
        let Some(tokens) = tokens(&tag[2..], close) else {
            out.push_str(tag);
            return out;
        };
        let len = tokens.iter().map(|token| token.len()).sum::<usize>();
        let inside = &tag[2..2 + len];
        out.push_str(&tag[..2]);
        match tokens.iter().any(|token| token.trim_start() == "%") {
            true => {
                let mut tokens = tokens.into_iter().peekable();
                // `{{-`: the sign is the tag's.
                if let Some(sign) = tokens.next_if(|token| matches!(*token, "-" | "+")) {
                    out.push_str(sign);
                }
                out.push_str(&group(&mut tokens, close == "%}"));
            }
            false => out.push_str(inside),
        }
        out.push_str(close);
        rest = &tag[2 + len + close.len()..];
        let raw = inside.trim_matches(['-', '+']).trim() == "raw";
        if raw && close == "%}" {
            let end = rest.find("endraw").unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}

/// The tokens of a tag up to its end, each with the white space before it; `None` where there is no end.
fn tokens<'a>(text: &'a str, close: &str) -> Option<Vec<&'a str>> {
    let mut tokens = Vec::new();
    let (mut from, mut at, mut depth) = (0, 0, 0usize);
    while let Some(c) = text[at..].chars().next() {
        let here = &text[at..];
        if depth == 0 && here.starts_with(close) {
            if from < at {
                tokens.push(&text[from..at]);
            }
            return Some(tokens);
        }
        let len = match c {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '\'' | '"' => {
                let mut escaped = false;
                let end = here.char_indices().skip(1).find(|&(_, other)| {
                    let ends = other == c && !escaped;
                    escaped = other == '\\' && !escaped;
                    ends
                });
                end?.0 + 1
            }
            c if c.is_alphanumeric() || c == '_' => here
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(here.len()),
            '(' | '[' | '{' => {
                depth += 1;
                1
            }
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                1
            }
            _ if ["**", "//", "==", "!=", "<=", ">="]
                .iter()
                .any(|two| here.starts_with(two)) =>
            {
                2
            }
            c => c.len_utf8(),
        };
        at += len;
        tokens.push(&text[from..at]);
        from = at;
    }
    None
}

type Tokens<'a> = std::iter::Peekable<std::vec::IntoIter<&'a str>>;

/// Rewrites tokens up to the bracket that closes the group, or the end.
fn group(tokens: &mut Tokens, statement: bool) -> String {
    let mut out = String::new();
    // Where the factors begin that a `%` divides.
    let mut term = 0;
    let mut operand = false;
    let mut first = statement;
    while let Some(token) = tokens.next_if(|token| !closes(token)) {
        let word = token.trim_start();
        match word {
            "%" if operand => {
                let right = factor(tokens);
                let left = out.split_off(term);
                let space = left.len() - left.trim_start().len();
                out.push_str(&format!(
                    "{}{NAME}({}, {right})",
                    &left[..space],
                    left.trim()
                ));
                continue;
            }
            "*" | "/" | "//" | "**" | "." | "|" => {
                out.push_str(token);
                operand = false;
            }
            _ if opens(word) => {
                out.push_str(token);
                out.push_str(&group(tokens, false));
                out.push_str(tokens.next().unwrap_or_default());
                operand = true;
            }
            _ if is_operand(word) && !first => {
                out.push_str(token);
                operand = true;
            }
            "-" | "+" if !operand && !first => out.push_str(token),
            _ => {
                out.push_str(token);
                term = out.len();
                operand = false;
                first = false;
            }
        }
    }
    out
}

/// One operand: a sign, a value, and what is applied to it.
fn factor(tokens: &mut Tokens) -> String {
    let mut out = String::new();
    while let Some(token) = tokens.next_if(|token| matches!(token.trim_start(), "-" | "+")) {
        out.push_str(token);
    }
    let mut value = true;
    loop {
        let next = tokens.peek().copied().map_or("", str::trim_start);
        let apply = match next {
            "." | "|" | "**" => !value,
            _ if opens(next) => true,
            _ => value && is_operand(next),
        };
        let Some(token) = tokens.next_if(|_| apply && !next.is_empty()) else {
            return out.trim_start().to_owned();
        };
        out.push_str(token);
        if opens(token.trim_start()) {
            out.push_str(&group(tokens, false));
            out.push_str(tokens.next().unwrap_or_default());
        }
        value = matches!(token.trim_start(), "." | "|" | "**");
    }
}

fn opens(word: &str) -> bool {
    matches!(word, "(" | "[" | "{")
}

fn closes(token: &str) -> bool {
    matches!(token.trim_start(), ")" | "]" | "}")
}

/// Whether a token is a value: a name that is no operator, a number or a string.
fn is_operand(word: &str) -> bool {
    const OPERATORS: [&str; 8] = ["and", "or", "not", "in", "is", "if", "else", "recursive"];
    let value = |c: char| c.is_alphanumeric() || c == '_' || c == '\'' || c == '"';
    word.starts_with(value) && !OPERATORS.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::name_modulo;

    #[test]
    fn only_operators_are_rewritten() {
        for (source, expected) in [
            ("{{ a % b }}", "{{ __modulo(a, b) }}"),
            ("{{- a%b -}}", "{{- __modulo(a, b) -}}"),
            (
                "{{ '%s' % (a, b) ~ 'c' }}",
                "{{ __modulo('%s', (a, b)) ~ 'c' }}",
            ),
            (
                "{{ 1 + 2 * i % 4 - 1 }}",
                "{{ 1 + __modulo(2 * i, 4) - 1 }}",
            ),
            ("{{ a % b % c }}", "{{ __modulo(__modulo(a, b), c) }}"),
            ("{{ '%s' % a|upper }}", "{{ __modulo('%s', a|upper) }}"),
            (
                "{{ f(a % -b.c[d % 2], 3) }}",
                "{{ f(__modulo(a, -b.c[__modulo(d, 2)]), 3) }}",
            ),
            (
                "{%- if '%d' % i == '7' -%}",
                "{%- if __modulo('%d', i) == '7' -%}",
            ),
            (
                "{% set x = '%s=%d' % (a, b) %}",
                "{% set x = __modulo('%s=%d', (a, b)) %}",
            ),
            (
                "{{ '%' if a else '%s' % b }}",
                "{{ '%' if a else __modulo('%s', b) }}",
            ),
            (
                "a % b {# a % b #} {% if x %}",
                "a % b {# a % b #} {% if x %}",
            ),
            (
                "{% raw %}{{ a % b }}{% endraw %}{{ a % b }}",
                "{% raw %}{{ a % b }}{% endraw %}{{ __modulo(a, b) }}",
            ),
            (
                "{{ {'a': b % 2}['a'] }}",
                "{{ {'a': __modulo(b, 2)}['a'] }}",
            ),
            (
                "{{ 'it\\'s %' % a }} {{ x",
                "{{ __modulo('it\\'s %', a) }} {{ x",
            ),
        ] {
            assert_eq!(name_modulo(source), expected, "{source}");
        }
    }
}

//! The `%` operator in a template's source, rewritten to a function call: minijinja's own operator takes only numbers.

use super::operator::NAME;
use super::tags::{Tokens, closes, is_operand, opens, rewritten};

/// Rewrites every `a % b` of a template to a call of the function that also handles strings. The rest stays unchanged, line for line.
pub(in super::super) fn name_modulo(source: &str) -> String {
    rewritten(source, &|tokens, statement| match tokens
        .clone()
        .any(|token| token.trim_start() == "%")
    {
        true => group(tokens, statement),
        false => tokens.collect(),
    })
}

/// Rewrites tokens up to the bracket that closes the group, or the end.
fn group(tokens: &mut Tokens, statement: bool) -> String {
    let mut out = String::new();
    // Where the left operand of a `%` begins.
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

/// Returns one operand: a sign, a value, and the operations applied to it.
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

//! The tags of a template's source and their tokens, for rewriting expressions before they are compiled.

/// The tokens of a tag, each with the white space before it.
pub(super) type Tokens<'a> = std::iter::Peekable<std::vec::IntoIter<&'a str>>;

/// Rewrites the contents of each tag of a template: `rewrite` takes the tokens without the signs that trim white space, and whether the
/// tag is a statement. The rest stays unchanged, line for line.
pub(super) fn rewritten(source: &str, rewrite: &dyn Fn(&mut Tokens<'_>, bool) -> String) -> String {
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
        let Some(mut tokens) = tokens(&tag[2..], close) else {
            out.push_str(tag);
            return out;
        };
        let len = tokens.iter().map(|token| token.len()).sum::<usize>();
        let inside = &tag[2..2 + len];
        out.push_str(&tag[..2]);
        // White space before the end is a token of its own.
        let space = tokens.pop_if(|token| token.trim_start().is_empty());
        let sign = tokens.pop_if(|token| matches!(token.trim_start(), "-" | "+"));
        let mut tokens = tokens.into_iter().peekable();
        // `{{-`: the sign belongs to the tag.
        let first = tokens.next_if(|token| matches!(*token, "-" | "+"));
        out.push_str(first.unwrap_or_default());
        out.push_str(&rewrite(&mut tokens, close == "%}"));
        out.extend(tokens);
        out.push_str(sign.unwrap_or_default());
        out.push_str(space.unwrap_or_default());
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

/// Returns the tokens of a tag up to its end, each with the white space before it; `None` if there is no end.
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

pub(super) fn opens(word: &str) -> bool {
    matches!(word, "(" | "[" | "{")
}

pub(super) fn closes(token: &str) -> bool {
    matches!(token.trim_start(), ")" | "]" | "}")
}

/// Returns whether a token is a value: a name that is not an operator, a number or a string.
pub(super) fn is_operand(word: &str) -> bool {
    const OPERATORS: [&str; 8] = ["and", "or", "not", "in", "is", "if", "else", "recursive"];
    let value = |c: char| c.is_alphanumeric() || c == '_' || c == '\'' || c == '"';
    word.starts_with(value) && !OPERATORS.contains(&word)
}

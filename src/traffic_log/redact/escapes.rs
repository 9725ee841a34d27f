//! Escapes: characters that a text spells by others.
//!
//! Escapes of JSON, JavaScript, C and Markdown (`\u0040`, `\x40`, `\100`, `\n`, `\@`), of URLs (`%40`) and of HTML (`&#64;`, `&commat;`),
//! also nested (`\\u0040`, `%2540`, `&amp;#64;`), and signs in brackets that hide an address from programs (`[at]`, `[.]`).

/// The maximum depth of nested escapes.
const NESTED: usize = 8;

/// The maximum length of an HTML entity's name in bytes.
const ENTITY: usize = 10;

/// Names of HTML entities, and their characters.
const ENTITIES: &[(&str, char)] = &[
    ("amp", '&'),
    ("apos", '\''),
    ("ast", '*'),
    ("bsol", '\\'),
    ("colon", ':'),
    ("comma", ','),
    ("commat", '@'),
    ("dash", '-'),
    ("dollar", '$'),
    ("emsp", ' '),
    ("ensp", ' '),
    ("equals", '='),
    ("excl", '!'),
    ("gt", '>'),
    ("hyphen", '-'),
    ("lbrack", '['),
    ("lowbar", '_'),
    ("lpar", '('),
    ("lsqb", '['),
    ("lt", '<'),
    ("mdash", '-'),
    ("middot", '.'),
    ("minus", '-'),
    ("nbsp", ' '),
    ("ndash", '-'),
    ("newline", '\n'),
    ("num", '#'),
    ("percnt", '%'),
    ("period", '.'),
    ("plus", '+'),
    ("quot", '"'),
    ("rbrack", ']'),
    ("rpar", ')'),
    ("rsqb", ']'),
    ("semi", ';'),
    ("shy", '\u{ad}'),
    ("sol", '/'),
    ("tab", '\t'),
    ("thinsp", ' '),
    ("verbar", '|'),
    ("zwj", '\u{200d}'),
    ("zwnj", '\u{200c}'),
];

/// Signs that are written in brackets, and their characters.
const BRACKETED: [(&str, char); 7] = [
    (".", '.'),
    ("dot", '.'),
    ("punkt", '.'),
    ("@", '@'),
    ("at", '@'),
    (":", ':'),
    ("-", '-'),
];

/// Returns whether an escape may start with this byte.
pub(super) fn may_begin(byte: u8) -> bool {
    matches!(byte, b'\\' | b'%' | b'&' | b'[' | b'(' | b'{' | b'<')
}

/// Returns the character of the escape at the start of `text`, and the escape's length; none if there is no escape.
pub(super) fn read(text: &[u8]) -> Option<(char, usize)> {
    let read = match text.first()? {
        b'\\' => backslash(text),
        b'%' => percent(text),
        b'&' => entity(text),
        b'[' => bracketed(text, b']'),
        b'(' => bracketed(text, b')'),
        b'{' => bracketed(text, b'}'),
        b'<' => bracketed(text, b'>'),
        _ => None,
    };
    read.filter(|(c, _)| !c.is_control() || matches!(c, '\n' | '\r' | '\t'))
}

/// Returns the value of the `least` to `most` hexadecimal digits at `at`, and their end.
fn hex(text: &[u8], at: usize, least: usize, most: usize) -> Option<(u32, usize)> {
    let digits = text.get(at..)?.iter().take(most);
    let length = digits.take_while(|byte| byte.is_ascii_hexdigit()).count();
    if length < least {
        return None;
    }
    let digits = std::str::from_utf8(&text[at..at + length]).ok()?;
    Some((u32::from_str_radix(digits, 16).ok()?, at + length))
}

/// Returns the length in bytes of the repetitions of `part` at `at`, at most [`NESTED`] of them.
fn repeated(text: &[u8], at: usize, part: &[u8]) -> usize {
    let mut end = at;
    while end < at + NESTED * part.len() && text.get(end..end + part.len()) == Some(part) {
        end += part.len();
    }
    end - at
}

/// Returns the character of one byte, or of the UTF-8 bytes that start with it; `next` reads the escaped byte at a place.
fn utf_8(
    first: u32,
    end: usize,
    next: impl Fn(usize) -> Option<(u32, usize)>,
) -> Option<(char, usize)> {
    let follow = match first {
        0xc2..=0xdf => 1,
        0xe0..=0xef => 2,
        0xf0..=0xf4 => 3,
        _ => 0,
    };
    let mut bytes = vec![u8::try_from(first).ok()?];
    let mut behind = end;
    for _ in 0..follow {
        let Some((byte, to)) = next(behind) else {
            break;
        };
        bytes.push(u8::try_from(byte).ok()?);
        behind = to;
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Some((text.chars().next()?, behind)),
        // Latin 1.
        Err(_) => Some((char::from_u32(first)?, end)),
    }
}

fn backslash(text: &[u8]) -> Option<(char, usize)> {
    let at = repeated(text, 0, b"\\");
    let after = |at: usize| at + repeated(text, at, b"\\");
    match text.get(at)? {
        b'u' if text.get(at + 1) == Some(&b'{') => {
            let (code, end) = hex(text, at + 2, 1, 6)?;
            let closed = text.get(end) == Some(&b'}');
            closed.then(|| Some((char::from_u32(code)?, end + 1)))?
        }
        b'u' => {
            let (code, end) = hex(text, at + 1, 4, 4)?;
            if !(0xd800..0xdc00).contains(&code) {
                return Some((char::from_u32(code)?, end));
            }
            // A surrogate pair.
            let low = after(end);
            let (second, end) =
                hex(text, low + 1, 4, 4).filter(|_| text.get(low) == Some(&b'u'))?;
            let low = second.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
            Some((
                char::from_u32(0x10000 + (code - 0xd800) * 0x400 + low)?,
                end,
            ))
        }
        b'U' => {
            let (code, end) = hex(text, at + 1, 8, 8)?;
            Some((char::from_u32(code)?, end))
        }
        b'x' => {
            let (byte, end) = hex(text, at + 1, 2, 2)?;
            utf_8(byte, end, |at| {
                let at = after(at);
                hex(text, at + 1, 2, 2).filter(|_| text.get(at) == Some(&b'x'))
            })
        }
        b'n' => Some(('\n', at + 1)),
        b'r' => Some(('\r', at + 1)),
        b't' => Some(('\t', at + 1)),
        b'0'..=b'3' => {
            let digits = std::str::from_utf8(text.get(at..at + 3)?).ok()?;
            let code = u32::from_str_radix(digits, 8).ok()?;
            Some((char::from_u32(code)?, at + 3))
        }
        mark if mark.is_ascii_punctuation() => Some((char::from(*mark), at + 1)),
        _ => None,
    }
}

fn percent(text: &[u8]) -> Option<(char, usize)> {
    let byte = |at: usize| {
        if text.get(at) != Some(&b'%') {
            return None;
        }
        let at = at + 1;
        // `%25` is the percent sign itself, as in a nested escape.
        let nested = repeated(text, at, b"25");
        hex(text, at + nested, 2, 2).or_else(|| hex(text, at, 2, 2))
    };
    if text.get(1) == Some(&b'u') {
        let (code, end) = hex(text, 2, 4, 4)?;
        return Some((char::from_u32(code)?, end));
    }
    let (first, end) = byte(0)?;
    utf_8(first, end, byte)
}

fn entity(text: &[u8]) -> Option<(char, usize)> {
    let mut at = 1;
    at += repeated(text, at, b"amp;");
    let closed = |end: usize| end + usize::from(text.get(end) == Some(&b';'));
    if text.get(at) == Some(&b'#') {
        if matches!(text.get(at + 1), Some(b'x' | b'X')) {
            let (code, end) = hex(text, at + 2, 1, 6)?;
            return Some((char::from_u32(code)?, closed(end)));
        }
        let digits = text.get(at + 1..)?.iter().take(7);
        let length = digits.take_while(|byte| byte.is_ascii_digit()).count();
        let code = std::str::from_utf8(&text[at + 1..at + 1 + length]).ok()?;
        let code: u32 = code.parse().ok()?;
        return Some((char::from_u32(code)?, closed(at + 1 + length)));
    }
    let name = text.get(at..)?.iter().take(ENTITY);
    let length = name.take_while(|byte| byte.is_ascii_alphabetic()).count();
    let name = &text[at..at + length];
    let known = ENTITIES
        .iter()
        .find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name))
        .filter(|_| text.get(at + length) == Some(&b';'));
    match known {
        Some((_, c)) => Some((*c, at + length + 1)),
        // `&amp;` alone.
        None if at > 1 => Some(('&', at)),
        None => None,
    }
}

fn bracketed(text: &[u8], close: u8) -> Option<(char, usize)> {
    BRACKETED.into_iter().find_map(|(sign, c)| {
        let end = 1 + sign.len();
        let inside = text.get(1..end)?;
        let is_one = inside.eq_ignore_ascii_case(sign.as_bytes()) && text.get(end) == Some(&close);
        is_one.then_some((c, end + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_read_as_what_they_stand_for() {
        for (text, expected) in [
            (r"\u0040x", Some(('@', 6))),
            (r"\u{40}x", Some(('@', 6))),
            (r"\U00000040", Some(('@', 10))),
            (r"\\u0040", Some(('@', 7))),
            (r"\\\\u0040", Some(('@', 9))),
            (r"\ud835\udfd2", Some(('𝟒', 12))),
            (r"\x40", Some(('@', 4))),
            (r"\xc3\xa9!", Some(('é', 8))),
            (r"\xe9!", Some(('é', 4))),
            (r"\040", Some((' ', 4))),
            (r"\n", Some(('\n', 2))),
            (r"\@", Some(('@', 2))),
            (r"\/", Some(('/', 2))),
            ("%40", Some(('@', 3))),
            ("%2540", Some(('@', 5))),
            ("%252540", Some(('@', 7))),
            ("%25", Some(('%', 3))),
            ("%C3%A9", Some(('é', 6))),
            ("%u0040", Some(('@', 6))),
            ("&#64;", Some(('@', 5))),
            ("&#x40;", Some(('@', 6))),
            ("&#64 ", Some(('@', 4))),
            ("&commat;", Some(('@', 8))),
            ("&nbsp;", Some((' ', 6))),
            ("&amp;#64;", Some(('@', 9))),
            ("&amp;", Some(('&', 5))),
            ("[at]", Some(('@', 4))),
            ("[.]", Some(('.', 3))),
            ("(dot)", Some(('.', 5))),
            // These are not escapes.
            (r"\u00", None),
            (r"\u0000", None),
            (r"\ud835", None),
            (r"\d", None),
            (r"\", None),
            ("%", None),
            ("%zz", None),
            ("%00", None),
            ("&copy=", None),
            ("&nbsp", None),
            ("&#;", None),
            ("&#9999999;", None),
            ("[a]", None),
            ("[at", None),
            ("", None),
        ] {
            assert_eq!(read(text.as_bytes()), expected, "{text}");
        }
    }
}

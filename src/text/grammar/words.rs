//! Translation of llguidance's messages for authors of grammars, who do not know llguidance.

/// Beginnings of messages, each with its replacement and with a text to append after the rest.
const REPLACEMENTS: &[(&str, &str, &str)] = &[
    (
        "Unknown format: ",
        "the schema's format \"",
        "\" is not known",
    ),
    (
        "Unimplemented keys: ",
        "the schema's keywords ",
        " are not supported",
    ),
    (
        "Invalid type: ",
        "the schema's type \"",
        "\" is not a JSON type",
    ),
    ("Expected f64 for ", "the schema's ", " must be a number"),
    (
        "Expected u64 for ",
        "the schema's ",
        " must be a whole number",
    ),
    ("no start rule found", "there is no rule `start`", ""),
];

/// Beginnings of advice about a setting that callers do not have; the advice ends the message.
const ADVICE: [&str; 2] = [". Enable 'coerce_one_of'", " Enable 'coerce_one_of'"];

/// A condition that is meaningless to callers.
const CONDITION: &str = " without 'referencing' feature";

/// Returns the error of a grammar, as a continuation of "the grammar". `own` grammars were written by the caller, so lines and columns in
/// them are meaningful; others are generated here.
pub(super) fn plain(message: &str, own: bool) -> String {
    let (place, message) = split_place(message.trim());
    // The parser of regular expressions shows the expression before its error.
    let error = message
        .lines()
        .find_map(|line| line.trim().strip_prefix("error: "));
    let text = match error {
        Some(error) => format!("a regular expression does not parse: {}", error.trim()),
        None => translated(&without_excerpts(message)),
    };
    match place.filter(|_| own) {
        Some(place) => format!("does not compile, at {place}: {text}"),
        None => format!("does not compile: {text}"),
    }
}

/// Splits the place, such as `1(8)`, from a message that begins with it.
fn split_place(message: &str) -> (Option<&str>, &str) {
    let split = message
        .strip_prefix("at ")
        .and_then(|rest| rest.split_once("): "));
    match split {
        Some((place, rest)) if place.starts_with(|c: char| c.is_ascii_digit()) => {
            let place = &message["at ".len().."at ".len() + place.len() + 1];
            (Some(place), rest)
        }
        _ => (None, message),
    }
}

/// Returns one line, without excerpts of the grammar (`1 | start: …`) and the marks under them.
fn without_excerpts(message: &str) -> String {
    let excerpt = |line: &str| {
        let line = line.trim();
        let numbered = line.split_once(" |").is_some_and(|(number, _)| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        line.is_empty() || line == "^" || numbered
    };
    let lines = message.lines().filter(|line| !excerpt(line)).map(str::trim);
    let mut line = lines.collect::<Vec<_>>().join(" ").replace(CONDITION, "");
    for advice in ADVICE {
        if let Some(at) = line.find(advice) {
            line.truncate(at);
        }
    }
    line
}

fn translated(message: &str) -> String {
    let known = REPLACEMENTS.iter().find_map(|(beginning, before, after)| {
        let rest = message.strip_prefix(beginning)?;
        Some(format!("{before}{}{after}", rest.trim_end_matches('.')))
    });
    known.unwrap_or_else(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_about_what_the_caller_wrote() {
        let regex = "at 1(8): invalid regex \"[\" (in regex): regex parse error:\n    [\n    ^\nerror: unclosed character class\n1 | start: /[/\n  \
                     ^";
        for (message, own, expected) in [
            (
                regex,
                false,
                "does not compile: a regular expression does not parse: unclosed character class",
            ),
            (
                regex,
                true,
                "does not compile, at 1(8): a regular expression does not parse: unclosed character class",
            ),
            (
                "at 2(3): unknown name: \"x\"\n2 | a: x\n      ^",
                true,
                "does not compile, at 2(3): unknown name: \"x\"",
            ),
            (
                "Unknown format: path",
                false,
                "does not compile: the schema's format \"path\" is not known",
            ),
            (
                "Unimplemented keys: [\"not\"]",
                false,
                "does not compile: the schema's keywords [\"not\"] are not supported",
            ),
            (
                "Invalid type: strin",
                false,
                "does not compile: the schema's type \"strin\" is not a JSON type",
            ),
            (
                "Expected f64 for 'minimum'",
                false,
                "does not compile: the schema's 'minimum' must be a number",
            ),
            (
                "no start rule found",
                true,
                "does not compile: there is no rule `start`",
            ),
            (
                "oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate",
                false,
                "does not compile: oneOf constraints are not supported",
            ),
            (
                "schema too large",
                false,
                "does not compile: schema too large",
            ),
        ] {
            assert_eq!(plain(message, own), expected);
        }
    }
}

//! The style of an answer: bare, with its steps, polite, in the exact format, and their combinations.

use serde::{Deserialize, Serialize};

use super::content::Content;
use super::dice::Dice;
use super::solve;
use super::working::working;

/// Openings of polite responses.
pub const GREETINGS: [&str; 3] = ["Sure!", "Of course!", "Gladly!"];
/// Closings of polite responses.
pub const FAREWELLS: [&str; 3] = ["Glad to help!", "Hope that helps!", "Thank you!"];
/// The connection between the steps and the answer.
pub const THEREFORE: &str = ", so ";

/// The style of a response. With all traits false it is the bare answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Style {
    pub steps: bool,
    pub polite: bool,
    /// The answer is in square brackets.
    pub format: bool,
}

impl Style {
    /// Draws each trait independently.
    pub fn draw(steps: f64, polite: f64, format: f64, dice: &mut Dice) -> Self {
        Self {
            steps: dice.chance(steps),
            polite: dice.chance(polite),
            format: dice.chance(format),
        }
    }

    /// Draws from the mixture for conversations without a system message.
    pub fn default_mixture(dice: &mut Dice) -> Self {
        Self::draw(0.3, 0.2, 0.2, dice)
    }
}

/// Renders an answer in a style.
pub fn render(content: &Content, answer: &[String], style: Style, dice: &mut Dice) -> String {
    let bare = solve::join(content.kind(), answer);
    let bare = if style.format {
        format!("[{bare}]")
    } else {
        bare
    };
    let body = if style.steps {
        format!("{}{THEREFORE}{bare}", working(content, answer))
    } else {
        bare
    };
    if style.polite {
        courteous(&body, dice)
    } else {
        body
    }
}

/// Adds a greeting, a farewell or both to a body.
pub fn courteous(body: &str, dice: &mut Dice) -> String {
    let (greet, part) =
        [(true, false), (false, true), (true, true)][dice.weighted(&[4.0, 2.0, 3.0])];
    let mut text = String::new();
    if greet {
        text.push_str(GREETINGS[dice.below(GREETINGS.len())]);
        text.push(' ');
    }
    text.push_str(body);
    if part {
        text.push_str(". ");
        text.push_str(FAREWELLS[dice.below(FAREWELLS.len())]);
    }
    text
}

/// A parsed response. Parsing never fails: a text without style is an answer as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<'a> {
    pub style: Style,
    pub answer: &'a str,
}

/// Parses the style and the bare answer of any text.
pub fn parse(response: &str) -> Parsed<'_> {
    let mut rest = response.trim();
    let mut style = Style::default();
    while let Some(tail) = GREETINGS.iter().find_map(|g| rest.strip_prefix(g)) {
        style.polite = true;
        rest = tail.trim_start();
    }
    while let Some(head) = FAREWELLS.iter().find_map(|f| rest.strip_suffix(f)) {
        style.polite = true;
        rest = head.trim_end();
    }
    if let Some((steps, answer)) = rest.rsplit_once(THEREFORE) {
        style.steps = steps.chars().any(char::is_alphanumeric);
        rest = answer;
    }
    rest = rest.strip_suffix('.').unwrap_or(rest).trim();
    if let Some(inside) = rest.strip_prefix('[').and_then(|r| r.strip_suffix(']')) {
        style.format = true;
        rest = inside;
    }
    Parsed {
        style,
        answer: rest,
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::Kind;
    use super::*;

    #[test]
    fn what_is_rendered_parses_back() {
        let mut dice = Dice::new(4, 0);
        for kind in Kind::ALL {
            for n in 0..200 {
                let content = Content::sample(kind, 1 + n % 4, &mut dice);
                let answer = solve::answer(&content, &mut dice);
                let style = Style::draw(0.5, 0.5, 0.5, &mut dice);
                let text = render(&content, &answer, style, &mut dice);
                let parsed = parse(&text);
                assert_eq!(parsed.style, style, "{text}");
                assert_eq!(parsed.answer, solve::join(kind, &answer), "{text}");
            }
        }
    }

    #[test]
    fn garbage_parses_to_something() {
        for text in [
            "",
            "[",
            "]",
            "[]",
            ", so ",
            "Sure!",
            "Sure! Sure!",
            ".",
            ", so [",
            "é\u{0}",
        ] {
            parse(text);
        }
        assert!(!parse(", so 42").style.steps, "steps must show something");
        assert_eq!(parse("Sure! [42]. Thank you!").answer, "42");
        assert_eq!(parse("Thank you!").answer, "");
    }
}

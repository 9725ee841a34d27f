//! Renderings of one conversation with its contents exchanged, and the literals that must stay readable in them.

use std::collections::HashSet;
use std::ops::Range;

use minijinja::{Environment, ErrorKind, Value};

use super::Inner;
use crate::chat_values::ChatValues;
use crate::placeholder::{Origin, Placeholders, occurrences};
use crate::rendered::merge;
use crate::{TextError, jinja, jinja_fuel};

/// Limit on the bytes rendered in step 2, so that no content can make a rendering slow.
const MAX_TRIAL_BYTES: usize = 32 << 20;

/// Literals left readable: in contents from outside, and in the model's turns only.
pub struct Readable {
    pub outside: Vec<String>,
    pub own: Vec<String>,
}

/// One conversation that is rendered several times, with its contents exchanged.
pub struct Run<'a> {
    pub env: &'a Environment<'static>,
    pub template: &'a Inner,
    pub chat: &'a ChatValues<'a>,
    /// The origin of each text.
    pub origins: Vec<Origin>,
    pub base: Vec<(String, Value)>,
}

impl Run<'_> {
    pub fn render<S: Into<Value>>(
        &self,
        contents: impl Iterator<Item = S>,
    ) -> Result<String, TextError> {
        let contents: Vec<Value> = contents.map(Into::into).collect();
        let bytes = contents.iter().filter_map(Value::as_str).map(str::len);
        let (messages, bytes) = self.chat.size(bytes.sum());
        let fuel = jinja_fuel::of_rendering(messages, bytes);
        let mut context = self.base.clone();
        context.extend(self.chat.variables(&contents));
        let rendered = jinja::render(self.env, Value::from_pairs(context), fuel);
        rendered.map_err(|error| {
            TextError::Render(match error.detail() {
                _ if error.kind() == ErrorKind::OutOfFuel => {
                    "the template exceeds the limit on work or memory".to_owned()
                }
                // A template may raise a message of several lines.
                Some(detail) => in_one_line(detail),
                None => in_one_line(&error.to_string()),
            })
        })
    }

    /// Leaves as few of the template's literals readable in contents as still give the plain text. Returns the rendering with placeholders
    /// and those literals, or `None` if literals alone are not enough.
    pub fn fewest_readable(
        &self,
        contents: &[&str],
        placeholders: &Placeholders,
        plain: &str,
    ) -> Option<(String, Readable)> {
        let literals = self.template.literals.iter();
        let present: Vec<&String> = literals
            .filter(|literal| {
                contents
                    .iter()
                    .any(|content| content.contains(literal.as_str()))
            })
            .collect();
        // `readable[m]` holds the literals left readable in text m.
        let mut readable: Vec<Vec<&str>> = contents
            .iter()
            .map(|content| {
                let literals = present.iter().map(|literal| literal.as_str());
                literals
                    .filter(|literal| content.contains(literal))
                    .collect()
            })
            .collect();
        let mut bytes_left = MAX_TRIAL_BYTES;
        // `Err` means that the byte limit was reached.
        let mut attempt = |readable: &[Vec<&str>]| -> Result<Option<String>, ()> {
            let cost = 4 * plain.len() + 1024;
            bytes_left = bytes_left.checked_sub(cost).ok_or(())?;
            let contents = contents.iter().zip(readable).zip(&self.origins);
            let contents = contents.map(|((content, kept), origin)| {
                placeholders.replace(content, *origin, kept.iter().copied())
            });
            let marked = self.render(contents).ok();
            Ok(marked.filter(|marked| placeholders.restore(marked) == plain))
        };
        let mut best = attempt(&readable).ok()??;
        // Whole literals first: most are words like "user" that the template compares with the role, not the content.
        for literal in &present {
            let mut fewer = readable.clone();
            fewer
                .iter_mut()
                .for_each(|kept| kept.retain(|kept| kept != literal));
            if let Some(marked) = attempt(&fewer).ok()? {
                (best, readable) = (marked, fewer);
            }
        }
        'messages: for message in 0..readable.len() {
            for literal in readable[message].clone() {
                let mut fewer = readable.clone();
                fewer[message].retain(|kept| *kept != literal);
                match attempt(&fewer) {
                    Ok(Some(marked)) => (best, readable) = (marked, fewer),
                    Ok(None) => {}
                    Err(()) => break 'messages, // the literals that are still readable count as untrusted anyway
                }
            }
        }
        let needed = |by: Origin| -> HashSet<&str> {
            let messages = readable.iter().zip(&self.origins);
            let theirs = messages.filter(|(_, origin)| **origin == by);
            theirs.flat_map(|(kept, _)| kept.iter().copied()).collect()
        };
        let (outside, own) = (needed(Origin::Outside), needed(Origin::Own));
        let own = own.difference(&outside);
        let own = own.map(|literal| (*literal).to_owned()).collect();
        let outside = outside.into_iter().map(str::to_owned).collect();
        Some((best, Readable { outside, own }))
    }
}

/// Joins a text of several lines into one.
fn in_one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// Returns the bytes of `a` that are neither in the common prefix nor in the common suffix of `a` and `b`.
pub fn difference(a: &str, b: &str) -> Range<usize> {
    let same = |(x, y): &(char, char)| x == y;
    let start: usize = a
        .chars()
        .zip(b.chars())
        .take_while(same)
        .map(|(c, _)| c.len_utf8())
        .sum();
    let (rest_a, rest_b) = (&a[start..], &b[start..]);
    let ends = rest_a.chars().rev().zip(rest_b.chars().rev());
    let end: usize = ends.take_while(same).map(|(c, _)| c.len_utf8()).sum();
    start..a.len() - end
}

/// Returns where literals left readable occur in, or reach into, the doubtful bytes of a rendering; as ranges of the restored text.
pub fn readable_in(
    marked: &str,
    doubtful: Range<usize>,
    readable: &[String],
    placeholders: &Placeholders,
) -> Vec<Range<usize>> {
    let found = readable
        .iter()
        .flat_map(|literal| occurrences(marked, literal))
        .filter(|found| found.start < doubtful.end && doubtful.start < found.end)
        .collect();
    let (mut marked_at, mut at) = (0, 0);
    let mut place = |to: usize| {
        at += placeholders.restore(&marked[marked_at..to]).len();
        marked_at = to;
        at
    };
    let places = merge(found).into_iter();
    places
        .map(|found| place(found.start)..place(found.end))
        .collect()
}

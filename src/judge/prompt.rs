//! The judge's prompt: a question about two answers, ending just before the label token.
//!
//! The template's `user` text is filled and wrapped by the chat template as a user turn; the chat template opens the assistant's turn,
//! and the lead-in is pre-filled there, so that the next token is the label (SELF-JUDGE's template, papers.md 1.3). Slots are filled in
//! one pass over the parsed template: a `{response_b}` inside a candidate stays as it is. The text in slots is untrusted: it cannot
//! become a special token, and where it repeats a part of the template it is broken up ([`super::frame`]), so that it cannot open or
//! close a part of the frame.

use std::ops::Range;

use super::JudgeError;
use super::template::{JudgeTemplate, Piece, Slot};
use text::{ChatTemplate, Message, RenderOptions, Rendered, Role};

/// The date (Unix seconds) for chat templates that write one: a prompt must not depend on when it is rendered.
pub const PROMPT_DATE: i64 = 1_735_689_600; // 2025-01-01

/// A rendered judge prompt. The ranges are bytes of `rendered.text`.
#[derive(Debug, Clone)]
pub struct JudgePrompt {
    pub rendered: Rendered,
    pub context: Range<usize>,
    /// Bytes of the candidate shown first.
    pub a: Range<usize>,
    /// Bytes of the candidate shown second.
    pub b: Range<usize>,
}

impl JudgeTemplate {
    /// Renders the prompt that shows `a` before `b`, up to and including the lead-in.
    ///
    /// `principles` are texts, not names; empty means the default principle.
    ///
    /// # Errors
    /// If the chat template fails or does not write the user's text unchanged.
    pub fn render(
        &self,
        chat: &ChatTemplate,
        context: &[Message],
        a: &str,
        b: &str,
        principles: &[String],
    ) -> Result<JudgePrompt, JudgeError> {
        self.render_shown(chat, &self.context(context), a, b, principles)
    }

    /// Renders as [`Self::render`], from a conversation that is already written out: see [`Self::context`].
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_shown(
        &self,
        chat: &ChatTemplate,
        context: &str,
        a: &str,
        b: &str,
        principles: &[String],
    ) -> Result<JudgePrompt, JudgeError> {
        let principles = match principles {
            [] => self.file.default_principle.clone(),
            [one] => self.frame.escape(one).into_owned(),
            several => several
                .iter()
                .map(|text| format!("{}{}", self.file.principle_bullet, self.frame.escape(text)))
                .collect::<Vec<_>>()
                .join(&self.file.principle_separator),
        };
        let (a, b) = (self.frame.escape(a), self.frame.escape(b));
        let fills = [principles.as_str(), context, &*a, &*b];
        let (user, ranges) = fill(&self.user, &fills);
        let mut messages = Vec::with_capacity(2);
        if let Some(system) = &self.system {
            messages.push(Message::new(Role::System, fill(system, &fills).0));
        }
        messages.push(Message::new(Role::User, user));
        let options = RenderOptions {
            now: Some(PROMPT_DATE),
            ..RenderOptions::for_generation()
        };
        let mut rendered = chat.render(&messages, &options)?;
        let user = &messages[messages.len() - 1].content;
        let (at, trimmed) = locate(&rendered, user).ok_or(JudgeError::TextRewritten)?;
        // A chat template may trim white space; bytes removed from the front shift every range.
        let limit = user.trim().len();
        let place = |slot: Slot| {
            let range = &ranges[slot as usize];
            let shift = |byte: usize| {
                if trimmed == 0 {
                    byte
                } else {
                    byte.saturating_sub(trimmed).min(limit)
                }
            };
            at + shift(range.start)..at + shift(range.end)
        };
        let (context, a, b) = (
            place(Slot::Context),
            place(Slot::ResponseA),
            place(Slot::ResponseB),
        );
        rendered.push_trusted(&self.file.lead_in);
        Ok(JudgePrompt {
            rendered,
            context,
            a,
            b,
        })
    }
}

/// Returns the pieces with their slots filled, and the byte range of each slot's text (indexed by the slot).
fn fill(pieces: &[Piece], fills: &[&str; 4]) -> (String, [Range<usize>; 4]) {
    let mut text = String::new();
    let mut ranges: [Range<usize>; 4] = Default::default();
    for piece in pieces {
        match piece {
            Piece::Text(literal) => text.push_str(literal),
            Piece::Slot(slot) => {
                let start = text.len();
                text.push_str(fills[*slot as usize]);
                ranges[*slot as usize] = start..text.len();
            }
        }
    }
    (text, ranges)
}

/// Returns the byte at which `user` starts in the rendering, and the number of bytes trimmed from its front.
fn locate(rendered: &Rendered, user: &str) -> Option<(usize, usize)> {
    let trimmed = user.len() - user.trim_start().len();
    for (wanted, trimmed) in [(user, 0), (user.trim(), trimmed)] {
        let mut ranges = rendered.untrusted.iter().rev();
        if let Some(range) =
            ranges.find(|range| rendered.text.get((*range).clone()) == Some(wanted))
        {
            return Some((range.start, trimmed));
        }
        if let Some(at) = rendered.text.rfind(wanted) {
            return Some((at, trimmed));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use text::SpecialTokens;

    fn user(text: &str) -> Message {
        Message::new(Role::User, text)
    }

    #[test]
    fn the_frame_surrounds_the_candidates_and_ends_with_the_lead_in() {
        let template = fixtures::template();
        let prompt = template
            .render(&fixtures::chat(), &[user("hi?")], "one", "two", &[])
            .unwrap();
        assert_eq!(
            prompt.rendered.text,
            "<|user|>By: best.\nQ: hi?\n1: one\n2: two\nWhich?</s><|assistant|>I say"
        );
        let text = &prompt.rendered.text;
        assert_eq!(&text[prompt.context.clone()], "hi?");
        assert_eq!(&text[prompt.a.clone()], "one");
        assert_eq!(&text[prompt.b.clone()], "two");
        let outside: String = prompt
            .rendered
            .untrusted
            .iter()
            .map(|range| &text[range.clone()])
            .collect();
        assert!(outside.contains("one") && outside.contains("two"));
        assert!(!outside.contains("<|user|>") && !outside.contains("I say"));
    }

    #[test]
    fn slot_names_in_candidates_are_not_expanded() {
        let template = fixtures::template();
        let (a, b) = ("{response_b}{context}", "{response_a} {principles}");
        let prompt = template
            .render(
                &fixtures::chat(),
                &[user("{response_a}")],
                a,
                b,
                &["{context}".into()],
            )
            .unwrap();
        assert_eq!(
            prompt.rendered.text,
            "<|user|>By: {context}\nQ: {response_a}\n1: {response_b}{context}\n2: {response_a} {principles}\n\
             Which?</s><|assistant|>I say"
        );
        assert_eq!(&prompt.rendered.text[prompt.a], a);
        assert_eq!(&prompt.rendered.text[prompt.b], b);
    }

    #[test]
    fn equal_candidates_have_their_own_places() {
        let prompt = fixtures::template()
            .render(&fixtures::chat(), &[user("same")], "same", "same", &[])
            .unwrap();
        assert!(prompt.context.end < prompt.a.start && prompt.a.end < prompt.b.start);
    }

    #[test]
    fn several_principles_are_bulleted_and_turns_are_tagged() {
        let context = [
            Message::new(Role::System, "secret"),
            user("q"),
            Message::new(Role::Assistant, "x"),
            user("r"),
        ];
        let prompt = JudgeTemplate::hh()
            .render(
                &fixtures::chat(),
                &context,
                "1",
                "2",
                &["P.".into(), "Q.".into()],
            )
            .unwrap();
        let text = &prompt.rendered.text;
        assert!(text.contains("\n- P.\n- Q.\n"), "{text}");
        assert_eq!(&text[prompt.context], "User: q\n\nAssistant: x\n\nUser: r");
        assert!(!text.contains("secret"));
        let bare = JudgeTemplate::ultrafeedback()
            .render(&fixtures::chat(), &context[..2], "1", "2", &[])
            .unwrap();
        assert_eq!(&bare.rendered.text[bare.context], "q");
    }

    #[test]
    fn templates_that_trim_move_the_ranges() {
        let chat = ChatTemplate::from_source(
            "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}",
            SpecialTokens::default(),
        )
        .unwrap();
        let toml = fixtures::TEMPLATE.replace("user = \"By", "user = \"  By");
        let prompt = JudgeTemplate::from_toml(&toml)
            .unwrap()
            .render(&chat, &[user("c")], "one", "two", &[])
            .unwrap();
        assert_eq!(&prompt.rendered.text[prompt.a], "one");
        assert_eq!(&prompt.rendered.text[prompt.b], "two");
        let chat = ChatTemplate::from_source(
            "{% for m in messages %}{{ m.content[3:] }}{% endfor %}",
            SpecialTokens::default(),
        )
        .unwrap();
        let error = fixtures::template().render(&chat, &[user("c")], "one", "two", &[]);
        assert!(matches!(error, Err(JudgeError::TextRewritten)));
    }
}

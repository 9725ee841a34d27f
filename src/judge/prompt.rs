//! The judge's prompt: a question about two answers, ending just before the label token.
//!
//! A template is data (`judge_template.toml` in a model's folder; two are built in, `hh` and `ultrafeedback`). Its `user`
//! text holds the slots `{principles}`, `{context}`, `{response_a}` and `{response_b}`; the chat template wraps it as a user
//! turn, opens the assistant's turn, and the lead-in is pre-filled there, so that the next token is the label
//! (SELF-JUDGE's template, papers.md 1.3). Slots are filled in one pass over the parsed template: a candidate that contains
//! `{response_b}` stays just that. What fills them is untrusted: it cannot become a special token.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::JudgeError;
use crate::preference::{Message, Role};
use crate::text::{ChatTemplate, RenderOptions, Rendered};

/// The file a model's folder may hold its template in.
pub const TEMPLATE_FILE: &str = "judge_template.toml";

/// The date that chat templates which write one are told: prompts must be the same whenever they are rendered.
pub const PROMPT_DATE: i64 = 1_735_689_600; // 2025-01-01

/// How a conversation is written into the `{context}` slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextStyle {
    /// Written before each user turn.
    pub user: String,
    /// Written before each assistant turn.
    pub assistant: String,
    /// Written before each system turn; where absent, system turns are not shown (the released UltraFeedback setup).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    pub separator: String,
    /// Whether a conversation of one user turn is shown without `user` before it.
    #[serde(default)]
    pub bare_single_turn: bool,
}

impl ContextStyle {
    fn join(&self, context: &[Message]) -> String {
        let shown: Vec<(&str, &str)> = context
            .iter()
            .filter_map(|message| {
                let tag = match message.role {
                    Role::System => self.system.as_deref()?,
                    Role::User => &self.user,
                    Role::Assistant => &self.assistant,
                };
                Some((tag, message.content.as_str()))
            })
            .collect();
        if let ([(_, only)], true) = (shown.as_slice(), self.bare_single_turn) {
            return (*only).to_owned();
        }
        let turns: Vec<String> = shown
            .iter()
            .map(|(tag, content)| format!("{tag}{content}"))
            .collect();
        turns.join(&self.separator)
    }
}

/// A template as its file states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateFile {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    user: String,
    lead_in: String,
    labels: [String; 2],
    default_principle: String,
    #[serde(default)]
    principle_bullet: String,
    #[serde(default = "newline")]
    principle_separator: String,
    #[serde(default = "bare_rationale")]
    rationale: String,
    context: ContextStyle,
}

fn newline() -> String {
    "\n".into()
}

fn bare_rationale() -> String {
    "\n{rationale}".into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Principles,
    Context,
    ResponseA,
    ResponseB,
}

impl Slot {
    const ALL: [(&str, Slot); 4] = [
        ("{principles}", Slot::Principles),
        ("{context}", Slot::Context),
        ("{response_a}", Slot::ResponseA),
        ("{response_b}", Slot::ResponseB),
    ];
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Slot(Slot),
}

/// A parsed judge template; see the module's page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TemplateFile", into = "TemplateFile")]
pub struct JudgeTemplate {
    file: TemplateFile,
    user: Vec<Piece>,
    system: Option<Vec<Piece>>,
    /// What stands before and after the rationale.
    rationale: (String, String),
}

/// A rendered judge prompt. The ranges are bytes of `rendered.text`.
#[derive(Debug, Clone)]
pub struct JudgePrompt {
    pub rendered: Rendered,
    pub context: Range<usize>,
    /// The candidate shown first.
    pub a: Range<usize>,
    /// The candidate shown second.
    pub b: Range<usize>,
}

impl TryFrom<TemplateFile> for JudgeTemplate {
    type Error = JudgeError;

    fn try_from(file: TemplateFile) -> Result<Self, JudgeError> {
        let user = parse(&file.user)?;
        for (name, slot) in Slot::ALL {
            let count = user
                .iter()
                .filter(|piece| **piece == Piece::Slot(slot))
                .count();
            let wanted = if slot == Slot::Principles {
                0..=1
            } else {
                1..=1
            };
            if !wanted.contains(&count) {
                return Err(JudgeError::Template(format!(
                    "`user` holds the slot {name} {count} times; it must hold it once"
                )));
            }
        }
        let system = file.system.as_deref().map(parse).transpose()?;
        let candidate =
            |piece: &Piece| matches!(piece, Piece::Slot(slot) if *slot != Slot::Principles);
        if system.iter().flatten().any(candidate) {
            return Err(JudgeError::Template(
                "`system` may hold no slot but {principles}".into(),
            ));
        }
        if file.labels.iter().any(String::is_empty) || file.labels[0] == file.labels[1] {
            return Err(JudgeError::Template(
                "`labels` must be two different texts".into(),
            ));
        }
        if file.default_principle.trim().is_empty() {
            return Err(JudgeError::Template("`default_principle` is empty".into()));
        }
        let rationale = match file.rationale.split_once("{rationale}") {
            Some((before, after)) => (before.to_owned(), after.to_owned()),
            None => {
                return Err(JudgeError::Template(
                    "`rationale` lacks its slot {rationale}".into(),
                ));
            }
        };
        Ok(Self {
            file,
            user,
            system,
            rationale,
        })
    }
}

impl From<JudgeTemplate> for TemplateFile {
    fn from(template: JudgeTemplate) -> Self {
        template.file
    }
}

/// Splits a text at its slots. Any other `{name}` is refused, as it is most likely a slot's name misspelt.
fn parse(text: &str) -> Result<Vec<Piece>, JudgeError> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        literal.push_str(&rest[..open]);
        rest = &rest[open..];
        if let Some((name, slot)) = Slot::ALL.iter().find(|(name, _)| rest.starts_with(name)) {
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Slot(*slot));
            rest = &rest[name.len()..];
            continue;
        }
        if let Some(close) = rest.find('}') {
            let name = &rest[1..close];
            if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(JudgeError::Template(format!("unknown slot {{{name}}}")));
            }
        }
        literal.push('{');
        rest = &rest[1..];
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    Ok(pieces)
}

impl Default for JudgeTemplate {
    fn default() -> Self {
        Self::hh()
    }
}

impl JudgeTemplate {
    /// The built-in template for conversations ("Assistant A/B").
    pub fn hh() -> Self {
        Self::from_toml(include_str!("hh.toml"))
            .expect("the built-in template is valid, this is a bug")
    }

    /// The built-in template for single instructions ("Response A/B").
    pub fn ultrafeedback() -> Self {
        Self::from_toml(include_str!("ultrafeedback.toml"))
            .expect("the built-in template is valid, this is a bug")
    }

    /// The built-in template of that name.
    pub fn built_in(name: &str) -> Option<Self> {
        [Self::hh(), Self::ultrafeedback()]
            .into_iter()
            .find(|template| template.name() == name)
    }

    /// # Errors
    /// If the text is not TOML, a field is missing or unknown, or a slot is missing, repeated or unknown.
    pub fn from_toml(text: &str) -> Result<Self, JudgeError> {
        toml::from_str::<TemplateFile>(text)
            .map_err(|error| JudgeError::Template(error.to_string()))?
            .try_into()
    }

    /// # Errors
    /// If the file cannot be read, or as [`Self::from_toml`].
    pub fn from_file(path: &Path) -> Result<Self, JudgeError> {
        let text = std::fs::read_to_string(path).map_err(|source| JudgeError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_toml(&text)
    }

    /// The template a model's folder holds, or the built-in default where it holds none.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_model_dir(dir: &Path) -> Result<Self, JudgeError> {
        let path: PathBuf = dir.join(TEMPLATE_FILE);
        match path.try_exists() {
            Ok(false) => Ok(Self::default()),
            _ => Self::from_file(&path),
        }
    }

    /// The template as the text of its file.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.file).expect("strings and tables always serialise, this is a bug")
    }

    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// What the assistant's turn is pre-filled with; the label follows it.
    pub fn lead_in(&self) -> &str {
        &self.file.lead_in
    }

    /// The texts of the two labels, the first naming the candidate shown first.
    pub fn labels(&self) -> &[String; 2] {
        &self.file.labels
    }

    /// The template with its labels' leading space gone and a parenthesis opened after the lead-in; `None` if a label has
    /// no leading space.
    pub fn with_bare_labels(&self) -> Option<Self> {
        let [a, b] = &self.file.labels;
        let mut bare = self.clone();
        bare.file.labels = [
            a.strip_prefix(' ')?.to_owned(),
            b.strip_prefix(' ')?.to_owned(),
        ];
        bare.file.lead_in.push_str(" (");
        let empty = bare.file.labels.iter().any(String::is_empty);
        (!empty).then_some(bare)
    }

    /// What stands for the principles where a comparison names none.
    pub fn default_principle(&self) -> &str {
        &self.file.default_principle
    }

    /// The text that follows the label token in training, for a given rationale.
    pub fn rationale(&self, rationale: &str) -> Rendered {
        let mut rendered = Rendered::default();
        rendered.push_trusted(&self.rationale.0);
        rendered.push_untrusted(rationale);
        rendered.push_trusted(&self.rationale.1);
        rendered
    }

    /// The prompt that shows `a` before `b`, up to and including the lead-in.
    ///
    /// `principles` are texts, not names; none means the default principle.
    ///
    /// # Errors
    /// If the chat template fails or does not write the user's text as it is.
    pub fn render(
        &self,
        chat: &ChatTemplate,
        context: &[Message],
        a: &str,
        b: &str,
        principles: &[String],
    ) -> Result<JudgePrompt, JudgeError> {
        let principles = match principles {
            [] => self.file.default_principle.clone(),
            [one] => one.clone(),
            several => several
                .iter()
                .map(|text| format!("{}{text}", self.file.principle_bullet))
                .collect::<Vec<_>>()
                .join(&self.file.principle_separator),
        };
        let context = self.file.context.join(context);
        let fills = [principles.as_str(), context.as_str(), a, b];
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
        // A chat template may trim; what it cut from the front moves every range.
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

/// The pieces with their slots filled, and where each slot's text lies (indexed by the slot).
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

/// Where `user` starts in the rendering, and how many bytes were trimmed from its front.
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
    use crate::judge::fixtures;
    use crate::text::SpecialTokens;

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

    #[test]
    fn broken_templates_are_refused_by_name() {
        for (from, to, says) in [
            ("{response_b}", "", "{response_b} 0 times"),
            (
                "{response_b}",
                "{response_b}{response_b}",
                "{response_b} 2 times",
            ),
            ("{response_b}", "{respnse_b}", "unknown slot {respnse_b}"),
            ("lead_in = \"I say\"", "", "lead_in"),
            ("[\" A\", \" B\"]", "[\" A\", \" A\"]", "labels"),
            ("name = ", "nmae = ", "nmae"),
            ("best.", "", "default_principle"),
        ] {
            let toml = fixtures::TEMPLATE.replacen(from, to, 1);
            assert_ne!(toml, fixtures::TEMPLATE);
            let error = JudgeTemplate::from_toml(&toml).unwrap_err().to_string();
            assert!(error.contains(says), "{error} does not say {says}");
        }
        assert!(
            JudgeTemplate::from_toml(&fixtures::TEMPLATE.replace("Which?", "{ x } {} {a b}?"))
                .is_ok()
        );
    }

    #[test]
    fn templates_survive_their_file_and_the_folder_falls_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            JudgeTemplate::from_model_dir(dir.path()).unwrap(),
            JudgeTemplate::hh()
        );
        let template = JudgeTemplate::ultrafeedback();
        std::fs::write(dir.path().join(TEMPLATE_FILE), template.to_toml()).unwrap();
        assert_eq!(JudgeTemplate::from_model_dir(dir.path()).unwrap(), template);
        assert_eq!(JudgeTemplate::built_in("hh"), Some(JudgeTemplate::hh()));
        assert_eq!(JudgeTemplate::built_in("other"), None);
    }
}

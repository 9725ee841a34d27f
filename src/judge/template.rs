//! The judge's template: the question about two answers, as data.
//!
//! A template is a file (`judge_template.toml` in a model directory; two are built in, `hh` and `ultrafeedback`). Its `user` text holds
//! the slots `{principles}`, `{context}`, `{response_a}` and `{response_b}`, which [`super::prompt`] fills.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::JudgeError;
use super::frame::Frame;
use text::{Message, Rendered, Role};

/// The name of the template file in a model directory.
pub const TEMPLATE_FILE: &str = "judge_template.toml";

/// The format of a conversation in the `{context}` slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextStyle {
    /// Tag before each user turn.
    pub user: String,
    /// Tag before each assistant turn.
    pub assistant: String,
    /// Tag before each system turn; if absent, system turns are not shown (the released UltraFeedback setup).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    pub separator: String,
    /// Whether a conversation of a single user turn is shown without the `user` tag.
    #[serde(default)]
    pub bare_single_turn: bool,
}

impl ContextStyle {
    /// Writes out a conversation such that the text of a turn cannot begin another turn.
    pub(super) fn join(&self, context: &[Message], frame: &Frame) -> String {
        let shown: Vec<(&str, Cow<'_, str>)> = context
            .iter()
            .filter_map(|message| {
                let tag = match message.role {
                    Role::System => self.system.as_deref()?,
                    Role::User => &self.user,
                    Role::Assistant => &self.assistant,
                };
                Some((tag, frame.escape_turn(&message.content)))
            })
            .collect();
        if let ([(_, only)], true) = (shown.as_slice(), self.bare_single_turn) {
            return frame.escape_joined(only.clone()).into_owned();
        }
        let turns: Vec<String> = shown
            .iter()
            .map(|(tag, content)| format!("{tag}{content}"))
            .collect();
        let joined = turns.join(&self.separator);
        frame.escape_joined(Cow::Owned(joined)).into_owned()
    }
}

/// The contents of a template file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateFile {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    user: String,
    pub(super) lead_in: String,
    pub(super) labels: [String; 2],
    pub(super) default_principle: String,
    #[serde(default)]
    pub(super) principle_bullet: String,
    #[serde(default = "newline")]
    pub(super) principle_separator: String,
    #[serde(default = "bare_rationale")]
    rationale: String,
    pub(super) context: ContextStyle,
}

fn newline() -> String {
    "\n".into()
}

fn bare_rationale() -> String {
    "\n{rationale}".into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
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
pub(super) enum Piece {
    Text(String),
    Slot(Slot),
}

/// A parsed judge template; see the module documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "TemplateFile", into = "TemplateFile")]
pub struct JudgeTemplate {
    pub(super) file: TemplateFile,
    pub(super) user: Vec<Piece>,
    pub(super) system: Option<Vec<Piece>>,
    /// The texts before and after the rationale.
    rationale: (String, String),
    pub(super) frame: Frame,
}

impl PartialEq for JudgeTemplate {
    /// Everything else is derived from the file.
    fn eq(&self, other: &Self) -> bool {
        self.file == other.file
    }
}

impl Eq for JudgeTemplate {}

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
                    "`user` contains the slot {name} {count} times; it must contain it exactly once"
                )));
            }
        }
        let system = file.system.as_deref().map(parse).transpose()?;
        let candidate =
            |piece: &Piece| matches!(piece, Piece::Slot(slot) if *slot != Slot::Principles);
        if system.iter().flatten().any(candidate) {
            return Err(JudgeError::Template(
                "the only slot allowed in `system` is {principles}".into(),
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
                    "`rationale` must contain the slot {rationale}".into(),
                ));
            }
        };
        let frame = Frame::of(&file, user.iter().chain(system.iter().flatten()))?;
        Ok(Self {
            file,
            user,
            system,
            rationale,
            frame,
        })
    }
}

impl JudgeTemplate {
    /// Returns a conversation in the template's format.
    pub fn context(&self, context: &[Message]) -> String {
        self.file.context.join(context, &self.frame)
    }
}

impl From<JudgeTemplate> for TemplateFile {
    fn from(template: JudgeTemplate) -> Self {
        template.file
    }
}

/// Splits a text at its slots. Any other `{name}` is an error, as it is most likely a misspelt slot.
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
    /// Returns the built-in template for conversations ("Assistant A/B").
    pub fn hh() -> Self {
        Self::from_toml(include_str!("hh.toml"))
            .expect("the built-in template is valid, this is a bug")
    }

    /// Returns the built-in template for single instructions ("Response A/B").
    pub fn ultrafeedback() -> Self {
        Self::from_toml(include_str!("ultrafeedback.toml"))
            .expect("the built-in template is valid, this is a bug")
    }

    /// Returns the built-in template of that name.
    pub fn built_in(name: &str) -> Option<Self> {
        [Self::hh(), Self::ultrafeedback()]
            .into_iter()
            .find(|template| template.name() == name)
    }

    /// Parses a template.
    ///
    /// # Errors
    /// If the text is not TOML, a field is missing or unknown, or a slot is missing, repeated or unknown.
    pub fn from_toml(text: &str) -> Result<Self, JudgeError> {
        settings::parse::<TemplateFile>(text)
            .map_err(|error| JudgeError::Template(error.to_string()))?
            .try_into()
    }

    /// Reads a template file.
    ///
    /// # Errors
    /// If the file cannot be read, or as [`Self::from_toml`].
    pub fn from_file(path: &Path) -> Result<Self, JudgeError> {
        let text = files::read_settings(path).map_err(|source| JudgeError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_toml(&text).map_err(|error| match error {
            JudgeError::Template(message) => {
                JudgeError::Template(format!("{}: {message}", path.display()))
            }
            other => other,
        })
    }

    /// Reads the template of a model directory; returns the built-in default if there is none.
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

    /// Returns the template as TOML, the format of its file.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.file).expect("strings and tables always serialise, this is a bug")
    }

    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// Returns the text pre-filled in the assistant's turn; the label follows it.
    pub fn lead_in(&self) -> &str {
        &self.file.lead_in
    }

    /// Returns the texts of the two labels; the first names the candidate shown first.
    pub fn labels(&self) -> &[String; 2] {
        &self.file.labels
    }

    /// Returns the template with its labels' leading space removed and a parenthesis opened after the lead-in; `None` if a label has no
    /// leading space.
    pub fn with_bare_labels(&self) -> Option<Self> {
        let [a, b] = &self.file.labels;
        let mut bare = self.clone();
        bare.file.labels = [
            a.strip_prefix(' ')?.to_owned(),
            b.strip_prefix(' ')?.to_owned(),
        ];
        bare.file.lead_in.push_str(" (");
        let pieces = bare.user.iter().chain(bare.system.iter().flatten());
        bare.frame = Frame::of(&bare.file, pieces).ok()?;
        let empty = bare.file.labels.iter().any(String::is_empty);
        (!empty).then_some(bare)
    }

    /// Returns the principle used if a comparison names none.
    pub fn default_principle(&self) -> &str {
        &self.file.default_principle
    }

    /// Returns the text that follows the label token in training, for a given rationale.
    pub fn rationale(&self, rationale: &str) -> Rendered {
        let mut rendered = Rendered::default();
        rendered.push_trusted(&self.rationale.0);
        rendered.push_untrusted(rationale);
        rendered.push_trusted(&self.rationale.1);
        rendered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

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

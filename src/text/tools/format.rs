//! The formats in which models write tool calls.

use std::borrow::Cow;
use std::str::FromStr;

use super::ToolChat;
use super::fitting::{one_at_a_time, with_short_ids};

/// A format of tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`: Hermes, Qwen 2.5, Qwen 3 and many others.
    Hermes,
    /// The whole answer is `{"name": …, "parameters": {…}}`: Llama 3.1, 3.2 and 3.3. An answer holds one call.
    Llama3Json,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`: Mistral.
    Mistral,
    /// `{"name": …, "arguments": {…}}`, each call on its own line: this program's format, for every model.
    Json,
}

/// The texts around the objects of a format's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Before the first call, or before each.
    pub begin: &'static str,
    /// After the last call, or after each.
    pub end: &'static str,
    /// Between the mark before a call and its object, and between the object and the mark after it.
    pub padding: &'static str,
    /// Between two calls.
    pub separator: &'static str,
    /// Before the first object and after the last one, if the marks enclose a list.
    pub list: Option<(&'static str, &'static str)>,
    /// The key of the arguments.
    pub arguments: &'static str,
    /// Limit on the calls of an answer.
    pub most: usize,
}

/// Limit on the calls of one answer that a grammar constrains.
const MOST_CALLS: usize = 16;

impl ToolFormat {
    pub const ALL: [Self; 4] = [Self::Hermes, Self::Llama3Json, Self::Mistral, Self::Json];

    /// Returns the name of the format in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hermes => "hermes",
            Self::Llama3Json => "llama3_json",
            Self::Mistral => "mistral",
            Self::Json => "json",
        }
    }

    /// Returns the format that a chat template shows to the model: the template must read `tools` and write calls in a known way.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        let has = |text: &str| source.contains(text);
        match () {
            () if !has("tools") => None,
            // Newer models of Mistral write `[TOOL_CALLS]name[ARGS]{…}`.
            () if has("[TOOL_CALLS]") => (!has("[ARGS]")).then_some(Self::Mistral),
            // Qwen 3 Coder and GLM 4.5 write XML between these marks.
            () if has("<tool_call>") => {
                let json = has("arguments") && !has("<function=") && !has("<arg_key>");
                json.then_some(Self::Hermes)
            }
            () if has("<|start_header_id|>") && has("ipython") && has("parameters") => {
                Some(Self::Llama3Json)
            }
            () => None,
        }
    }

    /// Returns the conversation in the form that the format's templates accept.
    pub(crate) fn fitted(self, chat: &ToolChat) -> Cow<'_, ToolChat> {
        match self {
            Self::Llama3Json => one_at_a_time(chat),
            Self::Mistral => with_short_ids(chat),
            Self::Hermes | Self::Json => Cow::Borrowed(chat),
        }
    }

    /// Returns the texts around calls.
    pub fn marks(self) -> Marks {
        let plain = Marks {
            begin: "",
            end: "",
            padding: "",
            separator: "\n",
            list: None,
            arguments: "arguments",
            most: MOST_CALLS,
        };
        match self {
            Self::Hermes => Marks {
                begin: "<tool_call>",
                end: "</tool_call>",
                padding: "\n",
                ..plain
            },
            Self::Llama3Json => Marks {
                arguments: "parameters",
                most: 1,
                ..plain
            },
            Self::Mistral => Marks {
                begin: "[TOOL_CALLS]",
                separator: ", ",
                list: Some(("[", "]")),
                ..plain
            },
            Self::Json => plain,
        }
    }
}

impl FromStr for ToolFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.map(Self::name).into();
            format!(
                "unknown tool format {name:?}; use one of {}",
                names.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_the_template() {
        for (source, format) in [
            ("{{ messages }}", None),
            ("<tool_call> arguments", None),
            (
                "{% if tools %}<tool_call>{{ call.arguments | tojson }}",
                Some(ToolFormat::Hermes),
            ),
            (
                "{% if tools %}<tool_call><function={{ name }}> arguments",
                None,
            ),
            ("{% if tools %}<tool_call><arg_key> arguments", None),
            ("{% if tools %}[TOOL_CALLS][{{", Some(ToolFormat::Mistral)),
            ("{% if tools %}[TOOL_CALLS]{{ name }}[ARGS]", None),
            (
                "{% if tools is defined %}<|start_header_id|>ipython {\"parameters\"",
                Some(ToolFormat::Llama3Json),
            ),
            ("{% if tools %}<|action|>", None),
        ] {
            assert_eq!(ToolFormat::of_template(source), format, "{source}");
        }
    }

    #[test]
    fn names_are_read_and_unknown_ones_are_answered_with_the_known() {
        for format in ToolFormat::ALL {
            assert_eq!(format.name().parse(), Ok(format));
        }
        let error = "hermess".parse::<ToolFormat>().unwrap_err();
        assert!(
            error.contains("hermes, llama3_json, mistral, json"),
            "{error}"
        );
    }
}

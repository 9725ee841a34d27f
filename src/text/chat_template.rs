//! Chat templates: rendering of a conversation into the prompt format of a model's training, with contents marked untrusted.
//!
//! # The origin of each character
//! A template is a program that may do anything with a message. It is rendered once plainly, which gives the text, and once over
//! placeholders (see [`super::placeholder`]), which gives the origin of each character:
//!
//! 1. If the rendering over placeholders, with the placeholders replaced back, equals the plain one, every character's origin is known.
//! 2. If not, the template inspects contents (Qwen 3 splits at `</think>`). String literals of the template that occur in contents are
//!    then left readable, as few as possible. Where the output differs from the rendering over placeholders, those literals may come from
//!    the template or from a message, and count as untrusted.
//! 3. If even that does not give the plain text (with a template that capitalises, for example), the rendering over placeholders is the
//!    result: the template treats contents as opaque, and roles cannot be forged.
//!
//! Only step 3 deviates from transformers; it is logged once per template. Not covered: a template that compares a content with a literal
//! and then outputs a *part* of that literal cut from the content.

mod run;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::value::Serde;
use minijinja::{Environment, Value};

use super::chat_values::{Arguments, ChatValues};
use super::placeholder::{Origin, Placeholders, is_telling, occurrences};
use super::rendered::{OwnTrust, Rendered, merge};
use super::template_source::{find, pass_through_generation, string_literals};
use super::tools::{ToolChat, ToolFormat, json_form};
use super::{ChatSetup, SpecialTokens, TextError, jinja};
use crate::Message;
use run::{Run, difference, readable_in};

/// A compiled chat template with the special tokens it may name. Cheap to clone, shared by threads.
#[derive(Clone)]
pub struct ChatTemplate(Arc<Inner>);

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("special_tokens", &self.0.special_tokens)
            .finish_non_exhaustive()
    }
}

struct Inner {
    /// The compiled template, or the directory of a model without one.
    env: Result<Environment<'static>, PathBuf>,
    /// Variables of every rendering; those of a single rendering override them.
    variables: Variables,
    special_tokens: SpecialTokens,
    /// String literals by which the template may recognise parts of a content.
    literals: Vec<String>,
    /// Characters of the template and the special tokens that lie in the range of placeholders.
    taken: HashSet<char>,
    /// The format of tool calls, if the template shows it.
    tool_format: Option<ToolFormat>,
    warned: AtomicBool,
}

/// Template variables by name.
pub type Variables = BTreeMap<String, serde_json::Value>;

/// The options of a rendering, besides the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// Whether to open the assistant's turn at the end.
    pub add_generation_prompt: bool,
    /// Further variables, e.g. `enable_thinking`. They are trusted and must not contain text from outside.
    pub variables: Variables,
    /// The time for `strftime_now`, in Unix seconds; the current time if `None`. Set it if prompts must be reproducible.
    pub now: Option<i64>,
    /// The control tokens that are recognised in the assistant's turns.
    pub own: OwnTrust,
}

impl RenderOptions {
    /// Returns the options for a prompt that the model is to answer.
    pub fn for_generation() -> Self {
        Self {
            add_generation_prompt: true,
            ..Self::default()
        }
    }

    /// Returns these options with `own` for the assistant's turns.
    #[must_use]
    pub fn with_own(self, own: OwnTrust) -> Self {
        Self { own, ..self }
    }
}

impl ChatTemplate {
    /// Reads the template of a model directory: `chat_template.jinja`, else that of `tokenizer_config.json`.
    pub fn from_model_dir(dir: &Path) -> Result<Self, TextError> {
        Self::from_source(&find(dir)?.1, SpecialTokens::from_model_dir(dir)?)
    }

    /// Reads a template as [`Self::from_model_dir`]; if there is none, returns a template whose every rendering fails with the reason.
    pub fn of_model_dir(dir: &Path) -> Result<Self, TextError> {
        ChatSetup::default().build(dir)
    }

    /// Returns the placeholder for a model without a template.
    pub(super) fn none_in(dir: &Path, special_tokens: SpecialTokens) -> Self {
        Self(Arc::new(Inner {
            env: Err(dir.to_owned()),
            variables: Variables::new(),
            taken: HashSet::new(),
            literals: Vec::new(),
            tool_format: None,
            special_tokens,
            warned: AtomicBool::new(false),
        }))
    }

    /// Compiles a template from Jinja source.
    pub fn from_source(source: &str, special_tokens: SpecialTokens) -> Result<Self, TextError> {
        Self::with_variables(source, special_tokens, Variables::new(), None)
    }

    /// Compiles a template from Jinja source, with variables of every rendering. `tool_format` is an operator's choice; by default it is
    /// detected from the template.
    ///
    /// # Errors
    /// If the template does not parse, or does not show tools to the model in the chosen format.
    pub fn with_variables(
        source: &str,
        special_tokens: SpecialTokens,
        variables: Variables,
        tool_format: Option<ToolFormat>,
    ) -> Result<Self, TextError> {
        let tool_format = match tool_format {
            None => ToolFormat::of_template(source),
            Some(ToolFormat::Json) => None,
            Some(format) if !source.contains("tools") => {
                return Err(TextError::NoToolsInTemplate(format.name()));
            }
            chosen => chosen,
        };
        let literals = string_literals(source);
        let texts = [source]
            .into_iter()
            .chain(special_tokens.iter().map(|(_, token)| token));
        Ok(Self(Arc::new(Inner {
            env: Ok(jinja::compile(&pass_through_generation(source))?),
            variables,
            taken: texts
                .chain(literals.iter().map(String::as_str))
                .flat_map(str::chars)
                .filter(far_out)
                .collect(),
            literals: literals
                .into_iter()
                .filter(|literal| is_telling(literal))
                .collect(),
            tool_format,
            special_tokens,
            warned: AtomicBool::new(false),
        })))
    }

    /// Returns the format of the model's tool calls: the template's, or else a form of JSON.
    pub fn tool_format(&self) -> ToolFormat {
        self.0.tool_format.unwrap_or(ToolFormat::Json)
    }

    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.0.special_tokens
    }

    /// Renders a conversation. `untrusted` of the result covers text from message contents, except for the assistant's turns if the
    /// options distinguish them: those are in `own`. White space at the ends of a content may be excluded.
    ///
    /// # Errors
    /// Errors that the template raises (`raise_exception`, roles out of turn), and errors in the template itself.
    pub fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<Rendered, TextError> {
        self.render_values(&ChatValues::of_messages(messages, options.own), options)
    }

    /// Renders a conversation with tools, in the model's own tool format or as plain turns. `doubtful` returns whether a string could
    /// spell a control token, or a part of one.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_tools(
        &self,
        chat: &ToolChat,
        options: &RenderOptions,
        doubtful: &dyn Fn(&str) -> bool,
    ) -> Result<Rendered, TextError> {
        let Some(format) = self.0.tool_format else {
            let rendered = self.render(&json_form::plain(chat, json_form::Place::System), options);
            // Some templates do not accept a system message.
            return match rendered {
                Err(TextError::Render(_)) if json_form::can_move(chat) => {
                    let plain = json_form::plain(chat, json_form::Place::User);
                    self.render(&plain, options).or(rendered)
                }
                rendered => rendered,
            };
        };
        let chat = format.fitted(chat);
        let render = |arguments| {
            let values = ChatValues::of_tool_chat(&chat, options.own, arguments, doubtful);
            self.render_values(&values, options)
        };
        let rendered = render(Arguments::Object);
        match rendered {
            Err(TextError::Render(_)) if chat.has_calls() => render(Arguments::Text).or(rendered),
            rendered => rendered,
        }
    }

    fn render_values(
        &self,
        chat: &ChatValues,
        options: &RenderOptions,
    ) -> Result<Rendered, TextError> {
        let env = match &self.0.env {
            Ok(env) => env,
            Err(dir) => return Err(TextError::NoChatTemplate(dir.clone())),
        };
        let contents: Vec<&str> = chat.texts.iter().map(|(text, _)| &**text).collect();
        let run = Run {
            env,
            template: &self.0,
            chat,
            origins: chat.texts.iter().map(|(_, origin)| *origin).collect(),
            base: self.0.base_context(options),
        };
        let plain = run.render(contents.iter().copied())?;
        let variables: HashSet<char> = (self.0.variables.values())
            .chain(options.variables.values())
            .flat_map(|value| {
                value
                    .to_string()
                    .chars()
                    .filter(far_out)
                    .collect::<Vec<_>>()
            })
            .collect();
        let with_origins = contents.iter().copied().zip(run.origins.iter().copied());
        let placeholders = Placeholders::for_contents(with_origins, |c| {
            self.0.taken.contains(&c) || variables.contains(&c)
        })?;
        if placeholders.is_empty() {
            return Ok(Rendered {
                text: plain,
                ..Rendered::default()
            });
        }
        let finish = |text: String, marked: &str, literals: Found| {
            let mut untrusted = placeholders.ranges(marked, Origin::Outside);
            let mut own = placeholders.ranges(marked, Origin::Own);
            untrusted.extend(literals.outside);
            own.extend(literals.own);
            if options.own == OwnTrust::Markers {
                untrusted.extend(self.0.named_tokens_in(&text, &own));
            }
            Rendered {
                text,
                untrusted: merge(untrusted),
                own: merge(own),
                own_trust: options.own,
            }
        };
        let with_origins = contents.iter().zip(&run.origins);
        let opaque = run.render(
            with_origins.map(|(content, origin)| placeholders.replace(content, *origin, [])),
        );
        if let Ok(opaque) = &opaque
            && placeholders.restore(opaque) == plain
        {
            return Ok(finish(plain, opaque, Found::default()));
        }
        if let Some((marked, readable)) = run.fewest_readable(&contents, &placeholders, &plain) {
            let doubtful = match &opaque {
                Ok(opaque) => difference(&marked, opaque),
                Err(_) => 0..marked.len(),
            };
            let found = |literals: &[String]| {
                readable_in(&marked, doubtful.clone(), literals, &placeholders)
            };
            let literals = Found {
                outside: found(&readable.outside),
                own: found(&readable.own),
            };
            return Ok(finish(plain, &marked, literals));
        }
        let opaque = opaque?;
        if !self.0.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "this chat template changes message contents in a way that cannot be tracked; contents are inserted unchanged"
            );
        }
        let text = placeholders.restore(&opaque);
        Ok(finish(text, &opaque, Found::default()))
    }
}

/// Byte ranges of literals left readable, by the origin of the contents they may come from.
#[derive(Default)]
struct Found {
    outside: Vec<Range<usize>>,
    own: Vec<Range<usize>>,
}

/// Returns whether a character could be mistaken for a placeholder.
fn far_out(c: &char) -> bool {
    *c as u32 >= 0xF_0000
}

impl Inner {
    /// Returns the ranges of the tokenizer's named special tokens (such as `eos_token`) within these ranges: a history never ends a turn,
    /// whatever the names of its tokens.
    fn named_tokens_in(&self, text: &str, ranges: &[Range<usize>]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        for range in ranges {
            for (_, token) in self.special_tokens.iter() {
                let in_content = occurrences(&text[range.clone()], token).into_iter();
                found.extend(in_content.map(|at| at.start + range.start..at.end + range.start));
            }
        }
        found
    }

    /// Returns the variables that transformers passes, without the messages.
    fn base_context(&self, options: &RenderOptions) -> Vec<(String, Value)> {
        let mut context: Vec<(String, Value)> = vec![
            ("tools".to_owned(), Value::from(())),
            ("documents".to_owned(), Value::from(())),
        ];
        context.extend(
            self.special_tokens
                .iter()
                .map(|(name, token)| (name.to_owned(), Value::from(token))),
        );
        let variables = self.variables.iter().chain(&options.variables);
        context.extend(variables.map(|(name, value)| (name.clone(), Value::from(Serde(value)))));
        context.push((
            "add_generation_prompt".to_owned(),
            Value::from(options.add_generation_prompt),
        ));
        if let Some(now) = options.now {
            context.push((jinja::NOW.to_owned(), Value::from(now)));
        }
        context
    }
}

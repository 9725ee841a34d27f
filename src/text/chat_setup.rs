//! The chat template of a served model, and its variables.

use std::path::{Path, PathBuf};

use super::chat_template::Variables;
use super::template_source::find;
use super::tools::ToolFormat;
use super::{ChatTemplate, SpecialTokens, TextError};

/// An operator's choice of a chat template; the default is the model's own.
#[derive(Debug, Clone, Default)]
pub struct ChatSetup {
    /// A file with a Jinja template, to replace the model's own.
    pub template: Option<PathBuf>,
    /// Variables of every rendering, such as `enable_thinking`.
    pub variables: Variables,
    /// The format of the model's tool calls; by default it is detected from the template.
    pub tool_format: Option<ToolFormat>,
}

impl ChatSetup {
    /// Builds the template for the model in `dir`. For a model without one it returns a template whose every rendering fails with the
    /// reason.
    pub fn build(&self, dir: &Path) -> Result<ChatTemplate, TextError> {
        let special = SpecialTokens::from_model_dir(dir)?;
        let (path, source) = match &self.template {
            Some(path) => {
                let source = files::read_settings(path).map_err(|source| TextError::Read {
                    path: path.clone(),
                    source,
                })?;
                (path.clone(), source)
            }
            None => match find(dir) {
                Err(TextError::NoChatTemplate(dir)) => {
                    return Ok(ChatTemplate::none_in(&dir, special));
                }
                found => found?,
            },
        };
        let variables = self.variables.clone();
        let built = ChatTemplate::with_variables(&source, special, variables, self.tool_format);
        built.map_err(|error| match error {
            TextError::TemplateSyntax(what) => TextError::BadConfig {
                path,
                what: format!("the chat template does not parse: {what}"),
            },
            other => other,
        })
    }
}

/// Names of variables that the server itself sets.
const RESERVED: [&str; 7] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "__now",
];

/// Checks the names of template variables.
///
/// # Errors
/// If the server itself sets a name, or no template can use it; the message describes the first such name.
pub fn check_variables(variables: &Variables) -> Result<(), String> {
    for name in variables.keys() {
        if RESERVED.contains(&name.as_str()) || name.ends_with("_token") {
            return Err(format!(
                "the server sets `{name}` itself, so it cannot be given"
            ));
        }
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.chars().all(letters)
        {
            return Err(format!(
                "`{name}` is not a valid name of a template variable"
            ));
        }
    }
    Ok(())
}

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
    ///
    /// # Errors
    /// Errors if a file cannot be read or is no template; also if a model without a template is given variables or a format of tool calls,
    /// which nothing would use.
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
                    if let Some(given) = self.given() {
                        return Err(TextError::BadConfig {
                            path: dir,
                            what: format!(
                                "the model has no chat template, so {given} would have no effect; set --chat-template too"
                            ),
                        });
                    }
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

impl ChatSetup {
    /// Returns the flag of a setting that needs a template, if there is such a setting.
    fn given(&self) -> Option<&'static str> {
        match (self.variables.is_empty(), self.tool_format) {
            (false, _) => Some("--chat-template-kwargs"),
            (true, Some(_)) => Some("--tool-format"),
            (true, None) => None,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_template_need_one() {
        let dir = tempfile::tempdir().unwrap();
        ChatSetup::default().build(dir.path()).unwrap();
        let variables = ChatSetup {
            variables: Variables::from_iter([("a".to_owned(), 1.into())]),
            ..ChatSetup::default()
        };
        let format = ChatSetup {
            tool_format: Some(ToolFormat::Json),
            ..ChatSetup::default()
        };
        let template = dir.path().join("x.jinja");
        std::fs::write(&template, "{{ messages[0].content }}").unwrap();
        for (setup, flag) in [
            (variables, "--chat-template-kwargs"),
            (format, "--tool-format"),
        ] {
            let error = setup.build(dir.path()).expect_err("refused").to_string();
            assert!(
                error.contains(flag) && error.contains("no chat template"),
                "{error}"
            );
            let template = Some(template.clone());
            ChatSetup { template, ..setup }.build(dir.path()).unwrap();
        }
    }
}

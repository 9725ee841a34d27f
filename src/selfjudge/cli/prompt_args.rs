//! The flags that set how prompts are encoded.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::app::PromptOptions;
use text::{ChatSetup, ToolFormat, Variables, check_variables};

/// Encoding of prompts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Prompts")]
pub struct PromptArgs {
    /// A file with a Jinja chat template, instead of the model's own. A model without a template serves text and tokens only.
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Default variables of the chat template, as a JSON object, such as {"enable_thinking": false}. A call's
    /// `chat_template_kwargs` override them.
    #[arg(long, value_name = "JSON", value_parser = variables)]
    chat_template_kwargs: Option<Variables>,
    /// The model's format of tool calls, if its chat template does not show it: hermes, llama3_json, mistral, or json, which works
    /// with every model.
    #[arg(long, value_name = "FORMAT")]
    tool_format: Option<ToolFormat>,
    /// Encode control tokens written in text prompts (/v1/completions, /tokenize) as control tokens, for clients that apply the chat
    /// template themselves. By default text never becomes a control token.
    #[arg(long)]
    control_tokens_in_prompts: bool,
    /// The sampling parameters of calls that set none: auto takes them from the model's generation_config.json; none draws from the
    /// model's own distribution.
    #[arg(long, value_name = "SOURCE", default_value = "auto")]
    generation_config: GenerationConfig,
}

/// The values of `--generation-config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GenerationConfig {
    Auto,
    None,
}

impl PromptArgs {
    pub fn options(&self) -> PromptOptions {
        PromptOptions {
            chat: ChatSetup {
                template: self.chat_template.clone(),
                variables: self.chat_template_kwargs.clone().unwrap_or_default(),
                tool_format: self.tool_format,
            },
            control_tokens: self.control_tokens_in_prompts,
            neutral_sampling: self.generation_config == GenerationConfig::None,
        }
    }
}

/// Parses template variables from a JSON object.
pub(super) fn variables(text: &str) -> Result<Variables, String> {
    let variables: Variables =
        serde_json::from_str(text).map_err(|error| format!("it is not a JSON object: {error}"))?;
    check_variables(&variables)?;
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::variables;

    #[test]
    fn variables_are_an_object_whose_names_the_server_does_not_use() {
        let read = variables(r#"{"enable_thinking": false, "a_1": "x"}"#).unwrap();
        assert_eq!(read.len(), 2);
        for bad in [
            "[]",
            "1",
            "{",
            r#"{"messages": []}"#,
            r#"{"bos_token": ""}"#,
            r#"{"a b": 1}"#,
        ] {
            assert!(variables(bad).is_err(), "{bad}");
        }
    }
}

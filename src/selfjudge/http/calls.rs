//! The tools that a call offers, and the constraints on answers that may call them.

use super::error::ApiError;
use crate::service::Service;
use text::{Grammar, GrammarSpec, Otherwise, Tool};

/// Whether tools are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The model decides.
    Auto,
    /// At least one tool must be called.
    Required,
    /// This tool must be called, once.
    Named(String),
}

/// The tools that a call offers, and how they may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Calls {
    pub tools: Vec<Tool>,
    pub choice: Choice,
    /// Whether an answer may contain several tool calls.
    pub parallel: bool,
}

/// The grammar that constrains the answers of a call.
#[derive(Default)]
pub struct Bound {
    pub grammar: Option<Grammar>,
    /// Requirements that the grammar enforces only in part.
    pub warnings: Vec<String>,
}

impl Bound {
    /// Wraps a grammar that was requested through `param`.
    pub fn by(grammar: Grammar, param: &str) -> Self {
        let warnings = grammar.warnings().iter();
        Self {
            warnings: warnings
                .map(|warning| format!("{param}: {warning}"))
                .collect(),
            grammar: Some(grammar),
        }
    }
}

impl Calls {
    /// Returns whether an answer consists of tool calls only.
    pub fn only(&self) -> bool {
        self.choice != Choice::Auto
    }

    /// Returns the maximum number of tool calls in an answer.
    pub fn most(&self) -> usize {
        match self.parallel && !matches!(self.choice, Choice::Named(_)) {
            true => usize::MAX,
            false => 1,
        }
    }

    /// Returns the grammar of answers. `asked` is the format that the call requests for its text.
    ///
    /// # Errors
    /// Fails if no grammar can represent a schema, or if the requested format is not JSON.
    pub async fn bind(
        &self,
        asked: Option<(&'static str, GrammarSpec)>,
        service: &Service,
    ) -> Result<Bound, ApiError> {
        let asked = match asked {
            Some(("response_format", spec)) => Some(spec),
            Some((param, _)) => {
                return Err(ApiError::invalid(param, "cannot be combined with `tools`"));
            }
            None => None,
        };
        let strict = |tool: &&Tool| tool.strict;
        let marked = !service.tool_format().marks().begin.is_empty();
        let otherwise = match (&self.choice, asked) {
            // Such an answer has no text that could have a format.
            (Choice::Required | Choice::Named(_), _) => Otherwise::Nothing,
            (Choice::Auto, Some(spec)) => Otherwise::Json(Box::new(spec)),
            (Choice::Auto, None) if marked && self.tools.iter().any(|tool| tool.strict) => {
                Otherwise::Text
            }
            (Choice::Auto, None) => {
                let unbound = self.tools.iter().find(strict).map(|tool| {
                    format!(
                        "tools: `strict` of {:?} binds calls only where `tool_choice` asks for them: this model's calls have no mark that \
                         tells them from text.",
                        tool.name
                    )
                });
                return Ok(Bound {
                    grammar: None,
                    warnings: unbound.into_iter().collect(),
                });
            }
        };
        let tools = self.tools.iter();
        let callable = tools.filter(|tool| match &self.choice {
            Choice::Named(name) => tool.name == *name,
            Choice::Auto | Choice::Required => true,
        });
        let callable = callable.cloned().collect();
        let grammar = service
            .call_grammar(callable, self.most(), otherwise)
            .await?;
        Ok(Bound::by(grammar, "tools"))
    }
}

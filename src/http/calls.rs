//! What answers of a call may do with the tools that it offers.

use super::error::ApiError;
use crate::service::Service;
use crate::text::{Grammar, GrammarSpec, Otherwise, Tool};

/// Whether tools are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The model decides.
    Auto,
    /// At least one is.
    Required,
    /// This one is, once.
    Named(String),
}

/// The tools that a call offers, and how they may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Calls {
    pub tools: Vec<Tool>,
    pub choice: Choice,
    /// Whether an answer may hold several calls.
    pub parallel: bool,
}

/// What binds the answers of a call.
#[derive(Default)]
pub struct Bound {
    pub grammar: Option<Grammar>,
    /// What is done in part.
    pub warnings: Vec<String>,
}

impl Bound {
    /// A grammar that `param` asked for.
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
    /// Returns whether an answer is nothing but calls.
    pub fn only(&self) -> bool {
        self.choice != Choice::Auto
    }

    /// Returns the calls that an answer may hold.
    pub fn most(&self) -> usize {
        match self.parallel && !matches!(self.choice, Choice::Named(_)) {
            true => usize::MAX,
            false => 1,
        }
    }

    /// Returns the grammar of answers. `asked` is the shape that the call asks for besides.
    ///
    /// # Errors
    /// Schemas that no grammar holds; another shape than JSON.
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
            // There is no text that could have a shape.
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

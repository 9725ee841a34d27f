//! The error type of judging.

use std::path::PathBuf;

use text::TextError;

/// An error of judging.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The model cannot judge; detected when the server started.
    #[error("this model cannot judge: {0}")]
    Unusable(String),
    /// A table of principles is invalid; the message names its file.
    #[error("{0}")]
    Principles(String),
    #[error("judge template: {0}")]
    Template(String),
    /// The pairs of a self-test are unusable.
    #[error("the judge's self-test: {0}")]
    SelfTest(String),
    #[error(
        "the chat template changes the user's text, so the candidates cannot be located in the prompt"
    )]
    TextRewritten,
    #[error(
        "the label {label:?} must be exactly one token after {lead_in:?}: {}it became {tokens}; choose other `labels` in \
         judge_template.toml",
        if *seam { "it changes the tokens before it, and " } else { "" }
    )]
    LabelNotOneToken {
        label: String,
        lead_in: String,
        tokens: String,
        /// Whether the label merges with the lead-in's last token.
        seam: bool,
    },
    #[error("the labels {labels:?} are the same token ({id})")]
    LabelsEqual { labels: [String; 2], id: u32 },
    #[error(
        "the judge prompt without its answers has {frame} of at most {max_tokens} tokens, which leaves no room for the answers"
    )]
    NoRoom { frame: usize, max_tokens: usize },
    #[error("a tournament needs at least one candidate")]
    NoCandidates,
    #[error("expected {expected} verdicts, one per match, but got {got}")]
    VerdictCount { expected: usize, got: usize },
    #[error(transparent)]
    Text(#[from] TextError),
}

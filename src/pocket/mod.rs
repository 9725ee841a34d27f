//! The pocket world: small English instructions whose answers a program checks.
//!
//! The default model is trained on nothing else, and measured against the checker instead of opinion. Everything
//! is drawn from numbered random streams, so a seed stands for a corpus.
//!
//! | file | what it is |
//! |---|---|
//! | [`content`] | the kinds of instruction, how contents are drawn, the held-out split |
//! | [`phrase`] | their wordings |
//! | [`solve`], [`working`], [`mistake`] | right answers and the check; steps; plausible wrong answers |
//! | [`style`] | brief, with steps, polite, in the exact format |
//! | [`task`] | an instruction with its checker |
//! | [`principle`] | what responses are judged by, and the judge's frame |
//! | [`comparison`], [`demonstration`] | what is judged, what is imitated |
//! | [`corpus`] | the training corpus and its curriculum, the held-out sets |
//! | [`anchors`] | fixed comparisons that learning may not lose |
//! | [`vocabulary`], [`tokenizer`] | the tokenizer, built from the templates |

pub mod anchors;
pub mod comparison;
pub mod content;
pub mod corpus;
pub mod demonstration;
pub mod dice;
pub mod mistake;
pub mod phrase;
pub mod principle;
pub mod solve;
pub mod style;
pub mod task;
pub mod tokenizer;
pub mod vocabulary;
pub mod words;
pub mod working;

pub use comparison::Comparison;
pub use content::{Content, Kind};
pub use corpus::CurriculumOptions;
pub use dice::Dice;
pub use principle::Principle;
pub use style::Style;
pub use task::{Grade, Split, Task};

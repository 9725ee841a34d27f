//! The pocket world: short English instructions whose answers a program can check.
//!
//! The default model is trained on nothing else, and evaluated with the checker instead of human ratings. All draws
//! come from numbered random streams, so a seed determines a corpus.
//!
//! | file | contents |
//! |---|---|
//! | [`content`] | the kinds of instruction, the draw of their contents, the held-out split |
//! | [`phrase`] | their wordings |
//! | [`solve`], [`working`], [`mistake`] | right answers and the check; steps; plausibly wrong answers |
//! | [`style`] | brief, with steps, polite, in the exact format |
//! | [`task`] | an instruction with its checker |
//! | [`principle`] | the principles of judging, and the judge's prompt |
//! | [`comparison`], [`demonstration`] | data for judging, data for imitation |
//! | [`corpus`] | the training corpus and its curriculum, the held-out sets |
//! | [`anchors`] | fixed comparisons on which learning must not lose accuracy |
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

//! The prompts of pairs: texts are cut once to the part that prompts show, and encoded once outside the threads that serve connections.

use std::borrow::Cow;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::{JudgeTask, ModelJudge};
use crate::call::{CallError, Watch, spawn_blocking_until};
use judge::{EncodedComparison, Judge, Order};
use text::EncodedParts;

/// The number of prompts that are encoded in one piece of work.
const PIECE: usize = 64;

/// An answer, whole and as prompts show it.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    whole: Arc<str>,
    shown: Arc<str>,
}

/// Two answers to compare.
pub(super) type Pair = (Candidate, Candidate);

/// The context and answers that a call compares, each cut once to what prompts show of it.
pub(super) struct Shown {
    context: Arc<str>,
    pub candidates: Vec<Candidate>,
    /// The encodings of the context, the answers and the frame between them.
    parts: Arc<EncodedParts>,
}

impl ModelJudge {
    /// Cuts the context and the answers of a call to what prompts can show.
    pub(super) async fn show(
        &self,
        task: &JudgeTask,
        candidates: Vec<Arc<str>>,
    ) -> Result<Shown, CallError> {
        /// Number of bytes that are read faster than another thread wakes up.
        const FEW: usize = 4096;
        let judge = Arc::clone(&self.judge);
        let context = task.context.clone();
        let bytes = context.iter().map(|message| message.content.len());
        let bytes = bytes.chain(candidates.iter().map(|text| text.len()));
        let few = bytes.sum::<usize>() <= FEW;
        let show = move |look: &dyn Fn() -> Result<(), CallError>| -> Result<Shown, CallError> {
            let context = judge.shown_context(&context)?.into();
            let show = |whole: Arc<str>| {
                look()?;
                let shown = match judge.shown_answer(&whole)? {
                    Cow::Borrowed(shown) if shown.len() == whole.len() => Arc::clone(&whole),
                    cut => cut.into(),
                };
                Ok(Candidate { whole, shown })
            };
            let candidates = candidates.into_iter().map(show);
            Ok(Shown {
                context,
                candidates: candidates.collect::<Result<_, CallError>>()?,
                parts: Arc::default(),
            })
        };
        match few {
            true => show(&|| Ok(())),
            false => {
                spawn_blocking_until(task.turn.deadline, move |watch| show(&|| watch.check())).await
            }
        }
    }

    /// Encodes the prompts of each pair, principle by principle in the requested orders; none for identical answers.
    pub(super) async fn encode_pairs(
        &self,
        task: &JudgeTask,
        shown: &Shown,
        pairs: &[Pair],
    ) -> Result<Vec<Option<EncodedComparison>>, CallError> {
        let judge = Arc::clone(&self.judge);
        let principles = task.principles.iter().map(|p| Some(p.text.clone()));
        let default = task.principles.is_empty().then_some(None);
        let asked: Vec<Option<String>> = principles.chain(default).collect();
        let (orders, asked) = (task.orders.reads(), Arc::<[Option<String>]>::from(asked));
        let encode = |pairs: &[Pair]| {
            let (judge, asked) = (Arc::clone(&judge), Arc::clone(&asked));
            let (context, parts) = (Arc::clone(&shown.context), Arc::clone(&shown.parts));
            let pairs = pairs.to_vec();
            spawn_blocking_until(task.turn.deadline, move |watch| {
                let encode =
                    |pair| encode_pair(&judge, (&context, &parts), pair, &asked, orders, watch);
                pairs.iter().map(encode).collect::<Result<Vec<_>, _>>()
            })
        };
        // In pieces, so that other work can run between them, and at most as many at once as there are cores.
        let pieces = pairs.chunks((PIECE / task.reads()).max(1)).map(encode);
        let pieces: Vec<_> = pieces.collect();
        let encoded: Vec<Vec<Option<EncodedComparison>>> = stream::iter(pieces)
            .buffered(rayon::current_num_threads())
            .try_collect()
            .await?;
        Ok(encoded.into_iter().flatten().collect())
    }
}

/// Encodes the prompts of a pair; none for identical answers.
fn encode_pair(
    judge: &Judge,
    (context, parts): (&str, &EncodedParts),
    (a, b): &Pair,
    asked: &[Option<String>],
    orders: &[Order],
    watch: &Watch,
) -> Result<Option<EncodedComparison>, CallError> {
    if a.whole == b.whole {
        return Ok(None);
    }
    let mut encoded = EncodedComparison::default();
    for principle in asked {
        watch.check()?;
        let shown = [&*a.shown, &*b.shown];
        judge.encode_shown(
            context,
            shown,
            principle.as_deref(),
            orders,
            parts,
            &mut encoded,
        )?;
    }
    Ok(Some(encoded))
}

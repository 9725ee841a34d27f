//! The data of one update: pairs and verdicts, and their additions to the log.

use super::config::LearnConfig;
use super::pairs::{Dropped, JudgedPair, PinnedJudge};
use super::rollout::{Answer, Prompt};
use judge::PairVerdict;
use traffic_log::{Addition, LoggedPair, LoggedVerdict, PairSource, RecordId, Sample};
use train::dpo::PairExample;

/// A pair on its way to the trainer.
#[derive(Debug, Clone)]
pub struct UpdatePair {
    pub record: RecordId,
    pub prompt: Vec<u32>,
    pub pair: JudgedPair,
    /// How the pair was made; none for a logged pair, from an earlier stage or from a caller.
    pub source: Option<PairSource>,
}

impl UpdatePair {
    pub fn example(&self) -> PairExample {
        let ids = |answer: &Answer| answer.ids.clone();
        PairExample {
            label: self.pair.label,
            ..PairExample::new(
                self.prompt.clone(),
                ids(&self.pair.chosen),
                ids(&self.pair.rejected),
            )
        }
    }

    /// Returns the log's entry for the pair. A pair without a judge has no verdict.
    fn addition(&self, source: PairSource, config: &LearnConfig, judge: &PinnedJudge) -> Addition {
        let JudgedPair {
            chosen,
            rejected,
            verdict,
            ..
        } = &self.pair;
        Addition {
            samples: [chosen, rejected]
                .map(|answer| sample(config, answer))
                .into(),
            verdicts: judge.logged([0, 1], verdict).into_iter().collect(),
            pairs: vec![LoggedPair {
                chosen: 0,
                rejected: 1,
                margin: verdict.p,
                source,
                principles: judge.principle_names(),
            }],
            corroborating: Vec::new(),
        }
    }
}

impl PinnedJudge {
    fn principle_names(&self) -> Vec<String> {
        self.principles.iter().map(|p| p.name.clone()).collect()
    }

    /// Returns a verdict in the log's form, on the samples at these indices; none if the judge did not read both orders.
    pub fn logged(&self, [a, b]: [usize; 2], verdict: &PairVerdict) -> Option<LoggedVerdict> {
        let first = |shown: [usize; 2]| {
            let read = verdict.orders.iter().find(|read| read.shown == shown)?;
            Some(match shown[0] {
                0 => read.p_first,
                _ => 1.0 - read.p_first,
            })
        };
        Some(LoggedVerdict {
            a,
            b,
            orders: [first([0, 1])?, first([1, 0])?],
            p: verdict.p,
            consistent: verdict.consistent == Some(true),
            label_mass: verdict.label_mass,
            principles: self.principle_names(),
            version: self.weights.name().to_string(),
        })
    }
}

fn sample(config: &LearnConfig, answer: &Answer) -> Sample {
    let rollout = &config.rollout;
    Sample {
        token_ids: answer.ids.clone(),
        text: answer.text.clone(),
        logprobs: answer.logprobs.clone(),
        seed: Some(answer.seed),
        sampling: serde_json::json!({
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "max_tokens": rollout.max_tokens,
        }),
        finish_reason: Some(if answer.complete { "stop" } else { "length" }.to_owned()),
        version: Some(answer.weights.clone()),
    }
}

/// A logged prompt that is to be answered again.
#[derive(Debug, Clone)]
pub struct DrawnPrompt {
    pub record: RecordId,
    pub prompt: Prompt,
    /// Whether it is a conversation, rather than plain text.
    pub chat: bool,
}

/// The data of one update.
#[derive(Debug, Default)]
pub struct Batch {
    pub pairs: Vec<UpdatePair>,
    pub dropped: Vec<Dropped>,
    /// The judge's verdicts on callers' preferences between logged samples.
    pub corroborating: Vec<(RecordId, LoggedVerdict)>,
    /// Log-ratios, in nats, of the answering weights and the base on the answers to the bare prompts: see [`divergence`].
    ///
    /// [`divergence`]: super::gate::measure::divergence
    pub drift: Vec<f64>,
}

impl DrawnPrompt {
    /// Returns whether its pair is sampled under opposed principles, for this share of prompts. The decision is derived from the seed, so
    /// it is the same after a restart. Plain text has no place for a principle and never qualifies.
    pub(super) fn is_contrasted(&self, share: f64) -> bool {
        self.chat && ((self.prompt.seed >> 20) % 10_000) as f64 / 10_000.0 < share
    }
}

impl Batch {
    pub fn extend(&mut self, other: Self) {
        self.pairs.extend(other.pairs);
        self.dropped.extend(other.dropped);
        self.corroborating.extend(other.corroborating);
        self.drift.extend(other.drift);
    }

    /// Returns the log's entries for the pairs that the trainer accepted, and for the judge's verdicts on feedback.
    pub fn additions(
        &self,
        taken: &[UpdatePair],
        config: &LearnConfig,
        judge: &PinnedJudge,
    ) -> Vec<(RecordId, Addition)> {
        let fresh = taken.iter().filter_map(|pair| Some((pair, pair.source?)));
        let fresh =
            fresh.map(|(pair, source)| (pair.record.clone(), pair.addition(source, config, judge)));
        let read = self.corroborating.iter().map(|(record, verdict)| {
            let addition = Addition {
                corroborating: vec![verdict.clone()],
                ..Addition::default()
            };
            (record.clone(), addition)
        });
        fresh.chain(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principles_are_for_conversations() {
        let drawn = |chat| DrawnPrompt {
            record: RecordId::parse(&"0".repeat(26)).unwrap(),
            prompt: Prompt {
                messages: Vec::new(),
                ids: vec![1],
                seed: 1,
            },
            chat,
        };
        assert!(drawn(true).is_contrasted(1.0) && !drawn(true).is_contrasted(0.0));
        assert!(!drawn(false).is_contrasted(1.0));
    }
}

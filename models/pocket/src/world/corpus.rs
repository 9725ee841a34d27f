//! The default model's corpus: preference pairs in training order, and the held-out sets.
//!
//! Record `i` is drawn from random stream `i` of the seed, so a corpus is a function of its seed, size and options.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::comparison::{self, Comparison, Source};
use super::content::Kind;
use super::demonstration::{Demonstration, demonstration, system_message};
use super::dice::Dice;
use super::mistake::Severity;
use super::principle::Principle;
use super::task::{LEVEL_WEIGHTS, Split, Task};
use judge::PreferencePair;
use text::{Message, Role};

/// The course of a corpus from its first record to its last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CurriculumOptions {
    pub kinds: Vec<Kind>,
    /// Weights of the four levels at the start, and from `ramp` on.
    pub first_levels: [f64; 4],
    pub last_levels: [f64; 4],
    /// Weights of subtle, plain and blatant mistakes at the start, and from twice `ramp` on.
    pub first_severities: [f64; 3],
    pub last_severities: [f64; 3],
    /// The share of the corpus after which instructions have their full difficulty.
    pub ramp: f64,
    /// The share of comparisons among the records, at the start and from half of `ramp` on.
    pub first_judged: f64,
    pub last_judged: f64,
    /// Shares of correctness, single-principle and combination pairs among the comparisons.
    pub mix: [f64; 3],
    /// How often the right answer of a correctness pair is imitated too.
    pub imitated: f64,
    /// How often a demonstration has a system message.
    pub asked: f64,
    /// How often a demonstration without one is wrong, from twice `ramp` on (none are at the start).
    pub demonstrated_wrong: f64,
    /// The size of each held-out set.
    pub held_out: usize,
}

impl Default for CurriculumOptions {
    fn default() -> Self {
        Self {
            kinds: Kind::ALL.to_vec(),
            first_levels: [6.0, 3.0, 1.0, 0.0],
            last_levels: LEVEL_WEIGHTS,
            first_severities: [0.15, 0.25, 0.6],
            last_severities: [0.6, 0.25, 0.15],
            ramp: 0.25,
            first_judged: 0.25,
            last_judged: 0.58,
            mix: [0.74, 0.13, 0.13],
            imitated: 0.4,
            asked: 0.35,
            demonstrated_wrong: 0.3,
            held_out: 600,
        }
    }
}

impl CurriculumOptions {
    /// Returns options for a probe: both skills improve within a minute of training. The corpus has a few kinds, whose checks are
    /// copies or single comparisons, with easy instructions, blatant mistakes and hardly any style.
    pub fn probe() -> Self {
        Self {
            kinds: vec![Kind::Largest, Kind::Ends, Kind::Spell],
            first_levels: [1.0, 0.0, 0.0, 0.0],
            last_levels: [1.0, 0.0, 0.0, 0.0],
            first_severities: [0.0, 0.0, 1.0],
            last_severities: [0.0, 0.0, 1.0],
            mix: [0.6, 0.4, 0.0],
            asked: 0.0,
            demonstrated_wrong: 0.0,
            held_out: 200,
            ..Self::default()
        }
    }

    /// Returns the distribution at progress `t` (0 at the first record, 1 at the last).
    fn source(&self, t: f64) -> Source<'_> {
        let mut levels = [0.0; 4];
        let mut severities = [0.0; 3];
        for (i, level) in levels.iter_mut().enumerate() {
            *level = blend(self.first_levels[i], self.last_levels[i], t / self.ramp);
        }
        for (i, severity) in severities.iter_mut().enumerate() {
            *severity = blend(
                self.first_severities[i],
                self.last_severities[i],
                t / (2.0 * self.ramp),
            );
        }
        Source {
            split: Split::Train,
            kinds: &self.kinds,
            levels,
            severities,
            styled: blend(0.3, 1.0, 2.0 * t / self.ramp),
        }
    }
}

fn blend(from: f64, to: f64, by: f64) -> f64 {
    let by = by.clamp(0.0, 1.0);
    from + (to - from) * by
}

/// Returns record `index` of `total`.
pub fn record(
    seed: u64,
    index: usize,
    total: usize,
    options: &CurriculumOptions,
) -> PreferencePair {
    let dice = &mut Dice::new(seed, index as u64);
    let t = index as f64 / total.max(1) as f64;
    let source = options.source(t);
    let judged = blend(
        options.first_judged,
        options.last_judged,
        2.0 * t / options.ramp,
    );
    if !dice.chance(judged) {
        let wrong = blend(
            0.0,
            options.demonstrated_wrong,
            (t / options.ramp - 1.0).max(0.0),
        );
        let shown = demonstration(&source, options.asked, wrong, dice);
        return imitation(index, shown, dice);
    }
    match dice.weighted(&options.mix) {
        0 => {
            let pair = comparison::correctness(&source, dice);
            let sft = dice.chance(options.imitated);
            judgement(&format!("{index}-correct"), pair, sft)
        }
        1 => {
            let principle = Principle::ALL[1 + dice.below(4)];
            let pair = comparison::single(principle, &source, dice);
            judgement(&format!("{index}-single"), pair, false)
        }
        _ => {
            let pair = comparison::trained_combination(&source, dice);
            judgement(&format!("{index}-combination"), pair, false)
        }
    }
}

fn imitation(index: usize, shown: Demonstration, dice: &mut Dice) -> PreferencePair {
    let mut messages: Vec<Message> = system_message(&shown.requests)
        .map(|text| Message::new(Role::System, text))
        .into_iter()
        .collect();
    messages.push(Message::new(Role::User, shown.task.prompt.clone()));
    // No training reads the rejected side of a pair that is only imitated. It is still clearly worse.
    let rejected = shown
        .task
        .wrong(Default::default(), Severity::Blatant, dice);
    PreferencePair {
        id: Some(format!("{index}-shown-{}", shown.task.kind().name())),
        messages,
        chosen: shown.response,
        rejected,
        principles: Vec::new(),
        rationale: None,
        sft: true,
        judge: false,
        plain: false,
        margin: None,
        source: None,
    }
}

/// Converts a comparison to a record.
pub fn judgement(id: &str, pair: Comparison, sft: bool) -> PreferencePair {
    PreferencePair {
        id: Some(format!("{id}-{}", pair.task.kind().name())),
        messages: vec![Message::new(Role::User, pair.task.prompt)],
        chosen: pair.chosen,
        rejected: pair.rejected,
        principles: pair
            .principles
            .iter()
            .map(|p| p.name().to_string())
            .collect(),
        rationale: None,
        sft,
        judge: true,
        plain: false,
        margin: None,
        source: None,
    }
}

/// First random stream of held-out records, far above those of any training corpus.
const HELD_OUT_STREAM: u64 = 1 << 40;

/// Returns `n` held-out instructions of the given kinds, in the world's own distribution.
pub fn held_out_tasks(seed: u64, n: usize, kinds: &[Kind], levels: &[f64; 4]) -> Vec<Task> {
    (0..n as u64)
        .map(|i| {
            let dice = &mut Dice::new(seed, HELD_OUT_STREAM + i);
            Task::sample_from(Split::HeldOut, kinds, levels, dice)
        })
        .collect()
}

/// The held-out sets of comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeldOut {
    Correct,
    Single(Principle),
    TrainedCombination,
    HeldOutCombination,
}

/// Returns `n` held-out comparisons of one set.
pub fn held_out_comparisons(
    seed: u64,
    set: HeldOut,
    n: usize,
    options: &CurriculumOptions,
) -> Vec<Comparison> {
    let source = Source {
        split: Split::HeldOut,
        ..options.source(1.0)
    };
    let lane = match set {
        HeldOut::Correct => 1,
        HeldOut::TrainedCombination => 2,
        HeldOut::HeldOutCombination => 3,
        HeldOut::Single(principle) => 4 + principle as u64,
    };
    (0..n as u64)
        .map(|i| {
            let dice = &mut Dice::new(seed, HELD_OUT_STREAM * (1 + lane) + i);
            match set {
                HeldOut::Correct => comparison::correctness(&source, dice),
                HeldOut::Single(principle) => comparison::single(principle, &source, dice),
                HeldOut::TrainedCombination => comparison::trained_combination(&source, dice),
                HeldOut::HeldOutCombination => comparison::held_out_combination(&source, dice),
            }
        })
        .collect()
}

/// Statistics of a corpus written by [`write`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CorpusStatistics {
    pub records: usize,
    pub imitated: usize,
    pub judged: usize,
    /// Number of records by type (`correct`, `single`, `combination`, `shown`) and kind of instruction.
    pub by_kind: BTreeMap<String, usize>,
}

/// Writes `pairs.jsonl` in training order and the held-out sets into a directory.
///
/// # Errors
/// Returns errors of the file system.
pub fn write(
    dir: &Path,
    seed: u64,
    pairs: usize,
    options: &CurriculumOptions,
) -> std::io::Result<CorpusStatistics> {
    std::fs::create_dir_all(dir)?;
    let mut statistics = CorpusStatistics::default();
    let mut out = BufWriter::new(File::create(dir.join("pairs.jsonl"))?);
    for index in 0..pairs {
        let pair = record(seed, index, pairs, options);
        statistics.records += 1;
        statistics.imitated += usize::from(pair.sft);
        statistics.judged += usize::from(pair.judge);
        if let Some((_, what)) = pair.id.as_deref().and_then(|id| id.split_once('-')) {
            *statistics.by_kind.entry(what.to_string()).or_default() += 1;
        }
        write_line(&mut out, &pair)?;
    }
    out.flush()?;
    let singles = Principle::ALL[1..].iter().map(|&p| HeldOut::Single(p));
    let sets = [
        ("heldout-correct", vec![HeldOut::Correct]),
        ("heldout-principles", singles.collect()),
        ("heldout-combinations", vec![HeldOut::TrainedCombination]),
        (
            "heldout-new-combinations",
            vec![HeldOut::HeldOutCombination],
        ),
    ];
    for (name, sets) in sets {
        let mut out = BufWriter::new(File::create(dir.join(format!("{name}.jsonl")))?);
        let each = options.held_out.div_ceil(sets.len());
        for set in sets {
            for (i, pair) in held_out_comparisons(seed, set, each, options)
                .into_iter()
                .enumerate()
            {
                write_line(&mut out, &judgement(&format!("{i}-heldout"), pair, false))?;
            }
        }
        out.flush()?;
    }
    Ok(statistics)
}

fn write_line(out: &mut impl Write, pair: &PreferencePair) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, pair)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_is_a_function_of_its_seed() {
        let options = CurriculumOptions::default();
        for index in [0, 17, 4000, 9999] {
            let one = record(1, index, 10_000, &options);
            assert_eq!(one, record(1, index, 10_000, &options));
            assert_ne!(one, record(2, index, 10_000, &options));
        }
    }

    #[test]
    fn the_files_are_written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = CurriculumOptions::probe();
        options.held_out = 20;
        let statistics = write(dir.path(), 1, 300, &options).unwrap();
        assert_eq!(statistics.records, 300);
        assert!(statistics.judged > 80 && statistics.imitated > 80);
        for (name, lines) in [
            ("pairs", 300),
            ("heldout-correct", 20),
            ("heldout-principles", 20),
            ("heldout-combinations", 20),
            ("heldout-new-combinations", 20),
        ] {
            let text = std::fs::read_to_string(dir.path().join(format!("{name}.jsonl"))).unwrap();
            let pairs: Vec<PreferencePair> = text
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            assert_eq!(pairs.len(), lines, "{name}");
        }
    }

    #[test]
    fn no_training_prompt_is_a_held_out_one_and_no_held_out_combination_is_named() {
        let options = CurriculumOptions::default();
        let held: std::collections::HashSet<String> =
            held_out_tasks(1, 1000, &Kind::ALL, &LEVEL_WEIGHTS)
                .into_iter()
                .map(|task| task.prompt)
                .collect();
        for index in 0..10_000 {
            let pair = record(1, index, 10_000, &options);
            let prompt = &pair.messages.last().unwrap().content;
            assert!(!held.contains(prompt), "{prompt}");
            if pair.principles.len() > 1 {
                let named: Vec<Principle> = pair
                    .principles
                    .iter()
                    .map(|name| Principle::from_name(name).unwrap())
                    .collect();
                assert!(
                    super::super::principle::TRAINED_PAIRS
                        .iter()
                        .any(|known| named.len() == 2 && named.iter().all(|p| known.contains(p)))
                );
            }
        }
    }

    #[test]
    fn it_starts_easy_and_ends_hard() {
        let options = CurriculumOptions::default();
        let mean_length = |from: usize| {
            (from..from + 2000)
                .map(|i| {
                    record(1, i, 20_000, &options)
                        .messages
                        .last()
                        .map_or(0, |m| m.content.len())
                })
                .sum::<usize>() as f64
                / 2000.0
        };
        let (first, last) = (mean_length(0), mean_length(18_000));
        assert!(first + 0.7 < last, "{first} {last}");
    }
}

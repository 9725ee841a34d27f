//! The policy's own samples: their accuracy, and how well the judge finds the right ones.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::PocketOptions;
use crate::world::{Kind, Task};
use judge::{Comparison, Method, Verdict, Winner, run_many};
use selfjudge::eval::stats::{Cluster, Estimate, bootstrap};
use selfjudge::eval::{EvalError, Subject};
use text::{Message, Role};

/// Measurements on the policy's own samples. Accuracies are between 0 and 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnSamples {
    pub sampled: Estimate,
    /// Sampled accuracy of each seed separately.
    pub by_seed: Vec<f64>,
    pub by_kind: Vec<KindRow>,
    pub greedy: Estimate,
    /// Sampled accuracy of samples that show their steps, and of bare ones.
    pub with_steps: Option<Estimate>,
    pub brief: Option<Estimate>,
    /// Share of pairs with exactly one right answer in which the judge, averaged over both orders, prefers it.
    pub judge: Option<Estimate>,
    /// Share of those pairs in which the two orders name different answers.
    pub disagreement: Option<Estimate>,
    /// Mean probability of the two labels in those pairs.
    pub label_mass: Option<Estimate>,
    pub best_of: Vec<BestOf>,
}

/// One kind of instruction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRow {
    pub kind: Kind,
    pub sampled: Estimate,
    pub greedy: Estimate,
    pub judge: Option<Estimate>,
}

/// Best of `n` samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BestOf {
    pub n: usize,
    /// Accuracy of the tournament's winner.
    pub tournament: Estimate,
    /// Accuracy of a random sample.
    pub random: Estimate,
    /// Share of groups with at least one right sample.
    pub oracle: Estimate,
    /// Tournament minus random, on the same instructions.
    pub gain: Estimate,
}

/// Cached verdicts, by instruction and the two texts in order.
struct Verdicts<'a, S> {
    subject: &'a mut S,
    tasks: &'a [Task],
    known: HashMap<(usize, String, String), Verdict>,
}

impl<S: Subject> Verdicts<'_, S> {
    /// Returns verdicts on pairs of texts, relative to the first text. Equal texts tie without being judged.
    fn of(&mut self, pairs: &[(usize, &str, &str)]) -> Result<Vec<Verdict>, EvalError> {
        let key = |&(task, a, b): &(usize, &str, &str)| {
            let (a, b) = if a <= b { (a, b) } else { (b, a) };
            (task, a.to_string(), b.to_string())
        };
        let (mut new, mut asked) = (Vec::new(), HashSet::new());
        for pair in pairs {
            let key = key(pair);
            if key.1 != key.2 && !self.known.contains_key(&key) && asked.insert(key.clone()) {
                new.push(key);
            }
        }
        let comparisons: Vec<Comparison> = new
            .iter()
            .map(|(task, a, b)| Comparison {
                context: vec![Message::new(Role::User, self.tasks[*task].prompt.clone())],
                a: a.clone(),
                b: b.clone(),
                principles: Vec::new(),
            })
            .collect();
        let verdicts = self.subject.compare(&comparisons)?;
        self.known.extend(new.into_iter().zip(verdicts));
        Ok(pairs
            .iter()
            .map(|pair| {
                if pair.1 == pair.2 {
                    return TIE;
                }
                let verdict = self.known[&key(pair)];
                if pair.1 <= pair.2 {
                    verdict
                } else {
                    turned(verdict)
                }
            })
            .collect())
    }
}

/// The verdict on equal texts: the bracket's coin decides, so copies of an answer keep their weight in the tournament.
const TIE: Verdict = Verdict {
    p: 0.5,
    winner: Winner::Tie,
    consistent: true,
    label_mass: 1.0,
    orders: [0.5, 0.5],
    cut: false,
};

/// Returns the same verdict relative to the other answer.
fn turned(verdict: Verdict) -> Verdict {
    let [first, second] = verdict.orders;
    Verdict {
        p: 1.0 - verdict.p,
        winner: match verdict.winner {
            Winner::A => Winner::B,
            Winner::B => Winner::A,
            Winner::Tie => Winner::Tie,
        },
        orders: [1.0 - second, 1.0 - first],
        ..verdict
    }
}

fn conversation(task: &Task) -> Vec<Message> {
    vec![Message::new(Role::User, task.prompt.clone())]
}

/// The samples of one seed: `texts[task][sample]`, and whether each is right.
pub(super) struct Drawn {
    pub texts: Vec<Vec<String>>,
    pub right: Vec<Vec<bool>>,
}

pub(super) fn draw<S: Subject>(
    subject: &mut S,
    tasks: &[Task],
    samples: usize,
    temperature: f32,
    seed: u64,
) -> Result<Drawn, EvalError> {
    let conversations: Vec<Vec<Message>> = tasks
        .iter()
        .flat_map(|task| std::iter::repeat_n(conversation(task), samples))
        .collect();
    let answers = subject.answer(&conversations, temperature, seed)?;
    if answers.len() != conversations.len() {
        return Err(EvalError::Options(
            "the subject gave another number of answers than asked",
        ));
    }
    let mut answers = answers.into_iter();
    let texts: Vec<Vec<String>> = tasks
        .iter()
        .map(|_| answers.by_ref().take(samples).collect())
        .collect();
    let right = tasks
        .iter()
        .zip(&texts)
        .map(|(task, texts)| texts.iter().map(|text| task.check(text).correct).collect())
        .collect();
    Ok(Drawn { texts, right })
}

/// Runs all measurements that need the policy's own samples.
pub(super) fn measure<S: Subject>(
    subject: &mut S,
    tasks: &[Task],
    options: &PocketOptions,
) -> Result<OwnSamples, EvalError> {
    let greedy = draw(subject, tasks, 1, 0.0, 0)?;
    let greedy = clusters(tasks.len(), |task, cluster| {
        cluster.push(share(greedy.right[task][0]));
    });
    let mut sampled = vec![Cluster::default(); tasks.len()];
    let mut styled = [sampled.clone(), sampled.clone()];
    let mut reads = [sampled.clone(), sampled.clone(), sampled.clone()];
    let sizes: Vec<usize> = (0..=options.samples.ilog2()).map(|k| 1 << k).collect();
    let mut rows = vec![[(); 4].map(|()| sampled.clone()); sizes.len()];
    let mut by_seed = Vec::new();
    for &seed in &options.seeds {
        let drawn = draw(subject, tasks, options.samples, 1.0, seed)?;
        let (mut right, mut count) = (0.0, 0.0);
        for (task, cluster) in sampled.iter_mut().enumerate() {
            for (text, &is_right) in drawn.texts[task].iter().zip(&drawn.right[task]) {
                let value = share(is_right);
                cluster.push(value);
                right += value;
                count += 1.0;
                let grade = tasks[task].check(text);
                if grade.steps || grade.brief {
                    styled[usize::from(grade.brief)][task].push(value);
                }
            }
        }
        by_seed.push(right / count);
        let mut verdicts = Verdicts {
            subject,
            tasks,
            known: HashMap::new(),
        };
        own_pairs(&mut verdicts, &drawn, &mut reads)?;
        for (&n, row) in sizes.iter().zip(&mut rows) {
            best_of(&mut verdicts, &drawn, n, seed, row)?;
        }
        tracing::info!(seed, "own samples measured");
    }
    let estimate = |clusters: &[Cluster]| {
        bootstrap(clusters).ok_or(EvalError::Options("nothing was measured"))
    };
    let of_kind = |clusters: &[Cluster], kind: Kind| -> Vec<Cluster> {
        let zipped = tasks.iter().zip(clusters);
        zipped
            .filter(|(task, _)| task.kind() == kind)
            .map(|(_, cluster)| *cluster)
            .collect()
    };
    let by_kind = Kind::ALL
        .into_iter()
        .filter_map(|kind| {
            Some(KindRow {
                kind,
                sampled: bootstrap(&of_kind(&sampled, kind))?,
                greedy: bootstrap(&of_kind(&greedy, kind))?,
                judge: bootstrap(&of_kind(&reads[0], kind)),
            })
        })
        .collect();
    let best_of = sizes
        .iter()
        .zip(&rows)
        .map(|(&n, [tournament, random, oracle, gain])| {
            Ok(BestOf {
                n,
                tournament: estimate(tournament)?,
                random: estimate(random)?,
                oracle: estimate(oracle)?,
                gain: estimate(gain)?,
            })
        })
        .collect::<Result<Vec<_>, EvalError>>()?;
    Ok(OwnSamples {
        sampled: estimate(&sampled)?,
        by_seed,
        by_kind,
        greedy: estimate(&greedy)?,
        with_steps: bootstrap(&styled[0]),
        brief: bootstrap(&styled[1]),
        judge: bootstrap(&reads[0]),
        disagreement: bootstrap(&reads[1]),
        label_mass: bootstrap(&reads[2]),
        best_of,
    })
}

/// Judges adjacent samples of which exactly one is right: accuracy, disagreement of the orders, label mass.
fn own_pairs<S: Subject>(
    verdicts: &mut Verdicts<'_, S>,
    drawn: &Drawn,
    reads: &mut [Vec<Cluster>; 3],
) -> Result<(), EvalError> {
    let mut pairs = Vec::new();
    for (task, (texts, right)) in drawn.texts.iter().zip(&drawn.right).enumerate() {
        for (texts, right) in texts.chunks_exact(2).zip(right.chunks_exact(2)) {
            // The right one comes first; the judge reads both orders in any case.
            if right[0] && !right[1] {
                pairs.push((task, texts[0].as_str(), texts[1].as_str()));
            } else if right[1] && !right[0] {
                pairs.push((task, texts[1].as_str(), texts[0].as_str()));
            }
        }
    }
    for (pair, verdict) in pairs.iter().zip(verdicts.of(&pairs)?) {
        reads[0][pair.0].push(match verdict.winner {
            Winner::A => 1.0,
            Winner::Tie => 0.5,
            Winner::B => 0.0,
        });
        reads[1][pair.0].push(share(!verdict.consistent));
        reads[2][pair.0].push(f64::from(verdict.label_mass));
    }
    Ok(())
}

/// Runs tournaments over every group of `n` adjacent samples.
fn best_of<S: Subject>(
    verdicts: &mut Verdicts<'_, S>,
    drawn: &Drawn,
    n: usize,
    seed: u64,
    row: &mut [Vec<Cluster>; 4],
) -> Result<(), EvalError> {
    struct Group<'d> {
        task: usize,
        texts: &'d [String],
        right: &'d [bool],
    }
    let mut groups = Vec::new();
    for (task, (texts, right)) in drawn.texts.iter().zip(&drawn.right).enumerate() {
        let chunks = texts.chunks_exact(n).zip(right.chunks_exact(n));
        groups.extend(chunks.map(|(texts, right)| Group { task, texts, right }));
    }
    let sizes: Vec<usize> = groups.iter().map(|group| group.texts.len()).collect();
    let standings = run_many(&sizes, Method::Knockout, seed, |duels| {
        let pairs: Vec<(usize, &str, &str)> = duels
            .iter()
            .map(|duel| {
                let group = &groups[duel.bracket];
                let [first, second] = [duel.first, duel.second].map(|i| group.texts[i].as_str());
                (group.task, first, second)
            })
            .collect();
        verdicts.of(&pairs)
    })?;
    for (group, standing) in groups.iter().zip(standings) {
        let won = share(group.right[standing.winner]);
        let random = group.right.iter().map(|&r| share(r)).sum::<f64>() / n as f64;
        let any = share(group.right.contains(&true));
        let values = [won, random, any, won - random];
        for (clusters, value) in row.iter_mut().zip(values) {
            clusters[group.task].push(value);
        }
    }
    Ok(())
}

fn clusters(n: usize, mut fill: impl FnMut(usize, &mut Cluster)) -> Vec<Cluster> {
    let mut clusters = vec![Cluster::default(); n];
    for (index, cluster) in clusters.iter_mut().enumerate() {
        fill(index, cluster);
    }
    clusters
}

fn share(right: bool) -> f64 {
    f64::from(u8::from(right))
}

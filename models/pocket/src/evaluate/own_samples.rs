//! Measurements on the policy's own samples: their accuracy, and the judge's choice among them.

use serde::{Deserialize, Serialize};

use super::PocketOptions;
use crate::world::{Kind, Task};
use judge::Comparison;
use selfjudge::{
    eval::stats::{Cluster, Estimate, bootstrap},
    eval::{Contest, EvalError, Subject},
};
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
        own_pairs(subject, tasks, &drawn, &mut reads)?;
        for (&n, row) in sizes.iter().zip(&mut rows) {
            best_of(subject, tasks, &drawn, n, seed, row)?;
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
    subject: &mut S,
    tasks: &[Task],
    drawn: &Drawn,
    reads: &mut [Vec<Cluster>; 3],
) -> Result<(), EvalError> {
    let (mut of, mut pairs) = (Vec::new(), Vec::new());
    for (task, (texts, right)) in drawn.texts.iter().zip(&drawn.right).enumerate() {
        for (texts, right) in texts.chunks_exact(2).zip(right.chunks_exact(2)) {
            // The right one comes first; the judge reads both orders in any case.
            let (chosen, rejected) = match right {
                [true, false] => (&texts[0], &texts[1]),
                [false, true] => (&texts[1], &texts[0]),
                _ => continue,
            };
            of.push(task);
            pairs.push(Comparison {
                context: conversation(&tasks[task]),
                a: chosen.clone(),
                b: rejected.clone(),
                principles: Vec::new(),
            });
        }
    }
    for (task, verdict) in of.into_iter().zip(subject.compare(&pairs)?) {
        reads[0][task].push(match verdict.winner {
            Some(0) => 1.0,
            None => 0.5,
            Some(_) => 0.0,
        });
        reads[1][task].push(share(verdict.consistent == Some(false)));
        reads[2][task].push(f64::from(verdict.label_mass));
    }
    Ok(())
}

/// Runs tournaments over every group of `n` adjacent samples.
fn best_of<S: Subject>(
    subject: &mut S,
    tasks: &[Task],
    drawn: &Drawn,
    n: usize,
    seed: u64,
    row: &mut [Vec<Cluster>; 4],
) -> Result<(), EvalError> {
    let (mut groups, mut contests) = (Vec::new(), Vec::new());
    for (task, (texts, right)) in drawn.texts.iter().zip(&drawn.right).enumerate() {
        for (texts, right) in texts.chunks_exact(n).zip(right.chunks_exact(n)) {
            contests.push(Contest {
                context: conversation(&tasks[task]),
                candidates: texts.to_vec(),
                seed: seed.wrapping_add(contests.len() as u64),
            });
            groups.push((task, right));
        }
    }
    for ((task, right), winner) in groups.into_iter().zip(subject.winners(&contests)?) {
        let won = share(right[winner]);
        let random = right.iter().map(|&r| share(r)).sum::<f64>() / n as f64;
        let any = share(right.contains(&true));
        let values = [won, random, any, won - random];
        for (clusters, value) in row.iter_mut().zip(values) {
            clusters[task].push(value);
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

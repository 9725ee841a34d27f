//! Measurements of the principles: the judge's agreement with the program under each, and the policy's compliance with them.

use serde::{Deserialize, Serialize};

use super::PocketOptions;
use crate::world::comparison::Comparison;
use crate::world::corpus::{HeldOut, held_out_comparisons};
use crate::world::demonstration::{Request, system_message};
use crate::world::{CurriculumOptions, Principle, Task};
use judge::Comparison as Asked;
use selfjudge::{
    eval::stats::{Cluster, Estimate, bootstrap},
    eval::{EvalError, Subject},
};
use text::{Message, Role};

/// The rate at which the judge's preference agrees with the program's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrincipleReport {
    /// The principle, or the set of combinations.
    pub name: String,
    pub agreement: Estimate,
    pub disagreement: Estimate,
    pub label_mass: Estimate,
    /// The agreement for each combination of a set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<(String, Estimate)>,
}

/// The rate at which the policy follows a sentence of its system message, and the rate without that sentence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Following {
    pub sentence: String,
    pub asked: Estimate,
    pub unasked: Estimate,
    /// Sampled accuracy under that system message.
    pub accuracy: Estimate,
}

/// Measures the five principles, then trained and held-out combinations.
pub(super) fn measure<S: Subject>(
    subject: &mut S,
    options: &PocketOptions,
) -> Result<Vec<PrincipleReport>, EvalError> {
    let world = CurriculumOptions::default();
    let mut sets = vec![("correct".to_string(), HeldOut::Correct)];
    sets.extend(Principle::ALL[1..].iter().map(|&principle| {
        let name = principle.name().to_string();
        (name, HeldOut::Single(principle))
    }));
    sets.push(("trained combinations".into(), HeldOut::TrainedCombination));
    sets.push(("held-out combinations".into(), HeldOut::HeldOutCombination));
    sets.into_iter()
        .map(|(name, set)| {
            let pairs = held_out_comparisons(options.world_seed, set, options.comparisons, &world);
            agreement(subject, name, &pairs)
        })
        .collect()
}

fn agreement<S: Subject>(
    subject: &mut S,
    name: String,
    pairs: &[Comparison],
) -> Result<PrincipleReport, EvalError> {
    // Both orders are read and averaged, so the position of the better one does not matter.
    let asked: Vec<Asked> = pairs
        .iter()
        .map(|pair| Asked {
            context: vec![Message::new(Role::User, pair.task.prompt.clone())],
            a: pair.chosen.clone(),
            b: pair.rejected.clone(),
            principles: pair
                .principles
                .iter()
                .map(|p| p.name().to_string())
                .collect(),
        })
        .collect();
    let verdicts = subject.compare(&asked)?;
    let observe = |value: &dyn Fn(usize) -> f64| {
        let clusters: Vec<Cluster> = (0..verdicts.len())
            .map(|i| Cluster {
                sum: value(i),
                count: 1,
            })
            .collect();
        bootstrap(&clusters).ok_or(EvalError::Options("no comparisons to measure on"))
    };
    let agrees = |i: usize| match verdicts[i].winner {
        Some(0) => 1.0,
        None => 0.5,
        Some(_) => 0.0,
    };
    let combination = |pair: &Comparison| {
        let mut named = pair.principles.clone();
        named.sort();
        let names: Vec<&str> = named.iter().map(|p| p.name()).collect();
        names.join(" and ")
    };
    let mut parts: Vec<(String, Vec<Cluster>)> = Vec::new();
    for (i, pair) in pairs.iter().enumerate() {
        let name = combination(pair);
        let cluster = Cluster {
            sum: agrees(i),
            count: 1,
        };
        match parts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, clusters)) => clusters.push(cluster),
            None => parts.push((name, vec![cluster])),
        }
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    let parts: Vec<(String, Estimate)> = parts
        .into_iter()
        .filter_map(|(name, clusters)| Some((name, bootstrap(&clusters)?)))
        .collect();
    Ok(PrincipleReport {
        name,
        agreement: observe(&agrees)?,
        disagreement: observe(&|i| f64::from(u8::from(verdicts[i].consistent == Some(false))))?,
        label_mass: observe(&|i| f64::from(verdicts[i].label_mass))?,
        parts: if parts.len() > 1 { parts } else { Vec::new() },
    })
}

/// Measures every sentence that a system message may contain, on the first instructions of the set.
pub(super) fn following<S: Subject>(
    subject: &mut S,
    tasks: &[Task],
    options: &PocketOptions,
) -> Result<Vec<Following>, EvalError> {
    let tasks = &tasks[..options.following.min(tasks.len())];
    let seed = options.seeds.first().copied().unwrap_or(0);
    let mut grades = |system: Option<String>| {
        let conversations: Vec<Vec<Message>> = tasks
            .iter()
            .map(|task| {
                let system = system.clone().map(|text| Message::new(Role::System, text));
                let user = Message::new(Role::User, task.prompt.clone());
                system.into_iter().chain([user]).collect()
            })
            .collect();
        let answers = subject.answer(&conversations, 1.0, seed)?;
        let graded = tasks.iter().zip(&answers);
        Ok::<_, EvalError>(
            graded
                .map(|(task, text)| task.check(text))
                .collect::<Vec<_>>(),
        )
    };
    let unasked = grades(None)?;
    let mut rows = Vec::new();
    for principle in Principle::ALL {
        for wanted in [true, false] {
            let request = Request { principle, wanted };
            let asked = grades(system_message(&[request]))?;
            let rate = |grades: &[crate::world::Grade], principle: Principle, wanted: bool| {
                let clusters: Vec<Cluster> = grades
                    .iter()
                    .map(|grade| Cluster {
                        sum: f64::from(u8::from(principle.satisfied(grade) == wanted)),
                        count: 1,
                    })
                    .collect();
                bootstrap(&clusters).ok_or(EvalError::Options("no instructions to follow"))
            };
            rows.push(Following {
                sentence: request.text().to_string(),
                asked: rate(&asked, principle, wanted)?,
                unasked: rate(&unasked, principle, wanted)?,
                accuracy: rate(&asked, Principle::Correct, true)?,
            });
        }
    }
    Ok(rows)
}

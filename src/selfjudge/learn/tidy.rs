//! Cleanup after a stage: what serves or may serve again soon stays on disk, and a bounded number of other files.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::LearnError;
use super::learner::Learner;
use traffic_log::{Generation, GenerationId, GenerationState, Pointers, Stage, TrainerLease};
use train::{TrainError, checkpoint::entries};

/// Deletes the files of generations that never served beyond the newest `publish.keep_generations`, those of generations that served
/// beyond the newest `publish.keep_served`, the generators of ended stages, and the curves of stages before the newest
/// `publish.keep_curves`. A failure here does not fail the stage.
pub(super) async fn tidy(learner: &Learner, lease: &TrainerLease) {
    if let Err(error) = prune(learner, lease).await {
        tracing::warn!("old generations are not deleted: {error}");
    }
    let curves = learner.config.publish.keep_curves;
    for (dir, keep) in [("generators", 0), ("curves", curves)] {
        if let Err(error) = keep_newest(&learner.dir.join(dir), keep) {
            tracing::warn!("old {dir} are not deleted: {error}");
        }
    }
}

async fn prune(learner: &Learner, lease: &TrainerLease) -> Result<(), LearnError> {
    let log = &learner.log;
    let pointers = log.generations.pointers().await?;
    let generations = log.generations.all().await?;
    let open = log.stages.current().await?;
    let needed = needed(&generations, &pointers, open.as_ref());
    let publish = &learner.config.publish;
    let of = |kind: Kind| {
        let others = generations.iter().filter(|one| !needed.contains(&one.id));
        let ids = others.filter(|one| Kind::of(one.state) == kind);
        ids.map(|one| one.id.to_string()).collect::<Vec<_>>()
    };
    for (kind, keep) in [
        (Kind::Waiting, publish.keep_generations),
        (Kind::Refused, publish.keep_generations),
        (Kind::Served, publish.keep_served),
    ] {
        let pointed = async |id: &str| Ok(points_at(&log.generations.pointers().await?, id));
        let removed = learner.generations.remove(of(kind), keep, pointed).await?;
        if removed.is_empty() {
            continue;
        }
        // The event comes first: files are never gone without one.
        let ids: Vec<_> = removed
            .iter()
            .map(|id| GenerationId::new(id.as_str()))
            .collect();
        lease.note_pruned(&ids).await?;
        fault::point("learn.pruned");
        tracing::info!("the files of {} {kind} are deleted", ids.len());
        learner.generations.sweep_removed()?;
    }
    Ok(())
}

/// A kind of generations, of which the newest are kept. Those of one kind do not displace those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// They passed their gates, or have not been through them, and wait for an operator.
    Waiting,
    Refused,
    /// They were the policy once.
    Served,
}

impl Kind {
    fn of(state: GenerationState) -> Self {
        match state {
            GenerationState::Candidate => Self::Waiting,
            GenerationState::Rejected | GenerationState::Failed => Self::Refused,
            GenerationState::Promoted | GenerationState::RolledBack => Self::Served,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "generations that wait for an operator",
            Self::Refused => "refused generations",
            Self::Served => "generations that served earlier",
        })
    }
}

fn all_of(pointers: &Pointers) -> [&GenerationId; 5] {
    [
        &pointers.policy,
        &pointers.train,
        &pointers.reference,
        &pointers.judge,
        &pointers.canary,
    ]
}

fn points_at(pointers: &Pointers, id: &str) -> bool {
    all_of(pointers).iter().any(|at| at.as_str() == id)
}

/// Returns the generations whose files are always kept: those at a pointer, those that an open stage names, and those that the former
/// were trained from, compared with or judged by. Every generation is a whole adapter, so that none needs the files of older ones.
fn needed(
    generations: &[Generation],
    pointers: &Pointers,
    open: Option<&Stage>,
) -> HashSet<GenerationId> {
    let mut needed: HashSet<GenerationId> = all_of(pointers).map(Clone::clone).into();
    let pointed = generations.iter().filter(|one| needed.contains(&one.id));
    let sources: Vec<GenerationId> = pointed.flat_map(sources).collect();
    needed.extend(sources);
    if let Some(open) = open {
        needed.insert(open.reference.clone());
        let names = ["policy", "train", "reference", "judge"].map(|name| &open.state[name]);
        let names = names.into_iter().chain([&open.progress["candidate"]]);
        needed.extend(names.filter_map(Value::as_str).map(GenerationId::new));
    }
    needed
}

/// Returns the generations that a generation was trained from, compared with and judged by.
fn sources(generation: &Generation) -> impl Iterator<Item = GenerationId> {
    let judge = generation.manifest["judge"].as_str().map(GenerationId::new);
    let trained = [generation.parent.clone(), generation.reference.clone()];
    trained.into_iter().chain(judge)
}

/// Deletes all but the newest directories `stage-N…`, by N.
fn keep_newest(dir: &Path, keep: usize) -> Result<(), TrainError> {
    if !dir.is_dir() {
        return Ok(());
    }
    let mut stages: Vec<(u64, PathBuf)> = entries(dir)?
        .into_iter()
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.strip_prefix("stage-")?;
            let digits = name.split(|c: char| !c.is_ascii_digit()).next()?;
            Some((digits.parse().ok()?, path))
        })
        .collect();
    stages.sort_unstable_by(|a, b| b.cmp(a));
    for (_, path) in stages.into_iter().skip(keep) {
        std::fs::remove_dir_all(&path).map_err(TrainError::io("cannot remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(id: &str, parent: &str, state: GenerationState) -> Generation {
        Generation {
            id: GenerationId::new(id),
            parent: GenerationId::new(parent),
            reference: GenerationId::new(parent),
            stage: None,
            manifest: serde_json::json!({"judge": "judge"}),
            gates: serde_json::Value::Null,
            state,
            created_at: 0,
        }
    }

    #[test]
    fn what_serves_what_it_came_from_and_an_open_stage_are_needed() {
        use GenerationState::{Candidate, Promoted, Rejected, RolledBack};
        let generations = [
            generation("policy", "parent", Promoted),
            generation("parent", "start", Promoted),
            generation("start", "base", Promoted),
            generation("back", "base", RolledBack),
            generation("canary", "base", Candidate),
            generation("judge", "base", Candidate),
            generation("waiting", "policy", Candidate),
            generation("refused", "policy", Rejected),
        ];
        let at = GenerationId::new;
        let pointers = Pointers {
            policy: at("policy"),
            train: at("policy"),
            reference: at("policy"),
            judge: at("pinned"),
            canary: at("canary"),
        };
        let names = |open: Option<&Stage>| {
            let needed = needed(&generations, &pointers, open);
            let mut names: Vec<String> = needed.iter().map(ToString::to_string).collect();
            names.sort_unstable();
            names
        };
        // `judge` judged the policy's stage; `start` and `back` served before and are kept by their number only.
        let always = ["base", "canary", "judge", "parent", "pinned", "policy"];
        assert_eq!(names(None), always);
        let open = Stage {
            id: traffic_log::StageId(9),
            epoch: 1,
            reference: at("start"),
            state: serde_json::json!({"policy": "policy", "train": "back", "judge": "base"}),
            progress: serde_json::json!({"candidate": "waiting"}),
            outcome: None,
            rows: 0,
            opened_at: 0,
            closed_at: None,
        };
        let mut with_stage = [&always[..], &["back", "start", "waiting"]].concat();
        with_stage.sort_unstable();
        assert_eq!(names(Some(&open)), with_stage);
        assert!(points_at(&pointers, "canary") && !points_at(&pointers, "back"));
    }

    #[test]
    fn the_newest_stages_are_kept_by_their_number() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["stage-9", "stage-10-generator", "stage-2", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        keep_newest(dir.path(), 2).unwrap();
        let mut left: Vec<_> = entries(dir.path()).unwrap();
        left.sort();
        let names: Vec<_> = left.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["other", "stage-10-generator", "stage-9"]);
        keep_newest(&dir.path().join("absent"), 0).unwrap();
    }
}

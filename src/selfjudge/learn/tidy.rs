//! Cleanup after a stage: everything that can serve again stays on disk, and a bounded number of other files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::LearnError;
use super::learner::Learner;
use traffic_log::{Generation, GenerationId, GenerationState, Pointers, TrainerLease};
use train::{TrainError, checkpoint::entries};

/// Deletes what will not be read again: generations that never served beyond the newest `publish.keep_generations`, the generators of
/// ended stages, the curves of stages before the newest `publish.keep_curves`. A failure here does not fail the stage.
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
    let needed = needed(&generations, &pointers);
    let keep = learner.config.publish.keep_generations;
    let waits = |generation: &&Generation| generation.state == GenerationState::Candidate;
    // Rejected generations must not displace those that passed and wait for an operator.
    let (waiting, refused): (Vec<_>, Vec<_>) = generations
        .iter()
        .filter(|generation| !needed.contains(&generation.id))
        .partition(waits);
    for kind in [waiting, refused] {
        let ids = kind.iter().map(|generation| generation.id.to_string());
        let pointed = async |id: &str| Ok(points_at(&log.generations.pointers().await?, id));
        let pruned = learner.generations.prune(ids.collect(), keep, pointed);
        let pruned = pruned.await?;
        if !pruned.is_empty() {
            let count = pruned.len();
            tracing::info!("{count} generations that never served are deleted");
            let pruned: Vec<_> = pruned.into_iter().map(GenerationId::new).collect();
            lease.note_pruned(&pruned).await?;
        }
    }
    Ok(())
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

/// Returns the generations that serve or may serve again: those at a pointer, those that served before (for rollbacks), and those that
/// they were trained from, compared with or judged by.
fn needed(generations: &[Generation], pointers: &Pointers) -> HashSet<GenerationId> {
    let served = |generation: &&Generation| {
        use GenerationState::{Promoted, RolledBack};
        matches!(generation.state, Promoted | RolledBack)
    };
    let mut open: Vec<GenerationId> = all_of(pointers).map(Clone::clone).into();
    open.extend(generations.iter().filter(served).map(|one| one.id.clone()));
    let mut needed = HashSet::new();
    while let Some(id) = open.pop() {
        let found = generations.iter().find(|generation| generation.id == id);
        if let Some(generation) = found.filter(|_| needed.insert(id)) {
            open.push(generation.parent.clone());
            open.push(generation.reference.clone());
            let judge = generation.manifest["judge"].as_str();
            open.extend(judge.map(GenerationId::new));
        }
    }
    needed
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
    fn what_serves_what_served_and_what_they_stand_on_is_needed() {
        use GenerationState::{Candidate, Failed, Promoted, Rejected, RolledBack};
        let generations = [
            generation("policy", "middle", Promoted),
            generation("middle", "start", Candidate),
            generation("start", "base", Rejected),
            generation("back", "base", RolledBack),
            generation("canary", "base", Candidate),
            generation("judge", "base", Candidate),
            generation("waiting", "policy", Candidate),
            generation("refused", "policy", Rejected),
            generation("damaged", "policy", Failed),
        ];
        let at = GenerationId::new;
        let pointers = Pointers {
            policy: at("policy"),
            train: at("policy"),
            reference: at("policy"),
            judge: at("base"),
            canary: at("canary"),
        };
        let needed = needed(&generations, &pointers);
        let mut needed: Vec<&str> = needed.iter().map(GenerationId::as_str).collect();
        needed.sort_unstable();
        assert_eq!(
            needed,
            ["back", "canary", "judge", "middle", "policy", "start"]
        );
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

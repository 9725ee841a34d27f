//! SSO's generator: an adapter that answers well under a good principle and, close to the policy, badly under a bad one.
//!
//! It is trained at the beginning of a stage, on the stage's own prompts, and discarded with the stage. It never shares weights with the
//! policy under training.

use std::path::PathBuf;

use super::LearnError;
use super::learner::Learner;
use super::open_stage::OpenStage;
use super::pair_maker::PairMaker;
use super::seed::Draw;
use model::WeightsLease;
use train::{TrainError, base::Adapter, checkpoint::sync};

/// Returns the generator of opposed answers if the settings enable one; otherwise the policy itself answers.
///
/// A restarted stage loads the finished generator, or trains it again to the same weights.
pub(super) async fn opposed(
    learner: &Learner,
    stage: &OpenStage<'_>,
    maker: &PairMaker,
    start: &WeightsLease,
) -> Result<Option<WeightsLease>, LearnError> {
    let contrast = &stage.plan.config.contrast;
    if !contrast.generator || contrast.share == 0.0 {
        return Ok(None);
    }
    let name = format!("stage-{}-generator", stage.id);
    let dir = learner.dir.join("generators").join(&name);
    let adapter = if dir.exists() {
        Adapter::load(&dir)?
    } else {
        let adapter = train_generator(learner, stage, maker, start).await?;
        keep(&adapter, dir)?;
        adapter
    };
    Ok(Some(learner.publisher.register(&name, &adapter)?))
}

/// Trains the generator for one pass over the stage's prompts, on its own answers under both principles and the policy's without.
async fn train_generator(
    learner: &Learner,
    stage: &OpenStage<'_>,
    maker: &PairMaker,
    start: &WeightsLease,
) -> Result<Adapter, LearnError> {
    let plan = &stage.plan;
    let planned = plan.planned();
    let adapter = learner.generations.trained(&plan.train)?;
    let mut trainer = learner
        .trainers
        .trainer(&plan.config.generator(), adapter, planned)
        .await?;
    let mut generator = start.clone();
    for update in 0..planned {
        learner.unpaused().await?;
        let prompts = maker.prompts(Draw::Contrast, plan.batch(update)).await?;
        let prompts = prompts.into_iter().filter(|drawn| drawn.chat);
        let bare: Vec<_> = prompts.map(|drawn| drawn.prompt).collect();
        let (prompts, answers) = maker.opposed_answers(&bare, start, &generator).await?;
        let pairs = prompts.iter().zip(&answers);
        let examples: Vec<_> = pairs
            .flat_map(|(prompts, answers)| answers.generator_examples(prompts))
            .collect();
        let trained = trainer.with(move |trainer, pace| {
            let mut examples = examples;
            examples.retain(|pair| trainer.check_pair(pair).is_ok());
            if !examples.is_empty() {
                let reference = trainer.reference_logps(&examples, pace)?;
                trainer.update(&examples, &reference, pace)?;
            }
            trainer.adapter()
        });
        let adapter = trained.await?;
        generator = learner
            .publisher
            .register(&format!("stage-{}-generator-{update}", stage.id), &adapter)?;
    }
    trainer.with(|trainer, _| trainer.adapter()).await
}

/// Stores a finished generator atomically.
fn keep(adapter: &Adapter, dir: PathBuf) -> Result<(), TrainError> {
    let tmp = dir.with_extension("part");
    if tmp.exists() {
        std::fs::remove_dir_all(&tmp).map_err(TrainError::io("cannot remove", &tmp))?;
    }
    std::fs::create_dir_all(&tmp).map_err(TrainError::io("cannot create", &tmp))?;
    adapter.save(&tmp)?;
    sync(&tmp)?;
    std::fs::rename(&tmp, &dir).map_err(TrainError::io("cannot rename", &tmp))?;
    sync(dir.parent().unwrap_or(&dir))
}

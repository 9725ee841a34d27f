//! The offline baseline: DPO on pairs of the JSFT corpus, whose answers no policy sampled.

use std::path::Path;

use super::{ClaimsError, ClaimsOptions};
use crate::world::comparison::{Source, correctness};
use crate::world::{Dice, Split};
use selfjudge::{
    learn::{LearnConfig, answer_ids},
    service::Service,
};
use text::{Message, Role};
use train::{
    TrainError,
    base::{Adapter, FrozenBase},
    dpo::{DpoTrainer, PairExample},
};

/// Runs as many updates, of as many pairs each, as the other variants plan.
pub async fn train_offline(
    options: &ClaimsOptions,
    settings: &LearnConfig,
    seed: u64,
    service: &Service,
    model_dir: &Path,
) -> Result<Adapter, ClaimsError> {
    let source = Source::world(Split::Train);
    let mut examples = Vec::with_capacity(settings.stage.prompts);
    for at in 0..settings.stage.prompts as u64 {
        let pair = correctness(&source, &mut Dice::new(seed ^ 0x6f66_666c, at));
        let messages = vec![Message::new(Role::User, pair.task.prompt.clone())];
        let prompt = service.encode_chat(&messages).await?;
        let chosen = answer_ids(service, &messages, &prompt, &pair.chosen).await?;
        let rejected = answer_ids(service, &messages, &prompt, &pair.rejected).await?;
        examples.push(PairExample::new(prompt, chosen, rejected));
    }
    let (dir, config, device) = (
        model_dir.to_owned(),
        settings.clone(),
        options.device.clone(),
    );
    let trained = tokio::task::spawn_blocking(move || {
        let base = FrozenBase::load(&dir, &device)?;
        let batches: Vec<&[PairExample]> = examples.chunks(config.stage.batch).collect();
        let updates = batches.len() as u64;
        let mut trainer = DpoTrainer::new(&base, None, None, config.dpo.clone(), updates)?;
        for batch in batches {
            let pairs: Vec<PairExample> = batch
                .iter()
                .filter(|pair| trainer.check_pair(pair).is_ok())
                .cloned()
                .collect();
            let reference = trainer.reference_logps(&pairs, &mut || {})?;
            trainer.update(&pairs, &reference, &mut || {})?;
        }
        trainer.adapter()
    });
    let trained: Result<Adapter, TrainError> = trained
        .await
        .map_err(|error| ClaimsError::Failed(error.to_string()))?;
    Ok(trained?)
}

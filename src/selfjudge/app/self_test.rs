//! The judge's self-test at the start, and after every change of the judging weights.

use super::{AppError, FOLLOW};
use crate::judging::{SelfTest, SelfTestSet};
use crate::service::Service;
use model::{DecoderSpec, Role, WeightsName};

/// The parameters of the largest model whose self-test takes less than a second on two cores.
const QUICK: usize = 50_000_000;

/// Returns whether a server that does not learn tests this model before it listens. It tests a larger one while it serves.
pub(super) fn tested_at_the_start(spec: &DecoderSpec) -> bool {
    spec.num_parameters() <= QUICK
}

/// Tests the current judge, and logs a failure.
///
/// # Errors
/// Fails if the pairs cannot be judged.
pub(super) async fn test_judge(service: &Service, set: &SelfTestSet) -> Result<SelfTest, AppError> {
    let test = service.judge().run_self_test(set).await?;
    if !test.reliable() {
        tracing::warn!(
            "the judge ({}) failed its self-test: {}; its verdicts are marked `reliable: false`, see docs/judging.md",
            test.weights.as_str(),
            test.summary()
        );
    }
    Ok(test)
}

/// Checks that the judge passed its self-test before learning starts.
///
/// # Errors
/// Returns [`AppError::Config`] with the numbers if it failed.
pub(super) fn check_teacher(service: &Service, allow_untrained: bool) -> Result<(), AppError> {
    match service.judge().self_test().filter(|test| !test.reliable()) {
        Some(test) if !allow_untrained => Err(AppError::Config(format!(
            "learning is refused because the model failed its self-test as a judge: {}; train it to judge first (docs/judging.md), or use \
             --allow-untrained-judge",
            test.summary()
        ))),
        _ => Ok(()),
    }
}

/// Tests every judge that begins to serve.
pub(super) async fn watch_judge(service: Service, set: SelfTestSet) {
    let mut failed: Option<WeightsName> = None;
    loop {
        tokio::time::sleep(FOLLOW).await;
        let serving = service.weights().lease(Role::Judge, None).name().clone();
        let tested = service
            .judge()
            .self_test()
            .is_some_and(|test| test.weights == serving);
        if tested || failed.as_ref() == Some(&serving) {
            continue;
        }
        match test_judge(&service, &set).await {
            Ok(_) => failed = None,
            Err(error) => {
                tracing::warn!(
                    "the judge ({}) could not be tested: {error}",
                    serving.as_str()
                );
                failed = Some(serving);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use model::ModelConfig;

    use super::*;

    #[test]
    fn only_a_small_model_is_tested_before_the_server_listens() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let pocket = ModelConfig::from_dir(&root.join("models/pocket")).unwrap();
        assert!(tested_at_the_start(&pocket.spec));
        let file = root.join("tests/data/model-configs/smollm2_135m.json");
        let larger = ModelConfig::from_json(&std::fs::read_to_string(file).unwrap()).unwrap();
        assert!(!tested_at_the_start(&larger.spec));
    }
}

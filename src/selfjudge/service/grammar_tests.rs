//! Grammars from a caller's parameters to the generated text.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use engine::{EngineConfig, SamplingParams};
use model::{LoadOptions, WeightStore};
use telemetry::Metrics;
use text::Role;

fn service() -> Service {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let model = LanguageModel::load(&dir, &LoadOptions::default()).unwrap();
    let weights = WeightStore::new(model.decoder().clone());
    let metrics = Metrics::new("test");
    let (engine, _thread) =
        Engine::start(weights, &EngineConfig::default(), metrics.engine).unwrap();
    Service::new(engine, &model, &dir, metrics.judge).unwrap()
}

async fn outputs(service: &Service, spec: GrammarSpec, stop_ids: &[u32]) -> Vec<Output> {
    let grammar = service.compile_grammar("json_schema", spec).await.unwrap();
    let prompt = service
        .encode_chat(&[Message::new(Role::User, "What is 34 plus 28?")])
        .await
        .unwrap();
    let mut params = SamplingParams::new(200, stop_ids.to_vec());
    params.seed = Some(1);
    let task = TextTask {
        samples: 3,
        grammar: Some(grammar),
        ..TextTask::new(prompt, params)
    };
    service.generate(task).unwrap().outputs().await.unwrap()
}

#[tokio::test]
async fn answers_follow_a_schema_to_the_last_character() {
    let service = service();
    let schema = json!({"type": "object", "properties": {"sum": {"type": "integer", "maximum": 999}},
                        "required": ["sum"], "additionalProperties": false});
    for stop_ids in [service.stop_ids(), &[]] {
        for output in outputs(&service, GrammarSpec::JsonSchema(schema.clone()), stop_ids).await {
            let value: Value = serde_json::from_str(&output.text).unwrap();
            assert!(
                value["sum"].as_i64().is_some_and(|sum| sum <= 999),
                "{value}"
            );
            let ended = matches!(output.finish, Some(Finish::Complete | Finish::EndToken(_)));
            assert!(ended, "{output:?}");
        }
    }
    let choice = GrammarSpec::Choice(vec!["yes".into(), "é🙂".into()]);
    for output in outputs(&service, choice, service.stop_ids()).await {
        assert!(["yes", "é🙂"].contains(&output.text.as_str()), "{output:?}");
        assert_eq!(output.finish, Some(Finish::Complete));
    }
}

#[tokio::test]
async fn a_grammar_of_no_use_names_its_parameter() {
    let spec = GrammarSpec::JsonSchema(json!({"type": "strin"}));
    let error = service()
        .compile_grammar("response_format", spec)
        .await
        .unwrap_err();
    let CallError::Invalid { param, message } = error else {
        panic!("{error}");
    };
    assert!(
        param == "response_format" && message.contains("strin"),
        "{message}"
    );
}

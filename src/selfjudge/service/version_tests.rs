//! The weights that answer and judge while several versions serve.

use std::path::Path;

use super::*;
use crate::call::Turn;
use crate::judging::{JudgeTask, TournamentTask};
use engine::{EngineConfig, SamplingParams};
use judge::{Method, OnDisagreement, Orders};
use model::{
    Canary, LoadOptions, PrincipalHash, Roles, WeightsLease, WeightsName, adapter::testing,
};
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

fn publish(service: &Service, name: &str, seed: u64) -> WeightsLease {
    let store = service.weights();
    let (config, weights) = testing::random(store.decoder().spec(), 4, &["q_proj"], seed);
    store.publish(name, &config, &weights).unwrap()
}

async fn task(service: &Service, turn: Turn) -> TextTask {
    let message = Message::new(Role::User, "What is 34 plus 28?");
    let prompt = service.encode_chat(&[message]).await.unwrap();
    let mut params = SamplingParams::new(8, service.stop_ids().to_vec());
    params.seed = Some(1);
    TextTask {
        turn,
        ..TextTask::new(prompt, params)
    }
}

fn judging(turn: Turn) -> JudgeTask {
    JudgeTask {
        context: vec![Message::new(Role::User, "What is 34 plus 28?")],
        principles: Vec::new(),
        orders: Orders::Both,
        on_disagreement: OnDisagreement::default(),
        weights: None,
        turn,
    }
}

fn name(weights: &Option<WeightsName>) -> &str {
    weights.as_ref().map_or("nobody", WeightsName::as_str)
}

async fn who_answers(service: &Service, task: TextTask) -> String {
    let mut generation = service.generate_in_turn(task).unwrap();
    generation.outputs().await.unwrap();
    name(&generation.weights()).to_owned()
}

#[tokio::test]
async fn the_policy_answers_the_judge_judges_and_both_say_so() {
    let service = service();
    let [policy, judge, other] = [("policy", 1), ("judge", 2), ("other", 3)]
        .map(|(name, seed)| publish(&service, name, seed));
    let roles = Roles {
        policy,
        canary: None,
        judge: judge.clone(),
    };
    service.weights().set_roles(roles).unwrap();
    for turn in [Turn::now(), Turn::background()] {
        let asked = task(&service, turn).await;
        assert_eq!(who_answers(&service, asked.clone()).await, "policy");
        let candidate = TextTask {
            weights: Some(other.clone()),
            ..asked.clone()
        };
        assert_eq!(who_answers(&service, candidate).await, "other");

        let by = judging(turn);
        let judged = service.judge().judge_pair(&by, "62", "63").await.unwrap();
        assert_eq!(name(&judged.weights), "judge");
        let by_other = JudgeTask {
            weights: Some(other.clone()),
            ..by.clone()
        };
        let other_judged = service
            .judge()
            .judge_pair(&by_other, "62", "63")
            .await
            .unwrap();
        assert_eq!(name(&other_judged.weights), "other");
        assert_ne!(judged.result.p, other_judged.result.p);
        let same = service.judge().judge_pair(&by, "62", "62").await.unwrap();
        assert_eq!(name(&same.weights), "nobody");

        let how = TournamentTask {
            method: Method::Knockout,
            seed: 1,
        };
        let candidates = ["62", "63", "64"].map(str::to_owned);
        let held = service.judge().hold_tournament(&by, how, &candidates).await;
        assert_eq!(name(&held.unwrap().weights), "judge");
        let drawn = TextTask {
            samples: 2,
            ..asked
        };
        let drawn = service.generate_in_turn(drawn).unwrap();
        let mut drawn = drawn;
        let best = service.best_of(&mut drawn, &by, how, |_| true).await;
        best.unwrap().unwrap();
        assert_eq!(name(&drawn.weights()), "policy");
    }
    let question = Question {
        text: "Is it even?".into(),
        options: vec!["yes".into(), "no".into()],
    };
    let decided = service.decide("62".into(), vec![question], Turn::now());
    assert_eq!(name(&decided.await.unwrap().weights), "judge");
}

#[tokio::test]
async fn the_canary_answers_its_principals() {
    let service = service();
    let roles = Roles {
        canary: Some(Canary {
            weights: publish(&service, "canary", 4),
            share: 0.5,
        }),
        ..Roles::all(service.weights().base())
    };
    service.weights().set_roles(roles).unwrap();
    let mut answered = [0, 0];
    for key in 0..20 {
        let turn = Turn {
            principal: Some(PrincipalHash::of(&format!("key {key}"))),
            ..Turn::now()
        };
        let asked = task(&service, turn).await;
        let who = who_answers(&service, asked.clone()).await;
        assert_eq!(
            who,
            who_answers(&service, asked).await,
            "another time another"
        );
        answered[usize::from(who == "canary")] += 1;
    }
    assert!(answered[0] > 0 && answered[1] > 0, "{answered:?}");
    let unknown = task(&service, Turn::now()).await;
    assert_eq!(who_answers(&service, unknown).await, "base");
}

//! Tests of the effect of each sampling parameter on an answer.

use std::collections::HashSet;

use engine::EngineConfig;

use super::*;
use crate::patience::{until, until_quick_enough};

const PROMPT: &str = "Spell piano with hyphens.";

/// Returns the answer to `PROMPT` with these parameters.
fn answer(parameters: Value) -> Value {
    let mut body = json!({"prompt": PROMPT, "max_tokens": 24});
    for (key, value) in parameters.as_object().unwrap() {
        body[key] = value.clone();
    }
    ok("/generate", &body)["outputs"][0].clone()
}

fn ids(output: &Value) -> Vec<u64> {
    let ids = output["token_ids"].as_array().unwrap();
    ids.iter().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn any_truncation_to_one_token_is_greedy_however_hot() {
    let greedy = ids(&answer(json!({"temperature": 0})));
    let hot = |mut parameters: Value| {
        (parameters["temperature"], parameters["seed"]) = (json!(50), json!(3));
        ids(&answer(parameters))
    };
    assert_ne!(hot(json!({})), greedy, "nothing is truncated");
    for one in [
        json!({"top_k": 1}),
        json!({"top_p": 1e-6}),
        json!({"min_p": 1}),
    ] {
        assert_eq!(hot(one.clone()), greedy, "{one}");
    }
}

/// Returns the first token of each of eight answers of 80 tokens, and the number of different tokens in all of them.
fn variety(name: &str, value: f64) -> (Vec<u64>, usize) {
    let mut body =
        json!({"prompt": PROMPT, "n": 8, "seed": 5, "ignore_eos": true, "max_tokens": 80});
    body[name] = json!(value);
    let answer = ok("/generate", &body);
    let outputs: Vec<Vec<u64>> = answer["outputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(ids)
        .collect();
    let different = |ids: &Vec<u64>| ids.iter().collect::<HashSet<_>>().len();
    (
        outputs.iter().map(|ids| ids[0]).collect(),
        outputs.iter().map(different).sum(),
    )
}

#[test]
fn penalties_keep_answers_from_repeating_themselves() {
    for (name, encouraged, neutral, penalised) in [
        ("frequency_penalty", -2.0, 0.0, 2.0),
        ("presence_penalty", -2.0, 0.0, 2.0),
        ("repetition_penalty", 0.5, 1.0, 1.5),
    ] {
        let [less, plain, more] =
            [encouraged, neutral, penalised].map(|value| variety(name, value));
        assert!(
            less.1 < plain.1 && plain.1 < more.1,
            "{name}: {less:?}, {plain:?}, {more:?}"
        );
        // Only `repetition_penalty` counts the prompt's tokens.
        if name != "repetition_penalty" {
            assert_eq!((&less.0, &more.0), (&plain.0, &plain.0), "{name}");
        }
    }
}

#[test]
fn a_bias_decides() {
    let token = ids(&answer(json!({"temperature": 0})))[0];
    let banned = answer(json!({"temperature": 0, "logit_bias": {token.to_string(): -100}}));
    assert!(!ids(&banned).contains(&token));
    let forced = answer(json!({"seed": 1, "max_tokens": 3, "logit_bias": {"65": 100}}));
    assert_eq!(ids(&forced), [65, 65, 65]);
}

#[test]
fn tokens_and_strings_end_an_answer_and_not_before_their_time() {
    let whole = answer(json!({"temperature": 0}));
    let all = ids(&whole);
    let third = all[2];
    assert_eq!(whole["finish_reason"], "stop");
    assert!(
        whole.get("stop_reason").is_none(),
        "the answer must end with the model's end token"
    );
    let first = all.iter().position(|&id| id == third).unwrap() + 1;
    let stopped = answer(json!({"temperature": 0, "stop_token_ids": [third]}));
    assert_eq!(ids(&stopped), all[..first]);
    assert_eq!(
        (&stopped["finish_reason"], &stopped["stop_reason"]),
        (&json!("stop"), &json!(third))
    );
    // Until `min_tokens` the stop token and the model's end token are not drawn.
    let held =
        answer(json!({"temperature": 0, "stop_token_ids": [third], "min_tokens": first + 1}));
    assert!(ids(&held).len() > first, "{held}");
    assert_eq!(ids(&held)[..first - 1], all[..first - 1]);
    assert!(!ids(&held)[..first].contains(&third), "{held}");
    let longer =
        answer(json!({"temperature": 0, "min_tokens": all.len() + 2, "max_tokens": all.len() + 2}));
    assert_eq!(ids(&longer).len(), all.len() + 2);
    assert_eq!(ids(&longer)[..all.len() - 1], all[..all.len() - 1]);
    let text = whole["text"].as_str().unwrap();
    let (before, _) = text.split_once('-').unwrap();
    for (kept, wanted) in [(false, before.to_owned()), (true, format!("{before}-"))] {
        let cut =
            answer(json!({"temperature": 0, "stop": "-", "include_stop_str_in_output": kept}));
        assert_eq!(cut["text"], wanted);
        assert_eq!(cut["stop_reason"], "-");
    }
}

/// One sequence runs at a time. Of two that wait, the second has the lower level and goes first.
#[test]
fn a_lower_level_is_served_first() {
    let engine = EngineConfig {
        max_concurrent: 1,
        ..EngineConfig::default()
    };
    let server = start(&engine, &HttpConfig::default());
    let ask = |tokens: usize, priority: i32| {
        let (server, body) = (
            server.clone(),
            json!({"prompt": PROMPT, "ignore_eos": true, "max_tokens": tokens, "priority": priority}),
        );
        tokio::spawn(async move { post_to(&server, "/generate", &body).await.0 })
    };
    RUNTIME.block_on(until_quick_enough(async || {
        let running = ask(400, 0);
        let seen = async |gauge: &str, value: f64| {
            until(async || metric(&server, gauge).await == value || running.is_finished()).await;
        };
        seen("num_requests_running", 1.0).await;
        let later = ask(400, 100);
        seen("num_requests_waiting", 1.0).await;
        let sooner = ask(1, -100);
        seen("num_requests_waiting", 2.0).await;
        let both_waited = !running.is_finished();
        assert_eq!(sooner.await.unwrap(), StatusCode::OK);
        let in_order = !later.is_finished();
        running.abort();
        later.abort();
        until(async || metric(&server, "kv_cache_usage_perc").await == 0.0).await;
        assert!(in_order || !both_waited);
        both_waited
    }));
}

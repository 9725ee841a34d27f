//! Judging: pairs, tournaments and odd candidates.

use super::*;

#[test]
fn verdicts_turn_with_the_candidates() {
    for principles in [
        json!([]),
        json!(["correct"]),
        json!(["brief", {"principle": "polite", "weight": 0.5}]),
    ] {
        let judge = |a: &str, b: &str| {
            ok(
                "/judge",
                &json!({"prompt": "What is 34 plus 28?", "candidates": [a, b], "principles": principles}),
            )
        };
        for (a, b) in [("62", "[52]"), ("Sure! 62", "62"), ("", "62")] {
            let (one, two) = (judge(a, b), judge(b, a));
            let p = |answer: &Value| answer["p"].as_f64().unwrap();
            assert!((p(&one) + p(&two) - 1.0).abs() < 1e-6, "{one} {two}");
            assert_eq!(
                one["winner"].as_u64(),
                two["winner"].as_u64().map(|w| 1 - w)
            );
            assert_eq!(one["consistent"], two["consistent"]);
            assert_eq!(one["orders"].as_array().unwrap().len(), 2);
        }
    }
}

#[test]
fn a_verdict_does_not_depend_on_load() {
    let body = json!({"prompt": "Sort 8 3 5 in rising order.", "candidates": ["3 5 8", "3 8 5"]});
    let alone = ok("/judge", &body);
    let noise = json!({"prompt": "Sort 8 3 5 in rising order.", "n": 16, "max_tokens": 60, "ignore_eos": true});
    RUNTIME.block_on(async {
        let noise =
            futures::future::join_all((0..6).map(|_| post_to(&SERVER, "/generate", &noise)));
        let judged = futures::future::join_all((0..6).map(|_| post_to(&SERVER, "/judge", &body)));
        let (_, judged) = futures::join!(noise, judged);
        for (_, loaded) in judged {
            assert_eq!(loaded["orders"], alone["orders"], "not a bit may differ");
        }
    });
}

#[test]
fn odd_candidates_are_defined() {
    let prompt = "What is 34 plus 28?";
    let same = ok(
        "/judge",
        &json!({"prompt": prompt, "candidates": ["62", "62"]}),
    );
    assert_eq!((&same["winner"], &same["p"]), (&Value::Null, &json!(0.5)));
    assert_eq!(same["usage"]["prompt_tokens"], 0, "nothing had to be asked");
    let long = ok(
        "/judge",
        &json!({"prompt": prompt, "candidates": ["62", "7".repeat(5000)]}),
    );
    assert_eq!(long["truncated"], true);
    let many: Vec<String> = (0..300).map(|i| i.to_string()).collect();
    let tournament = ok(
        "/judge",
        &json!({"prompt": prompt, "candidates": many, "seed": 5}),
    );
    assert_eq!(tournament["comparisons"], 299);
    assert_eq!(tournament["ranking"].as_array().unwrap().len(), 300);
    let refused = post(
        "/judge",
        &json!({"prompt": prompt, "candidates": many, "bracket": "round_robin"}),
    );
    assert_eq!(
        (refused.0, &refused.1["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!("candidates"))
    );
}

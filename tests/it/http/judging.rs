//! Tests of `/judge`: pairs, tournaments and unusual candidates.

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
            assert_eq!(
                loaded["orders"], alone["orders"],
                "the reads must be equal to the last bit"
            );
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
    assert_eq!(
        same["usage"]["prompt_tokens"], 0,
        "equal candidates must need no prompt"
    );
    let long = ok(
        "/judge",
        &json!({"prompt": prompt, "candidates": ["62", "7".repeat(5000)]}),
    );
    assert_eq!(long["truncated"], true);
    for (candidates, cut) in [
        (["62", "52", "[62]"], false),
        (["62", "52", &*"7".repeat(5000)], true),
    ] {
        let tournament = ok(
            "/judge",
            &json!({"prompt": prompt, "candidates": candidates}),
        );
        assert_eq!(tournament["truncated"], cut, "{tournament}");
    }
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

/// A verdict of one order equals that order in a verdict of both, and costs half.
#[test]
fn one_order_is_what_it_is_among_both() {
    for principles in [json!([]), json!(["brief", "polite"])] {
        let judge = |orders: &str| {
            let body = json!({"prompt": "What is 34 plus 28?", "candidates": ["Sure! 62", "52"], "orders": orders,
                "principles": principles});
            ok("/judge", &body)
        };
        let (both, given) = (judge("both"), judge("given"));
        assert_eq!(given["orders"].as_array().unwrap().len(), 1);
        assert_eq!(given["orders"][0], both["orders"][0]);
        assert_eq!(given["orders"][0]["shown"], json!([0, 1]));
        assert_eq!(given["p"], given["orders"][0]["p_first"]);
        assert_eq!(given["consistent"], Value::Null);
        let reads = |answer: &Value| answer["usage"]["completion_tokens"].as_u64().unwrap();
        assert_eq!(2 * reads(&given), reads(&both));
    }
}

#[test]
fn a_ring_is_two_rounds_and_ranks_everybody() {
    let candidates = ["52", "62", "[62]", "6", "It is 62.", "5", "26", ""];
    let body = json!({"prompt": "What is 34 plus 28?", "candidates": candidates, "bracket": "ring", "seed": 3});
    let answer = ok("/judge", &body);
    let rounds = answer["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 2);
    let mut met = vec![0; candidates.len()];
    for played in rounds[0].as_array().unwrap() {
        for side in ["a", "b"] {
            met[played[side].as_u64().unwrap() as usize] += 1;
        }
    }
    assert_eq!(
        met, [2; 8],
        "in the ring every candidate must meet two others"
    );
    let played: usize = rounds
        .iter()
        .map(|round| round.as_array().unwrap().len())
        .sum();
    assert_eq!(answer["comparisons"], played);
    // Three pivots meet the five others and one another.
    assert!(played <= 8 + 3 * 5 + 3, "{played}");
    let ranking = answer["ranking"].as_array().unwrap();
    assert_eq!(answer["winner"], ranking[0]);
    let mut ranked: Vec<u64> = ranking.iter().filter_map(Value::as_u64).collect();
    ranked.sort_unstable();
    assert!(
        ranked.into_iter().eq(0..8),
        "every candidate must be ranked once"
    );
    assert_eq!(
        ok("/judge", &body)["rounds"],
        answer["rounds"],
        "the same seed must give the same ring"
    );
}

/// The metrics count the numbers that the answers have.
#[test]
fn judging_moves_its_metrics() {
    let server = start(&EngineConfig::default(), &HttpConfig::default());
    let prompt = "What is 34 plus 28?";
    let pairs = [
        ["62", "52"],
        ["62", "62"],
        ["banana", "62 62 62"],
        ["", "x"],
        ["[62]", "62"],
        ["yes", "no"],
        ["a", "b"],
    ];
    RUNTIME.block_on(async {
        let (mut flips, mut ties) = (0, 0);
        for candidates in pairs {
            let (status, answer) = post_to(
                &server,
                "/judge",
                &json!({"prompt": prompt, "candidates": candidates}),
            )
            .await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            flips += u32::from(answer["consistent"] == false);
            ties += u32::from(answer["winner"].is_null());
        }
        assert!(flips > 0 && ties > 0, "{flips}, {ties}");
        assert_eq!(metric(&server, "judge_comparisons_total").await, 7.0);
        assert_eq!(metric(&server, "judge_flips_total").await, f64::from(flips));
        assert_eq!(metric(&server, "judge_ties_total").await, f64::from(ties));
        // The judge did not read the two equal candidates.
        assert_eq!(metric(&server, "judge_label_mass_count").await, 6.0);
        assert_eq!(metric(&server, "tournament_candidates_count").await, 0.0);
        let body = json!({"prompt": prompt, "candidates": ["62", "52", "62", "62", "6"]});
        let (_, answer) = post_to(&server, "/judge", &body).await;
        assert_eq!(answer["comparisons"], 4);
        assert_eq!(metric(&server, "judge_comparisons_total").await, 11.0);
        for (name, value) in [
            ("candidates_count", 1.0),
            ("candidates_sum", 5.0),
            ("comparisons_sum", 4.0),
            ("seconds_count", 1.0),
        ] {
            assert_eq!(
                metric(&server, &format!("tournament_{name}")).await,
                value,
                "{name}"
            );
        }
    });
}

//! Verdicts joined from reads over orders and principles.

use super::{
    LabelLogprobs, OnDisagreement, Orders, PairVerdict, Polarity, PrincipleVerdict,
    WeightedPrinciple, Winner,
};

const NOTHING: f32 = f32::NEG_INFINITY;

fn principles(weights: &[f32]) -> Vec<WeightedPrinciple> {
    let principle = |&weight: &f32| WeightedPrinciple {
        name: "p".to_owned(),
        text: "p".to_owned(),
        polarity: Polarity::Encourage,
        weight,
        listed: false,
    };
    weights.iter().map(principle).collect()
}

/// Joins reads of principles with these weights.
fn join(weights: &[f32], orders: Orders, reads: &[LabelLogprobs]) -> PairVerdict {
    let average = OnDisagreement::Average;
    PairVerdict::join(&principles(weights), orders, average, reads, false)
}

/// Returns a read in which the answer shown first is better with probability `p`.
fn read(p: f32) -> LabelLogprobs {
    read_of(p, 1.0 - p)
}

/// Returns a read with these probabilities of the two labels.
fn read_of(first: f32, second: f32) -> LabelLogprobs {
    [first.ln(), second.ln()]
}

fn near(a: f32, b: f32) {
    assert!((a - b).abs() < 1e-5, "{a} is not {b}");
}

#[test]
fn the_two_orders_are_averaged_as_the_paper_does() {
    // The given order is confident in candidate 0; the other leans to the one shown first, which is candidate 1.
    let reads = [read_of(0.8, 0.1), read_of(0.5, 0.4)];
    let verdict = join(&[], Orders::Both, &reads);
    // sA = (0.8 + 0.4) / 2 = 0.6, sB = (0.1 + 0.5) / 2 = 0.3
    near(verdict.p, 0.6 / 0.9);
    assert_eq!(verdict.winner, Some(0));
    assert_eq!(verdict.consistent, Some(false));
    near(verdict.label_mass, 0.9);
    near(verdict.orders[0].p_first, 0.8 / 0.9);
    near(verdict.orders[1].p_first, 0.5 / 0.9);
    assert_eq!(verdict.orders[1].shown, [1, 0]);
}

#[test]
fn swapping_the_candidates_swaps_the_verdict() {
    let (x, y) = (read_of(0.7, 0.2), read_of(0.35, 0.6));
    let verdict = join(&[], Orders::Both, &[x, y]);
    let swapped = join(&[], Orders::Both, &[y, x]);
    near(verdict.p, 1.0 - swapped.p);
    assert_eq!((verdict.winner, swapped.winner), (Some(0), Some(1)));
    assert_eq!(
        (verdict.consistent, swapped.consistent),
        (Some(true), Some(true))
    );
    let back = swapped.swapped();
    near(back.p, verdict.p);
    assert_eq!((back.winner, back.outcome().winner), (Some(0), Winner::A));
}

#[test]
fn a_pure_position_bias_cancels_exactly() {
    let verdict = join(&[], Orders::Both, &[read_of(0.75, 0.25); 2]);
    assert_eq!((verdict.winner, verdict.p), (None, 0.5));
    assert_eq!(verdict.consistent, Some(false));
    assert_eq!(verdict.outcome().winner, Winner::Tie);
    let even = join(&[], Orders::Both, &[read(0.5); 2]);
    assert_eq!((even.winner, even.consistent), (None, Some(false)));
}

#[test]
fn a_forbidden_principle_inverts_its_verdict() {
    let mut principles = principles(&[1.0]);
    principles[0].polarity = Polarity::Forbid;
    let average = OnDisagreement::Average;
    let reads = [read(0.9), read(0.2)];
    let verdict = PairVerdict::join(&principles, Orders::Both, average, &reads, false);
    near(verdict.p, 0.15);
    assert_eq!((verdict.winner, verdict.consistent), (Some(1), Some(true)));
    near(verdict.orders[0].p_first, 0.1);
}

#[test]
fn labels_without_probability_are_a_tie_and_no_nan() {
    let orders = [(Orders::Both, 2), (Orders::Given, 1)];
    for (orders, per_principle) in orders {
        for principles in [&[][..], &[1.0], &[1.0, 2.0]] {
            let reads = vec![[NOTHING; 2]; per_principle * principles.len().max(1)];
            let verdict = join(principles, orders, &reads);
            assert_eq!(
                (verdict.p, verdict.winner, verdict.label_mass),
                (0.5, None, 0.0)
            );
            let parts = verdict.principles.iter().map(|part| part.p);
            let shown = verdict.orders.iter().map(|order| order.p_first);
            assert!(parts.chain(shown).all(|p| p == 0.5), "{verdict:?}");
        }
    }
    let one = join(&[], Orders::Given, &[[-1.0, NOTHING]]);
    assert_eq!((one.p, one.winner), (1.0, Some(0)));
}

#[test]
fn opposite_principles_of_one_weight_are_an_exact_tie() {
    for step in 1..1000 {
        let p = step as f32 / 1000.0;
        for weight in [0.1, 0.3, 1.0, 7.0] {
            let reads = [read(p), read(0.5), read(1.0 - p), read(0.5)];
            let verdict = join(&[weight; 4], Orders::Given, &reads);
            assert_eq!((verdict.p, verdict.winner), (0.5, None), "{p} at {weight}");
        }
    }
}

#[test]
fn a_pair_whose_orders_disagree_can_be_left_undecided() {
    // Candidate 0 wins when shown first, and loses when shown second.
    let (given, turned, agreeing) = (read(0.9), read(0.7), read(0.2));
    for weights in [&[][..], &[1.0], &[1.0, 2.0]] {
        for (on_disagreement, second, winner) in [
            (OnDisagreement::Average, turned, Some(0)),
            (OnDisagreement::Undecided, turned, None),
            (OnDisagreement::Undecided, agreeing, Some(0)),
        ] {
            let reads = [given, second].repeat(weights.len().max(1));
            let principles = principles(weights);
            let verdict =
                PairVerdict::join(&principles, Orders::Both, on_disagreement, &reads, false);
            assert_eq!(verdict.winner, winner, "{on_disagreement:?} {weights:?}");
            assert!(verdict.p > 0.5);
        }
    }
}

#[test]
fn several_principles_are_consistent_where_their_joined_orders_are() {
    // Probabilities that the answer shown first is better, for each principle in both orders.
    for (reads, consistent, winner_is) in [
        // Each principle prefers a position, and so do the means.
        (&[[0.6, 0.6], [0.55, 0.52]][..], false, Some(0)),
        // One principle contradicts itself, the other is certain.
        (&[[0.55, 0.52], [0.9, 0.1]], true, Some(0)),
        // Each principle is consistent, but they name different candidates; the means name the more certain one's in both orders.
        (&[[0.9, 0.1], [0.45, 0.55]], true, Some(0)),
        // Each principle is consistent, but their means contradict each other.
        (&[[0.9, 0.48], [0.2, 0.7]], false, Some(1)),
        // A mean that is an exact tie in one order agrees with nothing.
        (&[[0.7, 0.2], [0.3, 0.9]], false, Some(1)),
        // The second principle contradicts itself and is left out.
        (&[[0.7, 0.2], [0.3, 0.1]], true, Some(0)),
        (&[[0.6, 0.4], [0.1, 0.2]], true, Some(0)),
    ] {
        let flat: Vec<LabelLogprobs> = reads.iter().flatten().map(|&p| read(p)).collect();
        let weights = vec![1.0; reads.len()];
        let average = join(&weights, Orders::Both, &flat);
        assert_eq!(average.consistent, Some(consistent), "{reads:?}");
        assert_eq!(average.winner, winner_is, "{reads:?}");
        let undecided = OnDisagreement::Undecided;
        let principles = principles(&weights);
        let undecided = PairVerdict::join(&principles, Orders::Both, undecided, &flat, false);
        assert_eq!(
            undecided.winner,
            winner_is.filter(|_| consistent),
            "{reads:?}"
        );
    }
}

#[test]
fn principles_that_contradict_themselves_are_left_out_of_the_mean() {
    // Ten principles, of which three prefer a position: the pair is kept, by the verdict of the other seven.
    let (position, sound) = ([read(0.9), read(0.7)], [read(0.8), read(0.3)]);
    let reads: Vec<LabelLogprobs> = (0..10)
        .flat_map(|at| if at % 4 == 1 { position } else { sound })
        .collect();
    let verdict = join(&[1.0; 10], Orders::Both, &reads);
    near(verdict.p, 0.75);
    assert_eq!((verdict.winner, verdict.consistent), (Some(0), Some(true)));
    near(verdict.orders[0].p_first, 0.8);
    near(verdict.orders[1].p_first, 0.3);
    let left_out = |part: &&PrincipleVerdict| part.consistent == Some(false);
    assert_eq!(verdict.principles.iter().filter(left_out).count(), 3);
    // Weights are those of the principles that count.
    let reads = [
        read(0.9),
        read(0.7),
        read(0.8),
        read(0.3),
        read(0.2),
        read(0.9),
    ];
    let verdict = join(&[5.0, 3.0, 1.0], Orders::Both, &reads);
    near(verdict.p, (3.0 * 0.75 + 0.15) / 4.0);
    // With one order nothing contradicts itself.
    let one = join(&[1.0, 1.0], Orders::Given, &[read(0.9), read(0.2)]);
    near(one.p, 0.55);
    // Where all do, no verdict is consistent, even if the means of the orders are.
    let reads = [read(0.9), read(0.6), read(0.4), read(0.3)];
    let verdict = join(&[1.0, 1.0], Orders::Both, &reads);
    assert_eq!((verdict.winner, verdict.consistent), (Some(0), Some(false)));
}

#[test]
fn a_small_lead_is_no_tie() {
    let verdict = join(&[1.0, 1.0], Orders::Given, &[read(0.50001), read(0.5)]);
    assert_eq!(verdict.winner, Some(0));
}

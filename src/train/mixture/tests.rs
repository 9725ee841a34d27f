//! Golden tests of mixtures with a character tokenizer.

mod building;
mod imitation;
mod lengths;

use super::*;
use crate::plain::PlainEnd;
use judge::{
    PlainText,
    fixtures::{self, LABELS},
};
use text::{Message, Role, SpecialTokens};

fn mixture(options: MixtureOptions) -> Mixture {
    let table = PrincipleTable::from_toml(
        "[[principle]]\nid = 'short'\ntext = 'Shorter wins.'\nnegative = 'Longer wins.'\n\
         [[principle]]\nid = 'kind'\ntext = 'Kinder wins.'\n[[principle]]\nid = 'd'\ntext = 'best.'\nnegative = 'worst.'",
    )
    .unwrap();
    let (tokenizer, chat) = (fixtures::tokenizer(), fixtures::chat());
    Mixture::new(tokenizer, chat, fixtures::template(), table, options).unwrap()
}

fn with_chat(chat: &str, options: MixtureOptions) -> Mixture {
    let mut mixture = mixture(options);
    mixture.chat = ChatTemplate::from_source(chat, SpecialTokens::default()).unwrap();
    mixture
}

fn pair(turns: &[&str], chosen: &str, rejected: &str) -> PreferencePair {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    PreferencePair {
        id: None,
        messages: turns
            .iter()
            .zip(roles)
            .map(|(text, role)| Message::new(role, *text))
            .collect(),
        chosen: chosen.into(),
        rejected: rejected.into(),
        principles: Vec::new(),
        rationale: None,
        sft: true,
        judge: true,
        plain: false,
        margin: None,
        source: None,
    }
}

/// Returns the text of an example with its supervised spans in guillemets.
fn marked(example: &TrainExample) -> String {
    assert_eq!(example.ids.len(), example.weights.len());
    assert_eq!(example.weights[0], 0.0);
    let mut text = String::new();
    let mut on = false;
    for (id, weight) in example.ids.iter().zip(&example.weights) {
        if (*weight > 0.0) != on {
            text.push(if on { '»' } else { '«' });
            on = !on;
        }
        text.push_str(&fixtures::decode(&[*id]));
    }
    text.push_str(if on { "»" } else { "" });
    text
}

fn texts(mixture: &Mixture, pair: &PreferencePair) -> Vec<String> {
    mixture.examples(0, pair).0.iter().map(marked).collect()
}

#[test]
fn a_pair_is_imitated_once_and_judged_twice() {
    let mixture = mixture(MixtureOptions::default());
    let (examples, report) = mixture.examples(0, &pair(&["q"], "good", "bad"));
    let texts: Vec<String> = examples.iter().map(marked).collect();
    assert_eq!(
        texts,
        [
            "<|user|>q</s><|assistant|>«good</s>»",
            "<|user|>By: best.\nQ: q\n1: good\n2: bad\nWhich?</s><|assistant|>I say« A»",
            "<|user|>By: best.\nQ: q\n1: bad\n2: good\nWhich?</s><|assistant|>I say« B»",
        ]
    );
    let last = |example: &TrainExample| {
        (
            *example.ids.last().unwrap(),
            *example.weights.last().unwrap(),
        )
    };
    assert_eq!(last(&examples[0]), (fixtures::EOS, 1.0));
    assert_eq!(last(&examples[1]), (LABELS[0], 1.0));
    assert_eq!(last(&examples[2]), (LABELS[1], 1.0));
    assert_eq!((report.sft_examples, report.sft_supervised), (1, 5));
    assert_eq!((report.judge_examples, report.judge_supervised), (2, 2));
    assert_eq!((report.sft_weight, report.judge_weight), (5.0, 2.0));
}

#[test]
fn flags_turn_the_halves_off_and_equal_answers_are_not_judged() {
    let mixture = mixture(MixtureOptions::default());
    let mut judged = pair(&["q"], "a", "b");
    judged.sft = false;
    assert_eq!(mixture.examples(0, &judged).0.len(), 2);
    let mut imitated = pair(&["q"], "a", "b");
    imitated.judge = false;
    assert_eq!(mixture.examples(0, &imitated).0.len(), 1);
    let (examples, report) = mixture.examples(0, &pair(&["q"], "a", "a"));
    assert_eq!((examples.len(), report.judge_equal), (1, 1));
    let (examples, report) = mixture.examples(0, &pair(&["q"], " ", "a"));
    assert_eq!((examples.len(), report.sft_empty), (2, 1));
}

#[test]
fn principles_condition_the_judge_and_negations_flip_it() {
    let mut named = pair(&["q"], "ok", "okay");
    (named.sft, named.principles) = (false, vec!["short".into(), "Be brief.".into()]);
    let plain = mixture(MixtureOptions::default());
    assert!(texts(&plain, &named)[0].contains("By: * Shorter wins.\n* Be brief.\nQ"));
    let negating = mixture(MixtureOptions {
        negation: 1.0,
        ..MixtureOptions::default()
    });
    // If one principle has no negation, none is negated.
    assert!(
        texts(&negating, &named)[0].contains("Shorter wins.")
            && texts(&negating, &named)[0].ends_with("« A»")
    );
    named.principles.pop();
    let (examples, report) = negating.examples(0, &named);
    assert_eq!(
        examples.iter().map(marked).collect::<Vec<_>>(),
        [
            "<|user|>By: Longer wins.\nQ: q\n1: ok\n2: okay\nWhich?</s><|assistant|>I say« B»",
            "<|user|>By: Longer wins.\nQ: q\n1: okay\n2: ok\nWhich?</s><|assistant|>I say« A»",
        ]
    );
    assert_eq!(report.judge_negated, 1);
    named.principles.clear();
    assert!(texts(&negating, &named)[0].contains("By: worst."));
    let half = mixture(MixtureOptions {
        negation: 0.5,
        ..MixtureOptions::default()
    });
    let count: u64 = (0..1000)
        .map(|index| half.examples(index, &named).1.judge_negated)
        .sum();
    // 500 expected, standard deviation 16.
    assert!((430..570).contains(&count), "{count}");
}

#[test]
fn rationales_follow_the_label_without_an_end_of_turn() {
    let mut explained = pair(&["q"], "a", "b");
    (explained.sft, explained.rationale) = (false, Some("it is".into()));
    assert!(texts(&mixture(MixtureOptions::default()), &explained)[0].ends_with("« A»"));
    let options = MixtureOptions {
        rationale: true,
        rationale_weight: 0.5,
        ..MixtureOptions::default()
    };
    let (examples, _) = mixture(options).examples(0, &explained);
    assert!(marked(&examples[0]).ends_with("I say« A: it is»"));
    assert!(marked(&examples[1]).ends_with("I say« B: it is»"));
    let tail = &examples[0].weights[examples[0].weights.len() - 8..];
    assert_eq!(tail, [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]);
}

#[test]
fn weights_follow_the_named_options() {
    let tested = pair(&["q"], "abc", "d");
    let options = MixtureOptions {
        judge_weight: 6.0,
        candidate_weight: 0.25,
        ..MixtureOptions::default()
    };
    let (examples, _) = mixture(options.clone()).examples(0, &tested);
    for judge in &examples[1..] {
        assert_eq!(judge.weights.last(), Some(&6.0));
        assert_eq!(
            judge
                .weights
                .iter()
                .filter(|weight| **weight == 0.25)
                .count(),
            3
        );
    }
    assert!(marked(&examples[1]).contains("1: «abc»\n2: d\n"));
    assert!(marked(&examples[2]).contains("1: d\n2: «abc»\n"));
    let options = MixtureOptions {
        weighting: Weighting::ExampleMean,
        ..options
    };
    let (examples, _) = mixture(options).examples(0, &tested);
    let sum = |example: &TrainExample| example.weights.iter().sum::<f32>();
    assert!((sum(&examples[0]) - 1.0).abs() < 1e-6);
    // 1 / 1.75 for the label, six times; 0.75 / 1.75 for the candidate.
    assert!((examples[1].weights.last().unwrap() - 6.0 / 1.75).abs() < 1e-6);
    assert!((sum(&examples[1]) - (6.0 + 0.75) / 1.75).abs() < 1e-5);
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let refuse = |change: fn(&mut MixtureOptions), name: &str| {
        let mut options = MixtureOptions::default();
        change(&mut options);
        let error = options.check().unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    };
    refuse(|o| o.max_length = 3, "max_length");
    refuse(|o| o.judge_weight = -1.0, "judge_weight");
    refuse(|o| o.judge_weight = 0.0, "judge_weight");
    refuse(|o| o.rationale_weight = f32::NAN, "rationale_weight");
    refuse(|o| o.candidate_weight = f32::INFINITY, "candidate_weight");
    refuse(|o| o.negation = 1.5, "negation");
    let read: MixtureOptions =
        toml::from_str("weighting = 'example_mean'\njudge_weight = 6").unwrap();
    assert_eq!(
        (read.weighting, read.judge_weight, read.max_length),
        (Weighting::ExampleMean, 6.0, 2048)
    );
    assert!(toml::from_str::<MixtureOptions>("judge_wieght = 6").is_err());
}

#[test]
fn plain_pairs_are_imitated_as_they_are_and_judged_as_a_chat() {
    let plain = PreferencePair {
        plain: true,
        ..pair(&["<|user|>q"], " xy", " z")
    };
    for (how, imitated) in [
        (PlainText::Raw, "<|user|>q« xy</s>»"),
        (
            PlainText::Chat,
            "<|user|><|user|>q</s><|assistant|>«xy</s>»",
        ),
    ] {
        let mixture =
            mixture(MixtureOptions::default()).with_plain_text(how, PlainEnd::new("</s>"));
        let (examples, report) = mixture.examples(0, &plain);
        assert_eq!(marked(&examples[0]), imitated);
        assert_eq!((report.plain, report.plain_control), (1, 1));
        assert_eq!(report.judge_examples, 2);
        let asked = fixtures::decode(&examples[1].ids);
        assert!(asked.contains("1: xy\n2: z\n"), "{asked}");
    }
    // A long prompt loses its beginning first, then a long answer its end.
    let long = PreferencePair {
        plain: true,
        judge: false,
        ..pair(&["p".repeat(40).as_str()], &"a".repeat(10), "z")
    };
    let options = MixtureOptions {
        max_length: 20,
        ..MixtureOptions::default()
    };
    let mixture = mixture(options).with_plain_text(PlainText::Raw, PlainEnd::new("</s>"));
    let (examples, report) = mixture.examples(0, &long);
    assert_eq!(
        marked(&examples[0]),
        format!("{}«{}</s>»", "p".repeat(9), "a".repeat(10))
    );
    assert_eq!(report.sft_context_cut, 1);
}

#[test]
fn a_token_that_the_model_lacks_leaves_its_examples_out_and_is_named() {
    let mixture = mixture(MixtureOptions::default()).within(100);
    let (examples, report) = mixture.examples(0, &pair(&["q"], "abc~", "d"));
    assert!(examples.is_empty());
    assert_eq!((report.sft_refused, report.judge_refused), (1, 1));
    let why = report.first_refusal.unwrap();
    assert!(
        why.contains("outside the model's vocabulary of 100"),
        "{why}"
    );
}

//! Whole mixtures, built from streams of pairs; smoke tests on real data.

use judge::{Format, RankedDraw, read_pairs};
use test_support::data;

use super::*;

#[test]
fn building_keeps_the_order_and_does_not_depend_on_threads() {
    let options = MixtureOptions {
        negation: 0.5,
        ..MixtureOptions::default()
    };
    let mixture = mixture(options);
    let pairs: Vec<_> = (0..CHUNK + 100)
        .map(|n| pair(&["q"], &format!("good {n}"), "bad"))
        .collect();
    let build = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let stream = pairs.iter().cloned().map(Ok::<_, std::io::Error>);
        pool.install(|| mixture.build(stream).unwrap())
    };
    let ((one, report), (three, again)) = (build(1), build(3));
    assert_eq!(report, again);
    assert_eq!(one.len(), 3 * pairs.len());
    for index in 0..one.len() {
        assert_eq!(one.get(index), three.get(index));
    }
    let last = mixture
        .examples(pairs.len() as u64 - 1, pairs.last().unwrap())
        .0;
    assert_eq!(one.get(one.len() - 1), last[2]);
    assert_eq!(report.sft_examples, pairs.len() as u64);
    assert!(report.judge_negated > 0);
}

#[test]
fn failing_and_barren_streams_are_errors() {
    let mixture = mixture(MixtureOptions::default());
    let broken = [
        Ok(pair(&["q"], "a", "b")),
        Err(std::io::Error::other("disk on fire")),
    ];
    assert!(
        mixture
            .build(broken)
            .unwrap_err()
            .to_string()
            .contains("disk on fire")
    );
    let none: [Result<PreferencePair, std::io::Error>; 0] = [];
    assert!(matches!(mixture.build(none), Err(MixtureError::NoPairs)));
    let barren = [Ok::<_, std::io::Error>(pair(&["q"], "", ""))];
    assert!(matches!(
        mixture.build(barren),
        Err(MixtureError::Empty { pairs: 1, .. })
    ));
}

#[test]
fn real_conversations_become_examples_under_real_templates() {
    let minimind = data("tokenizers/minimind/tokenizer.json");
    let tokenizer = Tokenizer::from_file(&minimind).unwrap();
    let pairs = read_pairs(
        &data("oasst-100/train.jsonl.gz"),
        Format::Auto,
        RankedDraw::default(),
    )
    .unwrap();
    for name in [
        "minimind",
        "qwen2.5-7b-instruct",
        "tulu-open-instruct",
        "phi-3.5-mini-instruct",
    ] {
        let source =
            std::fs::read_to_string(data("chat-templates").join(format!("{name}.jinja"))).unwrap();
        let special = SpecialTokens::new(Some("<|im_start|>"), Some("<|im_end|>"));
        let chat = ChatTemplate::from_source(&source, special).unwrap();
        let options = MixtureOptions {
            max_length: 512,
            ..MixtureOptions::default()
        };
        let (template, table) = (JudgeTemplate::default(), PrincipleTable::default());
        let mixture = Mixture::new(tokenizer.clone(), chat, template, table, options).unwrap();
        let stream = pairs.iter().cloned().map(Ok::<_, std::io::Error>);
        let (examples, report) = mixture.build(stream).unwrap();
        assert_eq!(report.sft_refused, 0, "{name}: {report}");
        // At most three of these pairs hold an empty answer or two equal ones.
        assert!(
            report.sft_examples >= 160 && report.judge_examples >= 320,
            "{name}: {report}"
        );
        assert_eq!(report.judge_supervised, report.judge_examples);
        for index in 0..examples.len() {
            let example = examples.get(index);
            assert!(example.ids.len() <= 512 && example.weights[0] == 0.0);
            assert!(example.weights.iter().any(|weight| *weight > 0.0));
        }
    }
}

#[test]
fn a_whole_file_is_built_from_its_stream() {
    let pairs = read_pairs(
        &data("oasst-100/train.jsonl.gz"),
        Format::Auto,
        RankedDraw::default(),
    )
    .unwrap();
    let mut mixture = mixture(MixtureOptions::default());
    let tokenizer = data("tokenizers/minimind/tokenizer.json");
    mixture.tokenizer = Tokenizer::from_file(&tokenizer).unwrap();
    mixture.labels =
        LabelTokens::resolve(&mixture.tokenizer, &mixture.chat, &mixture.template).unwrap();
    let (examples, report) = mixture
        .build(pairs.into_iter().map(Ok::<_, std::io::Error>))
        .unwrap();
    assert_eq!(report.pairs, 646);
    assert_eq!(
        examples.len() as u64,
        report.sft_examples + report.judge_examples
    );
    println!("{report}");
}

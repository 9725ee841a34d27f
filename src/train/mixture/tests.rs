//! Golden tests of mixtures with a character tokenizer, and smoke tests on real data.

use std::path::Path;

use super::*;
use crate::plain::PlainEnd;
use judge::fixtures::{self, LABELS};
use judge::{Format, PlainText, RankedDraw, read_pairs};
use test_support::data;
use text::SpecialTokens;
use text::{Message, Role};

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
fn every_assistant_turn_is_supervised_with_its_end() {
    let mixture = mixture(MixtureOptions::default());
    let mut talk = pair(&["q", "x", "r"], "y", "z");
    talk.messages.insert(0, Message::new(Role::System, "s"));
    assert_eq!(
        texts(&mixture, &talk)[0],
        "(s)<|user|>q</s><|assistant|>«x</s>»<|user|>r</s><|assistant|>«y</s>»"
    );
    // The same text in a user turn is not mistaken for an assistant turn.
    let echo = pair(&["x</s>", "x", "x"], "x", "z");
    assert_eq!(texts(&mixture, &echo)[0].matches('«').count(), 2);
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
fn white_space_after_the_end_of_turn_is_not_supervised() {
    let chat = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{{ '\n' }}{% endfor %}\
                {% if add_generation_prompt %}<|assistant|>{% endif %}";
    let mixture = with_chat(chat, MixtureOptions::default());
    assert_eq!(
        texts(&mixture, &pair(&["q", "x", "r"], "y ", "z"))[0],
        "<|user|>q</s>\n<|assistant|>«x</s>»\n<|user|>r</s>\n<|assistant|>«y </s>»\n"
    );
    // If a template ends turns only with a line end, that line end is the end of turn.
    let chat = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ '\n' }}{% endfor %}\
                {% if add_generation_prompt %}assistant:{% endif %}";
    let mixture = with_chat(chat, MixtureOptions::default());
    assert_eq!(
        texts(&mixture, &pair(&["q"], "y", "z"))[0],
        "user:q\nassistant:«y\n»"
    );
}

/// Encodes a pair with the pocket model's tokenizer; returns the tokens before the first supervised one, and the supervised tokens.
fn imitated(chat: &str, chosen: &str) -> (Vec<u32>, Vec<u32>, Tokenizer) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json")).unwrap();
    let mixture = Mixture::new(
        tokenizer.clone(),
        ChatTemplate::from_source(chat, SpecialTokens::default()).unwrap(),
        JudgeTemplate::from_model_dir(&dir).unwrap(),
        PrincipleTable::default(),
        MixtureOptions::default(),
    );
    let (examples, report) = mixture.unwrap().examples(0, &pair(&["q"], chosen, "bad"));
    assert_eq!(
        (report.sft_examples, report.sft_refused),
        (1, 0),
        "{chosen:?}"
    );
    let example = &examples[0];
    let supervised = |at: &usize| example.weights[*at] > 0.0;
    let first = (0..example.ids.len()).find(supervised).unwrap();
    let last = (0..example.ids.len()).rfind(supervised).unwrap();
    assert!((first..=last).all(|at| supervised(&at)), "{chosen:?}");
    (
        example.ids[..first].to_vec(),
        example.ids[first..=last].to_vec(),
        tokenizer,
    )
}

#[test]
fn an_answer_is_encoded_behind_the_prompt_that_the_model_is_given() {
    let marks = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}\
                 {% if add_generation_prompt %}<|assistant|>{% endif %}";
    // The prompt ends in a space, or in a line break.
    let space = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}\
                 {% if add_generation_prompt %}assistant: {% endif %}";
    let line = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}<|end|>{% endfor %}\
                {% if add_generation_prompt %}assistant:\n{% endif %}";
    let mut straddled = 0;
    for (chat, prompt) in [
        (marks, "<|user|>q<|end|>\n<|assistant|>"),
        (space, "user: q<|end|>assistant: "),
        (line, "user:\nq<|end|>assistant:\n"),
    ] {
        for chosen in ["good", " good", "\n\ngood ", "\ngood", "34 plus 28"] {
            let (before, answer, tokenizer) = imitated(chat, chosen);
            assert_eq!(
                before,
                tokenizer.encode_template(prompt).unwrap(),
                "{chosen:?}"
            );
            let text = tokenizer.decode(&answer, false).unwrap();
            assert_eq!(text, format!("{chosen}<|end|>"), "{prompt:?}");
            let whole = tokenizer
                .encode_template(&format!("{prompt}{text}"))
                .unwrap();
            straddled += usize::from(!whole.starts_with(&before));
        }
    }
    assert!(straddled > 0, "no case has a token across the seam");
}

#[test]
fn a_template_that_opens_the_reasoning_is_imitated_from_before_it() {
    // A template like those of R1's distillations, which omits the reasoning of finished turns; and one that keeps it.
    let forgets = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}\
                   {% if add_generation_prompt %}<|assistant|><think>\n{% endif %}";
    let keeps = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
                 {% if add_generation_prompt %}<|assistant|><think>\n{% endif %}";
    let reasoned = "<think>\nhm\n</think>\n\ngood";
    for (chat, chosen, answer) in [
        (forgets, "good", "good<|end|>"),
        (forgets, reasoned, "\n\ngood<|end|>"),
        (keeps, "good", "good<|end|>"),
        (keeps, reasoned, "<think>\nhm\n</think>\n\ngood<|end|>"),
    ] {
        let (before, supervised, tokenizer) = imitated(chat, chosen);
        let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
        // If an answer begins with the text that the prompt opens, that part is already in the prompt.
        let asked = "<|user|>q<|end|><|assistant|>";
        let (before, supervised) = (text(&before), text(&supervised));
        assert!(before.starts_with(asked), "{before:?}");
        assert_eq!(
            format!("{before}{supervised}"),
            format!("{asked}{answer}"),
            "{chosen:?}"
        );
        assert!(supervised.ends_with("good<|end|>"), "{supervised:?}");
    }
}

#[test]
fn templates_that_treat_the_last_turn_specially_supervise_only_it() {
    let chat = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if loop.last %}</s>{% endif %}{% endfor %}\
                {% if add_generation_prompt %}<|assistant|>{% endif %}";
    let strip = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}";
    let mixture = with_chat(
        &chat.replace(
            "{% if loop.last %}",
            "{% if loop.last and not add_generation_prompt %}",
        ),
        MixtureOptions::default(),
    );
    let (examples, report) = mixture.examples(0, &pair(&["q", "x", "r"], "y", "z"));
    assert_eq!(
        marked(&examples[0]),
        "<|user|>q<|assistant|>x<|user|>r<|assistant|>«y</s>»"
    );
    assert_eq!(report.sft_last_turn_only, 1);
    // If the prompt is not a prefix of the conversation, the pair is not imitated, and the report gives the reason.
    let mixture = with_chat(
        &format!("{{% if add_generation_prompt %}}!{{% endif %}}{strip}"),
        MixtureOptions::default(),
    );
    let (examples, report) = mixture.examples(0, &pair(&["q"], "y", "z"));
    assert_eq!(examples.len(), 2);
    assert_eq!(report.sft_refused, 1);
    assert!(report.first_refusal.unwrap().contains("not a prefix"));
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
fn long_dialogues_lose_their_oldest_turns_then_the_start_of_the_question() {
    let options = |max_length| MixtureOptions {
        max_length,
        ..MixtureOptions::default()
    };
    let mut talk = pair(&["first", "one", "second"], "two", "z");
    talk.judge = false;
    let whole = "<|user|>first</s><|assistant|>«one</s>»<|user|>second</s><|assistant|>«two</s>»";
    let (examples, report) = mixture(options(25)).examples(0, &talk);
    assert_eq!(
        (marked(&examples[0]).as_str(), report.sft_context_cut),
        (whole, 0)
    );
    assert_eq!(examples[0].ids.len(), 25);
    let (examples, report) = mixture(options(24)).examples(0, &talk);
    assert_eq!(
        marked(&examples[0]),
        "<|user|>second</s><|assistant|>«two</s>»"
    );
    assert_eq!((report.sft_context_cut, report.sft_answer_cut), (1, 0));
    let mut long = pair(&["0123456789abcdef"], "answer", "z");
    long.judge = false;
    let (examples, report) = mixture(options(20)).examples(0, &long);
    assert_eq!(
        marked(&examples[0]),
        "<|user|>6789abcdef</s><|assistant|>«answer</s>»"
    );
    assert_eq!((report.sft_context_cut, report.sft_answer_cut), (1, 0));
}

#[test]
fn answers_that_are_cut_have_no_end_of_turn() {
    let options = MixtureOptions {
        max_length: 20,
        ..MixtureOptions::default()
    };
    let mut long = pair(&["question"], "0123456789abcdefghijklmnopqrstuvwxyz", "z");
    long.judge = false;
    let (examples, report) = mixture(options.clone()).examples(0, &long);
    // A quarter, 5 tokens, is kept of the prompt's 11.
    assert_eq!(
        marked(&examples[0]),
        "<|user|>on</s><|assistant|>«0123456789abcde»"
    );
    assert_eq!((report.sft_context_cut, report.sft_answer_cut), (1, 1));
    // White space after the end-of-turn mark is not part of the answer.
    let chat = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{{ '\n' }}{% endfor %}\
                {% if add_generation_prompt %}<|assistant|>{% endif %}";
    long.chosen = "0123456789abc".into();
    let mut short = long.clone();
    short.messages[0].content = "q".into();
    let (examples, report) = with_chat(chat, options).examples(0, &short);
    assert_eq!(
        marked(&examples[0]),
        "<|user|>q</s>\n<|assistant|>«0123456789abc</s>»\n"
    );
    assert_eq!((report.sft_context_cut, report.sft_answer_cut), (0, 0));
    assert_eq!(examples[0].ids.len(), 20);
}

#[test]
fn long_judge_prompts_keep_their_frame() {
    let options = MixtureOptions {
        max_length: 80,
        rationale: true,
        ..MixtureOptions::default()
    };
    let mut long = pair(&[&"c".repeat(100)], &"a".repeat(100), &"b".repeat(100));
    (long.sft, long.rationale) = (false, Some("r".repeat(100)));
    let (examples, report) = mixture(options.clone()).examples(0, &long);
    for example in &examples {
        assert_eq!(example.ids.len(), 80);
        let text = marked(example);
        assert!(text.starts_with("<|user|>By: best.\nQ: ccc"), "{text}");
        assert!(text.contains("Which?</s><|assistant|>I say« "), "{text}");
        assert!(text.ends_with("r»"), "{text}");
    }
    assert_eq!((report.judge_cut, report.judge_rationale_cut), (2, 2));
    let none = MixtureOptions {
        max_length: 40,
        ..options
    };
    let (examples, report) = mixture(none).examples(0, &long);
    assert!(examples.is_empty());
    assert_eq!((report.judge_no_room, report.judge_cut), (1, 0));
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
fn answers_that_are_equal_once_cut_are_not_judged() {
    let options = MixtureOptions {
        max_length: 90,
        ..MixtureOptions::default()
    };
    let answer = |middle: &str| format!("{}{middle}{}", "a".repeat(200), "b".repeat(200));
    let (examples, report) = mixture(options).examples(
        0,
        &PreferencePair {
            sft: false,
            ..pair(&["q"], &answer("x"), &answer("y"))
        },
    );
    assert!(
        examples.is_empty(),
        "{}",
        fixtures::decode(&examples[0].ids)
    );
    assert_eq!((report.judge_equal, report.judge_cut), (1, 0));
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

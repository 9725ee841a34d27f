//! Examples above the maximum length: what they lose, and what they keep.

use super::*;

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

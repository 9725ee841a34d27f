//! Imitation: which tokens of an answer are supervised, under which templates.

use std::path::Path;

use super::*;

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

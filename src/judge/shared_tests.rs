//! Prompts of tournaments, whose texts are encoded once, are compared with prompts that are encoded as a whole.

use super::*;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use test_support::data;
use text::Role;

/// Draws a text of about `words` words, with numbers, lines and characters of several bytes.
fn answer(rng: &mut ChaCha8Rng, words: usize) -> String {
    const WORDS: [&str; 16] = [
        "the",
        "answer",
        "is",
        "sixty-two,",
        "because",
        "17",
        "and",
        "45",
        "make",
        "it.",
        "Thus:",
        "é",
        "漢字",
        "🙂",
        "x = 1;",
        "Assistant A",
    ];
    let mut text = String::new();
    for _ in 0..words {
        text.push_str(WORDS.choose(rng).unwrap());
        text.push_str(
            [" ", " ", " ", " ", "  ", "\n", "\n\n", ""]
                .choose(rng)
                .unwrap(),
        );
    }
    text
}

/// Returns the pairs of a knockout of `n` candidates whose first one always wins.
fn knockout(n: usize) -> Vec<(usize, usize)> {
    let mut bracket = Bracket::new(n, Method::Knockout, 1).unwrap();
    let mut pairs = Vec::new();
    while !bracket.round().is_empty() {
        let round = bracket.round().to_vec();
        pairs.extend(round.iter().map(|m| (m.first, m.second)));
        let wins = Outcome {
            winner: Winner::A,
            p: 0.9,
        };
        bracket.record(&vec![wins; round.len()]).unwrap();
    }
    pairs
}

/// Encodes the prompts of a tournament, each compared with its encoding as a whole. Returns the number of bytes of all prompts, and of
/// those that were encoded.
fn tournament(judge: &Judge, context: &[Message], candidates: &[String]) -> (u64, u64) {
    let context = judge.shown_context(context).unwrap();
    let shown: Vec<_> = candidates
        .iter()
        .map(|text| judge.shown_answer(text).unwrap())
        .collect();
    let principles = [None, Some("The better answer is right.")];
    let (parts, mut bytes) = (EncodedParts::new(), 0);
    for (a, b) in knockout(candidates.len()) {
        let pair = [&*shown[a], &*shown[b]];
        let mut encoded = EncodedComparison::default();
        let mut whole = EncodedComparison::default();
        for principle in principles {
            judge
                .encode_shown(
                    &context,
                    pair,
                    principle,
                    &Order::BOTH,
                    &parts,
                    &mut encoded,
                )
                .unwrap();
            for [first, second] in [pair, [pair[1], pair[0]]] {
                let principles: Vec<String> = principle.map(str::to_owned).into_iter().collect();
                let prompt = judge
                    .template
                    .render_shown(&judge.chat, &context, first, second, &principles)
                    .unwrap();
                bytes += prompt.rendered.text.len() as u64;
                let fitted = fit(&judge.tokenizer, &prompt, judge.max_prompt).unwrap();
                whole.cut |= fitted.cut;
                whole.prompts.push(fitted.ids);
                whole.shared.push(fitted.b.start);
            }
        }
        assert_eq!(encoded, whole);
    }
    (bytes, parts.encoded_bytes())
}

#[test]
fn prompts_of_a_tournament_are_those_encoded_as_a_whole() {
    let minimind = Tokenizer::from_file(&data("tokenizers/minimind/tokenizer.json")).unwrap();
    let stories = Tokenizer::from_file(&data("stories260k/tokenizer.json")).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let templates = [
        JudgeTemplate::hh(),
        JudgeTemplate::ultrafeedback(),
        fixtures::template(),
    ];
    for template in templates {
        for tokenizer in [fixtures::tokenizer(), minimind.clone(), stories.clone()] {
            // The labels of some templates are not one token each, which does not matter here.
            let judge = |max_context: usize| Judge {
                tokenizer: tokenizer.clone(),
                chat: fixtures::chat(),
                template: template.clone(),
                labels: LabelTokens { ids: [0; 2] },
                unusable: None,
                table: PrincipleTable::default(),
                max_prompt: max_context - 1,
            };
            for words in [0, 3, 40, 300] {
                let context = [Message::new(Role::User, answer(&mut rng, words))];
                let candidates: Vec<String> = (0..6)
                    .map(|_| rng.random_range(0..=words))
                    .collect::<Vec<_>>()
                    .into_iter()
                    .map(|words| answer(&mut rng, words))
                    .collect();
                for max_context in [700, 100_000] {
                    tournament(&judge(max_context), &context, &candidates);
                }
            }
        }
    }
}

#[test]
fn a_tournament_encodes_each_candidate_once() {
    let tokenizer = Tokenizer::from_file(&data("tokenizers/minimind/tokenizer.json")).unwrap();
    let judge = Judge {
        tokenizer,
        chat: fixtures::chat(),
        template: JudgeTemplate::hh(),
        labels: LabelTokens { ids: [0; 2] },
        unusable: None,
        table: PrincipleTable::default(),
        max_prompt: 100_000,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let candidates: Vec<String> = (0..16).map(|_| answer(&mut rng, 200)).collect();
    let context = answer(&mut rng, 200);
    let texts = candidates.iter().map(String::len).sum::<usize>() + context.len();
    let context = [Message::new(Role::User, context)];
    let (whole, encoded) = tournament(&judge, &context, &candidates);
    assert!(encoded < whole / 5, "{encoded} of {whole} bytes");
    assert!(encoded < 2 * texts as u64, "{encoded} bytes for {texts}");
}

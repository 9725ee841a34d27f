//! Log-probabilities of prompts against the dense decoder, in mixes with other requests, with cached prefixes and preemptions.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::by_hand::ByHand;
use super::reference_tests::dense_logits;
use super::tests::{pocket_in, runtime};
use super::*;
use kernels::linear::WeightFormat;
use model::{LanguageModel, LoadOptions};
use test_support::data;

/// Tolerance for sums in another order.
const TOLERANCE: f32 = 1e-4;

/// Returns the prompt's log-probabilities and the tokens that follow, as received from the stream.
fn heard(stream: &mut RequestStream) -> (Option<Vec<PromptLogprobs>>, Vec<u32>) {
    let (mut prompt, mut ids) = (None, Vec::new());
    runtime().block_on(async {
        while let Some(event) = stream.next().await {
            match event {
                StreamEvent::Started { .. } => {}
                StreamEvent::Prompt(scores) => {
                    assert!(ids.is_empty(), "the prompt comes before its answer");
                    assert_eq!(prompt.replace(scores), None, "and once");
                }
                StreamEvent::Token { id, .. } => ids.push(id),
                StreamEvent::Failed(failure) => panic!("{failure}"),
            }
        }
    });
    (prompt, ids)
}

#[test]
fn prompts_are_scored_as_the_dense_decoder_scores_them_in_any_mix() {
    let decoder = pocket_in(Some(WeightFormat::F32));
    let (mut preemptions, mut scored) = (0, 0);
    for seed in 0..12 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let block_size = [1, 3, 8, 16][seed as usize % 4];
        let limits = ByHand::limits(rng.random_range(9..40), 8);
        let tokens: usize = [70, 200][seed as usize % 2];
        let mut engine = ByHand::new(&decoder, limits, tokens.div_ceil(block_size), block_size);
        let shared: Vec<u32> = (0..24).map(|_| rng.random_range(5..380)).collect();
        let mut jobs = Vec::new();
        for at in 0..12 {
            let mut prompt = shared[..rng.random_range(0..=shared.len())].to_vec();
            let own = rng.random_range(1..=20);
            prompt.extend((0..own).map(|_| rng.random_range(5..380u32)));
            let mut params = SamplingParams::new(rng.random_range(1..12), vec![]);
            params.seed = Some(at);
            params.prompt_logprobs = [None, Some(0), Some(3)][rng.random_range(0..3)];
            let mut request = GenerateRequest::new(prompt, params);
            request.samples = rng.random_range(1..=3);
            jobs.push((engine.submit(request.clone()).1, request));
            for _ in 0..rng.random_range(0..3) {
                engine.step();
            }
        }
        for _ in 0..10_000 {
            engine.step();
        }
        assert!(engine.core.is_idle());
        preemptions += engine.metrics.preemptions.get();
        for (mut stream, request) in jobs {
            let prompt = &request.prompt;
            let (found, ids) = heard(&mut stream);
            assert_eq!(ids.len(), request.samples * request.params.stop.max_tokens);
            let Some(top) = request.params.prompt_logprobs.filter(|_| prompt.len() > 1) else {
                assert_eq!(found, None);
                continue;
            };
            let found = found.unwrap();
            let logits = dense_logits(&decoder, prompt);
            assert_eq!(found.len(), prompt.len() - 1);
            for ((found, row), &id) in found.iter().zip(&logits).zip(&prompt[1..]) {
                let exact = PromptLogprobs::new(row, id, top);
                let (found_top, exact_top) = (&found.logprobs.top, &exact.logprobs.top);
                assert_eq!(found_top.len(), top);
                let pairs = found_top
                    .iter()
                    .zip(exact_top)
                    .map(|(found, exact)| (found.1, exact.1));
                for (found, exact) in pairs.chain([(found.logprobs.token, exact.logprobs.token)]) {
                    assert!(
                        (found - exact).abs() < TOLERANCE,
                        "{found} for {exact}: {request:?}"
                    );
                }
                assert!(
                    found.rank.abs_diff(exact.rank) <= 1,
                    "equal logits may change places"
                );
                scored += 1;
            }
        }
    }
    assert!(preemptions > 10 && scored > 1000, "{preemptions}, {scored}");
}

/// Compares a third-party model with its golden values, which are also those of transformers.
#[test]
fn prompts_of_stories260k_are_as_probable_as_its_goldens_say() {
    let from = data("stories260k");
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    let template = "{{ messages[0].content }}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let options = LoadOptions {
        format: Some(WeightFormat::F32),
        ..LoadOptions::default()
    };
    let model = LanguageModel::load(dir.path(), &options).unwrap();
    let golden = std::fs::read_to_string(from.join("golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
    let mut engine = ByHand::new(model.decoder(), ByHand::limits(16, 4), 100, 8);
    for golden in golden["prompts"].as_array().unwrap() {
        let prompt: Vec<u32> = serde_json::from_value(golden["prompt_ids"].clone()).unwrap();
        let mut params = SamplingParams::new(1, vec![]);
        params.prompt_logprobs = Some(0);
        let (_, mut stream) = engine.submit(GenerateRequest::new(prompt, params));
        while !engine.core.is_idle() {
            engine.step();
        }
        let found = heard(&mut stream).0.unwrap();
        let sum: f32 = found.iter().map(|token| token.logprobs.token).sum();
        let golden = golden["prompt_sum_logprob"].as_f64().unwrap() as f32;
        assert!((sum - golden).abs() < 2e-3, "{sum} for {golden}");
    }
}

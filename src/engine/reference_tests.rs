//! The engine against the dense decoder: random mixes on random caches, every sequence compared with the model run on it alone.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::by_hand::ByHand;
use super::sampler::Sampler;
use super::tests::{Heard, listen, pocket_in};
use super::*;
use kernels::{linear::WeightFormat, nn::AttentionBackend};
use model::{Decoder, Packed};

/// Tolerance for sums in another order.
const TOLERANCE: f32 = 1e-4;
const STOP: u32 = 3;
/// The maximum number of tokens of a prompt.
const LONGEST: usize = 48;

/// Counts of the cases that must occur at least once for the comparison to be meaningful.
#[derive(Debug, Default)]
struct Happened {
    preemptions: u64,
    /// Prompts found in the cache up to the middle of a block.
    partial_hits: usize,
    full_hits: usize,
    /// Siblings that shared a block which neither had filled.
    shared_tails: usize,
    chunks: usize,
    compared: usize,
    knife_edges: usize,
}

/// Returns the logits after every token of `ids`, computed by the dense decoder.
pub(super) fn dense_logits(decoder: &Decoder, ids: &[u32]) -> Vec<Vec<f32>> {
    let lens = [ids.len() as u32];
    let cu_seqlens = [0, lens[0]];
    let packed = Packed {
        ids,
        cu_seqlens: &cu_seqlens,
        seq_lens: &lens,
        prompt_lens: &lens,
        most_lens: &lens,
    };
    let backend = AttentionBackend::Dense {
        cu_seqlens: &cu_seqlens,
    };
    let hidden = decoder.forward(packed, &backend).unwrap();
    decoder.logits(&hidden).unwrap().to_vec2().unwrap()
}

fn random_request(rng: &mut ChaCha8Rng, shared: &[u32], max_sequences: usize) -> GenerateRequest {
    let mut prompt = shared[..rng.random_range(0..=shared.len())].to_vec();
    let own = rng.random_range(1..=LONGEST - shared.len());
    prompt.extend((0..own).map(|_| rng.random_range(5..380u32)));
    let mut params = SamplingParams::new(rng.random_range(1..12), vec![STOP]);
    params.stop.min_tokens = rng.random_range(0..4);
    params.seed = Some(rng.random());
    params.temperature = [0.0, 0.8, 1.4][rng.random_range(0..3)];
    params.top_k = [0, 0, 20][rng.random_range(0..3)];
    params.top_p = [1.0, 0.9][rng.random_range(0..2)];
    params.repetition_penalty = [1.0, 1.3][rng.random_range(0..2)];
    params.presence_penalty = [0.0, 0.5][rng.random_range(0..2)];
    params.logprobs = Some(0);
    params.logprob_ids = vec![STOP, 7, 11];
    let mut request = GenerateRequest::new(prompt, params);
    request.samples = [1, 1, 2, 4][rng.random_range(0..4)].min(max_sequences);
    request.priority = rng.random_range(-1..=1);
    request.class =
        [Class::Foreground, Class::Foreground, Class::Background][rng.random_range(0..3)];
    request
}

/// Counts the cases that occurred in the last step.
fn look(
    engine: &ByHand,
    jobs: &[(RequestId, RequestStream, GenerateRequest)],
    block_size: usize,
    happened: &mut Happened,
) {
    let scheduler = engine.core.scheduler();
    for (first, _, job) in jobs {
        let Some(request) = scheduler.request(*first) else {
            continue;
        };
        let cached = request.num_cached_tokens.unwrap_or(0);
        let computed = request.num_computed_tokens;
        happened.chunks += usize::from(cached < computed && computed < request.num_prompt_tokens);
        let table = scheduler.kv().block_table(*first);
        let tail = computed / block_size;
        if computed.is_multiple_of(block_size) || tail >= table.len() {
            continue;
        }
        let shares = |index| {
            let sibling = scheduler.kv().block_table(first.sample(index));
            sibling.get(tail) == table.get(tail)
        };
        happened.shared_tails += (1..job.samples).filter(|&index| shares(index)).count();
    }
}

/// Compares one sample with the model run on it alone, with the same tokens as input.
fn compare(
    decoder: &Decoder,
    request: &GenerateRequest,
    index: usize,
    heard: &Heard,
    happened: &mut Happened,
) {
    let params = &request.params;
    let (prompt, seed) = (&request.prompt, params.seed.unwrap());
    let mut sampler = Sampler::new(params, prompt, seed, index);
    let ids = [prompt.as_slice(), &heard.ids].concat();
    let logits = dense_logits(decoder, &ids[..ids.len() - 1]);
    // Log-probabilities of the token itself and of the requested ids.
    let found = heard.bits.chunks_exact(1 + params.logprob_ids.len());
    assert_eq!(found.len(), heard.ids.len());
    let mut in_step = true;
    for ((row, &id), found) in logits[prompt.len() - 1..].iter().zip(&heard.ids).zip(found) {
        let exact = TokenLogprobs::new(row, id, 0, &params.logprob_ids);
        for (found, exact) in found
            .iter()
            .zip(std::iter::once(&exact.token).chain(&exact.chosen))
        {
            let found = f32::from_bits(*found);
            assert!(
                (found - exact).abs() < TOLERANCE,
                "{found} for {exact}: {request:?}"
            );
        }
        happened.compared += 1;
        // Where the last bits decide, another token may be drawn; the tokens after it are then not comparable.
        in_step = in_step && sampler.sample(params, row).unwrap().id == id;
        happened.knife_edges += usize::from(!in_step);
    }
    let last = *heard.ids.last().unwrap();
    let stopped = last == STOP && heard.ids.len() >= params.stop.min_tokens;
    let whole = heard.ids.len() == params.stop.max_tokens;
    match heard.finished {
        Some(FinishReason::Stop) => assert!(stopped),
        Some(FinishReason::Length) => assert!(whole && !stopped),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_sequence_of_any_mix_is_what_the_dense_decoder_makes_of_it_alone() {
    // f32 throughout: rounding of activations or of the cache would amplify the last bits in which dense and paged attention differ.
    let decoder = pocket_in(Some(WeightFormat::F32));
    let mut happened = Happened::default();
    for seed in 0..24 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let block_size = [1, 3, 8, 16, 33][seed as usize % 5];
        let max_sequences = rng.random_range(2..12);
        let max_batch_tokens = max_sequences + rng.random_range(1..40);
        // Room for a little more than the longest sequence, or for all sequences.
        let tokens = LONGEST + 12 + [4, 40, 1000][rng.random_range(0..3)];
        let mut limits = ByHand::limits(max_batch_tokens, max_sequences);
        limits.max_drafts = rng.random_range(0..4);
        let num_blocks = tokens.div_ceil(block_size);
        let mut engine = ByHand::new(&decoder, limits, num_blocks, block_size);
        let shared: Vec<u32> = (0..30).map(|_| rng.random_range(5..380)).collect();
        let mut jobs = Vec::new();
        let mut steps = 0;
        while jobs.len() < 10 || !engine.core.is_idle() {
            // Requests arrive one by one, and some together.
            while jobs.len() < 10 && rng.random_bool(0.6) {
                let request = random_request(&mut rng, &shared, max_sequences);
                let (first, stream) = engine.submit(request.clone());
                jobs.push((first, stream, request));
            }
            engine.step();
            steps += 1;
            assert!(steps < 10_000, "nothing moves, with seed {seed}");
            look(&engine, &jobs, block_size, &mut happened);
            for (first, _, _) in &jobs {
                // The request's first token has just arrived.
                let request = engine.core.scheduler().request(*first);
                let first_token = request.filter(|request| request.num_output_tokens() == 1);
                let cached = first_token.and_then(|request| request.num_cached_tokens);
                let cached = cached.unwrap_or(0);
                happened.partial_hits += usize::from(!cached.is_multiple_of(block_size));
                happened.full_hits += usize::from(cached >= block_size);
            }
        }
        happened.preemptions += engine.metrics.preemptions.get();
        for (_, mut stream, request) in jobs {
            let (heard, failure) = listen(&mut stream, request.samples);
            assert_eq!(failure, None);
            for (index, heard) in heard.iter().enumerate() {
                compare(&decoder, &request, index, heard, &mut happened);
            }
        }
        let kv = engine.core.scheduler().kv();
        assert_eq!(kv.num_free_blocks(), kv.num_blocks());
    }
    eprintln!("{happened:?}");
    assert!(happened.preemptions > 20, "{happened:?}");
    assert!(
        happened.partial_hits > 20 && happened.full_hits > 20,
        "{happened:?}"
    );
    assert!(
        happened.shared_tails > 20 && happened.chunks > 20,
        "{happened:?}"
    );
    assert!(happened.compared > 1000, "{happened:?}");
    // Sums in another order differ by millionths: hardly one draw in a thousand is that close.
    assert!(
        happened.knife_edges * 200 <= happened.compared,
        "{happened:?}"
    );
}

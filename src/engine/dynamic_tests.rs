//! Dynamic rotary scaling in the engine: a prompt beyond the trained length gives the same bits alone, beside others, cached and in chunks.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::by_hand::ByHand;
use super::tests::{Heard, listen};
use super::*;
use kernels::{
    linear::{PackedLinear, WeightFormat},
    nn::Linear,
};
use model::{Checkpoint, Decoder, ModelConfig, ModelError, ParameterSource};

/// The trained context length; scaling extends it four times.
const TRAINED: usize = 16;

/// The checkpoint's tensors, packed as in serving, where each row is computed in its own order.
struct Weights(Checkpoint);

impl ParameterSource for Weights {
    fn linear(&mut self, path: &str, shape: [usize; 2], _: bool) -> Result<Linear, ModelError> {
        let weight = self.tensor(&format!("{path}.weight"), &shape)?;
        let packed = PackedLinear::from_tensor(&weight, None, WeightFormat::F32)?;
        Ok(Linear::packed(packed, None))
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.0
            .tensor(name, shape.to_vec(), DType::F32, &Device::Cpu)
    }
}

/// Returns the decoder of a fixture as it is served.
pub(super) fn served(name: &str) -> Decoder {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/arch");
    let dir = dir.join(name);
    let spec = ModelConfig::from_dir(&dir).unwrap().spec;
    Decoder::new(spec, &mut Weights(Checkpoint::open(&dir).unwrap())).unwrap()
}

fn dynamic() -> Decoder {
    let decoder = served("llama_dynamic");
    assert_eq!(decoder.spec().max_position_embeddings, TRAINED);
    decoder
}

/// Requests with common prefixes and prompts below, at and beyond the trained length; some have equal lengths, some equal prompts.
fn calls() -> Vec<GenerateRequest> {
    let token = |i: usize| (i * i * 7 + i * 11) as u32 % 70 + 5;
    let shared: Vec<u32> = (0..40).map(token).collect();
    let lengths = [4, 15, 16, 17, 17, 24, 24, 30, 40, 40, 12];
    lengths
        .iter()
        .enumerate()
        .map(|(at, &length)| {
            let mut prompt = shared[..length].to_vec();
            if at % 2 == 1 && at != 9 {
                // The same length and the same prefix, another ending.
                prompt[length - 2] = token(at + 50);
            }
            let mut params = SamplingParams::new(20 - at, vec![]);
            params.seed = Some(at as u64);
            params.temperature = [0.0, 0.9][at % 2];
            params.logprobs = Some(0);
            params.logprob_ids = vec![7, 11];
            let mut request = GenerateRequest::new(prompt, params);
            request.samples = 1 + at % 3;
            request
        })
        .collect()
}

pub(super) fn finish(engine: &mut ByHand) {
    while !engine.core.is_idle() {
        engine.step();
    }
}

#[test]
fn prompts_beyond_the_trained_length_have_the_same_bits_in_any_mix() {
    let decoder = dynamic();
    let calls = calls();
    let alone: Vec<Vec<Heard>> = calls
        .iter()
        .map(|call| {
            let mut engine = ByHand::new(&decoder, ByHand::limits(256, 8), 512, 4);
            let (_, mut stream) = engine.submit(call.clone());
            finish(&mut engine);
            let (heard, failure) = listen(&mut stream, call.samples);
            assert_eq!(failure, None);
            heard
        })
        .collect();
    let mut preemptions = 0;
    for (budget, sequences, blocks, block_size) in [
        (256, 32, 512, 4),
        (40, 32, 512, 4),
        (90, 8, 512, 5),
        (7, 8, 60, 3),
        (16, 6, 200, 1),
        // A cache little larger than the longest request, so running requests are preempted.
        (40, 8, 24, 3),
        (256, 8, 24, 3),
    ] {
        let mut engine = ByHand::new(
            &decoder,
            ByHand::limits(budget, sequences),
            blocks,
            block_size,
        );
        // Two rounds, so that the second finds the cached blocks of the first.
        for round in 0..2 {
            let mut streams = Vec::new();
            for call in &calls {
                streams.push(engine.submit(call.clone()).1);
                engine.step();
            }
            finish(&mut engine);
            for ((mut stream, call), alone) in streams.into_iter().zip(&calls).zip(&alone) {
                let (heard, failure) = listen(&mut stream, call.samples);
                assert_eq!(failure, None);
                let length = call.prompt.len();
                assert_eq!(&heard, alone, "prompt of {length}, {budget}, round {round}");
            }
        }
        preemptions += engine.metrics.preemptions.get();
    }
    assert!(preemptions > 0);
}

#[test]
fn a_prompt_finds_blocks_of_its_own_length_only_beyond_the_trained_one() {
    let decoder = dynamic();
    let cached = |first: usize, then: usize| {
        let mut engine = ByHand::new(&decoder, ByHand::limits(256, 8), 512, 4);
        let mut found = None;
        for length in [first, then] {
            let prompt = (0..length as u32).collect();
            let params = SamplingParams::new(1, vec![]);
            let (_, mut stream) = engine.submit(GenerateRequest::new(prompt, params));
            finish(&mut engine);
            found = cached_tokens(&mut stream);
        }
        found.unwrap()
    };
    // Within the trained length the cache works as without scaling.
    assert_eq!(cached(12, 16), 12);
    assert_eq!(cached(16, 9), 8);
    // The same prompt again, except for its last token.
    assert_eq!(cached(32, 32), 31);
    // Keys rotated for another prompt length must not be found.
    for (first, then) in [(32, 33), (33, 32), (16, 17), (17, 16)] {
        assert_eq!(cached(first, then), 0, "{first} and then {then} tokens");
    }
}

/// Returns the number of prompt tokens that the cache held.
pub(super) fn cached_tokens(stream: &mut RequestStream) -> Option<usize> {
    super::tests::runtime().block_on(async {
        let mut cached = None;
        while let Some(event) = stream.next().await {
            if let StreamEvent::Started {
                num_cached_tokens, ..
            } = event
            {
                cached = Some(num_cached_tokens);
            }
        }
        cached
    })
}

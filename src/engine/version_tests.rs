//! Several versions in one engine: each gives the same output as alone, and swaps have no visible effect.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::tests::{
    Heard, listen, memory, pocket, pocket_in, requests, runtime, small, start_store,
};
use super::*;
use kernels::{linear::WeightFormat, nn::AttentionBackend};
use model::{
    Checkpoint, Decoder, ModelError, Packed, ParameterSource, Roles, WeightsLease,
    adapter::{AdapterWeights, LoraConfig, testing},
};

const EVERYWHERE: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// Returns the base and two adapters.
fn three(store: &WeightStore) -> [WeightsLease; 3] {
    let spec = store.decoder().spec();
    let publish = |name, r, modules: &[&str], seed| {
        let (config, weights) = testing::random(spec, r, modules, seed);
        store.publish(name, &config, &weights).unwrap()
    };
    [
        store.base().clone(),
        publish("one", 8, &EVERYWHERE, 1),
        publish("two", 3, &["q_proj", "down_proj"], 2),
    ]
}

fn with(request: &GenerateRequest, weights: &WeightsLease) -> GenerateRequest {
    GenerateRequest {
        weights: Some(weights.clone()),
        ..request.clone()
    }
}

#[test]
fn versions_mixed_in_one_batch_give_the_bits_of_each_alone() {
    let decoder = pocket();
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let requests = requests(&mut rng, 18);
    let store = WeightStore::new(decoder.clone());
    let versions = three(&store);
    let alone: Vec<[Vec<Heard>; 3]> = {
        let config = EngineConfig {
            prefix_caching: false,
            ..small()
        };
        let (engine, _thread) = start_store(store.clone(), &config);
        let one = |request: &GenerateRequest| {
            [0, 1, 2].map(|version| {
                let request = with(request, &versions[version]);
                let samples = request.samples;
                listen(&mut engine.submit(request).unwrap(), samples).0
            })
        };
        requests.iter().map(one).collect()
    };
    let differ = |a: usize, b: usize| alone.iter().filter(|heard| heard[a] != heard[b]).count();
    assert_eq!((differ(0, 1), differ(0, 2), differ(1, 2)), (18, 18, 18));
    for (block_size, max_batch_tokens, max_concurrent, kv_tokens) in
        [(16, 512, 64, 8192), (7, 9, 8, 600), (33, 100, 24, 1100)]
    {
        let config = EngineConfig {
            kv_cache_memory: memory(&decoder, kv_tokens),
            block_size,
            max_batch_tokens,
            max_concurrent,
            ..small()
        };
        let (engine, thread) = start_store(store.clone(), &config);
        // The same prompts for all versions: a prefix shared across versions would change an output.
        let mut streams: Vec<(RequestStream, &Vec<Heard>)> = Vec::new();
        for (at, (request, alone)) in requests.iter().zip(&alone).enumerate() {
            for (version, weights) in versions.iter().enumerate() {
                let mut request = with(request, weights);
                if (at + version) % 4 == 0 {
                    request.class = Class::Background;
                }
                streams.push((engine.submit(request).unwrap(), &alone[version]));
            }
        }
        for (stream, alone) in &mut streams {
            let (heard, failure) = listen(stream, alone.len());
            assert_eq!(failure, None);
            assert_eq!(&heard, *alone, "{config:?}");
        }
        drop(engine);
        thread.join();
    }
}

/// The checkpoint's tensors with an adapter added to them.
struct Merged<'a> {
    checkpoint: &'a Checkpoint,
    adapter: &'a (LoraConfig, AdapterWeights),
}

impl ParameterSource for Merged<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let shape = shape.to_vec();
        let tensor = self
            .checkpoint
            .tensor(name, shape, DType::F32, &Device::Cpu)?;
        let path = name.trim_end_matches(".weight");
        let (config, weights) = self.adapter;
        match weights.get(path) {
            Some(pair) => Ok((tensor + (pair.b.matmul(&pair.a)? * config.scale(path))?)?),
            None => Ok(tensor),
        }
    }
}

#[test]
fn an_adapter_beside_the_base_is_the_adapter_merged_into_it() {
    // f32 throughout: rounding of activations to bf16 would amplify the last bits.
    let base = pocket_in(Some(WeightFormat::F32));
    let spec = base.spec().clone();
    let adapter = testing::random(&spec, 4, &EVERYWHERE, 3);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let mut source = Merged {
        checkpoint: &checkpoint,
        adapter: &adapter,
    };
    let merged = Decoder::new(spec, &mut source).unwrap();
    let store = WeightStore::new(base);
    let lease = store.publish("one", &adapter.0, &adapter.1).unwrap();
    let (engine, _thread) = start_store(store, &small());
    let prompt: Vec<u32> = (5..45).collect();
    let mut params = SamplingParams::new(12, vec![]);
    params.seed = Some(7);
    params.logprobs = Some(0);
    let request = with(&GenerateRequest::new(prompt.clone(), params), &lease);
    let (heard, _) = listen(&mut engine.submit(request).unwrap(), 1);
    let ids = [prompt.clone(), heard[0].ids.clone()].concat();
    let lens = [ids.len() as u32];
    let cu_seqlens = [0, lens[0]];
    let packed = Packed {
        ids: &ids,
        cu_seqlens: &cu_seqlens,
        seq_lens: &lens,
        prompt_lens: &lens,
        most_lens: &lens,
    };
    let backend = AttentionBackend::Dense {
        cu_seqlens: &cu_seqlens,
    };
    let logits = |decoder: &Decoder| -> Vec<Vec<f32>> {
        let hidden = decoder.forward(packed, &backend).unwrap();
        decoder.logits(&hidden).unwrap().to_vec2().unwrap()
    };
    let (with, without) = (logits(&merged), logits(engine.weights().decoder()));
    let mut moved = 0.0f32;
    for (i, &id) in heard[0].ids.iter().enumerate() {
        let row = prompt.len() + i - 1;
        let exact = TokenLogprobs::new(&with[row], id, 0, &[]).token;
        let got = f32::from_bits(heard[0].bits[i]);
        assert!((got - exact).abs() < 1e-4, "{got} {exact}");
        let base = TokenLogprobs::new(&without[row], id, 0, &[]).token;
        moved = moved.max((got - base).abs());
    }
    assert!(moved > 0.01, "the adapter changed nothing: {moved}");
}

/// Returns the name of the weights that answered, and their output.
fn answer(stream: &mut RequestStream) -> (String, Vec<u32>) {
    let (mut name, mut ids) = (None, Vec::new());
    runtime().block_on(async {
        while let Some(event) = stream.next().await {
            match event {
                StreamEvent::Started { weights, .. } => name = Some(weights.to_string()),
                StreamEvent::Token { id, .. } => ids.push(id),
                StreamEvent::Prompt(_) => {}
                StreamEvent::Failed(failure) => panic!("{failure}"),
            }
        }
    });
    (name.unwrap(), ids)
}

#[test]
fn swaps_under_load_fail_nobody_and_every_answer_is_of_the_version_it_names() {
    let store = WeightStore::new(pocket());
    let (engine, thread) = start_store(store.clone(), &small());
    let request = |at: u32| {
        let prompt: Vec<u32> = (0..20 + at % 3).map(|i| 5 + (7 * i + at) % 300).collect();
        let mut params = SamplingParams::new(10, vec![]);
        params.seed = Some(u64::from(at));
        GenerateRequest::new(prompt, params)
    };
    const PROMPTS: u32 = 6;
    let mut expected: HashMap<(String, u32), Vec<u32>> = HashMap::new();
    for weights in three(&store) {
        for at in 0..PROMPTS {
            let mut stream = engine.submit(with(&request(at), &weights)).unwrap();
            let (name, ids) = answer(&mut stream);
            assert_eq!(name, weights.name().as_str());
            expected.insert((name, at), ids);
        }
    }
    std::thread::scope(|scope| {
        let client = |client: u32| {
            for at in client..client + 40 {
                let at = at % PROMPTS;
                let (name, ids) = answer(&mut engine.submit(request(at)).unwrap());
                assert_eq!(ids, expected[&(name.clone(), at)], "{name}");
            }
        };
        let clients = [0, 1, 2, 3].map(|at| scope.spawn(move || client(at)));
        for round in 0.. {
            if round >= 12 && clients.iter().all(|client| client.is_finished()) {
                break;
            }
            // Published anew each time: versions without users have been freed.
            let policy = three(&store)[round % 3].clone();
            let mut roles = Roles::all(store.base());
            roles.policy = policy.clone();
            store.set_roles(roles).unwrap();
            let (name, _) = answer(&mut engine.submit(request(0)).unwrap());
            assert_eq!(name, policy.name().as_str(), "a new request takes the new");
        }
        for client in clients {
            client.join().unwrap();
        }
    });
    store.set_roles(Roles::all(store.base())).unwrap();
    drop(engine);
    thread.join();
    let left = store.versions();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!((left[0].leases, left[0].name.as_str()), (0, "base"));
}

#[test]
fn a_request_keeps_its_version_while_others_are_swapped_in() {
    let store = WeightStore::new(pocket());
    let [_, one, two] = three(&store);
    let mut roles = Roles::all(store.base());
    roles.policy = one;
    store.set_roles(roles.clone()).unwrap();
    let (engine, thread) = start_store(store.clone(), &small());
    let mut params = SamplingParams::new(200, vec![]);
    params.seed = Some(1);
    let request = GenerateRequest::new(vec![9; 30], params);
    let whole = answer(&mut engine.submit(request.clone()).unwrap());
    let mut stream = engine.submit(request).unwrap();
    runtime().block_on(async {
        assert!(matches!(
            stream.next().await,
            Some(StreamEvent::Started { .. })
        ));
    });
    roles.policy = two;
    store.set_roles(roles).unwrap();
    let (heard, failure) = listen(&mut stream, 1);
    assert_eq!((failure, &heard[0].ids), (None, &whole.1));
    assert_eq!(whole.0, "one");
    drop(engine);
    thread.join();
    assert!(store.find("one").is_none(), "nobody holds it any more");
    assert!(store.find("two").is_some());
}

#[test]
fn background_requests_have_a_queue_of_their_own() {
    let limits = QueueLimits {
        max_requests: 1,
        max_tokens: 1000,
    };
    let config = EngineConfig {
        max_concurrent: 1,
        background: BackgroundConfig {
            queue: limits,
            ..BackgroundConfig::default()
        },
        ..small()
    };
    let (engine, _thread) = start_store(WeightStore::new(pocket()), &config);
    let foreground = GenerateRequest::new(vec![9; 10], SamplingParams::new(300, vec![]));
    let background = GenerateRequest {
        class: Class::Background,
        ..GenerateRequest::new(vec![9; 10], SamplingParams::new(1, vec![]))
    };
    // A foreground request runs throughout, so that the background only waits.
    let mut served = engine.submit(foreground.clone()).unwrap();
    let mut waiting = Vec::new();
    let refused = loop {
        assert!(waiting.len() < 10_000, "the background is not bounded");
        match engine.submit(background.clone()) {
            Ok(stream) => waiting.push(stream),
            Err(refused) => break refused,
        }
    };
    assert!(matches!(
        refused,
        SubmitError::Overloaded(QueueLoad { requests: 1, .. })
    ));
    let mut others: Vec<RequestStream> = (0..20)
        .map(|_| engine.submit(foreground.clone()).expect("it has places"))
        .collect();
    for stream in others.iter_mut().chain([&mut served]) {
        assert_eq!(listen(stream, 1).1, None);
    }
    for stream in &mut waiting {
        assert_eq!(listen(stream, 1).0[0].ids.len(), 1);
    }
}

#[test]
fn weights_of_another_store_are_refused() {
    let (engine, _thread) = start_store(WeightStore::new(pocket()), &small());
    let other = WeightStore::new(pocket());
    let request = GenerateRequest::new(vec![9; 10], SamplingParams::new(1, vec![]));
    let refused = engine.submit(with(&request, other.base())).unwrap_err();
    assert!(
        refused.to_string().contains("another weight store"),
        "{refused}"
    );
}

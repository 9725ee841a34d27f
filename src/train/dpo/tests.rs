//! Tests of the trainer on a random model of two layers: packing, identities, resume, errors.

use candle_core::Device;

use super::*;
use crate::TrainError;
use crate::base::{Adapter, FrozenBase, Start};
use crate::schedule::ScheduleKind;
use kernels::nn::AttentionBackend;
use model::{ModelConfig, PackedBatch};

const VOCAB: usize = 40;

fn base(window: Option<usize>) -> FrozenBase {
    base_with(window, None)
}

/// Returns a base model, with dynamic rotary scaling beyond `trained` positions if given.
fn base_with(window: Option<usize>, trained: Option<usize>) -> FrozenBase {
    let scaling = trained.map(|_| serde_json::json!({"rope_type": "dynamic", "factor": 4.0}));
    let json = serde_json::json!({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8,
        "intermediate_size": 40, "vocab_size": VOCAB, "max_position_embeddings": trained.unwrap_or(64),
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu", "sliding_window": window,
        "rope_scaling": scaling,
    });
    let spec = ModelConfig::from_json(&json.to_string()).unwrap().spec;
    FrozenBase::new(spec, Start::Random { seed: 3 }, &Device::Cpu).unwrap()
}

fn ids(count: usize, seed: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * 7 + seed * 13 + i * i * seed) % VOCAB) as u32)
        .collect()
}

/// Pairs of odd shapes; the lengths are of prompt, chosen and rejected.
fn pairs() -> Vec<PairExample> {
    [(1, 1, 2), (5, 9, 3), (17, 1, 1), (3, 4, 20), (8, 8, 8)]
        .iter()
        .enumerate()
        .map(|(n, &(p, c, r))| PairExample::new(ids(p, n + 1), ids(c, n + 2), ids(r, n + 7)))
        .collect()
}

fn config() -> DpoConfig {
    let mut config = DpoConfig {
        micro_batch_tokens: 50,
        ..DpoConfig::default()
    };
    config.lora.r = 3;
    // A gradient that is pure rounding error must not move a weight by the whole learning rate.
    config.optim.eps = 1e-4;
    config.schedule.learning_rate = 1e-2;
    config.schedule.lr_scheduler = ScheduleKind::Constant;
    config.schedule.warmup_steps = Some(0);
    config
}

fn trainer(config: DpoConfig) -> DpoTrainer {
    DpoTrainer::new(&base(None), None, None, config, 10).unwrap()
}

fn update(trainer: &mut DpoTrainer, pairs: &[PairExample]) -> StepReport {
    let reference = trainer.reference_logps(pairs, &mut || {}).unwrap();
    trainer.update(pairs, &reference, &mut || {}).unwrap()
}

fn bits(adapter: &Adapter) -> Vec<u32> {
    let mut bits = Vec::new();
    for pair in adapter.weights.values() {
        for tensor in [&pair.a, &pair.b] {
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            bits.extend(values.iter().map(|v| v.to_bits()));
        }
    }
    bits
}

#[test]
fn training_that_goes_on_from_an_adapter_begins_at_a_margin_of_zero() {
    let base = base(None);
    let mut earlier = DpoTrainer::new(&base, None, None, config(), 10).unwrap();
    let pairs = pairs();
    update(&mut earlier, &pairs);
    let start = earlier.adapter().unwrap();
    let base = base.with_first(Some(start.clone()));
    let mut trainer = DpoTrainer::new(&base, Some(&start), Some(&start), config(), 10).unwrap();
    // Policy, reference and generation 0 are equal, and differ from the model without an adapter.
    let policy = trainer.policy_logps(&pairs, &mut || {}).unwrap();
    assert_eq!(policy, trainer.reference_logps(&pairs, &mut || {}).unwrap());
    let prompts: Vec<_> = pairs
        .iter()
        .map(|pair| (pair.prompt.clone(), pair.chosen.clone()))
        .collect();
    let scores = |scorer| trainer.score(scorer, &prompts, &mut || {}).unwrap();
    assert_eq!(scores(Scorer::Base), scores(Scorer::Policy));
    let bare = trainer_of_the_bare_model(&pairs);
    assert_ne!(policy, bare);
    let first = update(&mut trainer, &pairs);
    assert_eq!(first.rewards_margin, 0.0);
    assert!(
        (first.loss - std::f64::consts::LN_2).abs() < 1e-6,
        "{}",
        first.loss
    );
    let second = update(&mut trainer, &pairs);
    assert!(second.rewards_margin > 0.0);
    assert_ne!(bits(&trainer.adapter().unwrap()), bits(&start));
}

fn trainer_of_the_bare_model(pairs: &[PairExample]) -> Vec<(f32, f32)> {
    let trainer = trainer(config());
    trainer.policy_logps(pairs, &mut || {}).unwrap()
}

#[test]
fn a_shared_prompt_changes_nothing() {
    for (window, trained) in [(None, None), (Some(6), None), (None, Some(10))] {
        let base = base_with(window, trained);
        let mut trainer = DpoTrainer::new(&base, None, None, config(), 10).unwrap();
        let pairs = pairs();
        // Away from the base, so that the adapter has an effect.
        update(&mut trainer, &pairs);
        let together = trainer.policy_logps(&pairs, &mut || {}).unwrap();
        let adapter = trainer.adapter().unwrap();
        let decoder = base.decoder(Some(&adapter)).unwrap();
        for (pair, (chosen, rejected)) in pairs.iter().zip(together) {
            for (completion, got) in [(&pair.chosen, chosen), (&pair.rejected, rejected)] {
                let whole = [pair.prompt.as_slice(), completion].concat();
                let mut alone = PackedBatch::default();
                alone.push_answered(&whole, pair.prompt.len());
                let backend = AttentionBackend::Dense {
                    cu_seqlens: alone.cu_seqlens(),
                };
                let rows: Vec<u32> =
                    (pair.prompt.len() as u32 - 1..whole.len() as u32 - 1).collect();
                let hidden = decoder
                    .forward_rows(alone.as_packed(), &rows, &backend)
                    .unwrap();
                let scores = decoder.score(&hidden, completion).unwrap();
                let want: f32 = scores.logprobs.to_vec1::<f32>().unwrap().iter().sum();
                assert!((got - want).abs() < 1e-4, "{got} against {want}");
            }
        }
    }
}

#[test]
fn how_the_batch_is_cut_changes_nothing_but_rounding() {
    let step = |micro_batch_tokens, recompute| {
        let mut trainer = trainer(DpoConfig {
            micro_batch_tokens,
            recompute,
            nll: 0.3,
            ld_alpha: Some(0.5),
            ..config()
        });
        let mut pairs = pairs();
        pairs[1].weight = 2.5;
        pairs[2].label = 0.4;
        let first = update(&mut trainer, &pairs);
        (first, update(&mut trainer, &pairs))
    };
    let (first, second) = step(usize::MAX, false);
    for (tokens, recompute) in [(1, false), (40, true), (usize::MAX, true)] {
        let (a, b) = step(tokens, recompute);
        assert!((a.loss - first.loss).abs() < 1e-5);
        assert!((a.grad_norm / first.grad_norm - 1.0).abs() < 1e-4);
        assert!((b.loss - second.loss).abs() < 1e-3);
    }
}

#[test]
fn a_policy_that_is_its_reference_costs_log_two() {
    let pairs = pairs();
    let mut fresh = trainer(config());
    let report = update(&mut fresh, &pairs);
    assert!((report.loss - std::f64::consts::LN_2).abs() < 1e-6);
    assert_eq!((report.rewards_margin, report.kl), (0.0, 0.0));
    assert_eq!(report.tokens, 91);

    // The same holds for any other start that is its own reference.
    update(&mut fresh, &pairs);
    let adapter = fresh.adapter().unwrap();
    let mut again =
        DpoTrainer::new(&base(None), Some(&adapter), Some(&adapter), config(), 10).unwrap();
    let report = update(&mut again, &pairs);
    assert!((report.loss - std::f64::consts::LN_2).abs() < 1e-6);
    assert!(report.rewards_margin.abs() < 1e-6);
    // Against the base the policy differs, and it has learned its pairs.
    again.set_reference(None).unwrap();
    let report = update(&mut again, &pairs);
    assert!(report.loss < 0.69 && report.rewards_margin > 0.01);
}

#[test]
fn every_factor_learns_and_the_margin_grows() {
    let pairs = pairs();
    let mut trainer = trainer(config());
    let start = trainer.adapter().unwrap();
    let first = update(&mut trainer, &pairs);
    // B changes at once, A as soon as B is not zero.
    for _ in 0..5 {
        update(&mut trainer, &pairs);
    }
    let after = trainer.adapter().unwrap();
    assert_eq!(after.weights.len(), 14);
    for (path, pair) in &after.weights {
        for (before, now) in [
            (&start.weights[path].a, &pair.a),
            (&start.weights[path].b, &pair.b),
        ] {
            let moved: f32 = (before - now)
                .unwrap()
                .abs()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar()
                .unwrap();
            assert!(moved.is_finite() && moved > 0.0, "{path} did not move");
        }
    }
    let last = update(&mut trainer, &pairs);
    assert!(last.loss < first.loss && last.accuracy == 1.0);
    assert!(last.kl.is_finite() && last.entropy > 0.0);
}

#[test]
fn a_resumed_trainer_takes_the_same_steps_bit_by_bit() {
    let pairs = pairs();
    let config = || DpoConfig {
        nll: 0.1,
        ..config()
    };
    let mut whole = trainer(config());
    for _ in 0..6 {
        update(&mut whole, &pairs);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut first = trainer(config());
    for _ in 0..3 {
        update(&mut first, &pairs);
    }
    first.save_state(dir.path()).unwrap();
    let kept = bits(&first.adapter().unwrap());
    // Further training does not change the saved state or the copy.
    let copy = first.adapter().unwrap();
    update(&mut first, &pairs);
    assert_eq!(bits(&copy), kept);

    let mut second = trainer(config());
    second.load_state(dir.path()).unwrap();
    assert_eq!(second.step(), 3);
    assert_eq!(bits(&second.adapter().unwrap()), kept);
    for _ in 0..3 {
        update(&mut second, &pairs);
    }
    assert_eq!(
        bits(&second.adapter().unwrap()),
        bits(&whole.adapter().unwrap())
    );
    assert_eq!(second.state(), whole.state());

    // The same trainer, restored.
    whole.load_state(dir.path()).unwrap();
    assert_eq!(bits(&whole.adapter().unwrap()), kept);

    for mut other in [
        trainer(DpoConfig {
            beta: 0.2,
            ..config()
        }),
        DpoTrainer::new(&base(None), None, None, config(), 11).unwrap(),
    ] {
        let error = other.load_state(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another configuration"), "{error}");
    }
    let mut bound = trainer(config());
    bound.bind("stage 7");
    assert!(bound.load_state(dir.path()).is_err());

    std::fs::write(dir.path().join("optimizer.safetensors"), b"torn").unwrap();
    let before = bits(&second.adapter().unwrap());
    assert!(second.load_state(dir.path()).is_err());
    assert_eq!(bits(&second.adapter().unwrap()), before);
    assert_eq!(second.step(), 6);
}

#[test]
fn dropout_is_drawn_again_bit_by_bit() {
    let pairs = pairs();
    let config = |rate: f64| {
        let mut config = config();
        config.lora.lora_dropout = rate;
        config
    };
    let after = |config: DpoConfig, steps: usize| {
        let mut trainer = trainer(config);
        for _ in 0..steps {
            update(&mut trainer, &pairs);
        }
        trainer
    };
    let whole = after(config(0.3), 4);
    let whole_bits = bits(&whole.adapter().unwrap());
    assert_ne!(whole_bits, bits(&after(config(0.0), 4).adapter().unwrap()));
    // A recomputed block drops the same elements.
    let recomputed = after(
        DpoConfig {
            recompute: true,
            ..config(0.3)
        },
        4,
    );
    assert_eq!(whole_bits, bits(&recomputed.adapter().unwrap()));
    let dir = tempfile::tempdir().unwrap();
    after(config(0.3), 2).save_state(dir.path()).unwrap();
    let mut resumed = trainer(config(0.3));
    resumed.load_state(dir.path()).unwrap();
    for _ in 0..2 {
        update(&mut resumed, &pairs);
    }
    assert_eq!(whole_bits, bits(&resumed.adapter().unwrap()));
    // Another seed drops others. Its fresh factors would differ too, so it starts from the same adapter.
    let start = trainer(config(0.3)).adapter().unwrap();
    let from = |seed: u64| {
        let config = DpoConfig {
            seed,
            ..config(0.3)
        };
        let mut trainer = DpoTrainer::new(&base(None), None, Some(&start), config, 10).unwrap();
        update(&mut trainer, &pairs);
        update(&mut trainer, &pairs);
        bits(&trainer.adapter().unwrap())
    };
    assert_ne!(from(1), from(2));
    // Scores are computed without dropout.
    let scores = |trainer: &DpoTrainer| trainer.policy_logps(&pairs, &mut || {}).unwrap();
    assert_eq!(scores(&whole), scores(&whole));
}

#[test]
fn unfit_pairs_are_named() {
    let mut trainer = trainer(config());
    let good = pairs();
    let with = |change: &dyn Fn(&mut PairExample)| {
        let mut pairs = good.clone();
        change(&mut pairs[3]);
        pairs
    };
    type Spoil<'a> = &'a dyn Fn(&mut PairExample);
    let cases: [(Spoil<'_>, &str); 9] = [
        (&|p| p.prompt.clear(), "the prompt is empty"),
        (&|p| p.chosen.clear(), "the chosen completion is empty"),
        (&|p| p.rejected.clear(), "the rejected completion is empty"),
        (&|p| p.chosen = p.rejected.clone(), "are equal"),
        (
            &|p| p.rejected = ids(62, 1),
            "65 tokens do not fit the model's context of 64",
        ),
        (&|p| p.chosen[1] = 99, "token 99 is outside"),
        (&|p| p.label = 1.5, "the label"),
        (&|p| p.label = f32::NAN, "the label"),
        (&|p| p.weight = 0.0, "the weight"),
    ];
    for (change, words) in cases {
        let pairs = with(change);
        let error = trainer
            .update(&pairs, &[(0.0, 0.0); 5], &mut || {})
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("pair 3: ") && error.contains(words),
            "{error}"
        );
        assert!(trainer.reference_logps(&pairs, &mut || {}).is_err());
    }
    assert!(trainer.update(&[], &[], &mut || {}).is_err());
    assert!(trainer.update(&good, &[(0.0, 0.0)], &mut || {}).is_err());
    assert_eq!(trainer.step(), 0);
}

#[test]
fn a_bad_loss_leaves_the_trainer_as_it_was() {
    let mut trainer = trainer(config());
    let pairs = pairs();
    update(&mut trainer, &pairs);
    let before = bits(&trainer.adapter().unwrap());
    let mut reference = trainer.reference_logps(&pairs, &mut || {}).unwrap();
    let good = reference.clone();
    reference[2].1 = f32::NAN;
    let error = trainer.update(&pairs, &reference, &mut || {}).unwrap_err();
    assert!(matches!(error, TrainError::NonFiniteLoss { pair: 2 }));
    assert_eq!(bits(&trainer.adapter().unwrap()), before);
    assert_eq!(trainer.step(), 1);

    // The next step is the same as without the failed one.
    let after = trainer.update(&pairs, &good, &mut || {}).unwrap();
    let mut other = self::trainer(config());
    update(&mut other, &pairs);
    assert_eq!(update(&mut other, &pairs).loss, after.loss);
    assert_eq!(
        bits(&trainer.adapter().unwrap()),
        bits(&other.adapter().unwrap())
    );
}

#[test]
fn others_may_go_first_between_layers() {
    let mut trainer = trainer(DpoConfig {
        micro_batch_tokens: usize::MAX,
        ..config()
    });
    let pairs = pairs();
    let mut pauses = 0;
    let reference = trainer
        .reference_logps(&pairs, &mut || pauses += 1)
        .unwrap();
    assert_eq!(pauses, 2);
    let mut pauses = 0;
    trainer
        .update(&pairs, &reference, &mut || pauses += 1)
        .unwrap();
    // Two layers, the head, two layers back.
    assert_eq!(pauses, 5);
}

#[test]
fn scores_are_the_tokens_of_the_sums() {
    let mut trainer = trainer(config());
    let pairs = pairs();
    update(&mut trainer, &pairs);
    let sequences: Vec<_> = pairs
        .iter()
        .map(|p| (p.prompt.clone(), p.rejected.clone()))
        .collect();
    let tokens = trainer
        .score(Scorer::Policy, &sequences, &mut || {})
        .unwrap();
    let sums = trainer.policy_logps(&pairs, &mut || {}).unwrap();
    for ((tokens, pair), (_, sum)) in tokens.iter().zip(&pairs).zip(sums) {
        assert_eq!(tokens.len(), pair.rejected.len());
        assert!((tokens.iter().sum::<f32>() - sum).abs() < 1e-4);
    }
    let base = trainer.score(Scorer::Base, &sequences, &mut || {}).unwrap();
    let reference = trainer
        .score(Scorer::Reference, &sequences, &mut || {})
        .unwrap();
    assert_eq!(base, reference);
    assert_ne!(base, tokens);
    let empty = [(vec![1], vec![])];
    assert!(trainer.score(Scorer::Base, &empty, &mut || {}).is_err());
}

#[test]
fn a_start_of_another_shape_is_refused() {
    let base = base(None);
    let adapter = trainer(config()).adapter().unwrap();
    let mut config = config();
    config.lora.r = 4;
    let start = DpoTrainer::new(&base, None, Some(&adapter), config.clone(), 10);
    assert!(start.err().unwrap().to_string().contains("rank 3"));
    // A reference may have any shape that fits the model.
    assert!(DpoTrainer::new(&base, Some(&adapter), None, config, 10).is_ok());
    for wrong in [
        DpoConfig {
            beta: 0.0,
            ..self::config()
        },
        DpoConfig {
            ld_alpha: Some(1.5),
            ..self::config()
        },
        DpoConfig {
            nll: -1.0,
            ..self::config()
        },
    ] {
        assert!(DpoTrainer::new(&base, None, None, wrong, 10).is_err());
    }
}

//! A loaded model: packed weights, bf16 checkpoints, adapters, sampling.

use candle_core::Device;
use kernels::linear::WeightFormat;
use kernels::nn::AttentionBackend;
use model::{LanguageModel, LoadOptions, PackedBatch, SampleParams};

use crate::support::fixture;

fn pocket() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket")
}

fn prompts(model: &LanguageModel) -> Vec<Vec<u32>> {
    [
        "Reverse the word tamo.",
        "What is 12 plus 7?",
        "Sort 5 3 9 from low to high.",
    ]
    .iter()
    .map(|text| model.tokenizer().encode_text(text).unwrap())
    .collect()
}

#[test]
fn a_continuation_does_not_depend_on_its_batch() {
    let model = LanguageModel::load(&pocket(), &LoadOptions::default()).unwrap();
    let prompts = prompts(&model);
    let params = SampleParams {
        temperature: 0.0,
        max_new_tokens: 12,
        seed: 3,
        stop_ids: model.stop_ids().to_vec(),
    };
    let together = model.sample(&prompts, &params).unwrap();
    for (prompt, want) in prompts.iter().zip(&together) {
        let alone = model.sample(std::slice::from_ref(prompt), &params).unwrap();
        assert_eq!(&alone[0], want);
        assert!(!want.ids.is_empty());
    }
    let labels = [5, 9];
    let read = model.label_logprobs(&prompts, labels).unwrap();
    for (prompt, want) in prompts.iter().zip(&read) {
        let alone = model
            .label_logprobs(std::slice::from_ref(prompt), labels)
            .unwrap();
        assert_eq!(
            &alone[0], want,
            "a judge's read must not depend on its neighbours"
        );
    }
}

#[test]
fn the_same_seed_draws_the_same_and_another_does_not() {
    let model = LanguageModel::load(&pocket(), &LoadOptions::default()).unwrap();
    let prompts = vec![prompts(&model).remove(0); 8];
    let draw = |seed| {
        let params = SampleParams {
            temperature: 1.5,
            max_new_tokens: 16,
            seed,
            stop_ids: model.stop_ids().to_vec(),
        };
        model.sample(&prompts, &params).unwrap()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert!(
        draw(1).windows(2).any(|w| w[0] != w[1]),
        "streams must differ"
    );
}

#[test]
fn prompts_that_cannot_be_continued_are_errors() {
    let model = LanguageModel::load(&pocket(), &LoadOptions::default()).unwrap();
    let params = SampleParams {
        temperature: 0.0,
        max_new_tokens: 4,
        seed: 0,
        stop_ids: Vec::new(),
    };
    for prompt in [vec![], vec![1; model.max_context()], vec![1_000_000]] {
        assert!(
            model
                .sample(std::slice::from_ref(&prompt), &params)
                .is_err()
        );
    }
    assert!(model.label_logprobs(&[vec![]], [1, 2]).is_err());
    assert!(model.label_logprobs(&[vec![1]], [1, 1_000_000]).is_err());
}

#[test]
fn bf16_kept_in_memory_computes_what_f32_does() {
    let load = |format| {
        let options = LoadOptions {
            format: Some(format),
            ..LoadOptions::default()
        };
        LanguageModel::load(&pocket(), &options).unwrap()
    };
    let (wide, narrow) = (load(WeightFormat::F32), load(WeightFormat::Bf16));
    let prompts = prompts(&wide);
    let a = wide.label_logprobs(&prompts, [5, 9]).unwrap();
    let b = narrow.label_logprobs(&prompts, [5, 9]).unwrap();
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        // Exact where weights are widened; activations are rounded where the processor multiplies bf16.
        assert!((a - b).abs() < 0.1 + 0.02 * a.abs(), "{a} against {b}");
    }
}

#[test]
fn an_adapter_made_by_peft_gives_pefts_logits() {
    use kernels::nn::Lora;
    use model::{Checkpoint, Decoder, ModelConfig, ModelError, ParameterSource, adapter};
    use train::merge::merge;

    struct WithAdapter {
        checkpoint: Checkpoint,
        lora: adapter::LoraConfig,
        weights: adapter::AdapterWeights,
    }
    impl ParameterSource for WithAdapter {
        fn tensor(
            &mut self,
            name: &str,
            shape: &[usize],
        ) -> Result<candle_core::Tensor, ModelError> {
            let dtype = candle_core::DType::F32;
            self.checkpoint
                .tensor(name, shape.to_vec(), dtype, &Device::Cpu)
        }
        fn lora(&mut self, path: &str) -> Result<Option<Lora>, ModelError> {
            Ok(self.weights.get(path).map(|pair| Lora {
                a: pair.a.clone(),
                b: pair.b.clone(),
                scale: self.lora.scale(path),
                dropout: None,
            }))
        }
    }
    let golden =
        candle_core::safetensors::load(fixture("lora/golden.safetensors"), &Device::Cpu).unwrap();
    let ids: Vec<u32> = golden["ids"].flatten_all().unwrap().to_vec1().unwrap();
    let assert_golden = |dir: &std::path::Path, lora: adapter::LoraConfig, weights| {
        let spec = ModelConfig::from_dir(dir).unwrap().spec;
        let mut source = WithAdapter {
            checkpoint: Checkpoint::open(dir).unwrap(),
            lora,
            weights,
        };
        let decoder = Decoder::new(spec, &mut source).unwrap();
        let batch: PackedBatch = [ids.as_slice()].into_iter().collect();
        let backend = AttentionBackend::Dense {
            cu_seqlens: batch.cu_seqlens(),
        };
        let hidden = decoder.forward(batch.as_packed(), &backend).unwrap();
        let logits = decoder.logits(&hidden).unwrap();
        let want = golden["logits"].reshape(logits.shape()).unwrap();
        let d = (logits - want).unwrap().abs().unwrap();
        let d: f32 = d
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar()
            .unwrap();
        assert!(d < 1e-4, "differs by {d}");
    };
    let base = fixture("jsft/llama");
    let (lora, weights) = adapter::load(&fixture("lora")).unwrap();
    assert_golden(&base, lora.clone(), weights);
    // Merged into the base's weights it is the same model.
    let out = tempfile::tempdir().unwrap();
    merge(&base, &fixture("lora"), out.path()).unwrap();
    assert_golden(out.path(), lora, adapter::AdapterWeights::new());
}

#[test]
fn the_default_model_loads_in_transformers() {
    let options = LoadOptions {
        format: Some(WeightFormat::F32),
        ..LoadOptions::default()
    };
    let model = LanguageModel::load(&pocket(), &options).unwrap();
    for prompt in prompts(&model) {
        crate::support::same_as_in_python(&pocket(), None, &model, &prompt);
    }
}

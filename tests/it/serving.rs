//! Tests of a loaded model: adapters, and a comparison with transformers.

use candle_core::Device;
use kernels::{linear::WeightFormat, nn::AttentionBackend};
use model::{LanguageModel, LoadOptions, PackedBatch, WeightStore};

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
    // The adapter merged into the base's weights is the same model.
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
    let weights = WeightStore::new(model.decoder().clone());
    for prompt in prompts(&model) {
        crate::support::same_as_in_python(&pocket(), None, &weights, &prompt);
    }
}

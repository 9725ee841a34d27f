//! Tests of weights files that the program writes: they are read back unchanged in every dtype, and are replaced whole or not at
//! all.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use model::{Checkpoint, ModelError, safetensors, weights};

use crate::support::fixture;

pub type Loaded = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub fn load_all(checkpoint: &Checkpoint) -> Result<Loaded, ModelError> {
    checkpoint
        .names()
        .map(|name| {
            let shape = checkpoint.shape(name).unwrap();
            let tensor = checkpoint.tensor(name, shape, DType::F32, &Device::Cpu)?;
            let values = tensor.flatten_all()?.to_vec1()?;
            Ok((name.to_owned(), (shape.to_vec(), values)))
        })
        .collect()
}

#[test]
fn what_is_saved_is_read_back_and_another_reader_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let from = Checkpoint::open(&fixture("arch/llama2")).unwrap();
    assert_eq!(from.dtype("model.norm.weight"), Some(DType::F16));
    let loaded = load_all(&from).unwrap();
    for dtype in [None, Some(DType::F16), Some(DType::BF16)] {
        let tensors = loaded
            .iter()
            .map(|(name, (shape, values))| {
                let tensor =
                    Tensor::from_vec(values.clone(), shape.as_slice(), &Device::Cpu).unwrap();
                (name.clone(), tensor)
            })
            .collect();
        weights::save(dir.path(), &tensors, dtype).unwrap();
        let again = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(
            again.dtype("model.norm.weight"),
            Some(dtype.unwrap_or(DType::F32))
        );
        assert_eq!(again.metadata()["format"], "pt");
        let reread = load_all(&again).unwrap();
        // The values came from f16, so f32 and f16 hold them exactly.
        if dtype != Some(DType::BF16) {
            assert_eq!(reread, loaded);
        }
        let other =
            candle_core::safetensors::load(dir.path().join(weights::WEIGHTS_FILE), &Device::Cpu)
                .unwrap();
        assert_eq!(other.len(), reread.len());
        for (name, tensor) in &other {
            let values: Vec<f32> = tensor
                .to_dtype(DType::F32)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            assert_eq!(
                (tensor.dims(), &values),
                (reread[name].0.as_slice(), &reread[name].1),
                "{name}"
            );
        }
    }
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, [weights::WEIGHTS_FILE], "no temporary file may stay");
}

#[test]
fn every_stored_dtype_converts_to_every_other() {
    let dir = tempfile::tempdir().unwrap();
    // The values include ties, subnormals of f16 and the largest bf16.
    let values: Vec<f32> = (0..70_001u32)
        .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761) & 0xbfff_ffff))
        .map(|v| if v.is_finite() { v } else { 1.0 })
        .collect();
    let exact = Tensor::from_vec(values, 70_001, &Device::Cpu).unwrap();
    for stored in [DType::F32, DType::F16, DType::BF16] {
        let tensors = BTreeMap::from([("t".to_owned(), exact.clone())]);
        weights::save(dir.path(), &tensors, Some(stored)).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        for asked in [DType::F32, DType::F16, DType::BF16] {
            let expected = exact
                .to_dtype(stored)
                .unwrap()
                .to_dtype(DType::F32)
                .unwrap();
            let expected = expected
                .to_dtype(asked)
                .unwrap()
                .to_dtype(DType::F32)
                .unwrap();
            let read = checkpoint.tensor("t", 70_001, asked, &Device::Cpu).unwrap();
            assert_eq!(read.dtype(), asked);
            let read = read.to_dtype(DType::F32).unwrap();
            let bits = |t: &Tensor| -> Vec<u32> {
                t.to_vec1::<f32>()
                    .unwrap()
                    .into_iter()
                    .map(f32::to_bits)
                    .collect()
            };
            assert!(bits(&read) == bits(&expected), "{stored:?} as {asked:?}");
        }
    }
}

#[test]
fn a_failed_save_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let one = BTreeMap::from([(
        "a".to_owned(),
        Tensor::ones(3, DType::F32, &Device::Cpu).unwrap(),
    )]);
    safetensors::write(&path, &one, None, &[("step", "1")]).unwrap();
    let failed = safetensors::replace(&path, |out| {
        std::io::Write::write_all(out, b"half").unwrap();
        Err(ModelError::Hub {
            id: "x".into(),
            message: "stop".into(),
        })
    });
    assert!(failed.is_err());
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    assert_eq!(checkpoint.metadata()["step"], "1");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(weights::save(&dir.path().join("absent"), &one, None).is_err());
}

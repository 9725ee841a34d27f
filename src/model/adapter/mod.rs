//! LoRA adapters as PEFT stores them: a directory with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A linear layer `[out, in]` at `<path>` gets two factors, `base_model.model.<path>.lora_A.weight` `[r, in]` and
//! `….lora_B.weight` `[out, r]`, and computes `W·x + scale · B·(A·x)`. Every feature that changes this formula (DoRA,
//! initialisations that shift the base, trained biases, copies of whole modules, ...) is rejected by name.

mod config;
mod serving;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use crate::ExpertsSpec;

pub use config::LoraConfig;
pub use serving::for_serving;

pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file with the factors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// The reason for which an adapter was rejected.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {detail}", path.display())]
    BadFile { path: PathBuf, detail: String },
    /// A PEFT feature that is not plain LoRA.
    #[error("adapter_config.json: {0}")]
    Unsupported(String),
    /// A tensor that does not fit; the message contains its name.
    #[error("adapter tensor {0}")]
    Tensor(String),
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The two factors of one linear layer, f32.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// `[r, in]`
    pub a: Tensor,
    /// `[out, r]`
    pub b: Tensor,
}

/// All factors of an adapter, by the path of their linear layer (`model.layers.0.self_attn.q_proj`).
pub type AdapterWeights = BTreeMap<String, LoraPair>;

/// Reads an adapter directory; every tensor becomes f32 on the CPU.
///
/// # Errors
/// Errors if a file is missing or broken, if the configuration is not plain LoRA, or if a tensor's name is unknown, its partner is missing,
/// its shape does not match the rank, or it contains a NaN or infinity.
pub fn load(dir: &Path) -> Result<(LoraConfig, AdapterWeights), AdapterError> {
    load_weights(dir, WEIGHTS_FILE)
}

/// Reads the configuration of an adapter directory.
///
/// # Errors
/// Errors if the file is missing or broken, or the configuration is not plain LoRA.
pub fn load_config(dir: &Path) -> Result<LoraConfig, AdapterError> {
    if let Some(why) = no_adapter(dir) {
        return Err(bad(dir, why));
    }
    let path = dir.join(CONFIG_FILE);
    let json = serde_json::from_slice(&read(&path)?).map_err(|e| bad(&path, e))?;
    LoraConfig::from_json(&json)
}

/// Works as [`load`], with the factors in another file of the directory.
///
/// # Errors
/// Same as [`load`].
pub fn load_weights(
    dir: &Path,
    weights_file: &str,
) -> Result<(LoraConfig, AdapterWeights), AdapterError> {
    let config = load_config(dir)?;
    let path = dir.join(weights_file);
    let bytes = read(&path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(&path, e))?;
    let mut halves: BTreeMap<String, (Option<Tensor>, Option<Tensor>)> = BTreeMap::new();
    for (name, view) in file.tensors() {
        let (layer, is_a) = parse_key(&name)
            .ok_or_else(|| AdapterError::Tensor(format!("`{name}` is not a LoRA factor")))?;
        let dtype = DType::try_from(view.dtype())?;
        if !dtype.is_float() {
            return Err(AdapterError::Tensor(format!("`{name}` is {dtype:?}")));
        }
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?
            .to_dtype(DType::F32)?;
        if tensor.rank() != 2 {
            return Err(AdapterError::Tensor(format!(
                "`{name}` has shape {:?}, expected a matrix",
                tensor.dims()
            )));
        }
        check_finite(&name, &tensor)?;
        let half = halves.entry(layer.to_owned()).or_default();
        *(if is_a { &mut half.0 } else { &mut half.1 }) = Some(tensor);
    }
    if halves.is_empty() {
        return Err(bad(&path, "holds no LoRA factors"));
    }

    let mut weights = AdapterWeights::new();
    for (layer, half) in halves {
        let (Some(a), Some(b)) = half else {
            return Err(AdapterError::Tensor(format!(
                "`{PREFIX}{layer}` has only one of its two factors"
            )));
        };
        let rank = config.rank(&layer);
        for (name, dims, of_rank) in [("lora_A", a.dims(), 0), ("lora_B", b.dims(), 1)] {
            if dims[of_rank] != rank {
                return Err(AdapterError::Tensor(format!(
                    "`{PREFIX}{layer}.{name}.weight` has shape {dims:?}, which does not fit rank {rank}"
                )));
            }
        }
        weights.insert(layer, LoraPair { a, b });
    }
    Ok((config, weights))
}

/// Checks that every factor belongs to a linear layer of the base: `base` returns `[out, in]` of a path, or `None`.
///
/// # Errors
/// Errors with the name of the first factor without a layer, or with another shape.
pub fn check_fit(
    weights: &AdapterWeights,
    base: impl Fn(&str) -> Option<[usize; 2]>,
) -> Result<(), AdapterError> {
    for (layer, pair) in weights {
        let [outputs, inputs] = base(layer).ok_or_else(|| {
            let name = format!("`{PREFIX}{layer}`");
            AdapterError::Tensor(match ExpertsSpec::names(layer) {
                true => format!(
                    "{name} changes a mixture of experts, which is not supported: adapt the layers of attention"
                ),
                false => format!("the base model has no layer for {name}"),
            })
        })?;
        if pair.a.dim(1)? != inputs || pair.b.dim(0)? != outputs {
            return Err(AdapterError::Tensor(format!(
                "`{PREFIX}{layer}` has factors {:?} and {:?}, but the base weight is [{outputs}, {inputs}]",
                pair.a.dims(),
                pair.b.dims()
            )));
        }
    }
    Ok(())
}

/// Errors unless all values of an f32 tensor are finite.
fn check_finite(name: &str, tensor: &Tensor) -> Result<(), AdapterError> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(()),
        false => Err(AdapterError::Tensor(format!(
            "`{name}` holds a NaN or infinity"
        ))),
    }
}

/// Writes an adapter directory that PEFT reads. The same adapter always gives the same bytes.
///
/// # Errors
/// Errors if the file system does, or if a factor's shape does not match the rank in the configuration.
pub fn save(dir: &Path, config: &LoraConfig, weights: &AdapterWeights) -> Result<(), AdapterError> {
    let mut tensors = BTreeMap::new();
    for (layer, pair) in weights {
        let rank = config.rank(layer);
        if pair.a.dim(0)? != rank || pair.b.dim(1)? != rank {
            return Err(AdapterError::Tensor(format!(
                "`{PREFIX}{layer}` has factors {:?} and {:?}, which do not fit rank {rank}",
                pair.a.dims(),
                pair.b.dims()
            )));
        }
        for (factor, tensor) in [("lora_A", &pair.a), ("lora_B", &pair.b)] {
            let tensor = tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            tensors.insert(
                format!("{PREFIX}{layer}.{factor}.weight"),
                tensor.contiguous()?,
            );
        }
    }
    fs::create_dir_all(dir).map_err(io(dir))?;
    // `transformers` reads the framework that wrote the file from here.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let path = dir.join(WEIGHTS_FILE);
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|e| bad(&path, e))?;
    fs::write(&path, bytes).map_err(io(&path))?;
    let path = dir.join(CONFIG_FILE);
    let text = serde_json::to_string_pretty(&config.to_json()).map_err(|e| bad(&path, e))?;
    fs::write(&path, text + "\n").map_err(io(&path))
}

/// Returns the layer's path, and whether the tensor is factor A.
fn parse_key(name: &str) -> Option<(&str, bool)> {
    let name = name.strip_prefix(PREFIX)?;
    let (layer, is_a) = match name.strip_suffix(".lora_A.weight") {
        Some(layer) => (layer, true),
        None => (name.strip_suffix(".lora_B.weight")?, false),
    };
    (!layer.is_empty()).then_some((layer, is_a))
}

/// The maximum size of an adapter's file in bytes; it is read into memory as a whole.
const MAX_FILE_BYTES: u64 = 16 << 30;

/// Returns the reason for which a path is not an adapter directory, if it is not.
fn no_adapter(dir: &Path) -> Option<&'static str> {
    if dir.join(CONFIG_FILE).exists() {
        return None;
    }
    Some(if !dir.exists() {
        "no such directory; an adapter is a directory with adapter_config.json and adapter_model.safetensors, as PEFT writes it"
    } else if !dir.is_dir() {
        "is a file; an adapter is a directory with adapter_config.json and adapter_model.safetensors, as PEFT writes it"
    } else if dir.join("config.json").exists() {
        "the directory holds a model, not an adapter: pass it as --model"
    } else if dir.join("adapter").join(CONFIG_FILE).exists() {
        "the directory has no adapter_config.json; did you mean the directory `adapter` in it?"
    } else {
        "the directory has no adapter_config.json, so it is not a PEFT adapter"
    })
}

fn read(path: &Path) -> Result<Vec<u8>, AdapterError> {
    files::read(path, MAX_FILE_BYTES).map_err(io(path))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> AdapterError {
    let path = path.to_path_buf();
    move |source| AdapterError::Io { path, source }
}

fn bad(path: &Path, detail: impl ToString) -> AdapterError {
    AdapterError::BadFile {
        path: path.to_path_buf(),
        detail: detail.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const Q: &str = "model.layers.0.self_attn.q_proj";
    const UP: &str = "model.layers.1.mlp.up_proj";

    fn tensor(shape: (usize, usize), seed: usize) -> Tensor {
        let values: Vec<f32> = (0..shape.0 * shape.1)
            .map(|i| ((i * 31 + seed * 17) % 13) as f32 / 7.0 - 0.9)
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn adapter() -> (LoraConfig, AdapterWeights) {
        let config = LoraConfig {
            r: 2,
            lora_alpha: 4.0,
            target_modules: vec!["q_proj".to_owned(), "up_proj".to_owned()],
            rank_pattern: [("up_proj".to_owned(), 3)].into(),
            ..LoraConfig::default()
        };
        let pair = |r, outputs, inputs, seed| LoraPair {
            a: tensor((r, inputs), seed),
            b: tensor((outputs, r), seed + 1),
        };
        let weights = [
            (Q.to_owned(), pair(2, 8, 8, 0)),
            (UP.to_owned(), pair(3, 12, 8, 5)),
        ];
        (config, weights.into())
    }

    fn values(t: &Tensor) -> Vec<Vec<f32>> {
        t.to_vec2().unwrap()
    }

    #[test]
    fn comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let (config, weights) = adapter();
        save(dir.path(), &config, &weights).unwrap();
        let (read_config, read_weights) = load(dir.path()).unwrap();
        assert_eq!(read_config, config);
        assert!(read_weights.keys().eq(weights.keys()));
        for (layer, pair) in &weights {
            assert_eq!(values(&read_weights[layer].a), values(&pair.a));
            assert_eq!(values(&read_weights[layer].b), values(&pair.b));
        }
        let bytes = fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
        save(dir.path(), &config, &read_weights).unwrap();
        assert_eq!(bytes, fs::read(dir.path().join(WEIGHTS_FILE)).unwrap());
        let names: Vec<_> = SafeTensors::deserialize(&bytes)
            .unwrap()
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect();
        assert!(names.contains(&format!("base_model.model.{Q}.lora_A.weight")));
    }

    /// The fixture was written by Python PEFT (`tests/fixtures/make_lora.py`).
    #[test]
    fn what_is_no_adapter_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for file in [
            "file",
            "model/config.json",
            "run/adapter/adapter_config.json",
        ] {
            std::fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            std::fs::write(at(file), "{}").unwrap();
        }
        std::fs::create_dir(at("empty")).unwrap();
        for (name, text) in [
            ("file", "is a file"),
            ("gone", "no such directory"),
            ("model", "holds a model"),
            ("run", "did you mean"),
            ("empty", "no adapter_config.json"),
        ] {
            let error = load(&at(name)).unwrap_err().to_string();
            assert!(error.contains(text), "{name}: {error}");
        }
    }

    #[test]
    fn reads_what_peft_wrote() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/lora");
        let (config, weights) = load(&dir).unwrap();
        let layer = "model.layers.0.mlp.down_proj";
        assert!(config.targets(layer));
        assert_eq!(config.scale(layer), 2.0);
        assert_eq!((config.r, weights[layer].a.dim(0).unwrap()), (4, 4));
        // A round trip loses nothing.
        let copy = tempfile::tempdir().unwrap();
        save(copy.path(), &config, &weights).unwrap();
        let (config_again, weights_again) = load(copy.path()).unwrap();
        assert_eq!(config_again, config);
        for (layer, pair) in &weights {
            assert_eq!(values(&weights_again[layer].a), values(&pair.a));
            assert_eq!(values(&weights_again[layer].b), values(&pair.b));
        }
    }

    #[test]
    fn checks_the_base() {
        let (_, weights) = adapter();
        let base = |path: &str| match path {
            Q => Some([8, 8]),
            UP => Some([12, 8]),
            _ => None,
        };
        check_fit(&weights, base).unwrap();
        let error = check_fit(&weights, |p| base(p).filter(|_| p != UP)).unwrap_err();
        assert!(error.to_string().contains(UP), "{error}");
        let error = check_fit(&weights, |_| Some([8, 8])).unwrap_err();
        assert!(error.to_string().contains("[8, 8]"), "{error}");
    }

    #[test]
    fn refuses_tensors_by_name() {
        let key = |layer: &str, factor: &str| format!("base_model.model.{layer}.{factor}.weight");
        let (config, weights) = adapter();
        let complaint = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
            let dir = tempfile::tempdir().unwrap();
            save(dir.path(), &config, &weights).unwrap();
            let path = dir.path().join(WEIGHTS_FILE);
            let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
            change(&mut tensors);
            candle_core::safetensors::save(&tensors, &path).unwrap();
            load(dir.path()).unwrap_err().to_string()
        };
        for unknown in [
            "model.layers.0.self_attn.q_proj.lora_A.weight".to_owned(),
            key("lm_head", "lora_magnitude_vector"),
            "base_model.model.model.embed_tokens.lora_embedding_A".to_owned(),
        ] {
            let error = complaint(&|t| {
                t.insert(unknown.clone(), tensor((2, 8), 0));
            });
            assert!(
                error.contains(&unknown) && error.contains("not a LoRA factor"),
                "{error}"
            );
        }
        let error = complaint(&|t| {
            t.remove(&key(Q, "lora_B"));
        });
        assert!(error.contains(Q) && error.contains("only one"), "{error}");
        let error = complaint(&|t| {
            t.insert(key(UP, "lora_A"), tensor((2, 8), 0));
        });
        assert!(
            error.contains(&key(UP, "lora_A")) && error.contains("rank 3"),
            "{error}"
        );
        let error = complaint(&|t| {
            let nan = Tensor::full(f32::NAN, (8, 2), &Device::Cpu).unwrap();
            t.insert(key(Q, "lora_B"), nan);
        });
        assert!(
            error.contains(&key(Q, "lora_B")) && error.contains("NaN"),
            "{error}"
        );
        assert!(complaint(&|t| t.clear()).contains("no LoRA factors"));
    }

    #[test]
    fn broken_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_err());
        let (config, weights) = adapter();
        save(dir.path(), &config, &weights).unwrap();
        let path = dir.path().join(WEIGHTS_FILE);
        let bytes = fs::read(&path).unwrap();
        for cut in [0, 7, 20, bytes.len() - 1] {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(load(dir.path()).is_err(), "cut at {cut}");
        }
        fs::write(dir.path().join(CONFIG_FILE), "[]").unwrap();
        assert!(load(dir.path()).is_err());
    }
}

//! A model directory's `config.json` and `generation_config.json`, read strictly.
//!
//! [`ModelConfig::from_dir`] returns either a spec that the decoder can use without further checks, or one error that
//! names the file, the field and the value. No number in the file, however large, makes it panic or allocate.

use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::{Map, Value};

use super::arch::DecoderSpec;
use super::error::ModelError;
use super::sampling_defaults::SamplingDefaults;

/// The configuration of a model directory.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub spec: DecoderSpec,
    pub bos_token_id: Option<u32>,
    /// Ids that end a completion: those of `generation_config.json` if it has any, otherwise those of `config.json`.
    pub eos_token_ids: Vec<u32>,
    pub pad_token_id: Option<u32>,
    /// The sampling parameters of `generation_config.json`.
    pub sampling: SamplingDefaults,
    /// The dtype in which the weights were saved, if the file gives it (`dtype` or `torch_dtype`).
    pub dtype: Option<DType>,
    /// The content of `config.json`, for saving a model that was trained from this one.
    pub json: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json` and, if it exists, `generation_config.json`.
    pub fn from_dir(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let config = Fields::parse(&path, &read(&path)?)?;
        let path = dir.join("generation_config.json");
        let generation = match path.exists() {
            true => Some(Fields::parse(&path, &read(&path)?)?),
            false => None,
        };
        Self::from_fields(config, generation)
    }

    /// Reads the text of a `config.json` without a directory; errors name it `config.json`.
    pub fn from_json(text: &str) -> Result<Self, ModelError> {
        Self::from_fields(Fields::parse(Path::new("config.json"), text)?, None)
    }

    /// Reads the fields of both files as a GGUF file describes them; errors name that file.
    pub(super) fn of_gguf(
        path: &Path,
        config: Map<String, Value>,
        generation: Map<String, Value>,
    ) -> Result<Self, ModelError> {
        let fields = |map| Fields {
            path: path.to_owned(),
            within: String::new(),
            map,
        };
        Self::from_fields(fields(config), Some(fields(generation)))
    }

    fn from_fields(config: Fields, generation: Option<Fields>) -> Result<Self, ModelError> {
        let dtype = dtype(&config)?;
        let spec = DecoderSpec::from_fields(&config, dtype)?;
        let mut eos_token_ids = Vec::new();
        if let Some(generation) = &generation {
            eos_token_ids = generation.token_ids("eos_token_id", spec.vocab_size)?;
        }
        if eos_token_ids.is_empty() {
            eos_token_ids = config.token_ids("eos_token_id", spec.vocab_size)?;
        }
        let one = |name: &str| -> Result<Option<u32>, ModelError> {
            Ok(config.token_ids(name, spec.vocab_size)?.first().copied())
        };
        Ok(Self {
            bos_token_id: one("bos_token_id")?,
            eos_token_ids,
            pad_token_id: one("pad_token_id")?,
            sampling: match &generation {
                Some(generation) => SamplingDefaults::from_fields(generation)?,
                None => SamplingDefaults::default(),
            },
            dtype,
            spec,
            json: config.map,
        })
    }
}

fn read(path: &Path) -> Result<String, ModelError> {
    files::read_settings(path).map_err(|source| ModelError::Io {
        path: path.to_owned(),
        source,
    })
}

fn dtype(config: &Fields) -> Result<Option<DType>, ModelError> {
    let Some(name) = (match config.string("dtype")? {
        Some(name) => Some(name),
        None => config.string("torch_dtype")?,
    }) else {
        return Ok(None);
    };
    match name.strip_prefix("torch.").unwrap_or(&name) {
        "float32" => Ok(Some(DType::F32)),
        "float16" => Ok(Some(DType::F16)),
        "bfloat16" => Ok(Some(DType::BF16)),
        "auto" => Ok(None),
        _ => Err(config.error(format!(
            "dtype `{name}` is not supported; supported are float32, float16 and bfloat16"
        ))),
    }
}

/// A JSON object whose fields are read one by one with type checks. An absent field and a null one are treated alike,
/// except by [`Fields::is_null`].
#[derive(Debug, Clone)]
pub(super) struct Fields {
    path: PathBuf,
    /// The object's position in the file, for messages: empty, or `rope_scaling.`.
    within: String,
    map: Map<String, Value>,
}

impl Fields {
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ModelError> {
        let error = |message: String| ModelError::Config {
            path: path.to_owned(),
            message,
        };
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self {
                path: path.to_owned(),
                within: String::new(),
                map,
            }),
            Ok(_) => Err(error("not a JSON object".into())),
            Err(e) => Err(error(format!("not valid JSON: {e}"))),
        }
    }

    pub(super) fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            within: String::new(),
            map: Map::new(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(super) fn error(&self, message: impl Into<String>) -> ModelError {
        ModelError::Config {
            path: self.path.clone(),
            message: message.into(),
        }
    }

    fn wrong(&self, name: &str, value: &Value, expected: &str) -> ModelError {
        let mut shown = value.to_string();
        if let Some((at, _)) = shown.char_indices().nth(80) {
            shown.truncate(at);
            shown.push_str("...");
        }
        self.error(format!(
            "{}{name} is {shown}, expected {expected}",
            self.within
        ))
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Returns whether the field exists and is not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Returns whether the field exists and is null.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// Reads a required size: at least 1, at most `max`.
    pub(super) fn size(&self, name: &str, max: usize) -> Result<usize, ModelError> {
        self.optional_size(name, max)?
            .ok_or_else(|| self.error(format!("{}{name} is missing", self.within)))
    }

    /// Reads an optional size: at least 1, at most `max`.
    pub(super) fn optional_size(
        &self,
        name: &str,
        max: usize,
    ) -> Result<Option<usize>, ModelError> {
        match self.optional_count(name, max)? {
            Some(0) => Err(self.error(format!(
                "{}{name} is 0, but must be at least 1",
                self.within
            ))),
            count => Ok(count),
        }
    }

    /// Reads an optional count: at least 0, at most `max`.
    pub(super) fn optional_count(
        &self,
        name: &str,
        max: usize,
    ) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        whole(value)
            .filter(|&count| count <= max)
            .map(Some)
            .ok_or_else(|| self.wrong(name, value, &format!("a whole number of at most {max}")))
    }

    /// Reads an optional finite number.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value
            .as_f64()
            .filter(|number| number.is_finite())
            .map(Some)
            .ok_or_else(|| self.wrong(name, value, "a finite number"))
    }

    pub(super) fn bool(&self, name: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.wrong(name, value, "true or false"))
    }

    pub(super) fn string(&self, name: &str) -> Result<Option<String>, ModelError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(|s| Some(s.to_owned()))
            .ok_or_else(|| self.wrong(name, value, "a string"))
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<Fields>, ModelError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value
            .as_object()
            .map(|map| {
                Some(Fields {
                    path: self.path.clone(),
                    within: format!("{}{name}.", self.within),
                    map: map.clone(),
                })
            })
            .ok_or_else(|| self.wrong(name, value, "an object"))
    }

    fn list<T>(
        &self,
        name: &str,
        expected: &str,
        item: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value
            .as_array()
            .and_then(|items| items.iter().map(item).collect())
            .map(Some)
            .ok_or_else(|| self.wrong(name, value, expected))
    }

    pub(super) fn strings(&self, name: &str) -> Result<Option<Vec<String>>, ModelError> {
        self.list(name, "a list of strings", |v| v.as_str().map(str::to_owned))
    }

    pub(super) fn numbers(&self, name: &str) -> Result<Option<Vec<f64>>, ModelError> {
        let finite = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        self.list(name, "a list of finite numbers", finite)
    }

    pub(super) fn counts(&self, name: &str) -> Result<Option<Vec<usize>>, ModelError> {
        self.list(name, "a list of whole numbers", whole)
    }

    /// Reads the only or first string of a list; an empty list counts as absent.
    pub(super) fn first_string(&self, name: &str) -> Result<Option<String>, ModelError> {
        Ok(self
            .strings(name)?
            .and_then(|strings| strings.into_iter().next()))
    }

    /// Reads one token id or a list of them. Ids outside the vocabulary cannot be produced and are dropped: real files
    /// contain -1 for "none" and ids of tokens that a smaller embedding no longer has.
    fn token_ids(&self, name: &str, vocab_size: usize) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.get(name) else {
            return Ok(Vec::new());
        };
        let one = std::slice::from_ref(value);
        let items = value.as_array().map_or(one, Vec::as_slice);
        let mut ids = Vec::new();
        for item in items {
            let id = item
                .as_i64()
                .ok_or_else(|| self.wrong(name, value, "a token id or a list of them"))?;
            if let Ok(id) = u32::try_from(id)
                && (id as usize) < vocab_size
                && !ids.contains(&id)
            {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

/// Returns a whole number, even if an exporter wrote it as `32768.0`.
fn whole(value: &Value) -> Option<usize> {
    match value.as_u64() {
        Some(number) => usize::try_from(number).ok(),
        None => value
            .as_f64()
            .filter(|f| f.fract() == 0.0 && (0.0..=u32::MAX as f64).contains(f))
            .map(|f| f as usize),
    }
}

//! A model and its judge, loaded to be measured.

use std::path::{Path, PathBuf};

use candle_core::Device;

use crate::app::ModelFiles;
use judge::{Judge, JudgeOptions, JudgeTemplate, principles_from_model_dir};
use model::{LanguageModel, LoadOptions, WeightStore};

/// A model with the judge that its directory describes.
pub struct Loaded {
    pub model: LanguageModel,
    /// The model's weights, with the adapter if there is one.
    pub weights: WeightStore,
    pub judge: Judge,
    /// Keeps an embedded model's unpacked files while the model is in use.
    _files: ModelFiles,
}

impl Loaded {
    /// Loads a model directory or hub id, or without one the embedded model, with an adapter and a judge template.
    ///
    /// # Errors
    /// A model, an adapter or a template that cannot be loaded.
    pub fn open(
        model: Option<&str>,
        adapter: Option<&PathBuf>,
        template: Option<&str>,
        device: Device,
    ) -> anyhow::Result<Self> {
        let files = ModelFiles::resolve(model)?;
        let dir = files.path();
        let options = LoadOptions {
            device,
            ..LoadOptions::default()
        };
        let model = LanguageModel::load(dir, &options)?;
        let adapter = adapter.map(PathBuf::as_path);
        let weights = WeightStore::with_adapter_dir(model.decoder().clone(), adapter)?;
        let template = match template {
            None => JudgeTemplate::from_model_dir(dir)?,
            Some(name) => match JudgeTemplate::built_in(name) {
                Some(template) => template,
                None => JudgeTemplate::from_file(Path::new(name))?,
            },
        };
        let judge = Judge::new(
            model.tokenizer().clone(),
            model.chat_template().clone(),
            template,
            principles_from_model_dir(dir)?,
            JudgeOptions::default(),
            model.max_context(),
        )?;
        Ok(Self {
            model,
            weights,
            judge,
            _files: files,
        })
    }
}

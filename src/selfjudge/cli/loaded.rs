//! A model and its judge, loaded to be measured.

use std::path::{Path, PathBuf};

use candle_core::Device;

use crate::app::ModelFiles;
use crate::eval::ModelSubject;
use engine::InlineEngine;
use judge::{Judge, JudgeTemplate, principles_from_model_dir};
use kernels::linear::WeightFormat;
use model::{LanguageModel, LoadOptions, WeightStore};
use train::identity::check_adapter;

/// A model with the judge that its directory describes.
pub struct Loaded {
    pub subject: ModelSubject,
    /// Keeps an embedded model's unpacked files while the model is in use.
    _files: ModelFiles,
}

impl Loaded {
    /// Loads a model directory, a GGUF file or a hub id, or without one the embedded model, with an adapter and a judge template. Its weights
    /// are kept in `format`, or as the checkpoint has them, and its answers have at most `max_new_tokens` tokens.
    ///
    /// # Errors
    /// A model, an adapter or a template that cannot be loaded.
    pub fn open(
        model: Option<&str>,
        adapter: Option<&PathBuf>,
        template: Option<&str>,
        max_new_tokens: usize,
        format: Option<WeightFormat>,
        device: Device,
    ) -> anyhow::Result<Self> {
        let files = ModelFiles::resolve(model)?;
        let dir = files.path();
        let options = LoadOptions {
            device,
            format,
            ..LoadOptions::default()
        };
        let model = LanguageModel::load(dir, &options)?;
        let adapter = adapter.map(PathBuf::as_path);
        if let Some(adapter) = adapter {
            check_adapter(adapter, dir)?;
        }
        let weights = WeightStore::with_adapter_dir(model.decoder().clone(), adapter)?;
        let template = match template {
            None => JudgeTemplate::from_model_dir(dir)?,
            Some(name) => match JudgeTemplate::built_in(name) {
                Some(template) => template,
                None => JudgeTemplate::from_file(Path::new(name))?,
            },
        };
        let engine = InlineEngine::new(weights)?;
        let judge = Judge::new(
            model.tokenizer().clone(),
            model.chat_template().clone(),
            template,
            principles_from_model_dir(dir)?,
            engine.handle().capacity().max_context,
        )?;
        Ok(Self {
            subject: ModelSubject::new(engine, &model, judge, max_new_tokens),
            _files: files,
        })
    }
}

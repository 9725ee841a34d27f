//! Resolution of `--model` to a directory on this machine.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

#[cfg(feature = "hub")]
use super::ModelConfig;
use super::error::ModelError;
use super::gguf::unpack;

/// The files of a repository that are downloaded beside its weights; other files (other weight formats, images) are not.
#[cfg(feature = "hub")]
const NEEDED: [&str; 10] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "judge_template.toml",
    "judge_self_test.jsonl",
    "model.safetensors.index.json",
];
#[cfg(feature = "hub")]
const CONFIG: &str = "config.json";

/// A model's directory in Hugging Face layout. What was unpacked from a GGUF file is deleted when this is dropped.
#[derive(Debug)]
pub enum ModelDir {
    /// A directory that exists by itself.
    Own(PathBuf),
    /// The files that a GGUF file describes.
    Unpacked(TempDir),
}

impl ModelDir {
    pub fn path(&self) -> &Path {
        match self {
            Self::Own(path) => path,
            Self::Unpacked(dir) => dir.path(),
        }
    }
}

/// Returns the directory of a model: `model` itself if that is a directory, the unpacked model if it is a GGUF file, otherwise the
/// download (or the cached copy) of the model id `owner/name`, or `owner/name@revision`.
///
/// The cache, the endpoint and the token are Hugging Face's own (`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`).
///
/// # Errors
/// Errors with [`ModelError::Hub`] if the directory is missing, the id is unknown or the network cannot be reached; the message says which.
/// Errors of a GGUF file are those of [`unpack`].
pub fn resolve(model: &str) -> Result<ModelDir, ModelError> {
    resolve_with(model, Hub::from_env())
}

fn resolve_with(model: &str, hub: Hub) -> Result<ModelDir, ModelError> {
    let path = Path::new(model);
    let failed = |message: String| ModelError::Hub {
        id: model.to_owned(),
        message,
    };
    if path.is_dir() {
        return match no_model(path) {
            Some(why) => Err(failed(why)),
            None => Ok(ModelDir::Own(path.to_owned())),
        };
    }
    if path.exists() {
        return match is_gguf(path) {
            true => unpack(path).map(ModelDir::Unpacked),
            false => Err(failed(NO_DIRECTORY.into())),
        };
    }
    let Some((owner, name, revision)) = parse_id(model) else {
        return Err(failed(
            "no such directory, and not a model id of the form owner/name or owner/name@revision"
                .into(),
        ));
    };

    download(
        &Id {
            owner,
            name,
            revision,
        },
        hub,
    )
    .map(ModelDir::Own)
    .map_err(failed)
}

/// A model's id on the hub.
#[cfg_attr(
    not(feature = "hub"),
    expect(dead_code, reason = "only the client reads it")
)]
struct Id<'a> {
    owner: &'a str,
    name: &'a str,
    revision: Option<&'a str>,
}

#[cfg(not(feature = "hub"))]
fn download(_id: &Id<'_>, _hub: Hub) -> Result<PathBuf, String> {
    Err(
        "no such directory, and this program was built without the hub's client (feature `hub`)"
            .to_owned(),
    )
}

/// Downloads the needed files that the cache lacks, and returns their directory; without a network, the cached copy.
#[cfg(feature = "hub")]
fn download(id: &Id<'_>, hub: Hub) -> Result<PathBuf, String> {
    use hf_hub::api::sync::ApiError;
    use hf_hub::{Repo, RepoType};

    let Id {
        owner,
        name,
        revision,
    } = id;
    let revision = revision.unwrap_or("main").to_owned();
    let repository = Repo::with_revision(format!("{owner}/{name}"), RepoType::Model, revision);
    let api = hub.api.build().map_err(|error| error.to_string())?;
    let remote = api.repo(repository.clone());
    let fetch = || -> Result<Result<PathBuf, String>, ApiError> {
        let files = remote.info()?.siblings.into_iter();
        let files: Vec<String> = files.map(|file| file.rfilename).collect();
        if !files.iter().any(|file| file == CONFIG) {
            return Ok(Err("the repository has no config.json".to_owned()));
        }
        // What is not supported is refused before its weights are downloaded.
        let config = remote.get(CONFIG)?;
        if let Err(error) = check(&config) {
            return Ok(Err(error.to_string()));
        }
        for file in files.iter().filter(|file| is_needed(file)) {
            remote.get(file)?;
        }
        Ok(Ok(config))
    };
    let config = match fetch() {
        Ok(fetched) => fetched?,
        Err(error) => match unreachable(&error) {
            None => return Err(error.to_string()),
            Some(Refusal::Status(status)) => {
                return Err(format!(
                    "the hub answered {status}: it has no such model or revision, or the model needs a token (HF_TOKEN)"
                ));
            }
            // A copy left incomplete by an interrupted download is rejected when its weights are opened.
            Some(Refusal::Unreachable(why)) => hub.cache.repo(repository).get(CONFIG).ok_or_else(|| {
                format!(
                    "no such directory, not in the cache, and the model hub cannot be reached ({why}); pass a model directory instead"
                )
            })?,
        },
    };
    let dir = config.parent().map(Path::to_owned);
    dir.ok_or_else(|| "the cached config.json has no directory".to_owned())
}

/// Checks a downloaded `config.json`.
#[cfg(feature = "hub")]
fn check(config: &Path) -> Result<(), ModelError> {
    let text = files::read_settings(config).map_err(|source| ModelError::Io {
        path: config.to_owned(),
        source,
    })?;
    ModelConfig::from_json(&text).map(drop)
}

/// A failure that is the network's or the hub's, rather than this machine's.
#[cfg(feature = "hub")]
enum Refusal {
    Status(u16),
    Unreachable(String),
}

/// Returns how the hub could not be asked, if that is the failure.
#[cfg(feature = "hub")]
fn unreachable(error: &hf_hub::api::sync::ApiError) -> Option<Refusal> {
    use hf_hub::api::sync::ApiError;
    match error {
        ApiError::TooManyRetries(last) => unreachable(last),
        ApiError::RequestError(error) => Some(match **error {
            ureq::Error::StatusCode(status @ 400..500) => Refusal::Status(status),
            _ => Refusal::Unreachable(root_cause(error.as_ref())),
        }),
        _ => None,
    }
}

/// Returns whether a file of a repository is downloaded.
#[cfg(feature = "hub")]
fn is_needed(file: &str) -> bool {
    // In the root only: `original/` and the like hold copies in other formats.
    let weights =
        file.starts_with("model") && file.ends_with(".safetensors") && !file.contains('/');
    weights || NEEDED.contains(&file)
}

/// The hub's client, and the cache that it fills.
#[cfg(feature = "hub")]
struct Hub {
    api: hf_hub::api::sync::ApiBuilder,
    cache: hf_hub::Cache,
}

#[cfg(not(feature = "hub"))]
struct Hub;

impl Hub {
    /// Returns the client that Hugging Face's environment variables describe.
    #[cfg(feature = "hub")]
    fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = hf_hub::Cache::from_env();
        let token = variable("HF_TOKEN").or_else(|| cache.token());
        let mut api = hf_hub::api::sync::ApiBuilder::from_cache(cache.clone())
            .with_token(token)
            .with_retries(1);
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            api = api.with_endpoint(endpoint);
        }
        Self { api, cache }
    }

    #[cfg(not(feature = "hub"))]
    fn from_env() -> Self {
        Self
    }
}

/// Returns the reason for which a directory is not a model, if it is not.
fn no_model(dir: &Path) -> Option<String> {
    if dir.join("config.json").exists() {
        return None;
    }
    if dir.join("adapter_config.json").exists() {
        return Some(format!(
            "the directory holds a LoRA adapter, not a model: pass the model that it was trained on as --model and, if the command has \
             this flag, the adapter as --adapter {}; or merge the two (selfjudge merge)",
            dir.display()
        ));
    }
    let mut entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    if let Some(gguf) = entries.find(|entry| is_gguf(&entry.path())) {
        return Some(format!(
            "the directory has no config.json; did you mean its GGUF file, {}?",
            gguf.path().display()
        ));
    }
    let inner = dir.join("model");
    Some(
        match inner.join("config.json").exists() || inner.join("adapter_config.json").exists() {
            true => format!(
                "the directory has no config.json; did you mean {}?",
                inner.display()
            ),
            false => {
                "the directory has no config.json, so it is not a model in Hugging Face layout"
                    .to_owned()
            }
        },
    )
}

const NO_DIRECTORY: &str = "is a file, and no GGUF file by its name; a model is a directory in Hugging Face layout, or a file with the ending .gguf";

fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

#[cfg(feature = "hub")]
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Parses `owner/name[@revision]`, in the hub's alphabet.
fn parse_id(id: &str) -> Option<(&str, &str, Option<&str>)> {
    let (repository, revision) = match id.split_once('@') {
        Some((repository, revision)) => (repository, Some(revision)),
        None => (id, None),
    };
    let (owner, name) = repository.split_once('/')?;
    let word = |word: &str| {
        !word.is_empty()
            && word.len() <= 96
            && word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && !word.contains("..")
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let revision_ok = revision.is_none_or(|r| r.split('/').all(word));
    (word(owner) && word(name) && revision_ok).then_some((owner, name, revision))
}

#[cfg(test)]
mod tests;

//! Resolution of `--model` to a directory on this machine.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

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
    let fetched = remote.info().and_then(|info| {
        let files = info.siblings.into_iter().map(|file| file.rfilename);
        let needed = files.filter(|file| is_needed(file));
        let paths = needed.map(|file| Ok((remote.get(&file)?, file)));
        paths.collect::<Result<Vec<_>, ApiError>>()
    });
    let config = match fetched {
        Ok(paths) => {
            let config = paths.into_iter().find(|(_, file)| file == CONFIG);
            config.ok_or("the repository has no config.json")?.0
        }
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
mod tests {
    use super::*;

    #[test]
    fn an_existing_directory_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert_eq!(resolve(path).unwrap().path(), dir.path());
    }

    #[test]
    fn ids_and_paths_are_told_apart() {
        assert_eq!(parse_id("a/b"), Some(("a", "b", None)));
        assert_eq!(
            parse_id("HuggingFaceTB/SmolLM2-135M-Instruct@refs/pr/1"),
            Some(("HuggingFaceTB", "SmolLM2-135M-Instruct", Some("refs/pr/1")))
        );
        for not_an_id in [
            "", "a", "/a/b", "./a/b", "a/b/c", "../a", "a/..", "a/b@", "a b/c", "~/models",
            "a/b@../x",
        ] {
            assert_eq!(parse_id(not_an_id), None, "{not_an_id}");
        }
        let error = resolve("models/no/such/place").unwrap_err().to_string();
        assert!(error.contains("no such directory"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = resolve(file.path().to_str().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("is a file"), "{error}");
    }

    #[test]
    fn what_is_no_model_is_recognised() {
        for (file, named) in [
            ("adapter_config.json", "--adapter"),
            ("x.gguf", "x.gguf"),
            ("X.Q4_K.GGUF", "X.Q4_K.GGUF"),
            ("model/config.json", "did you mean"),
            ("model/adapter_config.json", "did you mean"),
            ("readme.md", "no config.json"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            let error = resolve(dir.path().to_str().unwrap()).unwrap_err();
            assert!(error.to_string().contains(named), "{file}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.gguf");
        std::fs::write(&file, "").unwrap();
        let error = resolve(file.to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains("GGUF"), "{error}");
    }

    #[cfg(feature = "hub")]
    fn hub(cache: &Path, endpoint: String) -> Hub {
        let cache = hf_hub::Cache::new(cache.to_owned());
        let api = hf_hub::api::sync::ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint)
            .with_progress(false);
        Hub { api, cache }
    }

    /// Serves a repository of small files as the hub does, for as many connections as there are.
    #[cfg(feature = "hub")]
    fn serve_repository(files: &'static [(&'static str, &'static str)]) -> String {
        use std::io::{BufRead, BufReader, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let Some(request) = lines.next() else {
                    continue;
                };
                let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let range = headers
                    .iter()
                    .find(|line| line.to_lowercase().starts_with("range:"));
                let path = request.split(' ').nth(1).unwrap_or_default();
                let file = path.rsplit('/').next().unwrap_or_default();
                let listed = files
                    .iter()
                    .map(|(name, _)| format!(r#"{{"rfilename":"{name}"}}"#));
                let (status, body) = match path {
                    "/api/models/some/model/revision/main" => {
                        let siblings = listed.collect::<Vec<_>>().join(",");
                        (
                            "200 OK",
                            format!(r#"{{"sha":"c0ffee","siblings":[{siblings}]}}"#),
                        )
                    }
                    _ => match files.iter().find(|(name, _)| *name == file) {
                        Some((_, text)) => ("206 Partial Content", (*text).to_owned()),
                        None => ("404 Not Found", String::new()),
                    },
                };
                let (sent, of) = match range {
                    Some(range) if range.trim_end().ends_with("0-0") => (&body[..1], body.len()),
                    _ => (&body[..], body.len()),
                };
                let last = sent.len().saturating_sub(1);
                let _ = write!(
                    &stream,
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-range: bytes 0-{last}/{of}\r\netag: \"{file}\"\r\n\
                     x-repo-commit: c0ffee\r\nconnection: close\r\n\r\n{sent}",
                    sent.len()
                );
            }
        });
        format!("http://{address}")
    }

    #[test]
    #[cfg(feature = "hub")]
    fn needed_files_are_downloaded_once_and_served_from_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let endpoint = serve_repository(&[
            ("config.json", "{}"),
            ("model-00001-of-00002.safetensors", "weights"),
            ("pytorch_model.bin", "not needed"),
        ]);
        let dir = resolve_with("some/model", hub(cache.path(), endpoint)).unwrap();
        let dir = dir.path();
        assert_eq!(
            std::fs::read_to_string(dir.join("config.json")).unwrap(),
            "{}"
        );
        let weights = dir.join("model-00001-of-00002.safetensors");
        assert_eq!(std::fs::read_to_string(weights).unwrap(), "weights");
        assert!(!dir.join("pytorch_model.bin").exists());
        // Nothing listens at port 1.
        let offline = hub(cache.path(), "http://127.0.0.1:1".to_owned());
        assert_eq!(resolve_with("some/model", offline).unwrap().path(), dir);
    }

    #[test]
    #[cfg(feature = "hub")]
    fn an_unknown_model_is_said() {
        let cache = tempfile::tempdir().unwrap();
        let endpoint = serve_repository(&[]);
        let error = resolve_with("no/model", hub(cache.path(), endpoint)).unwrap_err();
        assert!(
            error.to_string().contains("404") && error.to_string().contains("HF_TOKEN"),
            "{error}"
        );
    }

    #[cfg(feature = "hub")]
    #[test]
    fn an_unreachable_hub_is_said_clearly() {
        let cache = tempfile::tempdir().unwrap();
        // A port that was free a moment ago: no server listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let endpoint = format!("http://127.0.0.1:{port}");
        let error = resolve_with("some/model", hub(cache.path(), endpoint))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("some/model") && error.contains("cannot be reached"),
            "{error}"
        );
    }
}

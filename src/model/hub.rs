//! Resolution of `--model` to a directory on this machine.

use std::path::{Path, PathBuf};

use hf_hub::{HFClient, HFError};

use super::error::ModelError;

/// The files of a repository that are downloaded; other files (other weight formats, images) are not.
const NEEDED: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "judge_template.toml",
    "judge_self_test.jsonl",
    // In the root only: `original/` and the like hold copies in other formats.
    "model*.safetensors",
];
const INDEX: &str = "model.safetensors.index.json";

/// Returns the directory of a model: `model` itself if that is a directory, otherwise the download (or the cached copy)
/// of the model id `owner/name`, or `owner/name@revision`.
///
/// The cache, the endpoint and the token are Hugging Face's own (`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`).
///
/// # Errors
/// Errors with [`ModelError::Hub`] if the directory is missing, the id is unknown or the network cannot be reached; the message says which.
pub fn resolve(model: &str) -> Result<PathBuf, ModelError> {
    resolve_with(model, |client| client)
}

fn resolve_with(
    model: &str,
    configure: impl FnOnce(hf_hub::HFClientBuilder) -> hf_hub::HFClientBuilder,
) -> Result<PathBuf, ModelError> {
    let path = Path::new(model);
    let failed = |message: String| ModelError::Hub {
        id: model.to_owned(),
        message,
    };
    if path.is_dir() {
        return match no_model(path) {
            Some(why) => Err(failed(why)),
            None => Ok(path.to_owned()),
        };
    }
    if path.exists() {
        return Err(failed(no_directory(path)));
    }
    let Some((owner, name, revision)) = parse_id(model) else {
        return Err(failed(
            "no such directory, and not a model id of the form owner/name or owner/name@revision"
                .into(),
        ));
    };

    // Two attempts: without a network the error must come within seconds.
    let client = configure(HFClient::builder().retry_max_attempts(2))
        .build_sync()
        .map_err(|e| failed(e.to_string()))?;
    let repository = client.model(owner, name);
    let patterns = NEEDED.iter().copied().chain([INDEX]);
    let download = |local_only: bool| {
        repository
            .snapshot_download()
            .maybe_revision(revision.map(str::to_owned))
            .allow_patterns(patterns.clone().map(str::to_owned).collect())
            .local_files_only(local_only)
            .send()
    };
    match download(false) {
        Ok(dir) if dir.join("config.json").exists() => Ok(dir),
        Ok(_) => Err(failed("the repository has no config.json".into())),
        Err(HFError::Request { source, .. }) => match download(true) {
            // A copy left incomplete by an interrupted download is rejected when its weights are opened.
            Ok(dir) if dir.join("config.json").exists() => Ok(dir),
            _ => Err(failed(format!(
                "no such directory, not in the cache, and the model hub is out of reach ({}); \
                 give a model directory instead",
                root_cause(&source)
            ))),
        },
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Returns the reason for which a directory is not a model, if it is not.
fn no_model(dir: &Path) -> Option<String> {
    if dir.join("config.json").exists() {
        return None;
    }
    if dir.join("adapter_config.json").exists() {
        return Some(format!(
            "the directory holds a LoRA adapter, not a model: give the model that it was trained on as --model, and where the command \
             takes one the adapter as --adapter {}; or merge the two (selfjudge merge)",
            dir.display()
        ));
    }
    let gguf =
        |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|entry| is_gguf(&entry.path()));
    if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.any(gguf)) {
        return Some(NO_GGUF.to_owned());
    }
    let inner = dir.join("model");
    Some(
        match inner.join("config.json").exists() || inner.join("adapter_config.json").exists() {
            true => format!(
                "the directory has no config.json; did you mean {}?",
                inner.display()
            ),
            false => {
                "the directory has no config.json, so it holds no model in Hugging Face layout"
                    .to_owned()
            }
        },
    )
}

const NO_GGUF: &str = "GGUF files are not read: give the model's directory in Hugging Face layout (config.json, tokenizer.json, \
                       *.safetensors)";

fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Returns the reason for which a file is not a model.
fn no_directory(path: &Path) -> String {
    match is_gguf(path) {
        true => NO_GGUF.to_owned(),
        false => "is a file; a model is a directory in Hugging Face layout".to_owned(),
    }
}

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
        assert_eq!(resolve(path).unwrap(), dir.path());
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
            ("x.gguf", "GGUF"),
            ("X.Q4_K.GGUF", "GGUF"),
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

    #[test]
    fn an_unreachable_hub_is_said_clearly() {
        let cache = tempfile::tempdir().unwrap();
        // A port that was free a moment ago: no server listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let error = resolve_with("some/model", |client| {
            client
                .endpoint(format!("http://127.0.0.1:{port}"))
                .cache_dir(cache.path())
        })
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("some/model") && error.contains("out of reach"),
            "{error}"
        );
    }
}

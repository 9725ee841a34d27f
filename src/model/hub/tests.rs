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
        "", "a", "/a/b", "./a/b", "a/b/c", "../a", "a/..", "a/b@", "a b/c", "~/models", "a/b@../x",
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

/// The configuration of a model that is supported.
#[cfg(feature = "hub")]
const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 4}"#;

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
        ("config.json", LLAMA),
        ("model-00001-of-00002.safetensors", "weights"),
        ("pytorch_model.bin", "not needed"),
    ]);
    let dir = resolve_with("some/model", hub(cache.path(), endpoint)).unwrap();
    let dir = dir.path();
    assert_eq!(
        std::fs::read_to_string(dir.join("config.json")).unwrap(),
        LLAMA
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
fn a_model_that_is_not_supported_is_refused_before_its_weights_are_downloaded() {
    let cache = tempfile::tempdir().unwrap();
    let endpoint = serve_repository(&[
        ("model.safetensors", "weights"),
        (
            "config.json",
            r#"{"architectures": ["MixtralForCausalLM"]}"#,
        ),
    ]);
    let error = resolve_with("some/model", hub(cache.path(), endpoint)).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("some/model")
            && error.contains("`MixtralForCausalLM`, a mixture of experts"),
        "{error}"
    );
    let held = hf_hub::Cache::new(cache.path().to_owned()).model("some/model".to_owned());
    assert!(held.get("config.json").is_some() && held.get("model.safetensors").is_none());
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

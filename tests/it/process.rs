//! Tests of the running server: real sockets, signals, TLS, and other projects' clients.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::patience::{PATIENCE, client, eventually};
use crate::support::{data, python, root};

/// A server with the default model on a port of its own. It is killed when dropped.
pub struct Server {
    child: Child,
    url: String,
    said: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(&[], arguments)
    }

    /// Starts the server with these variables in its environment.
    fn start_in(environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selfjudge"));
        command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .envs(environment.iter().copied());
        Self::started(command)
    }

    /// Starts the server by a command, and waits for its address.
    pub fn started(mut command: Command) -> Self {
        let mut child = command
            // No call of a test may go through a proxy.
            .env("NO_PROXY", "127.0.0.1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // Warnings about keys and about the model may come before the address.
        let mut before: Vec<String> = Vec::new();
        for line in lines.by_ref().map_while(Result::ok) {
            before.push(line);
            if before.last().is_some_and(|line| line.contains(" on http")) {
                break;
            }
        }
        let line = before.last().cloned().unwrap_or_default();
        assert!(
            line.contains(" on http"),
            "the log must have the server's address: {before:?}"
        );
        let url = line
            .split_whitespace()
            .find(|word| word.starts_with("http"));
        let url = url
            .unwrap_or_else(|| panic!("{line}"))
            .trim_end_matches(':');
        let url = url.to_owned();
        // The thread reads later lines, so that the pipe never fills.
        let said = Arc::new(Mutex::new(before));
        let into = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                into.lock().unwrap().push(line);
            }
        });
        Self { child, url, said }
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Returns the lines of the log so far.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: kill(2) takes no pointers. The child has not been waited for, so its id is valid.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_is_ready_once_it_says_where_it_listens() {
    let server = Server::start(&[]);
    let answer = client().get(server.url("/ready")).send().unwrap();
    assert_eq!(
        answer.status().as_u16(),
        200,
        "the first call must be answered"
    );
}

#[test]
fn a_model_without_a_chat_template_serves_raw_routes_and_says_what_it_lacks() {
    let dir = data("stories260k");
    let server = Server::start(&["--model", dir.to_str().unwrap()]);
    let client = client();
    let ask = |path: &str, body: &Value| {
        let answer = client.post(server.url(path)).json(body).send().unwrap();
        (answer.status().as_u16(), answer.json::<Value>().unwrap())
    };
    let (status, answer) = ask(
        "/v1/completions",
        &json!({"prompt": "Once upon a time", "max_tokens": 4}),
    );
    assert_eq!(status, 200, "{answer}");
    // These routes need a chat template.
    for (path, body, code) in [
        ("/generate", json!({"prompt": "q"}), "no_chat_template"),
        (
            "/judge",
            json!({"prompt": "q", "candidates": ["a", "b"]}),
            "no_judge",
        ),
    ] {
        let (status, answer) = ask(path, &body);
        assert_eq!(
            (status, &answer["error"]["code"]),
            (400, &json!(code)),
            "{answer}"
        );
    }
    assert_eq!(
        client.get(server.url("/ready")).send().unwrap().status(),
        200
    );
}

#[test]
fn a_signal_as_soon_as_the_address_is_known_ends_it_well() {
    // A supervisor may send a signal as soon as the first line with an address is logged.
    for signal in [libc::SIGTERM, libc::SIGINT] {
        for _ in 0..4 {
            let mut server = Server::start(&[]);
            server.signal(signal);
            let ended = server.wait();
            assert!(ended.success(), "{ended}: {:?}", server.said());
        }
    }
}

#[test]
fn running_answers_finish_after_sigterm_and_new_connections_do_not_begin() {
    let mut server = Server::start(&["--drain-timeout", "600"]);
    let first = &server.said()[0];
    assert!(first.contains(" tokens of KV cache"), "{first}");
    let body = json!({"prompt": "What is 34 plus 28?", "stream": true, "ignore_eos": true, "max_tokens": 300, "n": 4});
    let request = client().post(server.url("/generate")).json(&body);
    let mut answer = request.send().unwrap();
    let mut first = [0; 16];
    answer.read_exact(&mut first).unwrap();
    server.signal(libc::SIGTERM);
    // The listener closes a moment after the signal.
    eventually("no new connections", || {
        let refused = client().get(server.url("/health")).send().is_err();
        refused.then_some(())
    });
    let mut rest = String::new();
    answer.read_to_string(&mut rest).unwrap();
    assert!(
        rest.trim_end().ends_with("[DONE]"),
        "the answer must be complete"
    );
    assert!(server.wait().success());
}

#[test]
fn an_answer_that_outlasts_the_drain_is_cut_off() {
    let mut server = Server::start(&["--drain-timeout", "0"]);
    // This call takes seconds.
    let body =
        json!({"prompt": "x", "stream": true, "ignore_eos": true, "max_tokens": 500, "n": 128});
    let mut answer = client()
        .post(server.url("/generate"))
        .json(&body)
        .send()
        .unwrap();
    let mut first = [0; 16];
    answer.read_exact(&mut first).unwrap();
    server.signal(libc::SIGTERM);
    let mut rest = String::new();
    let ending = answer.read_to_string(&mut rest);
    assert!(
        ending.is_err(),
        "the connection must be cut, not closed: {ending:?}"
    );
    assert!(!rest.contains("[DONE]"), "{rest}");
    assert!(server.wait().success());
}

#[test]
fn it_speaks_https_with_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let server = Server::start(&["--tls-cert", &path(&cert), "--tls-key", &path(&key)]);
    assert!(server.url.starts_with("https://"));
    let port = server.url.rsplit(':').next().unwrap();
    let root = Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[root]));
    let client: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .tls_config(tls.build())
        .build()
        .into();
    let answer = client.get(format!("https://localhost:{port}/ready"));
    let answer = answer.call().unwrap().body_mut().read_to_string().unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["status"], "ready");
}

#[test]
fn keys_come_from_the_environment_or_a_file_and_nonsense_is_refused() {
    let refused = |arguments: &[&str], names: &str| {
        let run = Command::new(env!("CARGO_BIN_EXE_selfjudge"))
            .arg("serve")
            .args(arguments)
            .output();
        let run = run.unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(!run.status.success() && said.contains(names), "{said}");
    };
    refused(&["--api-key-file", "/nowhere/keys"], "/nowhere/keys");
    refused(&["--rate-limit", "5"], "--api-key-file");
    refused(&["--kv-cache-memory", "64KiB"], "holds");
    refused(&["--tls-cert", "x"], "--tls-key");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "ours:secret\n").unwrap();
    let of_file = Server::start(&["--api-key-file", file.to_str().unwrap()]);
    let keys = [("SELFJUDGE_API_KEYS", "first\nours:secret")];
    let of_environment = Server::start_in(&keys, &[]);
    for server in [of_file, of_environment] {
        let get = |key: &str| {
            let request = client().get(server.url("/v1/models")).bearer_auth(key);
            request.send().unwrap().status().as_u16()
        };
        assert_eq!((get("secret"), get("other")), (200, 401));
        let said = server.said().join("\n");
        assert!(!said.contains("secret"), "{said}");
    }
    let both = Command::new(env!("CARGO_BIN_EXE_selfjudge"))
        .args(["serve", "--api-key-file", file.to_str().unwrap()])
        .envs(keys)
        .output();
    let both = both.unwrap();
    let said = String::from_utf8_lossy(&both.stderr).into_owned();
    assert!(
        !both.status.success() && said.contains("--api-key"),
        "{said}"
    );
}

#[test]
#[cfg_attr(
    not(has_clients),
    ignore = "needs the Python clients: SELFJUDGE_REQUIRE=clients"
)]
fn openais_own_client_is_served() {
    let script = root().join("tests/clients/openai_client.py");
    let mut client = python(&[script.to_str().unwrap()], "--check");
    let server = Server::start(&[]);
    let run = client.arg(&server.url).output().unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

/// The test needs the npm package `openai` below `SELFJUDGE_NODE_MODULES` or `target/clients/node_modules`.
#[test]
#[cfg_attr(
    not(has_node),
    ignore = "needs Node.js and the npm package openai: SELFJUDGE_REQUIRE=node"
)]
fn openais_client_for_node_is_served() {
    let root = root();
    let modules = std::env::var_os("SELFJUDGE_NODE_MODULES");
    let modules = modules.map_or_else(|| root.join("target/clients/node_modules"), Into::into);
    let client = |argument: &str| {
        let mut node = Command::new("node");
        node.env("NODE_PATH", &modules);
        node.arg(root.join("tests/clients/openai_client.cjs"))
            .arg(argument);
        node.output()
    };
    assert!(client("--check").unwrap().status.success());
    let server = Server::start(&[]);
    let run = client(&server.url).unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

/// Compares likelihoods of choices and of whole texts, and generations, with numpy's results from the weights alone.
#[test]
#[cfg_attr(
    not(has_lm_eval),
    ignore = "needs lm-eval and transformers: SELFJUDGE_REQUIRE=lm-eval"
)]
fn lm_eval_agrees_with_the_models_own_numbers() {
    let root = root();
    let script = root.join("tests/clients/lm_eval/run.py");
    let mut client = python(&[script.to_str().unwrap()], "--check");
    let server = Server::start(&[]);
    let cache = tempfile::tempdir().unwrap();
    let run = client
        .env("HF_HOME", cache.path())
        .arg(&server.url)
        .arg(root.join("models/pocket"))
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

/// Sends random requests by the API's description. No answer may be a 5xx or differ from the description.
#[test]
#[cfg_attr(
    not(has_clients),
    ignore = "needs the Python clients: SELFJUDGE_REQUIRE=clients"
)]
fn schemathesis_finds_nothing() {
    let mut client = python(&["-m", "schemathesis.cli"], "--version");
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let run = client
        .current_dir(dir.path())
        .args([
            "run",
            &server.url("/openapi.json"),
            "--seed",
            "1",
            "--max-examples",
            "10",
            // The operators' routes are on another listener.
            "--exclude-path-regex",
            "^/(events|principles|train.*|generations.*)$",
        ])
        // A schema cannot express that fields contradict each other.
        .args([
            "--exclude-checks",
            "positive_data_acceptance",
            "--max-time",
            "60",
            "--no-color",
            // The timeout is large, so that a slow machine does not fail the test.
            "--request-timeout",
            "600",
            "--suppress-health-check",
            "too_slow",
        ])
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stdout)
    );
}

/// Starts a server that must refuse its arguments, and returns its log.
fn refused(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_selfjudge"))
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_cannot_be_safe_does_not_start_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let twice = file("twice", "alice:0123456789abcdef\nalice:fedcba9876543210\n");
    let derived = file("derived", "key-0123456789ab:0123456789abcdef\n");
    for (arguments, told) in [
        (&["--admin-listen", "0.0.0.0:0"][..], "--admin-key-file"),
        (&["--admin-listen", "[::]:0"], "--admin-key-file"),
        (
            &["--cors-origin", "*", "--cors-origin", "https://x.example"],
            "cannot be combined",
        ),
        (
            &["--cors-origin", "https://x.example/"],
            "use https://x.example",
        ),
        (
            &["--api-key-file", &twice],
            "line 2: the name `alice` is already used in line 1",
        ),
        (
            &["--api-key-file", &derived],
            "line 1: the name has the form of a derived one",
        ),
    ] {
        let said = refused(arguments);
        assert!(said.contains(told), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn keys_that_others_can_read_or_guess_are_warned_of_and_metrics_have_a_listener() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "alice:0123456789abcdef\nbob:short\n").unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_selfjudge"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "127.0.0.1:0",
            "--api-key-file",
        ])
        .arg(&keys)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let metrics = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            said.push_str(&line);
            said.push('\n');
            line.strip_prefix("for metrics: ").map(str::to_owned)
        });
    let metrics = metrics.unwrap_or_else(|| panic!("{said}"));
    let status = |base: &str, path: &str| {
        let answer = client().get(format!("{base}{path}")).send().unwrap();
        answer.status().as_u16()
    };
    let page = client()
        .get(format!("{metrics}/metrics"))
        .send()
        .unwrap()
        .text()
        .unwrap();
    let statuses = ["/health", "/ready", "/v1/models"].map(|path| status(&metrics, path));
    // The line of the common listener comes first. Its `/metrics` are only for operators, of whom there is none.
    let first = said
        .split_whitespace()
        .find(|word| word.starts_with("http://"))
        .unwrap();
    let on_common = status(first.trim_end_matches(':'), "/metrics");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(page.contains("selfjudge:"), "{page}");
    assert_eq!((statuses, on_common), ([200, 200, 404], 401));
    assert!(
        said.contains("mode 644") && said.contains("can be guessed (line 2)"),
        "{said}"
    );
}

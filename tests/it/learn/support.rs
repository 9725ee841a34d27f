//! The program with a data directory, its two listeners, and everything that waits.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Instant;

use reqwest::blocking::Client;
use serde_json::{Value, json};

pub use crate::patience::eventually as wait_for;
use crate::patience::{PATIENCE, client};

/// What is said to the program.
pub struct Setup<'a> {
    pub data_dir: &'a Path,
    /// The learner's settings; none does not learn.
    pub learn: Option<&'a str>,
    /// Where it kills itself.
    pub fault: Option<&'a str>,
    /// Bytes that a file may have: a disk that is full for large files.
    pub file_limit: Option<u64>,
    pub arguments: &'a [&'a str],
}

impl<'a> Setup<'a> {
    pub fn new(data_dir: &'a Path) -> Self {
        Self {
            data_dir,
            learn: None,
            fault: None,
            file_limit: None,
            arguments: &[],
        }
    }

    pub fn learning(data_dir: &'a Path, learn: &'a str) -> Self {
        Self {
            learn: Some(learn),
            ..Self::new(data_dir)
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selfjudge"));
        command
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .arg("--data-dir")
            .arg(self.data_dir)
            .args(["--retain", "--train", "--trainer-share", "1"])
            .args(self.arguments)
            .env_remove("SELFJUDGE_FAULT")
            .env("SELFJUDGE_FAULT_UNTIL", until(self.data_dir))
            .stderr(Stdio::piped());
        if let Some(learn) = self.learn {
            command.arg("--learn").arg(settings(self.data_dir, learn));
        }
        if let Some(fault) = self.fault {
            command.env("SELFJUDGE_FAULT", fault);
        }
        if let Some(limit) = self.file_limit {
            use std::os::unix::process::CommandExt;
            let limit = libc::rlimit {
                rlim_cur: limit,
                rlim_max: limit,
            };
            // SAFETY: two system calls without memory between fork and exec. A write beyond the limit then fails, as on a full
            // disk, instead of killing.
            unsafe {
                command.pre_exec(move || {
                    libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                    match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                        0 => Ok(()),
                        _ => Err(std::io::Error::last_os_error()),
                    }
                });
            }
        }
        command
    }
}

/// The file whose existence ends a wait that a fault asks for.
pub fn until(data_dir: &Path) -> PathBuf {
    data_dir.join("fault.over")
}

/// The learner's settings as a file.
fn settings(data_dir: &Path, learn: &str) -> PathBuf {
    let file = data_dir.join("learn.toml");
    std::fs::write(&file, learn).unwrap();
    file
}

/// SIGTERM, and a good end.
fn terminate(child: &mut Child) {
    // SAFETY: a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    let ended = wait_for("its end", || child.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
}

/// The learner of a data directory in a process of its own. Killed when dropped.
pub struct Follower {
    child: Child,
    admin: String,
    client: Client,
}

impl Follower {
    pub fn start(data_dir: &Path, learn: &str) -> Self {
        Self::with_fault(data_dir, learn, None)
    }

    /// With a place where something goes wrong.
    pub fn with_fault(data_dir: &Path, learn: &str, fault: Option<&str>) -> Self {
        Self::launch(data_dir, learn, fault, None)
    }

    /// For servers with an adapter.
    pub fn over(data_dir: &Path, learn: &str, adapter: &Path) -> Self {
        Self::launch(data_dir, learn, None, Some(adapter))
    }

    fn launch(data_dir: &Path, learn: &str, fault: Option<&str>, adapter: Option<&Path>) -> Self {
        let adapter = adapter.map(|adapter| [Path::new("--adapter"), adapter]);
        let mut child = Command::new(env!("CARGO_BIN_EXE_selfjudge"))
            .args(["train", "dpo", "--follow", "--data-dir"])
            .arg(data_dir)
            .arg("--learn")
            .arg(settings(data_dir, learn))
            .args(["--admin-listen", "127.0.0.1:0"])
            .args(adapter.into_iter().flatten())
            .env_remove("SELFJUDGE_FAULT")
            .envs(fault.map(|fault| ("SELFJUDGE_FAULT", fault)))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let admin = said.by_ref().map_while(Result::ok).find_map(|line| {
            let address = line.strip_prefix("for operators: ")?;
            Some(address.to_owned())
        });
        // Read to the end, so that the pipe never fills.
        std::thread::spawn(move || said.for_each(drop));
        Self {
            child,
            admin: admin.expect("a listener for operators"),
            client: client(),
        }
    }

    /// Waits for its end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("its end", || self.child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn admin_get(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.admin)).send();
        answer.unwrap().json().unwrap()
    }

    pub fn admin_post(&self, path: &str) -> Value {
        let answer = self.client.post(format!("{}{path}", self.admin)).send();
        answer.unwrap().json().unwrap()
    }

    /// SIGTERM: what it does is thrown away.
    pub fn stop(mut self) {
        terminate(&mut self.child);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that ended before it listened.
pub struct Ended {
    /// As by `kill -9`.
    pub killed: bool,
    pub said: String,
}

/// A running program. Killed when dropped.
pub struct Program {
    child: Child,
    url: String,
    admin: String,
    client: Client,
    /// What it said until it listened.
    pub said: String,
    later: Mutex<mpsc::Receiver<String>>,
}

impl Program {
    /// Waits for a line that it says after it listened.
    pub fn hears(&self, found: impl Fn(&str) -> bool) -> String {
        let later = self.later.lock().unwrap();
        let begun = Instant::now();
        let mut heard = Vec::new();
        while let Ok(line) = later.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
            if found(&line) {
                return line;
            }
            heard.push(line);
        }
        panic!("it did not say so: {heard:#?}");
    }

    /// # Panics
    /// If it does not come up; see [`Self::try_start`].
    pub fn start(setup: &Setup<'_>) -> Self {
        Self::try_start(setup).unwrap_or_else(|ended| panic!("it did not come up:\n{}", ended.said))
    }

    /// # Errors
    /// How it ended, if it did before it listened.
    pub fn try_start(setup: &Setup<'_>) -> Result<Self, Ended> {
        let mut child = setup.command().spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let (lines, heard) = mpsc::channel();
        // Read to the end, so that the pipe never fills.
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let (mut url, mut admin, mut all) = (None, None, String::new());
        while url.is_none() || admin.is_none() {
            let Ok(line) = heard.recv_timeout(PATIENCE) else {
                let by_itself = wait_for("its end", || child.try_wait().unwrap());
                return Err(Ended {
                    killed: by_itself.signal() == Some(libc::SIGKILL),
                    said: all,
                });
            };
            let address = line
                .split_whitespace()
                .find(|word| word.starts_with("http://"));
            if let Some(address) = address {
                let address = address.trim_end_matches(':').to_owned();
                match line.starts_with("for operators") {
                    true => admin = Some(address),
                    false => url = Some(address),
                }
            }
            all.push_str(&line);
            all.push('\n');
        }
        Ok(Self {
            child,
            url: url.unwrap(),
            admin: admin.unwrap(),
            client: client(),
            said: all,
            later: Mutex::new(heard),
        })
    }

    /// The answer's status and JSON; an error where the program is gone.
    pub fn try_post(&self, path: &str, body: &Value) -> reqwest::Result<(u16, Value)> {
        let answer = self
            .client
            .post(format!("{}{path}", self.url))
            .json(body)
            .send()?;
        Ok((answer.status().as_u16(), answer.json()?))
    }

    pub fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.try_post(path, body).unwrap();
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        let answer = self
            .client
            .get(format!("{}{path}", self.url))
            .send()
            .unwrap();
        (answer.status().as_u16(), answer.json().unwrap())
    }

    /// The value of a metric's first series that begins so.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let metrics = self.metrics();
        let line = metrics.lines().find(|line| line.starts_with(series))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    pub fn metrics(&self) -> String {
        let answer = self
            .client
            .get(format!("{}/metrics", self.admin))
            .send()
            .unwrap();
        answer.text().unwrap()
    }

    pub fn admin_get(&self, path: &str) -> Value {
        let answer = self
            .client
            .get(format!("{}{path}", self.admin))
            .send()
            .unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        answer.json().unwrap()
    }

    pub fn admin_post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self
            .client
            .post(format!("{}{path}", self.admin))
            .json(body)
            .send()
            .unwrap();
        (answer.status().as_u16(), answer.json().unwrap())
    }

    pub fn admin_put(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self
            .client
            .put(format!("{}{path}", self.admin))
            .json(body)
            .send()
            .unwrap();
        (answer.status().as_u16(), answer.json().unwrap())
    }

    /// One logged call; its record's id.
    pub fn ask(&self, number: usize) -> String {
        let answer = self.post("/generate", &question(number));
        answer["record_id"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    pub fn get_with_key(&self, path: &str, key: &str) -> (u16, Value) {
        let call = self.client.get(format!("{}{path}", self.url));
        let answer = call.bearer_auth(key).send().unwrap();
        (answer.status().as_u16(), answer.json().unwrap())
    }

    pub fn delete_with_key(&self, path: &str, key: &str) -> (u16, Value) {
        let call = self.client.delete(format!("{}{path}", self.url));
        let answer = call.bearer_auth(key).send().unwrap();
        (answer.status().as_u16(), answer.json().unwrap())
    }

    /// A call under a name of its own.
    pub fn named(&self, path: &str, key: &str, name: &str, body: &Value) -> (u16, Value) {
        let call = self.client.post(format!("{}{path}", self.url));
        let call = call.bearer_auth(key).header("idempotency-key", name);
        let answer = call.json(body).send().unwrap();
        (answer.status().as_u16(), answer.json().unwrap())
    }

    /// By the owner of a key.
    pub fn post_with_key(&self, path: &str, key: &str, body: &Value) -> Value {
        let call = self.client.post(format!("{}{path}", self.url));
        let answer = call.bearer_auth(key).json(body).send().unwrap();
        let status = answer.status().as_u16();
        let answer = answer.json().unwrap();
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// One logged call by the owner of a key; its record's id.
    pub fn ask_with_key(&self, number: usize, key: &str) -> String {
        let answer = self.post_with_key("/generate", key, &question(number));
        answer["record_id"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    pub fn policy(&self) -> String {
        let generations = self.admin_get("/generations");
        generations["pointers"]["policy"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Waits until the first stage of this data directory has been promoted and closed: learning then pauses, unattended.
    pub fn learned(&self) -> String {
        wait_for("a promoted stage", || {
            let train = self.admin_get("/train");
            assert_ne!(train["state"], "failed", "{train}");
            let policy = self.policy();
            let over = ["waiting", "paused"]
                .iter()
                .any(|state| train["state"] == **state);
            (policy != "base" && over).then_some(policy)
        })
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("its end", || self.child.try_wait().unwrap())
    }

    /// Whether it was killed as by `kill -9`.
    pub fn was_killed(&mut self) -> bool {
        self.wait().signal() == Some(libc::SIGKILL)
    }

    /// Whether a program that is to kill itself did, now or before it listened.
    pub fn dies(setup: &Setup<'_>) -> bool {
        match Self::try_start(setup) {
            Ok(mut program) => program.was_killed(),
            Err(ended) => ended.killed,
        }
    }

    /// SIGTERM, and the drain.
    pub fn stop(mut self) {
        terminate(&mut self.child);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A call of the pocket world.
pub fn question(number: usize) -> Value {
    let content = format!(
        "What is {} plus {}?",
        10 + number % 80,
        10 + number * 7 % 80
    );
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": 32, "seed": number})
}

/// Settings under which a stage is small, and every candidate passes.
pub const LEARN: &str = r#"
[stage]
prompts = 8
batch = 4
order = "as_logged"
held_out = 0.3
principal_share = 1.0
checkpoint_every = 1
kl_budget = 1e9
unattended = 1

[rollout]
samples = 4
top_p = 1.0
max_tokens = 48

[judging]
disagreement = "keep"

[dpo]
lora = { r = 4, lora_alpha = 8 }
schedule = { learning_rate = 1e-3, lr_scheduler = "cosine", warmup_ratio = 0.03 }

[gates]
prompts = 3
# Which prompts are held out is drawn anew in every run: any part of a duel that is won passes the candidate.
win_rate = { p0 = 1e-9, p1 = 2e-9, alpha = 0.5, beta = 0.4999999 }
min_length_controlled = 0.0
max_kl = 1e9
max_norm = 1e9
max_truncated = 1.0
pass_undecided = true
base = { min_win_rate = 0.0, max_truncated = 1.0, tolerance = 0.99 }
"#;

/// A data directory with enough traffic for one stage.
pub fn with_traffic() -> tempfile::TempDir {
    with_calls(40)
}

/// A data directory with so many logged calls.
pub fn with_calls(count: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(&Setup::new(dir.path()));
    for number in 0..count {
        program.ask(number);
    }
    program.stop();
    dir
}

/// A copy of a data directory that no program has open.
pub fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_into(from, to.path());
    to
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_into(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

//! The program with a data directory and its two listeners.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, mpsc};
use std::time::Instant;

use reqwest::blocking::Client;
use serde_json::Value;

use super::{Setup, question, terminate, wait_for};
use crate::patience::{PATIENCE, client, eventually_or};

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

    /// Returns the sum of a metric's series that have this label value.
    pub fn counted(&self, name: &str, label: &str) -> f64 {
        let metrics = self.metrics();
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        let of = lines.filter(|line| line.contains(label));
        of.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
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
    ///
    /// # Panics
    /// If the stage is rejected.
    pub fn learned(&self) -> String {
        self.wait_for_stage("a promoted stage", |train, generations| {
            let rejected = generations.iter().find(|one| one["state"] == "rejected");
            assert!(rejected.is_none(), "{}", rejected.unwrap());
            let policy = self.policy();
            let over = ["waiting", "paused"]
                .iter()
                .any(|state| train["state"] == **state);
            (policy != "base" && over).then_some(policy)
        })
    }

    /// Waits for this number of ended stages, and returns their generations, the oldest first.
    pub fn ended(&self, stages: usize) -> Vec<Value> {
        self.wait_for_stage("the end of the stages", |_, generations| {
            let over = generations.iter().filter(|one| one["state"] != "candidate");
            (over.count() >= stages).then(|| generations.to_vec())
        })
    }

    /// Returns the first value that `look` finds in the learner's state and the generations, the oldest first.
    ///
    /// # Panics
    /// If learning fails, or `look` finds no value in time.
    fn wait_for_stage<T>(&self, what: &str, look: impl Fn(&Value, &[Value]) -> Option<T>) -> T {
        let state = || {
            let train = self.admin_get("/train");
            (train, self.admin_get("/generations"))
        };
        let late = || {
            let (train, generations) = state();
            format!("{what}: {train} {generations}")
        };
        eventually_or(late, || {
            let (train, generations) = state();
            assert_ne!(train["state"], "failed", "{train}");
            let mut generations = generations["generations"].as_array().unwrap().clone();
            generations.sort_by_key(|generation| generation["stage"].as_i64());
            look(&train, &generations)
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

    /// Returns the most bytes that it had in memory at a time, pages of mapped files included.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() << 10
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

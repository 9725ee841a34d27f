//! The learner of a data directory in a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use reqwest::blocking::Client;
use serde_json::Value;

use super::setup::settings;
use super::{terminate, wait_for};
use crate::patience::client;

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
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let admin = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let address = line.strip_prefix("for operators: ")?;
            Some(address.to_owned())
        });
        // Read to the end, so that the pipe never fills.
        std::thread::spawn(move || lines.for_each(drop));
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

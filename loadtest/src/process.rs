//! A server process that a scenario starts.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;

/// The longest time until a server logs its address.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server process, which is killed when it is dropped.
pub struct Process {
    child: Child,
    /// The URL that the server logged.
    pub url: String,
}

impl Process {
    /// Starts a command with further arguments and waits for the first log line with an address. `log` receives all lines.
    ///
    /// # Errors
    /// If the process cannot be started, or ends before it listens.
    pub fn start(
        command: &[String],
        arguments: &[&str],
        log: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let (program, first) = command.split_first().context("no command is given")?;
        let mut log = log
            .map(|path| {
                let file = File::options().create(true).append(true).open(path);
                file.with_context(|| format!("cannot write {}", path.display()))
            })
            .transpose()?;
        let mut child = Command::new(program)
            .args(first)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let said = child.stderr.take().context("it has no output")?;
        let (sender, address) = mpsc::channel();
        // The thread reads to the end, so that the pipe never fills.
        std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                let words = line.split_whitespace();
                let mut addresses = words.filter(|word| word.starts_with("http://"));
                if let Some(address) = addresses.next() {
                    // Only the first address has a receiver.
                    let _ = sender.send(address.trim_end_matches(':').to_owned());
                }
                if let Some(log) = &mut log {
                    // A failure to write the log does not stop the measurement.
                    let _ = writeln!(log, "{line}");
                }
            }
        });
        let mut process = Self {
            child,
            url: String::new(),
        };
        process.url = address
            .recv_timeout(PATIENCE)
            .context("the server does not start; see --server-log")?;
        Ok(process)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status, if the process has ended.
    ///
    /// # Errors
    /// If the system cannot report it.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A server that a scenario starts by itself.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;

/// How long a server may take until it says where it listens.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server. Killed when dropped.
pub struct Process {
    child: Child,
    /// Where it listens, as it said.
    pub url: String,
}

impl Process {
    /// Starts a command with further arguments and waits for the first line that has an address; everything it says goes to `log`.
    ///
    /// # Errors
    /// If it cannot be started, or ends before it listens.
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
        // Read to the end, so that the pipe never fills.
        std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                let words = line.split_whitespace();
                let mut addresses = words.filter(|word| word.starts_with("http://"));
                if let Some(address) = addresses.next() {
                    // Later ones are not waited for.
                    let _ = sender.send(address.trim_end_matches(':').to_owned());
                }
                if let Some(log) = &mut log {
                    // A log that cannot be written is no reason to stop the measurement.
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

    /// How it ended, if it did.
    ///
    /// # Errors
    /// The system's.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

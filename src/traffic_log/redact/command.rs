//! Redaction by an external program.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::{LogError, Result};

/// The interval at which a running program is polled.
const LOOK: Duration = Duration::from_millis(5);

/// The maximum length of the output as a multiple of the input's; JSON may escape each byte as six.
const LONGER: u64 = 8;

/// The bytes that the output may have beyond that.
const ROOM: u64 = 64 << 10;

/// A program that reads a JSON array of texts from its standard input and writes an array of the same length, redacted, to its standard
/// output. On any failure (a timeout, an exit status, another length) the record is not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedactCommand {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub timeout: Duration,
}

impl RedactCommand {
    /// Runs the program on a sample text, to check that it can redact records.
    ///
    /// # Errors
    /// Errors with [`LogError::Redaction`] if the program cannot be started, fails, or returns anything but texts.
    pub fn check(&self) -> Result<()> {
        let text = "A text without any personal data.".to_owned();
        self.run(&[text]).map(drop)
    }

    /// Runs the program on some texts and waits for it.
    pub(super) fn run(&self, texts: &[String]) -> Result<Vec<String>> {
        let failed =
            |what: String| LogError::Redaction(format!("{}: {what}", self.program.display()));
        let input = serde_json::to_vec(texts).map_err(|error| failed(error.to_string()))?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let deadline = Instant::now() + self.timeout;
        let answer = converse(&mut child, input, deadline);
        let status = wait(&mut child, deadline);
        let answer =
            answer.ok_or_else(|| failed(format!("no answer within {:?}", self.timeout)))?;
        match status {
            Some(status) if status.success() => {}
            Some(status) => return Err(failed(status.to_string())),
            None => return Err(failed(format!("still running after {:?}", self.timeout))),
        }
        let redacted: Vec<String> =
            serde_json::from_slice(&answer).map_err(|error| failed(error.to_string()))?;
        if redacted.len() != texts.len() {
            return Err(failed(format!(
                "the program returned {} texts instead of {}",
                redacted.len(),
                texts.len()
            )));
        }
        Ok(redacted)
    }
}

/// Writes the input and reads the output concurrently, on threads, because either pipe may be full. If a process holds the pipes open
/// beyond the deadline, these threads are abandoned.
fn converse(child: &mut Child, input: Vec<u8>, deadline: Instant) -> Option<Vec<u8>> {
    let (mut stdin, stdout) = (child.stdin.take()?, child.stdout.take()?);
    // A longer output is cut off, so that it is not valid JSON.
    let mut stdout = stdout.take(input.len() as u64 * LONGER + ROOM);
    thread::spawn(move || {
        // If a program does not read all of the input, its output shows the failure.
        let _ = stdin.write_all(&input);
    });
    let (done, answer) = mpsc::channel();
    thread::spawn(move || {
        let mut output = Vec::new();
        if stdout.read_to_end(&mut output).is_ok() {
            let _ = done.send(output);
        }
    });
    let left = deadline.saturating_duration_since(Instant::now());
    answer.recv_timeout(left).ok()
}

/// Returns the program's exit status, or none if it had to be killed.
fn wait(child: &mut Child, deadline: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK),
            _ => {
                // An error means that the program has already ended.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> Result<Vec<String>> {
        RedactCommand {
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            timeout,
        }
        .run(&["Ann".to_owned(), "x".repeat(1 << 20)])
    }

    const LONG: Duration = Duration::from_secs(120);

    #[test]
    fn a_program_that_cannot_redact_is_found_out() {
        let command = |program: &str, arguments: &[&str]| RedactCommand {
            program: PathBuf::from(program),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            timeout: LONG,
        };
        command("/bin/cat", &[]).check().unwrap();
        for (program, arguments) in [
            ("./nope", &[][..]),
            ("/", &[]),
            ("/etc/passwd", &[]),
            ("/bin/sh", &["-c", "cat; exit 3"]),
            ("/bin/sh", &["-c", "echo text"]),
            ("/bin/sh", &["-c", "echo '[]'"]),
        ] {
            let error = command(program, arguments).check().unwrap_err();
            assert!(error.to_string().contains(program), "{error}");
        }
    }

    #[test]
    fn texts_go_out_and_come_back() {
        let redacted = shell("sed s/Ann/N.N./", LONG).unwrap();
        assert_eq!(redacted[0], "N.N.");
        assert_eq!(redacted[1].len(), 1 << 20);
    }

    #[test]
    fn whatever_goes_wrong_is_an_error() {
        for script in [
            "cat; exit 3",
            "echo '[]'",
            "echo hello",
            "cat >/dev/null",
            "yes",
            "cat >/dev/null; exec yes '[\"\",'",
        ] {
            let result = shell(script, LONG);
            assert!(matches!(result, Err(LogError::Redaction(_))), "{script}");
        }
        let result = shell("sleep 600", Duration::from_millis(50));
        assert!(matches!(result, Err(LogError::Redaction(_))));
    }
}

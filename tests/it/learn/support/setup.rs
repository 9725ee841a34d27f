//! The arguments of the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The arguments and the environment of the program.
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

    pub(super) fn command(&self) -> Command {
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
            .args(["--retain", "--train"])
            .args(self.arguments)
            .env_remove("SELFJUDGE_FAULT")
            .env("SELFJUDGE_FAULT_UNTIL", until(self.data_dir))
            .stderr(Stdio::piped());
        if let Some(learn) = self.learn {
            command.arg("--learn").arg(settings(self.data_dir, learn));
            command.args(["--trainer-share", "1"]);
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
pub(super) fn settings(data_dir: &Path, learn: &str) -> PathBuf {
    let file = data_dir.join("learn.toml");
    std::fs::write(&file, learn).unwrap();
    file
}

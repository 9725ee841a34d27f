//! Sockets, the keys that are asked for at them, and the mode of files.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;

use crate::engine::TenantShare;
use crate::files;
use crate::http::{AdminHosts, ApiKeys, ConnectionLimits};

/// The keys that a file lists. Warns of a file that others may read, and of keys that can be guessed.
pub(super) fn keys_in(path: &Path) -> anyhow::Result<ApiKeys> {
    let cannot = || format!("cannot read {}", path.display());
    let list = files::read_small(path).with_context(cannot)?;
    let keys = ApiKeys::parse(&list).with_context(|| path.display().to_string())?;
    let mode = std::fs::metadata(path)
        .with_context(cannot)?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        tracing::warn!(
            "{}: others than its owner can use the file (mode {:03o}): chmod 600 keeps the keys from them",
            path.display(),
            mode & 0o777
        );
    }
    warn_of_short(&keys, &path.display().to_string());
    Ok(keys)
}

/// Warns of keys that can be guessed.
pub(super) fn warn_of_short(keys: &ApiKeys, list: &str) {
    let lines = keys.short_keys();
    if !lines.is_empty() {
        let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
        let lines = lines.join(", ");
        tracing::warn!("{list}: keys of fewer than 16 characters can be guessed (line {lines})");
    }
}

/// The names of the operators' listener.
///
/// # Errors
/// A listener that others reach and that asks for no key.
pub(super) fn admin_hosts(
    listen: Option<SocketAddr>,
    keys: &ApiKeys,
    names: &[String],
) -> anyhow::Result<AdminHosts> {
    if let Some(address) = listen {
        anyhow::ensure!(
            !keys.is_empty() || address.ip().to_canonical().is_loopback(),
            "--admin-listen {address} is no loopback address, and everybody who reaches it would be an operator: \
             give operators keys (--admin-key-file), or listen on 127.0.0.1"
        );
    }
    Ok(AdminHosts {
        address: listen.map(|address| address.ip()),
        names: names.to_vec(),
    })
}

/// Has the process make its files for their owner alone. To be called before it has other threads that make files.
pub(super) fn own_files_alone() {
    // SAFETY: a system call that sets one number of the process.
    unsafe { libc::umask(0o077) };
}

/// Has a file that may grow no more (`ulimit -f`) be a failed write, as a full disk is, and not the end of the process.
pub(super) fn survive_full_files() {
    // SAFETY: a system call that sets how the process takes one signal; nothing of Rust's runs then.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Connections that the system completes before they are accepted. More at once than these find no answer, and ask again after a
/// second.
const BACKLOG: libc::c_int = 4096;

/// Binds an address; with port 0 the system chooses one.
pub(super) fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    // The standard library asks for 128.
    // SAFETY: a system call that sets one number of a socket of our own.
    let listening = unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) };
    anyhow::ensure!(
        listening == 0,
        "cannot listen on {address}: {}",
        std::io::Error::last_os_error()
    );
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Connections of the operators' listener at most.
const OPERATORS_CONNECTIONS: usize = 256;

/// The limits of the operators' listener beside the callers': it does not fill up with theirs, and has no tenants.
pub(super) fn operators_connections(limits: ConnectionLimits) -> ConnectionLimits {
    ConnectionLimits {
        max_connections: limits.max_connections.min(OPERATORS_CONNECTIONS),
        share: TenantShare::WHOLE,
        ..limits
    }
}

/// Files that the process opens beside its connections: databases, checkpoints, listeners.
const OTHER_FILES: usize = 64;

/// Connections that may be open at once: so many, or as many as the system lets the process have open files for. The process takes
/// all that the system allows it.
pub(super) fn max_connections(wanted: usize) -> usize {
    let mut files = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: reads into and from a struct of the caller.
    let known = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut files) == 0 && {
            let all = libc::rlimit {
                rlim_cur: files.rlim_max,
                ..files
            };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &all) == 0 {
                files = all;
            }
            true
        }
    };
    let open = usize::try_from(files.rlim_cur).unwrap_or(usize::MAX);
    match known {
        true => wanted.min(open.saturating_sub(OTHER_FILES).max(1)),
        false => wanted,
    }
}

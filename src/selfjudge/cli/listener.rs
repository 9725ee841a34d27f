//! Sockets, the API keys of their listeners, and the mode of created files.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;

use crate::http::{AdminHosts, ApiKeys, ConnectionLimits};
use engine::TenantShare;

/// Reads the keys in a file. Warns if other users can read the file, and of keys that are too short.
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
            "{}: other users can access the file (mode {:03o}); protect the keys with chmod 600",
            path.display(),
            mode & 0o777
        );
    }
    warn_of_short(&keys, &path.display().to_string());
    Ok(keys)
}

/// Warns of keys that are short enough to be guessed.
pub(super) fn warn_of_short(keys: &ApiKeys, list: &str) {
    let lines = keys.short_keys();
    if !lines.is_empty() {
        let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
        let lines = lines.join(", ");
        tracing::warn!("{list}: keys of fewer than 16 characters can be guessed (line {lines})");
    }
}

/// Returns the host names of the operators' listener.
///
/// # Errors
/// Fails if the listener can be reached from other machines and has no keys.
pub(super) fn admin_hosts(
    listen: Option<SocketAddr>,
    keys: &ApiKeys,
    names: &[String],
) -> anyhow::Result<AdminHosts> {
    if let Some(address) = listen {
        anyhow::ensure!(
            !keys.is_empty() || address.ip().to_canonical().is_loopback(),
            "--admin-listen {address} is not a loopback address, so any client that reaches it would be an operator: give operators keys \
             (--admin-key-file), or listen on 127.0.0.1"
        );
    }
    Ok(AdminHosts {
        address: listen.map(|address| address.ip()),
        names: names.to_vec(),
    })
}

/// Sets the umask so that only the owner can access created files. Must be called before threads that create files exist.
pub(super) fn own_files_alone() {
    // SAFETY: the system call only sets a number of the process.
    unsafe { libc::umask(0o077) };
}

/// Turns the file size limit (`ulimit -f`) into a write error like a full disk, instead of a signal that ends the process.
pub(super) fn survive_full_files() {
    // SAFETY: the system call only sets the disposition of one signal to "ignore", so no Rust code runs on it.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Length of the queue of connections that the kernel completes before they are accepted. Clients beyond it get no reply and retry
/// after a second.
const BACKLOG: libc::c_int = 4096;

/// Binds an address; with port 0 the system chooses a port.
pub(super) fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    // The standard library uses a backlog of 128.
    // SAFETY: the system call only sets a number of a socket that this function owns.
    let listening = unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) };
    anyhow::ensure!(
        listening == 0,
        "cannot listen on {address}: {}",
        std::io::Error::last_os_error()
    );
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Maximum connections of the operators' listener.
const OPERATORS_CONNECTIONS: usize = 256;

/// Returns the limits of the operators' listener: separate from the callers', so that they cannot fill it up, and without tenants.
pub(super) fn operators_connections(limits: ConnectionLimits) -> ConnectionLimits {
    ConnectionLimits {
        max_connections: limits.max_connections.min(OPERATORS_CONNECTIONS),
        share: TenantShare::WHOLE,
        ..limits
    }
}

/// Number of files that the process opens besides its connections: databases, checkpoints, listeners.
const OTHER_FILES: usize = 64;

/// Returns the maximum number of open connections: the wanted number, bounded by the system's limit of open files. Raises the
/// process's soft limit to the hard limit.
pub(super) fn max_connections(wanted: usize) -> usize {
    let mut files = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the calls read and write a struct that this function owns.
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

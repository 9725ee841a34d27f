//! Sockets, the keys that are asked for at them, and the mode of files.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio::task::JoinHandle;

use crate::http::{AdminHosts, ApiKeys};

/// The keys that a file lists. Warns of a file that others may read, and of keys that can be guessed.
pub(super) fn keys_in(path: &Path) -> anyhow::Result<ApiKeys> {
    let cannot = || format!("cannot read {}", path.display());
    let list = std::fs::read_to_string(path).with_context(cannot)?;
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

/// Binds an address; with port 0 the system chooses one.
pub(super) fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Serves a listener beside everything else.
pub(super) async fn accept(
    listener: TcpListener,
    router: Router,
    tls: Option<(&PathBuf, &PathBuf)>,
    handle: &Handle<SocketAddr>,
) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    let service = router.into_make_service();
    Ok(match tls {
        Some((cert, key)) => {
            let tls = RustlsConfig::from_pem_file(cert, key)
                .await
                .with_context(|| format!("cannot use {} and {}", cert.display(), key.display()))?;
            let server = axum_server::from_tcp_rustls(listener, tls)?.handle(handle.clone());
            tokio::spawn(server.serve(service))
        }
        None => {
            let server = axum_server::from_tcp(listener)?.handle(handle.clone());
            tokio::spawn(server.serve(service))
        }
    })
}

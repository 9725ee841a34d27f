//! Sockets, and the keys that are asked for at them.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context;
use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio::task::JoinHandle;

use crate::http::ApiKeys;

/// The keys that a file lists.
pub(super) fn keys_in(path: &Path) -> anyhow::Result<ApiKeys> {
    let list =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    ApiKeys::parse(&list).with_context(|| path.display().to_string())
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

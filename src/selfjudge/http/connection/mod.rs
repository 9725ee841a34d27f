//! Connections: their number, their timeouts and their protocol.
//!
//! A connection is closed if a request's headers do not arrive within seconds, if it is idle for longer than a minute, and if
//! its client does not read the answer. One address may open a share of all connections. Only HTTP/1.1 is supported, because a
//! connection of HTTP/2 would carry any number of concurrent requests. A client may shut down its sending side after its request and
//! still gets its answer; one that has disconnected releases its resources ([`timed`]).

mod exchange;
mod places;
mod timed;

use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Handle, Server};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::quiet::Quiet;
use engine::{Tenant, TenantShare};
use exchange::{Exchange, Watched};
use places::Places;
use timed::Timed;

/// The limits of a listener's connections.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Maximum open connections; others are closed at once.
    pub max_connections: usize,
    /// The share of them that one address may have.
    pub share: TenantShare,
    /// Addresses without a share of their own: proxies, which connect for many clients.
    pub proxies: Arc<[IpAddr]>,
    pub timeouts: ConnectionTimeouts,
}

/// The timeouts after which a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionTimeouts {
    /// For the headers of a request: from its first byte or, for the first request (with the TLS handshake),
    /// from the beginning of the connection.
    pub headers: Duration,
    /// Between an answer and the first byte of the next request.
    pub idle: Duration,
    /// While the client does not read pending data.
    pub unread: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            share: TenantShare::default(),
            proxies: Arc::default(),
            timeouts: ConnectionTimeouts::default(),
        }
    }
}

impl Default for ConnectionTimeouts {
    fn default() -> Self {
        Self {
            headers: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            unread: Duration::from_secs(30),
        }
    }
}

/// Serves `router` on a listener in the background, over TLS if `tls` is given.
///
/// # Errors
/// Fails if the listener cannot be used.
pub fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<RustlsConfig>,
    handle: Handle<SocketAddr>,
    limits: &ConnectionLimits,
) -> io::Result<JoinHandle<io::Result<()>>> {
    let acceptor = Acceptor {
        places: Places::new(limits.max_connections, limits.share),
        proxies: Arc::clone(&limits.proxies),
        timeouts: limits.timeouts,
        plain: tls.is_none(),
        refused: Arc::new(Quiet::new(LOGGED_EVERY, 1)),
    };
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let server = axum_server::from_tcp(listener)?.handle(handle);
    Ok(match tls {
        Some(tls) => {
            let tls = RustlsAcceptor::new(http1_only(tls))
                .handshake_timeout(limits.timeouts.headers)
                .acceptor(acceptor);
            tokio::spawn(configured(server.acceptor(tls)).serve(service))
        }
        None => tokio::spawn(configured(server.acceptor(acceptor)).serve(service)),
    })
}

/// Minimum interval between log lines about failures that may occur at any rate.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

fn configured<A>(server: Server<SocketAddr, A>) -> Server<SocketAddr, A> {
    let failures = Quiet::new(LOGGED_EVERY, 1);
    let on_error = move |peer: Option<&SocketAddr>, error: &io::Error| match peer {
        Some(peer) => tracing::debug!(%peer, %error, "a connection was not accepted"),
        // For example, too many open files. The server retries after a moment.
        None => {
            if let Some(unsaid) = failures.next_line() {
                tracing::warn!(%error, unsaid, "connections cannot be accepted");
            }
        }
    };
    server.http1_only().accept_error_handler(on_error)
}

/// Restricts TLS negotiation to HTTP/1.1.
fn http1_only(tls: RustlsConfig) -> RustlsConfig {
    let mut config = (*tls.get_inner()).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    tls.reload_from_config(Arc::new(config));
    tls
}

/// Assigns each connection its place and its timers.
#[derive(Clone)]
struct Acceptor {
    places: Places,
    proxies: Arc<[IpAddr]>,
    timeouts: ConnectionTimeouts,
    /// Whether connections are without TLS.
    plain: bool,
    refused: Arc<Quiet>,
}

impl Acceptor {
    fn open<S>(&self, stream: TcpStream, service: S) -> io::Result<(Timed<TcpStream>, Watched<S>)> {
        let peer = stream.peer_addr()?.ip();
        let tenant =
            (!self.proxies.contains(&peer.to_canonical())).then(|| Tenant::of_address(peer));
        let Some(place) = self.places.take(tenant) else {
            if let Some(unsaid) = self.refused.next_line() {
                tracing::warn!(%peer, unsaid, "connections are closed because there are too many, from one address or in total");
            }
            return Err(io::Error::other("too many connections"));
        };
        // Nagle's algorithm would delay an event until the previous one is acknowledged.
        stream.set_nodelay(true)?;
        let exchange = Arc::new(Exchange::new(self.timeouts));
        let watched = Watched::new(service, Arc::clone(&exchange));
        Ok((
            Timed::new(stream, exchange, self.timeouts.unread, self.plain, place),
            watched,
        ))
    }
}

impl<S> Accept<TcpStream, S> for Acceptor {
    type Stream = Timed<TcpStream>;
    type Service = Watched<S>;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.open(stream, service))
    }
}

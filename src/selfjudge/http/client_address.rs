//! The address of a client, also behind proxies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request};
use axum::http::HeaderMap;

/// Addresses of proxies whose `X-Forwarded-For` is trusted.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Arc<[IpAddr]>);

impl TrustedProxies {
    pub fn new(addresses: Arc<[IpAddr]>) -> Self {
        Self(addresses)
    }

    /// Returns the address of a request's client: the peer's, or, if the peer is a trusted proxy, the last address that it
    /// names. A request without a connection counts as local.
    pub fn client(&self, request: &Request) -> IpAddr {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let peer = peer.map_or(local, |ConnectInfo(peer)| peer.ip().to_canonical());
        match self.0.contains(&peer) {
            true => forwarded_for(request.headers()).unwrap_or(peer),
            false => peer,
        }
    }
}

/// Returns the last address of `X-Forwarded-For`, which the nearest proxy has added.
fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let named = headers.get_all("x-forwarded-for").iter().next_back()?;
    let last = named.to_str().ok()?.rsplit(',').next()?.trim();
    let with_port = || Some(last.parse::<SocketAddr>().ok()?.ip());
    last.parse().ok().or_else(with_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(proxies: &TrustedProxies, peer: &str, forwarded: &[&str]) -> IpAddr {
        let mut request = Request::new(axum::body::Body::empty());
        let peer: IpAddr = peer.parse().unwrap();
        let connection = ConnectInfo(SocketAddr::new(peer, 9));
        request.extensions_mut().insert(connection);
        for named in forwarded {
            let headers = request.headers_mut();
            headers.append("x-forwarded-for", named.parse().unwrap());
        }
        proxies.client(&request)
    }

    #[test]
    fn a_client_behind_a_trusted_proxy_is_the_last_one_that_it_names_and_others_cannot_name_anyone()
    {
        let proxies = TrustedProxies::new(Arc::new(["192.0.2.1".parse().unwrap()]));
        for (peer, forwarded, client) in [
            ("192.0.2.1", &["198.51.100.7"][..], "198.51.100.7"),
            ("::ffff:192.0.2.1", &["198.51.100.7"], "198.51.100.7"),
            ("192.0.2.1", &["10.0.0.1, 198.51.100.7"], "198.51.100.7"),
            ("192.0.2.1", &["10.0.0.1", "198.51.100.7"], "198.51.100.7"),
            ("192.0.2.1", &["198.51.100.7:4711"], "198.51.100.7"),
            ("192.0.2.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("192.0.2.1", &["unknown"], "192.0.2.1"),
            ("192.0.2.1", &[], "192.0.2.1"),
            ("192.0.2.2", &["198.51.100.7"], "192.0.2.2"),
            ("127.0.0.1", &["198.51.100.7"], "127.0.0.1"),
        ] {
            let expected: IpAddr = client.parse().unwrap();
            assert_eq!(
                seen(&proxies, peer, forwarded),
                expected,
                "{peer} {forwarded:?}"
            );
        }
        let unknown = Request::new(axum::body::Body::empty());
        assert!(proxies.client(&unknown).is_loopback());
    }
}

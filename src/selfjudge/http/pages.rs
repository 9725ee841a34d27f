//! Protection of the operators' listener against web pages, because an operator's browser may have more rights than the pages it shows.
//!
//! A page can make its visitor's browser call any address, including ones on the visitor's machine, and with DNS rebinding it can read
//! the answers. The listener therefore answers only under its own names (`Host`), refuses pages of other origins (`Origin`,
//! `Sec-Fetch-Site`), and accepts bodies only as `application/json`, which a page may not send to another origin without a preflight.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::cors::Cors;
use super::error::ApiError;

/// The host names of the operators' listener.
#[derive(Debug, Clone, Default)]
pub struct AdminHosts {
    /// The address it is bound to; none stands for the loopback addresses.
    pub address: Option<IpAddr>,
    /// Further names, without ports.
    pub names: Vec<String>,
}

impl AdminHosts {
    /// Returns whether a `Host` names the listener. Ports are ignored, because one may be forwarded to another.
    fn include(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        if authority.as_str().contains('@') {
            return false;
        }
        let name = authority.host();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) => self.include_address(address.to_canonical()),
            Err(_) => {
                let name = name.strip_suffix('.').unwrap_or(name);
                let known = self.names.iter().map(String::as_str);
                let mut known = known.chain(["localhost"]);
                known.any(|known| known.eq_ignore_ascii_case(name))
            }
        }
    }

    fn include_address(&self, address: IpAddr) -> bool {
        let named = self.names.iter().any(|name| name.parse() == Ok(address));
        named
            || match self.address.map(|bound| bound.to_canonical()) {
                // An address as `Host` is safe, because DNS rebinding needs a name.
                Some(bound) if bound.is_unspecified() => true,
                Some(bound) if !bound.is_loopback() => bound == address,
                _ => address.is_loopback(),
            }
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses calls from other origins' pages (middleware).
pub async fn keep_out(
    State(hosts): State<Arc<AdminHosts>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    let authority = request.uri().authority().map(Authority::as_str);
    check_host(&hosts, headers, authority)?;
    check_origin(headers, authority)?;
    if !request.body().is_end_stream() && !is_json(headers) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "a body must be sent as `content-type: application/json`",
        ));
    }
    Ok(next.run(request).await)
}

fn check_host(
    hosts: &AdminHosts,
    headers: &HeaderMap,
    authority: Option<&str>,
) -> Result<(), ApiError> {
    let named = headers.get_all(header::HOST).into_iter();
    // A header that is not text matches no name. A call without `Host` does not come from a browser.
    let named = named.map(|host| host.to_str().unwrap_or_default());
    match named.chain(authority).find(|host| !hosts.include(host)) {
        None => Ok(()),
        Some(host) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "host_not_allowed",
            format!(
                "the operators' listener does not accept the host {host:?}; name it with --admin-host"
            ),
        )),
    }
}

/// Returns a header's text; empty if it is not text.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let value = headers.get(name)?;
    Some(value.to_str().unwrap_or_default())
}

/// Returns whether an origin is the listener's own.
fn is_own(origin: &str, headers: &HeaderMap, authority: Option<&str>) -> bool {
    let own = text(headers, &header::HOST).or(authority);
    let of = origin.split_once("://").map(|(_, of)| of);
    of.zip(own)
        .is_some_and(|(of, own)| of.eq_ignore_ascii_case(own))
}

/// Returns whether a browser sends a request for a page that is neither the listener's own nor of an allowed origin. Such a page can
/// make its visitors' browsers send calls as text, without reading the answers. Requests of other clients have none of these headers.
pub fn is_of_another_page(headers: &HeaderMap, authority: Option<&str>, cors: &Cors) -> bool {
    let origin = text(headers, &header::ORIGIN);
    if origin.is_some_and(|origin| cors.allows(origin)) {
        return false;
    }
    match text(headers, &SEC_FETCH_SITE) {
        // A proxy may change `Host`, but not this header.
        Some("same-origin" | "none") => false,
        Some(_) => true,
        None => origin.is_some_and(|origin| !is_own(origin, headers, authority)),
    }
}

fn check_origin(headers: &HeaderMap, authority: Option<&str>) -> Result<(), ApiError> {
    let origin = text(headers, &header::ORIGIN);
    let site = text(headers, &SEC_FETCH_SITE);
    let elsewhere = origin.is_some_and(|origin| !is_own(origin, headers, authority))
        || site.is_some_and(|site| !matches!(site, "same-origin" | "none"));
    match elsewhere {
        false => Ok(()),
        true => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "origin_not_allowed",
            "the operators' listener does not answer web pages of another origin",
        )),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    kind.and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_called_by_its_own_names_alone() {
        let hosts = |address: &str, names: &[&str]| AdminHosts {
            address: Some(address.parse().unwrap()),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let (loopback, all) = (hosts("127.0.0.1", &["ops.example"]), hosts("0.0.0.0", &[]));
        let (one, six) = (hosts("10.0.0.5", &[]), hosts("::1", &["10.1.1.1"]));
        for (hosts, host, included) in [
            (&loopback, "127.0.0.1:8081", true),
            (&loopback, "127.0.0.1", true),
            (&loopback, "localhost:9", true),
            (&loopback, "LOCALHOST.", true),
            (&loopback, "[::1]:8081", true),
            (&loopback, "[::ffff:127.0.0.1]", true),
            (&loopback, "OPS.example:443", true),
            (&loopback, "evil.example:8081", false),
            (&loopback, "ops.example.evil.example", false),
            (&loopback, "localhost.evil.example", false),
            (&loopback, "localhost@evil.example", false),
            (&loopback, "127.0.0.1.nip.example", false),
            (&loopback, "10.0.0.5:8081", false),
            (&loopback, "", false),
            (&loopback, "a b", false),
            (&all, "10.0.0.5:8081", true),
            (&all, "[fe80::1]:8081", true),
            (&all, "localhost", true),
            (&all, "evil.example", false),
            (&one, "10.0.0.5", true),
            (&one, "10.0.0.6", false),
            (&six, "127.0.0.1", true),
            (&six, "10.1.1.1", true),
            (&AdminHosts::default(), "127.0.0.1", true),
            (&AdminHosts::default(), "10.0.0.5", false),
        ] {
            assert_eq!(hosts.include(host), included, "{host} at {hosts:?}");
        }
    }

    #[test]
    fn a_page_of_another_origin_is_known_unless_it_may_call() {
        let allowed = Cors::parse(&["https://app.example".to_owned()]).unwrap();
        let any = Cors::parse(&["*".to_owned()]).unwrap();
        let own = ("host", "127.0.0.1:8080");
        for (cors, headers, other) in [
            (&Cors::None, &[][..], false),
            (&Cors::None, &[("origin", "http://127.0.0.1:8080")], false),
            (&Cors::None, &[("origin", "http://evil.example")], true),
            (&Cors::None, &[("origin", "null")], true),
            (&Cors::None, &[("origin", "http://127.0.0.1:3000")], true),
            (&Cors::None, &[("sec-fetch-site", "cross-site")], true),
            (&Cors::None, &[("sec-fetch-site", "same-site")], true),
            (&Cors::None, &[("sec-fetch-site", "none")], false),
            (&Cors::None, &[("sec-fetch-site", "same-origin")], false),
            // Behind a proxy of the page's own origin.
            (
                &Cors::None,
                &[
                    ("sec-fetch-site", "same-origin"),
                    ("origin", "https://front.example"),
                ],
                false,
            ),
            (
                &Cors::None,
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("origin", "http://127.0.0.1:8080"),
                ],
                true,
            ),
            (
                &allowed,
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("origin", "https://app.example"),
                ],
                false,
            ),
            (&allowed, &[("origin", "https://evil.example")], true),
            (&allowed, &[("sec-fetch-site", "cross-site")], true),
            (
                &any,
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("origin", "https://x.example"),
                ],
                false,
            ),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers.iter().chain([&own]) {
                map.insert(*name, value.parse().unwrap());
            }
            let found = is_of_another_page(&map, None, cors);
            assert_eq!(found, other, "{headers:?} {cors:?}");
        }
    }

    #[test]
    fn only_its_own_pages_are_answered() {
        let check = |host: Option<&str>, headers: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers.iter().chain(host.map(|host| ("host", host)).iter()) {
                map.insert(*name, value.parse().unwrap());
            }
            check_origin(&map, None).is_ok()
        };
        let own = Some("127.0.0.1:8081");
        for (host, headers, answered) in [
            (own, &[][..], true),
            (own, &[("origin", "http://127.0.0.1:8081")], true),
            (own, &[("origin", "https://127.0.0.1:8081")], true),
            (own, &[("origin", "http://127.0.0.1:3000")], false),
            (own, &[("origin", "http://localhost:8081")], false),
            (own, &[("origin", "https://evil.example")], false),
            (
                own,
                &[("origin", "http://127.0.0.1:8081.evil.example")],
                false,
            ),
            (own, &[("origin", "null")], false),
            (own, &[("origin", "")], false),
            (None, &[("origin", "http://127.0.0.1:8081")], false),
            (own, &[("sec-fetch-site", "none")], true),
            (own, &[("sec-fetch-site", "same-origin")], true),
            (own, &[("sec-fetch-site", "same-site")], false),
            (own, &[("sec-fetch-site", "cross-site")], false),
        ] {
            assert_eq!(check(host, headers), answered, "{host:?} {headers:?}");
        }
    }
}

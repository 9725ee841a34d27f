//! Cross-origin requests: which origins' pages may call from a browser.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::uri::{Scheme, Uri};
use axum::http::{HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, Any, CorsLayer};

use super::layers::REQUEST_ID;

/// Origins whose pages may call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cors {
    #[default]
    None,
    Any,
    Origins(Vec<HeaderValue>),
}

impl Cors {
    /// Parses origins such as `https://example.org`, or `*` alone for all of them.
    ///
    /// # Errors
    /// Fails for a text that a browser would never send as `Origin`; the message gives the right form.
    pub fn parse(origins: &[String]) -> Result<Self, String> {
        match origins {
            [] => Ok(Self::None),
            [any] if any == "*" => Ok(Self::Any),
            origins => origins
                .iter()
                .map(|text| origin(text))
                .collect::<Result<_, _>>()
                .map(Self::Origins),
        }
    }

    /// Returns whether a page of this origin may call.
    pub(super) fn allows(&self, origin: &str) -> bool {
        match self {
            Self::None => false,
            Self::Any => true,
            Self::Origins(origins) => origins.iter().any(|known| known == origin),
        }
    }

    pub(super) fn layer(&self) -> Option<CorsLayer> {
        let layer = CorsLayer::new()
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            // Any header is allowed: OpenAI's client sends a dozen of its own, and headers that the server does not use have no effect.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([REQUEST_ID, header::RETRY_AFTER]);
        match self {
            Self::None => None,
            Self::Any => Some(layer.allow_origin(Any)),
            Self::Origins(origins) => Some(layer.allow_origin(origins.clone())),
        }
    }
}

/// Parses an origin in the form that browsers send: lower-case scheme and host, no default port, no path.
fn origin(text: &str) -> Result<HeaderValue, String> {
    if text == "*" {
        return Err("`*` allows every origin and cannot be combined with other origins".to_owned());
    }
    let none = || {
        format!("`{text}` is not an origin: give a scheme and a host, such as https://example.org")
    };
    let uri: Uri = text.parse().map_err(|_| none())?;
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(none());
    };
    let default_port = match scheme {
        scheme if *scheme == Scheme::HTTP => Some(80),
        scheme if *scheme == Scheme::HTTPS => Some(443),
        _ => None,
    };
    let host = authority.host().to_ascii_lowercase();
    if host.is_empty() || authority.as_str().contains('@') {
        return Err(none());
    }
    if host.contains('*') {
        return Err(format!(
            "`{text}` is not an origin that browsers send: name each host, or use `*` alone for all of them"
        ));
    }
    if !is_host(&host) {
        return Err(none());
    }
    let port = authority
        .port_u16()
        .filter(|&port| Some(port) != default_port);
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    let sent = format!("{}://{host}{port}", scheme.as_str().to_ascii_lowercase());
    if !sent.eq_ignore_ascii_case(text) {
        return Err(format!(
            "`{text}` is not in the form that browsers send; use {sent}"
        ));
    }
    sent.parse().map_err(|_| none())
}

/// Returns whether the host has a browser's form: an IPv6 address in brackets in its shortest form, an IPv4 address of four numbers, or
/// a name made of labels.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']').unwrap_or_default();
        return address
            .parse::<Ipv6Addr>()
            .is_ok_and(|read| read.to_string() == address);
    }
    let mut labels = host.strip_suffix('.').unwrap_or(host).split('.');
    let letters = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    if !labels
        .clone()
        .all(|label| !label.is_empty() && label.bytes().all(letters))
    {
        return false;
    }
    // If the last label is numeric, browsers parse the host as an address.
    let is_number = |label: &str| label.bytes().all(|c| c.is_ascii_digit());
    !labels.next_back().is_some_and(is_number) || host.parse::<Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(origins: &[&str]) -> Result<Cors, String> {
        let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        Cors::parse(&origins)
    }

    #[test]
    fn origins_are_taken_as_browsers_send_them() {
        assert_eq!(parse(&[]), Ok(Cors::None));
        assert_eq!(parse(&["*"]), Ok(Cors::Any));
        let origins = parse(&[
            "https://Example.org",
            "http://localhost:3000",
            "http://[::1]:3000",
            "http://10.0.0.1",
            "https://my_app.x-y.example",
            "capacitor://localhost",
        ]);
        let expected = [
            "https://example.org",
            "http://localhost:3000",
            "http://[::1]:3000",
            "http://10.0.0.1",
            "https://my_app.x-y.example",
            "capacitor://localhost",
        ];
        let expected = expected.map(HeaderValue::from_static).to_vec();
        assert_eq!(origins, Ok(Cors::Origins(expected)));
    }

    #[test]
    fn what_no_browser_sends_is_refused_with_what_it_sends() {
        for (text, expected) in [
            (&["*", "https://x.example"][..], "cannot be combined"),
            (&["https://x.example", "*"], "cannot be combined"),
            (&["https://x.example/"], "use https://x.example"),
            (&["https://x.example/path"], "use https://x.example"),
            (&["https://x.example?q"], "use https://x.example"),
            (&["https://x.example:443"], "use https://x.example"),
            (&["http://x.example:80"], "use http://x.example"),
            (&["https://me@x.example"], "not an origin"),
            (&["x.example"], "not an origin"),
            (&["https://*.example.org"], "name each host"),
            (&["https://*"], "name each host"),
            (&["https://x.*.example.org:8443"], "name each host"),
            (&["*.example.org"], "not an origin"),
            (&["https://.example.org"], "not an origin"),
            (&["https://a..b"], "not an origin"),
            (&["https://x%2Eexample"], "not an origin"),
            (&["http://127.1"], "not an origin"),
            (&["http://999.0.0.1"], "not an origin"),
            (&["http://[0:0:0:0:0:0:0:1]:3000"], "not an origin"),
            (&["null"], "not an origin"),
            (&[""], "not an origin"),
            (&["https://"], "not an origin"),
            (&["https://x.example y"], "not an origin"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}

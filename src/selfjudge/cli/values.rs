//! Parsers for argument values: addresses, sizes and shares.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use engine::TenantShare;
use kernels::linear::WeightFormat;

/// The type of the weights in memory; none for `auto`, the checkpoint's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weights(pub Option<WeightFormat>);

impl FromStr for Weights {
    type Err = String;

    /// Parses `auto` or the name of a format.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self(None)),
            _ => text
                .parse()
                .map(|format| Self(Some(format)))
                .map_err(|_| format!("`{text}` is not one of auto, f32, bf16, int8 and int4")),
        }
    }
}

/// Parses an address to listen on: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`, or a port of 127.0.0.1.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    let named = text
        .rsplit_once(':')
        .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if named.is_none() {
        return Err(format!(
            "`{text}` is not an address: give HOST:PORT, such as 127.0.0.1:8080 or localhost:8080, or a port alone"
        ));
    }
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| format!("the host of `{text}` cannot be found: {error}"))?
        .collect::<Vec<_>>();
    // A name such as localhost has several addresses. IPv4 is preferred, so that the server does not listen on one that clients try last.
    found.sort_by_key(|address| !address.is_ipv4());
    found
        .first()
        .copied()
        .ok_or_else(|| format!("the host of `{text}` has no address"))
}

/// Parses a number of bytes: `512`, `64KiB`, `2G`, `1.5GB`. K, M, G and T, alone or with `iB`, are powers of 1024; KB, MB, GB and TB are
/// powers of 1000.
pub(super) fn bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let digits = digits.trim_end();
    let (prefix, base) = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => ("", 1024_u64),
        "k" | "kib" => ("k", 1024),
        "m" | "mib" => ("m", 1024),
        "g" | "gib" => ("g", 1024),
        "t" | "tib" => ("t", 1024),
        "kb" => ("k", 1000),
        "mb" => ("m", 1000),
        "gb" => ("g", 1000),
        "tb" => ("t", 1000),
        _ => {
            return Err(format!(
                "`{unit}` is not a unit: K, M, G and T (or KiB, MiB, GiB and TiB) are powers of 1024, and KB, MB, GB and TB of 1000"
            ));
        }
    };
    let power = ["", "k", "m", "g", "t"]
        .iter()
        .position(|known| *known == prefix);
    let factor = base.pow(power.unwrap_or(0) as u32);
    let too_many = || format!("`{text}` is more memory than can be addressed");
    if let Ok(number) = digits.parse::<u64>() {
        let bytes = number.checked_mul(factor).ok_or_else(too_many)?;
        return usize::try_from(bytes).map_err(|_| too_many());
    }
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    match digits.parse::<f64>() {
        // A plain number must be whole, because there is no fraction of a byte.
        Ok(number) if plain && factor > 1 => {
            let bytes = number * factor as f64;
            match bytes < 2f64.powi(63) {
                true => Ok(bytes as usize),
                false => Err(too_many()),
            }
        }
        _ if plain && digits.bytes().all(|digit| digit.is_ascii_digit()) => Err(too_many()),
        _ => Err(format!("`{text}` is not a number of bytes")),
    }
}

/// Parses a whole number of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("`{text}` is not a whole number of at least 1")),
    }
}

/// Parses a number of steps of at least 1.
pub(super) fn steps(text: &str) -> Result<u64, String> {
    positive(text).map(|steps| steps as u64)
}

/// Parses a number of bytes as [`bytes`] does, and requires at least 1.
pub(super) fn some_bytes(text: &str) -> Result<usize, String> {
    match bytes(text)? {
        0 => Err("it must be at least 1 byte".to_owned()),
        bytes => Ok(bytes),
    }
}

/// Parses a number from 0 to 1.
pub fn fraction(text: &str) -> Result<f64, String> {
    let fraction = text.trim().parse().ok();
    fraction
        .filter(|fraction| (0.0..=1.0).contains(fraction))
        .ok_or_else(|| format!("`{text}` is not a number from 0 to 1"))
}

/// Parses an IP address.
pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| match text.contains('/') {
        true => format!("`{text}` is a range of addresses; give each proxy's own address"),
        false => format!("`{text}` is not an IP address, such as 10.0.0.1"),
    })
}

/// Parses the name of a model.
pub(super) fn name(text: &str) -> Result<String, String> {
    match text.trim().is_empty() || text.chars().any(char::is_control) {
        true => Err("a name must have at least one character and no control characters".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// Parses a number above 0 and at most 1.
pub(super) fn share(text: &str) -> Result<TenantShare, String> {
    let share = text.parse().ok().and_then(TenantShare::new);
    share.ok_or_else(|| format!("`{text}` is not a number above 0 and at most 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_above_0_and_at_most_1() {
        assert_eq!(share("1"), Ok(TenantShare::WHOLE));
        for no_share in ["0", "1.5", "-1", "nan", "half", ""] {
            assert!(share(no_share).is_err(), "{no_share}");
        }
    }

    #[test]
    fn numbers_are_in_their_range() {
        for (text, number) in [("1", 1), ("512", 512)] {
            assert_eq!(positive(text), Ok(number));
            assert_eq!(some_bytes(text), Ok(number));
        }
        for none in ["0", "-1", "1.5", "", "x", "99999999999999999999999"] {
            assert!(positive(none).is_err(), "{none}");
        }
        for none in ["0", "0KiB", "-1", "x"] {
            assert!(some_bytes(none).is_err(), "{none}");
        }
        for (text, number) in [("0", 0.0), ("1", 1.0), ("0.05", 0.05)] {
            assert_eq!(fraction(text), Ok(number));
        }
        for none in ["2", "-0.1", "nan", "inf", "", "half"] {
            assert!(fraction(none).is_err(), "{none}");
        }
    }

    #[test]
    fn proxies_are_addresses_and_names_have_letters() {
        assert_eq!(ip("::1"), Ok(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)));
        for (text, said) in [
            ("10.0.0.0/8", "range"),
            ("proxy", "not an IP address"),
            ("", "not"),
        ] {
            assert!(ip(text).unwrap_err().contains(said), "{text}");
        }
        assert_eq!(name("org/model"), Ok("org/model".to_owned()));
        for none in ["", " ", "a\nb"] {
            assert!(name(none).is_err(), "{none:?}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, size) in [
            ("512", 512),
            ("512B", 512),
            ("64K", 64 << 10),
            ("3MiB", 3 << 20),
            ("3mib", 3 << 20),
            ("3M", 3 << 20),
            ("3MB", 3_000_000),
            ("2GB", 2_000_000_000),
            ("2G", 2 << 30),
            ("2 GiB", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("1TiB", 1 << 40),
            ("0", 0),
        ] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for no_size in [
            "x",
            "-1",
            "",
            "GiB",
            "3XB",
            "1.5",
            "1e3",
            "nanK",
            "infG",
            "99999999999GiB",
            "1.2.3G",
            "99999999999999999999",
            "9e9T",
        ] {
            assert!(bytes(no_size).is_err(), "{no_size}");
        }
    }

    #[test]
    fn addresses_may_be_names_and_ports_alone() {
        for (text, like) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::1]:80", "[::1]:80"),
            ("8080", "127.0.0.1:8080"),
            ("0", "127.0.0.1:0"),
        ] {
            assert_eq!(address(text), Ok(like.parse().unwrap()), "{text}");
        }
        let local = address("localhost:8699").unwrap();
        assert!(local.ip().is_loopback() && local.port() == 8699, "{local}");
        for none in [
            "",
            "localhost",
            ":8080",
            "localhost:",
            "localhost:99999",
            "70000",
            "1.2.3.4",
        ] {
            assert!(address(none).is_err(), "{none}");
        }
    }
}

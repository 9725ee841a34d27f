//! Values on the command line: addresses, sizes and shares.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use crate::engine::TenantShare;

/// Reads an address to listen on: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`, or a port of 127.0.0.1 alone.
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
    // A name such as localhost has several addresses; what clients try last is not what is listened on.
    found.sort_by_key(|address| !address.is_ipv4());
    found
        .first()
        .copied()
        .ok_or_else(|| format!("the host of `{text}` has no address"))
}

/// Reads a number of bytes: `512`, `64KiB`, `2G`, `1.5GB`. K, M, G and T, alone or with `iB`, are powers of 1024; KB, MB, GB and TB are
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
    let too_many = || format!("`{text}` is more than can be addressed");
    if let Ok(number) = digits.parse::<u64>() {
        let bytes = number.checked_mul(factor).ok_or_else(too_many)?;
        return usize::try_from(bytes).map_err(|_| too_many());
    }
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    match digits.parse::<f64>() {
        // A fraction of a byte is none.
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

/// Reads a number above 0 and at most 1.
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

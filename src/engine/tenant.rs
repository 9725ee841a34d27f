//! Tenants: the callers between which the server is shared fairly, and whose prompts are separate in the prefix cache.
//!
//! A tenant is an API key, or without keys a client's address. Tenants have no relation to records: those belong to principals
//! of the traffic log.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use sha2::{Digest, Sha256};

/// A tenant of the server. Two tenants are equal only if they are the same key or the same address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant([u8; 16]);

/// The bits of an IPv6 address that identify a network: one customer of a provider has at least a /64 to choose addresses from.
const IPV6_NETWORK_BITS: u32 = 64;

impl Tenant {
    /// Returns the tenant of a kind and a name. The kind keeps a key from being equal to an address.
    fn named(kind: &str, name: &[u8]) -> Self {
        let digest = Sha256::new()
            .chain_update(kind)
            .chain_update([0])
            .chain_update(name)
            .finalize();
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        Self(short)
    }

    /// Returns the tenant of the server's own work: learning, anchors, measurements.
    pub fn server() -> Self {
        Self::named("server", &[])
    }

    /// Returns the tenant of an API key, a caller's or an operator's: the same tenant for the same secret, whatever the key's name.
    pub fn of_key(digest: &[u8; 32]) -> Self {
        Self::named("key", digest)
    }

    /// Returns the tenant of a client address. Each IPv4 address is one tenant, each IPv6 /64 is one, an IPv4-mapped IPv6 address
    /// is the IPv4 address, and all loopback addresses are one tenant.
    pub fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            address if address.is_loopback() => Self::named("address", b"loopback"),
            IpAddr::V4(address) => Self::named("address", &address.octets()),
            IpAddr::V6(address) => {
                let network = address.to_bits() >> (128 - IPV6_NETWORK_BITS);
                Self::named("network", &network.to_be_bytes())
            }
        }
    }

    /// Returns the tenant of a client on this machine.
    pub fn local() -> Self {
        Self::of_address(Ipv4Addr::LOCALHOST.into())
    }

    /// Returns the bytes that identify the tenant.
    pub(super) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// The local client: callers without a known address, such as those of tests, are local.
impl Default for Tenant {
    fn default() -> Self {
        Self::local()
    }
}

/// Shows a few digits, enough to distinguish the tenants of one log.
impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Tenant({a:02x}{b:02x}{c:02x}{d:02x})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Tenant {
        Tenant::of_address(address.parse().unwrap())
    }

    #[test]
    fn addresses_of_one_client_are_one_tenant() {
        for (one, other) in [
            ("127.0.0.1", "127.9.8.7"),
            ("127.0.0.1", "::1"),
            ("127.0.0.1", "::ffff:127.0.0.1"),
            ("192.0.2.7", "::ffff:192.0.2.7"),
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(of(one), of(other), "{one} {other}");
        }
    }

    #[test]
    fn different_clients_are_different_tenants() {
        let all = [
            of("127.0.0.1"),
            of("192.0.2.7"),
            of("192.0.2.8"),
            of("2001:db8:1:2::1"),
            of("2001:db8:1:3::1"),
            // The network part of an IPv6 address is not an IPv4 address.
            of("::2"),
            of("0.0.0.0"),
            Tenant::server(),
            Tenant::of_key(&[0; 32]),
            Tenant::of_key(&[1; 32]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(one), "{at}");
        }
        assert_eq!(Tenant::default(), of("127.0.0.1"));
    }
}

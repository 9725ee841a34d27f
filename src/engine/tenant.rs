//! Tenants: the callers between which the server is shared fairly, and whose prompts are kept apart in the prefix cache.
//!
//! A tenant is an API key, or without keys a client's address. It says nothing about records: those belong to principals
//! of the traffic log.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use sha2::{Digest, Sha256};

/// One of those who share the server. Two tenants are equal only if they are the same key or the same address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant([u8; 16]);

/// Bits of an IPv6 address that name a network: one customer of a provider has at least a /64 to choose addresses from.
const IPV6_NETWORK_BITS: u32 = 64;

impl Tenant {
    /// The tenant of a kind and a name. Kinds keep a key from being an address.
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

    /// The server's own work: learning, anchors, measurements.
    pub fn server() -> Self {
        Self::named("server", &[])
    }

    /// The holder of an API key, a caller's or an operator's. Returns the same tenant for the same secret, whatever its name.
    pub fn of_key(digest: &[u8; 32]) -> Self {
        Self::named("key", digest)
    }

    /// The client at an address. An IPv4 address is a tenant, an IPv6 address is one with its whole /64, an IPv4 address that is
    /// written as IPv6 is the IPv4 address, and all loopback addresses are one tenant.
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

    /// A client on this machine.
    pub fn local() -> Self {
        Self::of_address(Ipv4Addr::LOCALHOST.into())
    }

    /// The bytes that tell it from every other tenant.
    pub(super) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// A client on this machine: callers whose address is not known, such as those of tests, are local.
impl Default for Tenant {
    fn default() -> Self {
        Self::local()
    }
}

/// Shows a few digits, enough to tell tenants of one log apart.
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
            // The network part of an IPv6 address is no IPv4 address.
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

//! Virtual addresses: one index a name, seen as an IPv4 and an IPv6 address of the private pools (design §1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// First address of the IPv4 pool, 198.18.0.0/15 (RFC 2544).
pub const V4_POOL: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);
/// The IPv6 pool, a ULA /64 (RFC 4193).
pub const V6_POOL: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd74, 0x6572, 0x6f6b, 0, 0, 0, 0, 0), 64);
/// The container's own address on `lo`, source of what it sends to the IPv6 pool.
pub const V6_SELF: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x6572, 0x6f6b, 1, 0, 0, 0, 1);

/// Index of `host.terok.internal`.
pub const HOST: u32 = 1;
/// Index of `vault.terok.internal`.
pub const VAULT: u32 = 2;
/// Indexes below are terok's own services; names start here.
pub const FIRST_NAME: u32 = 256;
/// One past the last index.
pub const END: u32 = 1 << 17;

/// The addresses of `index` (must be below [`END`]).
pub fn addresses(index: u32) -> (Ipv4Addr, Ipv6Addr) {
    let v4 = Ipv4Addr::from(u32::from(V4_POOL.0) + index);
    let v6 = Ipv6Addr::from(u128::from(V6_POOL.0) + u128::from(index));
    (v4, v6)
}

/// The index behind an address of either pool, `None` for any other address.
pub fn index(ip: IpAddr) -> Option<u32> {
    let index = match ip.to_canonical() {
        IpAddr::V4(ip) => u32::from(ip).checked_sub(u32::from(V4_POOL.0))?,
        IpAddr::V6(ip) => u32::try_from(u128::from(ip).checked_sub(u128::from(V6_POOL.0))?).ok()?,
    };
    (index < END).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_comes_back_from_both_of_its_addresses() {
        for at in [0, HOST, FIRST_NAME, 65_535, 65_536, END - 1] {
            let (v4, v6) = addresses(at);
            assert_eq!((index(v4.into()), index(v6.into())), (Some(at), Some(at)));
            assert_eq!(index(v4.to_ipv6_mapped().into()), Some(at));
        }
    }

    #[test]
    fn addresses_outside_the_pools_have_no_index() {
        for text in [
            "198.17.255.255",
            "198.20.0.0",
            "fd74:6572:6f6b::2:0",
            "fd74:6572:6f6a::1",
            "::1",
            "255.255.255.255",
        ] {
            assert_eq!(index(text.parse().unwrap()), None, "{text}");
        }
        assert_eq!(index(V6_SELF.into()), None);
    }
}

//! The floor (E3): addresses that no name may lead to; only a literal rule reaches them.

use std::net::IpAddr;

/// Why an address is below the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Floor {
    /// 0.0.0.0/8, ::
    Unspecified,
    /// 127.0.0.0/8, ::1
    Loopback,
    /// RFC 1918, RFC 4193 (and deprecated site-local)
    Private,
    /// 169.254.0.0/16, fe80::/10
    LinkLocal,
    /// 100.64.0.0/10 (RFC 6598)
    SharedAddress,
    /// Multicast and broadcast
    Multicast,
    /// Cloud metadata: 169.254.169.254, fd00:ec2::254 and the like
    Metadata,
    /// Reserved, benchmarking (our virtual pool) and other blocks that are no destination
    Reserved,
    /// One of the host's own addresses
    HostOwn,
}

/// The floor's reason against `ip`, or `None`. v4-mapped, v4-compatible, NAT64 (64:ff9b::/96) and 6to4 forms are judged by the IPv4 address inside.
/// The host's own addresses are the kernel's to know: the caller adds [`Floor::HostOwn`].
pub fn floor(ip: IpAddr) -> Option<Floor> {
    let _ = ip;
    todo!()
}

/// The blocks of [`floor`] as CIDRs, for the nftables table.
pub fn blocks() -> Vec<crate::rule::Cidr> {
    todo!()
}

impl std::fmt::Display for Floor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Floor::Unspecified => "unspecified address",
            Floor::Loopback => "loopback address",
            Floor::Private => "private address",
            Floor::LinkLocal => "link-local address",
            Floor::SharedAddress => "carrier-grade NAT address",
            Floor::Multicast => "multicast address",
            Floor::Metadata => "cloud metadata address",
            Floor::Reserved => "reserved address",
            Floor::HostOwn => "address of this host",
        })
    }
}

//! The work inside the container's network namespace, on a thread that ends there: sockets, loopback, table.

use crate::refusal::Refusal;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use terok_kernel::rtnl::Rtnl;
use terok_kernel::socket::{self, Loopback};
use terok_kernel::{nflog, nft};
use terok_policy::grants::Grants;
use terok_policy::live::Live;
use terok_policy::plan::{HostFacts, Network, Now, Plan, Wiring};
use terok_policy::{Policy, layout};

/// What the supervisor gets from there.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) facts: HostFacts,
    pub(crate) wiring: Wiring,
    pub(crate) dns_udp: Loopback<UdpSocket>,
    pub(crate) dns_tcp: Loopback<TcpListener>,
    pub(crate) proxy: Loopback<TcpListener>,
    pub(crate) nflog: OwnedFd,
    pub(crate) nftables: OwnedFd,
}

/// Readies the namespace of the calling thread. The table goes in last and as one: until then the namespace has no way
/// out, and from then on what the table says.
pub(crate) fn prepare(policy: Policy, live: &Live, now: u64) -> Result<Inside, Refusal> {
    let links = Rtnl::open().map_err(Refusal::io("open a route socket"))?;
    let sealed = links.interfaces()?.iter().all(|interface| interface.loopback);
    let network = if sealed { Network::Sealed } else { Network::Filtered };
    // The plan refuses a card before anything is changed.
    Plan::new(policy.clone(), HostFacts { network, ..HostFacts::sealed(true) })?;

    let ipv6 = links.lo_up()?;
    let dns_udp = socket::udp_loopback(ipv6)?;
    let dns_tcp = socket::tcp_loopback(ipv6)?;
    let proxy = socket::tcp_loopback(ipv6)?;
    let nflog =
        nflog::bind(layout::NFLOG_GROUP).map_err(Refusal::io("listen for the kernel's refusals (NFLOG)"))?;
    let nftables = nft::open().map_err(Refusal::io("open a netfilter socket"))?;

    let facts = HostFacts { network, ..HostFacts::sealed(ipv6) };
    let wiring =
        Wiring { dns_udp: dns_udp.port, dns_tcp: dns_tcp.port, proxy: proxy.port, peers: 0, mark: 1 };
    let table = Plan::new(policy, facts.clone())?
        .ruleset(&wiring, &Now { live, grants: &Grants::default(), unix: now });
    nftables.load(&table)?;
    nftables.verify(&table)?;
    Ok(Inside { facts, wiring, dns_udp, dns_tcp, proxy, nflog, nftables: nftables.into() })
}

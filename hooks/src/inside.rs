//! The work inside the container's network namespace, on a thread that ends there: sockets, loopback, tables.

use crate::publish;
use crate::refusal::Refusal;
use std::io::Read as _;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use terok_kernel::nft::{self, NftError, NftSocket};
use terok_kernel::rtnl::{self, Rtnl};
use terok_kernel::socket::{self, Loopback};
use terok_kernel::{netlink, nflog};
use terok_policy::grants::Grants;
use terok_policy::live::Live;
use terok_policy::plan::{FIRST_OWN_PORT, HostFacts, Network, Now, Plan, Wiring};
use terok_policy::{Policy, layout};

/// What the supervisor gets from there.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) facts: HostFacts,
    pub(crate) wiring: Wiring,
    pub(crate) dns_udp: Loopback<UdpSocket>,
    pub(crate) dns_tcp: Loopback<TcpListener>,
    pub(crate) proxy: Loopback<TcpListener>,
    /// For questions to the DNS servers of the container's own networks.
    pub(crate) peers: Option<Loopback<UdpSocket>>,
    /// For connections to published ports.
    pub(crate) towards: Vec<OwnedFd>,
    pub(crate) nflog: OwnedFd,
    pub(crate) nftables: OwnedFd,
    pub(crate) news: netlink::News,
    pub(crate) links: OwnedFd,
    /// Layers that the kernel lacks.
    pub(crate) missing: Vec<String>,
}

/// What is found out before the namespace is entered.
#[derive(Debug)]
pub(crate) struct Before<'a> {
    /// A card is there or will be: the engine may attach it when we are done.
    pub(crate) brings_card: bool,
    /// The host's own addresses.
    pub(crate) own: Vec<IpAddr>,
    /// The servers of the container's `resolv.conf`.
    pub(crate) resolvers: Vec<IpAddr>,
    /// The engine's own name server, inside the namespace.
    pub(crate) name_server: Option<IpAddr>,
    /// Why the container must not have a card, where there is a reason.
    pub(crate) beyond_a_card: Option<Refusal>,
    /// What an operator set in an earlier run.
    pub(crate) live: &'a Live,
    /// Unix seconds.
    pub(crate) now: u64,
    /// A namespace that somebody keeps for several containers may have the table of the last one.
    pub(crate) may_have_a_table: bool,
}

/// Readies the namespace of the calling thread. The tables go in last and each as one: until then the container does not run,
/// and from then on the tables say what passes.
pub(crate) fn prepare(policy: Policy, before: Before<'_>) -> Result<Inside, Refusal> {
    let route = Rtnl::open().map_err(Refusal::io("open a route socket"))?;
    // Opened before the cards are counted: one that comes from now on is news to the supervisor.
    let links = rtnl::news().map_err(Refusal::io("listen for news of links"))?;
    let cards = route.cards()?;
    if let Some(refusal) = before.beyond_a_card.filter(|_| !cards.is_empty()) {
        return Err(refusal);
    }
    let facts = match cards.is_empty() && !before.brings_card {
        true => HostFacts::sealed(true),
        false => HostFacts {
            network: Network::Filtered,
            resolvers: before.resolvers,
            own: before.own,
            cards,
            ..HostFacts::sealed(true)
        },
    };
    // What cannot be carried is refused before anything is changed.
    let mut facts = with_near_resolvers(facts);
    facts.resolvers.extend(before.name_server);
    let mut plan = Plan::new(policy, facts)?;

    let ipv6 = route.lo_up()?;
    plan.facts.ipv6 = ipv6;
    let dns_udp = socket::udp_loopback(ipv6)?;
    let dns_tcp = socket::tcp_loopback(ipv6)?;
    let proxy = socket::tcp_loopback(ipv6)?;
    let peers = plan.facts.has_peers().then(|| socket::udp_asking(ipv6)).transpose()?;
    let pool = if plan.policy.publish.is_empty() { 0 } else { publish::AT_A_TIME };
    let towards = (0..pool).map(|_| socket::tcp_unconnected(ipv6)).collect::<Result<_, _>>()?;
    let nflog =
        nflog::bind(layout::NFLOG_GROUP).map_err(Refusal::io("listen for the kernel's refusals (NFLOG)"))?;
    let nftables = nft::open().map_err(Refusal::io("open a netfilter socket"))?;

    let wiring = Wiring {
        dns_udp: dns_udp.port,
        dns_tcp: dns_tcp.port,
        proxy: proxy.port,
        peers: peers.as_ref().map_or(0, |peers| peers.port),
        mark: mark()?,
    };
    let now = Now { live: before.live, grants: &Grants::default(), unix: before.now };
    let missing = load(&nftables, &plan, &wiring, &now, before.may_have_a_table)?;
    if plan.facts.network == Network::Filtered {
        // It protects nothing: where it is not ours to say (/proc/sys is read-only), the table translates ports, and a server that
        // remembers one from an earlier connection may keep the next one waiting there.
        let _ = socket::own_ports(FIRST_OWN_PORT);
    }

    // Opened behind the tables, so that their own coming is no news.
    let news = nft::news().map_err(Refusal::io("listen for news of tables"))?;
    Ok(Inside {
        facts: plan.facts,
        wiring,
        dns_udp,
        dns_tcp,
        proxy,
        peers,
        towards,
        nflog,
        nftables: nftables.into(),
        news,
        links: links.into(),
        missing,
    })
}

/// Loads what the plan says and reads it back; the layers that this kernel lacks.
fn load(
    nftables: &NftSocket,
    plan: &Plan,
    wiring: &Wiring,
    now: &Now<'_>,
    anew: bool,
) -> Result<Vec<String>, Refusal> {
    // Cards first: the table at them lets out what the other one marked, and nothing before.
    let mut missing = Vec::new();
    if let Some(egress) = plan.egress(wiring) {
        let loaded = match nftables.load_egress(&egress) {
            Err(error) if anew && error.is_table_there() => nftables.reload_egress(&egress),
            loaded => loaded,
        };
        match loaded {
            Ok(()) => nftables.verify_egress(&egress)?,
            Err(error @ NftError::NoEgress(_)) => missing.push(format!("no-egress: {error}")),
            Err(error) => return Err(error.into()),
        }
    }
    let table = plan.ruleset(wiring, now);
    match nftables.load(&table) {
        Err(error) if anew && error.is_table_there() => nftables.reload(&table)?,
        loaded => loaded?,
    }
    nftables.verify(&table)?;
    Ok(missing)
}

/// Only servers in a network of the container's own, where others are, know other containers' names. Podman 5 names none in
/// resolv.conf before the container is created; its name server listens on the bridge's own address, the gateway.
fn with_near_resolvers(mut facts: HostFacts) -> HostFacts {
    let cards = &facts.cards;
    if facts.resolvers.is_empty() {
        facts.resolvers = cards.iter().flat_map(|card| card.gateways.iter().copied()).collect();
    }
    let near = |server: &IpAddr| {
        cards.iter().any(|card| card.shared && card.nets.iter().any(|net| net.contains(*server)))
    };
    facts.resolvers.retain(near);
    facts
}

/// Not 0, and not to be guessed by who may set marks.
fn mark() -> Result<u32, Refusal> {
    let mut octets = [0; 4];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut octets))
        .map_err(Refusal::io("read /dev/urandom"))?;
    Ok(u32::from_ne_bytes(octets).max(1))
}

/// The host's own addresses, as the namespace of the calling thread has them, loopback aside.
pub(crate) fn own_addresses() -> Result<Vec<IpAddr>, Refusal> {
    let route = Rtnl::open().map_err(Refusal::io("open a route socket"))?;
    let mut own: Vec<IpAddr> = route.addresses()?.into_iter().map(|address| address.ip).collect();
    own.retain(|ip| !ip.is_loopback());
    own.sort();
    own.dedup();
    Ok(own)
}

/// The `nameserver` lines of a `resolv.conf`.
pub(crate) fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim_start().strip_prefix("nameserver"));
    let servers = lines.filter(|rest| rest.starts_with(char::is_whitespace));
    servers.filter_map(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use terok_policy::plan::Card;
    use terok_policy::rule::Cidr;

    #[test]
    fn only_servers_in_a_shared_network_of_the_containers_own_are_asked_for_its_neighbours() {
        let card = |shared, addr: &str, prefix| Card {
            index: 2,
            name: "eth0".into(),
            shared,
            nets: vec![Cidr { addr: addr.parse().unwrap(), prefix }],
            gateways: Vec::new(),
        };
        let text = "# nameserver 10.89.0.9\nsearch dns.podman\nnameserver 10.89.0.1\n nameserver\tfd00::1 # x\nnameserver 198.51.100.53\nnameserverx 10.89.0.2\n";
        let servers = nameservers(text);
        assert_eq!(servers.len(), 3);
        let near = |cards| {
            let facts = HostFacts { cards, resolvers: servers.clone(), ..HostFacts::sealed(true) };
            with_near_resolvers(facts).resolvers
        };
        let shared = near(vec![card(true, "10.89.0.0", 24), card(true, "fd00::", 64)]);
        assert_eq!(shared, ["10.89.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert!(near(vec![card(false, "10.89.0.0", 24)]).is_empty());

        let gateway: IpAddr = "10.89.0.1".parse().unwrap();
        let bridge = Card { gateways: vec![gateway], ..card(true, "10.89.0.0", 24) };
        let facts = HostFacts { cards: vec![bridge], ..HostFacts::sealed(true) };
        assert_eq!(
            with_near_resolvers(facts).resolvers,
            [gateway],
            "where none is named, the bridge is asked"
        );
    }

    #[test]
    fn the_hosts_own_addresses_are_without_loopback() {
        assert!(own_addresses().unwrap().iter().all(|ip| !ip.is_loopback()));
        assert_ne!(mark().unwrap(), 0);
    }
}

//! What will be done for one container: pure in policy and host facts, printable (`terok explain`, A3).

mod boxes;
mod clauses;
mod conflict;
mod filtered;
mod named;
mod sealed;
mod sets;

pub use filtered::FIRST_OWN_PORT;

use crate::grants::Grants;
use crate::judge;
use crate::live::Live;
use crate::policy::{Labels, Policy, Sourced, SshGrant, VaultGrant};
use crate::provision::{self, Issued};
use crate::rule::Cidr;
use crate::ruleset::{Egress, Ruleset, Set};
use crate::settings::Upstream;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// How long `create` waits for the supervisor to answer everywhere; below the hook's own `timeout`.
pub const READY_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

/// What planning needs to know of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Which network the container got.
    pub network: Network,
    /// IPv6 is usable in the container's namespace.
    pub ipv6: bool,
    /// The container's cards, `lo` aside, by index; empty when it is sealed.
    #[serde(default)]
    pub cards: Vec<Card>,
    /// The host's own addresses beyond loopback: below the floor (E3).
    #[serde(default)]
    pub own: Vec<IpAddr>,
    /// DNS servers of the container's own networks, which know the names of other containers there (aardvark-dns).
    #[serde(default)]
    pub resolvers: Vec<IpAddr>,
}

/// A network card in the container's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Others are on the same link (bridge, macvlan). Not so for a tap, behind which slirp4netns or pasta forwards
    /// published ports alone.
    pub shared: bool,
    /// Connected networks: its addresses with their prefix lengths, masked.
    pub nets: Vec<Cidr>,
    /// Gateways reached through it: the host's own end of a bridge, from where published ports come.
    pub gateways: Vec<IpAddr>,
}

impl HostFacts {
    /// Whether other containers are near, whose names a server knows that is asked for them.
    pub fn has_peers(&self) -> bool {
        self.network == Network::Filtered && !self.resolvers.is_empty()
    }

    /// Those of a container without a card.
    pub fn sealed(ipv6: bool) -> Self {
        HostFacts {
            network: Network::Sealed,
            ipv6,
            cards: Vec::new(),
            own: Vec::new(),
            resolvers: Vec::new(),
        }
    }
}

/// The container's network, found in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Only `lo`.
    Sealed,
    /// A card.
    Filtered,
}

/// What the kernel or chance chose at the start: ports of the sockets inside the namespace, the same number for IPv4 and IPv6
/// of a kind, and the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiring {
    /// DNS over UDP.
    pub dns_udp: u16,
    /// DNS over TCP.
    pub dns_tcp: u16,
    /// The TCP proxy.
    pub proxy: u16,
    /// Source port of our own questions to the DNS servers of the container's networks; 0 where there are none.
    pub peers: u16,
    /// Packet mark of what the table lets out by a card, not 0: frames without it stop at the card ([`Egress`]).
    pub mark: u32,
}

/// What is in force now beside the policy.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// What an operator set.
    pub live: &'a Live,
    /// Real addresses that answers of ours gave out.
    pub grants: &'a Grants,
    /// Unix seconds.
    pub unix: u64,
}

/// The plan of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The policy it was made from.
    pub policy: Policy,
    /// The facts it was made from.
    pub facts: HostFacts,
}

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A rule that a sealed container cannot carry.
    #[error(
        "rule {rule:?} needs a network card: a container without one carries TCP through the proxy; remove {what}"
    )]
    NeedsCard {
        /// The rule.
        rule: String,
        /// `/udp` or `direct`.
        what: &'static str,
    },
    /// A name with rules for the card and for the proxy.
    #[error(
        "{name} is answered with its real address because of {real}, so {proxied} cannot be proxied: write {instead:?}"
    )]
    TwoKinds {
        /// The name or wildcard that both rules name.
        name: String,
        /// The `direct` or `/udp` rule.
        real: String,
        /// The rule for the proxy.
        proxied: String,
        /// What to write in its place.
        instead: String,
    },
    /// A brokered host with a rule for the card.
    #[error(
        "{host} belongs to {provider} of terok.vault and is reached through the broker alone: remove {real}, or {provider}"
    )]
    Brokered {
        /// The host.
        host: String,
        /// The provider.
        provider: String,
        /// The `direct` or `/udp` rule.
        real: String,
    },
}

impl Plan {
    /// Makes the plan, or says why not.
    pub fn new(policy: Policy, facts: HostFacts) -> Result<Self, PlanError> {
        let plan = Plan { policy, facts };
        plan.carries(&Live::default())?;
        Ok(plan)
    }
    /// Whether the container can carry the policy's rules together with the operator's: asked before a change is made.
    pub fn carries(&self, live: &Live) -> Result<(), PlanError> {
        let written = self.policy.allow.iter().map(|sourced| &sourced.rule);
        let allow = written.chain(&live.allow);
        conflict::brokered(&self.facts, &self.policy.vault, allow.clone())?;
        conflict::check(&self.facts, allow)
    }
    /// The table to load, with the operator's `live` state of an earlier run in force at `now` (Unix seconds).
    pub fn ruleset(&self, wiring: &Wiring, now: &Now<'_>) -> Ruleset {
        let Plan { policy, facts } = self;
        let mut sets = self.live_sets(now);
        sets.extend(clauses::floor_sets(&facts.own));
        let chains = match facts.network {
            Network::Sealed => sealed::chains(policy, facts, wiring),
            Network::Filtered => {
                sets.extend(filtered::near_sets(facts));
                filtered::chains(policy, facts, wiring)
            }
        };
        Ruleset { table: crate::layout::TABLE, sets, chains }
    }
    /// The wanted contents of the table's variable sets: the supervisor makes the kernel's agree after each change.
    pub fn live_sets(&self, now: &Now<'_>) -> Vec<Set> {
        sets::live_sets(&self.policy, &self.facts, now)
    }
    /// The sets of who is near, which change when a card comes or goes; none in a sealed container.
    pub fn near_sets(&self) -> Vec<Set> {
        match self.facts.network {
            Network::Sealed => Vec::new(),
            Network::Filtered => filtered::near_sets(&self.facts),
        }
    }
    /// The table at the cards; none for a sealed container, unless somebody has attached one since.
    pub fn egress(&self, wiring: &Wiring) -> Option<Egress> {
        let carded = self.facts.network == Network::Filtered || !self.facts.cards.is_empty();
        carded.then(|| filtered::egress(&self.facts, wiring))
    }
}

/// What `terok explain` prints, without the table: its port numbers are the kernel's to choose.
impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Plan { policy, facts } = self;
        let network = match facts.network {
            Network::Sealed => "sealed: no network card, only lo",
            Network::Filtered => "filtered: what leaves by a card is looked up packet by packet",
        };
        let families = if facts.ipv6 { "127.0.0.1 and ::1" } else { "127.0.0.1" };
        let profiles = if policy.profiles.is_empty() { "none".to_owned() } else { policy.profiles.join(" ") };
        writeln!(f, "shield      {}", policy.shield)?;
        writeln!(f, "network     {network}")?;
        for (index, card) in facts.cards.iter().enumerate() {
            writeln!(f, "{:<10}  {card}", if index == 0 { "cards" } else { "" })?;
        }
        writeln!(f, "profiles    {profiles}")?;
        writeln!(f, "restricted  {}", if policy.restricted { "yes" } else { "no" })?;
        let Labels { project, task, name } = &policy.labels;
        for (label, value) in [("project", project), ("task", task), ("name", name)] {
            if !value.is_empty() {
                writeln!(f, "{label:<10}  {value}")?;
            }
        }
        writeln!(f, "dns         {families}, UDP and TCP: every question to any port 53")?;
        if facts.has_peers() {
            writeln!(
                f,
                "peers       {}, for names of other containers that a rule lists",
                listed(&facts.resolvers)
            )?;
        }
        let proxied = match facts.network {
            Network::Sealed => "every allowed connection",
            Network::Filtered => "every allowed connection by name, and what `any` allows",
        };
        writeln!(f, "proxy       {families}, TCP: {proxied}")?;
        if policy.hold > 0 {
            writeln!(
                f,
                "hold        {} seconds for an operator's verdict on what no rule names",
                policy.hold
            )?;
        }
        if policy.learn {
            writeln!(f, "learn       what no rule denies and no floor is above passes and is recorded")?;
        }
        write_grants(f, policy)?;
        for (index, publish) in policy.publish.iter().enumerate() {
            let title = if index == 0 { "publish" } else { "" };
            let host = std::net::SocketAddr::new(publish.addr, publish.port);
            writeln!(f, "{title:<10}  {host} of the host, TCP, to port {} inside", publish.to)?;
        }
        for (title, rules) in [("deny", &policy.deny), ("allow", &policy.allow)] {
            let spell = |sourced: &Sourced| sourced.rule.to_string();
            let width = rules.iter().map(|sourced| spell(sourced).chars().count()).max().unwrap_or(0);
            for (index, sourced) in rules.iter().enumerate() {
                let title = if index == 0 { title } else { "" };
                writeln!(f, "{title:<10}  {:<width$}  {}", spell(sourced), sourced.source)?;
            }
            if rules.is_empty() {
                writeln!(f, "{title:<10}  nothing")?;
            }
        }
        Ok(())
    }
}

/// What the container may use without having it: never a token, and of variables the names.
fn write_grants(f: &mut std::fmt::Formatter<'_>, policy: &Policy) -> std::fmt::Result {
    for (index, grant) in policy.vault.iter().enumerate() {
        let VaultGrant { provider, credential } = grant;
        let title = if index == 0 { "vault" } else { "" };
        let credential = match grant.reference() {
            Some(_) => "a credential of this container alone".to_owned(),
            None => format!("credential {credential:?}"),
        };
        let hosts = match provider.hosts() {
            [] => "by its base URL".to_owned(),
            hosts => format!("for {}", listed(hosts)),
        };
        writeln!(f, "{title:<10}  {} with {credential}, {hosts}", provider.name)?;
    }
    for (index, SshGrant { key, host }) in policy.ssh.iter().enumerate() {
        let title = if index == 0 { "ssh" } else { "" };
        let host = host.as_ref().map_or("any host".to_owned(), ToString::to_string);
        writeln!(f, "{title:<10}  key {key:?} for {host}")?;
    }
    for host in judge::unreached(policy) {
        writeln!(f, "{:<10}  no rule opens {host}:{}: add it to terok.shield.allow", "", judge::SSH)?;
    }
    let variables = provision::variables(policy);
    if !variables.is_empty() {
        writeln!(f, "sets        {}", variables.join(" "))?;
    }
    let git = policy.vault.iter().flat_map(|grant| grant.provider.git.keys());
    for (index, key) in git.enumerate() {
        writeln!(f, "{:<10}  {key}", if index == 0 { "git" } else { "" })?;
    }
    Ok(())
}

/// `eth0 10.88.0.0/16 by 10.88.0.1, on a link with others`
impl std::fmt::Display for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Card { name, shared, nets, gateways, .. } = self;
        write!(f, "{name}")?;
        if !nets.is_empty() {
            write!(f, " {}", listed(nets))?;
        }
        if !gateways.is_empty() {
            write!(f, " by {}", listed(gateways))?;
        }
        if *shared { f.write_str(", on a link with others") } else { Ok(()) }
    }
}

fn listed<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What the hook hands to the supervisor, as JSON in a sealed memfd at descriptor 3; the descriptors listed in `fds` follow from 4 on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupervisorConfig {
    /// Container id.
    pub id: String,
    /// The policy.
    pub policy: Policy,
    /// The facts.
    pub facts: HostFacts,
    /// What was chosen at the start.
    pub wiring: Wiring,
    /// The proxy of the host's own network, where the configuration names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Upstream>,
    /// Tokens of [`Policy::vault`], in its order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<Issued>,
    /// Unix sockets of the host that are mounted into the container: doors of the operator's own (L8), for the audit log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<String>,
    /// Layers that this kernel lacks, as [`crate::control::Status::confinement`] names them: `no-egress: reason`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Absolute home of the owner, whose `known_hosts` the signer asks; empty without SSH grants.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub home: String,
    /// Absolute runtime folder of this container.
    pub run_dir: String,
    /// Absolute state folder of this container.
    pub state_dir: String,
    /// What each descriptor from 4 on is, in order.
    pub fds: Vec<Fd>,
}

/// A descriptor handed to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Fd {
    /// pidfd of the container's init: readable when it is dead.
    Pidfd,
    /// Write end of the readiness pipe: one byte `1` when every service answers; closed without it: not ready.
    Ready,
    /// UDP 127.0.0.1, DNS.
    DnsUdp4,
    /// UDP ::1, DNS.
    DnsUdp6,
    /// TCP 127.0.0.1, DNS.
    DnsTcp4,
    /// TCP ::1, DNS.
    DnsTcp6,
    /// TCP 127.0.0.1, proxy.
    Proxy4,
    /// TCP ::1, proxy.
    Proxy6,
    /// NETLINK_NETFILTER socket in the container's namespace, bound to the NFLOG group.
    Nflog,
    /// NETLINK_NETFILTER socket in the container's namespace, for changes of the sets.
    Nftables,
    /// Listening unix socket of the control interface.
    Control,
    /// The container's runtime folder, opened O_PATH|O_DIRECTORY.
    RunDir,
    /// The container's state folder, opened O_RDONLY|O_DIRECTORY.
    StateDir,
    /// NETLINK_NETFILTER socket in the container's namespace, bound to NFNLGRP_NFTABLES: readable after any change of tables.
    NftablesNews,
    /// NETLINK_ROUTE socket in the container's namespace, bound to the groups of links and addresses.
    Links,
    /// UDP socket in the container's namespace for questions to [`HostFacts::resolvers`], IPv4.
    Peers4,
    /// Likewise, IPv6.
    Peers6,
    /// TCP listener on the host for the policy's published port of this position.
    Publish(u16),
    /// Unconnected TCP socket made in the container's namespace, for connections to published ports.
    Inside(u16),
    /// The folder that is mounted at [`crate::provision::INSIDE`], opened O_RDONLY|O_DIRECTORY.
    Birth,
    /// Listening unix socket of the SSH agent, bound in that folder.
    Agent,
    /// The vault's folder, opened O_RDONLY|O_DIRECTORY; the parent's alone.
    Vault,
    /// The runtime base folder ([`crate::layout::SESSION`], [`crate::layout::EPHEMERAL`]), opened O_RDONLY|O_DIRECTORY; the parent's alone.
    Session,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Shield, Source};
    use crate::rule::Rule;

    fn sealed() -> HostFacts {
        HostFacts::sealed(true)
    }
    const WIRING: Wiring = Wiring { dns_udp: 40_001, dns_tcp: 40_002, proxy: 40_003, peers: 0, mark: 1 };

    fn at<'a>(live: &'a Live, grants: &'a Grants, unix: u64) -> Now<'a> {
        Now { live, grants, unix }
    }

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        let sourced = |rule| Sourced { rule, source: Source::Annotation };
        Policy {
            allow: allow.iter().map(|text| sourced(text.parse().unwrap())).collect(),
            deny: deny.iter().map(|text| sourced(Rule::parse_deny(text).unwrap())).collect(),
            ..Policy::default()
        }
    }

    fn shown(sets: &[Set], name: &str) -> Vec<String> {
        let set = sets.iter().find(|set| set.name == name).unwrap();
        set.elements.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_that_needs_a_card_is_refused_in_a_sealed_container() {
        for (text, what) in [("a.example:53/udp", "/udp"), ("a.example direct", "direct")] {
            let error = Plan::new(policy(&[text], &[]), sealed()).unwrap_err().to_string();
            assert!(error.contains(&format!("remove {what}")), "{error}");
        }
        Plan::new(policy(&["a.example"], &["any/udp"]), sealed()).unwrap();
    }

    #[test]
    fn down_opens_every_address_for_tcp_until_its_time_is_over() {
        let mut live = Live { state: Some(Shield::Down), until: Some(1_060), ..Live::default() };
        live.deny(Rule::parse_deny("203.0.113.66").unwrap());
        let plan = Plan::new(policy(&["any:443"], &[]), sealed()).unwrap();
        let during = plan.ruleset(&WIRING, &at(&live, &Grants::default(), 1_000));
        assert_eq!(
            shown(&during.sets, "open4"),
            [
                "0.0.0.0/0 . tcp . 0-442 timeout 60s",
                "0.0.0.0/0 . tcp . 443",
                "0.0.0.0/0 . tcp . 444-852 timeout 60s",
                "0.0.0.0/0 . tcp . 854-65535 timeout 60s"
            ]
        );
        assert_eq!(shown(&during.sets, "deny4"), ["203.0.113.66 . tcp . 0-65535"]);
        let after = plan.ruleset(&WIRING, &at(&live, &Grants::default(), 1_060));
        assert_eq!(shown(&after.sets, "open6"), ["::/0 . tcp . 443"]);
    }

    #[test]
    fn block_empties_what_allows_and_keeps_what_denies() {
        let live = Live { state: Some(Shield::Block), ..Live::default() };
        let plan = Plan::new(policy(&["any", "192.0.2.1"], &["192.0.2.2"]), sealed()).unwrap();
        for set in &plan.live_sets(&at(&live, &Grants::default(), 0)) {
            assert_eq!(set.elements.is_empty(), set.name != "deny4", "{}", set.name);
        }
    }

    #[test]
    fn names_never_reach_the_kernel() {
        let policy = policy(&["a.example", "*.b.example", "host:80"], &["c.example"]);
        let plan = Plan::new(policy, sealed()).unwrap();
        let sets = plan.live_sets(&at(&Live::default(), &Grants::default(), 0));
        assert!(sets.iter().all(|set| set.elements.is_empty()));
    }

    #[test]
    fn every_looked_up_set_is_in_the_table_and_of_the_same_kind() {
        let plan = Plan::new(Policy::default(), sealed()).unwrap();
        let ruleset = plan.ruleset(&WIRING, &at(&Live::default(), &Grants::default(), 0));
        let rules = ruleset.chains.iter().flat_map(|chain| &chain.rules);
        let mut looked_up = std::collections::BTreeSet::new();
        for found in rules.flat_map(|rule| &rule.matches) {
            if let crate::ruleset::Match::InSet { set, family, ports, .. } = found {
                let known = ruleset.set(set).unwrap();
                assert_eq!((known.family, known.ports), (*family, *ports), "{set}");
                looked_up.insert(*set);
            }
        }
        assert_eq!(looked_up, ruleset.sets.iter().map(|set| set.name).collect());
    }

    #[test]
    fn ports_are_opened_by_redirects_only_and_everything_else_ends_in_a_refusal() {
        let plan = Plan::new(Policy::default(), sealed()).unwrap();
        let text = plan.ruleset(&WIRING, &at(&Live::default(), &Grants::default(), 0)).to_string();
        let out = text.split("chain out").nth(1).unwrap().split("\n\t}").next().unwrap();
        assert!(out.contains("policy drop"));
        assert!(out.trim_end().ends_with("counter reject with icmpx admin-prohibited"), "{out}");
    }
}

//! The table of a container with a card, run packet by packet in a small model of netfilter, against the verdict on the same
//! question: whatever the rules, the kernel lets through what `judge` allows and nothing else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use std::net::IpAddr;
use terok_policy::answer::{Answer, may_be_given};
use terok_policy::grants::Grants;
use terok_policy::judge::Reason;
use terok_policy::live::Live;
use terok_policy::plan::{Card, HostFacts, Network, Now, Plan, Wiring};
use terok_policy::policy::{Publish, Source, Sourced};
use terok_policy::rule::{Cidr, DOT, Proto, Rule, Target};
use terok_policy::ruleset::{Chain, End, Family, Match, NftRule, Ruleset, Statement};
use terok_policy::{Policy, Query, Shield, Verdict, judge};

const WIRING: Wiring =
    Wiring { dns_udp: 40_001, dns_tcp: 40_002, proxy: 40_003, peers: 40_004, mark: 0x5eed };
const NOW: u64 = 1_000;
const NEW: u32 = 8;
const RELATED: u32 = 4;
const ESTABLISHED: u32 = 2;

/// A packet as the hooks see it.
#[derive(Debug, Clone, Copy)]
struct Packet {
    source: IpAddr,
    to: IpAddr,
    proto: u8,
    sport: u16,
    dport: u16,
    icmp6: u8,
    lo: bool,
    /// To an address of the namespace itself.
    local: bool,
    state: u32,
    reply: bool,
    mark: u32,
}

impl Packet {
    fn out(to: IpAddr, proto: u8, dport: u16) -> Self {
        let source = if to.is_ipv4() { "10.88.0.5" } else { "fd10::5" }.parse().unwrap();
        let (lo, local) = (false, false);
        Packet {
            source,
            to,
            proto,
            sport: 33_000,
            dport,
            icmp6: 0,
            lo,
            local,
            state: NEW,
            reply: false,
            mark: 0,
        }
    }

    /// The answer to it, as it comes in.
    fn answer(self) -> Self {
        let (source, to, sport, dport) = (self.to, self.source, self.dport, self.sport);
        Packet { source, to, sport, dport, state: ESTABLISHED, reply: true, ..self }
    }
}

/// What becomes of a packet in one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Accept,
    Drop,
    Reset,
    Prohibited,
    Redirect(u16),
    Masquerade,
}

struct Table<'a>(&'a Ruleset);

impl Table<'_> {
    fn run(&self, chain: &str, packet: &mut Packet) -> Fate {
        let chain: &Chain = self.0.chains.iter().find(|known| known.name == chain).unwrap();
        self.rules(&chain.rules, packet).unwrap_or(if chain.drop { Fate::Drop } else { Fate::Accept })
    }

    fn rules(&self, rules: &[NftRule], packet: &mut Packet) -> Option<Fate> {
        for rule in rules {
            if !rule.matches.iter().all(|wanted| self.matches(wanted, packet)) {
                continue;
            }
            for statement in &rule.statements {
                match *statement {
                    Statement::Counter | Statement::Limit { .. } | Statement::Log { .. } => {}
                    Statement::SetMark(mark) => packet.mark = mark,
                    Statement::Redirect(port) => return Some(Fate::Redirect(port)),
                    Statement::Masquerade(..) => return Some(Fate::Masquerade),
                    Statement::Accept | Statement::Return => return Some(Fate::Accept),
                    Statement::Drop => return Some(Fate::Drop),
                    Statement::RejectTcpReset => return Some(Fate::Reset),
                    Statement::RejectAdminProhibited => return Some(Fate::Prohibited),
                }
            }
        }
        None
    }

    fn matches(&self, wanted: &Match, packet: &Packet) -> bool {
        let (v4, ports) = (packet.to.is_ipv4(), matches!(packet.proto, 6 | 17));
        match *wanted {
            Match::OutLo | Match::InLo => packet.lo,
            Match::OutCard => !packet.lo,
            Match::L4Proto(number) => packet.proto == number,
            Match::DPort(port) => ports && packet.dport == port,
            Match::SPort(port) => ports && packet.sport == port,
            Match::DPortBelow(port) => ports && packet.dport < port,
            Match::ToLocal => packet.local,
            Match::FromElsewhere => false,
            Match::CtOriginal => !packet.reply,
            Match::CtReply => packet.reply,
            Match::CtState(bits) => bits & packet.state != 0,
            Match::Mark(mark) => packet.mark == mark,
            Match::EtherType(_) => false,
            Match::DAddr(block) => block.contains(packet.to),
            Match::SAddr(block) => block.contains(packet.source),
            Match::Icmp6Type(kind) => packet.proto == 58 && packet.icmp6 == kind,
            Match::InSet { end, set, family, ports } => {
                let known = self.0.set(set).unwrap();
                assert_eq!((known.family, known.ports), (family, ports), "{set}");
                let (ip, port) = match end {
                    End::Source => (packet.source, packet.sport),
                    End::Destination => (packet.to, packet.dport),
                };
                (family == Family::V4) == v4
                    && known.elements.iter().any(|element| {
                        let here = element.ports.is_none_or(|(proto, from, to)| {
                            proto.0 == packet.proto && (from..=to).contains(&port)
                        });
                        element.addr.0 <= ip && ip <= element.addr.1 && here
                    })
            }
        }
    }

    /// Where a packet of the container ends.
    fn send(&self, plan: &Plan, mut packet: Packet) -> Way {
        match self.run("nat_out", &mut packet) {
            Fate::Redirect(port) => {
                packet.local = true;
                assert_eq!(self.run("out", &mut packet), Fate::Accept);
                return if port == WIRING.proxy { Way::Proxy } else { Way::Dns };
            }
            fate => assert_eq!(fate, Fate::Accept),
        }
        match self.run("out", &mut packet) {
            Fate::Accept if packet.lo || packet.local => return Way::Local,
            Fate::Accept => {}
            fate => {
                assert_eq!(fate == Fate::Reset, packet.proto == 6, "{packet:?}");
                return Way::Refused;
            }
        }
        let egress = plan.egress(&WIRING).unwrap();
        assert_eq!(self.rules(&egress.rules, &mut packet), Some(Fate::Accept), "no mark: {packet:?}");
        assert_eq!(packet.mark, 0);
        if matches!(packet.proto, 6 | 17) {
            assert_eq!(self.run("nat_post", &mut packet), Fate::Masquerade);
        }
        Way::Card
    }
}

/// Where a packet of the container ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Proxy,
    Dns,
    Card,
    Local,
    Refused,
}

fn facts() -> HostFacts {
    let net = |addr: &str, prefix| Cidr { addr: addr.parse().unwrap(), prefix };
    HostFacts {
        network: Network::Filtered,
        cards: vec![Card {
            index: 2,
            name: "eth0".into(),
            shared: true,
            nets: vec![net("10.88.0.0", 16), net("fd10::", 64)],
            gateways: vec!["10.88.0.1".parse().unwrap(), "fd10::1".parse().unwrap()],
        }],
        own: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        resolvers: vec!["10.88.0.1".parse().unwrap()],
        ..HostFacts::sealed(true)
    }
}

fn address() -> impl Strategy<Value = IpAddr> {
    let low = 0u16..8;
    prop_oneof![
        4 => low.clone().prop_map(|low| format!("192.0.2.{low}")),
        2 => low.clone().prop_map(|low| format!("10.0.0.{low}")),
        3 => low.clone().prop_map(|low| format!("2001:db8::{low}")),
        1 => low.prop_map(|low| format!("fd00::{low}")),
        1 => proptest::sample::select(vec!["0.0.0.5", "169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::1", "::5", "10.88.0.9"])
            .prop_map(str::to_owned),
    ]
    .prop_map(|text| text.parse().unwrap())
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![4 => 1u16..5, 1 => DOT - 1..=DOT + 1, 1 => Just(61_000)]
}

fn ports() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just(String::new()),
        3 => port().prop_map(|port| format!(":{port}")),
        2 => (1u16..4, 0u16..3).prop_map(|(from, n)| format!(":{from}-{}", from + n)),
        1 => Just(":*".to_owned()),
    ]
}

fn target() -> impl Strategy<Value = String> {
    let block = (address(), 0u8..5).prop_map(|(addr, bits)| {
        let full = if addr.is_ipv4() { 32 } else { 128 };
        Cidr { addr, prefix: full - bits }.masked()
    });
    prop_oneof![
        6 => block.prop_map(|net| if net.addr.is_ipv6() { format!("[{net}]") } else { net.to_string() }),
        1 => proptest::sample::select(vec!["0.0.0.0/0", "[::/0]", "any"]).prop_map(str::to_owned),
    ]
}

fn literal() -> impl Strategy<Value = String> {
    (target(), ports(), "(/udp)?").prop_map(|(target, ports, proto)| format!("{target}{ports}{proto}"))
}

fn named() -> impl Strategy<Value = String> {
    ("(a\\.x|b\\.x|\\*\\.x)", ports(), "(/udp| direct|/udp direct)")
        .prop_map(|(name, ports, how)| format!("{name}{ports}{how}"))
}

#[derive(Debug, Clone)]
struct World {
    policy: Policy,
    live: Live,
    grants: Vec<(&'static str, IpAddr, u64)>,
}

fn world() -> impl Strategy<Value = World> {
    let rules = |most, with_names: u32| {
        proptest::collection::vec(prop_oneof![6 => literal(), with_names => named()], 0..most)
    };
    let deny_name = "(a\\.x|\\*\\.x)(:[1-3])?(/udp)?";
    let grant = (proptest::sample::select(vec!["a.x", "b.x", "c.x", "y"]), address(), NOW - 1..NOW + 3);
    (
        (
            rules(6, 3),
            rules(3, 1),
            proptest::collection::vec(literal(), 0..3),
            proptest::option::of(deny_name),
        ),
        proptest::collection::vec(grant, 0..6),
        prop_oneof![6 => Just(Shield::Up), 2 => Just(Shield::Down), 1 => Just(Shield::Block)],
        (proptest::bool::weighted(0.2), proptest::bool::weighted(0.2)),
    )
        .prop_map(|((allow, live_allow, deny, deny_name), grants, state, (hold, learn))| {
            let sourced = |rule| Sourced { rule, source: Source::Annotation };
            let parse = |text: &String| text.parse::<Rule>().ok();
            let denies = deny.iter().chain(&deny_name).filter_map(|text| Rule::parse_deny(text).ok());
            let policy = Policy {
                allow: allow.iter().filter_map(parse).map(sourced).collect(),
                deny: denies.map(sourced).collect(),
                hold: if hold { 30 } else { 0 },
                learn,
                ..Policy::default()
            };
            let live = Live {
                state: Some(state),
                allow: live_allow.iter().filter_map(parse).collect(),
                ..Live::default()
            };
            World { policy, live, grants }
        })
}

impl World {
    fn rules(&self) -> (impl Iterator<Item = &Rule>, impl Iterator<Item = &Rule>) {
        let written = |rules| Iterator::map(<[Sourced]>::iter(rules), |sourced: &Sourced| &sourced.rule);
        (
            written(&self.policy.allow).chain(&self.live.allow),
            written(&self.policy.deny).chain(&self.live.deny),
        )
    }

    /// Whether a name that still stands opened it, the slow way.
    fn opened_by_name(&self, ip: IpAddr, port: u16, proto: Proto) -> bool {
        self.grants.iter().filter(|grant| grant.1 == ip && grant.2 > NOW).any(|(name, ..)| {
            let name = name.parse().unwrap();
            let here = |rule: &Rule| rule.ports.contains(port) && rule.target.names(&name);
            let (mut allow, mut deny) = self.rules();
            may_be_given(&facts(), Answer::Real, ip)
                && allow.any(|rule| {
                    rule.proto == proto && here(rule) && (rule.direct || rule.proto == Proto::Udp)
                })
                && !deny.any(|rule| rule.denies_over(proto) && here(rule))
        })
    }
}

/// The ways that a packet may take.
fn expected(world: &World, state: Shield, ip: IpAddr, port: u16, proto: Proto) -> Vec<Way> {
    let verdict = judge(&world.policy, &world.live, state, &Query::Literal { ip, port, proto });
    let (tcp, waits) = (proto == Proto::Tcp, world.policy.holds_or_learns());
    let by_name = world.opened_by_name(ip, port, proto);
    let own = facts().own.contains(&ip);
    match verdict {
        Verdict::Refuse { reason: Reason::Denied | Reason::Blocked, .. } => vec![Way::Refused],
        Verdict::Allow { rule } if matches!(rule.rule.target, Target::Net(_)) => vec![Way::Card],
        _ if by_name => vec![Way::Card],
        // Of several rules the verdict names the first, and the kernel takes the one for the card.
        Verdict::Allow { .. } if tcp && !own => vec![Way::Proxy, Way::Card],
        Verdict::Down | Verdict::Learn if tcp && !own => vec![Way::Proxy],
        Verdict::Allow { .. } | Verdict::Down | Verdict::Learn if !own => vec![Way::Card],
        Verdict::Refuse { reason: Reason::Unlisted | Reason::PortUnlisted, .. } if tcp && waits && !own => {
            vec![Way::Proxy]
        }
        _ => {
            // An own address of the host is below the floor, which a literal rule overrules.
            let literal = own
                && world.rules().0.any(|rule| {
                    matches!(rule.target, Target::Net(net) if net.contains(ip))
                        && rule.proto == proto
                        && rule.ports.contains(port)
                });
            vec![if literal { Way::Card } else { Way::Refused }]
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn the_kernel_lets_through_what_the_verdict_allows_and_nothing_else(
        world in world(),
        packets in proptest::collection::vec((address(), port(), any::<bool>()), 24),
    ) {
        let Ok(plan) = Plan::new(world.policy.clone(), facts()) else { return Ok(()) };
        prop_assume!(plan.carries(&world.live).is_ok());
        let mut grants = Grants::default();
        for (name, ip, until) in &world.grants {
            grants.grant(&name.parse().unwrap(), &[*ip], *until);
        }
        let ruleset = plan.ruleset(&WIRING, &Now { live: &world.live, grants: &grants, unix: NOW });
        let table = Table(&ruleset);
        let state = world.live.shield(world.policy.shield, NOW);
        for (ip, port, udp) in packets {
            let proto = if udp { Proto::Udp } else { Proto::Tcp };
            let packet = Packet::out(ip, proto.number(), port);
            let end = table.send(&plan, packet);
            let wanted = expected(&world, state, ip, port, proto);
            prop_assert!(wanted.contains(&end), "{} {:?} {}: {:?}, not {:?}\n{}", ip, proto, port, end, wanted, plan);
            // Every packet is looked up, and an answer comes in where its question goes out; of TCP also where it does so no
            // more, so that the acknowledgement meets the reset.
            if end != Way::Proxy {
                let later = Packet { state: ESTABLISHED, ..packet };
                prop_assert_eq!(table.run("out", &mut later.clone()) == Fate::Accept, end == Way::Card);
                let answered = table.run("in", &mut packet.answer()) == Fate::Accept;
                prop_assert_eq!(answered, end == Way::Card || !udp, "answer of {} {:?} {}", ip, proto, port);
            }
            // Where no card leads, TCP goes to the proxy or nowhere, and nothing else goes.
            let nowhere = table.send(&plan, Packet { lo: true, ..packet });
            prop_assert!(matches!(nowhere, Way::Refused) || nowhere == Way::Proxy && !udp, "{:?}", nowhere);
            if end == Way::Card && !udp && !world.opened_by_name(ip, port, proto) {
                prop_assert_eq!(nowhere, Way::Proxy);
            }
        }
    }
}

fn plan(allow: &[&str], publish: &[u16]) -> Plan {
    let sourced = |text: &&str| Sourced { rule: text.parse().unwrap(), source: Source::Annotation };
    let published = |&to| Publish { addr: Publish::LOOPBACK, port: to, to };
    let policy = Policy {
        allow: allow.iter().map(sourced).collect(),
        publish: publish.iter().map(published).collect(),
        ..Policy::default()
    };
    Plan::new(policy, facts()).unwrap()
}

fn in_force(plan: &Plan) -> Ruleset {
    plan.ruleset(&WIRING, &Now { live: &Live::default(), grants: &Grants::default(), unix: NOW })
}

#[test]
fn no_question_leaves_but_our_own_and_its_answer_comes_back() {
    let plan = plan(&["10.88.0.1", "10.88.0.1/udp", "192.0.2.1:*"], &[]);
    let ruleset = in_force(&plan);
    let table = Table(&ruleset);
    for server in ["10.88.0.1", "192.0.2.1", "8.8.8.8", "2001:db8::1"] {
        for proto in [6, 17] {
            assert_eq!(table.send(&plan, Packet::out(server.parse().unwrap(), proto, 53)), Way::Dns);
        }
    }
    let own = Packet { sport: WIRING.peers, ..Packet::out("10.88.0.1".parse().unwrap(), 17, 53) };
    assert_eq!(table.send(&plan, own), Way::Card);
    assert_eq!(table.run("in", &mut own.answer()), Fate::Accept);
    let elsewhere = Packet { to: "10.88.0.2".parse().unwrap(), ..own };
    assert_eq!(table.send(&plan, elsewhere), Way::Dns);
    assert_eq!(table.run("in", &mut elsewhere.answer()), Fate::Drop);
}

#[test]
fn what_comes_in_is_what_the_engine_publishes_and_not_a_neighbour() {
    let plan = plan(&[], &[80]);
    let ruleset = in_force(&plan);
    let table = Table(&ruleset);
    let from = |source: &str, proto, dport| {
        let here = Packet::out(source.parse().unwrap(), proto, dport).answer();
        let mut packet = Packet { sport: 40_000, dport, state: NEW, reply: false, ..here };
        table.run("in", &mut packet)
    };
    for (source, dport, fate) in [
        ("10.88.0.1", 8080, Fate::Accept),
        ("198.51.100.1", 8080, Fate::Accept),
        ("fd10::1", 8080, Fate::Accept),
        ("10.88.0.9", 8080, Fate::Drop),
        ("fd10::9", 8080, Fate::Drop),
        ("10.88.0.9", 80, Fate::Accept),
        ("198.51.100.1", 61_000, Fate::Drop),
    ] {
        assert_eq!(from(source, 6, dport), fate, "{source} {dport}");
    }
    assert_eq!(from("198.51.100.1", 17, 8080), Fate::Accept);
    assert_eq!(from("198.51.100.1", 132, 0), Fate::Drop);
    // Its answers leave, for as long as nothing denies the other end.
    let mut answer = Packet {
        sport: 8080,
        state: ESTABLISHED,
        reply: true,
        ..Packet::out("198.51.100.1".parse().unwrap(), 6, 40_000)
    };
    assert_eq!(table.run("out", &mut answer), Fate::Accept);
    assert_eq!(answer.mark, WIRING.mark);
    let live = Live { state: Some(Shield::Block), ..Live::default() };
    let blocked = plan.ruleset(&WIRING, &Now { live: &live, grants: &Grants::default(), unix: NOW });
    assert_eq!(Table(&blocked).run("out", &mut answer), Fate::Reset);
    let mut request = Packet { reply: false, ..answer.answer() };
    assert_eq!(Table(&blocked).run("in", &mut request), Fate::Drop);
}

#[test]
fn block_closes_what_a_helper_in_the_namespace_publishes_and_leaves_the_containers_own_loopback() {
    let plan = plan(&[], &[80]);
    let live = Live { state: Some(Shield::Block), ..Live::default() };
    let open = in_force(&plan);
    let blocked = plan.ruleset(&WIRING, &Now { live: &live, grants: &Grants::default(), unix: NOW });
    let by_lo = |ruleset, source: &str, proto, dport, reply| {
        let here = Packet::out(source.parse().unwrap(), proto, dport).answer();
        let mut packet = Packet { sport: 40_000, dport, state: ESTABLISHED, reply, lo: true, ..here };
        Table(ruleset).run("in", &mut packet)
    };
    for own in ["10.88.0.2", "fd10::2"] {
        assert_eq!(by_lo(&open, own, 6, 8080, false), Fate::Accept, "{own}");
        assert_eq!(by_lo(&blocked, own, 6, 8080, false), Fate::Reset, "{own}");
        assert_eq!(by_lo(&blocked, own, 17, 8080, false), Fate::Drop, "{own}");
        // Its questions and connections still get their refusal, and the resets and answers that say so.
        assert_eq!(by_lo(&blocked, own, 17, WIRING.dns_udp, false), Fate::Accept, "{own}");
        assert_eq!(by_lo(&blocked, own, 6, WIRING.dns_tcp, false), Fate::Accept, "{own}");
        assert_eq!(by_lo(&blocked, own, 6, WIRING.proxy, false), Fate::Accept, "{own}");
        assert_eq!(by_lo(&blocked, own, 6, 40_001, true), Fate::Accept, "{own}");
    }
    for inside in ["127.0.0.1", "::1", "fd74:6572:6f6b:1::1"] {
        assert_eq!(by_lo(&blocked, inside, 6, 8080, false), Fate::Accept, "{inside}");
    }
    // A reset of ours in the name of a peer that came in: `related`, and in the direction in which the peer began.
    let here = Packet::out("203.0.113.9".parse().unwrap(), 6, 8080).answer();
    let mut reset = Packet { sport: 40_000, dport: 8080, state: RELATED, reply: false, lo: true, ..here };
    assert_eq!(Table(&blocked).run("in", &mut reset), Fate::Accept);
}

#[test]
fn ipv6_finds_its_neighbours_and_listener_reports_stay_silent() {
    let plan = plan(&[], &[]);
    let ruleset = in_force(&plan);
    let table = Table(&ruleset);
    let icmp6 = |kind| Packet { icmp6: kind, state: 0, ..Packet::out("ff02::1".parse().unwrap(), 58, 0) };
    for kind in 133..=136 {
        assert_eq!(table.send(&plan, icmp6(kind)), Way::Card);
        assert_eq!(table.run("in", &mut icmp6(kind)), Fate::Accept);
    }
    for kind in [130, 131, 132, 143] {
        assert_eq!(table.run("out", &mut icmp6(kind)), Fate::Drop);
    }
    assert_eq!(table.send(&plan, icmp6(128)), Way::Refused);
}

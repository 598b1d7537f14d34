//! The verdict on one query: pure, total, deny before allow (E1).

use crate::floor::{Floor, floor};
use crate::live::Live;
use crate::name::{self, Name};
use crate::policy::{Policy, Shield, Source, Sourced};
use crate::rule::{DOT, Ports, Proto, Rule, Target};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Where SSH servers listen.
pub const SSH: u16 = 22;

/// Something a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query<'a> {
    /// May this name be answered at all (does any rule allow it on some port)?
    Resolve(&'a Name),
    /// A connection to a name.
    Name {
        /// Canonical name.
        name: &'a Name,
        /// Destination port.
        port: u16,
        /// Transport.
        proto: Proto,
    },
    /// A connection to a literal address that no answer of ours gave out.
    Literal {
        /// Destination.
        ip: IpAddr,
        /// Destination port.
        port: u16,
        /// Transport.
        proto: Proto,
    },
    /// A connection to the host's loopback (`host.terok.internal`).
    Host {
        /// Port on the host.
        port: u16,
        /// Transport.
        proto: Proto,
    },
}

/// The answer, with the rule that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// Allowed by this rule.
    Allow {
        /// The deciding rule.
        rule: Sourced,
    },
    /// Allowed because the shield is down.
    Down,
    /// Allowed because nothing denies it and the container is learning (`terok.shield.learn`).
    Learn,
    /// Allowed by an operator's verdict on the waiting connection.
    Operator,
    /// Refused.
    Refuse {
        /// Why.
        reason: Reason,
        /// The deny rule, where one decided.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<Sourced>,
    },
}

/// Why something is refused. The kebab-case name is what audit lines carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// No rule names it.
    Unlisted,
    /// The name is listed, this port is not.
    PortUnlisted,
    /// A deny rule names it.
    Denied,
    /// The shield is in `block`.
    Blocked,
    /// The address is below the floor (E3).
    Floor,
    /// TLS server name differs from the name (E4).
    SniMismatch,
    /// TLS without a server name.
    SniMissing,
    /// HTTP Host or absolute-form target differs from the name.
    HostMismatch,
    /// Bytes that are neither TLS, HTTP/1 nor SSH on a web port, or a malformed or ambiguous message.
    BadProtocol,
    /// Hello or headers above the size limit.
    TooLarge,
    /// Hello or headers did not arrive in time.
    HandshakeTimeout,
    /// Too many connections at once.
    TooManyConnections,
    /// Wildcard budget spent (E7), or the virtual pool is full.
    NameBudget,
    /// The name did not resolve, or no address could be connected.
    Unreachable,
    /// The audit log could not be written.
    AuditUnwritable,
    /// A DNS message we do not answer.
    BadDns,
    /// It waited for an operator's verdict and none came ([`crate::Policy::hold`]).
    Unanswered,
    /// An operator refused it while it waited.
    OperatorDenied,
    /// A request to a provider without this container's own token, or with another credential (V3).
    Credential,
    /// The token was taken back from this container.
    Revoked,
    /// The provider's rules refuse the request.
    RequestRefused,
    /// The vault is locked, or the credential is not in it or could not be renewed.
    Vault,
    /// Somebody else changed the kernel's table: the container is cut off until it is started again (L8).
    Tampered,
}

impl Reason {
    /// Whether only a rule is missing: such a connection may wait for an operator. What a rule, the floor or the state refuses
    /// never waits.
    pub fn is_open_question(self) -> bool {
        matches!(self, Reason::Unlisted | Reason::PortUnlisted)
    }
}

impl Verdict {
    /// Whether the query may go ahead.
    pub fn allows(&self) -> bool {
        !matches!(self, Verdict::Refuse { .. })
    }
}

/// Judges `query` under `policy` and the operator's `live` additions with the shield in `state`.
/// Deny beats allow from any source, also with the shield down. Literal queries below the floor need a literal rule.
pub fn judge(policy: &Policy, live: &Live, state: Shield, query: &Query<'_>) -> Verdict {
    if state == Shield::Block {
        return Verdict::Refuse { reason: Reason::Blocked, rule: None };
    }
    let rules = Rules { policy, live };
    match *query {
        Query::Resolve(name) => rules.resolve(state, name),
        Query::Name { name, port, proto } if name.is_reserved() => match name.as_str() {
            name::HOST => rules.connect(state, &Destination::Host, port, proto),
            name::VAULT if !policy.vault.is_empty() => {
                rules.connect(state, &Destination::Vault(name), port, proto)
            }
            _ => Verdict::Refuse { reason: Reason::Unlisted, rule: None },
        },
        Query::Name { name, port, proto } => rules.connect(state, &Destination::Name(name), port, proto),
        Query::Literal { ip, port, proto } => {
            rules.connect(state, &Destination::Literal(ip.to_canonical()), port, proto)
        }
        Query::Host { port, proto } => rules.connect(state, &Destination::Host, port, proto),
    }
}

/// Hosts that SSH keys were granted for and to which no rule of `policy` leads: a key opens no port. A rule for other ports than the web's is
/// taken to mean the host's SSH server.
pub fn unreached(policy: &Policy) -> Vec<&Name> {
    let live = Live::default();
    let mut hosts: Vec<&Name> = Vec::new();
    for host in policy.ssh.iter().filter_map(|grant| grant.host.as_ref()) {
        let query = Query::Name { name: host, port: SSH, proto: Proto::Tcp };
        let missing = match judge(policy, &live, policy.shield, &query) {
            // With a hold an operator is asked.
            Verdict::Refuse { reason, .. } => reason.is_open_question() && policy.hold == 0,
            _ => false,
        };
        let elsewhere = policy.allow.iter().map(|sourced| &sourced.rule).any(|rule| {
            rule.proto == Proto::Tcp
                && rule.target.names(host)
                && !rule.ports.without(&Ports::web()).is_empty()
        });
        if missing && !elsewhere && !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

impl Verdict {
    fn refuse(reason: Reason, rule: Option<Found<'_>>) -> Self {
        Verdict::Refuse { reason, rule: rule.map(Found::sourced) }
    }
}

/// Where a connection goes.
enum Destination<'a> {
    Name(&'a Name),
    Literal(IpAddr),
    Host,
    /// The broker, of a container that was granted something.
    Vault(&'a Name),
}

impl Destination<'_> {
    /// Whether an allow rule for `target` opens the way here, ports aside.
    fn allowed_by(&self, target: &Target) -> bool {
        match (self, target) {
            (Destination::Name(name), Target::Name(rule)) => *name == rule,
            (Destination::Name(name), Target::Under(rule)) => name.is_under(rule),
            (Destination::Literal(ip), Target::Net(net)) => net.contains(*ip),
            (Destination::Host, Target::Host) => true,
            (Destination::Vault(name), Target::Name(rule)) => *name == rule,
            (Destination::Name(_), Target::Any) => true,
            (Destination::Literal(ip), Target::Any) => floor(*ip).is_none(),
            _ => false,
        }
    }

    /// As [`Destination::allowed_by`], but a denied `any` has no floor: it closes everything.
    fn denied_by(&self, target: &Target) -> bool {
        *target == Target::Any || self.allowed_by(target)
    }
}

#[derive(Clone, Copy)]
struct Found<'a> {
    rule: &'a Rule,
    source: &'a Source,
}

impl Found<'_> {
    fn sourced(self) -> Sourced {
        Sourced { rule: self.rule.clone(), source: self.source.clone() }
    }
}

#[derive(Clone, Copy)]
struct Rules<'a> {
    policy: &'a Policy,
    live: &'a Live,
}

impl<'a> Rules<'a> {
    fn allow(self) -> impl Iterator<Item = Found<'a>> {
        found(&self.policy.allow, &self.live.allow)
    }

    fn deny(self) -> impl Iterator<Item = Found<'a>> {
        found(&self.policy.deny, &self.live.deny)
    }

    fn connect(self, state: Shield, to: &Destination<'_>, port: u16, proto: Proto) -> Verdict {
        let here = |rule: &Rule| rule.proto == proto && rule.ports.contains(port);
        let closed =
            |rule: &Rule| rule.denies_over(proto) && rule.ports.contains(port) && to.denied_by(&rule.target);
        if let Some(deny) = self.deny().find(|found| closed(found.rule)) {
            return Verdict::refuse(Reason::Denied, Some(deny));
        }
        let below = match to {
            Destination::Literal(ip) => floor(*ip),
            _ => None,
        };
        // Dialled from the host, 0.0.0.0 and 127.0.0.1 are the host itself: not even 0.0.0.0/0 means that.
        if matches!(below, Some(Floor::Loopback | Floor::Unspecified)) {
            return Verdict::refuse(Reason::Floor, None);
        }
        let mut other_port = false;
        for found in self.allow().filter(|found| to.allowed_by(&found.rule.target)) {
            if here(found.rule) {
                return Verdict::Allow { rule: found.sourced() };
            }
            other_port = true;
        }
        if below.is_some() {
            Verdict::refuse(Reason::Floor, None)
        } else if let Some(verdict) = self.without_rule(state, to).filter(|_| port != DOT) {
            verdict
        } else {
            Verdict::refuse(if other_port { Reason::PortUnlisted } else { Reason::Unlisted }, None)
        }
    }

    /// The verdict on what no rule names and no floor is above. The host's loopback is below the floor, so neither opens it; the
    /// broker is there for what was granted.
    fn without_rule(self, state: Shield, to: &Destination<'_>) -> Option<Verdict> {
        match (to, state) {
            (Destination::Host | Destination::Vault(_), _) | (_, Shield::Block) => None,
            (_, Shield::Down) => Some(Verdict::Down),
            (_, Shield::Up) => self.policy.learn.then_some(Verdict::Learn),
        }
    }

    /// A name is answered while at least one port of it is allowed and not denied.
    fn resolve(self, state: Shield, name: &Name) -> Verdict {
        let to = match name.as_str() {
            name::HOST => Destination::Host,
            name::VAULT if !self.policy.vault.is_empty() => Destination::Vault(name),
            _ if name.is_reserved() => return Verdict::refuse(Reason::Unlisted, None),
            _ => Destination::Name(name),
        };
        let denies: Vec<Found<'_>> = self.deny().filter(|found| to.denied_by(&found.rule.target)).collect();
        let open = |ports: &Ports, proto: Proto| {
            let denied = denies.iter().filter(|found| found.rule.denies_over(proto));
            !denied.fold(ports.clone(), |left, found| left.without(&found.rule.ports)).is_empty()
        };
        let mut listed = false;
        for found in self.allow().filter(|found| to.allowed_by(&found.rule.target)) {
            if denies.is_empty() || open(&found.rule.ports, found.rule.proto) {
                return Verdict::Allow { rule: found.sourced() };
            }
            listed = true;
        }
        if let Some(verdict) = self.without_rule(state, &to).filter(|_| open(&Ports::but_dot(), Proto::Tcp)) {
            return verdict;
        }
        match denies.first() {
            Some(&deny) if listed || deny.rule.ports == Ports::all() => {
                Verdict::refuse(Reason::Denied, Some(deny))
            }
            _ => Verdict::refuse(Reason::Unlisted, None),
        }
    }
}

fn found<'a>(policy: &'a [Sourced], live: &'a [Rule]) -> impl Iterator<Item = Found<'a>> {
    let policy = policy.iter().map(|sourced| Found { rule: &sourced.rule, source: &sourced.source });
    policy.chain(live.iter().map(|rule| Found { rule, source: &Source::Live }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::SshGrant;

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        let source = Source::Annotation;
        let sourced = |rule| Sourced { rule, source: source.clone() };
        Policy {
            allow: allow.iter().map(|text| sourced(text.parse().unwrap())).collect(),
            deny: deny.iter().map(|text| sourced(Rule::parse_deny(text).unwrap())).collect(),
            ..Policy::default()
        }
    }

    #[test]
    fn a_key_for_a_host_that_no_rule_leads_to_is_told() {
        let granted = |policy: Policy| {
            let grant = |host: &str| SshGrant { key: "work".into(), host: Some(host.parse().unwrap()) };
            let ssh =
                vec![grant("git.example"), grant("git.example"), SshGrant { key: "x".into(), host: None }];
            let policy = Policy { ssh, ..policy };
            unreached(&policy).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        for allow in
            [&[][..], &["git.example"], &["git.example:443"], &["*.git.example:22"], &["git.example:22/udp"]]
        {
            assert_eq!(granted(policy(allow, &[])), "git.example", "{allow:?}");
        }
        for allow in ["git.example:22", "*.example:22", "git.example:2222", "any"] {
            assert_eq!(granted(policy(&[allow], &[])), "", "{allow}");
        }
        // What a rule closes, a further one would not open.
        assert_eq!(granted(policy(&[], &["git.example:22"])), "");
        assert_eq!(granted(Policy { shield: Shield::Down, ..Policy::default() }), "");
        assert_eq!(granted(Policy { learn: true, ..Policy::default() }), "");
        assert_eq!(granted(Policy { hold: 30, ..Policy::default() }), "");
    }

    /// `TARGET:PORT`, or `NAME?` for a resolution, as a word: `allow`, `down` or the reason.
    fn ask(policy: &Policy, live: &Live, state: Shield, question: &str) -> String {
        let verdict = match question.strip_suffix('?') {
            Some(name) => judge(policy, live, state, &Query::Resolve(&name.parse().unwrap())),
            None => {
                let (target, port) = question.rsplit_once(':').unwrap();
                let (port, proto) = (port.parse().unwrap(), Proto::Tcp);
                match target.trim_matches(['[', ']']).parse::<IpAddr>() {
                    Ok(ip) => judge(policy, live, state, &Query::Literal { ip, port, proto }),
                    Err(_) if target == "host" => judge(policy, live, state, &Query::Host { port, proto }),
                    Err(_) => {
                        let name = target.parse().unwrap();
                        judge(policy, live, state, &Query::Name { name: &name, port, proto })
                    }
                }
            }
        };
        match verdict {
            Verdict::Allow { .. } => "allow".into(),
            Verdict::Down => "down".into(),
            Verdict::Learn => "learn".into(),
            Verdict::Operator => "operator".into(),
            Verdict::Refuse { reason, .. } => {
                serde_json::to_value(reason).unwrap().as_str().unwrap().to_owned()
            }
        }
    }

    #[track_caller]
    fn all(policy: &Policy, state: Shield, questions: &[(&str, &str)]) {
        for (question, answer) in questions {
            assert_eq!(ask(policy, &Live::default(), state, question), *answer, "{question}");
        }
    }

    #[test]
    fn a_bare_name_is_that_host_only_and_a_wildcard_its_subdomains_only() {
        let policy = policy(&["a.example", "*.b.example:443"], &[]);
        all(
            &policy,
            Shield::Up,
            &[
                ("a.example:443", "allow"),
                ("a.example:80", "allow"),
                ("a.example:22", "port-unlisted"),
                ("x.a.example:443", "unlisted"),
                ("x.b.example:443", "allow"),
                ("x.y.b.example:443", "allow"),
                ("b.example:443", "unlisted"),
                ("xb.example:443", "unlisted"),
                ("a.example?", "allow"),
                ("b.example?", "unlisted"),
                ("x.b.example?", "allow"),
            ],
        );
    }

    #[test]
    fn deny_beats_allow_in_every_state() {
        let policy =
            policy(&["*.a.example", "10.0.0.0/8", "any"], &["b.a.example", "10.1.0.0/16:22", "c.example:80"]);
        for state in [Shield::Up, Shield::Down] {
            all(
                &policy,
                state,
                &[
                    ("b.a.example:443", "denied"),
                    ("b.a.example:22", "denied"),
                    ("b.a.example?", "denied"),
                    ("c.a.example:443", "allow"),
                    ("10.1.2.3:22", "denied"),
                    ("[::ffff:10.1.2.3]:22", "denied"),
                    ("10.1.2.3:23", "allow"),
                    ("c.example:80", "denied"),
                    ("c.example:443", "allow"),
                    ("c.example?", "allow"),
                ],
            );
        }
    }

    #[test]
    fn a_deny_without_ports_closes_every_protocol_and_one_with_ports_its_own() {
        let policy = policy(
            &["a.example:443/udp", "b.example:443/udp", "192.0.2.0/24/udp"],
            &["a.example", "b.example:443", "192.0.2.1", "192.0.2.2:443"],
        );
        let judged = |query: &Query<'_>| judge(&policy, &Live::default(), Shield::Down, query);
        for (name, refused) in [("a.example", true), ("b.example", false)] {
            let name = name.parse().unwrap();
            let query = Query::Name { name: &name, port: 443, proto: Proto::Udp };
            assert_eq!(!judged(&query).allows(), refused, "{name}");
            assert_eq!(!judged(&Query::Resolve(&name)).allows(), refused, "{name}?");
        }
        for (low, refused) in [(1, true), (2, false)] {
            let query = Query::Literal { ip: [192, 0, 2, low].into(), port: 443, proto: Proto::Udp };
            assert_eq!(!judged(&query).allows(), refused, "{low}");
        }
    }

    #[test]
    fn a_name_with_no_open_port_left_is_not_answered() {
        let policy =
            policy(&["a.example:443", "b.example"], &["a.example:443", "b.example:1-100", "b.example:443"]);
        all(
            &policy,
            Shield::Up,
            &[("a.example?", "denied"), ("b.example?", "denied"), ("c.example?", "unlisted")],
        );
    }

    #[test]
    fn only_a_literal_rule_reaches_below_the_floor() {
        let open = policy(&["any"], &[]);
        for state in [Shield::Up, Shield::Down] {
            all(
                &open,
                state,
                &[
                    ("10.0.0.1:80", "floor"),
                    ("169.254.169.254:80", "floor"),
                    ("[fd00::1]:80", "floor"),
                    ("1.1.1.1:53", "allow"),
                ],
            );
        }
        let literal = policy(&["10.0.0.1:80", "169.254.169.254"], &[]);
        all(
            &literal,
            Shield::Up,
            &[
                ("10.0.0.1:80", "allow"),
                ("10.0.0.1:81", "floor"),
                ("10.0.0.2:80", "floor"),
                ("169.254.169.254:80", "allow"),
            ],
        );
    }

    #[test]
    fn not_even_the_widest_literal_rule_means_the_hosts_loopback() {
        let wide = policy(&["0.0.0.0/0", "::/0"], &[]);
        all(
            &wide,
            Shield::Down,
            &[
                ("127.0.0.1:80", "floor"),
                ("0.0.0.0:80", "floor"),
                ("[::1]:80", "floor"),
                ("[::]:80", "floor"),
                ("[64:ff9b::7f00:1]:80", "floor"),
                ("192.168.0.1:80", "allow"),
            ],
        );
    }

    #[test]
    fn a_name_is_never_matched_by_an_address_rule_nor_an_address_by_a_name() {
        let policy = policy(&["0.0.0.0/0", "a.example"], &[]);
        all(
            &policy,
            Shield::Up,
            &[("b.example:443", "unlisted"), ("b.example?", "unlisted"), ("[2001:db8::1]:443", "unlisted")],
        );
    }

    #[test]
    fn a_host_that_is_called_like_a_word_of_the_rules_is_reached_by_none() {
        // What is learned or answered about it would be written as a rule that means something else.
        let open = Policy { learn: true, ..policy(&["any"], &[]) };
        for state in [Shield::Up, Shield::Down] {
            for word in name::WORDS {
                assert!(word.parse::<Rule>().is_err() || word == "any", "{word}");
                for question in [format!("{word}?"), format!("{word}.:443")] {
                    assert_eq!(ask(&open, &Live::default(), state, &question), "unlisted", "{question}");
                }
            }
        }
        all(&open, Shield::Up, &[("a.host:443", "allow"), ("any.example:443", "allow")]);
    }

    #[test]
    fn the_hosts_loopback_needs_a_host_rule_per_port() {
        let none = policy(&["any"], &[]);
        for state in [Shield::Up, Shield::Down] {
            all(
                &none,
                state,
                &[
                    ("host:8080", "unlisted"),
                    ("host.terok.internal?", "unlisted"),
                    ("x.terok.internal?", "unlisted"),
                ],
            );
        }
        let one = policy(&["host:8080"], &[]);
        all(
            &one,
            Shield::Up,
            &[
                ("host:8080", "allow"),
                ("host:8081", "port-unlisted"),
                ("host.terok.internal:8080", "allow"),
                ("host.terok.internal?", "allow"),
                ("terok.internal?", "unlisted"),
            ],
        );
        let denied = policy(&["host:8080"], &["any"]);
        all(&denied, Shield::Up, &[("host:8080", "denied"), ("host.terok.internal?", "denied")]);
    }

    #[test]
    fn block_lets_nothing_through_and_down_everything_but_floor_and_denies() {
        let policy = policy(&["a.example"], &["b.example"]);
        all(
            &policy,
            Shield::Block,
            &[("a.example:443", "blocked"), ("a.example?", "blocked"), ("1.1.1.1:443", "blocked")],
        );
        all(
            &policy,
            Shield::Down,
            &[
                ("a.example:443", "allow"),
                ("z.example:22", "down"),
                ("z.example?", "down"),
                ("b.example?", "denied"),
                ("b.example:22", "denied"),
                ("1.1.1.1:22", "down"),
                ("10.0.0.1:22", "floor"),
            ],
        );
    }

    #[test]
    fn learning_lets_through_what_is_not_denied_nor_below_the_floor() {
        let learning = Policy { learn: true, ..policy(&["a.example"], &["b.example", "203.0.113.66"]) };
        let questions = [
            ("a.example:443", "allow"),
            ("a.example:22", "learn"),
            ("z.example?", "learn"),
            ("z.example:22", "learn"),
            ("b.example?", "denied"),
            ("b.example:443", "denied"),
            ("1.1.1.1:22", "learn"),
            ("203.0.113.66:22", "denied"),
            ("10.0.0.1:22", "floor"),
            ("host:22", "unlisted"),
            ("host.terok.internal?", "unlisted"),
        ];
        all(&learning, Shield::Up, &questions);
        all(&learning, Shield::Down, &[("z.example:22", "down"), ("1.1.1.1:22", "down")]);
        all(&learning, Shield::Block, &[("z.example:22", "blocked"), ("a.example?", "blocked")]);
    }

    #[test]
    fn dns_over_tls_needs_a_rule_that_names_its_port_or_every_port() {
        let unnamed = policy(&["any", "192.0.2.0/24", "a.example"], &[]);
        let learning = Policy { learn: true, ..unnamed.clone() };
        for (policy, state) in [(&unnamed, Shield::Up), (&unnamed, Shield::Down), (&learning, Shield::Up)] {
            all(
                policy,
                state,
                &[
                    ("192.0.2.1:853", "port-unlisted"),
                    ("198.51.100.1:853", "port-unlisted"),
                    ("a.example:853", "port-unlisted"),
                    ("b.example:853", "port-unlisted"),
                    ("192.0.2.1:852", "allow"),
                ],
            );
        }
        let named = policy(&["192.0.2.1:*", "198.51.100.1:853", "a.example:853"], &[]);
        let questions =
            [("192.0.2.1:853", "allow"), ("198.51.100.1:853", "allow"), ("a.example:853", "allow")];
        all(&named, Shield::Up, &questions);
    }

    #[test]
    fn the_broker_is_there_for_what_was_granted_and_opened_by_nothing_else() {
        let ports = ["vault.terok.internal?", "vault.terok.internal:80", "vault.terok.internal:443"];
        let with = |pairs: &[(&str, &str)]| {
            let annotations = pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            crate::annotation::parse(&annotations, &crate::profile::Catalog::bundled()).unwrap()
        };
        let open = Policy { learn: true, ..policy(&["any", "*.internal"], &[]) };
        let mut live = Live::default();
        live.allow(serde_json::from_str("\"vault.terok.internal\"").unwrap());
        for state in [Shield::Up, Shield::Down] {
            for question in ports {
                assert_eq!(ask(&open, &live, state, question), "unlisted", "{question}");
            }
        }
        let granted = with(&[("terok.vault", "anthropic"), ("terok.shield.profiles", "none")]);
        for state in [Shield::Up, Shield::Down] {
            for question in ports {
                assert_eq!(ask(&granted, &Live::default(), state, question), "allow", "{question}");
            }
            all(
                &granted,
                state,
                &[("vault.terok.internal:22", "port-unlisted"), ("terok.internal?", "unlisted")],
            );
        }
        all(&granted, Shield::Block, &[(ports[0], "blocked"), (ports[1], "blocked")]);
        let closed = with(&[("terok.vault", "anthropic"), ("terok.shield.deny", "any")]);
        all(
            &closed,
            Shield::Up,
            &[(ports[0], "denied"), (ports[1], "denied"), ("api.anthropic.com:443", "denied")],
        );
        let half = with(&[("terok.vault", "anthropic"), ("terok.shield.deny", "any:80 api.anthropic.com")]);
        all(
            &half,
            Shield::Up,
            &[
                (ports[0], "allow"),
                (ports[1], "denied"),
                (ports[2], "allow"),
                ("api.anthropic.com?", "denied"),
            ],
        );
    }

    #[test]
    fn only_what_no_rule_mentions_may_wait_for_an_operator() {
        let all = [Reason::Unlisted, Reason::PortUnlisted, Reason::Denied, Reason::Blocked, Reason::Floor];
        assert_eq!(all.map(Reason::is_open_question), [true, true, false, false, false]);
    }

    #[test]
    fn live_rules_count_like_written_ones_and_a_written_deny_beats_them() {
        let policy = policy(&["a.example"], &["b.example"]);
        let mut live = Live::default();
        live.allow("b.example".parse().unwrap());
        live.allow("c.example".parse().unwrap());
        live.deny(Rule::parse_deny("a.example").unwrap());
        for (question, answer) in [
            ("a.example:443", "denied"),
            ("b.example:443", "denied"),
            ("c.example:443", "allow"),
            ("c.example?", "allow"),
        ] {
            assert_eq!(ask(&policy, &live, Shield::Up, question), answer, "{question}");
        }
        let name = "a.example".parse().unwrap();
        let query = Query::Name { name: &name, port: 443, proto: Proto::Tcp };
        match judge(&policy, &live, Shield::Up, &query) {
            Verdict::Refuse { rule: Some(rule), .. } => assert_eq!(rule.to_string(), "a.example:* (live)"),
            other => panic!("{other:?}"),
        }
    }
}

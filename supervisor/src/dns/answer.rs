//! DNS questions in, replies out: pure in the bytes and in what is known of the name. No reply needs more than the
//! 512 octets that every client takes (RFC 1035 §4.2.1), so none is ever truncated.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder};
use domain::base::{
    Message, MessageBuilder, Name as Wire, ParsedName, Serial, StaticCompressor, ToName, Ttl,
};
use domain::rdata::{A, Aaaa, Ptr, Soa};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use terok_policy::{Name, virt};

/// How long a client may keep an answer. A name keeps its address, so this only bounds a client's stale belief that a
/// name it may no longer reach exists.
const TTL: Ttl = Ttl::from_secs(60);
/// How long a client may keep a refusal: a name that an operator allows works at the next try (RFC 2308).
const NEGATIVE_TTL: Ttl = Ttl::from_secs(1);
/// The datagram size we state (DNS flag day 2020).
const UDP_SIZE: u16 = 1232;

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It has this virtual address.
    Virtual(u32),
    /// It has this virtual address for now: another answer may be better in a moment.
    Provisional(u32),
    /// It has these addresses, possibly none, which may be kept for a number of seconds. At most [`ADDRESSES`] are told.
    Real(Vec<IpAddr>, u32),
    /// It is the reverse name of an address that belongs to this name.
    Pointer(Name),
    /// `localhost` (RFC 6761 §6.3).
    Loopback,
    /// It does not exist for this container.
    Nothing,
    /// It would be answered, but not now: REFUSED.
    NotNow,
    /// It could not be found out: SERVFAIL.
    Failed,
}

/// Addresses in one answer, at most: so many IPv6 ones fit beside the longest name.
pub const ADDRESSES: usize = 8;

/// What a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A name in canonical form.
    Name(Name),
    /// The reverse name of a virtual address.
    Reverse(u32),
    /// A name that no host has, as text.
    Invalid(String),
}

/// What came in.
pub enum Received {
    /// A question of ours to answer.
    Question(Question),
    /// A message that is none: why, and what its sender is told, nothing where that would only help to reflect traffic.
    Refused(&'static str, Option<Vec<u8>>),
    /// No DNS message.
    Nothing,
}

/// A question, with all that its reply needs.
pub struct Question {
    message: Message<Vec<u8>>,
    asked: Asked,
    rtype: Rtype,
    /// Whether it has an OPT record.
    edns: bool,
}

/// Reads a message.
pub fn read(query: &[u8]) -> Received {
    let Ok(message) = Message::from_octets(query) else { return Received::Nothing };
    let header = message.header();
    if header.qr() {
        return Received::Refused("a reply", None);
    }
    if header.opcode() != Opcode::QUERY {
        return Received::Refused("opcode", bare(&message, Rcode::NOTIMP));
    }
    if message.header_counts().qdcount() != 1 {
        return Received::Refused("question count", bare(&message, Rcode::FORMERR));
    }
    let (Ok(question), Ok(edns)) = (message.sole_question(), edns(&message)) else {
        return Received::Refused("malformed", bare(&message, Rcode::FORMERR));
    };
    if edns == Some(false) {
        let plain = reply(&message, true, Rcode::NOERROR, |_| Some(()));
        return Received::Refused("edns version", plain.map(|r| extended(r, OptRcode::BADVERS)));
    }
    if question.qclass() != Class::IN {
        return Received::Refused("class", reply(&message, edns.is_some(), Rcode::REFUSED, |_| Some(())));
    }
    let (asked, rtype) = (asked(question.qname()), question.qtype());
    match Message::from_octets(query.to_vec()) {
        Ok(message) => Received::Question(Question { message, asked, rtype, edns: edns.is_some() }),
        Err(_) => Received::Nothing,
    }
}

impl Question {
    /// What it is about.
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// The type of records it asks for.
    pub fn rtype(&self) -> Rtype {
        self.rtype
    }

    /// The reply where this is `known`, without IPv6 addresses where the container cannot use them (`ipv6`).
    pub fn reply(&self, known: &Known, ipv6: bool) -> Option<Vec<u8>> {
        let message = Message::from_octets(self.message.as_slice()).ok()?;
        let question = message.sole_question().ok()?;
        let qname = question.qname();
        let addresses: Vec<IpAddr> = match known {
            Known::Virtual(index) | Known::Provisional(index) => both(virt::addresses(*index)),
            Known::Loopback => both((Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)),
            Known::Real(addresses, _) => addresses.clone(),
            _ => Vec::new(),
        };
        let ttl = match known {
            Known::Provisional(_) => NEGATIVE_TTL,
            Known::Real(_, seconds) => Ttl::from_secs(*seconds),
            _ => TTL,
        };
        let records = |answer: &mut AnswerBuilder<Target>| {
            let v4 = addresses.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
            let v6 = addresses.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
            match (known, self.rtype) {
                (_, Rtype::A) => {
                    v4.take(ADDRESSES).try_for_each(|ip| answer.push((qname, ttl, A::new(ip)))).ok()
                }
                (_, Rtype::AAAA) if ipv6 => {
                    v6.take(ADDRESSES).try_for_each(|ip| answer.push((qname, ttl, Aaaa::new(ip)))).ok()
                }
                (Known::Pointer(name), Rtype::PTR) => {
                    let name: Wire<Vec<u8>> = name.as_str().parse().ok()?;
                    answer.push((qname, ttl, Ptr::new(name))).ok()
                }
                _ => Some(()),
            }
        };
        let rcode = match known {
            Known::Nothing => Rcode::NXDOMAIN,
            Known::NotNow => Rcode::REFUSED,
            Known::Failed => Rcode::SERVFAIL,
            _ => Rcode::NOERROR,
        };
        reply(&message, self.edns, rcode, records)
    }
}

fn both((v4, v6): (Ipv4Addr, Ipv6Addr)) -> Vec<IpAddr> {
    vec![v4.into(), v6.into()]
}

type Target = StaticCompressor<Vec<u8>>;

/// `Ok(None)`: no OPT record; `Some(true)`: a version we speak; an error: more than one, or unreadable records.
fn edns(message: &Message<&[u8]>) -> Result<Option<bool>, ()> {
    let (_, answer, authority, additional) = message.sections().map_err(drop)?;
    for record in answer.chain(authority) {
        record.map_err(drop)?;
    }
    let mut found = None;
    for record in additional {
        let record = record.map_err(drop)?;
        if record.rtype() == Rtype::OPT {
            // RFC 6891 §6.1.3: the version is the third octet of the TTL field.
            let version = record.ttl().as_secs() >> 16 & 0xff;
            if found.replace(version == 0).is_some() {
                return Err(());
            }
        }
    }
    Ok(found)
}

fn asked(qname: &ParsedName<&[u8]>) -> Asked {
    let text = qname.to_string();
    if let Some(index) = reverse_index(&text) {
        return Asked::Reverse(index);
    }
    // A dot or a control character inside a label comes out escaped, and no name of ours has a backslash.
    match Name::parse(&text) {
        Ok(name) => Asked::Name(name),
        Err(_) => Asked::Invalid(text),
    }
}

/// The index behind `d.c.b.a.in-addr.arpa` or 32 nibbles under `ip6.arpa`, where it lies in a pool of ours.
fn reverse_index(text: &str) -> Option<u32> {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    if let Some(v4) = text.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = v4.split('.').rev().map(|l| l.parse().ok()).collect::<Option<_>>()?;
        let octets: [u8; 4] = octets.try_into().ok()?;
        return virt::index(Ipv4Addr::from(octets).into());
    }
    let v6 = text.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for label in v6.rsplit('.') {
        let nibble = (label.len() == 1).then(|| u128::from_str_radix(label, 16).ok())??;
        bits = bits.checked_shl(4)? | nibble;
        count += 1;
    }
    if count != 32 {
        return None;
    }
    virt::index(Ipv6Addr::from(bits).into())
}

/// A reply with the question in it; an SOA record where there is no answer (RFC 2308), OPT where the query had one.
fn reply(
    message: &Message<&[u8]>,
    edns: bool,
    rcode: Rcode,
    records: impl FnOnce(&mut AnswerBuilder<Target>) -> Option<()>,
) -> Option<Vec<u8>> {
    let builder = MessageBuilder::from_target(StaticCompressor::new(Vec::with_capacity(512))).ok()?;
    let mut answer = builder.start_answer(message, rcode).ok()?;
    answer.header_mut().set_ra(true);
    records(&mut answer)?;
    let empty = answer.counts().ancount() == 0;
    let mut authority = answer.authority();
    if empty && matches!(rcode, Rcode::NOERROR | Rcode::NXDOMAIN) {
        authority.push((Wire::root_slice(), NEGATIVE_TTL, soa()?)).ok()?;
    }
    let mut additional = authority.additional();
    if edns {
        additional
            .opt(|opt| {
                opt.set_udp_payload_size(UDP_SIZE);
                Ok(())
            })
            .ok()?;
    }
    Some(finish(additional))
}

fn finish(builder: AdditionalBuilder<Target>) -> Vec<u8> {
    builder.finish().into_target()
}

/// The upper bits of an extended code, which live in the TTL field of the OPT record at the end of the message.
fn extended(mut reply: Vec<u8>, code: OptRcode) -> Vec<u8> {
    // name 1, type 2, class 2, then the TTL field's first octet; an OPT record without options is 11 octets long.
    if let Some(at) = reply.len().checked_sub(11 - 5) {
        reply[at] = (code.to_int() >> 4) as u8;
    }
    reply
}

/// Header only: what follows it could not be read.
fn bare(message: &Message<&[u8]>, rcode: Rcode) -> Option<Vec<u8>> {
    let mut builder = MessageBuilder::from_target(StaticCompressor::new(Vec::with_capacity(12))).ok()?;
    let asked = message.header();
    let header = builder.header_mut();
    header.set_id(asked.id());
    header.set_qr(true);
    header.set_opcode(asked.opcode());
    header.set_rd(asked.rd());
    header.set_ra(true);
    header.set_rcode(rcode);
    Some(finish(builder.additional()))
}

/// We speak for the whole tree: nobody else is asked.
fn soa() -> Option<Soa<Wire<Vec<u8>>>> {
    let server: Wire<Vec<u8>> = "terok.internal".parse().ok()?;
    let mailbox: Wire<Vec<u8>> = "nobody.invalid".parse().ok()?;
    let hour = Ttl::from_hours(1);
    Some(Soa::new(server.to_name(), mailbox.to_name(), Serial(1), hour, hour, hour, NEGATIVE_TTL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is known of `api.example.com` at index 300 and `localhost`; `busy.example` is out of budget.
    fn known(asked: &Asked) -> Known {
        match asked {
            Asked::Name(name) => match name.as_str() {
                "api.example.com" => Known::Virtual(300),
                "localhost" => Known::Loopback,
                "busy.example" => Known::NotNow,
                _ => Known::Nothing,
            },
            Asked::Reverse(300) => Known::Pointer("api.example.com".parse().unwrap()),
            _ => Known::Nothing,
        }
    }

    /// The reply, and what was asked or why nothing was.
    fn answer(query: &[u8], ipv6: bool) -> (Option<Vec<u8>>, Result<Asked, &'static str>) {
        match read(query) {
            Received::Question(question) => {
                (question.reply(&known(question.asked()), ipv6), Ok(question.asked().clone()))
            }
            Received::Refused(why, reply) => (reply, Err(why)),
            Received::Nothing => (None, Err("")),
        }
    }

    fn query(name: &str, rtype: Rtype) -> Vec<u8> {
        let mut question = MessageBuilder::new_vec().question();
        question.header_mut().set_id(0x1234);
        question.header_mut().set_rd(true);
        question.push((name.parse::<Wire<Vec<u8>>>().unwrap(), rtype)).unwrap();
        question.finish()
    }

    fn ask(query: &[u8]) -> (Message<Vec<u8>>, Result<Asked, &'static str>) {
        let (reply, asked) = answer(query, true);
        let reply = reply.unwrap();
        assert!(reply.len() <= 512, "{} octets", reply.len());
        (Message::from_octets(reply).unwrap(), asked)
    }

    /// The reply to a question for a name of which this is known.
    fn told(query: &[u8], known: &Known) -> Message<Vec<u8>> {
        let Received::Question(question) = read(query) else { panic!("no question") };
        let reply = question.reply(known, true).unwrap();
        assert!(reply.len() <= 512, "{} octets", reply.len());
        Message::from_octets(reply).unwrap()
    }

    fn first<'a, D: domain::base::rdata::ParseRecordData<'a, Vec<u8>>>(reply: &'a Message<Vec<u8>>) -> D {
        reply.answer().unwrap().limit_to::<D>().next().unwrap().unwrap().into_data()
    }

    #[test]
    fn an_allowed_name_has_a_virtual_address_in_both_families() {
        let (reply, _) = ask(&query("api.example.com", Rtype::A));
        assert_eq!((reply.header().id(), reply.header().rcode()), (0x1234, Rcode::NOERROR));
        assert!(reply.header().qr() && reply.header().ra() && reply.header().rd());
        assert_eq!(first::<A>(&reply).addr(), virt::addresses(300).0);
        let (reply, _) = ask(&query("api.example.com", Rtype::AAAA));
        assert_eq!(first::<Aaaa>(&reply).addr(), virt::addresses(300).1);
    }

    #[test]
    fn real_addresses_are_told_by_family_and_for_as_long_as_they_stand() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let known = Known::Real(vec![ip("192.0.2.1"), ip("2001:db8::1"), ip("192.0.2.2")], 17);
        let reply = told(&query("api.example.com", Rtype::A), &known);
        let records: Vec<_> = reply.answer().unwrap().limit_to::<A>().map(Result::unwrap).collect();
        assert_eq!(
            records.iter().map(|r| r.data().addr().into()).collect::<Vec<IpAddr>>(),
            [ip("192.0.2.1"), ip("192.0.2.2")]
        );
        assert!(records.iter().all(|r| r.ttl() == Ttl::from_secs(17)));
        let reply = told(&query("api.example.com", Rtype::AAAA), &known);
        assert_eq!(first::<Aaaa>(&reply).addr(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
        for rtype in [Rtype::HTTPS, Rtype::SVCB, Rtype::TXT, Rtype::ANY, Rtype::PTR] {
            let reply = told(&query("api.example.com", rtype), &known);
            assert_eq!(
                (reply.header().rcode(), reply.header_counts().ancount()),
                (Rcode::NOERROR, 0),
                "{rtype}"
            );
        }
    }

    #[test]
    fn the_longest_name_leaves_room_for_every_address() {
        let long = [["a"; 63].concat(), ["b"; 63].concat(), ["c"; 63].concat(), ["d"; 61].concat()].join(".");
        let v6 = |n: usize| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n as u16]);
        let known = Known::Real((0..40).map(v6).collect(), 1);
        let mut additional = {
            let mut question = MessageBuilder::new_vec().question();
            question.push((long.parse::<Wire<Vec<u8>>>().unwrap(), Rtype::AAAA)).unwrap();
            question.additional()
        };
        additional.opt(|_| Ok(())).unwrap();
        let reply = told(&additional.finish(), &known);
        assert_eq!(usize::from(reply.header_counts().ancount()), ADDRESSES);
    }

    #[test]
    fn what_cannot_be_found_out_is_a_failure_and_what_may_change_is_kept_for_a_second() {
        let query = query("db", Rtype::A);
        let reply = told(&query, &Known::Failed);
        assert_eq!((reply.header().rcode(), reply.header_counts().nscount()), (Rcode::SERVFAIL, 0));
        let reply = told(&query, &Known::Provisional(300));
        let record = reply.answer().unwrap().next().unwrap().unwrap();
        assert_eq!(record.ttl(), NEGATIVE_TTL);
    }

    #[test]
    fn without_ipv6_no_ipv6_address_is_given_out() {
        for name in ["api.example.com", "localhost"] {
            let reply = answer(&query(name, Rtype::AAAA), false).0.unwrap();
            let reply = Message::from_octets(reply).unwrap();
            assert_eq!(
                (reply.header().rcode(), reply.header_counts().ancount()),
                (Rcode::NOERROR, 0),
                "{name}"
            );
        }
    }

    #[test]
    fn an_unlisted_name_does_not_exist_and_the_refusal_may_be_kept_for_a_second() {
        let (reply, _) = ask(&query("evil.example", Rtype::A));
        assert_eq!(reply.header().rcode(), Rcode::NXDOMAIN);
        let soa = reply.authority().unwrap().next().unwrap().unwrap();
        assert_eq!((soa.rtype(), soa.ttl()), (Rtype::SOA, NEGATIVE_TTL));
    }

    #[test]
    fn other_types_of_an_allowed_name_are_empty() {
        for rtype in [Rtype::HTTPS, Rtype::SVCB, Rtype::TXT, Rtype::MX, Rtype::NS, Rtype::ANY] {
            let (reply, _) = ask(&query("api.example.com", rtype));
            assert_eq!(reply.header().rcode(), Rcode::NOERROR, "{rtype}");
            assert_eq!(reply.header_counts().ancount(), 0, "{rtype}");
        }
    }

    #[test]
    fn the_question_comes_back_in_the_case_it_was_asked_in() {
        let asked = query("ApI.exAMPle.coM", Rtype::A);
        let (reply, read) = ask(&asked);
        assert_eq!(reply.as_slice()[12..29], asked[12..29]);
        assert_eq!(read, Ok(Asked::Name("api.example.com".parse().unwrap())));
        assert_eq!(reply.header_counts().ancount(), 1);
    }

    #[test]
    fn names_over_budget_are_refused_and_localhost_is_loopback() {
        assert_eq!(ask(&query("busy.example", Rtype::A)).0.header().rcode(), Rcode::REFUSED);
        let (reply, _) = ask(&query("localhost", Rtype::AAAA));
        assert_eq!(first::<Aaaa>(&reply).addr(), Ipv6Addr::LOCALHOST);
    }

    #[test]
    fn a_virtual_address_has_a_reverse_name() {
        let (v4, v6) = virt::addresses(300);
        let [a, b, c, d] = v4.octets();
        let nibbles: Vec<String> = v6
            .octets()
            .iter()
            .rev()
            .flat_map(|o| [format!("{:x}", o & 15), format!("{:x}", o >> 4)])
            .collect();
        for name in [format!("{d}.{c}.{b}.{a}.in-addr.arpa"), format!("{}.ip6.arpa", nibbles.join("."))] {
            let (reply, _) = ask(&query(&name, Rtype::PTR));
            let ptr: Ptr<ParsedName<&[u8]>> = first(&reply);
            assert_eq!(ptr.ptrdname().to_string(), "api.example.com", "{name}");
        }
        assert_eq!(ask(&query("1.0.0.10.in-addr.arpa", Rtype::PTR)).0.header().rcode(), Rcode::NXDOMAIN);
    }

    #[test]
    fn edns_is_answered_and_a_later_version_is_badvers() {
        let with_opt = |version| {
            let mut additional = MessageBuilder::from_target(query("api.example.com", Rtype::A))
                .map(|_| ())
                .ok()
                .map(|()| {
                    let mut question = MessageBuilder::new_vec().question();
                    question.push(("api.example.com".parse::<Wire<Vec<u8>>>().unwrap(), Rtype::A)).unwrap();
                    question.additional()
                })
                .unwrap();
            additional
                .opt(|opt| {
                    opt.set_udp_payload_size(4096);
                    opt.set_version(version);
                    Ok(())
                })
                .unwrap();
            additional.finish()
        };
        let (reply, _) = ask(&with_opt(0));
        assert_eq!(reply.opt().unwrap().udp_payload_size(), UDP_SIZE);
        assert_eq!(reply.header_counts().ancount(), 1);
        let (reply, asked) = ask(&with_opt(1));
        assert_eq!(reply.opt_rcode(), OptRcode::BADVERS);
        assert_eq!(reply.header_counts().ancount(), 0);
        assert_eq!(asked, Err("edns version"));
    }

    #[test]
    fn what_is_no_single_question_is_refused_without_a_look_up() {
        let mut none = query("a.example", Rtype::A);
        none[5] = 0;
        let mut two = query("a.example", Rtype::A);
        two[5] = 2;
        let mut update = query("a.example", Rtype::A);
        update[2] |= 5 << 3;
        let short = query("a.example", Rtype::A)[..20].to_vec();
        let cases =
            [(none, Rcode::FORMERR), (two, Rcode::FORMERR), (update, Rcode::NOTIMP), (short, Rcode::FORMERR)];
        for (bytes, rcode) in cases {
            let (reply, asked) = ask(&bytes);
            assert_eq!(reply.header().rcode(), rcode);
            assert!(asked.is_err());
        }
        let mut reply = query("a.example", Rtype::A);
        reply[2] |= 0x80;
        assert!(answer(&reply, true).0.is_none());
        assert!(answer(&reply[..11], true).0.is_none());
    }

    #[test]
    fn labels_with_dots_or_controls_in_them_are_no_name() {
        let mut dotted = query("api-example.com", Rtype::A);
        let dash = dotted.iter().position(|&b| b == b'-').unwrap();
        for octet in [b'.', 0, b'\n', b' ', 0xff] {
            dotted[dash] = octet;
            let (reply, asked) = ask(&dotted);
            assert_eq!(reply.header().rcode(), Rcode::NXDOMAIN);
            assert!(matches!(asked, Ok(Asked::Invalid(_))), "{asked:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let reply = answer(&bytes, true).0;
            prop_assert!(reply.is_none_or(|reply| reply.len() <= 512));
        }

        #[test]
        fn a_damaged_query_is_survived(at in 0usize..60, to in any::<u8>()) {
            let mut bytes = query("some.long.name.api.example.com", Rtype::AAAA);
            let at = at % bytes.len();
            bytes[at] = to;
            let reply = answer(&bytes, true).0;
            prop_assert!(reply.is_none_or(|reply| reply.len() <= 512));
        }
    }
}

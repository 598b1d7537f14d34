//! One DNS question into one reply: pure in the bytes and in what is known of the name. No reply needs more than the
//! 512 octets that every client takes (RFC 1035 §4.2.1), so none is ever truncated.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder};
use domain::base::{
    Message, MessageBuilder, Name as Wire, ParsedName, Serial, StaticCompressor, ToName, Ttl,
};
use domain::rdata::{A, Aaaa, Ptr, Soa};
use std::net::{Ipv4Addr, Ipv6Addr};
use terok_policy::judge::Reason;
use terok_policy::{Name, virt};

/// How long a client may keep an answer. A name keeps its address, so this only bounds a client's stale belief that a
/// name it may no longer reach exists.
const TTL: Ttl = Ttl::from_secs(60);
/// How long a client may keep a refusal: a name that an operator allows works at the next try (RFC 2308).
const NEGATIVE_TTL: Ttl = Ttl::from_secs(1);
/// The datagram size we state (DNS flag day 2020).
const UDP_SIZE: u16 = 1232;

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It has this virtual address.
    Virtual(u32),
    /// `localhost` (RFC 6761 §6.3).
    Loopback,
    /// It does not exist for this container.
    Nothing,
    /// It would be answered, but not now: REFUSED.
    NotNow,
}

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

/// The source of names: every question with a name in it is looked up exactly once.
pub trait Names {
    /// What is known of `asked`; refusals are recorded by the callee.
    fn look_up(&mut self, asked: &Asked, rtype: &str) -> Known;
    /// The name that has this address.
    fn reverse(&mut self, index: u32) -> Option<Name>;
    /// Whether the container has IPv6; an address it cannot use is not given out.
    fn ipv6(&self) -> bool;
    /// A message that is no question of ours is refused.
    fn refused(&mut self, why: &str);
}

/// The reason for the audit line of a message we do not answer.
pub const BAD: Reason = Reason::BadDns;

/// The reply to `query`; `None` where an answer would only help to reflect traffic: no header, or itself a reply.
pub fn answer(query: &[u8], names: &mut impl Names) -> Option<Vec<u8>> {
    let message = Message::from_octets(query).ok()?;
    let header = message.header();
    if header.qr() {
        names.refused("a reply");
        return None;
    }
    if header.opcode() != Opcode::QUERY {
        names.refused("opcode");
        return bare(&message, Rcode::NOTIMP);
    }
    if message.header_counts().qdcount() != 1 {
        names.refused("question count");
        return bare(&message, Rcode::FORMERR);
    }
    let (Ok(question), Ok(edns)) = (message.sole_question(), edns(&message)) else {
        names.refused("malformed");
        return bare(&message, Rcode::FORMERR);
    };
    if edns == Some(false) {
        names.refused("edns version");
        return reply(&message, edns, Rcode::NOERROR, |_| Some(())).map(|r| extended(r, OptRcode::BADVERS));
    }
    if question.qclass() != Class::IN {
        names.refused("class");
        return reply(&message, edns, Rcode::REFUSED, |_| Some(()));
    }
    let (qname, qtype) = (question.qname(), question.qtype());
    let asked = asked(qname);
    let known = names.look_up(&asked, &qtype.to_string());
    let records = |answer: &mut AnswerBuilder<Target>| match (known, qtype) {
        (Known::Virtual(index), Rtype::A) => answer.push((qname, TTL, A::new(virt::addresses(index).0))).ok(),
        (Known::Virtual(index), Rtype::AAAA) if names.ipv6() => {
            answer.push((qname, TTL, Aaaa::new(virt::addresses(index).1))).ok()
        }
        (Known::Loopback, Rtype::A) => answer.push((qname, TTL, A::new(Ipv4Addr::LOCALHOST))).ok(),
        (Known::Loopback, Rtype::AAAA) if names.ipv6() => {
            answer.push((qname, TTL, Aaaa::new(Ipv6Addr::LOCALHOST))).ok()
        }
        (Known::Virtual(index), Rtype::PTR) if matches!(asked, Asked::Reverse(_)) => {
            let name: Wire<Vec<u8>> = names.reverse(index)?.as_str().parse().ok()?;
            answer.push((qname, TTL, Ptr::new(name))).ok()
        }
        _ => Some(()),
    };
    let rcode = match known {
        Known::Virtual(_) | Known::Loopback => Rcode::NOERROR,
        Known::Nothing => Rcode::NXDOMAIN,
        Known::NotNow => Rcode::REFUSED,
    };
    reply(&message, edns, rcode, records)
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
    edns: Option<bool>,
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
    if edns.is_some() {
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

    /// Knows `api.example.com` at index 300 and `localhost`; `busy.example` is out of budget.
    #[derive(Default)]
    struct Book {
        asked: Vec<Asked>,
        refused: Vec<String>,
        without_ipv6: bool,
    }

    impl Names for Book {
        fn look_up(&mut self, asked: &Asked, _: &str) -> Known {
            self.asked.push(asked.clone());
            match asked {
                Asked::Name(name) => match name.as_str() {
                    "api.example.com" => Known::Virtual(300),
                    "localhost" => Known::Loopback,
                    "busy.example" => Known::NotNow,
                    _ => Known::Nothing,
                },
                Asked::Reverse(300) => Known::Virtual(300),
                _ => Known::Nothing,
            }
        }
        fn reverse(&mut self, index: u32) -> Option<Name> {
            (index == 300).then(|| "api.example.com".parse().unwrap())
        }
        fn ipv6(&self) -> bool {
            !self.without_ipv6
        }
        fn refused(&mut self, why: &str) {
            self.refused.push(why.to_owned());
        }
    }

    fn query(name: &str, rtype: Rtype) -> Vec<u8> {
        let mut question = MessageBuilder::new_vec().question();
        question.header_mut().set_id(0x1234);
        question.header_mut().set_rd(true);
        question.push((name.parse::<Wire<Vec<u8>>>().unwrap(), rtype)).unwrap();
        question.finish()
    }

    fn ask(query: &[u8]) -> (Message<Vec<u8>>, Book) {
        let mut book = Book::default();
        let reply = answer(query, &mut book).unwrap();
        assert!(reply.len() <= 512, "{} octets", reply.len());
        (Message::from_octets(reply).unwrap(), book)
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
    fn without_ipv6_no_ipv6_address_is_given_out() {
        let mut book = Book { without_ipv6: true, ..Book::default() };
        for name in ["api.example.com", "localhost"] {
            let reply = answer(&query(name, Rtype::AAAA), &mut book).unwrap();
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
        let (reply, book) = ask(&asked);
        assert_eq!(reply.as_slice()[12..29], asked[12..29]);
        assert_eq!(book.asked, [Asked::Name("api.example.com".parse().unwrap())]);
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
        let (reply, book) = ask(&with_opt(1));
        assert_eq!(reply.opt_rcode(), OptRcode::BADVERS);
        assert_eq!(reply.header_counts().ancount(), 0);
        assert!(book.asked.is_empty());
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
            let (reply, book) = ask(&bytes);
            assert_eq!(reply.header().rcode(), rcode);
            assert!(book.asked.is_empty() && book.refused.len() == 1);
        }
        let mut reply = query("a.example", Rtype::A);
        reply[2] |= 0x80;
        assert!(answer(&reply, &mut Book::default()).is_none());
        assert!(answer(&reply[..11], &mut Book::default()).is_none());
    }

    #[test]
    fn labels_with_dots_or_controls_in_them_are_no_name() {
        let mut dotted = query("api-example.com", Rtype::A);
        let dash = dotted.iter().position(|&b| b == b'-').unwrap();
        for octet in [b'.', 0, b'\n', b' ', 0xff] {
            dotted[dash] = octet;
            let (reply, book) = ask(&dotted);
            assert_eq!(reply.header().rcode(), Rcode::NXDOMAIN);
            assert!(matches!(book.asked[..], [Asked::Invalid(_)]), "{:?}", book.asked);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let reply = answer(&bytes, &mut Book::default());
            prop_assert!(reply.is_none_or(|reply| reply.len() <= 512));
        }

        #[test]
        fn a_damaged_query_is_survived(at in 0usize..60, to in any::<u8>()) {
            let mut bytes = query("some.long.name.api.example.com", Rtype::AAAA);
            let at = at % bytes.len();
            bytes[at] = to;
            let reply = answer(&bytes, &mut Book::default());
            prop_assert!(reply.is_none_or(|reply| reply.len() <= 512));
        }
    }
}

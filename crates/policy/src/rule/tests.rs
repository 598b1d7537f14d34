//! Rules as they are written, refused and printed.

use super::*;
use proptest::prelude::*;

fn canonical(text: &str) -> String {
    text.parse::<Rule>().map_or_else(|error| panic!("{error}"), |rule| rule.to_string())
}

#[test]
fn every_form_of_the_grammar_has_one_shortest_spelling() {
    for (text, shortest) in [
        ("api.example.com", "api.example.com"),
        ("API.Example.com.:443+80", "api.example.com"),
        ("api.example.com:443", "api.example.com:443"),
        ("*.example.com:443/tcp", "*.example.com:443"),
        ("example.com:8000-8010+22", "example.com:22+8000-8010"),
        ("example.com:80+81+82", "example.com:80-82"),
        ("example.com:*", "example.com:*"),
        ("example.com:53/udp", "example.com:53/udp"),
        ("example.com:443   direct", "example.com:443 direct"),
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1/32:*", "192.0.2.1:*"),
        ("[2001:db8::1]:1-852+854-65535", "[2001:db8::1]:1-852+854-65535"),
        ("any:0-852+854-65535", "any"),
        ("10.0.0.0/8:22", "10.0.0.0/8:22"),
        ("10.0.0.0/8/udp", "10.0.0.0/8/udp"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8:0::1]:443", "[2001:db8::1]:443"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("[2001:db8::/32]:22", "[2001:db8::/32]:22"),
        ("2001:db8::/32:22", "[2001:db8::/32]:22"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.0/120]:22", "192.0.2.0/24:22"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("host:8080", "host:8080"),
        ("host:*", "host:*"),
        ("any", "any"),
        ("any:443", "any:443"),
    ] {
        assert_eq!(canonical(text), shortest, "{text}");
    }
}

#[test]
fn a_name_without_ports_means_80_and_443_and_an_address_every_port_but_that_of_dns_over_tls() {
    assert_eq!("a.example".parse::<Rule>().unwrap().ports, Ports::web());
    assert_eq!("*.a.example".parse::<Rule>().unwrap().ports, Ports::web());
    for text in ["192.0.2.0/24", "2001:db8::1/udp", "any"] {
        let ports = text.parse::<Rule>().unwrap().ports;
        assert_eq!(
            (ports.contains(852), ports.contains(853), ports.contains(854)),
            (true, false, true),
            "{text}"
        );
    }
    for text in ["192.0.2.0/24:*", "192.0.2.0/24:853", "any:800-900"] {
        assert!(text.parse::<Rule>().unwrap().ports.contains(853), "{text}");
    }
    assert!(Rule::parse_deny("192.0.2.0/24").unwrap().ports.contains(853));
}

#[test]
fn a_denied_name_without_ports_is_denied_on_every_port() {
    let rule = Rule::parse_deny("a.example").unwrap();
    assert_eq!(rule.ports, Ports::all());
    assert_eq!(rule.to_deny_string(), "a.example");
    let web = Rule::parse_deny("a.example:80+443").unwrap();
    assert_eq!(web.to_deny_string(), "a.example:80+443");
    assert_eq!(Rule::parse_deny("host").unwrap().to_string(), "host:*");
}

#[test]
fn what_is_no_rule_is_refused_with_what_to_write_instead() {
    for (text, hint) in [
        ("", "TARGET"),
        ("a b c", "TARGET"),
        ("a.example indirect", "only `direct`"),
        ("https://a.example/x", "write the host name alone: a.example"),
        ("a.example/path", "write the host name alone: a.example"),
        ("a.example/sctp", "/tcp or /udp"),
        ("a.example:0", "no port"),
        ("a.example:65536", "no port"),
        ("a.example:", "no port"),
        ("a.example:+80", "no port"),
        ("a.example:80-", "no port"),
        ("a.example:90-80", "write 80-90"),
        ("a.example:80:90", "brackets"),
        ("2001:db8::1:2:3:4:5:6:443", "brackets"),
        ("10.0.0.0/+8", "no prefix length"),
        ("[2001:db8::]/32:443", "[ADDRESS/PREFIX]:PORTS"),
        ("[192.0.2.1]:80", "not an IPv6"),
        ("[2001:db8::1", "without `]`"),
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("10.0.0.0/33", "0 to 32"),
        ("10.0.0.0/08", "0 to 32"),
        ("127.0.0.1:80", "host:PORT"),
        ("127.1:80", "not a host name"),
        ("0x7f.1", "not a host name"),
        ("[::1]:80", "host:PORT"),
        ("[::ffff:127.0.0.1]:80", "host:PORT"),
        ("localhost:80", "host:PORT"),
        ("host.terok.internal:80", "host:PORT"),
        ("198.18.3.4", "terok's own"),
        ("host", "host:PORT"),
        ("Host:80", "write `host`"),
        ("any.", "write `any`"),
        ("*", "`any`"),
        ("*.*.example", "whole labels"),
        ("a*.example", "whole labels"),
        ("any direct", "is for names"),
        ("192.0.2.1 direct", "is for names"),
        ("fe80::1%eth0", "brackets"),
    ] {
        let error = text.parse::<Rule>().expect_err(text);
        assert!(error.reason.contains(hint), "{text}: {}", error.reason);
    }
}

#[test]
fn what_is_refused_cannot_write_to_the_terminal() {
    for place in [
        "a\u{1b}[2J",
        "a\0.example/8",
        "http://a\u{7}",
        "a:\u{1b}",
        "a/\u{1b}",
        "[\u{1b}]",
        "[::1]\u{1b}",
        "a \u{1b}",
    ] {
        let error = place.parse::<Rule>().expect_err(place).to_string();
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
}

#[test]
fn blocks_know_their_first_and_last_address() {
    let net = |text: &str| match text.parse::<Rule>().unwrap().target {
        Target::Net(net) => net,
        other => panic!("{other:?}"),
    };
    let range = |text| {
        let (first, last) = net(text).range();
        format!("{first} {last}")
    };
    assert_eq!(range("10.0.0.0/8"), "10.0.0.0 10.255.255.255");
    assert_eq!(range("0.0.0.0/0"), "0.0.0.0 255.255.255.255");
    assert_eq!(range("192.0.2.7"), "192.0.2.7 192.0.2.7");
    assert_eq!(range("2001:db8::/127"), "2001:db8:: 2001:db8::1");
    assert!(net("10.0.0.0/8").contains("::ffff:10.1.2.3".parse().unwrap()));
    assert!(!net("::/0").contains("10.1.2.3".parse().unwrap()));
}

pub(crate) fn ports() -> impl Strategy<Value = Ports> {
    let range = (1u16.., 0u16..200).prop_map(|(from, n)| (from, from.saturating_add(n)));
    prop_oneof![
        Just(Ports::all()),
        Just(Ports::web()),
        proptest::collection::vec(range, 1..4).prop_map(Ports::new)
    ]
}

#[test]
fn what_is_left_of_every_port_without_one_can_be_read_again() {
    let mut rule = Rule::parse_deny("a.example").unwrap();
    rule.ports = rule.ports.without(&Ports::web());
    assert_eq!(rule.to_string(), "a.example:0-79+81-442+444-65535");
    assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
}

proptest! {
    #[test]
    fn a_rule_survives_printing_and_parsing(text in rule_text()) {
        if let Ok(rule) = text.parse::<Rule>() {
            prop_assert_eq!(&rule.to_string().parse::<Rule>().unwrap(), &rule);
            prop_assert_eq!(&Rule::parse_deny(&rule.to_deny_string()).unwrap(), &rule);
        }
    }

    #[test]
    fn ports_without_others_are_the_difference(a in ports(), b in ports(), port: u16) {
        prop_assert_eq!(a.without(&b).contains(port), a.contains(port) && !b.contains(port));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,60}") {
        let _ = text.parse::<Rule>();
        let _ = Rule::parse_deny(&text);
    }
}

fn rule_text() -> impl Strategy<Value = String> {
    let name = "(\\*\\.)?[a-zü]{1,5}(\\.[a-z0-9]{1,4}){0,2}";
    let v4 = (any::<u32>(), 0u8..=33)
        .prop_map(|(ip, p)| format!("{}/{p}", mask(IpAddr::V4(ip.into()), p.min(32))));
    let v6 = (any::<u128>(), 0u8..=129)
        .prop_map(|(ip, p)| format!("{}/{p}", mask(IpAddr::V6(ip.into()), p.min(128))));
    let v6_ports =
        (any::<u128>(), 0u8..=128).prop_map(|(ip, p)| format!("[{}/{p}]", mask(IpAddr::V6(ip.into()), p)));
    let target = prop_oneof![name, v4, v6, v6_ports, "host|any", "[a-f0-9:./*\\[\\]]{1,20}"];
    let ports =
        prop_oneof![Just(String::new()), Just(":*".to_owned()), "(:[0-9]{1,5}([+-][0-9]{1,5}){0,3})?"];
    (target, ports, "(/udp|/tcp)?", "( direct)?").prop_map(|(t, p, proto, d)| format!("{t}{p}{proto}{d}"))
}

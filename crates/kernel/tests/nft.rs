//! The table in the kernel: what was asked for and nothing else, held against the nft tool and libnftnl.
#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod support;

use nix::errno::Errno;
use std::time::{Duration, Instant};
use support::card::card;
use support::table::{PORTS, addresses, for_seconds, sealed, set, tcp};
use support::{has, in_netns, libnftnl, run};
use terok_kernel::nft::{self, NftError, NftSocket, Object};
use terok_policy::rule::Proto;
use terok_policy::ruleset::{ChainKind, Element, Family, Hook, Match, NftRule, Ruleset, Statement};

/// The same table in nft's language.
const SEALED: &str = include_str!("sealed.nft");
const CARD: &str = include_str!("card.nft");

/// Tables of ours, each with the same in nft's language.
fn tables() -> [(Ruleset, &'static str); 2] {
    [(sealed(PORTS), SEALED), (card(), CARD)]
}

/// Without ends: the time of an element runs on while a slow machine does something else.
fn lasting(mut ruleset: Ruleset) -> Ruleset {
    for element in ruleset.sets.iter_mut().flat_map(|set| &mut set.elements) {
        element.timeout = None;
    }
    ruleset
}

/// Loads the sets until they read back as they should, which on a machine that stood still meanwhile they do not.
#[track_caller]
fn put(nft: &NftSocket, wanted: &Ruleset) {
    let mut read = Ok(());
    for _ in 0..5 {
        nft.replace_sets(&wanted.sets).unwrap();
        read = nft.verify(wanted);
        if read.is_ok() {
            break;
        }
    }
    read.unwrap();
}

fn loaded(ruleset: &Ruleset) -> NftSocket {
    let nft = nft::open().unwrap();
    nft.load(ruleset).unwrap();
    nft
}

fn difference(nft: &NftSocket, wanted: &Ruleset) -> String {
    match nft.verify(wanted) {
        Err(NftError::Differs(what)) => what,
        other => panic!("{other:?} is no difference"),
    }
}

/// Like `assert_eq`, but prints the first difference only.
fn assert_same(ours: &[String], theirs: &[String]) {
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn a_table_loads_and_reads_back_as_it_was_asked_for() {
    for (wanted, _) in tables() {
        in_netns(|| {
            let nft = loaded(&wanted);
            nft.verify(&lasting(wanted.clone()))
                .unwrap_or_else(|e| assert!(e.to_string().contains("timeout"), "{e}"));
            put(&nft, &wanted);
        });
    }
}

#[test]
fn nft_lists_our_table_as_it_lists_its_own() {
    if !has("nft") {
        return;
    }
    let list = || {
        let text = run("nft", &["list", "ruleset"], "").unwrap();
        // How long an element still lives is not what is compared.
        text.lines().map(|line| line.split(" expires ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (ours, text) in tables() {
        in_netns(|| {
            run("nft", &["-f", "-"], text).unwrap();
            let theirs = list();
            run("nft", &["delete", "table", "inet", "terok"], "").unwrap();
            loaded(&ours);
            assert_same(&list(), &theirs);
            assert!(theirs.len() > 40, "{theirs:#?}");
        });
    }
}

#[test]
fn libnftnl_reads_our_table_as_it_reads_one_of_nft() {
    if !has("nft") {
        return;
    }
    for (ours, text) in tables() {
        in_netns(|| {
            run("nft", &["-f", "-"], text).unwrap();
            let mut theirs = libnftnl::dump();
            // A no-op that nft 1.0 puts between the fields of a concatenation: it swaps the octets of one octet.
            for register in ["9", "2"] {
                let swap = format!("  [ byteorder reg {register} = hton(reg {register}, 2, 1) ]\n");
                theirs.iter_mut().for_each(|rule| *rule = rule.replace(&swap, ""));
            }
            run("nft", &["delete", "table", "inet", "terok"], "").unwrap();
            loaded(&ours);
            assert_same(&libnftnl::dump(), &theirs);
            assert!(theirs.iter().any(|rule| rule.contains("lookup reg 1 set")), "{theirs:#?}");
        });
    }
}

#[test]
fn a_table_that_nft_loaded_passes_our_comparison() {
    if !has("nft") {
        return;
    }
    for (wanted, text) in tables() {
        in_netns(|| {
            run("nft", &["-f", "-"], &plain(text)).unwrap();
            nft::open().unwrap().verify(&without_concatenations(lasting(wanted))).unwrap();
        });
    }
}

/// Without rules that look up a concatenation: nft 1.0 puts a no-op between its fields, which is a difference. And without ends.
fn plain(text: &str) -> String {
    let text = endless(text);
    let lines = text.lines().filter(|line| !(line.contains(". th ") && line.contains("port @")));
    lines.collect::<Vec<_>>().join("\n")
}

/// Without the ends of its elements.
fn endless(text: &str) -> String {
    text.replace(" timeout 600s", "").replace(" timeout 5m", "")
}

/// Likewise.
fn without_concatenations(mut ruleset: Ruleset) -> Ruleset {
    let concatenated = |m: &Match| matches!(m, Match::InSet { ports: true, .. });
    for chain in &mut ruleset.chains {
        chain.rules.retain(|rule| !rule.matches.iter().any(concatenated));
    }
    ruleset
}

/// Loads `text` with one thing replaced, which must be found to differ.
fn replaced(text: &str, from: &str, to: &str, wanted: &Ruleset) {
    assert!(text.contains(from), "{from}");
    run("nft", &["-f", "-"], &text.replace(from, to)).unwrap();
    let found = difference(&nft::open().unwrap(), wanted);
    assert!(found.starts_with("rule "), "{to}: {found}");
    run("nft", &["delete", "table", "inet", "terok"], "").unwrap();
}

#[test]
fn every_difference_is_noticed() {
    type Alteration = (&'static str, fn(&mut Ruleset));
    let alterations: [Alteration; 14] = [
        ("chain output: has policy 0x1 instead of 0x0", |r| r.chains[1].drop = false),
        ("chain input: has priority", |r| r.chains[2].priority = 10),
        ("chain input: has hook", |r| r.chains[2].hook = Hook::Output),
        ("chain nat_output: has another type", |r| {
            r.chains[0] = terok_policy::ruleset::Chain {
                kind: ChainKind::Filter,
                rules: vec![],
                ..r.chains[0].clone()
            };
        }),
        ("chain forward is missing", |r| drop(r.chains.pop())),
        ("rule 22 of chain output is missing", |r| drop(r.chains[1].rules.pop())),
        ("rule 1 of chain forward does not belong here", |r| {
            r.chains[3].rules.push(NftRule { matches: vec![], statements: vec![Statement::Accept] });
        }),
        ("rule 1 of chain nat_output is", |r| r.chains[0].rules.swap(0, 1)),
        ("rule 3 of chain output is", |r| r.chains[1].rules[2].matches[0] = Match::InLo),
        (
            "elements of set deny4: element 203.0.113.0-203.0.113.255 protocol 6 ports 0-65535 is missing",
            |r| {
                r.sets[0].elements.clear();
            },
        ),
        ("elements of set open6: element ::-:: protocol 6 ports 1-1 does not belong here", |r| {
            r.sets[7].elements.push(tcp("::", "::", 1, 1));
        }),
        (
            "elements of set open4: element 0.0.0.0-255.255.255.255 protocol 6 ports 8000-8999 has timeout",
            |r| {
                r.sets[6].elements[0].timeout = Some(Duration::from_secs(600));
            },
        ),
        ("elements of set floor4: element 240.0.0.0-255.255.255.254 does not belong here", |r| {
            r.sets[2].elements[4] = addresses("240.0.0.0", "255.255.255.254");
        }),
        ("elements of set floor6: element", |r| r.sets[3].elements[0] = addresses("::", "::1")),
    ];
    for (expected, alter) in alterations {
        in_netns(|| {
            let wanted = lasting(sealed(PORTS));
            let mut other = wanted.clone();
            alter(&mut other);
            assert_ne!(other, wanted);
            let found = difference(&loaded(&other), &wanted);
            assert!(found.starts_with(expected), "{found:?} is not {expected:?}");
        });
    }
}

#[test]
fn what_others_did_to_the_table_is_noticed() {
    if !has("nft") {
        return;
    }
    let meddling = [
        ("add chain inet terok mine", "chain mine does not belong here"),
        ("add set inet terok mine { type mark; }", "set mine does not belong here"),
        ("add counter inet terok mine", "the nf_tables table: has objects"),
        ("add table inet terok { flags dormant; }", "the nf_tables table: has flags"),
        ("add chain inet terok output { policy accept; }", "chain output: has policy"),
        ("insert rule inet terok output accept", "rule 1 of chain output is"),
        ("add rule inet terok forward ip daddr != @floor4 accept", "rule 1 of chain forward does not"),
        ("flush chain inet terok output", "rule 1 of chain output is missing"),
        ("flush set inet terok deny6", "elements of set deny6: element"),
        ("add element inet terok allow4 { 1.1.1.1 . tcp . 443 }", "elements of set allow4: element 1.1.1.1"),
        ("add element inet terok floor4 { 11.0.0.0/8 }", "elements of set floor4: element 11.0.0.0"),
        ("delete table inet terok", "the nf_tables table does not exist"),
    ];
    for (command, expected) in meddling {
        in_netns(|| {
            let wanted = lasting(sealed(PORTS));
            let nft = loaded(&wanted);
            run("nft", &["-f", "-"], command).unwrap();
            let found = difference(&nft, &wanted);
            assert!(found.starts_with(expected), "{command}: {found:?} is not {expected:?}");
        });
    }
}

#[test]
fn a_rule_turned_round_is_not_the_same_rule() {
    if !has("nft") {
        return;
    }
    in_netns(|| {
        let wanted = lasting(sealed(PORTS));
        for (from, to) in [
            ("ip daddr @floor4 counter", "ip daddr != @floor4 counter"),
            (
                "limit rate 20/second burst 40 packets log prefix \"terok:default\"",
                "limit rate over 20/second burst 40 packets log prefix \"terok:default\"",
            ),
            ("meta iif 1 accept", "meta iif != 1 accept"),
            ("redirect to :1053", "redirect to :1053-1055"),
            ("ct state & established != 0 accept", "ct state & established == 0 accept"),
            ("tcp dport 53 redirect to :1054", "tcp sport 53 redirect to :1054"),
        ] {
            replaced(&endless(SEALED), from, to, &wanted);
        }
        let wanted = without_concatenations(lasting(card()));
        let text = plain(CARD);
        for (from, to) in [
            ("fib daddr type local accept", "fib saddr type local accept"),
            ("fib saddr type != local drop", "fib saddr type local drop"),
            ("fib daddr type local accept", "fib daddr type != local accept"),
            ("ip saddr 10.1.2.3", "ip daddr 10.1.2.3"),
            ("th sport 5353", "th dport 5353"),
            ("th dport < 61000", "th dport <= 61000"),
            ("ct direction original", "ct direction reply"),
            ("meta mark set 0x12345678", "ct mark set 0x12345678"),
            ("meta mark 0x12345678 accept", "meta mark != 0x12345678 accept"),
            ("masquerade to :61000-65535", "masquerade to :1024-65535"),
            ("masquerade to :61000-65535", "masquerade to :61000-65535 random"),
            ("ip saddr @near4", "ip daddr @near4"),
            ("meta oif != 1 meta l4proto udp", "meta iif != 1 meta l4proto udp"),
        ] {
            replaced(&text, from, to, &wanted);
        }
    });
}

#[test]
fn a_table_that_exists_is_refused_and_left_as_it_is() {
    in_netns(|| {
        let wanted = lasting(sealed(PORTS));
        let nft = loaded(&wanted);
        let Err(NftError::Refused { object, errno, .. }) =
            nft.load(&Ruleset { sets: vec![], ..wanted.clone() })
        else {
            panic!("loaded twice");
        };
        assert_eq!((object, errno), (Object::Table, Errno::EEXIST));
        nft.verify(&wanted).unwrap();
    });
}

#[test]
fn a_refused_message_is_named_and_nothing_of_its_transaction_happens() {
    in_netns(|| {
        let mut broken = lasting(sealed(PORTS));
        let lost = Match::InSet {
            end: terok_policy::ruleset::End::Destination,
            set: "nowhere",
            family: Family::V4,
            ports: true,
        };
        broken.chains[1].rules[6].matches.push(lost);
        let nft = nft::open().unwrap();
        let error = nft.load(&broken).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel refused rule 7 of chain output: ENOENT: No such file or directory"
        );
        nft.load(&lasting(sealed(PORTS))).unwrap();
    });
}

#[test]
fn an_element_that_its_set_cannot_hold_is_refused_before_the_kernel_sees_it() {
    in_netns(|| {
        let wanted = lasting(sealed(PORTS));
        let nft = loaded(&wanted);
        let bad: [(&'static str, Family, bool, Element); 5] = [
            ("allow4", Family::V4, true, tcp("::1", "::1", 1, 1)),
            ("allow4", Family::V4, true, tcp("1.1.1.2", "1.1.1.1", 1, 1)),
            ("allow4", Family::V4, true, tcp("1.1.1.1", "1.1.1.1", 2, 1)),
            ("allow4", Family::V4, true, addresses("1.1.1.1", "1.1.1.1")),
            ("floor4", Family::V4, false, for_seconds(addresses("1.1.1.1", "1.1.1.1"), 1)),
        ];
        for (name, family, ports, element) in bad {
            let error = nft.replace_sets(&[set(name, family, ports, vec![element])]).unwrap_err();
            assert!(matches!(error, NftError::Element { .. }), "{error}");
        }
        nft.verify(&wanted).unwrap();
    });
}

#[test]
fn sets_are_replaced_whole() {
    in_netns(|| {
        let mut wanted = lasting(sealed(PORTS));
        let nft = loaded(&wanted);
        // The same elements again, then others, then none.
        put(&nft, &wanted);
        wanted.sets[0].elements = vec![tcp("198.51.100.1", "198.51.100.1", 0, 65535)];
        wanted.sets[4].elements.clear();
        wanted.sets[6].elements = vec![for_seconds(tcp("0.0.0.0", "255.255.255.255", 1, 65535), 60)];
        wanted.sets[7].elements =
            vec![for_seconds(tcp("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1, 65535), 60)];
        put(&nft, &wanted);
        for s in &mut wanted.sets {
            s.elements.clear();
        }
        put(&nft, &wanted);
    });
}

#[test]
fn an_element_is_gone_when_its_time_is_over() {
    in_netns(|| {
        let mut wanted = lasting(sealed(PORTS));
        let brief = Duration::from_millis(80);
        wanted.sets[7].elements = vec![Element { timeout: Some(brief), ..tcp("::", "::", 1, 9) }];
        let nft = loaded(&wanted);
        nft.verify(&wanted).unwrap();
        wanted.sets[7].elements.clear();
        let deadline = Instant::now() + Duration::from_secs(60);
        while nft.verify(&wanted).is_err() {
            assert!(Instant::now() < deadline, "still there: {:?}", nft.verify(&wanted));
            std::thread::yield_now();
        }
    });
}

/// `count` single addresses of each family.
fn with_elements(count: u16) -> Ruleset {
    let mut wanted = lasting(sealed(PORTS));
    let one = |ip: &str| tcp(ip, ip, 443, 443);
    wanted.sets[4].elements = (0..count).map(|n| one(&format!("20.{}.{}.7", n >> 8, n & 255))).collect();
    wanted.sets[5].elements = (0..count).map(|n| one(&format!("2001:db8::{n:x}"))).collect();
    wanted
}

#[test]
fn ten_thousand_elements_of_each_family_load_and_read_back_and_are_replaced() {
    for count in [0, 1_000, 10_000] {
        in_netns(|| {
            let mut wanted = with_elements(count);
            let nft = nft::open().unwrap();
            let start = Instant::now();
            nft.load(&wanted).unwrap();
            let loaded = start.elapsed();
            nft.verify(&wanted).unwrap();
            let verified = start.elapsed() - loaded;
            if count > 0 {
                // One less, then all of them others.
                wanted.sets[5].elements.pop();
                assert!(difference(&nft, &wanted).ends_with("does not belong here"));
            }
            let start = Instant::now();
            nft.replace_sets(&wanted.sets).unwrap();
            let one_less = start.elapsed();
            nft.verify(&wanted).unwrap();
            for element in wanted.sets.iter_mut().filter(|s| s.ports).flat_map(|s| &mut s.elements) {
                element.ports = Some((Proto::Udp.into(), 1, 2));
            }
            let start = Instant::now();
            nft.replace_sets(&wanted.sets).unwrap();
            let all_others = start.elapsed();
            nft.verify(&wanted).unwrap();
            println!(
                "2 x {count} elements: load {loaded:?}, verify {verified:?}, one less {one_less:?}, all others {all_others:?}"
            );
        });
    }
}

#[test]
fn what_does_not_fit_into_one_datagram_follows_in_others() {
    in_netns(|| {
        let mut wanted = with_elements(10_000);
        let nft = nft::open().unwrap();
        nix::sys::socket::setsockopt(&nft, nix::sys::socket::sockopt::SndBuf, &60_000).unwrap();
        nft.load(&wanted).unwrap();
        nft.verify(&wanted).unwrap();
        wanted.sets[4].elements.truncate(9_000);
        wanted.sets[5].elements.clear();
        nft.replace_sets(&wanted.sets).unwrap();
        nft.verify(&wanted).unwrap();
        // Few removals, many additions.
        let many = with_elements(9_999);
        nft.replace_sets(&many.sets).unwrap();
        nft.verify(&many).unwrap();
    });
}

#[test]
fn the_generation_counts_every_transaction_and_nothing_else() {
    in_netns(|| {
        let wanted = lasting(sealed(PORTS));
        let nft = loaded(&wanted);
        let before = nft.generation().unwrap();
        nft.verify(&wanted).unwrap();
        assert_eq!(nft.generation().unwrap(), before);
        nft.replace_sets(&[set("allow4", Family::V4, true, vec![tcp("192.0.2.1", "192.0.2.1", 80, 80)])])
            .unwrap();
        assert_eq!(nft.generation().unwrap(), before + 1);
        if has("nft") {
            run("nft", &["add", "table", "inet", "other"], "").unwrap();
            assert_eq!(nft.generation().unwrap(), before + 2);
        }
    });
}

#[test]
fn every_change_of_a_table_is_news_and_the_end_of_an_element_is_not() {
    if !has("nft") {
        return;
    }
    in_netns(|| {
        let news = nft::news().unwrap();
        let quiet = || while news.drain().unwrap() {};
        let mut wanted = lasting(sealed(PORTS));
        let brief = Duration::from_millis(50);
        wanted.sets[7].elements = vec![Element { timeout: Some(brief), ..tcp("::", "::", 1, 9) }];
        let nft = loaded(&wanted);
        assert!(news.drain().unwrap());
        assert!(!news.drain().unwrap());
        wanted.sets[7].elements.clear();
        let deadline = Instant::now() + Duration::from_secs(60);
        while nft.verify(&wanted).is_err() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(!news.drain().unwrap());
        for command in [
            "add element inet terok allow4 { 1.1.1.1 . tcp . 443 }",
            "insert rule inet terok output accept",
            "add chain inet terok output { policy accept; }",
            "add table inet terok { flags dormant; }",
            "add table netdev other",
            "flush ruleset",
        ] {
            quiet();
            run("nft", &["-f", "-"], command).unwrap();
            assert!(news.drain().unwrap(), "{command}");
        }
        quiet();
        // More than the socket holds.
        let many = (0..3000).map(|n| format!("add table inet t{n}\n")).collect::<String>();
        run("nft", &["-f", "-"], &many).unwrap();
        assert!(news.drain().unwrap());
        quiet();
        assert!(!news.drain().unwrap());
    });
}

#[test]
fn a_table_is_loaded_anew_whatever_it_was() {
    if !has("nft") {
        return;
    }
    in_netns(|| {
        let wanted = lasting(sealed(PORTS));
        let nft = nft::open().unwrap();
        nft.reload(&wanted).unwrap();
        nft.verify(&wanted).unwrap();
        for command in [
            "flush ruleset",
            "add table inet terok { flags dormant; }",
            "add chain inet terok output { policy accept; }",
            "add chain inet terok mine; add rule inet terok output jump mine",
            "flush table inet terok",
        ] {
            run("nft", &["-f", "-"], &command.replace("; add", "\nadd")).unwrap();
            difference(&nft, &wanted);
            nft.reload(&wanted).unwrap();
            nft.verify(&wanted).unwrap();
        }
    });
}

#[test]
fn one_new_end_leaves_the_other_elements_alone() {
    in_netns(|| {
        let mut wanted = lasting(sealed(PORTS));
        let nft = loaded(&wanted);
        let news = nft::news().unwrap();
        let of = |n: u8, seconds| {
            for_seconds(tcp(&format!("192.0.2.{n}"), &format!("192.0.2.{n}"), 443, 443), seconds)
        };
        wanted.sets[4].elements = (0..200).map(|n| of(n, 300)).collect();
        put(&nft, &wanted);
        // The same again is no change at all, unless a second has gone by.
        let no_change = (0..50).any(|_| {
            nft.replace_sets(&wanted.sets).unwrap();
            while news.drain().unwrap() {}
            let before = nft.generation().unwrap();
            nft.replace_sets(&wanted.sets).unwrap();
            nft.generation().unwrap() == before && !news.drain().unwrap()
        });
        assert!(no_change);
        let before = nft.generation().unwrap();
        wanted.sets[4].elements[7] = of(7, 600);
        nft.replace_sets(&wanted.sets).unwrap();
        assert_eq!(nft.generation().unwrap(), before + 1);
        put(&nft, &wanted);
        wanted.sets[4].elements[7] = of(7, 60);
        assert!(
            difference(&nft, &wanted).contains("192.0.2.7-192.0.2.7 protocol 6 ports 443-443 has timeout")
        );
    });
}

#[test]
fn ranges_of_addresses_are_replaced_by_any_others() {
    in_netns(|| {
        let mut wanted = lasting(sealed(PORTS));
        let nft = loaded(&wanted);
        let lists: [&[(&str, &str)]; 8] = [
            &[("10.0.0.0", "10.0.0.0"), ("10.0.0.2", "10.0.255.255")],
            &[("10.0.0.1", "10.0.0.1"), ("10.0.0.3", "10.0.255.255")],
            &[("0.0.0.0", "255.255.255.255")],
            &[("0.0.0.0", "9.255.255.255"), ("10.0.0.0", "255.255.255.255")],
            &[("10.0.0.0", "10.0.0.255"), ("10.0.1.0", "10.0.1.255"), ("10.0.2.0", "10.0.2.255")],
            &[("10.0.0.0", "10.0.1.255"), ("10.0.2.0", "10.0.2.255")],
            &[("10.0.0.0", "10.0.0.255"), ("10.0.1.1", "10.0.3.255")],
            &[],
        ];
        for first in lists {
            for second in lists {
                for list in [first, second] {
                    wanted.sets[2].elements = list.iter().map(|(from, to)| addresses(from, to)).collect();
                    nft.replace_sets(std::slice::from_ref(&wanted.sets[2])).unwrap();
                    nft.verify(&wanted).unwrap();
                }
            }
        }
    });
}

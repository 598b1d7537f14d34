//! The table at the cards: what the nft tool makes of it, and that nothing in it changes unseen.
#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod support;

use nix::errno::Errno;
use support::card::egress;
use support::{has, in_netns, run};
use terok_kernel::nft::{self, NftError, NftSocket, Object};
use terok_policy::ruleset::{Egress, Statement};

/// The same table in nft's language.
const EGRESS: &str = include_str!("egress.nft");

fn cards(names: &[&str]) {
    for name in names {
        run("ip", &["link", "add", name, "type", "veth", "peer", "name", &format!("p{}", name.len())], "")
            .unwrap();
    }
}

fn loaded(wanted: &Egress) -> NftSocket {
    let nft = nft::open().unwrap();
    nft.load_egress(wanted).unwrap();
    nft.verify_egress(wanted).unwrap();
    nft
}

fn difference(nft: &NftSocket, wanted: &Egress) -> String {
    match nft.verify_egress(wanted) {
        Err(NftError::Differs(what)) => what,
        other => panic!("{other:?} is no difference"),
    }
}

#[test]
fn nft_lists_the_table_as_it_lists_its_own() {
    if !has("nft") || !has("ip") {
        return;
    }
    in_netns(|| {
        cards(&["eth0", "eth01"]);
        let wanted = egress(&["eth0", "eth01"]);
        run("nft", &["-f", "-"], EGRESS).unwrap();
        let theirs = run("nft", &["list", "ruleset"], "").unwrap();
        nft::open().unwrap().verify_egress(&wanted).unwrap();
        run("nft", &["delete", "table", "netdev", "terok"], "").unwrap();
        loaded(&wanted);
        assert_eq!(run("nft", &["list", "ruleset"], "").unwrap(), theirs);
    });
}

#[test]
fn a_card_more_gets_a_chain_of_its_own_once() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        cards(&["eth0", "odd\"{}\u{7}name"]);
        let nft = loaded(&egress(&["eth0"]));
        let both = egress(&["eth0", "odd\"{}\u{7}name"]);
        assert_eq!(difference(&nft, &both), r#"chain egress-odd\"{}\u{7}name is missing"#);
        for _ in 0..2 {
            nft.add_egress_card(&both, "odd\"{}\u{7}name").unwrap();
            nft.verify_egress(&both).unwrap();
        }
        // A card that is not there is refused by name, or since Linux 6.16 waited for.
        match nft.add_egress_card(&both, "eth7") {
            Err(NftError::Refused { object, errno: Errno::ENOENT, .. }) => {
                assert_eq!(object, Object::Chain("egress-eth7".into()));
            }
            other => other.unwrap(),
        }
        // One that went away leaves its chain or not, as the kernel likes.
        run("ip", &["link", "del", "eth0"], "").unwrap();
        nft.verify_egress(&egress(&["odd\"{}\u{7}name"])).unwrap();
    });
}

#[test]
fn what_others_did_to_the_table_is_noticed() {
    if !has("nft") || !has("ip") {
        return;
    }
    let meddling = [
        ("flush table netdev terok", "rule 1 of chain egress-eth0 is missing"),
        ("delete table netdev terok", "the nf_tables table at the cards does not exist"),
        ("add table netdev terok { flags dormant; }", "the nf_tables table at the cards: has flags"),
        ("add chain netdev terok egress-eth0 { policy accept; }", "chain egress-eth0: has policy"),
        ("insert rule netdev terok egress-eth0 accept", "rule 1 of chain egress-eth0 is"),
        ("add chain netdev terok mine", "chain mine does not belong here"),
        ("add chain netdev terok egress-mine { accept; }", "chain egress-mine: "),
        (
            "add chain netdev terok egress-eth01 { type filter hook egress device eth0 priority 0; policy drop; }",
            "chain egress-eth01: is not at its card",
        ),
        (
            "add chain netdev terok mine { type filter hook egress device eth0 priority -1; }",
            "chain mine does not belong here",
        ),
        ("add counter netdev terok mine", "the nf_tables table at the cards: has objects"),
        ("add set netdev terok mine { type mark; }", "the nf_tables table at the cards: has objects"),
        (
            "flush chain netdev terok egress-eth0; delete chain netdev terok egress-eth0",
            "chain egress-eth0 is missing",
        ),
    ];
    for (command, expected) in meddling {
        in_netns(|| {
            cards(&["eth0", "eth01"]);
            let wanted = egress(&["eth0"]);
            let nft = loaded(&wanted);
            run("nft", &["-f", "-"], &command.replace("; delete", "\ndelete")).unwrap();
            let found = difference(&nft, &wanted);
            assert!(found.starts_with(expected), "{command}: {found:?} is not {expected:?}");
        });
    }
}

#[test]
fn rules_that_differ_are_noticed() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        cards(&["eth0"]);
        let wanted = egress(&["eth0"]);
        let nft = loaded(&wanted);
        let mut other = wanted.clone();
        other.rules[0].statements[0] = Statement::SetMark(1);
        assert!(difference(&nft, &other).starts_with("rule 1 of chain egress-eth0 is"));
        let mut less = wanted;
        less.rules.pop();
        assert!(difference(&nft, &less).starts_with("rule 3 of chain egress-eth0 does not belong"));
    });
}

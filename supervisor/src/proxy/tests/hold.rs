//! Connections that wait for a verdict. What they lead to is behind a proxy of the host's network: names that lead to this
//! host are below the floor.

use super::*;
use crate::operator::{ChangeError, Operator};
use std::rc::Rc;
use terok_policy::control::Scope;
use terok_policy::rule::Rule;
use tokio::sync::broadcast::Receiver;

/// Seconds that no connection waits for here.
const LONG: u32 = 10 * PASSES.as_secs() as u32;

/// An operator who listens, and a network where every name answers.
struct Held {
    rig: Rig,
    outside: TcpListener,
    events: Receiver<Rc<str>>,
    operator: Rc<Operator>,
}

impl Held {
    async fn new(seconds: u32) -> Self {
        let (outside, settings) = upstream().await;
        let rig = Rig::under(Policy { hold: seconds, ..Policy::default() }, Some(settings), "");
        let events = rig.context.audit.subscribe();
        let operator = Operator::new(rig.context.clone());
        Held { rig, outside, events, operator }
    }

    /// The next line of kind and action, as the operator sees it.
    async fn event(&mut self, kind: &str, action: &str) -> serde_json::Value {
        loop {
            let line = timeout(PASSES, self.events.recv()).await.unwrap().unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["kind"] == kind && line["action"] == action {
                return line;
            }
        }
    }

    async fn waits(&self, connections: u64) {
        let start = Instant::now();
        while self.rig.context.hold.waiting().iter().map(|w| w.connections).sum::<u64>() != connections {
            assert!(start.elapsed() < PASSES, "{:?}", self.rig.context.hold.waiting());
            tokio::task::yield_now().await;
        }
    }
}

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

#[tokio::test(flavor = "current_thread")]
async fn connections_to_one_target_wait_for_one_verdict_and_nothing_is_dialled_before() {
    local! {
        let mut held = Held::new(LONG).await;
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(held.rig.connect(name("new.example"), 25).await);
        }
        held.waits(2).await;
        let wait = held.event("verdict", "wait").await;
        assert_eq!((&wait["target"], &wait["detail"]["id"]), (&"new.example:25".into(), &1.into()));
        assert_eq!(wait["detail"]["rule"], "new.example:25");
        assert!(timeout(Duration::from_millis(50), held.outside.accept()).await.is_err(), "dialled");
        let (applied, rule) = held.operator.verdict(1, true, Scope::Once, 1000).await.unwrap();
        assert_eq!((applied.changed.len(), rule.as_str()), (0, "new.example:25"));
        for client in &mut clients {
            let (mut server, to) = asked_for(&held.outside).await;
            assert_eq!(to, "new.example:25");
            server.write_all(b"220").await.unwrap();
            let mut got = [0; 3];
            client.read_exact(&mut got).await.unwrap();
            drop(server);
        }
        assert_eq!(held.event("verdict", "allow").await["detail"]["uid"], 1000);
        assert_eq!(held.event("connect", "allow").await["rule"], "verdict");
        let again = held.operator.verdict(1, true, Scope::Once, 1000).await.unwrap_err();
        assert!(matches!(again, ChangeError::NotWaiting(1)), "{again}");
        let _third = held.rig.connect(name("new.example"), 25).await;
        assert_eq!(held.event("verdict", "wait").await["detail"]["id"], 2, "once is once");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_connection_that_was_allowed_once_outlives_changes_but_no_deny_and_no_block() {
    local! {
        for (change, cut) in [
            (Live { allow: vec![rule("other.example")], ..Live::default() }, false),
            (Live { deny: vec![rule("new.example:25")], ..Live::default() }, true),
            (Live { state: Some(terok_policy::Shield::Block), ..Live::default() }, true),
        ] {
            let held = Held::new(LONG).await;
            let mut client = held.rig.connect(name("new.example"), 25).await;
            held.waits(1).await;
            held.operator.verdict(1, true, Scope::Once, 0).await.unwrap();
            let (mut server, _) = asked_for(&held.outside).await;
            held.rig.context.set_live(change);
            assert_eq!(held.rig.context.recheck(), u64::from(cut));
            match cut {
                true => assert_reset(&mut client).await,
                false => {
                    server.write_all(b"x").await.unwrap();
                    assert_eq!(client.read_u8().await.unwrap(), b'x');
                }
            }
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn always_is_a_rule_that_lasts() {
    local! {
        let mut held = Held::new(LONG).await;
        let _client = held.rig.connect(name("new.example"), 25).await;
        held.waits(1).await;
        let (applied, _) = held.operator.verdict(1, true, Scope::Always, 0).await.unwrap();
        assert_eq!(applied.changed, ["new.example:25"]);
        asked_for(&held.outside).await;
        assert_eq!(held.event("verdict", "allow").await["rule"], "new.example:25 (live)");
        let _second = held.rig.connect(name("new.example"), 25).await;
        asked_for(&held.outside).await;
        let kept = std::fs::read_to_string(held.rig.dir.path().join(layout::LIVE)).unwrap();
        assert!(kept.contains("new.example:25"), "{kept}");
        let mut other = held.rig.connect(name("bad.example"), 25).await;
        held.waits(1).await;
        held.operator.verdict(2, false, Scope::Always, 0).await.unwrap();
        assert_reset(&mut other).await;
        assert_reset(&mut held.rig.connect(name("bad.example"), 25).await).await;
        assert!(held.rig.context.hold.waiting().is_empty(), "denied: nobody is asked");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_denied_connection_is_reset_and_so_is_one_that_a_change_denies_meanwhile() {
    local! {
        let mut held = Held::new(LONG).await;
        let mut client = held.rig.connect(name("new.example"), 25).await;
        held.waits(1).await;
        held.operator.verdict(1, false, Scope::Once, 7).await.unwrap();
        assert_reset(&mut client).await;
        let refused = held.event("connect", "refuse").await;
        assert_eq!((&refused["reason"], &refused["detail"]["id"]), (&"operator-denied".into(), &1.into()));
        let mut client = held.rig.connect(name("new.example"), 25).await;
        held.waits(1).await;
        held.rig.context.set_live(Live { deny: vec![rule("*.example:25")], ..Live::default() });
        held.rig.context.recheck();
        assert_reset(&mut client).await;
        let deny = held.event("verdict", "deny").await;
        assert_eq!((&deny["detail"]["id"], &deny["rule"]), (&2.into(), &"*.example:25 (live)".into()));
        assert_eq!(held.event("connect", "refuse").await["reason"], "denied");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_nobody_answers_is_refused_in_time() {
    local! {
        let mut held = Held::new(1).await;
        let start = Instant::now();
        let mut client = held.rig.connect(name("new.example"), 25).await;
        let read = timeout(PASSES, client.read(&mut [0])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(start.elapsed() >= Duration::from_secs(1));
        assert_eq!(held.event("verdict", "timeout").await["detail"]["id"], 1);
        assert_eq!(held.event("connect", "refuse").await["reason"], "unanswered");
        assert!(held.rig.context.hold.waiting().is_empty());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn without_anybody_who_listens_nothing_waits() {
    local! {
        let Held { rig, events, .. } = Held::new(LONG).await;
        drop(events);
        assert_reset(&mut rig.connect(name("new.example"), 25).await).await;
        assert_eq!(rig.lines(1).await[0]["reason"], "unlisted");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_floor_denied_names_and_the_hosts_own_ports_never_wait() {
    local! {
        let held = Held::new(LONG).await;
        held.rig.context.set_live(Live { deny: vec![rule("bad.example:25")], ..Live::default() });
        let literal = |ip: [u8; 4]| Host::Literal(IpAddr::from(ip));
        let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let own = probe.connect("192.0.2.1:53").and_then(|()| probe.local_addr()).map(|a| a.ip()).ok();
        for (host, reason) in [
            (literal([10, 0, 0, 1]), "floor"),
            (literal([169, 254, 169, 254]), "floor"),
            (literal([127, 0, 0, 1]), "floor"),
            (name("bad.example"), "denied"),
            (name("vault.terok.internal"), "unlisted"),
            // As rules these would mean everything, and the host's loopback.
            (name("any"), "unlisted"),
            (name("host"), "unlisted"),
            (Host::Loopback, "unlisted"),
        ].into_iter().chain(own.map(|ip| (Host::Literal(ip), "floor"))) {
            let before = held.rig.lines(0).await.len();
            assert_reset(&mut held.rig.connect(host.clone(), 25).await).await;
            let lines = held.rig.lines(before + 1).await;
            assert_eq!((lines.len(), &lines[before]["reason"]), (before + 1, &reason.into()), "{host:?}");
        }
        let literal = held.rig.connect(literal([192, 0, 2, 1]), 25).await;
        held.waits(1).await;
        assert_eq!(held.rig.context.hold.waiting()[0].rule, "192.0.2.1:25");
        drop(literal);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_client_that_hangs_up_leaves_its_place_even_after_it_has_spoken() {
    local! {
        let mut held = Held::new(LONG).await;
        let mut client = held.rig.connect(name("new.example"), 443).await;
        client.write_all(&client_hello(Some("new.example"), 9999)).await.unwrap();
        held.waits(1).await;
        let second = held.rig.connect(name("new.example"), 443).await;
        held.waits(2).await;
        drop(client);
        held.waits(1).await;
        drop(second);
        held.waits(0).await;
        assert_eq!(held.event("verdict", "gone").await["detail"]["id"], 1);
        assert_eq!(held.rig.context.flows.open(), 0);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn connections_beyond_those_that_may_wait_are_refused_at_once() {
    local! {
        let mut held = Held::new(LONG).await;
        // A quarter of the rig's eight.
        let _waiting = [held.rig.connect(name("a.example"), 25).await, held.rig.connect(name("b.example"), 25).await];
        held.waits(2).await;
        assert_reset(&mut held.rig.connect(name("c.example"), 25).await).await;
        assert_eq!(held.event("connect", "refuse").await["detail"]["hold"], "too many wait");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_allowed_connection_is_held_to_its_name_all_the_same() {
    local! {
        let mut held = Held::new(LONG).await;
        let mut client = held.rig.connect(name("new.example"), 443).await;
        client.write_all(&client_hello(Some("evil.example"), 9999)).await.unwrap();
        held.waits(1).await;
        held.operator.verdict(1, true, Scope::Once, 0).await.unwrap();
        assert_reset(&mut client).await;
        assert_eq!(held.event("connect", "refuse").await["reason"], "sni-mismatch");
        assert!(timeout(Duration::from_millis(50), held.outside.accept()).await.is_err(), "dialled");
    }
}

//! Connections that leave through the proxy of the host's network.

use super::*;
use std::net::Ipv4Addr;

fn policy(allow: &[&str]) -> Policy {
    let sourced = |rule: &&str| Sourced { rule: rule.parse().unwrap(), source: Source::Annotation };
    Policy { allow: allow.iter().map(sourced).collect(), ..Policy::default() }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_is_asked_for_as_a_name_and_not_looked_up() {
    local! {
        let (outside, settings) = upstream().await;
        // To look it up would find an address below the floor.
        let rig = Rig::under(policy(&["api.example.com:25"]), Some(settings), "10.0.0.1 api.example.com\n");
        let mut client = rig.connect(name("api.example.com"), 25).await;
        let (mut server, to) = asked_for(&outside).await;
        assert_eq!(to, "api.example.com:25");
        server.write_all(b"220 hello").await.unwrap();
        drop(server);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"220 hello");
        drop(client);
        let lines = rig.lines(2).await;
        let port = outside.local_addr().unwrap().port();
        assert_eq!(lines[0]["detail"]["upstream"], format!("127.0.0.1:{port}"));
        assert_eq!((&lines[1]["action"], &lines[1]["detail"]["bytes_down"]), (&"close".into(), &9.into()));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_refusal_of_the_proxys_is_a_reset_that_says_why() {
    local! {
        let (outside, settings) = upstream().await;
        let rig = Rig::under(policy(&["api.example.com:25"]), Some(settings), "");
        let mut client = rig.connect(name("api.example.com"), 25).await;
        let (mut stream, _) = outside.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 403 Forbidden by policy\r\n\r\n<html>").await.unwrap();
        assert_reset(&mut client).await;
        let lines = rig.lines(3).await;
        assert_eq!((&lines[1]["action"], &lines[1]["reason"]), (&"refuse".into(), &"unreachable".into()));
        assert_eq!(lines[1]["detail"]["error"], "upstream_proxy: 403 Forbidden by policy");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_hosts_ports_and_excepted_names_are_dialled_without_it() {
    local! {
        let ((outside, mut settings), (listener, port)) = (upstream().await, listener().await);
        settings.except = vec!["*.corp.example".to_owned()];
        let host = format!("host:{port}");
        let policy = policy(&[&host, "a.corp.example:25"]);
        let rig = Rig::under(policy, Some(settings), "10.0.0.1 a.corp.example\n");
        let _client = rig.connect(Host::Loopback, port).await;
        timeout(PASSES, listener.accept()).await.unwrap().unwrap();
        assert_reset(&mut rig.connect(name("a.corp.example"), 25).await).await;
        assert_eq!(rig.lines(3).await[2]["reason"], "floor", "looked up here");
        assert!(timeout(Duration::from_millis(50), outside.accept()).await.is_err());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_proxys_own_host_and_what_is_below_the_floor_are_not_asked_for() {
    local! {
        let (outside, settings) = upstream().await;
        let down = Policy { shield: terok_policy::Shield::Down, ..policy(&[]) };
        let rig = Rig::under(down, Some(settings), "127.0.1.1 machine.example machine\n::1 ip6-localhost\n");
        let private = Host::Literal(Ipv4Addr::new(10, 0, 0, 1).into());
        for host in [name("localhost"), name("a.localhost"), name("machine"), name("ip6-localhost"), private] {
            assert_reset(&mut rig.connect(host, 25).await).await;
        }
        assert!(timeout(Duration::from_millis(50), outside.accept()).await.is_err());
        let refused = rig.lines(9).await;
        let floor = refused.iter().filter(|line| line["reason"] == "floor").count();
        assert_eq!(floor, 5, "{refused:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn tls_is_held_to_its_name_before_the_proxy_hears_of_it() {
    local! {
        let (outside, settings) = upstream().await;
        let rig = Rig::under(policy(&["api.example.com"]), Some(settings), "");
        let mut client = rig.connect(name("api.example.com"), 443).await;
        client.write_all(&client_hello(Some("evil.example"), 9999)).await.unwrap();
        assert_reset(&mut client).await;
        let mut client = rig.connect(name("api.example.com"), 443).await;
        let hello = client_hello(Some("api.example.com"), 9999);
        client.write_all(&hello).await.unwrap();
        let (mut server, to) = asked_for(&outside).await;
        let mut got = vec![0; hello.len()];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!((to.as_str(), got), ("api.example.com:443", hello));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn while_learning_what_nothing_denies_passes_and_is_recorded_as_learnt() {
    local! {
        let (outside, settings) = upstream().await;
        let deny = |rule: &str| Sourced { rule: rule.parse().unwrap(), source: Source::Annotation };
        let learning = Policy { learn: true, deny: vec![deny("bad.example:25")], ..policy(&["known.example:25"]) };
        let rig = Rig::under(learning, Some(settings), "");
        let mut open = Vec::new();
        for host in [name("new.example"), name("known.example"), Host::Literal(Ipv4Addr::new(192, 0, 2, 7).into())] {
            open.push((rig.connect(host, 25).await, asked_for(&outside).await));
        }
        for (host, reason) in [
            (name("bad.example"), "denied"),
            (Host::Literal(Ipv4Addr::new(10, 0, 0, 1).into()), "floor"),
            (Host::Literal(Ipv4Addr::new(169, 254, 169, 254).into()), "floor"),
            (Host::Loopback, "unlisted"),
        ] {
            let before = rig.lines(0).await.len();
            assert_reset(&mut rig.connect(host, 25).await).await;
            assert_eq!(rig.lines(before + 1).await[before]["reason"], reason);
        }
        let lines = rig.lines(7).await;
        let rules: Vec<_> = lines[..3].iter().map(|line| (&line["target"], &line["rule"])).collect();
        assert_eq!(rules[0], (&"new.example:25".into(), &"learn".into()));
        assert_eq!(rules[1], (&"known.example:25".into(), &"known.example:25 (annotation)".into()));
        assert_eq!(rules[2], (&"192.0.2.7:25".into(), &"learn".into()));
        let live = Live { deny: vec!["new.example:25".parse().unwrap()], ..Live::default() };
        rig.context.set_live(live);
        assert_eq!(rig.context.recheck(), 1);
        assert_reset(&mut open[0].0).await;
    }
}

//! What a container with a card may send by it: literal rules, UDP, direct names; each packet judged, so that a rule that goes
//! takes its flows along.

use crate::expect::{
    all_arrived, download, is_cut, is_refused, nothing_arrived, reaches, refused_at_once, steps, terok,
};
use serde_json::Value;
use std::time::{Duration, Instant};
use terok_tests::{
    Container, Net, Recipe, Running, bad_addresses, bad_blocks, eventually, every_card, queries, seen_at,
    site,
};

/// An octet now and then, for longer than any test: a full download would keep slirp4netns from anything else.
const FOREVER: &str = "/drip/100000";

/// A UDP flow that answers.
#[track_caller]
fn udp_flow(container: &Container, host: &str, port: u16) -> Running {
    let mut running = container.spawn(&format!("udphold {host} {port}"));
    let line = running.line();
    assert_eq!(line["open"], true, "no answer: {line}");
    running
}

/// That a UDP flow ends.
#[track_caller]
fn udp_ends(mut running: Running) {
    let line = running.line();
    assert_eq!(line["ok"], false, "{line}");
    // Refused by the kernel on the next datagram, not merely unanswered.
    assert_eq!(line["errno"], 1, "{line}");
}

every_card! {
    /// TCP and UDP, IPv4 and IPv6, by the card itself.
    fn a_literal_rule_opens_that_address_port_and_protocol_by_the_card(net: Net) {
        let ((v4, v6), (other4, other6)) = (bad_addresses(), bad_addresses());
        let rules = format!("{v4}:80 [{v6}]:80 {v4}:123/udp [{v6}]:123/udp 10.66.7.7:80");
        let container = Recipe::on(net, &rules).idle().settled();
        all_arrived(&steps(&container, &[
            format!("http {v4} 80 any.example /card"), format!("http {v6} 80 any.example /card"),
            format!("udp {v4} 123 card"), format!("udp {v6} 123 card"), format!("mmsg {v4} 123 card"),
            "http 10.66.7.7 80 any.example /private".to_owned(),
        ]));
        let lines = steps(&container, &[
            format!("tcp {v4} 443"), format!("tcp {v6} 443"), format!("udp {v4} 443 x"), format!("udp {v6} 443 x"),
            format!("tcp {other4} 80"), format!("tcp {other6} 80"), format!("udp {other4} 123 x"), format!("udp {other6} 123 x"),
            format!("mmsg {other4} 123 x"), "tcp 10.66.7.8 80".to_owned(), "tcp 169.254.169.254 80".to_owned(),
        ]);
        lines.iter().for_each(refused_at_once);
        nothing_arrived(&[other4.to_string(), other6.to_string()]);
        for address in [v4.to_string(), v6.to_string()] {
            let seen = seen_at(&address);
            assert!(seen.iter().all(|line| line["port"] == 80 || line["port"] == 123), "{seen:?}");
            assert!(seen.iter().any(|line| line["proto"] == "udp") && seen.iter().any(|line| line["path"] == "/card"), "{seen:?}");
        }
        container.audited("kernel", "allow", &format!("{v4}:80"));
        container.audited("kernel", "allow", &format!("{v4}:123"));
        container.audited("kernel", "refuse", &format!("{other4}:80"));
    }

    /// Blocks that contain each other start, and a denied host inside an allowed block stays denied, whichever rule is longer.
    fn a_host_denied_inside_an_allowed_block_is_refused(net: Net) {
        let (block4, block6) = bad_blocks();
        let [_, _, high, low] = block4.octets();
        let at4 = |n: u8| format!("203.1.{high}.{}", low + n);
        let at6 = |n: u16| { let mut parts = block6.segments(); parts[7] += n; std::net::Ipv6Addr::from(parts).to_string() };
        let rules = format!("{block4}/28:80 {}:80 {}/30:80-90 [{block6}/124]:80 [{}]:80", at4(5), at4(4), at6(5));
        let container = Recipe::on(net, &rules).annotate("shield.deny", &format!("{} {}", at4(5), at6(5))).idle().settled();
        all_arrived(&steps(&container, &[
            format!("http {} 80 any /in", at4(1)), format!("http {} 80 any /in", at4(6)), format!("http {} 80 any /in", at6(1)),
        ]));
        let lines = steps(&container, &[format!("tcp {} 80", at4(5)), format!("tcp {} 80", at6(5)), format!("udp {} 123 x", at4(1))]);
        lines.iter().for_each(refused_at_once);
        nothing_arrived(&[at4(5), at6(5)]);
        assert!(seen_at(at4(1)).iter().all(|line| line["proto"] != "udp"));
        let line = container.audited("kernel", "refuse", &at4(5));
        assert_eq!(line["reason"], "denied", "{line}");
        // Live as well: an address of the block is denied while its flow is open.
        let cut = download(&container, &format!("hold {} 80 {FOREVER}", at4(1)));
        terok(&container, &["deny", &at4(1)]);
        is_cut(cut);
        is_refused(&container, &at4(1));
        reaches(&container, &at4(2));
    }

    /// A8 by the card, both protocols and families: each packet is judged, established or not.
    fn deny_and_block_cut_flows_by_the_card(net: Net) {
        let ((v4, v6), (kept, _)) = (bad_addresses(), bad_addresses());
        let container = Recipe::on(net, &format!("{v4} {v6} {v4}/udp {v6}/udp {kept}:80 {kept}:123/udp")).idle().settled();
        let (tcp4, tcp6) = (download(&container, &format!("hold {v4} 80 {FOREVER}")), download(&container, &format!("hold {v6} 80 {FOREVER}")));
        let (udp4, udp6) = (udp_flow(&container, &v4.to_string(), 123), udp_flow(&container, &v6.to_string(), 123));
        let other = udp_flow(&container, &kept.to_string(), 123);
        terok(&container, &["deny", &v4.to_string(), &v6.to_string(), &format!("{v4}/udp"), &format!("{v6}/udp")]);
        is_cut(tcp4);
        is_cut(tcp6);
        udp_ends(udp4);
        udp_ends(udp6);
        is_refused(&container, &v4.to_string());
        is_refused(&container, &v6.to_string());
        reaches(&container, &kept.to_string());
        let tcp = download(&container, &format!("hold {kept} 80 {FOREVER}"));
        terok(&container, &["block"]);
        is_cut(tcp);
        udp_ends(other);
    }

    /// `down` ends in the kernel, with nothing of terok's alive.
    fn down_ends_by_itself_even_when_the_supervisor_is_dead(net: Net) {
        let (v4, v6) = bad_addresses();
        let container = Recipe::on(net, "api.example.com").idle().settled();
        is_refused(&container, &v4.to_string());
        let since = Instant::now();
        terok(&container, &["down", "--for", "20s"]);
        let (udp4, udp6) = (udp_flow(&container, &v4.to_string(), 123), udp_flow(&container, &v6.to_string(), 123));
        all_arrived(&[container.try_step(&format!("ping {v4}"))]);
        container.loses_its_supervisor();
        for mut flow in [udp4, udp6] {
            let line = flow.line();
            assert_eq!(line["ok"], false, "{line}");
            // The clock counts whole seconds.
            assert!((19..60).contains(&since.elapsed().as_secs()), "ended after {:?}", since.elapsed());
        }
        let lines = steps(&container, &[format!("udp {v4} 123 x"), format!("udp {v6} 123 x"), format!("ping {v4}"), format!("tcp {v4} 80")]);
        for line in &lines {
            assert_eq!(line["ok"], false, "{line}");
        }
    }

    /// The real address is answered, and goes through by the card, only because the name was asked.
    fn a_direct_name_is_answered_with_its_address_which_then_passes(net: Net) {
        let site = site();
        let (v4, v6) = (site.v4.to_string(), site.v6.to_string());
        let container = Recipe::on(net, &format!("{}:80+443 direct", site.name)).idle().settled();
        let before = steps(&container, &[format!("tcp {v4} 80"), format!("tcp {v6} 80")]);
        before.iter().for_each(refused_at_once);
        let lines = steps(&container, &[
            format!("dns - {} A", site.name), format!("dns - {} AAAA", site.name),
            format!("http {}%4 80 {} /direct", site.name, site.name), format!("http {}%6 80 {} /direct", site.name, site.name),
            format!("tls {}%4 443 other.example.net", site.name), // no proxy: nothing compares the names
            format!("http {v4} 80 {} /direct", site.name),
        ]);
        all_arrived(&lines);
        assert_eq!((&lines[0]["addresses"][0], &lines[1]["addresses"][0]), (&Value::from(v4.clone()), &Value::from(v6.clone())));
        let after = steps(&container, &[format!("tcp {v4} 8080"), format!("udp {v4} 123 x"), format!("tcp {v6} 8080")]);
        after.iter().for_each(refused_at_once);
        // The audit names it by its name.
        container.audited("kernel", "allow", &format!("{}:80", site.name));
        let flow = download(&container, &format!("hold {}%4 80 {FOREVER}", site.name));
        terok(&container, &["deny", &site.name]);
        is_cut(flow);
        is_refused(&container, &site.name);
        is_refused(&container, &v4);
        assert_eq!(seen_at(&v4).iter().filter(|line| line["port"] == 8080).count(), 0);
    }

    /// One after the other to one address and port, more than there are source ports for.
    fn thousands_of_short_connections_to_a_direct_name_all_succeed(net: Net) {
        let site = site();
        let container = Recipe::on(net, &format!("{}:8081 direct", site.name)).idle().settled();
        let (started, mut done) = (Instant::now(), 0);
        while done <= 6000 {
            let line = container.try_step(&format!("rate 3 8 {}%4 8081 /small", site.name));
            assert_eq!(line["failures"], 0, "after {done}: {line}");
            done += line["done"].as_u64().unwrap_or(0);
            assert!(started.elapsed() < Duration::from_secs(300), "only {done} in five minutes");
        }
    }

    fn udp_by_name_reaches_that_port_only(net: Net) {
        let site = site();
        let container = Recipe::on(net, &format!("{}:123/udp", site.name)).idle().settled();
        all_arrived(&steps(&container, &[
            format!("udp {}%4 123 named", site.name), format!("udp {}%6 123 named", site.name),
        ]));
        let lines = steps(&container, &[format!("udp {} 443 x", site.name), format!("tcp {} 80", site.name), format!("udp {}%6 443 x", site.name)]);
        lines.iter().for_each(refused_at_once);
        assert!(site.seen().iter().all(|line| line["proto"] == "udp" && line["port"] == 123), "{:?}", site.seen());
        let flow = udp_flow(&container, &format!("{}%4", site.name), 123);
        terok(&container, &["deny", &site.name]);
        udp_ends(flow);
    }

    /// A9 for direct names: what must never be reached is not granted either.
    fn a_direct_name_that_points_below_the_floor_gains_nothing(net: Net) {
        let label = format!("d{}", site().number);
        let names: Vec<String> = ["private", "loopback", "meta", "mapped", "host", "ula", "zero", "cgnat"].iter().map(|form| format!("{label}.rebind-{form}.example.com")).collect();
        let rules: String = names.iter().map(|name| format!("{name}:80+8000 direct\n")).collect();
        let profile = Profile::new(&format!("rebind-{label}"), &rules);
        let container = Recipe::on(net, "").annotate("shield.profiles", &profile.0).idle().settled();
        for name in &names {
            for kind in ["A", "AAAA"] {
                let line = container.try_step(&format!("dns - {name} {kind}"));
                assert_eq!(line["addresses"].as_array().map(Vec::len), Some(0), "{line}");
            }
        }
        let lines = steps(&container, &[
            "tcp 10.66.0.1 80".to_owned(), "tcp 169.254.169.254 80".to_owned(), "tcp 192.0.2.10 8000".to_owned(), "tcp 2001:db8:ffff::10 8000".to_owned(),
        ]);
        lines.iter().for_each(refused_at_once);
        assert!(!queries(&names[0]).is_empty(), "the names were asked for");
    }

    /// What was answered passes for as long as the answer says, an answer out of the cache included.
    fn each_answer_is_granted_for_at_least_its_own_time(net: Net) {
        let site = site();
        let container = Recipe::on(net, &format!("{}:80 direct", site.name)).idle().settled();
        // What was left when it was answered, at least: looking at it takes time, too.
        let answered = || {
            let since = Instant::now();
            let line = container.try_step(&format!("dns - {} A", site.name));
            let ttl = line["ttl"].as_u64().unwrap_or_else(|| panic!("no answer: {line}"));
            (ttl, expires(&container, &site.v4.to_string()) + since.elapsed().as_secs() + 1)
        };
        let (ttl, first) = answered();
        assert!(ttl > 0 && first >= ttl, "answered for {ttl} s, granted for {first} s");
        std::thread::sleep(Duration::from_secs(3));
        assert!(expires(&container, &site.v4.to_string()) < first, "the kernel counts down");
        // A question may be asked again where its answer is late.
        let asked = queries(&site.name).len();
        let (ttl, second) = answered();
        assert!(ttl > 0 && second >= ttl, "answered for {ttl} s, granted for {second} s");
        assert!(asked >= 1 && queries(&site.name).len() == asked, "the second answer came out of the cache");
    }

    /// A8: api.example.com and shared.example.org are one address.
    fn two_direct_names_on_one_address_each_keep_their_own_right(net: Net) {
        let container = Recipe::on(net, "").annotate("shield.allow", "api.example.com:80 direct").idle().settled();
        terok(&container, &["allow", "shared.example.org:80 direct"]);
        reaches(&container, "api.example.com");
        reaches(&container, "shared.example.org");
        let mut flow = download(&container, "hold shared.example.org%4 80 /drip/60");
        terok(&container, &["deny", "api.example.com"]);
        is_refused(&container, "api.example.com");
        let line = flow.line();
        assert_eq!(line["ok"], true, "the other name's flow was cut: {line}");
        reaches(&container, "shared.example.org");
        let flow = download(&container, &format!("hold shared.example.org%4 80 {FOREVER}"));
        terok(&container, &["deny", "shared.example.org"]);
        is_cut(flow);
        is_refused(&container, "198.51.100.10");
    }

    /// Wanted to be both: the names would contradict each other.
    fn a_name_that_is_direct_cannot_be_proxied_as_well(net: Net) {
        let (_gone, ended) = Recipe::on(net, "").annotate("shield.allow", "api.example.com:443/udp api.example.com:443").run(&["true"]);
        let said = ended.failed();
        assert!(said.contains("api.example.com:443/udp") && said.contains("direct"), "{said}");
    }

    /// A2 on a network: every resolver of it is ours, over UDP and TCP.
    fn every_resolver_of_the_network_is_ours(net: Net) {
        let zone = format!("net{}.evil.example.net", site().number);
        let container = Recipe::on(net, "api.example.com").idle().settled();
        let text = container.mode.podman(&["exec", &container.name, "cat", "/etc/resolv.conf"]).succeeded();
        let mut servers: Vec<String> = text.lines().filter_map(|line| line.strip_prefix("nameserver ")).map(|ip| ip.trim().to_owned()).collect();
        let routes = container.nsenter(&["ip", "route"]).succeeded() + &container.nsenter(&["ip", "-6", "route"]).succeeded();
        servers.extend(routes.lines().filter_map(|line| line.strip_prefix("default via ")?.split(' ').next().map(str::to_owned)).filter(|ip| !ip.starts_with("fe80")));
        for more in ["10.0.2.2", "10.0.2.3", "169.254.1.1", "203.0.113.53", "2001:db8:bad::53", "198.51.100.53", "fd00::3", "127.0.0.1", "192.0.2.10"] {
            servers.push(more.to_owned());
        }
        let ask: Vec<String> = servers.iter().flat_map(|ip| [format!("dns {ip} {zone} A"), format!("dns {ip} {zone} TXT tcp"), format!("dns {ip} api.example.com A")]).collect();
        for (n, line) in steps(&container, &ask).iter().enumerate() {
            match n % 3 {
                2 => assert!(line["addresses"][0].as_str().is_some_and(|ip| ip.starts_with("198.18.")), "{line}"),
                _ => assert_eq!(line["rcode"], 3, "{line}"),
            }
        }
        assert_eq!(queries(&zone), [""; 0]);
    }

    /// A3: an address without ports is every port but DNS over TLS, which must be named.
    fn dns_over_tls_needs_a_rule_that_names_its_port(net: Net) {
        let ((v4, v6), (named, _)) = (bad_addresses(), bad_addresses());
        let container = Recipe::on(net, &format!("{v4} {v6} {named}:853")).idle().settled();
        let lines = steps(&container, &[
            format!("tcp {v4} 443"), format!("tcp {v6} 443"), format!("tcp {named} 853"), format!("tcp {v4} 853"), format!("tcp {v6} 853"), format!("tcp {v4} 53"),
        ]);
        all_arrived(&lines[..3]);
        refused_at_once(&lines[3]);
        refused_at_once(&lines[4]);
        assert!(seen_at(v4).iter().chain(&seen_at(v6)).all(|line| line["port"] == 443), "{:?}", seen_at(v4));
    }

    /// `down` and `any` are for connections: the proxy sees them, so that they are audited; 53 and 853 stay ours.
    fn any_opens_everything_but_the_floor_the_denies_and_name_servers(net: Net) {
        let ((open, open6), (denied, _)) = (bad_addresses(), bad_addresses());
        let container = Recipe::on(net, "any:* any:*/udp").annotate("shield.deny", &denied.to_string()).idle().settled();
        let site = site();
        all_arrived(&steps(&container, &[
            format!("http {} 80 {} /any", site.name, site.name), format!("http {open} 80 any /any"), format!("http {open6} 80 any /any"),
            format!("udp {open} 123 any"), format!("udp {open6} 123 any"),
        ]));
        container.audited("connect", "allow", &open.to_string());
        let lines = steps(&container, &[
            format!("tcp {denied} 80"), format!("udp {denied} 123 x"), "tcp 10.66.0.1 80".to_owned(), "tcp 169.254.169.254 80".to_owned(),
            "udp 10.66.0.1 123 x".to_owned(), "tcp 100.64.0.1 80".to_owned(),
        ]);
        lines.iter().for_each(refused_at_once);
        let zone = format!("any{}.tunnel.example.net", site.number);
        let line = container.try_step(&format!("dns 203.0.113.53 {zone} A"));
        assert_eq!(queries(&zone).len() + usize::from(line["addresses"][0].as_str().is_some_and(|ip| ip.starts_with("203."))), 0, "{line}");
    }

    /// A31, A32: from inside the namespace with every capability there is.
    fn marks_raw_sockets_and_frames_change_no_verdict(net: Net) {
        let ((allowed, _), (v4, v6)) = (bad_addresses(), bad_addresses());
        let container = Recipe::on(net, &format!("{allowed}:80")).idle().settled();
        all_arrived(&[container.try_step(&format!("tcp {allowed} 80"))]);
        let sender = Sender::of(&container);
        let mut attempts = vec![format!("raw {v4} 123 raw"), format!("raw {v6} 123 raw"), sender.frame(&v4.to_string())];
        attempts.extend([1, 0x1000, 0x2000, 0xffff_ffff_u32].map(|mark| format!("marked {mark} {v4} 80")));
        let attempts: Vec<&str> = attempts.iter().map(String::as_str).collect();
        let lines = container.nsenter(&[&["/run/lab/bin/terok-probe"], attempts.as_slice()].concat()).lines();
        for line in lines.iter().filter(|line| line["step"].as_str().is_some_and(|step| step.starts_with("marked"))) {
            assert_eq!(line["ok"], false, "{line}");
        }
        nothing_arrived(&[v4.to_string(), v6.to_string()]);

        // The same frame and datagrams arrive where terok is not.
        let plain = Recipe::unprotected(net).idle().settled();
        all_arrived(&[plain.try_step(&format!("tcp {allowed} 80"))]);
        let (frame, raw4, raw6) = (Sender::of(&plain).frame(&v4.to_string()), format!("raw {v4} 123 raw"), format!("raw {v6} 123 raw"));
        let arrived = |text: &str, at: &dyn std::fmt::Display| seen_at(at).iter().any(|line| line["text"] == text);
        eventually("frame and datagrams arrive", || {
            // The first ones on a new link may be lost.
            plain.nsenter(&["/run/lab/bin/terok-probe", &frame, &raw4, &raw6]).succeeded();
            arrived("frame", &v4) && arrived("raw", &v4) && arrived("raw", &v6)
        });
    }

    /// What the table itself says: default deny on every hook, and at the card.
    fn the_kernels_own_list_shows_default_deny_everywhere(net: Net) {
        let container = Recipe::on(net, "api.example.com").idle();
        let rules = container.ruleset();
        for chain in ["hook output", "hook input", "hook forward", "hook egress"] {
            let line = rules.lines().find(|line| line.contains(chain) && line.contains("filter")).unwrap_or_else(|| panic!("no {chain}: {rules}"));
            assert!(line.contains("policy drop"), "{line}");
        }
    }

    /// Many names and addresses: it starts, and still tells them apart.
    fn ten_thousand_rules_start_and_are_kept(net: Net) {
        let (site, (v4, v6)) = (site(), bad_addresses());
        let mut rules = format!("{}\n{v4}:80\n", site.name);
        for n in 0..5000 {
            rules += &format!("host-{n}.example.com\n20.0.{}.{}:443\n", n / 128, n % 128 * 2);
        }
        let profile = Profile::new(&format!("many-{}", site.number), &rules);
        let container = Recipe::on(net, "").annotate("shield.profiles", &profile.0).idle().settled();
        reaches(&container, &site.name);
        reaches(&container, &v4.to_string());
        let lines = steps(&container, &[format!("tcp {v6} 80"), "tcp 20.0.0.1 443".to_owned(), "dns - host-5000.example.com A".to_owned()]);
        assert!(lines.iter().all(|line| line["ok"] == false), "{lines:?}");
        terok(&container, &["deny", &v4.to_string()]);
        is_refused(&container, &v4.to_string());
    }
}

/// A profile for every user of the machine; gone with the test.
struct Profile(String);

impl Profile {
    fn new(name: &str, rules: &str) -> Self {
        std::fs::create_dir_all("/etc/terok/profiles").expect("the lab's /etc");
        std::fs::write(format!("/etc/terok/profiles/{name}.txt"), rules).expect("a profile");
        Profile(name.to_owned())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(format!("/etc/terok/profiles/{}.txt", self.0));
    }
}

/// What a frame of one's own needs: card, next hop, source address.
struct Sender {
    card: String,
    mac: String,
    source: String,
}

impl Sender {
    #[track_caller]
    fn of(container: &Container) -> Self {
        let route = container.nsenter(&["ip", "-4", "route", "show", "default"]).succeeded();
        let words: Vec<&str> = route
            .lines()
            .find(|line| !line.contains("dev lo"))
            .expect("a default route")
            .split_whitespace()
            .collect();
        let after = |word: &str| {
            words.iter().position(|w| *w == word).and_then(|at| words.get(at + 1)).map(|w| (*w).to_owned())
        };
        let (gateway, card) = (after("via").expect("a gateway"), after("dev").expect("a card"));
        let neighbours = container.nsenter(&["ip", "-4", "neigh", "show", &gateway]).succeeded();
        let words: Vec<&str> = neighbours.split_whitespace().collect();
        let mac = words
            .iter()
            .position(|w| *w == "lladdr")
            .map(|at| words[at + 1])
            .unwrap_or_else(|| panic!("no neighbour: {neighbours}"));
        Sender { card, mac: mac.to_owned(), source: container.address(false).to_string() }
    }

    fn frame(&self, to: &str) -> String {
        format!("frame {} {} {} {to} 123 frame", self.card, self.mac, self.source)
    }
}

/// Seconds that the kernel still lets `address` through because of a name.
#[track_caller]
fn expires(container: &Container, address: &str) -> u64 {
    let text = container.nsenter(&["nft", "-j", "list", "ruleset"]).succeeded();
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let sets = all["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("set"));
    let named = sets.filter(|set| set["name"].as_str().is_some_and(|name| name.starts_with("named")));
    let elements = named.flat_map(|set| set["elem"].as_array().cloned().unwrap_or_default());
    let element =
        elements.into_iter().map(|item| item["elem"].clone()).find(|elem| elem.to_string().contains(address));
    element
        .and_then(|elem| elem["expires"].as_u64())
        .unwrap_or_else(|| panic!("{address} is in no set: {text}"))
}

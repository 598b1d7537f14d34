//! The networks themselves, without terok: what the other modules see refused arrives here, so that those tests can fail.

use terok_tests::{Net, Recipe, bad_addresses, every_card, queries, seen_at, site};

every_card! {
    /// A1 to A11, A16, A32, A35.
    fn without_terok_the_same_attempts_arrive(net: Net) {
        let site = site();
        let host = &site.name;
        let (v4, v6) = bad_addresses();
        let zone = format!("open{}.tunnel.example.net", site.number);
        let container = Recipe::unprotected(net).idle().settled();
        let lines = container.probe(&[
            &format!("tls {host}%4 443 evil.example.net"),
            &format!("tls {host}%6 443 evil.example.net"),
            &format!("tls {host}%4 443 -"),
            &format!("http {host}%4 80 {host} /first evil.example.net /second"),
            &format!("tcp {host}%4 80 GET /two HTTP/1.1\\r\\nHost: {host}\\r\\nHost: evil.example.net\\r\\n\\r\\n"),
            &format!("tcp {v4} 443"),
            &format!("tcp {v4} 853"),
            &format!("tcp {v6} 443"),
            &format!("fastopen {v4} 80 hello"),
            &format!("mptcp {v4} 443"),
            &format!("udp {v4} 123 ntp"),
            &format!("udp {v6} 123 ntp"),
            &format!("mmsg {v4} 443 quic"),
            &format!("ping {v4}"),
            &format!("dns 203.0.113.53 {zone} A"),
            &format!("dns 2001:db8:bad::53 {zone} A"),
            &format!("dns 203.0.113.53 {zone} A tcp"),
            "dns - r.rebind-private.example.com A",
            "http r.rebind-private.example.com 80 private /private",
            "tcp 169.254.169.254 8080",
        ]);
        for line in &lines {
            assert_eq!(line["ok"], true, "{line}");
        }
        assert_eq!(site.paths(), ["/first", "/second", "/two"]);
        let asked = queries(&zone);
        assert!(asked.len() >= 3 && asked.iter().all(|name| *name == zone), "{asked:?}");
        for address in [v4.to_string(), v6.to_string()] {
            assert!(seen_at(&address).iter().any(|line| line["proto"] == "udp"), "{address}");
        }
        assert!(seen_at("10.66.0.1").iter().any(|line| line["path"] == "/private"));
        // pasta, which Podman 5 also puts below a user's bridge, gives the container the host's own address.
        if net == Net::Pasta || (net == Net::Bridge && terok_tests::major() >= 5) {
            return;
        }
        let line = container.try_step("http 192.0.2.10 8000 host /from-inside");
        assert_eq!(line["ok"], true, "{line}");
    }
}

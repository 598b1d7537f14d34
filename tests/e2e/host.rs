//! What is true of a whole machine: the proxy by which it reaches the outside, and protection for every container.

use crate::expect::{is_refused, reaches, refused_at_once};
use terok_tests::{Lab, Mode, Net, Recipe, Site, bad_addresses, install, queries, seen, site};

const SETTINGS: &str = "/etc/terok/config.toml";

/// The machine's settings; gone with the test.
struct Settings;

impl Settings {
    fn new(text: &str) -> Self {
        std::fs::create_dir_all("/etc/terok").expect("the lab's /etc");
        std::fs::write(SETTINGS, text).expect("settings");
        Settings
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(SETTINGS);
    }
}

/// What the proxy of the lab saw for this site.
fn proxied(site: &Site) -> Vec<serde_json::Value> {
    let ours = |line: &serde_json::Value| {
        line["target"].as_str().is_some_and(|target| target.starts_with(&site.name))
    };
    seen().into_iter().filter(|line| line["proto"] == "proxy" && ours(line)).collect()
}

#[test]
fn names_go_through_the_hosts_proxy_where_there_is_one() {
    let Some(_lab) = Lab::alone() else { return };
    for (url, kind, login) in [
        ("http://10.66.1.1:3128", "http", None),
        ("http://user:word@10.66.1.1:3128", "http", Some("Basic dXNlcjp3b3Jk")),
        ("socks5://10.66.1.1:1080", "socks5", None),
        ("socks5://user:word@10.66.1.1:1080", "socks5", Some("user:word")),
    ] {
        let (site, direct, (v4, _)) = (site(), site(), bad_addresses());
        let _settings =
            Settings::new(&format!("upstream_proxy = \"{url}\"\nno_proxy = [\"{}\"]\n", direct.name));
        for net in [vec![Net::Sealed, Net::SealedRootful], Net::cards()].concat() {
            let container = Recipe::on(net, &format!("{} {}", site.name, direct.name)).idle();
            let line = container.try_step(&format!("http {0} 80 {0} /proxied", site.name));
            assert_eq!(line["answers"][0]["status"], 200, "{net:?} {line}");
            let line = container.try_step(&format!("tls {0} 443 {0}", site.name));
            assert_eq!(line["ok"], true, "{net:?} {line}");
            reaches(&container, &direct.name);
            refused_at_once(&container.try_step(&format!("tcp {v4} 80")));
            refused_at_once(&container.try_step("tcp 10.66.1.1 3128"));
        }
        let lines = proxied(&site);
        assert!(!lines.is_empty() && lines.iter().all(|line| line["kind"] == kind), "{lines:?}");
        match login {
            Some(login) => assert!(lines.iter().all(|line| line.to_string().contains(login)), "{lines:?}"),
            None => assert!(lines.iter().all(|line| !line.to_string().contains("word")), "{lines:?}"),
        }
        assert!(proxied(&direct).is_empty(), "no_proxy is dialled without it");
        assert!(
            site.seen().iter().all(|line| line["src"] != "192.0.2.10" && line["src"] != "2001:db8:ffff::10"),
            "{:?}",
            site.seen()
        );
        // The name is the proxy's to look up: from this host nobody asked, and the proxy asks from elsewhere.
        let asked =
            seen().into_iter().filter(|line| line["proto"] == "dns" && line["name"] == site.name.as_str());
        assert!(asked.clone().all(|line| line["src"] != "192.0.2.10"), "{:?}", asked.collect::<Vec<_>>());
        assert!(!queries(&site.name).is_empty(), "the proxy did");
    }
}

#[test]
fn with_all_containers_a_plain_container_has_the_defaults_and_may_only_tighten_them() {
    let Some(_lab) = Lab::alone() else { return };
    let (site, other, (v4, _)) = (site(), site(), bad_addresses());
    let _settings = Settings::new(&format!(
        "[all_containers]\n\"terok.shield.allow\" = \"{} *.any.example.com\"\n",
        site.name
    ));
    // Their own containers are none of this test's.
    let nets = [vec![Net::Sealed, Net::SealedRootful], Net::cards()].concat();
    for net in &nets {
        net.network();
    }
    Mode::Rootful.terok(&["setup", "--system", "--all-containers"]).succeeded();
    for net in nets {
        let plain = Recipe::unprotected(net).idle();
        reaches(&plain, &site.name);
        refused_at_once(&plain.try_step(&format!("tcp {v4} 80")));
        is_refused(&plain, &other.name);
        let tighter = Recipe::on(net, "one.any.example.com").idle();
        reaches(&tighter, "one.any.example.com");
        is_refused(&tighter, &site.name);
        for (key, value) in [
            ("shield.allow", other.name.as_str()),
            ("shield.allow", "any:*"),
            ("shield", "down"),
            ("shield.learn", "true"),
        ] {
            let (_gone, ended) = Recipe::unprotected(net).annotate(key, value).run(&["true"]);
            ended.failed();
        }
        // Whose network cannot be protected does not start.
        let (_gone, ended) = Recipe::bare(net.mode()).network("host").run(&["true"]);
        ended.failed();
    }
    Mode::Rootful.terok(&["uninstall", "--system"]).succeeded();
    let plain = Recipe::unprotected(Net::Slirp).idle();
    assert_eq!(plain.try_step(&format!("tcp {v4} 80"))["ok"], true, "uninstalled");
    drop(plain);
    install();
}

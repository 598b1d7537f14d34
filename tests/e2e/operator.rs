//! An operator beside the container: connections that wait for a verdict, learning a profile, and the alarm.

use crate::expect::{FOREVER, at_once, download, is_cut, is_refused, reaches, soonest, terok};
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use terok_tests::{
    Container, Lab, Mode, Net, Recipe, Site, bad_addresses, eventually, every_network, seen_at, site,
};

/// `terok watch`, which makes somebody who could answer.
struct Watcher(Child);

impl Watcher {
    #[track_caller]
    fn of(container: &Container) -> Self {
        let mut command = container.mode.command("terok");
        let child = command
            .args(["watch", "--json", &container.name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let watcher = Watcher(child.expect("terok starts"));
        // Until it listens, nobody does.
        let name = format!("w{}.nobody.example.com", site().number);
        eventually("somebody listens", || {
            let _asking = container.spawn(&format!("tcp {name} 80 GET"));
            let since = Instant::now();
            while since.elapsed() < Duration::from_secs(1) {
                if waiting(container)
                    .iter()
                    .any(|line| line["target"].as_str().is_some_and(|target| target.starts_with(&name)))
                {
                    return true;
                }
            }
            false
        });
        watcher
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn waiting(container: &Container) -> Vec<Value> {
    let status: Value = serde_json::from_str(&terok(container, &["status", "--json"])).unwrap_or_default();
    status["waiting"].as_array().cloned().unwrap_or_default()
}

/// The number of the connection that waits for `target`.
#[track_caller]
fn id_of(container: &Container, target: &str) -> String {
    let mut found = None;
    eventually("it waits for a verdict", || {
        found = waiting(container)
            .into_iter()
            .find(|line| line["target"].as_str().is_some_and(|t| t.starts_with(target)));
        found.is_some()
    });
    found.map(|line| line["id"].to_string()).unwrap_or_default()
}

/// A request that waits.
fn asked(container: &Container, site: &Site) -> terok_tests::Running {
    container.spawn(&format!("http {0} 80 {0} /held", site.name))
}

every_network! {
    fn an_unlisted_connection_waits_for_its_verdict(net: Net) {
        let (once, always, denied) = (site(), site(), site());
        let (v4, _) = bad_addresses();
        let recipe = Recipe::on(net, "api.example.com").annotate("shield.deny", &denied.name);
        // Long enough for a verdict on a busy machine.
        let container = recipe.clone().annotate("shield.hold", "25s").idle();
        // Nobody listens: refused at once, as without.
        let line = container.try_step(&format!("tcp {} 80", once.name));
        assert_eq!(line["ok"], false, "{line}");
        at_once(&line);

        let _watcher = Watcher::of(&container);
        let mut held = asked(&container, &once);
        let id = id_of(&container, &once.name);
        assert!(once.seen().is_empty(), "dialled before the verdict");
        terok(&container, &["verdict", &id, "allow"]);
        let line = held.line();
        assert_eq!(line["answers"][0]["status"], 200, "{line}");

        let mut held = asked(&container, &always);
        terok(&container, &["verdict", &id_of(&container, &always.name), "allow", "--always"]);
        assert_eq!(held.line()["answers"][0]["status"], 200);
        reaches(&container, &always.name);

        let mut held = container.spawn(&format!("http {v4} 80 any /held"));
        terok(&container, &["verdict", &id_of(&container, &v4.to_string()), "deny"]);
        let line = held.line();
        assert_eq!((line["ok"].as_bool(), line["errno"].as_i64()), (Some(false), Some(104)), "{line}");
        assert!(seen_at(v4).is_empty());

        // Denied and below the floor is no question; and nobody's answer is a refusal.
        for host in [denied.name.as_str(), "10.66.0.1", "169.254.169.254"] {
            let line = container.try_step(&format!("tcp {host} 80 GET"));
            assert_eq!(line["ok"], false, "{line}");
            at_once(&line);
        }
        container.audited("verdict", "wait", &once.name);
        let container = recipe.annotate("shield.hold", "2s").idle();
        let _watcher = Watcher::of(&container);
        let line = container.try_step(&format!("tcp {} 80 GET", once.name));
        assert_eq!(line["ok"], false, "{line}");
        assert!(line["ms"].as_f64().is_some_and(|ms| ms >= 1500.0), "{line}");
        container.audited("verdict", "timeout", &once.name);
    }

    fn learning_lets_through_and_writes_the_profile(net: Net) {
        let (site, other) = (site(), site());
        let (denied, _) = bad_addresses();
        let container = Recipe::on(net, "").annotate("shield.learn", "true").annotate("shield.deny", &denied.to_string()).idle();
        reaches(&container, &site.name);
        let line = container.try_step(&format!("tls {0} 8443 {0}", other.name));
        assert_eq!(line["ok"], true, "{line}");
        for host in [denied.to_string(), "10.66.0.1".to_owned(), "169.254.169.254".to_owned()] {
            is_refused(&container, &host);
        }
        let profile = net.mode().terok(&["profile", "learn", &container.name, "--print"]).succeeded();
        let rules: Vec<&str> = profile.lines().map(str::trim).filter(|line| !line.starts_with('#')).map(|line| line.split(" #").next().unwrap_or(line).trim()).collect();
        assert!(rules.contains(&format!("{}:80", site.name).as_str()) && rules.contains(&format!("{}:8443", other.name).as_str()), "{profile}");
        assert!(!rules.iter().any(|rule| rule.contains("10.66") || rule.contains(&denied.to_string())), "{profile}");
    }
}

/// Everything stops, on every network, for both users; and starts again only when the alarm is over.
#[test]
fn panic_blocks_everything_and_keeps_new_containers_from_starting() {
    let Some(_lab) = Lab::alone() else { return };
    let site = site();
    let nets = [vec![Net::Sealed, Net::SealedRootful], Net::cards()].concat();
    let containers: Vec<Container> = nets.iter().map(|net| Recipe::on(*net, &site.name).idle()).collect();
    let flows: Vec<_> =
        containers.iter().map(|c| download(c, &format!("hold {} 80 {FOREVER}", site.name))).collect();
    Mode::Rootful.terok(&["panic"]).succeeded();
    // All of them at once, and looked at one after the other.
    let times: Vec<Duration> = flows.into_iter().map(is_cut).collect();
    soonest(&times);
    for (container, net) in containers.iter().zip(&nets) {
        is_refused(container, &site.name);
        let (_gone, ended) = Recipe::on(*net, &site.name).run(&["true"]);
        let said = ended.failed();
        assert!(said.contains("panic"), "{said}");
    }
    Mode::Rootful.terok(&["panic", "--clear"]).succeeded();
    for (container, net) in containers.iter().zip(&nets) {
        is_refused(container, &site.name);
        terok(container, &["up"]);
        reaches(container, &site.name);
        Recipe::on(*net, &site.name).probe(&["dns - api.example.com A"]);
    }
    Mode::Rootful.terok(&["panic", "--kill"]).succeeded();
    for container in &containers {
        eventually("it is dead", || {
            container.podman(&["inspect", "--format={{.State.Running}}"]).stdout.trim() == "false"
        });
    }
    Mode::Rootful.terok(&["panic", "--clear"]).succeeded();
}

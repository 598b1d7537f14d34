//! A3: the same annotations through Podman's hooks and through the shim: the same configuration for the runtime, the same table, the
//! same words of the supervisor.

use crate::shim::{FOLDER, config, hook_files, put_shim, take_shim, through};
use serde_json::Value;
use terok_policy::layout;
use terok_tests::{
    Container, Ended, Engine, Lab, Mode, Net, Recipe, Service, bad_addresses, eventually, install, seen_at,
    site,
};

/// What protects a container, without what is its own or chance.
#[derive(Debug, PartialEq)]
struct Protection {
    config: Value,
    tables: Vec<String>,
    status: Value,
    start: Value,
}

impl Protection {
    #[track_caller]
    fn of(container: &Container) -> Self {
        let mut config = config(container);
        // Podman's order of its own files and of an image's variables is a hash's; Podman 5 adds a path behind what hooks gave back.
        for place in ["/process/env", "/mounts", "/linux/maskedPaths"] {
            let all = config.pointer_mut(place).and_then(Value::as_array_mut).expect("it has some");
            all.sort_by_key(|one| one["destination"].as_str().map_or(one.to_string(), str::to_owned));
        }
        if let Some(annotations) = config["annotations"].as_object_mut() {
            annotations.remove("io.kubernetes.cri-o.Created");
        }
        if let Some(hooks) = config["hooks"].as_object_mut() {
            // Those of its own files Podman runs itself.
            hooks.remove("poststop");
        }
        let status = container.mode.terok(&["status", &container.name, "--json"]).succeeded();
        let status: Value = serde_json::from_str(&status).expect("JSON");
        let mut own = vec![
            (container.id.clone(), "ID"),
            (container.id[..12].to_owned(), "ID"),
            (container.name.clone(), "NAME"),
        ];
        own.extend(token(&config).map(|token| (token, "TOKEN")));
        if status.to_string().contains("filtered") {
            own.extend([false, true].map(|v6| (container.address(v6).to_string(), "ADDRESS")));
        }
        let same = |text: String| blank(own.iter().fold(text, |text, (from, to)| replaced(&text, from, to)));
        let json = |value: Value| serde_json::from_str(&same(value.to_string())).expect("still JSON");
        let tables = container.nsenter(&["nft", "--stateless", "list", "ruleset"]).succeeded();
        Protection {
            config: json(spoken(config)),
            tables: same(tables).lines().map(chance).collect(),
            status: json(without(status, &["pid", "started", "netns", "connections", "allowed", "refused"])),
            start: json(without(container.audited("lifecycle", "start", ""), &["n", "t", "prev"])),
        }
    }
}

/// The phantom token, if it has one.
fn token(config: &Value) -> Option<String> {
    let mut env = config["process"]["env"].as_array()?.iter().filter_map(Value::as_str);
    env.find_map(|line| line.strip_prefix("LAB_TOKEN=")).map(str::to_owned)
}

/// Without fields that say nothing: Podman writes what its hooks gave back anew, and leaves zeroes and empty lists out.
fn spoken(value: Value) -> Value {
    let says = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
    };
    match value {
        Value::Object(all) => {
            let all = all.into_iter().map(|(key, value)| (key, spoken(value)));
            Value::Object(all.filter(|(_, value)| says(value)).collect())
        }
        Value::Array(all) => all.into_iter().map(spoken).collect(),
        value => value,
    }
}

/// Without these fields, wherever they are.
fn without(value: Value, fields: &[&str]) -> Value {
    match value {
        Value::Object(all) => {
            let kept = all.into_iter().filter(|(key, _)| !fields.contains(&key.as_str()));
            Value::Object(kept.map(|(key, value)| (key, without(value, fields))).collect())
        }
        Value::Array(all) => all.into_iter().map(|value| without(value, fields)).collect(),
        value => value,
    }
}

/// With `to` in place of `from`, where that is no part of a longer address or the begin of a range.
fn replaced(text: &str, from: &str, to: &str) -> String {
    let mut pieces = text.split(from);
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let goes_on =
            to == "ADDRESS" && piece.starts_with(|c: char| c.is_ascii_hexdigit() || c == ':' || c == '-');
        out.push_str(if goes_on { from } else { to });
        out.push_str(piece);
    }
    out
}

/// Ids of layers and namespaces are long and have digits and letters; the masks of a filter have digits only.
fn blank(text: String) -> String {
    let is_part = |c: char| c.is_ascii_hexdigit() || c == '-';
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(is_part) {
        let (before, from) = rest.split_at(at);
        let (run, behind) = from.split_at(from.find(|c| !is_part(c)).unwrap_or(from.len()));
        let is_id = run.len() >= 30
            && run.contains(|c: char| c.is_ascii_digit())
            && run.contains(|c: char| c.is_ascii_lowercase());
        out.push_str(before);
        out.push_str(if is_id { "SOME" } else { run });
        rest = behind;
    }
    out + rest
}

/// A line of nft's without the ports that the kernel chose for our sockets, and without the mark.
fn chance(line: &str) -> String {
    let word = |word: &str| {
        let digits = word.trim_start_matches(':').trim_end_matches(',');
        let chosen = digits.parse().is_ok_and(|port: u32| (32768..61000).contains(&port));
        let mark = word.starts_with("0x");
        if chosen || mark { "CHANCE".to_owned() } else { word.to_owned() }
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn assert_same(one: &Protection, other: &Protection) {
    // Piece by piece: the whole is long.
    for (key, value) in one.config.as_object().expect("an object") {
        assert_eq!(Some(value), other.config.get(key), "config.json: {key}");
    }
    assert_eq!(one.tables, other.tables);
    assert_eq!(one.status, other.status);
    assert_eq!(one.start, other.start);
    assert_eq!(one, other);
}

/// And what was compared says something.
#[track_caller]
fn says_something(protection: &Protection) {
    let (config, tables) = (protection.config.to_string(), protection.tables.join("\n"));
    assert!(config.contains(layout::HOOK) && config.contains("io.terok.amended"), "{config}");
    assert!(tables.contains("policy drop") && tables.contains("CHANCE"), "{tables}");
    assert!(protection.status["allow"].to_string().contains("site-"), "{protection:?}");
    assert_eq!(protection.start["detail"]["state"], "up", "{protection:?}");
}

/// Beside the name that it may reach: what an agent has, and a restricted one with names of its own.
fn annotations(service: &Service) -> [Vec<(&str, &str)>; 2] {
    [
        vec![("vault", &service.provider), ("shield.deny", "198.51.100.9 *.example.org"), ("shield", "up")],
        vec![("restricted", "true"), ("project", "p"), ("task", "t"), ("name", "n")],
    ]
}

fn nets() -> impl Iterator<Item = Net> {
    [Net::Sealed, Net::SealedRootful].into_iter().chain(Net::cards())
}

#[test]
fn hooks_and_shim_make_the_same_container() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    for net in nets() {
        let (service, site) = (Service::new(net.mode()), site());
        for annotations in annotations(&service) {
            let plain = Recipe::on(net, &site.name).image("localhost/wl");
            let recipe = annotations.iter().fold(plain, |recipe, (key, value)| recipe.annotate(key, value));
            let through_hooks = recipe.idle().settled();
            let by_hooks = Protection::of(&through_hooks);
            hook_files(false);
            let through_shim = through(&shim, recipe.clone()).idle().settled();
            hook_files(true);
            assert_same(&by_hooks, &Protection::of(&through_shim));
            says_something(&by_hooks);
        }
    }
    take_shim();
    install();
}

/// Podman where the lab shows root's runc control groups as it wants them; a user's does without. What a user's first Podman sees, all
/// after it do.
fn podman_with_groups(mode: Mode, words: &[&str]) -> Ended {
    match mode {
        Mode::Rootless => mode.podman(words),
        Mode::Rootful => mode.run("/run/lab/scripts/engines.sh", &[&["kept", "podman"], words].concat()),
    }
}

/// A container of that Podman; removed at the end of the test.
struct Grouped(Container);

impl Grouped {
    #[track_caller]
    fn start(
        runtime: &str,
        net: Net,
        name: &str,
        annotations: &[(&str, &str)],
        steps: &[&str],
    ) -> (Self, Vec<Value>) {
        let annotations: Vec<String> =
            annotations.iter().map(|(key, value)| format!("--annotation=terok.{key}={value}")).collect();
        let annotations: Vec<&str> = annotations.iter().map(String::as_str).collect();
        let options = [
            &format!("--runtime={runtime}"),
            "run",
            "--detach",
            "--cgroups=enabled",
            &format!("--name={name}"),
            &format!("--network={}", net.network()),
            "--volume=/run/lab/bin/terok-probe:/run/terok-probe:ro",
        ];
        let program = [&["localhost/wl", "/run/terok-probe", "settle"], steps, &["sleep"]].concat();
        let words = [&options, &annotations[..], &program].concat();
        let id = podman_with_groups(net.mode(), &words).succeeded().trim().to_owned();
        let container =
            Grouped(Container { engine: Engine::Podman, mode: net.mode(), name: name.to_owned(), id });
        let logged = || podman_with_groups(net.mode(), &["logs", name]).lines();
        let mut lines = Vec::new();
        eventually("its program has tried everything", || {
            lines = logged();
            lines.len() > steps.len()
        });
        assert_eq!(lines[0]["ok"], true, "{lines:?}");
        (container, lines.split_off(1))
    }
}

impl Drop for Grouped {
    fn drop(&mut self) {
        let _ = podman_with_groups(self.0.mode, &["rm", "--force", "--time=0", &self.0.name]);
    }
}

#[test]
fn hooks_and_shim_make_the_same_container_of_runc() {
    let Some(_lab) = Lab::alone() else { return };
    // They bring the control groups.
    if !Engine::Containerd.starts() {
        return;
    }
    let shim = format!("{FOLDER}/{}-runc", layout::SHIM);
    for (n, net) in nets().enumerate() {
        let (service, site) = (Service::new(net.mode()), site());
        let (v4, _) = bad_addresses();
        // AF_VSOCK is held by no network namespace, but by the filter of system calls.
        let steps = [&format!("http {0} 80 {0} /same", site.name), &format!("tcp {v4} 80"), "socket 40 1 0"];
        for (m, mut annotations) in annotations(&service).into_iter().enumerate() {
            annotations.push(("shield.allow", &site.name));
            let start = |runtime: &str, way: &str| {
                let name = format!("{way}-{n}-{m}");
                let (container, lines) = Grouped::start(runtime, net, &name, &annotations, &steps);
                assert_eq!(lines[0]["answers"][0]["status"], 200, "{net:?}: {lines:?}");
                assert_eq!(
                    (&lines[1]["errno"], &lines[2]["errno"]),
                    (&111.into(), &1.into()),
                    "{net:?}: {lines:?}"
                );
                assert!(seen_at(v4).is_empty());
                container
            };
            hook_files(true);
            let through_hooks = start("runc", "hooks");
            let by_hooks = Protection::of(&through_hooks.0);
            hook_files(false);
            let through_shim = start(&shim, "shim");
            hook_files(true);
            // Nothing else of Podman's own differs with the runtime's name.
            assert_same(&by_hooks, &Protection::of(&through_shim.0));
            says_something(&by_hooks);
            let line = ["exec", &through_shim.0.name, "/run/terok-probe", "socket 40 1 0"];
            assert_eq!(podman_with_groups(net.mode(), &line).lines()[0]["errno"], 1);
        }
    }
    install();
}

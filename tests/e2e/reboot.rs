//! A container that was made before is protected when it is started after: a reboot of the machine, an upgrade of terok (A23). Each with
//! Podman's hook files, with the shim, and with both.

use crate::shim::{hook_files, is_protected, put_shim, take_shim, through};
use terok_tests::{Container, Lab, Mode, Net, Recipe, Service, Vault, install, networks_anew, site};

/// What leads terok to a container.
#[derive(Debug, Clone, Copy)]
enum Way {
    Hooks,
    Shim,
    Both,
}

const WAYS: [Way; 3] = [Way::Hooks, Way::Shim, Way::Both];

/// Without a card, and with each that this machine's Podman has.
fn nets() -> Vec<Net> {
    [Net::Sealed, Net::SealedRootful].into_iter().chain(Net::cards()).collect()
}

impl Way {
    /// Readies the machine, where the shim is installed, for starts in this way.
    fn take(self) {
        hook_files(!matches!(self, Way::Shim));
    }

    fn recipe(self, shim: &str, recipe: Recipe) -> Recipe {
        if matches!(self, Way::Hooks) { recipe } else { through(shim, recipe) }
    }
}

/// A container with a grant, a name that it may reach, and one that an operator has denied it since.
struct Made {
    way: Way,
    service: Service,
    allowed: String,
    denied: String,
    container: Container,
    token: String,
}

impl Made {
    #[track_caller]
    fn new(way: Way, net: Net, shim: &str) -> Self {
        way.take();
        let (service, allowed, denied) = (Service::new(net.mode()), site().name, site().name);
        let recipe = service.recipe(net).annotate("shield.allow", &format!("{allowed} {denied}"));
        let container = way.recipe(shim, recipe).idle().settled();
        net.mode().terok(&["deny", &container.name, &denied]).succeeded();
        let token = container.variable("LAB_TOKEN");
        let made = Made { way, service, allowed, denied, container, token };
        made.holds();
        made.is_brokered("/v1/before");
        made
    }

    /// As it was made: protected, and denied what the operator denied.
    #[track_caller]
    fn holds(&self) {
        is_protected(&self.container, &self.allowed);
        let line = self.container.try_step(&format!("http {0} 80 {0} /denied", self.denied));
        assert_eq!(line["ok"], false, "{:?}: {line}", self.way);
    }

    /// What curl is answered at the base URL, with the token that the container has now.
    #[track_caller]
    fn status(&self, path: &str) -> u16 {
        self.container
            .curl(&format!("\"$LAB_BASE_URL\"{path} -H \"Authorization: Bearer $LAB_TOKEN\""))
            .status
    }

    #[track_caller]
    fn is_brokered(&self, path: &str) {
        assert_eq!(self.status(path), 200, "{:?}", self.way);
        self.service.got_the_real_key(path);
    }

    #[track_caller]
    fn starts_again(&mut self) {
        self.way.take();
        self.container.podman(&["start"]).succeeded();
        assert_eq!(self.container.try_step("settle")["ok"], true);
        let token = self.container.variable("LAB_TOKEN");
        assert_ne!(token, self.token, "{:?}: a token lived on", self.way);
        self.token = token;
        self.holds();
    }

    /// Whether its supervisor is of the build that `upgrade` installed.
    fn is_served_by_the_new_build(&self) -> bool {
        let (parent, worker) = self.container.served_by();
        let new = |pid: u32| std::fs::read(format!("/proc/{pid}/exe")).expect("it runs").ends_with(NEW);
        assert_eq!(new(parent), new(worker), "parent and worker are of one build");
        new(parent)
    }
}

/// Both at once, which is one of them doing nothing, without a card only.
fn all_ways(shim: &str) -> Vec<Made> {
    let ways = |net: Net| WAYS.into_iter().filter(move |way| net.is_sealed() || !matches!(way, Way::Both));
    let each = nets().into_iter().flat_map(|net| ways(net).map(move |way| Made::new(way, net, shim)));
    each.collect()
}

fn tidy() {
    Way::Hooks.take();
    take_shim();
    install();
}

/// The kernel's settings that bridges need, which netavark makes for those of its own.
const FORWARDING: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// No process of a container, an engine or terok; nothing in memory file systems; no mount; no bridge of Podman's, none of
/// netavark's rules and settings of the kernel. Disks and what is installed on them stay. The outside is another machine's. Podman takes a
/// machine without its `alive` file for one that has started anew.
const REBOOT: &str = r#"
running() { for p in /proc/[0-9]*; do
  case $(readlink "$p/exe") in */conmon|*/terok-supervisor*|*/terok-probe*|*/slirp4netns|*/pasta*|*/aardvark-dns|*/catatonit|*/podman) echo "${p#/proc/}";; esac
done; }
for _ in $(seq 1200); do all=$(running); [ -n "$all" ] || break; kill -KILL $all 2>/dev/null; sleep 0.05; done
[ -z "$all" ] || { echo "still running: $all" >&2; exit 1; }
for _ in 1 2 3; do
  cut -d' ' -f2 /proc/mounts | grep -v '^/run/netns/inet$' | grep -E '^(/run/(netns|containers|libpod|crun|terok|user/1001)/|/var/lib/containers/storage/overlay(-containers)?(/|$))' | sort -r |
    while read -r m; do umount -l "$m"; done
done 2>/dev/null
bridges() { ip -o link show type bridge | grep -o ' podman[0-9]*'; }
for bridge in $(bridges); do ip link delete "$bridge"; done
for tables in iptables ip6tables; do
  if $tables-save 2>/dev/null | grep -q NETAVARK; then $tables-save | grep -v NETAVARK | $tables-restore; fi
done
nft delete table inet netavark 2>/dev/null
for setting in FORWARDING; do echo 0 >$setting; done
find /run/netns -mindepth 1 -not -name inet -delete
rm -rf /run/{terok,containers,libpod,crun} /dev/shm/libpod_* /run/user/1001/* /run/user/1001/.[!.]*
[ -z "$(ls -A /run/user/1001)" ] && [ ! -e /run/terok ] && [ -z "$(bridges)" ] && ! nft list ruleset | grep -qi netavark
"#;

#[test]
fn a_container_made_before_a_reboot_is_protected_when_it_is_started_after() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    let mut all = all_ways(&shim);
    let reboot = REBOOT.replace("FORWARDING", &FORWARDING.join(" "));
    Mode::Rootful.run("bash", &["-c", &reboot]).succeeded();
    for made in &mut all {
        assert!(made.container.supervisors().is_empty());
        made.starts_again();
        // The vault's session was in memory too.
        assert_eq!(made.status("/v1/locked"), 503, "{:?}", made.way);
    }
    for mode in [Mode::Rootless, Mode::Rootful] {
        Vault(mode).unlock();
    }
    for made in &all {
        made.is_brokered("/v1/unlocked");
        assert!(made.service.requests("/v1/locked").is_empty());
    }
    drop(all);
    tidy();
    [Mode::Rootless, Mode::Rootful].into_iter().for_each(networks_anew);
    // Other engines' bridges are still there.
    for setting in FORWARDING {
        std::fs::write(setting, "1").expect(setting);
    }
}

/// What another build has at its end.
const NEW: &[u8] = b"another build";

/// Installs other builds of the four programs over those that are there, from a folder of their own.
fn upgrade() {
    let script = format!(
        "set -e; mkdir -p /run/next; for p in terok terok-hook terok-supervisor terok-shim; do
           cp /run/lab/bin/$p /run/next/$p; printf '{}' >> /run/next/$p; done
         chmod 755 /run/next /run/next/*; /run/next/terok setup --system",
        String::from_utf8_lossy(NEW),
    );
    Mode::Rootful.run("bash", &["-c", &script]).succeeded();
}

#[test]
fn an_upgrade_serves_what_runs_as_before_and_what_starts_with_the_new_build() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    let mut all = all_ways(&shim);
    let mut stopped: Vec<Made> = WAYS.iter().map(|&way| Made::new(way, Net::Sealed, &shim)).collect();
    for made in &stopped {
        made.container.podman(&["stop", "--time=0"]).succeeded();
    }
    upgrade();
    for made in &all {
        let (mode, name) = (made.container.mode, made.container.name.as_str());
        let new = |verb: &[&str]| mode.run("/run/next/terok", verb).succeeded();
        // The new build's verbs, a restarted worker and the new shim's `exec`, on what the old build started.
        assert!(new(&["status", name]).contains(name));
        let further = site().name;
        new(&["allow", name, &further]);
        is_protected(&made.container, &further);
        new(&["deny", name, &further]);
        made.container.loses_its_worker();
        made.holds();
        made.is_brokered("/v1/during");
        assert!(!made.is_served_by_the_new_build(), "{:?}", made.way);
        made.container.podman(&["stop", "--time=0"]).succeeded();
        made.container.is_left_alone();
    }
    for made in all.iter_mut().chain(&mut stopped) {
        made.starts_again();
        made.is_brokered("/v1/after");
        assert!(made.is_served_by_the_new_build(), "{:?}", made.way);
    }
    drop((all, stopped));
    tidy();
}

#[test]
fn without_its_shim_a_container_does_not_start_and_with_it_again_it_does() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    let mut all: Vec<Made> = nets().into_iter().map(|net| Made::new(Way::Shim, net, &shim)).collect();
    for made in &all {
        made.container.podman(&["stop", "--time=0"]).succeeded();
        made.container.is_left_alone();
    }
    let away = format!("{shim}.away");
    Mode::Rootful.run("mv", &[&shim, &away]).succeeded();
    for made in &all {
        made.container.podman(&["start"]).failed();
        let status = made.container.podman(&["inspect", "--format={{.State.Running}}"]).succeeded();
        assert_eq!(status.trim(), "false");
        assert!(made.container.supervisors().is_empty());
        let again = through(&shim, Recipe::sealed(made.container.mode, "")).run(&["true"]).1;
        again.failed();
    }
    Mode::Rootful.run("mv", &[&away, &shim]).succeeded();
    for made in &mut all {
        made.starts_again();
        made.is_brokered("/v1/again");
    }
    drop(all);
    tidy();
}

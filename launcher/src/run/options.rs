//! Every option of `terok run` in one table: parser, help, man page and completions read it. What is not in it is refused.
//! An allow-list, because a list of what is forbidden is always one option short.

use super::checks;
use super::checks::Check;

/// What an option does.
#[derive(Clone, Copy)]
pub(crate) enum Does {
    /// Is terok's own.
    Terok,
    /// Goes to Podman as it is.
    Pass,
    /// Goes to Podman if the check finds nothing to say against its value.
    Check(Check),
    /// Is read by terok, which writes what Podman gets.
    Capability,
    /// Goes to Podman where the container has a network card, to `terok.publish` where it has none.
    Publish,
    /// Goes to Podman where the container has a network card; refused with the reason where it has none.
    Card(&'static str),
    /// Undoes the protection: refused, with the reason.
    Refuse(&'static str),
}

/// One option.
#[derive(Clone, Copy)]
pub(crate) struct Opt {
    /// Without the dashes.
    pub(crate) long: &'static str,
    /// The one-letter form.
    pub(crate) short: Option<char>,
    /// Name of the value; `None` for a switch, which takes `=true` or `=false` as Podman's do.
    pub(crate) value: Option<&'static str>,
    /// What it does.
    pub(crate) does: Does,
    /// Help; without any, the option is only listed.
    pub(crate) help: &'static str,
}

const fn terok(long: &'static str, value: Option<&'static str>, help: &'static str) -> Opt {
    Opt { long, short: None, value, does: Does::Terok, help }
}
const fn pass(long: &'static str, value: &'static str) -> Opt {
    Opt { long, short: None, value: Some(value), does: Does::Pass, help: "" }
}
const fn short(letter: char, long: &'static str, value: &'static str) -> Opt {
    Opt { long, short: Some(letter), value: Some(value), does: Does::Pass, help: "" }
}
const fn switch(long: &'static str) -> Opt {
    Opt { long, short: None, value: None, does: Does::Pass, help: "" }
}
const fn short_switch(letter: char, long: &'static str) -> Opt {
    Opt { long, short: Some(letter), value: None, does: Does::Pass, help: "" }
}
const fn check(long: &'static str, value: &'static str, check: Check) -> Opt {
    Opt { long, short: None, value: Some(value), does: Does::Check(check), help: "" }
}
const fn capability(long: &'static str) -> Opt {
    Opt { long, short: None, value: Some("CAP"), does: Does::Capability, help: "" }
}
const fn card(long: &'static str, value: Option<&'static str>, reason: &'static str) -> Opt {
    Opt { long, short: None, value, does: Does::Card(reason), help: "" }
}
const fn refuse(long: &'static str, value: Option<&'static str>, reason: &'static str) -> Opt {
    Opt { long, short: None, value, does: Does::Refuse(reason), help: "" }
}

const NO_CARD: &str = "the container has no network card of its own; give it one with --network bridge";
const OWN_DNS: &str = "the supervisor is the container's only name server";
const NO_PUBLISH_ALL: &str = "without a network card each port is named; write -p HOSTPORT:PORT";
const GLOBAL: &str = "it changes where podman keeps things and which hooks it reads; set it in containers.conf, where terok can check it";
const REMOTE: &str = "the hooks of a remote engine cannot be checked";

/// The table.
pub(crate) const OPTIONS: &[Opt] = &[
    terok(
        "allow",
        Some("RULE…"),
        "Let the container reach this: NAME[:PORTS], *.NAME, ADDRESS[/BITS], host:PORT or any",
    ),
    terok("deny", Some("RULE…"), "Never let the container reach this, whatever allows it"),
    terok(
        "profile",
        Some("NAME…"),
        "Take the rules of these profiles instead of base (see terok profile list); none for no profile",
    ),
    terok("shield", Some("STATE"), "Start with the shield up (default), down or block"),
    terok(
        "hold",
        Some("TIME"),
        "Let an unlisted connection wait so long for a verdict, as 30s (see terok watch --ask)",
    ),
    terok("learn", None, "Let pass what is not denied, and record it for terok profile learn"),
    terok(
        "vault",
        Some("PROVIDER[=NAME]…"),
        "Let the container use these credentials of the vault, which stay on the host (see terok provider list)",
    ),
    terok("ssh", Some("KEY[@HOST]…"), "Let the container have signatures of these SSH keys (see terok ssh)"),
    terok(
        "credential",
        Some("PROVIDER=env:VARIABLE"),
        "Let it use the credential in this variable of yours, for this container only and never in the vault",
    ),
    terok("restricted", None, "No capabilities at all and a stricter system call filter"),
    terok("project", Some("TEXT"), "Label for the audit log and prompts"),
    terok("task", Some("TEXT"), "Label for the audit log and prompts"),
    terok("dry-run", None, "Print the podman command instead of running it"),
    // Processes and terminal.
    short('a', "attach", "STREAM"),
    short_switch('d', "detach"),
    pass("detach-keys", "KEYS"),
    pass("entrypoint", "COMMAND"),
    Opt { does: Does::Check(checks::env), ..short('e', "env", "KEY=VALUE") },
    pass("env-file", "FILE"),
    pass("env-merge", "KEY=VALUE"),
    switch("init"),
    short_switch('i', "interactive"),
    switch("no-healthcheck"),
    pass("health-cmd", "COMMAND"),
    pass("health-interval", "TIME"),
    pass("health-on-failure", "ACTION"),
    pass("health-retries", "N"),
    pass("health-start-period", "TIME"),
    pass("health-timeout", "TIME"),
    pass("health-log-destination", "PLACE"),
    pass("health-max-log-count", "N"),
    pass("health-max-log-size", "N"),
    pass("health-startup-cmd", "COMMAND"),
    pass("health-startup-interval", "TIME"),
    pass("health-startup-retries", "N"),
    pass("health-startup-success", "N"),
    pass("health-startup-timeout", "TIME"),
    pass("pidfile", "FILE"),
    pass("restart", "POLICY"),
    switch("rm"),
    switch("rmi"),
    switch("sig-proxy"),
    pass("stop-signal", "SIGNAL"),
    pass("stop-timeout", "SECONDS"),
    pass("systemd", "MODE"),
    pass("timeout", "SECONDS"),
    short_switch('t', "tty"),
    pass("umask", "MASK"),
    pass("unsetenv", "KEY"),
    switch("unsetenv-all"),
    short('u', "user", "USER"),
    short('w', "workdir", "FOLDER"),
    // Identity and records.
    check("annotation", "KEY=VALUE", checks::annotation),
    pass("cidfile", "FILE"),
    pass("conmon-pidfile", "FILE"),
    short('h', "hostname", "NAME"),
    short('l', "label", "KEY=VALUE"),
    pass("label-file", "FILE"),
    pass("log-driver", "DRIVER"),
    pass("log-opt", "KEY=VALUE"),
    pass("name", "NAME"),
    switch("replace"),
    pass("requires", "CONTAINER"),
    check("sdnotify", "MODE", checks::sdnotify),
    // Image.
    pass("arch", "ARCH"),
    pass("authfile", "FILE"),
    pass("cert-dir", "FOLDER"),
    pass("creds", "USER:PASSWORD"),
    pass("decryption-key", "KEY"),
    switch("disable-content-trust"),
    pass("image-volume", "MODE"),
    pass("os", "OS"),
    pass("platform", "OS/ARCH"),
    pass("pull", "POLICY"),
    short_switch('q', "quiet"),
    pass("retry", "N"),
    pass("retry-delay", "TIME"),
    switch("tls-verify"),
    pass("variant", "VARIANT"),
    // Limits.
    pass("blkio-weight", "WEIGHT"),
    pass("blkio-weight-device", "DEVICE:WEIGHT"),
    pass("cgroup-conf", "KEY=VALUE"),
    pass("cgroup-parent", "PATH"),
    check("cgroupns", "MODE", checks::cgroupns),
    pass("cgroups", "MODE"),
    pass("cpu-period", "N"),
    pass("cpu-quota", "N"),
    pass("cpu-rt-period", "N"),
    pass("cpu-rt-runtime", "N"),
    short('c', "cpu-shares", "N"),
    pass("cpus", "N"),
    pass("cpuset-cpus", "LIST"),
    pass("cpuset-mems", "LIST"),
    pass("device-read-bps", "DEVICE:RATE"),
    pass("device-read-iops", "DEVICE:RATE"),
    pass("device-write-bps", "DEVICE:RATE"),
    pass("device-write-iops", "DEVICE:RATE"),
    short('m', "memory", "SIZE"),
    pass("memory-reservation", "SIZE"),
    pass("memory-swap", "SIZE"),
    pass("memory-swappiness", "N"),
    switch("oom-kill-disable"),
    pass("oom-score-adj", "N"),
    pass("pids-limit", "N"),
    pass("rdt-class", "CLASS"),
    pass("shm-size", "SIZE"),
    pass("shm-size-systemd", "SIZE"),
    pass("ulimit", "LIMIT"),
    // Files.
    pass("chrootdirs", "FOLDER"),
    check("device", "DEVICE", checks::device),
    check("mount", "MOUNT", checks::mount),
    switch("read-only"),
    switch("read-only-tmpfs"),
    pass("secret", "SECRET"),
    pass("tmpfs", "FOLDER"),
    pass("tz", "ZONE"),
    Opt { does: Does::Check(checks::volume), ..short('v', "volume", "FROM:TO") },
    // Users and rights.
    capability("cap-add"),
    capability("cap-drop"),
    pass("gidmap", "MAP"),
    pass("group-add", "GROUP"),
    pass("group-entry", "ENTRY"),
    pass("hostuser", "USER"),
    switch("passwd"),
    pass("passwd-entry", "ENTRY"),
    check("security-opt", "OPTION", checks::security_opt),
    pass("subgidname", "NAME"),
    pass("subuidname", "NAME"),
    check("sysctl", "KEY=VALUE", checks::sysctl),
    pass("uidmap", "MAP"),
    check("userns", "MODE", checks::userns),
    // Namespaces and network.
    pass("add-host", "NAME:ADDRESS"),
    pass("expose", "PORT"),
    pass("hosts-file", "FILE"),
    switch("http-proxy"),
    check("ipc", "MODE", checks::ipc),
    Opt {
        help: "none (default: no network card), bridge, slirp4netns, pasta, the name of a network, or container:NAME",
        ..check("network", "MODE", checks::network)
    },
    card("network-alias", Some("NAME"), NO_CARD),
    card("ip", Some("ADDRESS"), NO_CARD),
    card("ip6", Some("ADDRESS"), NO_CARD),
    card("mac-address", Some("ADDRESS"), NO_CARD),
    Opt {
        long: "publish",
        short: Some('p'),
        value: Some("[ADDRESS:]HOSTPORT:PORT"),
        does: Does::Publish,
        help: "Let the host's port lead to the container's; without a network card TCP, and from the host itself where no address is given",
    },
    Opt { short: Some('P'), ..card("publish-all", None, NO_PUBLISH_ALL) },
    Opt { help: "Join this pod; all its members need the same rules", ..pass("pod", "POD") },
    pass("pod-id-file", "FILE"),
    switch("no-hostname"),
    switch("no-hosts"),
    check("pid", "MODE", checks::pid),
    check("uts", "MODE", checks::uts),
    // Refused by name.
    refuse("privileged", None, "it gives the container the host's devices and every capability"),
    Opt { does: Does::Check(checks::network), ..refuse("net", Some("MODE"), "") },
    refuse("dns", Some("ADDRESS"), OWN_DNS),
    refuse("dns-option", Some("OPTION"), OWN_DNS),
    refuse("dns-opt", Some("OPTION"), OWN_DNS),
    refuse("dns-search", Some("DOMAIN"), OWN_DNS),
    refuse(
        "volumes-from",
        Some("CONTAINER"),
        "it brings in mounts that cannot be checked; name them with --volume",
    ),
    refuse("device-cgroup-rule", Some("RULE"), "it opens devices of the host; name one with --device"),
    refuse("gpus", Some("LIST"), "it opens devices of the host that cannot be checked"),
    refuse("env-host", None, "it copies every variable of yours, secrets included; name them with --env"),
    refuse("preserve-fds", Some("N"), "it hands open files of the host to the container"),
    refuse("preserve-fd", Some("LIST"), "it hands open files of the host to the container"),
    refuse(
        "rootfs",
        None,
        "it runs a folder of the host as the image; make an image of it with podman import",
    ),
    refuse("seccomp-policy", Some("POLICY"), "it lets the image choose its own system call filter"),
    refuse(
        "personality",
        Some("PERSONA"),
        "it selects a system call table that the filter was not written for",
    ),
    refuse("hooks-dir", Some("FOLDER"), "it replaces the folders that terok's hooks are in"),
    refuse(
        "runtime",
        Some("PROGRAM"),
        "another runtime need not run hooks; set it in containers.conf, then run: terok doctor",
    ),
    refuse("runtime-flag", Some("FLAG"), GLOBAL),
    refuse("config", Some("FILE"), GLOBAL),
    refuse("module", Some("FILE"), GLOBAL),
    refuse("conmon", Some("PROGRAM"), GLOBAL),
    refuse("root", Some("FOLDER"), GLOBAL),
    refuse("runroot", Some("FOLDER"), GLOBAL),
    refuse("storage-driver", Some("DRIVER"), GLOBAL),
    refuse("storage-opt", Some("OPTION"), GLOBAL),
    refuse("tmpdir", Some("FOLDER"), GLOBAL),
    refuse("volumepath", Some("FOLDER"), GLOBAL),
    refuse("cgroup-manager", Some("MANAGER"), GLOBAL),
    refuse("remote", None, REMOTE),
    refuse("connection", Some("NAME"), REMOTE),
    refuse("url", Some("URL"), REMOTE),
    refuse("identity", Some("FILE"), REMOTE),
];

/// Capabilities a container keeps: what a package manager needs that runs as root inside and hands work to an
/// unprivileged user (apt's `_apt`), and nothing that reaches beyond the container's own files and processes.
pub(crate) const KEPT_CAPABILITIES: [&str; 7] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"];

/// Capabilities `--cap-add` may add: Podman's own default set, and raw sockets where there is no card to leave by.
pub(crate) const ADDABLE_CAPABILITIES: [&str; 7] =
    ["AUDIT_WRITE", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETPCAP", "SYS_CHROOT"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_is_listed_twice() {
        for (at, option) in OPTIONS.iter().enumerate() {
            for other in &OPTIONS[at + 1..] {
                assert_ne!(option.long, other.long);
                assert!(option.short.is_none() || option.short != other.short, "-{:?}", option.short);
            }
        }
    }

    #[test]
    fn every_refusal_gives_a_reason() {
        for option in OPTIONS {
            if let Does::Refuse(reason) | Does::Card(reason) = option.does {
                assert!(reason.len() > 20, "--{}", option.long);
            }
        }
    }

    #[test]
    fn every_long_option_of_the_installed_podman_is_passed_refused_or_left_out_on_purpose() {
        // Left out: they name programs or folders of the host and are of no use here.
        const LEFT_OUT: [&str; 3] = ["init-path", "help", "noout"];
        let Ok(podman) = terok_install::podman::find() else {
            eprintln!("skipped: podman is not installed");
            return;
        };
        let help = std::process::Command::new(podman).args(["run", "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let options: Vec<&str> = help
            .lines()
            .filter_map(|line| line.split_once("--").filter(|(before, _)| before.len() <= 6))
            .filter_map(|(_, rest)| rest.split_whitespace().next())
            .collect();
        assert!(options.len() > 80, "the help text of podman run was not understood");
        for long in options {
            assert!(
                LEFT_OUT.contains(&long) || OPTIONS.iter().any(|option| option.long == long),
                "--{long} is neither passed nor refused"
            );
        }
    }
}

//! What may stand behind an option that passes to Podman: each check says nothing, or why the value is refused.

use super::mounts::Doors;
use std::path::Path;

/// Looks at one value; `Err` is the reason against it.
pub(crate) type Check = fn(&str, &Doors) -> Result<(), String>;

fn refuse<T>(reason: impl Into<String>) -> Result<T, String> {
    Err(reason.into())
}

/// Only values that keep a namespace the container's own.
fn own_namespace(value: &str, what: &str, passing: &[&str]) -> Result<(), String> {
    if passing.contains(&value) {
        return Ok(());
    }
    match value.split(':').next().unwrap_or_default() {
        "host" => refuse(format!("the container would share the host's {what}")),
        "container" | "ns" | "pod" => refuse(format!("the container would share another container's {what}")),
        _ => refuse(format!("only {} pass", passing.join(", "))),
    }
}

pub(super) fn network(value: &str, _: &Doors) -> Result<(), String> {
    super::network::kinds_of(value).map(|_| ())
}

pub(super) fn pid(value: &str, _: &Doors) -> Result<(), String> {
    own_namespace(value, "processes", &["private", ""])
}

pub(super) fn ipc(value: &str, _: &Doors) -> Result<(), String> {
    own_namespace(value, "shared memory", &["private", "none", "shareable", ""])
}

pub(super) fn uts(value: &str, _: &Doors) -> Result<(), String> {
    own_namespace(value, "host name", &["private", ""])
}

pub(super) fn cgroupns(value: &str, _: &Doors) -> Result<(), String> {
    own_namespace(value, "control groups", &["private", ""])
}

/// `host` is Podman's default and means its own user namespace for a rootless user.
pub(super) fn userns(value: &str, _: &Doors) -> Result<(), String> {
    match value.split(':').next().unwrap_or_default() {
        "" | "auto" | "host" | "keep-id" | "nomap" | "private" => Ok(()),
        _ => refuse(
            "the container would share another container's user namespace; auto, keep-id, nomap and host pass",
        ),
    }
}

pub(super) fn sdnotify(value: &str, _: &Doors) -> Result<(), String> {
    match value {
        "conmon" | "ignore" => Ok(()),
        _ => refuse("it opens the service manager's socket to the container; conmon and ignore pass"),
    }
}

pub(super) fn env(value: &str, _: &Doors) -> Result<(), String> {
    match value.split_once('=') {
        None if value.contains('*') => {
            refuse("the pattern copies variables of yours that nobody listed; name them one by one")
        }
        _ => Ok(()),
    }
}

/// Podman reads some options as lines of CSV: what stands behind a comma is a value of its own, which nobody checked.
pub(super) fn single(value: &str) -> Result<(), String> {
    match value.contains([',', '"']) || value.contains(char::is_control) {
        true => refuse(
            "podman takes what stands behind a comma or in quotes for another value; use spaces, or give each its own option",
        ),
        false => Ok(()),
    }
}

pub(super) fn annotation(value: &str, _: &Doors) -> Result<(), String> {
    single(value)?;
    let Some((key, _)) = value.split_once('=') else {
        return refuse("write KEY=VALUE");
    };
    // crun and Podman take orders from these: another handler, a seccomp listener, privileges.
    for prefix in
        ["run.oci.", "io.podman.", "io.container.", "io.crun.", "org.systemd.property.", "io.terok."]
    {
        if key.starts_with(prefix) {
            return refuse(format!("keys below {prefix} are orders to the engine"));
        }
    }
    Ok(())
}

pub(super) fn security_opt(value: &str, doors: &Doors) -> Result<(), String> {
    let (key, rest) = value.split_once([':', '=']).unwrap_or((value, ""));
    match (key, rest) {
        ("no-new-privileges", "" | "true") | ("label" | "mask", _) => Ok(()),
        ("no-new-privileges", _) => refuse("programs with the set-user-id bit would gain rights again"),
        ("seccomp", "unconfined") => refuse("the container would run without Podman's system call filter"),
        ("seccomp", path) => doors.refuses(Path::new(path), true),
        ("apparmor", "unconfined") => refuse("the container would run without its AppArmor profile"),
        ("apparmor", _) => Ok(()),
        ("unmask", _) => refuse("it uncovers kernel files that Podman hides"),
        _ => refuse(
            "not known to keep the protection; no-new-privileges, label=…, mask=…, apparmor=PROFILE and seccomp=FILE pass",
        ),
    }
}

/// Namespaced settings that have nothing to do with the network.
pub(super) fn sysctl(value: &str, _: &Doors) -> Result<(), String> {
    single(value)?;
    let key = value.split('=').next().unwrap_or_default().replace('/', ".");
    if key.starts_with("net.") {
        return refuse("the container's network is terok's to set");
    }
    let passes = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    if passes.iter().any(|prefix| key.starts_with(prefix)) {
        return Ok(());
    }
    refuse("only kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* pass")
}

pub(super) fn device(value: &str, _: &Doors) -> Result<(), String> {
    single(value)?;
    let path = value.split(':').next().unwrap_or_default();
    if super::mounts::harmless_device(Path::new(path)) {
        return Ok(());
    }
    refuse("a device of the host can be a way out of the container; /dev/fuse, /dev/dri and /dev/snd pass")
}

pub(super) fn volume(value: &str, doors: &Doors) -> Result<(), String> {
    let mut parts = value.split(':');
    let (from, to, options) =
        (parts.next().unwrap_or_default(), parts.next(), parts.next().unwrap_or_default());
    // One part is a place in the container, a bare word is the name of a volume: podman-run(1).
    if to.is_none() || !(from.starts_with('/') || from.starts_with('.')) {
        return Ok(());
    }
    for option in options.split(',') {
        // An overlay writes into these folders of the host.
        if let Some(folder) = option.strip_prefix("upperdir=").or_else(|| option.strip_prefix("workdir=")) {
            doors.refuses(Path::new(folder), false)?;
        }
    }
    // U gives the folder away to the container's user, :ro or not.
    let given_away = options.split(',').any(|option| option == "U");
    let read_only = !given_away && options.split(',').any(|option| matches!(option, "ro" | "O"));
    doors.refuses(Path::new(from), read_only)
}

pub(super) fn mount(value: &str, doors: &Doors) -> Result<(), String> {
    if value.contains('"') || value.contains(char::is_control) {
        return refuse("quoted values and several lines are not understood; use --volume");
    }
    let fields: Vec<(&str, &str)> =
        value.split(',').map(|field| field.split_once('=').unwrap_or((field, ""))).collect();
    let get =
        |names: &[&str]| fields.iter().rev().find(|(key, _)| names.contains(key)).map(|(_, value)| *value);
    if get(&["volume-opt"]).is_some() {
        return refuse("volume-opt can name any folder of the host; use --volume");
    }
    // Podman goes by the first, an engine of tomorrow by the last.
    if fields.iter().filter(|(key, _)| *key == "type").count() > 1 {
        return refuse("two types");
    }
    match get(&["type"]).unwrap_or("volume") {
        "tmpfs" | "ramfs" | "image" | "devpts" | "volume" => Ok(()),
        "bind" | "glob" => {
            let Some(from) = get(&["source", "src"]) else { return refuse("no source") };
            // A pattern can match anything in the folder before its first special character.
            let from = from.split_once(['*', '?', '[', '\\']).map_or(from, |(before, _)| {
                before
                    .rsplit_once('/')
                    .map_or("/", |(folder, _)| if folder.is_empty() { "/" } else { folder })
            });
            let given_away = get(&["U", "chown"]).is_some_and(|value| value != "false");
            let read_only = !given_away && matches!(get(&["ro", "readonly"]), Some("" | "true"));
            doors.refuses(Path::new(from), read_only)
        }
        other => refuse(format!("mounts of type {other} are not known to keep the protection; use --volume")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that pass, and values that do not.
    const TABLE: &[(&str, Check, &[&str], &[&str])] = &[
        (
            "network",
            network,
            &["none", "bridge", "slirp4netns", "pasta", "mynet", "container:x"],
            &["host", "host:", "a,host", "ns:/proc/1/ns/net", "container:", ""],
        ),
        ("pid", pid, &["private", ""], &["host", "container:x", "ns:/x", "hosts"]),
        ("ipc", ipc, &["private", "none", "shareable"], &["host", "container:x", "ns:/x"]),
        ("uts", uts, &["private"], &["host", "container:x", "ns:/x"]),
        ("cgroupns", cgroupns, &["private"], &["host", "container:x", "ns:/x"]),
        (
            "userns",
            userns,
            &["host", "auto", "auto:size=1000", "keep-id", "keep-id:uid=1,gid=1", "nomap"],
            &["container:x", "ns:/x", "what"],
        ),
        ("sdnotify", sdnotify, &["conmon", "ignore"], &["container", "healthy"]),
        ("env", env, &["A=1", "A", "A=*", "A=b=*"], &["*", "AWS_*"]),
        (
            "annotation",
            annotation,
            &["a=b", "com.example/x=", "terok.task=x"],
            &[
                "a",
                "run.oci.handler=krun",
                "run.oci.seccomp.receiver=/x",
                "io.podman.annotations.privileged=TRUE",
                "io.terok.amended=1",
                "a=b,run.oci.handler=krun",
                "a=b,terok.shield=down",
                "\"run.oci.handler=krun\"",
            ],
        ),
        (
            "security-opt",
            security_opt,
            &[
                "no-new-privileges",
                "no-new-privileges=true",
                "no-new-privileges:true",
                "label=disable",
                "label:disable",
                "mask=/proc/x",
                "apparmor=mine",
            ],
            &[
                "no-new-privileges=false",
                "no-new-privileges:false",
                "seccomp=unconfined",
                "seccomp:unconfined",
                "apparmor=unconfined",
                "unmask=ALL",
                "proc-opts=hidepid=0",
                "systempaths=unconfined",
                "",
            ],
        ),
        (
            "sysctl",
            sysctl,
            &["kernel.shmmax=1", "kernel.sem=1 2 3 4", "fs.mqueue.msg_max=10", "kernel/shmmax=1"],
            &[
                "kernel.shmmax=1,net.ipv4.ip_forward=1",
                "net.ipv4.ip_forward=1",
                "net/ipv4/ip_forward=1",
                "kernel.core_pattern=|/x",
                "vm.swappiness=1",
            ],
        ),
        (
            "device",
            device,
            &["/dev/fuse", "/dev/dri", "/dev/dri/renderD128:/dev/dri/x:rw", "/dev/snd"],
            &[
                "/dev/mem",
                "/dev/vhost-vsock",
                "/dev/net/tun",
                "/dev/kvm",
                "/dev/sda",
                "/dev",
                "/dev/dri/../sda",
                "vendor.com/gpu=all",
                "/dev/dri/card0,/dev/mem",
                "/dev/dri:/dev/dri,/dev/vhost-vsock",
            ],
        ),
    ];

    #[test]
    fn values_that_undo_the_protection_are_refused_and_others_pass() {
        let doors = Doors::tests();
        for (option, check, passing, refused) in TABLE {
            for value in *passing {
                assert_eq!(check(value, &doors), Ok(()), "--{option} {value}");
            }
            for value in *refused {
                assert!(check(value, &doors).is_err(), "--{option} {value} passes");
            }
        }
    }
}

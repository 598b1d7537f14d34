//! Doors that the operator mounted into the container (L8). An engine's socket or a message bus starts programs outside
//! of every protection: refused. Any other unix socket of the host is the operator's own: told to the audit log.

use crate::mounts::{Mounts, Spot};
use crate::refusal::Refusal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use terok_policy::layout;

/// A folder of mounted sockets is looked through this far, and this many sockets are told.
const ENTRIES: usize = 4096;
const TOLD: usize = 64;

const ENGINE: &str = "a container engine's socket, which starts containers without protection";
const BUS: &str = "a message bus, which starts programs on the host";
const MANAGER: &str = "the service manager's socket, which starts programs on the host";
const TEROK: &str = "terok's control sockets, which lift the protection";
const VAULT: &str = "terok's vault, which holds the real keys";
const PROCESSES: &str = "the host's processes, through which their networks are reached";

/// Sockets that are known by name, wherever they are.
const BY_NAME: &[(&str, &str)] = &[
    ("podman.sock", ENGINE),
    ("docker.sock", ENGINE),
    ("containerd.sock", ENGINE),
    ("crio.sock", ENGINE),
    ("cri-dockerd.sock", ENGINE),
    ("buildkitd.sock", ENGINE),
    ("system_bus_socket", BUS),
];

/// Places that a mount must neither be, nor be in, nor hold, below `/run` and below `/run/user/UID`.
const SYSTEM: &[(&str, &str)] = &[
    ("podman/podman.sock", ENGINE),
    ("docker.sock", ENGINE),
    ("docker", ENGINE),
    ("containerd/containerd.sock", ENGINE),
    ("containerd/containerd.sock.ttrpc", ENGINE),
    // Those of its shims, which start processes in containers.
    ("containerd/s", ENGINE),
    ("crio/crio.sock", ENGINE),
    ("buildkit", ENGINE),
    ("dbus/system_bus_socket", BUS),
    ("systemd/private", MANAGER),
    ("terok", TEROK),
];
const USER: &[(&str, &str)] = &[
    ("podman/podman.sock", ENGINE),
    ("docker.sock", ENGINE),
    ("docker", ENGINE),
    ("buildkit", ENGINE),
    ("bus", BUS),
    ("dbus-1", BUS),
    ("systemd/private", MANAGER),
    ("terok", TEROK),
];

/// What of the owner's nobody may mount, beside the sockets of their session.
pub(crate) struct Keep<'a> {
    /// Their uid.
    pub(crate) uid: u32,
    /// Their vault's folder.
    pub(crate) vault: PathBuf,
    /// The one folder below terok's own that this container is given ([`crate::birth`]).
    pub(crate) given: Option<&'a Path>,
}

/// A place on the host, what is there, and where it is on its file system: the same may be mounted elsewhere.
struct Known {
    place: PathBuf,
    what: &'static str,
    spot: Option<Spot>,
}

/// What one mount brings in.
struct Mounted {
    /// As the configuration has it.
    source: PathBuf,
    /// What it leads to on the host: a runtime follows links as well.
    real: PathBuf,
    /// What comes with it.
    spots: Vec<Spot>,
}

/// Refuses the doors that nothing could be kept behind; the others, for the audit log.
pub(crate) fn check(config: &Value, keep: &Keep<'_>) -> Result<Vec<String>, Refusal> {
    let mut mounted = mounted(config);
    mounted.retain(|mount| Some(mount.source.as_path()) != keep.given || mount.source != mount.real);
    let mounts = Mounts::read().map_err(Refusal::io("read /proc/thread-self/mountinfo"))?;
    for mount in &mut mounted {
        mount.spots = mounts.coming_with(&mount.real);
    }
    let known = known(keep, &mounted, &mounts);
    if let Some(root) = config.pointer("/root/path").and_then(Value::as_str) {
        check_root(Path::new(root), &known, &mounts)?;
    }
    if mounted.is_empty() {
        return Ok(Vec::new());
    }
    for mount in &mounted {
        for Known { place, what, spot } in &known {
            let by_path = mount.real.starts_with(place) || place.starts_with(&mount.real);
            let is_there = |spot: &Spot| mount.spots.iter().any(|m| m.holds(spot) || spot.holds(m));
            if by_path || spot.as_ref().is_some_and(is_there) {
                return Err(refusal(&mount.source, place, what));
            }
        }
    }
    let bound = bound(&std::fs::read_to_string("/proc/net/unix").unwrap_or_default());
    let mut doors = Vec::new();
    for mount in &mounted {
        let mut sockets = sockets_at(&mount.real);
        sockets.extend(bound.iter().filter(|socket| socket.starts_with(&mount.real)).cloned());
        for socket in sockets {
            let name = socket.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some((_, what)) = BY_NAME.iter().find(|(known, _)| *known == name) {
                return Err(refusal(&mount.source, &socket, what));
            }
            doors.push(socket.display().to_string());
        }
    }
    doors.sort();
    doors.dedup();
    doors.truncate(TOLD);
    Ok(doors)
}

/// `--rootfs /`: a root file system may be a folder of the host's, with all that is mounted below it.
fn check_root(root: &Path, known: &[Known], mounts: &Mounts) -> Result<(), Refusal> {
    let real = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let spots = mounts.coming_with(&real);
    let is_in = |known: &&Known| {
        let held = |spot: &Spot| spots.iter().any(|root| root.holds(spot));
        known.place.starts_with(&real) || known.spot.as_ref().is_some_and(held)
    };
    match known.iter().find(is_in) {
        Some(Known { place, what, .. }) => Err(refusal(root, place, what)),
        None => Ok(()),
    }
}

fn refusal(source: &Path, place: &Path, what: &str) -> Refusal {
    let (source, place) = (source.display(), place.display());
    Refusal::Guard(format!(
        "the mounted {source} is, holds or belongs to {place}: {what}; mount a narrower folder or leave it out"
    ))
}

/// The host's files and folders in the container. File systems of the container's own (proc, tmpfs, sysfs, devices that the
/// engine lists one by one) bring in none.
fn mounted(config: &Value) -> Vec<Mounted> {
    let mounts = config.get("mounts").and_then(Value::as_array).into_iter().flatten();
    let mut found = Vec::new();
    for mount in mounts {
        let text = |key| mount.get(key).and_then(Value::as_str).unwrap_or_default();
        let options = || {
            let options = mount.get("options").and_then(Value::as_array);
            options.into_iter().flatten().filter_map(Value::as_str)
        };
        let mut sources = Vec::new();
        if text("type") == "bind" || options().any(|option| matches!(option, "bind" | "rbind")) {
            sources.push(text("source"));
        }
        // `--volume DIR:PATH:O` is an overlay over DIR.
        for option in options() {
            let folders = ["lowerdir=", "upperdir="].into_iter().find_map(|key| option.strip_prefix(key));
            sources.extend(folders.into_iter().flat_map(|folders| folders.split(':')));
        }
        for source in sources.into_iter().filter(|source| source.starts_with('/')) {
            let source = PathBuf::from(source);
            let real = source.canonicalize().unwrap_or_else(|_| source.clone());
            if !real.starts_with("/dev") || real == Path::new("/dev") {
                found.push(Mounted { source, real, spots: Vec::new() });
            }
        }
    }
    found
}

/// The known places, by where they lead as well: the machine's, the owner's, and those of users of whom something is mounted.
fn known(keep: &Keep<'_>, mounted: &[Mounted], mounts: &Mounts) -> Vec<Known> {
    let users = Path::new("/run/user");
    let mut folders = BTreeSet::from([users.join(keep.uid.to_string())]);
    for mount in mounted {
        let user = mount.real.strip_prefix(users).ok().and_then(|below| below.components().next());
        folders.extend(user.map(|user| users.join(user)));
        folders.extend(mounts.points_of(&mount.spots, users).map(Path::to_owned));
    }
    let mut places: Vec<(PathBuf, &str)> = Vec::new();
    let run = std::iter::once((PathBuf::from("/run"), SYSTEM));
    for (folder, below) in run.chain(folders.into_iter().map(|folder| (folder, USER))) {
        places.extend(below.iter().map(|(name, what)| (folder.join(name), *what)));
    }
    places.push((PathBuf::from("/proc"), PROCESSES));
    // A folder without a store in it keeps nothing; a home may be mounted until its owner makes a vault.
    if keep.vault.join(layout::VAULT_STORE).symlink_metadata().is_ok() {
        places.push((keep.vault.clone(), VAULT));
    }
    let led_to = places.iter().filter_map(|(place, what)| Some((place.canonicalize().ok()?, *what)));
    let led_to: Vec<_> = led_to.filter(|(real, _)| places.iter().all(|(place, _)| place != real)).collect();
    places.extend(led_to);
    let known = places.into_iter().map(|(place, what)| Known { spot: mounts.spot(&place), place, what });
    known.collect()
}

/// Sockets that are bound on the host, by path (`/proc/net/unix`).
fn bound(table: &str) -> Vec<PathBuf> {
    // Num RefCount Protocol Flags Type St Inode Path
    let paths = table.lines().filter_map(|line| line.split_ascii_whitespace().nth(7));
    paths.filter(|path| path.starts_with('/')).map(PathBuf::from).collect()
}

/// The socket at `path`, or those in the folder there: another container's are in no list of the host's.
fn sockets_at(path: &Path) -> Vec<PathBuf> {
    let is_socket = |kind: std::fs::FileType| kind.is_socket();
    match std::fs::symlink_metadata(path) {
        Ok(meta) if is_socket(meta.file_type()) => vec![path.to_owned()],
        Ok(meta) if meta.is_dir() => {
            let entries = std::fs::read_dir(path).into_iter().flatten().take(ENTRIES).flatten();
            let sockets = entries.filter(|entry| entry.file_type().is_ok_and(is_socket));
            sockets.map(|entry| entry.path()).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::net::UnixListener;

    fn keep() -> Keep<'static> {
        Keep { uid: 1001, vault: "/nowhere".into(), given: None }
    }

    fn binding(source: &Path) -> Value {
        json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev/null", "type": "bind", "source": "/dev/null", "options": ["bind"]},
            {"destination": "/x", "type": "bind", "source": source, "options": ["rbind"]},
        ]})
    }

    fn refused(source: &Path) -> String {
        check(&binding(source), &keep()).unwrap_err().to_string()
    }

    #[test]
    fn engines_buses_and_what_holds_them_are_refused() {
        for (source, what) in [
            ("/", "container engine"),
            ("/run", "container engine"),
            ("/var/run", "container engine"),
            ("/run/podman", "container engine"),
            ("/run/user/1001", "container engine"),
            ("/run/user/1001/bus", "message bus"),
            ("/run/user/1001/systemd", "service manager"),
            ("/run/user/1001/terok", "control sockets"),
            ("/run/containerd/s", "container engine"),
            ("/run/dbus", "message bus"),
            ("/run/user/1002/bus", "message bus"),
            ("/proc", "host's processes"),
            ("/proc/sys", "host's processes"),
        ] {
            let reason = refused(Path::new(source));
            assert!(reason.contains(what) && reason.contains(source), "{source}: {reason}");
        }
    }

    #[test]
    fn the_hosts_own_root_is_refused_as_a_containers() {
        let of = |root: &Path| check(&json!({"root": {"path": root}}), &keep());
        for root in ["/", "/run", "/run/user/1001"] {
            assert!(of(Path::new(root)).unwrap_err().to_string().contains(root), "{root}");
        }
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("rootfs");
        std::os::unix::fs::symlink("/", &link).unwrap();
        of(&link).unwrap_err();
        for root in [folder.path(), Path::new("rootfs"), Path::new("/run/containerd/io/rootfs")] {
            of(root).unwrap();
        }
    }

    #[test]
    fn work_folders_pass_and_sockets_in_them_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(check(&binding(folder.path()), &keep()).unwrap(), [""; 0]);
        let sockets = [deep.join("deep.sock"), folder.path().join("app.sock")];
        let _bound = sockets.each_ref().map(|path| UnixListener::bind(path).unwrap());
        assert_eq!(
            check(&binding(folder.path()), &keep()).unwrap(),
            sockets.each_ref().map(|path| path.display().to_string())
        );
        assert_eq!(check(&binding(&sockets[1]), &keep()).unwrap(), [sockets[1].display().to_string()]);
        assert_eq!(check(&json!({}), &keep()).unwrap(), [""; 0]);
    }

    #[test]
    fn an_engines_socket_is_known_by_name_wherever_it_is_and_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let _engine = UnixListener::bind(folder.path().join("podman.sock")).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("podman.sock"), &link).unwrap();
        for source in [folder.path(), &link, folder.path().parent().unwrap()] {
            assert!(refused(source).contains("podman.sock"), "{}", source.display());
        }
        let innocent = folder.path().join("innocent");
        std::os::unix::fs::symlink("/run", &innocent).unwrap();
        assert!(refused(&innocent).contains("innocent"));
        let overlay = json!({"mounts": [{"destination": "/x", "type": "overlay", "source": "overlay",
            "options": [format!("lowerdir={}", folder.path().display()), "upperdir=/tmp/u"]}]});
        assert!(check(&overlay, &keep()).unwrap_err().to_string().contains("podman.sock"));
    }

    #[test]
    fn a_vault_with_a_store_is_kept_from_containers_and_so_is_what_holds_it() {
        let home = tempfile::tempdir().unwrap();
        let vault = home.path().join("share/vault");
        let keep = Keep { uid: 1001, vault: vault.clone(), given: None };
        std::fs::create_dir_all(&vault).unwrap();
        check(&binding(home.path()), &keep).unwrap();
        std::fs::write(vault.join(layout::VAULT_STORE), "").unwrap();
        for source in [home.path(), &vault, &vault.join(layout::VAULT_STORE)] {
            let reason = check(&binding(source), &keep).unwrap_err().to_string();
            assert!(reason.contains("terok's vault"), "{reason}");
        }
        check(&binding(&home.path().join("share/other")), &keep).unwrap();
    }

    /// As a volume of an engine's with `--opt o=bind`, or an operator's own bind mount.
    #[test]
    fn a_door_that_is_mounted_elsewhere_is_found_there() {
        terok_need::with_empty_folders(|| {
            use nix::mount::{MsFlags, mount};
            let bind = |from: &str, to: &str| {
                std::fs::create_dir_all(to).unwrap();
                let none: Option<&str> = None;
                mount(Some(from), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).unwrap();
            };
            for folder in ["/run/terok/box", "/run/other", "/var/lib/vault"] {
                std::fs::create_dir_all(folder).unwrap();
            }
            std::fs::write(Path::new("/var/lib/vault").join(layout::VAULT_STORE), "").unwrap();
            bind("/run/terok", "/var/lib/volumes/control");
            bind("/run", "/var/lib/volumes/tree/all/run");
            bind("/run/other", "/var/lib/volumes/other");
            bind("/var/lib/vault", "/run/volumes/vault");
            let keep = Keep { uid: 0, vault: "/var/lib/vault".into(), given: None };
            for (source, what) in [
                ("/var/lib/volumes/control", TEROK),
                ("/var/lib/volumes/control/box", TEROK),
                ("/var/lib/volumes/tree/all", ENGINE),
                ("/run/volumes/vault", VAULT),
            ] {
                let reason = check(&binding(Path::new(source)), &keep).unwrap_err().to_string();
                assert!(reason.contains(what) && reason.contains(source), "{source}: {reason}");
            }
            let tree = json!({"root": {"path": "/var/lib/volumes/tree"}});
            assert!(check(&tree, &keep).unwrap_err().to_string().contains(ENGINE));
            check(&binding(Path::new("/var/lib/volumes/other")), &keep).unwrap();
        });
    }

    #[test]
    fn of_teroks_own_folders_a_container_gets_the_one_it_was_given() {
        let given = Path::new("/run/user/1001/terok/.birth/c1/inside");
        let keep = Keep { given: Some(given), ..keep() };
        check(&binding(given), &keep).unwrap();
        for other in ["/run/user/1001/terok/.birth/c1", "/run/user/1001/terok/.birth/c2/inside"] {
            assert!(
                check(&binding(Path::new(other)), &keep).unwrap_err().to_string().contains("control sockets")
            );
        }
    }
}

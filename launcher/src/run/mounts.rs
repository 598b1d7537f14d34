//! Which folders of the host must not be mounted into a container: those with a door out of it (an engine's socket, the
//! session bus, our own control sockets), and, to write, those that hold the protection itself.

use std::path::{Component, Path, PathBuf};
use terok_install::host::Host;

/// Paths that a mount must neither be, nor be in, nor hold.
#[derive(Debug)]
pub(crate) struct Doors {
    places: Vec<Place>,
    here: PathBuf,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    what: &'static str,
    /// Harmless to read.
    readable: bool,
}

impl Doors {
    /// The doors of this host, for paths relative to `here`.
    pub(crate) fn of(host: &Host, here: PathBuf) -> Self {
        let run = PathBuf::from(format!("/run/user/{}", host.uid));
        let mut places = Vec::new();
        let mut add = |path: PathBuf, what, readable| {
            // A place reached by a symlink counts under both names.
            if let Ok(real) = path.canonicalize()
                && real != path
            {
                places.push(Place { path: real, what, readable });
            }
            places.push(Place { path, what, readable });
        };
        for path in ["podman", "docker", "docker.sock", "containerd", "crio", "buildkit"] {
            add(Path::new("/run").join(path), "a container engine's socket", false);
            add(run.join(path), "a container engine's socket", false);
        }
        for path in [PathBuf::from("/run/dbus"), run.join("bus"), run.join("dbus-1"), run.join("at-spi")] {
            add(path, "a message bus, which starts programs on the host", false);
        }
        if let Some(bus) = session_bus() {
            add(bus, "a message bus, which starts programs on the host", false);
        }
        for path in [PathBuf::from("/run/systemd/private"), run.join("systemd")] {
            add(path, "the service manager's socket", false);
        }
        add(host.run_dir(), "terok's control sockets", false);
        add(PathBuf::from("/proc"), "the host's processes", false);
        add(PathBuf::from("/dev"), "the host's devices", false);
        // uevent_helper and the like: written by the host's root, they start programs on the host.
        add(PathBuf::from("/sys"), "the host's kernel", true);
        add(host.state_dir(), "terok's audit logs and rules", true);
        if host.vault_dir().exists() {
            add(host.vault_dir(), "terok's vault", false);
        }
        for path in [host.home.join(".local/share/terok"), PathBuf::from("/usr/libexec/terok")] {
            add(path, "terok's programs", true);
        }
        for path in [host.home.join(".config/terok"), PathBuf::from("/etc/terok")] {
            add(path, "terok's profiles", true);
        }
        for path in [
            host.config_home.join("containers"),
            PathBuf::from("/etc/containers"),
            PathBuf::from("/usr/share/containers"),
        ] {
            add(path, "podman's configuration, which says which hooks run", true);
        }
        for path in [host.home.join(".local/share/containers"), PathBuf::from("/var/lib/containers")] {
            add(path, "podman's containers and images", true);
        }
        Doors { places, here }
    }

    /// Why `source` must not be mounted, if there is a reason.
    pub(super) fn refuses(&self, source: &Path, read_only: bool) -> Result<(), String> {
        let written = clean(&self.here.join(source));
        // What Podman will mount is what the path leads to.
        let real = self.here.join(source).canonicalize().unwrap_or_else(|_| led_to(&written));
        if harmless_device(&written) && harmless_device(&real) {
            return Ok(());
        }
        for place in self.places.iter().filter(|place| !(read_only && place.readable)) {
            for path in [&written, &real] {
                let hint = if place.readable {
                    "; mount a narrower folder, or add :ro"
                } else {
                    "; mount a narrower folder"
                };
                if path.starts_with(&place.path) {
                    return Err(format!("{} belongs to {}{hint}", source.display(), place.what));
                }
                if place.path.starts_with(path) {
                    return Err(format!(
                        "{} holds {}: {}{hint}",
                        source.display(),
                        place.path.display(),
                        place.what
                    ));
                }
            }
        }
        Ok(())
    }

    /// The doors of the user 1001 with the home /home/u.
    #[cfg(test)]
    pub(super) fn tests() -> Self {
        let host = crate::containers::host_at(Path::new("/"));
        Doors::of(&host, "/home/u/work".into())
    }
}

/// Devices that lead nowhere but to a screen, a speaker or the container's own file systems.
pub(super) fn harmless_device(path: &Path) -> bool {
    ["/dev/dri", "/dev/snd", "/dev/fuse", "/dev/null", "/dev/zero"]
        .iter()
        .any(|device| clean(path).starts_with(device))
}

/// `unix:path=/tmp/dbus-x,guid=…` in `$DBUS_SESSION_BUS_ADDRESS`.
fn session_bus() -> Option<PathBuf> {
    let address = std::env::var("DBUS_SESSION_BUS_ADDRESS").ok()?;
    let path = address.strip_prefix("unix:path=")?;
    Some(PathBuf::from(path.split([',', ';']).next()?)).filter(|path| path.is_absolute())
}

/// Where `path` leads as far as it exists; the rest as it is written.
fn led_to(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|there| Some(there.canonicalize().ok()?.join(path.strip_prefix(there).ok()?)))
        .unwrap_or_else(|| path.to_path_buf())
}

/// Without `.` and `..`, as far as the text goes.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::super::checks::{mount, volume};
    use super::*;

    #[test]
    fn work_folders_and_named_volumes_pass() {
        let doors = Doors::tests();
        for value in [
            ".:/work",
            "/home/u/work:/work:Z",
            "./src:/src:ro",
            "data:/data",
            "/data",
            "/srv/x:/x",
            "/home/u/.config/containers:/x:ro",
            "/home/u/.local/state/terok:/x:ro,Z",
            "/dev/dri:/dev/dri",
            "/usr/share/zoneinfo:/usr/share/zoneinfo",
        ] {
            assert_eq!(volume(value, &doors), Ok(()), "{value}");
        }
        for value in [
            "type=tmpfs,destination=/x",
            "type=bind,source=/srv,destination=/x",
            "type=volume,source=a,target=/a",
            "type=bind,src=/home/u/.config/containers,dst=/x,ro=true",
            "type=glob,src=/srv/*.txt,dst=/x",
        ] {
            assert_eq!(mount(value, &doors), Ok(()), "{value}");
        }
    }

    #[test]
    fn doors_out_of_the_container_are_refused_however_they_are_written() {
        let doors = Doors::tests();
        for value in [
            "/run/podman/podman.sock:/s",
            "/run/podman:/s:ro",
            "/run:/s",
            "/:/host:ro",
            "/var/run/docker.sock:/s",
            "/run/user/1001/podman/podman.sock:/s",
            "/run/user/1001:/s",
            "/run/user/1001/bus:/bus",
            "/run/containerd/containerd.sock:/s",
            "/home/u/../../run/podman/podman.sock:/s",
            "../../../run/podman:/s",
            "/run/user/1001/terok:/s:ro",
            "/proc:/p",
            "/proc/1/root:/p:ro",
            "/dev:/d",
            "/dev/mem:/d",
            "/dev/dri/../mem:/d",
            "/srv:/s:O,upperdir=/home/u/.config/containers,workdir=/tmp/w",
        ] {
            assert!(volume(value, &doors).is_err(), "{value} passes");
        }
        for value in [
            "type=bind,source=/run/podman/podman.sock,destination=/s",
            "type=bind,src=/,dst=/x,ro",
            "type=bind",
            "type=glob,src=/run/p*,dst=/x",
            "type=volume,volume-opt=device=/,dst=/x",
            "type=overlay,src=/,dst=/x",
            "type=bind,\"src=/\",dst=/x",
            "type=bind,type=tmpfs,src=/,dst=/x",
            "type=bind,dst=/x,src=/run\n,src=/srv",
        ] {
            assert!(mount(value, &doors).is_err(), "{value} passes");
        }
    }

    #[test]
    fn what_protects_is_not_mounted_to_be_written() {
        let doors = Doors::tests();
        for value in [
            "/home/u:/home/u",
            "/home:/h",
            "/home/u/.config:/c",
            "/home/u/.config/containers/containers.conf:/c",
            "/home/u/.local/share/terok:/t",
            "/home/u/.local:/l",
            "/etc:/etc",
            "/usr:/usr:rw",
            "/sys:/sys",
            "/home/u/.config/containers:/x:ro,U",
            "..:/home",
        ] {
            let reason = volume(value, &doors).unwrap_err();
            assert!(reason.contains(":ro"), "{reason}");
        }
    }

    #[test]
    fn a_symlink_is_judged_by_where_it_leads() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("innocent");
        std::os::unix::fs::symlink("/run", &link).unwrap();
        assert!(volume(&format!("{}:/x", link.display()), &Doors::tests()).is_err());
    }
}

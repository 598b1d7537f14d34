//! Where on which file system a path of the host is. One folder may be at several places: a volume of an engine's (`--opt
//! o=bind`), a bind mount of the operator's.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What is mounted on the host, as `/proc/thread-self/mountinfo` tells it (proc(5)).
#[derive(Debug, Default)]
pub(crate) struct Mounts(Vec<Mount>);

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// What of which file system is there.
    content: Spot,
    /// Where.
    point: PathBuf,
}

/// A place on a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spot {
    /// `major:minor`
    device: String,
    /// From the root of the file system.
    path: PathBuf,
}

impl Spot {
    /// Whether `other` is this or below it.
    pub(crate) fn holds(&self, other: &Spot) -> bool {
        self.device == other.device && other.path.starts_with(&self.path)
    }
}

impl Mounts {
    /// Those of now.
    pub(crate) fn read() -> std::io::Result<Self> {
        std::fs::read("/proc/thread-self/mountinfo").map(|table| Mounts::parse(&table))
    }

    fn parse(table: &[u8]) -> Self {
        let lines = table.split(|octet| *octet == b'\n');
        Mounts(lines.filter_map(Mount::parse).collect())
    }

    /// Where `path` is, which leads over no link.
    pub(crate) fn spot(&self, path: &Path) -> Option<Spot> {
        let over = self.0.iter().filter(|mount| path.starts_with(&mount.point));
        // Of two at one place the later one is seen.
        let mount = over.max_by_key(|mount| mount.point.components().count())?;
        let below = path.strip_prefix(&mount.point).ok()?;
        let Spot { device, path } = &mount.content;
        let path = if below.as_os_str().is_empty() { path.clone() } else { path.join(below) };
        Some(Spot { device: device.clone(), path })
    }

    /// All that comes with the folder at `path`: where it is, and what is mounted below.
    pub(crate) fn coming_with(&self, path: &Path) -> Vec<Spot> {
        let below = self.0.iter().filter(|mount| mount.point != path && mount.point.starts_with(path));
        self.spot(path).into_iter().chain(below.map(|mount| mount.content.clone())).collect()
    }

    /// Where mounts are, directly below `folder`, that show something of the device of one of `spots`.
    pub(crate) fn points_of<'a>(
        &'a self,
        spots: &'a [Spot],
        folder: &'a Path,
    ) -> impl Iterator<Item = &'a Path> {
        let shown = |mount: &&Mount| spots.iter().any(|spot| spot.device == mount.content.device);
        let below = self.0.iter().filter(move |mount| mount.point.parent() == Some(folder));
        below.filter(shown).map(|mount| mount.point.as_path())
    }
}

impl Mount {
    /// `ID PARENT MAJOR:MINOR ROOT POINT …`
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|octet| *octet == b' ').skip(2);
        let device = String::from_utf8(words.next()?.to_vec()).ok()?;
        let path = unescaped(words.next()?);
        let point = unescaped(words.next()?);
        Some(Mount { content: Spot { device, path }, point })
    }
}

/// Blanks, ends of lines and `\` are written as three octal digits.
fn unescaped(word: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, behind)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| std::str::from_utf8(behind.get(..3)?).ok()).flatten();
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(octet) => {
                path.push(octet);
                rest = &behind[3..];
            }
            None => {
                path.push(*first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = br"22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
25 22 0:24 / /run rw,nosuid shared:5 - tmpfs tmpfs rw
26 25 0:40 / /run/user/1000 rw - tmpfs tmpfs rw
41 22 0:24 /terok /var/lib/docker/volumes/a\040b/_data rw - tmpfs tmpfs rw
42 22 254:1 /srv /mnt rw - ext4 /dev/root rw
43 42 0:24 / /mnt/run rw - tmpfs tmpfs rw
44 22 0:50 / /covered rw - tmpfs tmpfs rw
45 22 0:51 / /covered rw - tmpfs tmpfs rw
";

    fn spot(device: &str, path: &str) -> Spot {
        Spot { device: device.into(), path: path.into() }
    }

    #[test]
    fn a_path_is_told_by_the_file_system_that_is_seen_there() {
        let mounts = Mounts::parse(TABLE);
        for (path, device, there) in [
            ("/", "254:1", "/"),
            ("/etc/hosts", "254:1", "/etc/hosts"),
            ("/run/terok/box", "0:24", "/terok/box"),
            ("/run/user/1000/bus", "0:40", "/bus"),
            ("/var/lib/docker/volumes/a b/_data", "0:24", "/terok"),
            ("/var/lib/docker/volumes/a b/_data/box", "0:24", "/terok/box"),
            ("/mnt/x", "254:1", "/srv/x"),
            ("/mntx", "254:1", "/mntx"),
            ("/covered", "0:51", "/"),
        ] {
            assert_eq!(mounts.spot(Path::new(path)), Some(spot(device, there)), "{path}");
        }
        assert!(spot("0:24", "/terok").holds(&spot("0:24", "/terok/box")));
        assert!(!spot("0:24", "/terok").holds(&spot("0:25", "/terok/box")));
        assert!(!spot("0:24", "/terok").holds(&spot("0:24", "/terokx")));
    }

    #[test]
    fn with_a_folder_comes_what_is_mounted_below_it() {
        let mounts = Mounts::parse(TABLE);
        assert_eq!(mounts.coming_with(Path::new("/mnt")), [spot("254:1", "/srv"), spot("0:24", "/")]);
        assert_eq!(mounts.coming_with(Path::new("/mnt/x")), [spot("254:1", "/srv/x")]);
        let there = [spot("0:40", "/bus")];
        let users: Vec<_> = mounts.points_of(&there, Path::new("/run/user")).collect();
        assert_eq!(users, [Path::new("/run/user/1000")]);
    }

    #[test]
    fn what_is_no_table_tells_nothing() {
        for text in [&b""[..], b"\n", b"1 2 3", b"1 2 0:1 \\", b"\xff\xff\xff \\08 \xff"] {
            assert_eq!(Mounts::parse(text).spot(Path::new("/run")), None);
        }
        assert!(Mounts::read().unwrap().spot(Path::new("/proc")).is_some());
    }
}

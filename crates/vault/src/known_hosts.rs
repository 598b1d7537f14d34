//! Which keys a host is known by: OpenSSH's known_hosts files, the user's and the machine's, and the bundled keys of public git hosts.

use crate::error::{Error, Result};
use crate::ssh_key::fingerprint_of;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::hmac;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use terok_policy::policy::SshGrant;
use terok_policy::{Name, layout};

/// Keys of public git hosts.
const BUNDLED: &str = include_str!("../../../profiles/known_hosts");
/// The user's folder below the home, and the machine's file.
const SSH: &str = ".ssh";
const MACHINE: &str = "/etc/ssh/ssh_known_hosts";
/// Ports that a hashed name is tried with; a readable one is found whatever its port is.
const HASHED_PORTS: [u16; 4] = [443, 2222, 7999, 29418];

/// The lines of all files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownHosts {
    entries: Vec<Entry>,
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is the host's.
    Known,
    /// It was revoked, for any host.
    Revoked,
    /// Other keys of the host are known: a new key, or another host.
    Changed,
    /// Nothing is known of the host.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    revoked: bool,
    hosts: String,
    key: Key,
}

/// A key as a line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    /// In wire form.
    Whole(Vec<u8>),
    /// `SHA256:…`, in terok's own file: what a refusal shows is what a person compares and adds.
    Print(String),
}

impl KnownHosts {
    /// The bundled keys, and those of `files` that are there. One that cannot be read may revoke a key, so nothing is known without it.
    pub fn read(files: &[PathBuf]) -> Result<Self> {
        let mut known = KnownHosts::default();
        known.add(BUNDLED);
        for file in files {
            match std::fs::read(file) {
                Ok(text) => known.add(&String::from_utf8_lossy(&text)),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => return Err(Error::file("read", file.display())(error)),
            }
        }
        Ok(known)
    }

    /// Adds the lines of a file. A line that is not understood says nothing, as it does for `ssh`.
    pub fn add(&mut self, text: &str) {
        self.entries.extend(text.lines().filter_map(entry));
    }

    /// How `key` (SSH wire form) stands as a key of `host`.
    pub fn standing(&self, host: &Name, key: &[u8]) -> Standing {
        if self.entries.iter().any(|entry| entry.revoked && entry.key.is(key)) {
            return Standing::Revoked;
        }
        let mut standing = Standing::Unknown;
        for entry in self.entries.iter().filter(|entry| !entry.revoked && names(&entry.hosts, host.as_str()))
        {
            if entry.key.is(key) {
                return Standing::Known;
            }
            standing = Standing::Changed;
        }
        standing
    }

    /// A known_hosts file for a container with these `grants`: the keys that the signer would take for their hosts', in lines that name these hosts
    /// alone. A key without a host has the bundled ones. What is known by its fingerprint cannot be written.
    pub fn file_for(&self, grants: &[SshGrant]) -> String {
        let mut lines: Vec<String> = Vec::new();
        for grant in grants {
            match &grant.host {
                Some(host) => lines.extend(self.lines_of(host)),
                None => {
                    lines.extend(BUNDLED.lines().filter(|line| !line.starts_with('#')).map(str::to_owned))
                }
            }
        }
        lines.sort_unstable();
        lines.dedup();
        let mut text = String::from(
            "# Host keys of the granted SSH hosts, as the host knew them when the container started.\n",
        );
        lines.iter().for_each(|line| text.extend([line, "\n"]));
        text
    }

    /// Without a port: `ssh` looks there too for a host at another one.
    fn lines_of(&self, host: &Name) -> impl Iterator<Item = String> {
        let named =
            self.entries.iter().filter(move |entry| !entry.revoked && names(&entry.hosts, host.as_str()));
        let keys = named.filter_map(|entry| match &entry.key {
            Key::Whole(key) => Some(key),
            Key::Print(_) => None,
        });
        keys.filter(move |key| self.standing(host, key) == Standing::Known).filter_map(move |key| {
            let kind = key.get(4..)?.get(..u32::from_be_bytes(key.get(..4)?.try_into().ok()?) as usize)?;
            Some(format!("{host} {} {}", std::str::from_utf8(kind).ok()?, STANDARD.encode(key)))
        })
    }
}

impl Key {
    fn is(&self, key: &[u8]) -> bool {
        match self {
            Key::Whole(known) => known == key,
            Key::Print(print) => fingerprint_of(key).as_ref() == Some(print),
        }
    }
}

/// A line of terok's own file: `key` is a fingerprint (`SHA256:…`) or a public key (`ssh-ed25519 AAAA…`). `None` where it is neither.
pub fn line(host: &Name, key: &str) -> Option<String> {
    let key: Vec<&str> = key.split_ascii_whitespace().take(2).collect();
    let line = format!("{host} {}", key.join(" "));
    entry(&line).map(|_| line)
}

/// terok's own file in the folder of the vault, the one in the user's home, and the machine's.
pub fn files(vault: &Path, home: &Path) -> Vec<PathBuf> {
    vec![vault.join(layout::VAULT_KNOWN_HOSTS), home.join(SSH).join("known_hosts"), PathBuf::from(MACHINE)]
}

/// The same beside the vault, for who is to read them later: `ssh` puts another file in the place of the user's, which Landlock knows by its folder
/// alone. In the machine's folder are the keys of the machine.
pub fn places(home: &Path) -> Vec<PathBuf> {
    vec![home.join(SSH), PathBuf::from(MACHINE)]
}

fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split_ascii_whitespace();
    let mut first = words.next().filter(|word| !word.starts_with('#'))?;
    let mut revoked = false;
    if first.starts_with('@') {
        // A host certificate is no key that a session is bound to.
        revoked = first == "@revoked";
        first = words.next().filter(|_| revoked)?;
    }
    let kind = words.next()?;
    let hosts = first.to_owned();
    if let Some(digest) = kind.strip_prefix("SHA256:") {
        let whole = STANDARD_NO_PAD.decode(digest).is_ok_and(|digest| digest.len() == 32);
        return whole.then(|| Entry { revoked, hosts, key: Key::Print(kind.to_owned()) });
    }
    let key = STANDARD.decode(words.next()?).ok()?;
    let named = key.strip_prefix(&u32::try_from(kind.len()).ok()?.to_be_bytes())?;
    named.starts_with(kind.as_bytes()).then(|| Entry { revoked, hosts, key: Key::Whole(key.clone()) })
}

/// Whether the patterns of a line name `host`, at any port.
fn names(patterns: &str, host: &str) -> bool {
    let mut named = false;
    for pattern in patterns.split(',') {
        let (pattern, negated) = pattern.strip_prefix('!').map_or((pattern, false), |rest| (rest, true));
        let fits = match pattern.strip_prefix("|1|") {
            Some(hashed) => is_hash_of(hashed, host),
            None => fits(without_port(&pattern.to_ascii_lowercase()).as_bytes(), host.as_bytes()),
        };
        if fits && negated {
            return false;
        }
        named |= fits;
    }
    named
}

/// `[host]:port` as `host`.
fn without_port(pattern: &str) -> &str {
    let bracketed = pattern.strip_prefix('[').and_then(|rest| rest.rsplit_once("]:"));
    bracketed.map_or(pattern, |(host, _)| host)
}

/// `SALT|HASH`, HMAC-SHA1 of the name under the salt.
fn is_hash_of(hashed: &str, host: &str) -> bool {
    let Some((salt, hash)) = hashed.split_once('|') else { return false };
    let (Ok(salt), Ok(hash)) = (STANDARD.decode(salt), STANDARD.decode(hash)) else { return false };
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    let is_it = |name: &str| hmac::sign(&key, name.as_bytes()).as_ref() == hash;
    is_it(host) || HASHED_PORTS.iter().any(|port| is_it(&format!("[{host}]:{port}")))
}

/// Whether `text` fits a pattern of `*` and `?`, in a time that grows with the product of both lengths alone.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut behind) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while behind < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, behind));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[behind] => {
                at += 1;
                behind += 1;
            }
            _ => match star {
                Some((next, from)) => {
                    star = Some((next, from + 1));
                    (at, behind) = (next, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh_key::{Kind, SshKey, fingerprint};
    use std::process::Command;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn key() -> SshKey {
        SshKey::generate(Kind::default(), "").unwrap()
    }

    fn line(hosts: &str, key: &SshKey) -> String {
        format!("{hosts} {}\n", key.public())
    }

    fn known(text: &str) -> KnownHosts {
        let mut known = KnownHosts::default();
        known.add(text);
        known
    }

    #[test]
    fn the_bundled_keys_have_the_fingerprints_that_their_hosts_publish() {
        let published = [
            ("github.com", "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"),
            ("github.com", "SHA256:p2QAMXNIC1TJYWeIOttrVc98/R1BUFWu3/LiyKgUfQM"),
            ("github.com", "SHA256:uNiVztksCsDhcc0u9e8BujQXVUpKZIDTMczCvj3tD2s"),
            ("gitlab.com", "SHA256:eUXGGm1YGsMAS7vkcx6JOJdOGHPem5gQp4taiCfCLB8"),
            ("gitlab.com", "SHA256:HbW3g8zUjNSksFbqTiUWPWg2Bq1x8xdGUrliXFzSnUw"),
            ("gitlab.com", "SHA256:ROQFvPThGrW4RuWLoL9tq9I9zJ42fK4XywyRtbOz/EQ"),
            ("bitbucket.org", "SHA256:ybgmFkzwOSotHTHLJgHO0QN8L0xErw6vd0VhFA9m3SM"),
            ("bitbucket.org", "SHA256:FC73VB6C4OQLSCrjEayhMp9UMxS97caD/Yyi2bhW/J0"),
            ("codeberg.org", "SHA256:mIlxA9k46MmM6qdJOdMnAQpzGxF4WIVVL+fj+wZbw0g"),
            ("git.sr.ht", "SHA256:WXXNZu0YyoE3KBl5qh4GsnF1vR0NeEPYJAiPME+P09g"),
        ];
        let lines = BUNDLED.lines().filter(|line| !line.starts_with('#'));
        let bundled: Vec<(&str, String)> = lines
            .map(|line| line.split_once(' ').unwrap())
            .map(|(host, key)| (host, fingerprint(key).unwrap()))
            .collect();
        let bundled: Vec<(&str, &str)> =
            bundled.iter().map(|(host, print)| (*host, print.as_str())).collect();
        assert_eq!(bundled, published);
        assert_eq!(known(BUNDLED).entries.len(), published.len());
    }

    #[test]
    fn a_key_is_known_for_the_hosts_of_its_line_alone() {
        let (a, b) = (key(), key());
        let text = line("git.example,*.corp.example,!bad.corp.example", &a) + &line("[ssh.example]:2200", &b);
        let known = known(&text);
        let standing = |host: &str, key: &SshKey| known.standing(&name(host), &key.blob());
        assert_eq!(standing("git.example", &a), Standing::Known);
        assert_eq!(standing("x.corp.example", &a), Standing::Known);
        assert_eq!(standing("bad.corp.example", &a), Standing::Unknown);
        assert_eq!(standing("corp.example", &a), Standing::Unknown);
        assert_eq!(standing("git.example", &b), Standing::Changed);
        assert_eq!(standing("ssh.example", &b), Standing::Known);
        assert_eq!(standing("ssh.example", &a), Standing::Changed);
        assert_eq!(standing("example", &b), Standing::Unknown);
    }

    #[test]
    fn a_revoked_key_is_nobodys_and_certificates_and_rubbish_say_nothing() {
        let (a, b) = (key(), key());
        let text = line("git.example", &a) + &line("@revoked *", &a) + &line("@cert-authority *", &b);
        let text = text
            + "git.example ssh-rsa "
            + b.public().split(' ').nth(1).unwrap()
            + "\n# git.example\ngit.example\n|1|x\n";
        let known = known(&text);
        assert_eq!(known.standing(&name("git.example"), &a.blob()), Standing::Revoked);
        assert_eq!(known.standing(&name("git.example"), &b.blob()), Standing::Changed);
        assert_eq!(known.standing(&name("other.example"), &b.blob()), Standing::Unknown);
    }

    #[test]
    fn names_that_ssh_keygen_hashed_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("known_hosts");
        let (a, b) = (key(), key());
        std::fs::write(&file, line("git.example", &a) + &line("[git.example]:2222", &b)).unwrap();
        let hashed = Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(&file).output();
        if !hashed.is_ok_and(|hashed| hashed.status.success()) {
            return terok_need::missing("ssh", "no ssh-keygen");
        }
        assert!(!std::fs::read_to_string(&file).unwrap().contains("git.example"));
        let known = KnownHosts::read(&[file, folder.path().join("none")]).unwrap();
        assert_eq!(known.standing(&name("git.example"), &a.blob()), Standing::Known);
        assert_eq!(known.standing(&name("git.example"), &b.blob()), Standing::Known);
        assert_eq!(known.standing(&name("git2.example"), &b.blob()), Standing::Unknown);
    }

    #[test]
    fn without_a_file_that_cannot_be_read_nothing_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("known_hosts");
        std::fs::write(&there, line("git.example", &key())).unwrap();
        KnownHosts::read(&[there.clone(), folder.path().join("none"), there.join("none")]).unwrap();
        let refused = KnownHosts::read(&[there, folder.path().to_owned()]).unwrap_err().to_string();
        assert!(refused.contains(&folder.path().display().to_string()), "{refused}");
    }

    #[test]
    fn a_line_that_was_learnt_names_a_key_by_its_fingerprint_or_whole() {
        let (a, b) = (key(), key());
        let host = name("git.example");
        for text in [a.fingerprint(), a.public(), format!("{} comment of many words", a.public())] {
            let line = super::line(&host, &text).unwrap();
            let known = known(&line);
            assert_eq!(known.standing(&host, &a.blob()), Standing::Known, "{line}");
            assert_eq!(known.standing(&host, &b.blob()), Standing::Changed);
            assert_eq!(known.standing(&name("other.example"), &a.blob()), Standing::Unknown);
        }
        for text in ["", "SHA256:", "SHA256:abc", "MD5:00:11", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-rsa !"]
        {
            assert_eq!(super::line(&host, text), None, "{text}");
        }
    }

    fn grant(text: &str) -> SshGrant {
        let (key, host) = text.split_once('@').map_or((text, None), |(key, host)| (key, Some(name(host))));
        SshGrant { key: key.into(), host }
    }

    #[test]
    fn a_container_is_told_the_keys_of_its_granted_hosts_as_the_signer_knows_them() {
        let [a, b, c, d] = [key(), key(), key(), key()];
        let text = line("git.example,secret.example", &a)
            + &line("[git.example]:2222", &b)
            + &line("*.corp.example", &c)
            + &line("git.example", &d)
            + &line("@revoked *", &d)
            + &format!("git.example {}\n", key().fingerprint())
            + &line("@cert-authority git.example", &key());
        let known = known(&text);
        let lines = |grants: &[&str]| -> Vec<String> {
            let grants: Vec<SshGrant> = grants.iter().copied().map(grant).collect();
            let file = known.file_for(&grants);
            assert!(file.ends_with('\n') && file.starts_with("# "), "{file}");
            file.lines().skip(1).map(str::to_owned).collect()
        };
        let public = |host: &str, key: &SshKey| {
            format!("{host} {}", key.public().split(' ').take(2).collect::<Vec<_>>().join(" "))
        };
        let mut git = vec![public("git.example", &a), public("git.example", &b)];
        git.sort();
        assert_eq!(lines(&["work@git.example", "home@git.example"]), git);
        assert_eq!(lines(&["work@x.corp.example"]), [public("x.corp.example", &c)]);
        assert!(lines(&["work@unknown.example"]).is_empty());
        let anywhere = lines(&["work"]);
        assert!(anywhere.len() == 10 && anywhere.iter().any(|line| line.starts_with("github.com ")));
    }

    /// What is written is read back as the same: by us, and by OpenSSH.
    #[test]
    fn the_file_for_a_container_is_one_that_ssh_keygen_finds_the_host_in() {
        let a = key();
        let text =
            known(&line("[git.example]:2222,other.example", &a)).file_for(&[grant("work@git.example")]);
        assert_eq!(known(&text).standing(&name("git.example"), &a.blob()), Standing::Known);
        assert_eq!(known(&text).standing(&name("other.example"), &a.blob()), Standing::Unknown);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("known_hosts");
        std::fs::write(&file, text).unwrap();
        match Command::new("ssh-keygen").args(["-l", "-F", "git.example", "-f"]).arg(&file).output() {
            Ok(found) => {
                assert!(String::from_utf8_lossy(&found.stdout).contains(&a.fingerprint()), "{found:?}")
            }
            Err(error) => terok_need::missing("ssh", format!("ssh-keygen: {error}")),
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_time() {
        assert!(!fits("*a".repeat(500).as_bytes(), "a".repeat(250).as_bytes()));
        assert!(fits(b"*", b"") && fits(b"a*?c", b"abbc") && !fits(b"a?", b"a") && !fits(b"a", b"ab"));
    }
}

//! The command line of an OCI runtime, read as far as the shim must know it: which command, on which bundle. It is never changed.
//!
//! Runtimes read their lines differently: crun as argp does (abbreviated names, options of the command before its first word), runc as
//! Go does (one dash or two), youki as clap does. What none of them would take is left for them to refuse.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use terok_hook::shim::Given;

/// How the real runtime reads its command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// crun, krun
    Argp,
    /// runc, runsc, kata-runtime
    Go,
    /// youki
    Clap,
}

/// What the shim has something to do with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `create` or `run`.
    Create {
        /// The container's id.
        id: String,
        /// `--bundle`, else where the runtime was started.
        bundle: PathBuf,
        /// `--config`, which crun has.
        config: Option<PathBuf>,
    },
    /// `restore`
    Restore {
        /// The container's id.
        id: String,
        /// As above.
        bundle: PathBuf,
    },
    /// `exec`
    Exec {
        /// The container's id.
        id: String,
        /// `--process`: the file that describes the process.
        process: Option<PathBuf>,
        /// `--cap` and `--no-new-privs=false`, which only Go's flags can say.
        given: Given,
    },
    /// Everything else.
    Other,
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What is asked for.
    pub command: Command,
    /// `--log`
    pub log: Option<PathBuf>,
    /// `--log-format json`
    pub log_is_json: bool,
}

/// An option: its long name, its letter, whether a value follows.
type Known = (&'static str, Option<u8>, bool);

const GLOBAL: &[Known] = &[
    ("cgroup-manager", None, true),
    ("criu", None, true),
    ("debug", None, false),
    ("help", Some(b'h'), false),
    ("log", Some(b'l'), true),
    ("log-format", None, true),
    ("log-level", None, true),
    ("root", Some(b'r'), true),
    ("rootless", None, true),
    ("systemd-cgroup", Some(b's'), false),
    ("systemd-log", None, false),
    ("usage", None, false),
    ("version", Some(b'V'), false),
];
const CREATE: &[Known] = &[
    ("bundle", Some(b'b'), true),
    ("config", Some(b'f'), true),
    ("console-socket", Some(b'c'), true),
    ("detach", Some(b'd'), false),
    ("help", Some(b'h'), false),
    ("keep", Some(b'k'), false),
    ("no-new-keyring", None, false),
    ("no-pivot", None, false),
    ("no-subreaper", None, false),
    ("pid-file", Some(b'p'), true),
    ("pidfd-socket", None, true),
    ("preserve-fds", None, true),
    ("usage", None, false),
    ("version", Some(b'V'), false),
];
const RESTORE: &[Known] = &[("bundle", Some(b'b'), true)];
const EXEC: &[Known] = &[
    ("additional-gids", Some(b'g'), true),
    ("apparmor", None, true),
    ("cap", Some(b'c'), true),
    ("cgroup", None, true),
    ("console-socket", None, true),
    ("cwd", None, true),
    ("detach", Some(b'd'), false),
    ("env", Some(b'e'), true),
    ("help", Some(b'h'), false),
    ("ignore-paused", None, false),
    ("no-new-privs", None, false),
    ("pid-file", None, true),
    ("pidfd-socket", None, true),
    ("preserve-fds", None, true),
    ("process", Some(b'p'), true),
    ("process-label", None, true),
    ("tty", Some(b't'), false),
    ("usage", None, false),
    ("user", Some(b'u'), true),
    ("version", Some(b'V'), false),
];
/// What may stand behind an option that is not known, and is not its value.
const COMMANDS: &[&str] = &[
    "checkpoint",
    "create",
    "delete",
    "events",
    "exec",
    "features",
    "info",
    "kill",
    "list",
    "pause",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
    "update",
];

impl Style {
    /// By the runtime's name.
    pub fn of(runtime: &Path) -> Self {
        match runtime.file_name().and_then(OsStr::to_str).unwrap_or_default() {
            name if name.starts_with("crun") || name.starts_with("krun") => Style::Argp,
            name if name.starts_with("youki") => Style::Clap,
            _ => Style::Go,
        }
    }
}

impl Call {
    /// Reads the words behind the program's name.
    pub fn parse(words: &[OsString], style: Style) -> Self {
        let global = Read::from(words, GLOBAL, style, Until::Command);
        let rest = words.get(global.taken..).unwrap_or_default();
        let command = match rest.split_first() {
            Some((command, rest)) => command_of(command.to_str().unwrap_or_default(), rest, style),
            None => Command::Other,
        };
        // `file:` is crun's; other places it knows are no files.
        let log = global.value("log").map(|log| match log.as_bytes().strip_prefix(b"file:") {
            Some(path) => PathBuf::from(OsStr::from_bytes(path)),
            None => PathBuf::from(log),
        });
        let elsewhere = |log: &PathBuf| {
            style == Style::Argp
                && [&b"syslog:"[..], b"journald:"]
                    .iter()
                    .any(|kind| log.as_os_str().as_bytes().starts_with(kind))
        };
        Call {
            command,
            log: log.filter(|log| !elsewhere(log)),
            log_is_json: global.value("log-format").is_some_and(|format| format == "json"),
        }
    }
}

fn command_of(command: &str, words: &[OsString], style: Style) -> Command {
    // argp reads a command's options in front of its first word only.
    let until = if style == Style::Argp { Until::Word } else { Until::End };
    let path = |read: &Read<'_>, name: &str| read.value(name).map(PathBuf::from);
    match command {
        "create" | "run" => {
            let read = Read::from(words, CREATE, style, until);
            let behind = words.get(read.taken..).unwrap_or_default();
            // Of several words, values of options that are not known here, the last is the id.
            let id = read.words.last().copied().or_else(|| behind.first());
            Command::Create {
                id: id.map(|id| id.to_string_lossy().into_owned()).unwrap_or_default(),
                bundle: path(&read, "bundle").unwrap_or_else(|| ".".into()),
                config: path(&read, "config"),
            }
        }
        "restore" => {
            let read = Read::from(words, RESTORE, style, Until::End);
            let id = read.words.last().map(|id| id.to_string_lossy().into_owned()).unwrap_or_default();
            Command::Restore { id, bundle: path(&read, "bundle").unwrap_or_else(|| ".".into()) }
        }
        "exec" => {
            // What follows the id is the container's.
            let mut read = Read::from(words, EXEC, style, Until::Word);
            let id = words.get(read.taken).map(|id| id.to_string_lossy().into_owned()).unwrap_or_default();
            // youki takes options behind the id as well, up to the program's name.
            if let Some(behind) = words.get(read.taken + 1..).filter(|_| style == Style::Clap && !read.ended)
            {
                read.options.extend(Read::from(behind, EXEC, style, Until::Word).options);
            }
            let capabilities = read.options.iter().filter(|(name, _)| *name == "cap");
            let capabilities = capabilities.map(|(_, value)| value.to_string_lossy());
            let given = Given {
                capabilities: capabilities
                    .flat_map(|value| value.split(',').map(str::to_owned).collect::<Vec<_>>())
                    .collect(),
                new_privileges: read.value("no-new-privs").is_some_and(|value| !is_true(value)),
            };
            Command::Exec { id, process: path(&read, "process"), given }
        }
        _ => Command::Other,
    }
}

/// How far options go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// To the first word that is none, for which the value of an option that is not known is not taken.
    Command,
    /// To the first word that is none.
    Word,
    /// To the end of the line.
    End,
}

/// Options and words of a part of the line.
#[derive(Debug, Default)]
struct Read<'a> {
    options: Vec<(&'static str, OsString)>,
    /// Those that are no options, with [`Until::End`].
    words: Vec<&'a OsString>,
    /// How many words were read.
    taken: usize,
    /// By `--`.
    ended: bool,
    /// An option at the end of the line that lacks its value.
    wanting: Option<&'static str>,
}

impl<'a> Read<'a> {
    fn from(words: &'a [OsString], known: &[Known], style: Style, until: Until) -> Self {
        let mut read = Read::default();
        while let Some(word) = words.get(read.taken) {
            let bytes = word.as_bytes();
            if bytes == b"--" {
                read.taken += 1;
                read.ended = true;
                if until == Until::End {
                    read.words.extend(words.get(read.taken..).unwrap_or_default());
                    read.taken = words.len();
                }
                break;
            }
            if bytes.first() != Some(&b'-') || bytes == b"-" {
                if until != Until::End {
                    break;
                }
                read.words.push(word);
                read.taken += 1;
                continue;
            }
            read.taken += 1;
            let next = words.get(read.taken);
            let took_next = match bytes.strip_prefix(b"--") {
                Some(name) => read.long(name, next, known, style, until),
                None if style == Style::Go => read.long(&bytes[1..], next, known, style, until),
                None => read.letters(&bytes[1..], next, known, style),
            };
            read.taken += usize::from(took_next);
        }
        // urfave/cli puts a command's options before its words: the first of them becomes the value.
        if let Some(name) = read.wanting.filter(|_| style == Style::Go && until == Until::End)
            && !read.words.is_empty()
        {
            read.options.push((name, read.words.remove(0).clone()));
        }
        read
    }

    /// `NAME`, `NAME=VALUE` or `NAME VALUE`; whether the next word was the value.
    fn long(
        &mut self,
        word: &[u8],
        next: Option<&OsString>,
        known: &[Known],
        style: Style,
        until: Until,
    ) -> bool {
        let (name, value) = match word.iter().position(|octet| *octet == b'=') {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        };
        match (find(name, known, style), value, next) {
            (Some((name, _, true)), Some(value), _) => {
                self.options.push((name, OsString::from_vec(value.to_vec())));
                false
            }
            (Some((name, _, true)), None, Some(next)) => {
                self.options.push((name, next.clone()));
                true
            }
            // Go: `--flag=false`.
            (Some((name, _, false)), Some(value), _) => {
                self.options.push((name, OsString::from_vec(value.to_vec())));
                false
            }
            (Some((name, _, true)), None, None) => {
                self.wanting = Some(name);
                false
            }
            (Some(_), ..) => false,
            // Before the command: what follows an unknown option is its value, if it is neither an option nor a command.
            (None, None, Some(next)) if until == Until::Command => {
                let is_command = next.to_str().is_some_and(|next| COMMANDS.contains(&next));
                !is_command && !next.as_bytes().starts_with(b"-")
            }
            (None, ..) => false,
        }
    }

    /// `bDIR` or `b DIR`, with letters that have no value before it; whether the next word was the value.
    fn letters(&mut self, letters: &[u8], next: Option<&OsString>, known: &[Known], style: Style) -> bool {
        for (at, letter) in letters.iter().enumerate() {
            let Some((name, _, true)) = known.iter().find(|(_, known, _)| known.as_ref() == Some(letter))
            else {
                continue;
            };
            let mut value = &letters[at + 1..];
            if style == Style::Clap {
                value = value.strip_prefix(b"=").unwrap_or(value);
            }
            return match (value, next) {
                (b"", Some(next)) => {
                    self.options.push((name, next.clone()));
                    true
                }
                (value, _) => {
                    self.options.push((name, OsString::from_vec(value.to_vec())));
                    false
                }
            };
        }
        false
    }

    /// The last one counts.
    fn value(&self, name: &str) -> Option<&OsStr> {
        self.options.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.as_os_str())
    }
}

/// Go's strconv.ParseBool; what it does not take, the runtime refuses.
fn is_true(value: &OsStr) -> bool {
    ["1", "t", "T", "true", "TRUE", "True"].iter().any(|known| value == *known)
}

fn find<'a>(name: &[u8], known: &'a [Known], style: Style) -> Option<&'a Known> {
    let exact = known.iter().find(|(long, ..)| long.as_bytes() == name);
    match style {
        Style::Argp if exact.is_none() => {
            let mut meant =
                known.iter().filter(|(long, ..)| !name.is_empty() && long.as_bytes().starts_with(name));
            let first = meant.next();
            // What an older crun has one option for takes a value if all do that a newer one has for it.
            match meant.next() {
                Some(other) if first.is_some_and(|first| first.2 && other.2) => Some(other),
                Some(_) => None,
                None => first,
            }
        }
        // Go knows a letter behind two dashes as well, and a name behind one.
        Style::Go if exact.is_none() => {
            known.iter().find(|(_, letter, _)| letter.is_some_and(|letter| name == [letter]))
        }
        _ => exact,
    }
}

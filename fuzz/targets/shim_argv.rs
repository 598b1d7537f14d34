//! Command lines of OCI runtimes, a word a line, a number standing for a word of the table: nothing is found that is not there, and of
//! a line that a runtime accepts the shim reads what that runtime reads. youki's reading is its own parser's (liboci-cli), runc's
//! follows Go's `flag` and urfave/cli 1.22, crun's getopt_long(3) as argp calls it.
#![no_main]

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use liboci_cli::{CommonCmd, GlobalOpts, StandardCmd};
use std::ffi::OsString;
use std::path::PathBuf;
use terok_hook::shim::Given;
use terok_shim::argv::{Call, Command, Style};

/// So that lines of sense are found by chance.
const WORDS: &[&str] = &[
    "create", "run", "exec", "restore", "kill", "c1", "/b", "2", "sh", "--", "-", "", "--bundle", "--bundle=/b", "-b", "-b/b", "-b=/b", "-bundle",
    "--bun", "--config", "--config=/c", "-f", "--process", "--process=/p", "-p", "-p/p", "--pro=/p", "--pid-file", "--pid-file=/f", "--pid", "--log",
    "--log=/l", "-l", "--log-format", "--log-format=json", "json", "--root", "--root=/r", "-r", "-r/r", "--systemd-cgroup", "-s", "--debug",
    "--cgroup-manager", "--cgroup-manager=disabled", "--rootless=true", "--detach", "-d", "-db", "-dp", "--no-pivot", "--no-new-keyring",
    "--no-subreaper", "--keep", "--console-socket", "--console-socket=/s", "-c", "--preserve-fds", "--preserve-fds=2", "-t", "--tty", "-u", "1:1", "-e",
    "A=1", "--cwd", "--cap", "-g", "--detach=true", "--criu=/x",
];

fuzz_target!(|text: &str| {
    let word = |line: &str| match line.parse::<usize>().ok().and_then(|at| WORDS.get(at)) {
        Some(word) => OsString::from(word),
        None => OsString::from(line),
    };
    let words: Vec<OsString> = text.lines().map(word).collect();
    let line: Option<Vec<&str>> = words.iter().map(|word| word.to_str().filter(|word| !word.contains('\0'))).collect();
    let Some(line) = line else { return };
    for (style, accepted) in [(Style::Clap, youki(&line)), (Style::Go, runc(&line)), (Style::Argp, crun(&line))] {
        let call = Call::parse(&words, style);
        let there = |found: &str| found.is_empty() || found == "." || line.iter().any(|word| word.ends_with(found));
        let path = |path: &PathBuf| there(&path.display().to_string());
        assert!(call.log.as_ref().is_none_or(path));
        match &call.command {
            Command::Create { id, bundle, config } => assert!(there(id) && path(bundle) && config.as_ref().is_none_or(path)),
            Command::Restore { id, bundle } => assert!(there(id) && path(bundle)),
            Command::Exec { id, process, .. } => assert!(there(id) && process.as_ref().is_none_or(path)),
            Command::Other => {}
        }
        if let Some(meant) = accepted {
            assert_eq!(found(&call.command), found(&meant), "{style:?} {line:?}");
        }
    }
});

/// What is compared: the id, and bundle and configuration or the process.
fn found(command: &Command) -> Option<(&str, Option<&PathBuf>, Option<&PathBuf>)> {
    match command {
        Command::Create { id, bundle, config } => Some((id, Some(bundle), config.as_ref())),
        Command::Exec { id, process, .. } => Some((id, process.as_ref(), None)),
        _ => None,
    }
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Youki {
    #[command(flatten)]
    _global: GlobalOpts,
    #[command(subcommand)]
    command: Subcommand,
}

#[derive(clap::Subcommand)]
enum Subcommand {
    #[command(flatten)]
    Standard(StandardCmd),
    #[command(flatten)]
    Common(CommonCmd),
}

fn youki(line: &[&str]) -> Option<Command> {
    Some(match Youki::try_parse_from(line).ok()?.command {
        Subcommand::Standard(StandardCmd::Create(create)) => Command::Create { id: create.container_id, bundle: create.bundle, config: None },
        Subcommand::Common(CommonCmd::Run(run)) => Command::Create { id: run.container_id, bundle: run.bundle, config: None },
        Subcommand::Common(CommonCmd::Exec(exec)) => Command::Exec { id: exec.container_id, process: exec.process, given: Given::default() },
        _ => Command::Other,
    })
}

/// Long name, letter, whether it takes a value.
type Flag = (&'static str, &'static str, bool);

const RUNC: &[Flag] = &[
    ("debug", "", false), ("log", "", true), ("log-format", "", true), ("root", "", true), ("criu", "", true), ("systemd-cgroup", "", false),
    ("rootless", "", true),
];
const RUNC_CREATE: &[Flag] = &[
    ("bundle", "b", true), ("console-socket", "", true), ("pid-file", "", true), ("no-pivot", "", false), ("no-new-keyring", "", false),
    ("preserve-fds", "", true),
];
const RUNC_RUN: &[Flag] = &[
    ("bundle", "b", true), ("console-socket", "", true), ("pid-file", "", true), ("no-pivot", "", false), ("no-new-keyring", "", false),
    ("preserve-fds", "", true), ("detach", "d", false), ("keep", "", false), ("no-subreaper", "", false),
];
const RUNC_EXEC: &[Flag] = &[
    ("console-socket", "", true), ("cwd", "", true), ("env", "e", true), ("tty", "t", false), ("user", "u", true), ("additional-gids", "g", true),
    ("process", "p", true), ("detach", "d", false), ("pid-file", "", true), ("process-label", "", true), ("apparmor", "", true),
    ("no-new-privs", "", false), ("cap", "c", true), ("preserve-fds", "", true), ("cgroup", "", true), ("ignore-paused", "", false),
];

/// Options by their long names, and what stands behind them.
type Options<'a> = (Vec<(&'static str, &'a str)>, Vec<&'a str>);

fn last<'a>(options: &Options<'a>, name: &str) -> Option<&'a str> {
    options.0.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// The next word, where it is an option; a `--` is passed over.
fn next_option<'a>(rest: &mut std::slice::Iter<'_, &'a str>) -> Option<&'a str> {
    let word = rest.clone().next().filter(|word| word.len() > 1 && word.starts_with('-'))?;
    rest.next();
    (*word != "--").then_some(*word)
}

/// `flag.FlagSet.Parse`: to the first word that is none of its own, or behind `--`. Of a switch only that it is there.
fn go<'a>(flags: &[Flag], words: &[&'a str]) -> Option<Options<'a>> {
    let mut found = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = next_option(&mut rest) {
        let name = word.strip_prefix("--").or(word.strip_prefix('-'))?;
        let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
        let (name, _, takes) = flags.iter().find(|(long, letter, _)| !name.is_empty() && (*long == name || *letter == name))?;
        let value = match (takes, value) {
            (true, Some(value)) => value,
            (true, None) => rest.next()?,
            (false, None | Some("true")) => "",
            (false, Some(_)) => return None,
        };
        found.push((*name, value));
    }
    Some((found, rest.copied().collect()))
}

/// urfave/cli's `reorderArgs`: a command's flags go before its words. A line whose last flag lacks its value, and takes whatever
/// comes first of the rest, is nobody's.
fn reordered<'a>(flags: &[Flag], words: &[&'a str]) -> Option<Vec<&'a str>> {
    let is_flag = |word: &str| {
        let name = word.strip_prefix("--").or(word.strip_prefix('-')).filter(|_| word != "-" && word != "--");
        let name = name.map(|name| name.split('=').next().unwrap_or_default());
        name.is_some_and(|name| flags.iter().any(|(long, letter, _)| *long == name || (!letter.is_empty() && *letter == name)))
    };
    let (mut first, mut behind, mut value) = (Vec::new(), Vec::new(), false);
    for (at, word) in words.iter().enumerate() {
        if value && !is_flag(word) {
            value = false;
            first.push(*word);
        } else if *word == "--" {
            behind.extend(&words[at..]);
            break;
        } else if is_flag(word) {
            first.push(word);
            value = !word.contains('=');
        } else {
            behind.push(*word);
        }
    }
    first.extend(behind);
    (!value).then_some(first)
}

fn runc(line: &[&str]) -> Option<Command> {
    let (_, rest) = go(RUNC, line)?;
    let (command, words) = rest.split_first()?;
    let create = |flags: &[Flag]| {
        let options = go(flags, &reordered(flags, words)?)?;
        let [id] = options.1.as_slice() else { return None };
        Some(Command::Create { id: (*id).into(), bundle: last(&options, "bundle").unwrap_or(".").into(), config: None })
    };
    match *command {
        "create" => create(RUNC_CREATE),
        "run" => create(RUNC_RUN),
        "exec" => {
            let options = go(RUNC_EXEC, words)?;
            let id = options.1.first()?;
            Some(Command::Exec { id: (*id).into(), process: last(&options, "process").map(PathBuf::from), given: Given::default() })
        }
        _ => None,
    }
}

const CRUN: &[Flag] = &[
    ("debug", "", false), ("cgroup-manager", "", true), ("systemd-cgroup", "", false), ("log", "", true), ("log-format", "", true), ("root", "", true),
    ("rootless", "", true), ("version", "V", false), ("help", "?", false), ("usage", "", false), ("program-name", "", true), ("HANG", "", false),
];
const CRUN_CREATE: &[Flag] = &[
    ("bundle", "b", true), ("config", "f", true), ("console-socket", "", true), ("preserve-fds", "", true), ("no-pivot", "", false),
    ("pid-file", "", true), ("no-subreaper", "", false), ("no-new-keyring", "", false), ("version", "V", false), ("help", "?", false),
    ("usage", "", false), ("program-name", "", true), ("HANG", "", false),
];
const CRUN_EXEC: &[Flag] = &[
    ("console-socket", "", true), ("process", "p", true), ("cwd", "", true), ("cgroup", "", true), ("detach", "d", false), ("user", "u", true),
    ("env", "e", true), ("cap", "c", true), ("pid-file", "", true), ("preserve-fds", "", true), ("no-new-privs", "", false),
    ("process-label", "", true), ("apparmor", "", true), ("version", "V", false), ("help", "?", false), ("usage", "", false),
    ("program-name", "", true), ("HANG", "", false),
];

/// `getopt_long` in order. What prints and ends is not accepted.
fn getopt<'a>(flags: &[Flag], words: &[&'a str]) -> Option<Options<'a>> {
    let mut found = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = next_option(&mut rest) {
        if let Some(name) = word.strip_prefix("--") {
            let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
            let mut meant = flags.iter().filter(|(long, ..)| long.starts_with(name));
            let exact = flags.iter().find(|(long, ..)| *long == name);
            let (name, _, takes) = match exact {
                Some(flag) => flag,
                None => meant.next().filter(|_| meant.next().is_none())?,
            };
            let value = match (takes, value) {
                (true, Some(value)) => value,
                (true, None) => rest.next()?,
                (false, None) => "",
                (false, Some(_)) => return None,
            };
            found.push((*name, value));
            continue;
        }
        for (at, letter) in word.char_indices().skip(1) {
            let behind = &word[at + letter.len_utf8()..];
            let (name, _, takes) = flags.iter().find(|(_, known, _)| known.chars().eq([letter]))?;
            let value = match (takes, behind) {
                (false, _) => "",
                (true, "") => rest.next()?,
                (true, value) => value,
            };
            found.push((*name, value));
            if *takes {
                break;
            }
        }
    }
    let ends = ["version", "help", "usage", "HANG"];
    (!found.iter().any(|(name, _)| ends.contains(name))).then(|| (found, rest.copied().collect()))
}

fn crun(line: &[&str]) -> Option<Command> {
    let (_, rest) = getopt(CRUN, line)?;
    let (command, words) = rest.split_first()?;
    match *command {
        "create" | "run" => {
            let mut flags = CRUN_CREATE.to_vec();
            flags.extend((*command == "run").then_some(("detach", "d", false)));
            let options = getopt(&flags, words)?;
            let [id] = options.1.as_slice() else { return None };
            let bundle = last(&options, "bundle").unwrap_or(".").into();
            Some(Command::Create { id: (*id).into(), bundle, config: last(&options, "config").map(PathBuf::from) })
        }
        "exec" => {
            let options = getopt(CRUN_EXEC, words)?;
            let process = last(&options, "process").map(PathBuf::from);
            let enough = if process.is_some() { 1 } else { 2 };
            let id = options.1.first().filter(|_| options.1.len() >= enough)?;
            Some(Command::Exec { id: (*id).into(), process, given: Given::default() })
        }
        _ => None,
    }
}

//! Command lines of crun, runc and youki, in every spelling that each of them takes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use std::ffi::OsString;
use std::path::Path;
use terok_hook::shim::Given;
use terok_shim::argv::{Call, Command, Style};

fn parse(style: Style, line: &str) -> Call {
    Call::parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>(), style)
}

fn created(id: &str, bundle: &str) -> Command {
    Command::Create { id: id.into(), bundle: bundle.into(), config: None }
}

fn exec(process: Option<&str>, capabilities: &[&str], new_privileges: bool) -> Command {
    let capabilities = capabilities.iter().map(|&name| name.to_owned()).collect();
    Command::Exec {
        id: "c1".into(),
        process: process.map(Into::into),
        given: Given { capabilities, new_privileges },
    }
}

#[test]
fn lines_that_engines_write_are_understood() {
    use Style::{Argp, Clap, Go};
    for style in [Argp, Go, Clap] {
        // conmon for Podman; containerd's runc shim; dockerd and buildkit.
        for (line, command) in [
            (
                "--log-format=json --log=/run/l --cgroup-manager disabled create --bundle /b --pid-file /p c1",
                created("c1", "/b"),
            ),
            (
                "--root /run/containerd/runc/default --log /b/log.json --log-format json create --bundle /b --pid-file /b/init.pid c1",
                created("c1", "/b"),
            ),
            (
                "--systemd-cgroup create --bundle /b --console-socket /s --no-pivot --preserve-fds 2 c1",
                created("c1", "/b"),
            ),
            ("run -b /b -d c1", created("c1", "/b")),
            ("run c1", created("c1", ".")),
            ("run --bundle /b -- c1", created("c1", "/b")),
            (
                "restore --bundle /b --image-path /i --work-path /w c1",
                Command::Restore { id: "c1".into(), bundle: "/b".into() },
            ),
            ("--root /r exec --process /p --detach --pid-file /f c1", exec(Some("/p"), &[], false)),
            ("exec -t -e A=1 c1 sh --process /x", exec(None, &[], false)),
            (
                "exec --cap CAP_NET_ADMIN --cap=sys_admin c1 sh",
                exec(None, &["CAP_NET_ADMIN", "sys_admin"], false),
            ),
            ("exec -u 0 --no-new-privs c1 sh --cap all", exec(None, &[], false)),
            ("--root create start c1", Command::Other),
            ("--version", Command::Other),
            ("features", Command::Other),
            ("kill --all c1 9", Command::Other),
            ("delete --force create", Command::Other),
            ("", Command::Other),
            // An option of tomorrow, with a value or without.
            ("--tomorrow create --bundle /b c1", created("c1", "/b")),
            ("--tomorrow much create --bundle /b c1", created("c1", "/b")),
            ("--tomorrow=much create --bundle /b --much-more c1", created("c1", "/b")),
        ] {
            assert_eq!(parse(style, line).command, command, "{style:?} {line}");
        }
    }
    // Not argp, which takes the value of an option it does not know for the id.
    for style in [Go, Clap] {
        assert_eq!(parse(style, "create --tomorrow much --bundle /b c1").command, created("c1", "/b"));
        assert_eq!(parse(style, "create c1 --bundle /b").command, created("c1", "/b"));
    }
}

#[test]
fn each_runtime_has_spellings_of_its_own() {
    use Style::{Argp, Clap, Go};
    for (style, line, command) in [
        (Argp, "create -b/b c1", created("c1", "/b")),
        (Argp, "create --bun /b c1", created("c1", "/b")),
        (Argp, "create --b=/b c1", created("c1", "/b")),
        (Argp, "--cgroup-m systemd run -db /b c1", created("c1", "/b")),
        (Argp, "run -b=/b c1", created("c1", "=/b")),
        (
            Argp,
            "create --config /c --bundle /b c1",
            Command::Create { id: "c1".into(), bundle: "/b".into(), config: Some("/c".into()) },
        ),
        (Argp, "create c1 --bundle /b", created("c1", ".")),
        (Argp, "create --pid /p --bundle /b c1", created("c1", "/b")),
        (Go, "-root /r create -bundle /b c1", created("c1", "/b")),
        (Go, "--root=/r create -bundle=/b c1", created("c1", "/b")),
        (Go, "run --b /b --detach=true c1", created("c1", "/b")),
        (Go, "run -b=/b c1", created("c1", "/b")),
        (Go, "exec -no-new-privs=false -cap A,B c1 sh", exec(None, &["A", "B"], true)),
        (Go, "exec --no-new-privs=1 -c A c1 sh", exec(None, &["A"], false)),
        (Argp, "exec -cA -c B c1 sh", exec(None, &["A", "B"], false)),
        (Clap, "-r /r -l /l create -b/b c1", created("c1", "/b")),
        (Clap, "-l/l -s run -b=/b c1", created("c1", "/b")),
        (Clap, "create -db /b -p /pid c1", created("c1", "/b")),
        (Go, "run /b c1 -b", created("c1", "/b")),
        (Clap, "create --bundle /a --bundle /b c1", created("c1", "/b")),
        (Clap, "exec c1 --process /p sh --process /x", exec(Some("/p"), &[], false)),
        (Clap, "exec -- c1 --process /p", exec(None, &[], false)),
        (Go, "exec c1 --process /p", exec(None, &[], false)),
    ] {
        assert_eq!(parse(style, line).command, command, "{style:?} {line}");
    }
    for (runtime, style) in [
        ("/usr/bin/crun", Argp),
        ("/usr/bin/krun", Argp),
        ("/usr/sbin/runc", Go),
        ("/x/youki", Clap),
        ("/x/runsc", Go),
    ] {
        assert_eq!(Style::of(Path::new(runtime)), style, "{runtime}");
    }
}

#[test]
fn the_log_is_where_the_runtime_would_write_it() {
    let log = |style, line| {
        let call = parse(style, line);
        (call.log.map(|log| log.display().to_string()), call.log_is_json)
    };
    assert_eq!(log(Style::Go, "--log /l --log-format json create c1"), (Some("/l".into()), true));
    assert_eq!(log(Style::Argp, "--log=file:/l --log-format=text create c1"), (Some("/l".into()), false));
    assert_eq!(log(Style::Argp, "--log journald:x --log-format json create c1"), (None, true));
    assert_eq!(log(Style::Go, "create --log /l c1"), (None, false));
}

/// An option of create with its value, as `style` may spell it.
fn spelt(style: Style, letter: Option<char>, long: &str, value: &str, way: u8) -> Vec<String> {
    let two = |name: String| vec![name, value.to_owned()];
    match (style, letter, way % 5) {
        (Style::Go, _, 0) => two(format!("-{long}")),
        (Style::Go, _, 1) => vec![format!("-{long}={value}")],
        (Style::Argp, _, 0) => two(format!("--{}", &long[..long.len() - 1])),
        (Style::Argp | Style::Clap, Some(letter), 1) => vec![format!("-{letter}{value}")],
        (_, Some(letter), 2) => two(format!("-{letter}")),
        (_, _, 3) => vec![format!("--{long}={value}")],
        _ => two(format!("--{long}")),
    }
}

proptest! {
    #[test]
    fn bundle_and_id_are_found_whatever_stands_around_them(
        style in prop_oneof![Just(Style::Argp), Just(Style::Go), Just(Style::Clap)],
        global in prop::collection::vec((0usize..5, any::<u8>()), 0..4),
        before in prop::collection::vec((0usize..4, any::<u8>()), 0..4),
        after in prop::collection::vec((0usize..4, any::<u8>()), 0..4),
        way in any::<u8>(),
        bundle in "/[a-z=/-]{0,12}",
        value in "[a-z0-9/=._-]{0,8}[a-z]",
        id in "[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}",
        verb in prop_oneof![Just("create"), Just("run")],
    ) {
        // A value that looks like an option is one for nobody.
        let value = value.trim_start_matches(['-', '=']).to_owned();
        let globals = ["root", "log", "log-format", "cgroup-manager", "log-level"];
        let options = [(None, "pid-file"), (None, "console-socket"), (None, "preserve-fds"), (None, "pidfd-socket")];
        let mut line: Vec<String> = Vec::new();
        for (at, way) in global {
            line.extend(spelt(style, None, globals[at], &value, if style == Style::Argp { way | 3 } else { way }));
        }
        line.push(verb.to_owned());
        for (at, way) in before {
            line.extend(spelt(style, options[at].0, options[at].1, &value, way));
        }
        line.extend(spelt(style, Some('b'), "bundle", &bundle, way));
        for (at, way) in after {
            line.extend(spelt(style, options[at].0, options[at].1, &value, way));
        }
        line.push(id.clone());
        let words: Vec<OsString> = line.iter().map(OsString::from).collect();
        prop_assert_eq!(Call::parse(&words, style).command, created(&id, &bundle), "{:?}", line);
    }

    #[test]
    fn no_line_is_too_odd_to_be_read(
        style in prop_oneof![Just(Style::Argp), Just(Style::Go), Just(Style::Clap)],
        words in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..12),
            prop::sample::select(vec!["create", "run", "exec", "--bundle", "-b", "--", "-", "--log", "--root=", "--=", "-="])
                .prop_map(|word| word.as_bytes().to_vec()),
        ], 0..12),
    ) {
        use std::os::unix::ffi::OsStringExt;
        let words: Vec<OsString> = words.into_iter().map(OsString::from_vec).collect();
        Call::parse(&words, style);
    }
}

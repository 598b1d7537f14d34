//! What is done to a configuration, in lines that a person reads: one a value that goes or comes, and the system calls in a few words.

use crate::show::{self, Tone};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use terok_policy::amend;

const SECCOMP: &str = "/linux/seccomp";
/// As <sys/socket.h> has them.
const FAMILIES: [(u32, &str); 5] =
    [(1, "AF_UNIX"), (2, "AF_INET"), (10, "AF_INET6"), (16, "AF_NETLINK"), (17, "AF_PACKET")];
const TYPES: [(u32, &str); 6] =
    [(1, "stream"), (2, "dgram"), (3, "raw"), (5, "seqpacket"), (6, "dccp"), (10, "packet")];

/// The lines, without an end.
pub(crate) fn between(before: &Value, after: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", before, after, &mut lines);
    let seccomp = |config: &Value| config.pointer(SECCOMP).cloned().unwrap_or_default();
    if seccomp(before) != seccomp(after) {
        lines.extend(calls(&seccomp(before), &seccomp(after)));
        lines.push(sockets(after));
    }
    lines
}

fn compare(path: &str, before: &Value, after: &Value, lines: &mut Vec<String>) {
    match (before, after) {
        _ if before == after || path == SECCOMP => {}
        (Value::Object(_) | Value::Null, Value::Object(is)) => {
            let empty = Map::new();
            let was = before.as_object().unwrap_or(&empty);
            let keys: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            for key in keys {
                let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&format!("{path}/{}", show::printable(key)), &of(was), &of(is), lines);
            }
        }
        (Value::Array(_) | Value::Null, Value::Array(is)) => {
            lists(path, before.as_array().map_or(&[][..], Vec::as_slice), is, lines);
        }
        _ => {
            lines.extend(Some(before).filter(|was| !was.is_null()).map(|was| gone(path, &value(was))));
            lines.extend(Some(after).filter(|is| !is.is_null()).map(|is| new(path, &value(is))));
        }
    }
}

/// Short words of a list in one line, all else in one each.
fn lists(path: &str, was: &[Value], is: &[Value], lines: &mut Vec<String>) {
    let less = |some: &[Value], others: &[Value]| -> Vec<String> {
        some.iter().filter(|item| !others.contains(item)).map(value).collect()
    };
    for (items, line) in [(less(was, is), gone as fn(&str, &str) -> String), (less(is, was), new)] {
        if !items.is_empty() && items.iter().all(|item| !item.contains([' ', '='])) {
            lines.push(line(path, &items.join(" ")));
        } else {
            lines.extend(items.iter().map(|item| line(path, item)));
        }
    }
}

fn gone(path: &str, value: &str) -> String {
    show::toned(Tone::Bad, &format!("- {path}  {value}"))
}

fn new(path: &str, value: &str) -> String {
    show::toned(Tone::Good, &format!("+ {path}  {value}"))
}

/// A mount, a hook, a word, or JSON.
fn value(value: &Value) -> String {
    let text = |key| value.get(key).and_then(Value::as_str);
    let words = |key| -> Vec<&str> {
        value.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let told = match value {
        Value::String(text) => text.clone(),
        _ => match (text("destination"), text("path")) {
            (Some(to), _) => {
                format!("{to} from {} ({})", text("source").unwrap_or_default(), words("options").join(","))
            }
            (None, Some(path)) if value.get("args").is_some() => {
                let arguments = words("args");
                format!("{path} {}", arguments.get(1..).unwrap_or_default().join(" "))
            }
            _ => value.to_string(),
        },
    };
    show::printable(&told)
}

/// What holds for each system call that a filter names: conditions and action of its rules.
type Rules<'a> = BTreeMap<&'a str, Vec<(&'a Value, &'a Value, &'a Value)>>;

fn rules(seccomp: &Value) -> Rules<'_> {
    let mut rules = Rules::new();
    for rule in seccomp.get("syscalls").and_then(Value::as_array).into_iter().flatten() {
        let of = |key| rule.get(key).unwrap_or(&Value::Null);
        for name in of("names").as_array().into_iter().flatten().filter_map(Value::as_str) {
            rules.entry(name).or_default().push((of("args"), of("action"), of("errnoRet")));
        }
    }
    rules
}

/// Which system calls are refused that were not, and which in some forms only.
fn calls(before: &Value, after: &Value) -> Vec<String> {
    let (was, is) = (rules(before), rules(after));
    let allows = |action: &Value| action == "SCMP_ACT_ALLOW";
    let by_default = |seccomp: &Value| seccomp.get("defaultAction").is_none_or(allows);
    let verdict = |rules: &Rules<'_>, seccomp: &Value, name: &str| match rules.get(name) {
        None => (by_default(seccomp), by_default(seccomp)),
        Some(rules) => {
            let unconditional = rules.iter().find(|(args, ..)| args.as_array().is_none_or(Vec::is_empty));
            match unconditional {
                Some((_, action, _)) => (allows(action), allows(action)),
                None => (true, false),
            }
        }
    };
    let (mut refused, mut limited) = (Vec::new(), Vec::new());
    let names: BTreeSet<&str> = was.keys().chain(is.keys()).copied().collect();
    for name in names.into_iter().filter(|name| was.get(name) != is.get(name)) {
        match (verdict(&was, before, name), verdict(&is, after, name)) {
            ((false, _), (false, _)) => {}
            (_, (false, _)) => refused.push(name),
            (_, (true, _)) => limited.push(name),
        }
    }
    let count = |seccomp: &Value| seccomp.get("syscalls").and_then(Value::as_array).map_or(0, Vec::len);
    let mut lines = vec![format!("~ {SECCOMP}  {} rules before, {} after", count(before), count(after))];
    for (what, names) in [("refused", refused), ("in some forms only", limited)] {
        if !names.is_empty() {
            lines.push(show::printable(&format!("~ {SECCOMP}  {what}: {}", names.join(" "))));
        }
    }
    lines
}

/// What [`amend::sockets`] says of the amended configuration.
fn sockets(after: &Value) -> String {
    let name = |table: &[(u32, &str)], number: u32| {
        let known = table.iter().find(|(known, _)| *known == number);
        known.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
    };
    let told = match amend::sockets(after) {
        Ok(Some(sockets)) => {
            let mut families: BTreeMap<u32, Vec<String>> = BTreeMap::new();
            for (family, kind) in sockets {
                families.entry(family).or_default().push(name(&TYPES, kind));
            }
            let told = families.into_iter().map(|(family, kinds)| {
                // A type that its family does not have is the kernel's to refuse.
                let kinds = if kinds.len() < TYPES.len() { kinds.join("|") } else { "any".to_owned() };
                format!("{} {kinds}", name(&FAMILIES, family))
            });
            told.collect::<Vec<_>>().join(", ")
        }
        Ok(None) => "every kind".to_owned(),
        Err(error) => error.to_string(),
    };
    show::printable(&format!("~ {SECCOMP}  sockets that pass: {told}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_goes_and_what_comes_is_a_line_each() {
        let before = json!({ "process": { "env": ["A=1", "B=2"], "capabilities": { "bounding": ["CAP_KILL", "CAP_CHOWN"] } } });
        let after = json!({ "process": { "env": ["A=1", "B=3\u{1b}[2J"], "noNewPrivileges": true, "capabilities": { "bounding": [] } },
            "mounts": [{ "destination": "/run/terok", "source": "/x", "options": ["ro", "nosuid"] }] });
        let lines = between(&before, &after);
        assert_eq!(lines[0], "+ /mounts  /run/terok from /x (ro,nosuid)");
        assert_eq!(lines[1], "- /process/capabilities/bounding  CAP_KILL CAP_CHOWN");
        assert_eq!(lines[2], "- /process/env  B=2");
        assert!(lines[3].starts_with("+ /process/env  B=3") && !lines[3].contains('\u{1b}'), "{lines:?}");
        assert_eq!(lines[4], "+ /process/noNewPrivileges  true");
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn system_calls_are_told_by_what_becomes_of_them() {
        let before = json!({ "linux": {} });
        let after = amend::amend(before.clone(), &terok_policy::Policy::default()).unwrap();
        let text = between(&before, &after).join("\n");
        assert!(
            text.contains("  refused: io_uring_enter io_uring_register io_uring_setup socketcall\n"),
            "{text}"
        );
        assert!(text.contains("in some forms only: socket socketpair"), "{text}");
        assert!(text.contains("AF_INET stream|dgram, AF_INET6"), "{text}");
        assert!(!text.contains("AF_PACKET"), "{text}");
    }
}

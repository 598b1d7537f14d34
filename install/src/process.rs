//! The command lines of the processes that run.

use crate::host::Host;
use std::path::Path;

/// Every process's words. A user sees those of others as far as `/proc` shows them.
pub(crate) fn command_lines(host: &Host) -> Vec<Vec<String>> {
    let Ok(entries) = std::fs::read_dir(host.at("/proc")) else { return Vec::new() };
    let is_process = |name: &std::ffi::OsStr| {
        name.to_str().is_some_and(|name| name.bytes().all(|octet| octet.is_ascii_digit()))
    };
    let processes = entries.flatten().filter(|entry| is_process(&entry.file_name()));
    // One that has ended meanwhile has none.
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| words(&line))
        .collect()
}

/// Words end with a NUL (proc_pid_cmdline(5)).
fn words(line: &[u8]) -> Vec<String> {
    let line = line.strip_suffix(b"\0").unwrap_or(line);
    line.split(|octet| *octet == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Whether the program was started by this name.
pub(crate) fn is_called(words: &[String], name: &str) -> bool {
    words.first().is_some_and(|first| Path::new(first).file_name().is_some_and(|own| own == name))
}

/// The value of an option that the words give by one of its `names`, as `NAME VALUE` or `NAME=VALUE`: the first.
pub(crate) fn option<'w>(words: &'w [String], names: &[&str]) -> Option<&'w str> {
    words.iter().enumerate().find_map(|(at, word)| match word.split_once('=') {
        _ if names.contains(&word.as_str()) => words.get(at + 1).map(String::as_str),
        Some((name, value)) if names.contains(&name) => Some(value),
        _ => None,
    })
}

/// Makes the process `pid` of a host that lives in a folder.
#[cfg(test)]
pub(crate) fn tests_process(host: &Host, pid: u32, line: &str) {
    let folder = host.at(format!("/proc/{pid}"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("cmdline"), line.replace(' ', "\0") + "\0").unwrap();
}

//! Questions on the terminal: what is typed in answer to a secret's is not shown. Always the terminal itself, whatever standard input is.

use anyhow::{Context as _, anyhow, bail};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use zeroize::Zeroizing;

/// A secret from standard input is shorter.
const LIMIT: u64 = 64 * 1024;

/// Asks for a secret.
pub(crate) fn hidden(question: &str) -> anyhow::Result<Zeroizing<String>> {
    terminal()?;
    let answer = rpassword::prompt_password(format!("{question}: ")).context("/dev/tty")?;
    Ok(Zeroizing::new(answer))
}

/// Asks for a secret that is being made, twice.
pub(crate) fn new_secret(question: &str) -> anyhow::Result<Zeroizing<String>> {
    let first = hidden(question)?;
    if *first != *hidden(&format!("{question}, again"))? {
        bail!("the two are not the same; nothing was changed");
    }
    Ok(first)
}

/// Asks for something that may be seen.
pub(crate) fn shown(question: &str) -> anyhow::Result<String> {
    let mut terminal = terminal()?;
    write!(terminal, "{question}: ")?;
    let mut answer = String::new();
    BufReader::new(terminal).read_line(&mut answer)?;
    Ok(answer.trim().to_owned())
}

/// Asks whether to go on; anything but a yes is a no.
pub(crate) fn confirm(question: &str) -> anyhow::Result<bool> {
    Ok(matches!(shown(&format!("{question} [y/N]"))?.to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Standard input to its end, without the line break behind it.
pub(crate) fn standard_input() -> anyhow::Result<Zeroizing<String>> {
    read(std::io::stdin())
}

/// Lines of standard input, `count` of them.
pub(crate) fn lines<const COUNT: usize>() -> anyhow::Result<[Zeroizing<String>; COUNT]> {
    let text = standard_input()?;
    let lines: Vec<_> = text.lines().map(|line| Zeroizing::new(line.to_owned())).collect();
    match lines.try_into() {
        Ok(lines) => Ok(lines),
        Err(_) if text.is_empty() => bail!("standard input is empty"),
        Err(_) if COUNT == 1 => bail!("standard input is not one line: write the passphrase into it"),
        Err(_) => bail!("standard input is not {COUNT} lines: the old passphrase, then the new one"),
    }
}

/// All that `source` gives, without the line break behind it.
pub(crate) fn read(source: impl std::io::Read) -> anyhow::Result<Zeroizing<String>> {
    // Room for all of it, so that no shorter copy stays in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT as usize + 1));
    source.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        bail!("that is longer than {LIMIT} octets, which no secret is");
    }
    let text = std::str::from_utf8(&bytes).ok().context("that is not text")?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(Zeroizing::new(text.strip_suffix('\r').unwrap_or(text).to_owned()))
}

/// Whether there is a terminal to ask on.
pub(crate) fn is_possible() -> bool {
    terminal().is_ok()
}

fn terminal() -> anyhow::Result<File> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
    // The system's words ("no such device or address") say nothing to a person.
    terminal.map_err(|_| anyhow!("there is no terminal to ask on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_keeps_all_but_the_line_break_behind_it() {
        for (given, read_as) in [("a b\n", "a b"), ("a\r\n", "a"), (" a\n\n", " a\n"), ("", "")] {
            assert_eq!(*read(given.as_bytes()).unwrap(), read_as);
        }
        assert!(read(&b"\xff"[..]).is_err());
        assert!(read(std::io::repeat(b'a')).is_err());
    }
}

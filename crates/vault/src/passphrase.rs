//! Where a passphrase comes from beside a prompt: a command of the user's, or a credential of the service manager.

use crate::error::{Error, Result};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// A passphrase has at least so many characters.
pub const MINIMUM: usize = 8;
/// Its name among the credentials that systemd puts below `$CREDENTIALS_DIRECTORY` (systemd.exec(5)).
pub const CREDENTIAL: &str = "terok-vault";
/// A passphrase is shorter than so many octets.
const LIMIT: usize = 4096;

/// Whether a passphrase may be set.
pub fn check(passphrase: &str) -> Result<()> {
    if passphrase.is_empty() {
        return Err(Error::Passphrase("is empty".into()));
    }
    if passphrase.chars().count() < MINIMUM {
        return Err(Error::Passphrase(format!("is too short: at least {MINIMUM} characters")));
    }
    if passphrase.contains(['\n', '\r', '\0']) || passphrase.len() >= LIMIT {
        return Err(Error::Passphrase(
            "has a line break or a zero octet in it, or is longer than a line".into(),
        ));
    }
    Ok(())
}

/// The first line that `command` prints within `patience`, as `pass show` has it. `quiet` gives it no terminal: it must not ask anybody.
pub fn from_command(command: &[String], quiet: bool, patience: Duration) -> Result<Zeroizing<String>> {
    let [program, arguments @ ..] = command else {
        return Err(Error::Passphrase("command in config.toml is empty".into()));
    };
    let failed = |what: String| Error::Passphrase(format!("command `{program}` {what}"));
    let mut child = Command::new(program);
    child.args(arguments).stdout(Stdio::piped());
    if quiet {
        child.stdin(Stdio::null()).stderr(Stdio::null());
    }
    let deadline = Instant::now() + patience;
    let mut child = child.spawn().map_err(|error| failed(format!("does not start: {error}")))?;
    let (sender, said) = std::sync::mpsc::channel();
    if let Some(output) = child.stdout.take() {
        // Ends with the program's output, or with this program.
        std::thread::spawn(move || sender.send(first_line(output)));
    }
    let said = said.recv_timeout(patience);
    let ended = loop {
        match child.try_wait().map_err(|error| failed(error.to_string()))? {
            Some(ended) => break ended,
            None if said.is_ok() && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("is not done after {} seconds", patience.as_secs())));
            }
        }
    };
    let said = said.map_err(|_| failed("cannot be read".into()))?;
    let said = said.map_err(|error| failed(format!("cannot be read: {error}")))?;
    match ended.success() {
        false => Err(failed(format!("failed ({ended})"))),
        true if said.is_empty() => Err(failed("printed nothing".into())),
        true => Ok(said),
    }
}

/// The credential [`CREDENTIAL`] in systemd's folder; `None` where there is none.
pub fn from_systemd(folder: &Path) -> Result<Option<Zeroizing<String>>> {
    let path = folder.join(CREDENTIAL);
    match std::fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        opened => {
            let line = opened.and_then(first_line).map_err(Error::file("read", path.display()))?;
            Ok((!line.is_empty()).then_some(line))
        }
    }
}

/// Reads into memory of its whole size at once, so that no part of it stays behind somewhere.
fn first_line(mut from: impl Read) -> std::io::Result<Zeroizing<String>> {
    let mut octets = Zeroizing::new(vec![0; LIMIT]);
    let mut length = 0;
    while length < LIMIT {
        match from.read(&mut octets[length..])? {
            0 => break,
            read => length += read,
        }
    }
    let line = octets[..length].split(|&octet| octet == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not UTF-8, or longer than a line");
    if line.len() == LIMIT {
        return Err(invalid());
    }
    std::str::from_utf8(line).map(|line| Zeroizing::new(line.to_owned())).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<String, String> {
        let command = ["sh", "-c", script].map(str::to_owned);
        from_command(&command, true, Duration::from_secs(20))
            .map(|line| line.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_short_passphrase_is_refused_with_its_minimum() {
        for (passphrase, said) in [
            ("", "is empty"),
            ("sevenÄÖ", "at least 8 characters"),
            ("two\nlines!", "line break"),
            (&"x".repeat(LIMIT), "longer"),
        ] {
            let refused = check(passphrase).unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
        }
        check("eightÄÖÜ").unwrap();
        check(&"x".repeat(LIMIT - 1)).unwrap();
    }

    #[test]
    fn a_command_gives_its_first_line() {
        assert_eq!(shell("printf 'correct horse\\nuser: me\\n'").unwrap(), "correct horse");
        assert_eq!(shell("printf ' spaces stay \\r\\n'").unwrap(), " spaces stay ");
        assert_eq!(shell("read line; echo \"<$line>\"").unwrap(), "<>");
    }

    #[test]
    fn a_command_that_fails_is_named_and_what_it_printed_is_not() {
        for (script, said) in [
            ("echo secret-42; exit 3", "exit status: 3"),
            ("exit 0", "printed nothing"),
            ("yes secret-42 | tr -d '\\n'", "longer than a line"),
            ("printf '\\377\\n'", "not UTF-8"),
        ] {
            let refused = shell(script).unwrap_err();
            assert!(refused.contains(said) && refused.contains("`sh`"), "{refused}");
            assert!(!refused.contains("secret-42"), "{refused}");
        }
        let missing = from_command(&["/no/such/program".into()], true, Duration::from_secs(20))
            .unwrap_err()
            .to_string();
        assert!(missing.contains("does not start"), "{missing}");
        assert!(from_command(&[], true, Duration::ZERO).is_err());
    }

    #[test]
    fn a_command_that_does_not_end_is_ended() {
        for script in ["exec sleep 600", "echo x; exec >&-; exec sleep 600"] {
            let started = Instant::now();
            let command = ["sh", "-c", script].map(str::to_owned);
            let error = from_command(&command, true, Duration::from_millis(100)).unwrap_err().to_string();
            assert!(error.contains("not done") && started.elapsed() < Duration::from_secs(30), "{error}");
        }
    }

    #[test]
    fn systemds_credential_is_read_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(from_systemd(folder.path()).unwrap(), None);
        std::fs::write(folder.path().join(CREDENTIAL), "correct horse\n").unwrap();
        assert_eq!(from_systemd(folder.path()).unwrap().unwrap().as_str(), "correct horse");
    }
}

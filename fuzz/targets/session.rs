//! A session file: never a panic, unlocked only for the vault it names and before its end, and what was unlocked is written back alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::io::Write;
use terok_vault::Dir;
use terok_vault::session::{self, Session};

const VAULT: &str = "00112233445566778899aabbccddeeff";
const NOW: u64 = 1_790_000_000;

fuzz_target!(|input: &[u8]| {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    let Ok(base) = Dir::base(folder.path()) else { return };
    let sub = folder.path().join(".session");
    std::fs::DirBuilder::new().mode(0o700).create(&sub).expect("a folder");
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(sub.join("key.json"));
    file.and_then(|mut file| file.write_all(input)).expect("a file");
    match session::read(&base, VAULT, NOW) {
        Ok(Session::Unlocked { key, until }) => {
            assert!(until > NOW && key.vault() == VAULT);
            assert!(String::from_utf8_lossy(input).contains(&until.to_string()));
            session::write(&base, &key, until).expect("written");
            let again = session::read(&base, VAULT, NOW).expect("read");
            assert!(matches!(again, Session::Unlocked { until: end, .. } if end == until));
        }
        Ok(Session::Locked(_)) => {}
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    }
});

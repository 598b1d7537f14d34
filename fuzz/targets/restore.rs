//! A file that is to be restored: never a panic, and one that is taken is a vault that opens, lists its records and can be copied and taken again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use terok_vault::{Dir, Restore, Store};

fuzz_target!(|input: &[u8]| {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    let Ok(dir) = Dir::base(folder.path()) else { return };
    let [from, copy] = ["from", "copy"].map(|name| folder.path().join(name));
    std::fs::write(&from, input).expect("a file");
    let restore = match Restore::new(&dir, &from) {
        Ok(restore) => restore,
        Err(error) => return assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    };
    restore.finish().expect("it was whole");
    let store = Store::open(&dir).expect("it was restored");
    let damaged = store.damaged(None).expect("it was sound");
    for record in store.records().expect("it was sound") {
        assert!(!damaged.iter().any(|line| line.starts_with(&format!("{} is", record.words()))));
    }
    store.backup(&copy).expect("there is room");
    drop(store);
    Restore::new(&dir, &copy).expect("our own copy").finish().expect("our own copy");
});

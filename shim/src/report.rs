//! Saying why: one line on stderr, and in the runtime's log where the engine reads it.

use crate::argv::Call;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Says `reason` wherever `call` lets it be read.
pub(crate) fn say(reason: &str, call: &Call) {
    let line = format!("terok: {reason}");
    // Nobody may be reading; the exit code says it as well.
    let _ = writeln!(std::io::stderr(), "{line}");
    let Some(path) = &call.log else { return };
    let line = match call.log_is_json {
        true => serde_json::json!({ "level": "error", "msg": line }).to_string(),
        false => format!("level=error msg={line:?}"),
    };
    let log = std::fs::File::options().append(true).create(true).mode(0o600).open(path);
    let _ = log.and_then(|mut log| log.write_all(format!("{line}\n").as_bytes()));
}

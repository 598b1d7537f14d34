//! What the tests of several parts stand on.

use std::path::Path;
use std::time::{Duration, Instant};
use terok_policy::Policy;
use terok_policy::plan::{HostFacts, SupervisorConfig, Wiring};

/// Enough for what comes to pass, on any machine.
pub(crate) const PASSES: Duration = Duration::from_secs(60);

/// Tries until a try takes less than `limit`: a loaded machine slows the one or the other, and what must not be waited for would
/// slow them all.
pub(crate) async fn takes_less_than(limit: Duration, mut attempt: impl AsyncFnMut()) {
    let patience = Instant::now() + PASSES;
    loop {
        let start = Instant::now();
        attempt().await;
        if start.elapsed() < limit {
            return;
        }
        assert!(Instant::now() < patience, "each takes longer than {limit:?}");
    }
}

/// What the hook would hand over for a sealed container of this policy, whose folders are all `folder`.
pub(crate) fn config(folder: &Path, policy: Policy) -> SupervisorConfig {
    SupervisorConfig {
        id: "test".to_owned(),
        policy,
        facts: HostFacts::sealed(true),
        upstream: None,
        issued: None,
        home: String::new(),
        sockets: Vec::new(),
        missing: Vec::new(),
        wiring: Wiring { dns_udp: 1, dns_tcp: 2, proxy: 3, peers: 0, mark: 1 },
        run_dir: folder.display().to_string(),
        state_dir: folder.display().to_string(),
        fds: Vec::new(),
    }
}

//! What the tests of several parts stand on.

use std::path::Path;
use terok_policy::Policy;
use terok_policy::plan::{HostFacts, SupervisorConfig, Wiring};

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

//! What a container is given at its start so that its programs find the vault and the signer: variables, and one folder at
//! [`INSIDE`] (design §8, A4: made anew at every start, nothing of it in what the engine stores).

use crate::policy::Policy;
use serde::{Deserialize, Serialize};

/// Where the folder is mounted inside, read only.
pub const INSIDE: &str = "/run/terok";
/// In it: what `export NAME=VALUE` lines say, for shells that `podman exec` starts.
pub const ENV: &str = "env";
/// In it: the host's CA certificates and the container's own, PEM; written by the supervisor before it is ready.
pub const CA_BUNDLE: &str = "ca-bundle.crt";
/// In it: the container's own CA certificate alone, PEM.
pub const CA: &str = "ca.crt";
/// In it: the SSH agent's socket.
pub const AGENT: &str = "ssh-agent.sock";

/// What `precreate` issued for one start; `granted.json` in the birth folder, 0600, read by `create`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// A token for each provider of [`Policy::vault`], in its order.
    pub tokens: Vec<String>,
}

/// What [`crate::amend::amend`] adds for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provision {
    /// Absolute host path of the folder to mount at [`INSIDE`]; none where the policy grants nothing.
    pub folder: Option<String>,
    /// Variables, replacing those of the same name.
    pub env: Vec<(String, String)>,
    /// git configuration, added behind what the container has (`GIT_CONFIG_COUNT`, `GIT_CONFIG_KEY_0`, …).
    pub git: Vec<(String, String)>,
}

/// Whether the policy gives its container anything.
pub fn is_wanted(policy: &Policy) -> bool {
    !policy.vault.is_empty() || !policy.ssh.is_empty()
}

/// The provision of a container with `policy`, `issued` tokens and the folder `folder` of the host.
pub fn provision(policy: &Policy, issued: &Issued, folder: &str) -> Provision {
    let _ = (policy, issued, folder);
    todo!()
}

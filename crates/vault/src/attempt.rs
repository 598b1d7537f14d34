//! One real request with a credential (`terok vault test`): what the launcher hands to the supervisor's program, which has the means to reach a
//! provider, on its standard input; never as an argument.

use serde::{Deserialize, Serialize};
use terok_policy::provider::{CredentialType, Endpoint, Sent, TestRequest};
use terok_policy::settings::Upstream;
use zeroize::Zeroizing;

/// The argument with which the supervisor's program is started for it.
pub const ATTEMPT: &str = "attempt";

/// What to send.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// Where to.
    pub endpoint: Endpoint,
    /// The request.
    pub request: TestRequest,
    /// How the credential is sent.
    pub sent: Sent,
    /// The credential's type.
    pub kind: CredentialType,
    /// User name of a Basic one.
    #[serde(default)]
    pub user: String,
    /// The key, password or access token.
    pub secret: Zeroizing<String>,
    /// The proxy of the host's network.
    #[serde(default)]
    pub proxy: Option<Upstream>,
}

/// The status of the answer, or why there is none.
pub type Answer = Result<u16, String>;

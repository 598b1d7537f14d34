//! The host's own settings (`config.toml`): what is true of a machine or a user, not of one container.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The settings of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// `upstream_proxy`, `no_proxy`
    pub upstream: Option<Upstream>,
    /// `[all_containers]`: annotations of every container, where `terok setup --all-containers` is in force.
    pub all_containers: BTreeMap<String, String>,
}

/// The proxy through which the host reaches the outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Its host name or address, as written.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// User and password, where the URL has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<(String, String)>,
    /// What is dialled without it: rules' targets (`name`, `*.name`, address, block).
    #[serde(default)]
    pub except: Vec<String>,
}

/// Protocols of an upstream proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// HTTP CONNECT (RFC 9110 §9.3.6), `http://`
    Http,
    /// SOCKS5 with the name resolved by the proxy (RFC 1928), `socks5://` or `socks5h://`
    Socks5,
}

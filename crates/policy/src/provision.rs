//! What a container is given at its start so that its programs find the vault and the signer: variables, and one folder at
//! [`INSIDE`] (design §8, A4: made anew at every start, nothing of it in what the engine stores).

use crate::name;
use crate::policy::Policy;
use crate::provider::Provider;
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
/// In it: the keys that the granted SSH hosts are known by, as `ssh` reads them; written by the supervisor before it is ready.
pub const KNOWN_HOSTS: &str = "known_hosts";

/// Says where [`ENV`] is, and that a process has what it says.
pub const ENV_VARIABLE: &str = "TEROK_ENV";
/// Where OpenSSH's clients look for the agent.
pub const AGENT_VARIABLE: &str = "SSH_AUTH_SOCK";
/// What git logs in with; a shell reads it, so that quotes keep the list of files one word.
pub const GIT_SSH_VARIABLE: &str = "GIT_SSH_COMMAND";
/// The other variable that says it, which [`GIT_SSH_VARIABLE`] would override.
const GIT_SSH_OLDER: &str = "GIT_SSH";
/// Where `ssh` looks beside the user's own files (ssh_config(5), GlobalKnownHostsFile).
const SSH_KNOWN_HOSTS: &str = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2";
/// Variables by which TLS clients find the CA certificates they trust in place of the system's.
pub const CA_VARIABLES: [&str; 8] = [
    "AWS_CA_BUNDLE",      // botocore
    "CARGO_HTTP_CAINFO",  // cargo
    "CURL_CA_BUNDLE",     // curl, requests
    "DENO_CERT",          // deno
    "GIT_SSL_CAINFO",     // git
    "PIP_CERT",           // pip
    "REQUESTS_CA_BUNDLE", // requests
    "SSL_CERT_FILE",      // OpenSSL, httpx, Go, rustls-native-certs
];
/// The variable by which Node trusts further certificates beside its own.
pub const MORE_CA_VARIABLE: &str = "NODE_EXTRA_CA_CERTS";

/// What `precreate` issued for one start; `granted.json` in the birth folder, 0600, read by `create`.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// A token for each provider of [`Policy::vault`], in its order.
    pub tokens: Vec<String>,
}

/// What [`crate::amend::provide`] adds to a configuration.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Provision {
    /// Absolute host path of the folder to mount at [`INSIDE`]; none where the policy grants nothing.
    pub folder: Option<String>,
    /// Variables, replacing those of the same name.
    pub env: Vec<(String, String)>,
    /// Variables that stand only where the container has none of that name.
    pub defaults: Vec<(String, String)>,
    /// git configuration, added behind what the container has (`GIT_CONFIG_COUNT`, `GIT_CONFIG_KEY_0`, …).
    pub git: Vec<(String, String)>,
}

/// Whether the policy gives its container anything.
pub fn is_wanted(policy: &Policy) -> bool {
    !policy.vault.is_empty() || !policy.ssh.is_empty()
}

/// Whether the container's programs meet certificates of the container's own CA.
pub fn intercepts(policy: &Policy) -> bool {
    policy.vault.iter().any(|grant| !grant.provider.is_base_url_only())
}

/// The provision of a container with `policy`, `issued` tokens and the folder `folder` of the host.
pub fn provision(policy: &Policy, issued: &Issued, folder: &str) -> Provision {
    let mut provision = Provision::default();
    if !is_wanted(policy) {
        return provision;
    }
    provision.folder = Some(folder.to_owned());
    provision.env.push((ENV_VARIABLE.to_owned(), inside(ENV)));
    for (grant, token) in policy.vault.iter().zip(&issued.tokens) {
        let provider = &grant.provider;
        for (variable, template) in variables_of(provider, policy.restricted) {
            provision.env.retain(|(known, _)| *known != variable);
            provision.env.push((variable, filled(&template, provider, token)));
        }
        let git = provider.git.iter().map(|(key, text)| (key.clone(), filled(text, provider, token)));
        provision.git.extend(git);
    }
    if !policy.ssh.is_empty() {
        provision.env.push((AGENT_VARIABLE.to_owned(), inside(AGENT)));
        let files = format!("{} {SSH_KNOWN_HOSTS}", inside(KNOWN_HOSTS));
        let ssh = format!("ssh -o GlobalKnownHostsFile=\"{files}\"");
        provision.defaults.push((GIT_SSH_VARIABLE.to_owned(), ssh));
    }
    if intercepts(policy) {
        let bundle = CA_VARIABLES.map(|variable| (variable.to_owned(), inside(CA_BUNDLE)));
        provision.defaults.extend(bundle);
        provision.defaults.push((MORE_CA_VARIABLE.to_owned(), inside(CA)));
    }
    let own: Vec<String> = provision.env.iter().map(|(variable, _)| variable.clone()).collect();
    provision.defaults.retain(|(variable, _)| !own.contains(variable));
    provision
}

/// The names of the variables that a container with `policy` gets, git's apart.
pub fn variables(policy: &Policy) -> Vec<String> {
    let issued = Issued { tokens: vec![String::new(); policy.vault.len()] };
    let Provision { env, defaults, .. } = provision(policy, &issued, "");
    env.into_iter().chain(defaults).map(|(variable, _)| variable).collect()
}

/// The text of [`ENV`]: a POSIX shell's lines that give it what the container's first process has. It may be read twice.
pub fn env_file(provision: &Provision) -> String {
    let mut text = String::from("# Read by a shell: . /run/terok/env\n");
    let mut git = String::new();
    for (key, value) in &provision.git {
        git += &format!(
            "  export \"GIT_CONFIG_KEY_${{GIT_CONFIG_COUNT:=0}}\"={} \"GIT_CONFIG_VALUE_$GIT_CONFIG_COUNT\"={}\n  export GIT_CONFIG_COUNT=$((GIT_CONFIG_COUNT + 1))\n",
            quoted(key),
            quoted(value)
        );
    }
    if !git.is_empty() {
        text += &format!("if [ -z \"${{{ENV_VARIABLE}-}}\" ]; then\n{git}fi\n");
    }
    for (variable, value) in &provision.env {
        text += &format!("export {variable}={}\n", quoted(value));
    }
    for (variable, value) in &provision.defaults {
        let own: String = spellings(variable).map(|own| format!("${{{own}+set}}")).collect();
        text += &format!("[ \"{own}\" ] || export {variable}={}\n", quoted(value));
    }
    text
}

/// The variables any of which, in a container, stands for a default of `variable`.
pub(crate) fn spellings(variable: &str) -> impl Iterator<Item = &str> {
    let older = (variable == GIT_SSH_VARIABLE).then_some(GIT_SSH_OLDER);
    std::iter::once(variable).chain(older)
}

/// What both providers would set to different values, by name: `GH_TOKEN` or `git core.x`.
pub fn clash(one: &Provider, other: &Provider, restricted: bool) -> Option<String> {
    let fixed = |text: &str| !text.contains('{');
    let ours = variables_of(one, restricted);
    let theirs = variables_of(other, restricted);
    let same = |(variable, text): &(String, String)| {
        theirs.iter().any(|(known, other)| known == variable && !(fixed(text) && text == other))
    };
    ours.iter().find(|pair| same(pair)).map(|(variable, _)| variable.clone())
}

/// Whether a variable is terok's own to set, so that no provider may.
pub(crate) fn is_own_variable(variable: &str) -> bool {
    variable == AGENT_VARIABLE || variable.starts_with("TEROK_") || variable.starts_with("GIT_CONFIG_")
}

/// Checks what stands in braces.
pub(crate) fn check_template(text: &str) -> Result<(), String> {
    if text.len() > 4096 || text.chars().any(char::is_control) {
        return Err("a value is one line, 4096 characters at most".into());
    }
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once('{') {
        let (word, after) = behind.split_once('}').unwrap_or((behind, ""));
        let user = word.strip_prefix("basic:").is_some_and(|user| !user.is_empty() && !user.contains(':'));
        if !user && !matches!(word, "token" | "base_url" | "ca") {
            return Err(format!("{{{word}}}: write {{token}}, {{base_url}}, {{basic:USER}} or {{ca}}"));
        }
        rest = after;
    }
    Ok(())
}

/// Variables of one provider with their templates, each once.
fn variables_of(provider: &Provider, restricted: bool) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut set = |variable: &String, template: &str| {
        all.retain(|(known, _)| known != variable);
        all.push((variable.clone(), template.to_owned()));
    };
    provider.token.variables.iter().for_each(|variable| set(variable, "{token}"));
    let base_url = provider.base_url.iter().flat_map(|base_url| &base_url.variables);
    base_url.for_each(|variable| set(variable, "{base_url}"));
    let more = restricted.then_some(&provider.restricted_env).into_iter().flatten();
    provider.env.iter().chain(more).for_each(|(variable, template)| set(variable, template));
    all
}

/// `template` with what stands in braces replaced.
fn filled(template: &str, provider: &Provider, token: &str) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once('{') {
        let (word, after) = behind.split_once('}').unwrap_or((behind, ""));
        out += before;
        match word {
            "token" => out += token,
            "base_url" => out += &base_url(provider),
            "ca" => out += &inside(CA_BUNDLE),
            word => {
                let user = word.strip_prefix("basic:").unwrap_or(word);
                out += &base64(format!("{user}:{token}").as_bytes());
            }
        }
        rest = after;
    }
    out + rest
}

/// `http://vault.terok.internal/NAME` and the provider's path.
pub fn base_url(provider: &Provider) -> String {
    let path = provider.base_url.as_ref().map_or("", |base_url| base_url.path.as_str());
    format!("http://{}/{}{path}", name::VAULT, provider.name)
}

fn inside(file: &str) -> String {
    format!("{INSIDE}/{file}")
}

/// In single quotes, where a shell takes everything as it is.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// RFC 4648 §4, with padding.
fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(octets.len().div_ceil(3) * 4);
    for chunk in octets.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit > chunk.len() { '=' } else { char::from(DIGITS[value as usize]) });
        }
    }
    text
}

/// Names without values, which are tokens or hold them.
impl std::fmt::Debug for Provision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Provision { folder, env, defaults, git } = self;
        let names =
            |pairs: &[(String, String)]| pairs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        f.debug_struct("Provision")
            .field("folder", folder)
            .field("env", &names(env))
            .field("defaults", &names(defaults))
            .field("git", &names(git))
            .finish()
    }
}

/// Never a token.
impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issued({} tokens)", self.tokens.len())
    }
}

#[cfg(test)]
mod tests;

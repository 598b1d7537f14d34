//! The host's own settings (`config.toml`): what is true of a machine or a user, not of one container.

mod url;

use crate::annotation::{self, KEYS};
use crate::policy::Policy;
use crate::profile::Catalog;
use crate::rule::Target;
use crate::spelling;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

const UPSTREAM: &str = "upstream_proxy";
const NO_PROXY: &str = "no_proxy";
const ALL: &str = "all_containers";
const VAULT: &str = "vault";
const PASSPHRASE_COMMAND: &str = "passphrase_command";

/// The settings of one file, or of a user's file over the machine's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// `upstream_proxy`, with what goes without it.
    pub upstream: Option<Upstream>,
    /// `no_proxy`: canonical targets; `None` where the file is silent.
    pub no_proxy: Option<Vec<String>>,
    /// `[all_containers]`: annotations of every container, where `terok setup --all-containers` is in force.
    pub all_containers: BTreeMap<String, String>,
    /// `[vault] passphrase_command`: program and arguments whose output's first line unlocks the vault. Only a user's own file counts
    /// ([`Settings::over`]): the machine's could make every user run it.
    pub passphrase_command: Option<Vec<String>>,
}

/// The proxy through which the host reaches the outside.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Its host name or address, an IPv6 one without brackets.
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

/// What is wrong in a settings file, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{place}: {reason}", place = if *.line == 0 { String::new() } else { format!(" line {}", .line) })]
pub struct SettingsError {
    /// The file.
    pub file: String,
    /// Line number from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong and what to do.
    pub reason: String,
}

impl Settings {
    /// Reads the text of `file`, strictly: what is not known is refused.
    pub fn parse(file: &str, text: &str) -> Result<Self, SettingsError> {
        let place = Place { file, text };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            // The parser's words can hold a line of the file, and that a password.
            let reason = error.message().lines().next().unwrap_or("no TOML").to_owned();
            place.refuse(at, clean(&reason))
        })?;
        let mut settings = Settings::default();
        for (key, value) in table.get_ref() {
            match key.get_ref().as_ref() {
                UPSTREAM => {
                    let url = place.string(UPSTREAM, value)?;
                    let read = url::parse(url);
                    let read = read
                        .map_err(|reason| place.refuse(value.span().start, format!("{UPSTREAM}: {reason}")));
                    settings.upstream = Some(read?);
                }
                NO_PROXY => settings.no_proxy = Some(no_proxy(&place, value)?),
                ALL => settings.all_containers = all_containers(&place, value)?,
                VAULT => settings.passphrase_command = passphrase_command(&place, value)?,
                other => {
                    let hint = spelling::hint(other, [UPSTREAM, NO_PROXY, ALL, VAULT]);
                    return Err(place.refuse(key.span().start, format!("unknown key {other:?}{hint}")));
                }
            }
        }
        Ok(settings.joined())
    }

    /// A user's settings, with the `machine`'s where they are silent.
    #[must_use]
    pub fn over(self, machine: Settings) -> Self {
        let all_containers =
            if self.all_containers.is_empty() { machine.all_containers } else { self.all_containers };
        Settings {
            upstream: self.upstream.or(machine.upstream),
            no_proxy: self.no_proxy.or(machine.no_proxy),
            all_containers,
            passphrase_command: self.passphrase_command,
        }
        .joined()
    }

    /// The policy of `[all_containers]`.
    pub fn all_policy(&self, catalog: &Catalog) -> Result<Policy, crate::AnnotationError> {
        annotation::parse(&self.all_containers, catalog)
    }

    /// With `no_proxy` where it counts.
    fn joined(mut self) -> Self {
        if let Some(upstream) = &mut self.upstream {
            upstream.except = self.no_proxy.clone().unwrap_or_default();
        }
        self
    }
}

fn no_proxy(place: &Place<'_>, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, SettingsError> {
    let form = format!(r#"{NO_PROXY}: write a list, ["*.corp.example", "10.0.0.0/8"]"#);
    let list = value.get_ref().as_array().ok_or_else(|| place.refuse(value.span().start, form))?;
    let mut targets = Vec::new();
    for item in list.iter() {
        let refuse = |reason: String| place.refuse(item.span().start, format!("{NO_PROXY}: {reason}"));
        let text = place.string(NO_PROXY, item)?;
        if let Some(rest) = text.strip_prefix('.') {
            return Err(refuse(format!(
                "{text:?}: write {:?} and, for the name itself, {rest:?}",
                format!("*.{rest}")
            )));
        }
        match text.parse::<Target>() {
            Ok(Target::Host) => {
                return Err(refuse(
                    "\"host\": the host's own ports never go through a proxy; remove it".into(),
                ));
            }
            Ok(target) => targets.push(target.to_string()),
            Err(error) => return Err(refuse(error.to_string())),
        }
    }
    Ok(targets)
}

fn all_containers(
    place: &Place<'_>,
    value: &Spanned<DeValue<'_>>,
) -> Result<BTreeMap<String, String>, SettingsError> {
    let form = format!("[{ALL}] is a table of annotations: \"terok.shield\" = \"up\"");
    let table = value.get_ref().as_table().ok_or_else(|| place.refuse(value.span().start, form))?;
    let mut annotations = BTreeMap::new();
    for (key, value) in table {
        let refuse = |reason: String| place.refuse(key.span().start, reason);
        let name = key.get_ref().as_ref();
        if value.get_ref().is_table() {
            return Err(refuse(format!(
                "[{ALL}] {name:?}: write keys in quotes: \"terok.shield.allow\" = \"…\""
            )));
        }
        if !KEYS.iter().any(|known| known.key == name) {
            let hint = spelling::hint(name, KEYS.iter().map(|known| known.key));
            return Err(refuse(format!("[{ALL}] unknown key {name:?}{hint}")));
        }
        annotations.insert(name.to_owned(), place.string(name, value)?.to_owned());
    }
    Ok(annotations)
}

fn passphrase_command(
    place: &Place<'_>,
    value: &Spanned<DeValue<'_>>,
) -> Result<Option<Vec<String>>, SettingsError> {
    let form =
        format!(r#"[{VAULT}] {PASSPHRASE_COMMAND} = ["pass", "show", "terok"]: write a list, program first"#);
    let table = value.get_ref().as_table().ok_or_else(|| place.refuse(value.span().start, form.clone()))?;
    let mut command = None;
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        if name != PASSPHRASE_COMMAND {
            let hint = spelling::hint(name, [PASSPHRASE_COMMAND]);
            return Err(place.refuse(key.span().start, format!("[{VAULT}] unknown key {name:?}{hint}")));
        }
        let refuse = || place.refuse(value.span().start, form.clone());
        let list = value.get_ref().as_array().ok_or_else(refuse)?;
        let words = list.iter().map(|word| place.string(PASSPHRASE_COMMAND, word).map(str::to_owned));
        let words = words.collect::<Result<Vec<_>, _>>()?;
        if words.first().is_none_or(String::is_empty) || words.iter().any(|word| word.contains('\0')) {
            return Err(refuse());
        }
        command = Some(words);
    }
    Ok(command)
}

/// Where in the file something is.
struct Place<'a> {
    file: &'a str,
    text: &'a str,
}

impl Place<'_> {
    fn refuse(&self, at: usize, reason: String) -> SettingsError {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        let line = before.iter().filter(|&&octet| octet == b'\n').count() + 1;
        SettingsError { file: self.file.to_owned(), line, reason }
    }

    fn string<'v>(&self, key: &str, value: &'v Spanned<DeValue<'_>>) -> Result<&'v str, SettingsError> {
        let wrong = || {
            let found = value.get_ref().type_str();
            self.refuse(
                value.span().start,
                format!("{key}: write a string in quotes; this is of type {found}"),
            )
        };
        value.get_ref().as_str().ok_or_else(wrong)
    }
}

/// Nothing that moves a cursor.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Never shows the password.
impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Upstream { scheme, host, port, login, except } = self;
        f.debug_struct("Upstream")
            .field("scheme", scheme)
            .field("host", host)
            .field("port", port)
            .field("user", &login.as_ref().map(|(user, _)| user))
            .field("except", except)
            .finish()
    }
}

#[cfg(test)]
mod tests;

//! The values of `terok.vault` and `terok.ssh`, and what granting a provider opens.

use super::items;
use crate::layout;
use crate::name::{self, Name};
use crate::policy::{Policy, Source, Sourced, SshGrant, VaultGrant};
use crate::profile::Catalog;
use crate::provider::{self, Provider, is_credential_name, is_provider_name};
use crate::provision;
use crate::rule::{Ports, Proto, Rule, Target};
use crate::spelling;

/// Each takes a look at every connection, and a token.
const MOST: usize = 32;

/// Providers and credentials, by name.
pub(super) fn providers(value: &str) -> Result<Vec<(String, String)>, String> {
    let mut grants: Vec<(String, String)> = Vec::new();
    for item in items(value) {
        let (name, credential) = item.split_once('=').unwrap_or((item, VaultGrant::DEFAULT));
        if !is_provider_name(name) {
            return Err(format!("{name:?} is no provider name: a to z, 0 to 9 and -"));
        }
        let known = match credential.strip_prefix('@') {
            Some(reference) => layout::is_reference(reference),
            None => is_credential_name(credential),
        };
        if !known {
            return Err(format!(
                "{credential:?} is no name of a credential: write PROVIDER=NAME, as `terok vault list` has it"
            ));
        }
        if grants.iter().any(|(other, _)| other == name) {
            return Err(format!("{name} is granted twice: a provider has one credential in a container"));
        }
        grants.push((name.to_owned(), credential.to_owned()));
    }
    if grants.len() > MOST {
        return Err(format!("at most {MOST} providers are granted; these are {}", grants.len()));
    }
    Ok(grants)
}

/// SSH keys and their hosts.
pub(super) fn keys(value: &str) -> Result<Vec<SshGrant>, String> {
    let mut grants: Vec<SshGrant> = Vec::new();
    for item in items(value) {
        let (key, host) = match item.split_once('@') {
            Some((key, host)) => {
                (key, Some(Name::parse(host).map_err(|error| format!("{item:?}: {error}"))?))
            }
            None => (item, None),
        };
        if !is_credential_name(key) {
            return Err(format!("{key:?} is no name of a key: write KEY or KEY@HOST"));
        }
        if host.as_ref().is_some_and(Name::is_reserved) {
            return Err(format!("{item:?}: that is no host of the outside"));
        }
        let grant = SshGrant { key: key.to_owned(), host };
        if grants.contains(&grant) {
            continue;
        }
        if grants.iter().any(|other| other.key == grant.key && (other.host.is_none() || grant.host.is_none()))
        {
            return Err(format!("{key} is granted for any host and for one: write the one that is meant"));
        }
        grants.push(grant);
    }
    if grants.len() > MOST {
        return Err(format!("at most {MOST} keys are granted; these are {}", grants.len()));
    }
    Ok(grants)
}

/// Looks the providers up, and refuses those that cannot be in one container.
pub(super) fn resolved(
    grants: &[(String, String)],
    restricted: bool,
    catalog: &Catalog,
) -> Result<Vec<VaultGrant>, String> {
    let mut found: Vec<VaultGrant> = Vec::new();
    for (name, credential) in grants {
        if !catalog.providers.contains_key(name) {
            let hint = spelling::hint(name, catalog.providers.keys().map(String::as_str));
            return Err(format!("there is no provider {name:?}{hint}"));
        }
        let provider = provider::resolve(catalog, name).map_err(|error| error.to_string())?;
        for VaultGrant { provider: other, .. } in &found {
            one_meaning(other, &provider, restricted)?;
        }
        found.push(VaultGrant { provider, credential: credential.clone() });
    }
    Ok(found)
}

/// A host has one credential, and a variable one value.
fn one_meaning(one: &Provider, other: &Provider, restricted: bool) -> Result<(), String> {
    let names = format!("{} and {}", one.name, other.name);
    if let Some(host) = one.hosts().iter().find(|host| other.is_host(host)) {
        return Err(format!("{names} both have {host}: grant one of them"));
    }
    match provision::clash(one, other, restricted) {
        Some(variable) => {
            Err(format!("{names} both set {variable}: write other variables into one of them, or grant one"))
        }
        None => Ok(()),
    }
}

/// The rules that grants bring: the providers' hosts, what their clients need, and the broker.
pub(super) fn add_rules(policy: &mut Policy) {
    let Policy { allow, vault, .. } = policy;
    for (at, VaultGrant { provider, .. }) in vault.iter().enumerate() {
        let tcp = |name: &Name, ports| Rule {
            target: Target::Name(name.clone()),
            ports,
            proto: Proto::Tcp,
            direct: false,
        };
        let broker = Name::parse(name::VAULT).ok().filter(|_| at == 0);
        let broker = broker.iter().map(|name| tcp(name, Ports::web())).collect::<Vec<_>>();
        let hosts = provider.hosts().iter().map(|host| tcp(host, Ports::new(vec![(443, 443)])));
        for rule in broker.into_iter().chain(hosts).chain(provider.egress.iter().cloned()) {
            if !allow.iter().any(|known| known.rule == rule) {
                allow.push(Sourced { rule, source: Source::Provider(provider.name.clone()) });
            }
        }
    }
}

#[cfg(test)]
mod tests;

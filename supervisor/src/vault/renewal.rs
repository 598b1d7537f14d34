//! One owner for each OAuth token: who finds it due takes the record's turn among all processes, looks again, and only then asks the service (RFC 6749
//! §6). What the service gives is in the store before anybody is told, since a rotated refresh token works once. Killed between the service's answer
//! and the store, that one rotation is lost and the credential must be added again; the turn ends with the process, however it ends.

use super::token::{Grant, Rejected};
use super::{Credential, Trouble, reach};
use crate::context::unix_seconds;
use std::time::Duration;
use terok_kernel::statedir::Dir;
use terok_policy::provider::{CredentialType, OAuth, Provider};
use terok_policy::settings::Upstream;
use terok_vault::{Error, MasterKey, Problem, Record, Secret, Store, Turn};
use zeroize::Zeroizing;

/// A token is renewed this long before its end, or in the last fifth of a short life.
const MARGIN: u64 = 5 * 60;
/// How long another process's renewal is waited for.
const QUEUE: Duration = Duration::from_secs(25);
/// How long the service may take, names and connection included.
const EXCHANGE: Duration = Duration::from_secs(15);
/// After a refusal by the service, it is not asked again so soon unless the record changes; nor for another token than the one it has just given.
const REST: u64 = 60;

/// What is wanted of a record.
pub(super) struct Wanted<'a> {
    /// The vault's folder.
    pub(super) dir: &'a Dir,
    /// Whose token it is.
    pub(super) provider: &'a Provider,
    /// The proxy of the host's own network.
    pub(super) upstream: Option<&'a Upstream>,
    /// The revision that the service has just refused.
    pub(super) refused: Option<u64>,
}

/// The tokens of a record.
struct Tokens {
    access: Zeroizing<String>,
    refresh: Option<Zeroizing<String>>,
}

/// The token of a record, renewed where it is due.
pub(super) fn current(
    store: &mut Store,
    key: &MasterKey,
    (record, secret): (Record, Secret),
    wanted: &Wanted<'_>,
) -> Result<Credential, Trouble> {
    let now = unix_seconds();
    let tokens = tokens(&record, secret)?;
    let Some(wish) = wish(&record, wanted.refused, now) else {
        return Ok(credential(&record, tokens, Some(margin_before_end(&record))));
    };
    let renewable = wanted
        .provider
        .oauth
        .as_ref()
        .filter(|oauth| tokens.refresh.is_some() && !oauth.token_url.is_empty());
    let Some(oauth) = renewable else {
        return match wish {
            Wish::Margin if !is_over(&record, now) => Ok(credential(&record, tokens, record.expires)),
            _ => Err(Trouble::Failed(format!(
                "{} and cannot be renewed; {}",
                wish.words(&record, now),
                remedy(&record)
            ))),
        };
    };
    match renewed(store, key, &record, oauth, wanted) {
        Ok(credential) => Ok(credential),
        // What is not over yet is better than nothing. Soon asked for again.
        Err(Trouble::Failed(_)) if wish == Wish::Margin && !is_over(&record, now) => {
            let soon = record.expires.map_or(now + REST, |end| end.min(now + REST));
            Ok(credential(&record, tokens, Some(soon)))
        }
        Err(trouble) => Err(trouble),
    }
}

/// Why a token is to be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// It ends soon, or has ended.
    Margin,
    /// The service has refused it.
    Refused,
}

fn wish(record: &Record, refused: Option<u64>, now: u64) -> Option<Wish> {
    // A token that is new and refused is not what is wrong: else whoever finds a request that is always refused has it renewed with each.
    let new = record.revision > 1 && (record.changed..record.changed.saturating_add(REST)).contains(&now);
    if refused == Some(record.revision) && !new {
        return Some(Wish::Refused);
    }
    (now >= margin_before_end(record)).then_some(Wish::Margin)
}

impl Wish {
    fn words(self, record: &Record, now: u64) -> String {
        let words = record.words();
        match self {
            Wish::Margin if is_over(record, now) => format!("the token of {words} has ended"),
            Wish::Margin => format!("the token of {words} ends soon"),
            Wish::Refused => format!("the service refused the token of {words}"),
        }
    }
}

/// When a token is to be renewed; never where it has no end.
fn margin_before_end(record: &Record) -> u64 {
    let Some(end) = record.expires else { return u64::MAX };
    let life = end.saturating_sub(record.changed);
    end.saturating_sub(MARGIN.min(life / 5))
}

fn is_over(record: &Record, now: u64) -> bool {
    record.expires.is_some_and(|end| now >= end)
}

/// The token after a renewal by this process, or by the one that had the turn before.
fn renewed(
    store: &mut Store,
    key: &MasterKey,
    due: &Record,
    oauth: &OAuth,
    wanted: &Wanted<'_>,
) -> Result<Credential, Trouble> {
    let _turn = Turn::take(wanted.dir, due, QUEUE).map_err(failed)?;
    let (record, secret) = store.open_credential(key, &due.provider, &due.name).map_err(failed)?;
    let (now, tokens) = (unix_seconds(), tokens(&record, secret)?);
    if record.revision != due.revision {
        return Ok(credential(&record, tokens, Some(margin_before_end(&record))));
    }
    // One that was noted by a clock that was ahead is of no time that is known.
    let recent = |problem: &&Problem| (problem.at..problem.at.saturating_add(REST)).contains(&now);
    if let Some(Problem { at, reason }) = record.problem.as_ref().filter(recent) {
        return Err(Trouble::Failed(format!(
            "{} was not renewed {} seconds ago: {reason}; {}",
            record.words(),
            now.saturating_sub(*at),
            remedy(&record)
        )));
    }
    let Some(refresh) = tokens.refresh else {
        return Err(Trouble::Failed(format!("{} cannot be renewed; {}", record.words(), remedy(&record))));
    };
    match ask(oauth, &refresh, wanted.upstream) {
        Ok(grant) => {
            let secret =
                Secret::OAuth { access: grant.access, refresh: Some(grant.refresh.unwrap_or(refresh)) };
            let now = unix_seconds();
            let expires = grant.lasts.map(|lasts| now.saturating_add(lasts));
            match store.replace_secret(key, &record, &secret, expires, now) {
                // Somebody gave it another secret meanwhile, which is newer than ours.
                Err(Error::Changed { .. }) => {}
                stored => drop(stored.map_err(failed)?),
            }
            let (record, secret) = store.open_credential(key, &due.provider, &due.name).map_err(failed)?;
            Ok(credential(&record, self::tokens(&record, secret)?, Some(margin_before_end(&record))))
        }
        Err(Asked::Unreachable(reason)) => {
            Err(Trouble::Failed(format!("{} was not renewed: {reason}; it is tried again", record.words())))
        }
        Err(Asked::Rejected(rejected)) => {
            let reason = rejected.to_string();
            let text = format!("{} was not renewed: {reason}; {}", record.words(), remedy(&record));
            // Without a note the next process asks again: a nuisance, no more.
            let _ = store.set_problem(&record, &Problem { at: now, reason });
            Err(Trouble::Failed(text))
        }
    }
}

/// Why the service gave nothing.
enum Asked {
    /// It was not reached, or did not answer.
    Unreachable(String),
    /// It answered.
    Rejected(Rejected),
}

fn ask(oauth: &OAuth, refresh: &str, upstream: Option<&Upstream>) -> Result<Grant, Asked> {
    let unreachable = |error: &dyn std::fmt::Display| Asked::Unreachable(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| unreachable(&error))?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let answer = tokio::time::timeout(EXCHANGE, reach::post(oauth, refresh, upstream)).await;
        let late = |_| {
            Asked::Unreachable(format!(
                "no answer from {} within {} seconds",
                oauth.token_url,
                EXCHANGE.as_secs()
            ))
        };
        let (status, body) = answer.map_err(late)?.map_err(|error| unreachable(&error))?;
        Grant::read(status, &body).map_err(Asked::Rejected)
    })
}

fn tokens(record: &Record, secret: Secret) -> Result<Tokens, Trouble> {
    match secret {
        Secret::OAuth { access, refresh } => Ok(Tokens { access, refresh }),
        Secret::Key(_) | Secret::Basic { .. } | Secret::Ssh(_) => Err(Trouble::Failed(format!(
            "{} holds something else than its type; {}",
            record.words(),
            remedy(record)
        ))),
    }
}

fn credential(record: &Record, tokens: Tokens, until: Option<u64>) -> Credential {
    Credential {
        kind: CredentialType::OAuth,
        user: String::new(),
        secret: tokens.access,
        revision: record.revision,
        until,
    }
}

/// What a person does about it.
fn remedy(record: &Record) -> String {
    format!(
        "log in again with the service's own client, then run `terok vault add {} {} --oauth FILE --replace`",
        record.provider, record.name
    )
}

fn failed(error: impl std::fmt::Display) -> Trouble {
    Trouble::Failed(error.to_string())
}

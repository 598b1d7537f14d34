//! `terok vault test`: whether a provider takes a credential, by one real request. The supervisor's program sends it: it has the resolver, the TLS and
//! the way through the network's proxy that a container's requests would take.

use super::{Open, Which};
use crate::{cli::Json, providers, show};
use anyhow::{Context as _, bail};
use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use terok_install::consulted;
use terok_install::host::Host;
use terok_install::settings;
use terok_policy::layout;
use terok_policy::provider::TestRequest;
use terok_vault::attempt::{ATTEMPT, Answer, Attempt};
use terok_vault::{Kind, Secret};

/// Sends the request and tells how it was answered; exit code 1 where the credential is not taken.
pub(super) fn test(host: &Host, which: &Which, json: Json) -> anyhow::Result<ExitCode> {
    let provider = providers::provider(host, &which.provider)?;
    let open = Open::new(host)?;
    let record = open.store.credential(&which.provider, &which.name)?;
    let Kind::Credential(kind) = record.kind else { bail!("{} is no credential", record.words()) };
    let sent = provider
        .credential
        .get(&kind)
        .with_context(|| format!("provider {} takes no {}", provider.name, show::word(&kind)))?;
    let (user, secret) = match open.store.open_secret(&open.key()?, &record)? {
        Secret::Key(secret) | Secret::Ssh(secret) | Secret::OAuth { access: secret, .. } => {
            (String::new(), secret)
        }
        Secret::Basic { user, password } => (user, password),
    };
    let request = provider
        .test
        .clone()
        .unwrap_or_else(|| TestRequest { path: "/".to_owned(), headers: Default::default() });
    let url = format!("{}{}", String::from(provider.upstream.clone()), request.path);
    let asked_for_it = provider.test.is_some();
    let attempt = Attempt {
        endpoint: provider.upstream,
        request,
        sent: sent.clone(),
        kind,
        user,
        secret,
        proxy: proxy(host)?,
    };
    let answer = send(host, &attempt)?;
    let (good, what) = judged(&answer, asked_for_it);
    if json.json {
        let status = answer.as_ref().ok();
        say!(
            "{}",
            serde_json::json!({"provider": provider.name, "name": record.name, "url": url, "status": status, "ok": good, "what": what})
        )?;
    } else {
        let tone = if good { show::Tone::Good } else { show::Tone::Bad };
        say!("{}: GET {url}: {}", record.words(), show::toned(tone, &show::printable(&what)))?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the credential was taken, in words.
fn judged(answer: &Answer, asked_for_it: bool) -> (bool, String) {
    match answer {
        Ok(status @ 200..=299) => (true, format!("{status}, it is taken")),
        Ok(401) => (false, "401, it is not taken".to_owned()),
        Ok(403) => (false, "403, it is known but may not do this, or is not taken".to_owned()),
        Ok(429) => (true, "429, it is taken but has used up what it may".to_owned()),
        Ok(status) if !asked_for_it => (
            true,
            format!(
                "{status}: it was not refused, but nothing says that it was looked at (the provider has no `test`)"
            ),
        ),
        Ok(status) => (false, format!("{status}: that says nothing of the credential")),
        Err(reason) => (false, format!("not reached: {reason}")),
    }
}

fn send(host: &Host, attempt: &Attempt) -> anyhow::Result<Answer> {
    let program = program(host)?;
    let told = zeroize::Zeroizing::new(serde_json::to_vec(attempt)?);
    let mut child = Command::new(&program)
        .arg(ATTEMPT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| program.display().to_string())?;
    child.stdin.take().context("no pipe")?.write_all(&told)?;
    let output = child.wait_with_output()?;
    serde_json::from_slice(&output.stdout)
        .ok()
        .with_context(|| format!("{} gave no answer", program.display()))
}

/// The installed supervisor, or the one beside this program.
fn program(host: &Host) -> anyhow::Result<std::path::PathBuf> {
    if let Ok(consulted) = consulted::consulted(host) {
        return Ok(consulted.bin_dir.join(layout::SUPERVISOR));
    }
    let own = std::env::current_exe().context("/proc/self/exe")?.with_file_name(layout::SUPERVISOR);
    anyhow::ensure!(own.is_file(), "{} is not installed: terok setup", layout::SUPERVISOR);
    Ok(own)
}

/// The proxy of the host's network.
fn proxy(host: &Host) -> anyhow::Result<Option<terok_policy::settings::Upstream>> {
    Ok(settings::read(host).map_err(anyhow::Error::msg)?.upstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_needed_the_credential_says_that_it_is_taken() {
        assert!(judged(&Ok(200), true).0 && judged(&Ok(429), true).0);
        for answer in [Ok(401), Ok(403), Ok(404), Ok(500), Ok(302), Err("no route".to_owned())] {
            assert!(!judged(&answer, true).0, "{answer:?}");
        }
        assert!(judged(&Ok(404), false).1.contains("nothing says"));
    }
}

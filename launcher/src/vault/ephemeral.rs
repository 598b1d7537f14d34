//! `terok run --credential PROVIDER=env:VARIABLE`: a credential for one container, never in the vault. It lies in a file on tmpfs until the
//! container's end; the annotation names the file, and the container's start claims it so that no other container can.

use super::add;
use crate::providers;
use anyhow::Context as _;
use terok_install::host::Host;
use terok_policy::layout;
use terok_policy::provider::CredentialType;
use terok_vault::Secret;
use terok_vault::ephemeral::Ephemeral;
use zeroize::Zeroizing;

/// Files of containers that were never started are removed after so many seconds.
const STALE: u64 = 3600;
/// What stands in the place of a reference where nothing is made.
const NONE: &str = "00000000000000000000000000000000";

/// A credential that is about to be given to a container.
pub(crate) struct Given {
    content: Ephemeral,
    reference: String,
    variable: String,
}

impl Given {
    /// Reads `PROVIDER=env:VARIABLE`. Nothing is written yet.
    pub(crate) fn read(host: &Host, text: &str) -> anyhow::Result<Self> {
        let form = || format!("--credential {}: write PROVIDER=env:VARIABLE", shown(text));
        let (name, source) = text.split_once('=').with_context(form)?;
        let variable =
            source.strip_prefix("env:").filter(|variable| !variable.is_empty()).with_context(form)?;
        let provider = providers::provider(host, name)?;
        let value = add::variable_of(variable).with_context(|| format!("--credential {name}"))?;
        let kind = add::kind_for(&provider, &value)?;
        // A password has its user name before it, as in a URL.
        let (user, value) = match kind {
            CredentialType::Basic => {
                let (user, password) = value
                    .split_once(':')
                    .with_context(|| format!("--credential {name}: {variable} must be USER:PASSWORD"))?;
                (user.to_owned(), Zeroizing::new(password.to_owned()))
            }
            _ => (String::new(), value),
        };
        let sealed = add::sealed(&provider, kind, user, value);
        let (user, secret) = match sealed.with_context(|| format!("--credential {name}: {variable}"))? {
            Secret::Key(secret) | Secret::Ssh(secret) | Secret::OAuth { access: secret, .. } => {
                (String::new(), secret)
            }
            Secret::Basic { user, password } => (user, password),
        };
        let content = Ephemeral { provider: provider.name, kind, user, secret };
        Ok(Given { content, reference: NONE.to_owned(), variable: variable.to_owned() })
    }

    /// The provider it is for.
    pub(crate) fn provider(&self) -> &str {
        &self.content.provider
    }

    /// The variable it was read from, which is nobody else's business.
    pub(crate) fn variable(&self) -> &str {
        &self.variable
    }

    /// The word of `terok.vault` that grants it.
    pub(crate) fn grant(&self) -> String {
        format!("{}=@{}", self.content.provider, self.reference)
    }

    /// Chooses its file's name.
    pub(crate) fn name(&mut self) -> anyhow::Result<()> {
        let mut random = [0u8; 16];
        getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
        self.reference = random.iter().map(|octet| format!("{octet:02x}")).collect();
        Ok(())
    }

    /// Writes its file, and removes those that nobody claimed in an hour.
    pub(crate) fn write(&self, host: &Host) -> anyhow::Result<()> {
        let base = super::base(host, true)?.context("no runtime folder")?;
        let folder = base.make_private(layout::EPHEMERAL)?;
        for entry in folder.list()? {
            let age = crate::show::now().saturating_sub(u64::try_from(entry.modified).unwrap_or_default());
            if layout::is_reference(&entry.name) && age > STALE {
                folder.remove(&entry.name)?;
            }
        }
        Ok(folder.write(&self.reference, &self.content.to_json())?)
    }
}

/// Never a secret that somebody wrote in the variable's place.
fn shown(text: &str) -> String {
    text.split_once('=').map_or("…".to_owned(), |(provider, _)| format!("{provider}=…"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::host_at;

    fn given(host: &Host, text: &str) -> Result<Given, String> {
        Given::read(host, text).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn only_a_variable_that_is_set_is_taken_and_a_secret_in_its_place_is_not_repeated() {
        let host = host_at(std::path::Path::new("/nowhere"));
        for text in ["anthropic=sk-S3CRET", "sk-S3CRET", "anthropic=env:", "anthropic=file:S3CRET"] {
            let error = given(&host, text).err().unwrap();
            assert!(error.contains("PROVIDER=env:VARIABLE") && !error.contains("S3CRET"), "{error}");
        }
        let error = given(&host, "anthropic=env:TEROK_TEST_NO_SUCH_VARIABLE").err().unwrap();
        assert!(error.contains("no variable TEROK_TEST_NO_SUCH_VARIABLE"), "{error}");
        assert!(given(&host, "anthropc=env:HOME").err().unwrap().contains("anthropic"));
    }

    #[test]
    fn the_file_is_closed_named_by_the_grant_and_holds_the_credential() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let host = host_at(root.path());
        std::fs::create_dir_all(host.run_dir().parent().unwrap()).unwrap();
        // HOME is as good a value as any: one line of ASCII.
        let mut given = given(&host, "anthropic=env:HOME").unwrap();
        given.name().unwrap();
        given.write(&host).unwrap();
        let reference = given.grant().strip_prefix("anthropic=@").unwrap().to_owned();
        assert!(layout::is_reference(&reference) && reference != NONE);
        let path = host.run_dir().join(layout::EPHEMERAL).join(reference);
        let content = Ephemeral::parse(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            (content.provider.as_str(), *content.secret == std::env::var("HOME").unwrap()),
            ("anthropic", true)
        );
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

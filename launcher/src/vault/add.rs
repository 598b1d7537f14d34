//! `terok vault add`: a credential on its way into the vault. It comes by a prompt that does not show it, standard input, a variable named by the
//! person, or the file that the provider's own client keeps; never as an argument, which every process of the machine could read.

use super::{Open, prompt};
use crate::{providers, show};
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use terok_install::host::Host;
use terok_policy::phantom;
use terok_policy::policy::VaultGrant;
use terok_policy::provider::{CredentialType, Definition, OAuthImport, Provider, Token, is_credential_name};
use terok_vault::{Error, New, Secret};
use zeroize::Zeroizing;

/// `terok vault add`
#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    /// The provider, as terok provider list shows it
    provider: String,
    /// What to call it, where there are several for one provider
    #[arg(default_value = VaultGrant::DEFAULT)]
    name: String,
    /// Read it from standard input
    #[arg(long, group = "from")]
    stdin: bool,
    /// Read it from this environment variable
    #[arg(long, value_name = "VARIABLE", group = "from")]
    env: Option<String>,
    /// Read the tokens of a login from the file that the provider's own client keeps them in
    #[arg(long, value_name = "FILE", group = "from", conflicts_with_all = ["user", "kind"])]
    oauth: Option<PathBuf>,
    /// User name that goes with it: it is a password
    #[arg(long)]
    user: Option<String>,
    /// What it is: key, basic (user name and password) or oauth (an access token); told by the provider where not given
    #[arg(long = "type", value_name = "TYPE", value_parser = kind_of)]
    kind: Option<CredentialType>,
    /// Take the place of one of that name without asking
    #[arg(long)]
    replace: bool,
}

fn kind_of(word: &str) -> Result<CredentialType, String> {
    serde_json::from_value(word.into()).map_err(|_| "the types are key, basic and oauth".to_owned())
}

/// Reads it, looks at it, seals it.
pub(super) fn add(host: &Host, args: &AddArgs) -> anyhow::Result<()> {
    let provider = providers::provider(host, &args.provider)?;
    if !is_credential_name(&args.name) {
        bail!(
            "{:?} is no name: letters, digits, `-`, `_` and `.`, beginning with a letter or digit",
            args.name
        );
    }
    let mut open = Open::new(host)?;
    let there = match open.store.credential(&provider.name, &args.name) {
        Ok(record) => Some(record),
        Err(Error::Absent { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(record) = &there
        && !args.replace
    {
        let ask = prompt::confirm(&format!("{} is in the vault; replace it?", record.words()));
        if !ask.context(format!("{} is in the vault already: give --replace", record.words()))? {
            bail!("nothing was changed");
        }
    }
    let (secret, expires) = match &args.oauth {
        Some(file) => from_file(&provider, file)?,
        None => (given(host, &provider, args)?, None),
    };
    let key = open.key()?;
    match &there {
        Some(record) => open.store.replace_secret(&key, record, &secret, expires, show::now())?,
        None => {
            let new = New { provider: &provider.name, name: &args.name, secret: &secret, expires, ssh: None };
            open.store.add(&key, &new, show::now())?
        }
    };
    let grant = match args.name.as_str() {
        VaultGrant::DEFAULT => provider.name.clone(),
        name => format!("{}={name}", provider.name),
    };
    let done = if there.is_some() { "replaced" } else { "added" };
    say!("{done}; a container uses it with: terok run --vault {grant}")?;
    Ok(())
}

fn given(host: &Host, provider: &Provider, args: &AddArgs) -> anyhow::Result<Secret> {
    let text = if args.stdin {
        prompt::standard_input()?
    } else if let Some(variable) = &args.env {
        variable_of(variable)?
    } else {
        prompt::hidden(&format!("credential for {}", provider.title))
            .context("nothing to add: give --stdin, --env VARIABLE or --oauth FILE")?
    };
    let kind = match (args.kind, &args.user) {
        (Some(kind), _) => kind,
        (None, Some(_)) => CredentialType::Basic,
        (None, None) => kind_for(provider, &text)?,
    };
    let user = match (kind, &args.user) {
        (CredentialType::Basic, Some(user)) => user.clone(),
        (CredentialType::Basic, None) => {
            prompt::shown("user name").context("it is a password: give its user name with --user")?
        }
        (_, Some(_)) => bail!("--user goes with a password: leave it out, or give --type basic"),
        (_, None) => String::new(),
    };
    let secret = sealed(provider, kind, user, text)?;
    // A definition that cannot be read is nobody's concern here.
    let all = providers::definitions(host).unwrap_or_default();
    if let Some(doubt) = doubt(provider, &args.name, &secret, &all) {
        eprintln!("terok: {doubt}");
    }
    Ok(secret)
}

/// The value of a variable that a person named.
pub(super) fn variable_of(variable: &str) -> anyhow::Result<Zeroizing<String>> {
    match std::env::var(variable) {
        Ok(value) if !value.trim().is_empty() => Ok(Zeroizing::new(value)),
        Ok(_) => bail!("the variable {variable} is empty"),
        Err(std::env::VarError::NotPresent) => bail!("there is no variable {variable}"),
        Err(std::env::VarError::NotUnicode(_)) => bail!("the variable {variable} is not text"),
    }
}

/// What a secret is where nobody says: a key, unless the provider takes only something else, or takes logins as well and it does not begin
/// as the provider's keys do.
pub(super) fn kind_for(provider: &Provider, secret: &str) -> anyhow::Result<CredentialType> {
    use CredentialType::{Basic, Key, OAuth};
    let takes = |kind| provider.credential.contains_key(&kind);
    let mut beginnings = provider.token.beginnings().peekable();
    let looks_like_a_key =
        beginnings.peek().is_none() || beginnings.any(|beginning| secret.trim().starts_with(beginning));
    let kind = match (takes(Key), takes(OAuth), takes(Basic)) {
        (true, true, _) if !looks_like_a_key => OAuth,
        (true, _, _) => Key,
        (false, true, _) => OAuth,
        (false, false, true) => Basic,
        (false, false, false) => bail!("provider {} takes no credential", provider.name),
    };
    Ok(kind)
}

/// The secret of that type, where it can be one: of a type that the provider takes, one line, and no token that a container was given.
pub(super) fn sealed(
    provider: &Provider,
    kind: CredentialType,
    user: String,
    text: Zeroizing<String>,
) -> anyhow::Result<Secret> {
    if !provider.credential.contains_key(&kind) {
        let known: Vec<String> = provider.credential.keys().map(show::word).collect();
        bail!("provider {} takes no {}; it takes {}", provider.name, show::word(&kind), known.join(", "));
    }
    let text = match kind {
        CredentialType::Basic => text,
        _ => Zeroizing::new(text.trim().to_owned()),
    };
    if text.is_empty() {
        bail!("it is empty");
    }
    if text.chars().any(char::is_control)
        || (kind != CredentialType::Basic && !text.bytes().all(|b| b.is_ascii_graphic()))
    {
        bail!("it is no credential: a credential is one line without spaces or special characters");
    }
    if phantom::is_marked(&text) {
        bail!(
            "it is a phantom token, which a container was given in place of a credential: give the real one"
        );
    }
    Ok(match kind {
        CredentialType::Key => Secret::Key(text),
        CredentialType::OAuth => Secret::OAuth { access: text, refresh: None },
        CredentialType::Basic => {
            if user.is_empty() || user.contains(':') || user.chars().any(char::is_control) {
                bail!("a user name is not empty and has no colon in it");
            }
            Secret::Basic { user, password: text }
        }
    })
}

/// Why it may be the wrong one: it does not begin as the provider's keys do, or another's keys begin with more of it.
fn doubt(provider: &Provider, name: &str, secret: &Secret, all: &[(String, Definition)]) -> Option<String> {
    let Secret::Key(key) = secret else { return None };
    let fits = |token: &Token| {
        token.beginnings().filter(|beginning| key.starts_with(beginning)).map(str::len).max().unwrap_or(0)
    };
    let own = fits(&provider.token);
    let other = all.iter().map(|(_, definition)| definition).max_by_key(|other| fits(other.token()));
    let what = match other {
        Some(other) if fits(other.token()) > own => {
            format!("it begins as keys of {} do", show::printable(other.title()))
        }
        _ if own == 0 => {
            let prefix = provider.token.beginnings().next()?;
            format!("it does not begin with {prefix}, as keys of {} do", show::printable(&provider.title))
        }
        _ => return None,
    };
    let credential = match name {
        VaultGrant::DEFAULT => provider.name.clone(),
        name => format!("{} {name}", provider.name),
    };
    Some(format!("{what}; it is taken all the same: terok vault test {credential} tries it"))
}

/// The tokens in the file of the provider's own client.
fn from_file(provider: &Provider, path: &Path) -> anyhow::Result<(Secret, Option<u64>)> {
    let import = provider.oauth.as_ref().and_then(|oauth| oauth.import.as_ref()).with_context(|| {
        format!("provider {} has no oauth.import: nothing says where in a file its tokens are", provider.name)
    })?;
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let text = prompt::read(file).with_context(|| path.display().to_string())?;
    read_tokens(provider, import, &text).with_context(|| path.display().to_string())
}

fn read_tokens(
    provider: &Provider,
    import: &OAuthImport,
    text: &str,
) -> anyhow::Result<(Secret, Option<u64>)> {
    // Not with the parser's words, which could hold some of the file.
    let value: serde_json::Value = serde_json::from_str(text).ok().context("it is not JSON")?;
    let string = |pointer: &str| {
        let found = value.pointer(pointer).and_then(serde_json::Value::as_str);
        found
            .map(|text| Zeroizing::new(text.to_owned()))
            .with_context(|| format!("no string at {pointer}: log in with the provider's own client first"))
    };
    let Secret::OAuth { access, .. } =
        sealed(provider, CredentialType::OAuth, String::new(), string(&import.access)?)?
    else {
        bail!("provider {} takes no oauth", provider.name);
    };
    let refresh = string(&import.refresh)?;
    if phantom::is_marked(&refresh) {
        bail!(
            "it holds phantom tokens, which a container was given in place of credentials: give the real ones"
        );
    }
    let expires = import.expires.as_deref().and_then(|pointer| value.pointer(pointer)).and_then(seconds);
    Ok((Secret::OAuth { access, refresh: Some(refresh) }, expires))
}

/// Unix seconds of a number of seconds or, from 10^11 on, milliseconds.
fn seconds(value: &serde_json::Value) -> Option<u64> {
    let number = value.as_u64().or_else(|| value.as_f64().filter(|n| *n > 0.0).map(|n| n as u64))?;
    Some(if number >= 100_000_000_000 { number / 1000 } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(name: &str) -> Provider {
        providers::provider(&crate::containers::host_at(Path::new("/nowhere")), name).unwrap()
    }

    fn text(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    #[test]
    fn a_token_that_a_container_was_given_is_no_credential() {
        let anthropic = provider("anthropic");
        let token = phantom::token(&anthropic.token, &[9; phantom::MOST]);
        let error = sealed(&anthropic, CredentialType::Key, String::new(), text(&token)).unwrap_err();
        assert!(error.to_string().contains("phantom"));
        assert!(!error.to_string().contains(&token));
    }

    #[test]
    fn what_cannot_be_sent_is_no_credential() {
        let anthropic = provider("anthropic");
        for wrong in ["", "  ", "a b", "a\nb", "clé", "a\u{7}"] {
            let error =
                sealed(&anthropic, CredentialType::Key, String::new(), text(wrong)).unwrap_err().to_string();
            assert!(wrong.trim().is_empty() || !error.contains(wrong), "{error}");
        }
        assert!(sealed(&anthropic, CredentialType::Basic, "u".into(), text("p")).is_err());
        assert!(
            sealed(&anthropic, CredentialType::Key, String::new(), text(" sk-1 ")).unwrap()
                == Secret::Key(text("sk-1"))
        );
    }

    #[test]
    fn a_secret_that_does_not_begin_as_the_providers_keys_is_taken_for_a_login_or_doubted() {
        let anthropic = provider("anthropic");
        assert_eq!(kind_for(&anthropic, "sk-ant-api03-x").unwrap(), CredentialType::Key);
        assert_eq!(kind_for(&anthropic, "sk-ant-oat01-x").unwrap(), CredentialType::OAuth);
        assert_eq!(kind_for(&anthropic, "sk-ant-api04-x").unwrap(), CredentialType::Key);
        let all = providers::definitions(&crate::containers::host_at(Path::new("/nowhere"))).unwrap();
        let doubted = |name: &str, key: &str| doubt(&provider(name), "work", &Secret::Key(text(key)), &all);
        assert!(doubted("anthropic", "x").unwrap().contains("sk-ant-api03-"));
        for (name, key) in [
            ("anthropic", "sk-ant-api03-x"),
            ("github", "ghp_x"),
            ("github", "github_pat_x"),
            ("github", "gho_x"),
            ("openai", "sk-proj-x"),
            ("openai", "sk-svcacct-x"),
            ("openai", "sk-x"),
            ("mistral", "x"),
        ] {
            assert_eq!(doubted(name, key), None, "{name} {key}");
        }
        for (name, key, whose) in [
            ("openai", "sk-ant-api03-x", "Anthropic"),
            ("anthropic", "sk-or-v1-x", "OpenRouter"),
            ("mistral", "glpat-x", "GitLab"),
        ] {
            let doubt = doubted(name, key).unwrap();
            assert!(doubt.contains(whose) && doubt.contains(&format!("test {name} work")), "{doubt}");
            assert!(!doubt.contains(key), "{doubt}");
        }
    }

    #[test]
    fn tokens_of_a_login_are_read_with_their_end() {
        let anthropic = provider("anthropic");
        let import =
            OAuthImport { access: "/o/a".into(), refresh: "/o/r".into(), expires: Some("/o/e".into()) };
        let read = |text: &str| read_tokens(&anthropic, &import, text).map_err(|error| error.to_string());
        let (secret, expires) = read(r#"{"o":{"a":"AA","r":"RR","e":1900000000123}}"#).unwrap();
        assert!(secret == Secret::OAuth { access: text("AA"), refresh: Some(text("RR")) });
        assert_eq!(expires, Some(1_900_000_000));
        assert_eq!(read(r#"{"o":{"a":"AA","r":"RR","e":1900000000}}"#).unwrap().1, Some(1_900_000_000));
        assert!(read(r#"{"o":{"a":"S3CRET"}}"#).unwrap_err().contains("/o/r"));
        assert!(!read(r#"{"o":{"a":"S3CRET"#).unwrap_err().contains("S3CRET"));
    }
}

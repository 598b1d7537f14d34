use super::*;
use crate::annotation::{self, ALLOW, SSH, VAULT};
use std::collections::BTreeMap;

fn read(pairs: &[(&str, &str)]) -> Result<Policy, String> {
    let mut catalog = Catalog::bundled();
    let own = "like = \"openai\"\nupstream = \"http://host:11434/v1\"\n";
    catalog.providers.insert("local".into(), own.into());
    catalog.providers.insert("twin".into(), "like = \"anthropic\"\n".into());
    catalog.providers.insert("broken".into(), "title = 1\n".into());
    let annotations: BTreeMap<String, String> =
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    annotation::parse(&annotations, &catalog).map_err(|error| error.to_string())
}

#[test]
fn a_grant_brings_the_broker_the_providers_hosts_and_what_its_client_needs() {
    let policy = read(&[(VAULT, "anthropic github=work"), (SSH, "work@GitHub.com, deploy")]).unwrap();
    let shown: Vec<String> = policy.vault.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["anthropic", "github=work"]);
    let shown: Vec<String> = policy.ssh.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["work@github.com", "deploy"]);
    let rules: Vec<String> = policy.allow.iter().map(ToString::to_string).collect();
    assert_eq!(rules[0], "vault.terok.internal (provider anthropic)");
    assert_eq!(rules[1], "api.anthropic.com:443 (provider anthropic)");
    assert!(rules.contains(&"api.github.com:443 (provider github)".to_owned()), "{rules:?}");
    assert_eq!(rules.iter().filter(|rule| rule.starts_with("vault.")).count(), 1);
}

#[test]
fn a_policy_with_grants_survives_json_and_annotations() {
    let reference = format!("anthropic=@{}", "0a".repeat(16));
    for vault in ["anthropic", "github=work anthropic", &reference] {
        let policy =
            read(&[(VAULT, vault), (SSH, "a b@x.example b@y.example"), (ALLOW, "api.anthropic.com:443")])
                .unwrap();
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
        let rendered = annotation::render(&policy);
        assert_eq!(annotation::parse(&rendered, &Catalog::bundled()).unwrap(), policy);
        assert_ne!(policy.digest(), Policy::default().digest());
    }
}

#[test]
fn what_cannot_be_granted_is_refused_with_the_remedy() {
    for (value, hint) in [
        ("antropic", "did you mean \"anthropic\"?"),
        ("Anthropic", "no provider name"),
        ("anthropic=", "no name of a credential"),
        ("anthropic=../x", "no name of a credential"),
        ("anthropic=@12", "no name of a credential"),
        ("anthropic=@0A0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a", "no name of a credential"),
        ("anthropic anthropic=work", "granted twice"),
        ("anthropic anthropic", "granted twice"),
        ("anthropic twin", "both have api.anthropic.com"),
        ("openai local", "both set OPENAI_API_KEY"),
        ("broken", "provider broken line 1"),
        ("bearer", "it has no upstream"),
    ] {
        let error = read(&[(VAULT, value)]).unwrap_err();
        assert!(error.starts_with("terok.vault=") && error.contains(hint), "{value}: {error}");
    }
    for (value, hint) in [
        ("work@", "empty name"),
        ("work@*.x.example", "not a host name"),
        ("work@host", "no host of the outside"),
        ("work@vault.terok.internal", "no host of the outside"),
        ("@github.com", "no name of a key"),
        ("../x", "no name of a key"),
        ("work work@github.com", "for any host and for one"),
    ] {
        let error = read(&[(SSH, value)]).unwrap_err();
        assert!(error.starts_with("terok.ssh=") && error.contains(hint), "{value}: {error}");
    }
}

#[test]
fn grants_are_what_no_image_may_say() {
    for (key, value) in [(VAULT, "anthropic"), (SSH, "work")] {
        let granted = annotation::grant(&read(&[(key, value)]).unwrap());
        assert_eq!(granted, Some(format!("{key}={value}")));
    }
}

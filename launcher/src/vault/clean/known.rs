//! Files in which programs keep credentials, by the end of their path, and what to do about each.

use super::secrets::Form;

/// What is done with a file that holds a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// It holds credentials and nothing else.
    Remove,
    /// It holds more: a person takes the credential out.
    Edit,
}

/// A kind of file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// How the path ends, by segments; `*` stands within one.
    pub(super) path: String,
    pub(super) form: Form,
    pub(super) remedy: Remedy,
}

use Form::{Any, Dotenv, Netrc, Opaque, Pem, Pgpass, Whole, Xml};
use Remedy::{Edit, Remove};

/// Tools that many people use.
const TOOLS: &[(&str, Form, Remedy)] = &[
    // git and what it logs in with
    (".netrc", Netrc, Remove),
    ("_netrc", Netrc, Remove),
    (".git-credentials", Any, Remove),
    ("git/credentials", Any, Remove),
    (".git/config", Any, Edit),
    (".gitconfig", Any, Edit),
    ("gh/hosts.yml", Any, Remove),
    ("glab-cli/config.yml", Any, Remove),
    (".config/hub", Any, Remove),
    ("github-copilot/hosts.json", Any, Remove),
    ("github-copilot/apps.json", Any, Remove),
    // SSH, age, GnuPG
    (".ssh/*", Pem, Remove),
    ("id_rsa", Pem, Remove),
    ("id_dsa", Pem, Remove),
    ("id_ecdsa", Pem, Remove),
    ("id_ecdsa_sk", Pem, Remove),
    ("id_ed25519", Pem, Remove),
    ("id_ed25519_sk", Pem, Remove),
    ("sops/age/keys.txt", Pem, Remove),
    (".gnupg/private-keys-v1.d/*", Opaque, Remove),
    (".gnupg/secring.gpg", Opaque, Remove),
    // Clouds
    (".aws/credentials", Any, Remove),
    (".aws/sso/cache/*.json", Any, Remove),
    (".aws/cli/cache/*.json", Any, Remove),
    ("gcloud/application_default_credentials.json", Any, Remove),
    ("gcloud/credentials.db", Opaque, Remove),
    ("gcloud/access_tokens.db", Opaque, Remove),
    ("gcloud/legacy_credentials/*/adc.json", Any, Remove),
    (".azure/accessTokens.json", Any, Remove),
    (".azure/msal_token_cache.json", Any, Remove),
    (".azure/msal_token_cache.bin", Opaque, Remove),
    (".azure/service_principal_entries.json", Any, Remove),
    (".kube/config", Any, Remove),
    (".terraform.d/credentials.tfrc.json", Any, Remove),
    (".terraformrc", Any, Edit),
    (".vault-token", Whole, Remove),
    (".config/doctl/config.yaml", Any, Remove),
    (".fly/config.yml", Any, Remove),
    ("com.vercel.cli/auth.json", Any, Remove),
    (".netlify/config.json", Any, Remove),
    (".databrickscfg", Any, Remove),
    (".s3cfg", Any, Remove),
    (".boto", Any, Remove),
    ("rclone/rclone.conf", Any, Remove),
    // Registries
    (".docker/config.json", Any, Remove),
    (".dockercfg", Any, Remove),
    ("containers/auth.json", Any, Remove),
    (".npmrc", Any, Edit),
    (".yarnrc.yml", Any, Edit),
    (".pypirc", Any, Remove),
    ("pip/pip.conf", Any, Edit),
    (".pip/pip.conf", Any, Edit),
    (".cargo/credentials", Any, Remove),
    (".cargo/credentials.toml", Any, Remove),
    (".gem/credentials", Any, Remove),
    ("composer/auth.json", Any, Remove),
    (".composer/auth.json", Any, Remove),
    (".m2/settings.xml", Xml, Edit),
    (".gradle/gradle.properties", Any, Edit),
    (".huggingface/token", Whole, Remove),
    ("huggingface/token", Whole, Remove),
    ("huggingface/stored_tokens", Any, Remove),
    // Databases and others
    (".pgpass", Pgpass, Remove),
    (".my.cnf", Any, Edit),
    (".subversion/auth/svn.simple/*", Opaque, Remove),
    // Agents
    (".claude/.credentials.json", Any, Remove),
    (".claude.json", Any, Edit),
    (".codex/auth.json", Any, Remove),
    (".gemini/oauth_creds.json", Any, Remove),
    ("opencode/auth.json", Any, Remove),
    (".aider.conf.yml", Any, Edit),
    // Projects
    (".env.*", Dotenv, Edit),
    ("*.env", Dotenv, Edit),
    (".envrc", Dotenv, Edit),
];

/// The tools' files and those of the providers' own clients.
pub(super) fn known<'a>(files: impl Iterator<Item = &'a String>) -> Vec<Known> {
    let tools = TOOLS.iter().map(|&(path, form, remedy)| Known { path: path.to_owned(), form, remedy });
    let mut known: Vec<Known> = tools.collect();
    for path in files {
        let path = path.trim_start_matches("~/").trim_matches('/').to_owned();
        if !path.is_empty() && known.iter().all(|other| other.path != path) {
            known.push(Known { path, form: Any, remedy: Remove });
        }
    }
    known
}

impl Known {
    /// Whether a path whose segments are `segments` is one.
    pub(super) fn is(&self, segments: &[&[u8]]) -> bool {
        let own: Vec<&str> = self.path.split('/').collect();
        segments.len() >= own.len() && fits(&own, &segments[segments.len() - own.len()..])
    }

    /// Whether such a file can lie below a folder whose path ends with `segments`. A folder with a name like any other (`git`) only
    /// where settings are.
    pub(super) fn is_below(&self, segments: &[&[u8]]) -> bool {
        let own: Vec<&str> = self.path.split('/').collect();
        let leads = |n: usize| {
            let Some(start) = segments.len().checked_sub(n) else { return false };
            let above = start.checked_sub(1).map(|above| segments[above]);
            let telling = own[0].starts_with('.') || matches!(above, Some(b".config" | b"config"));
            telling && fits(&own[..n], &segments[start..])
        };
        (1..own.len()).any(leads)
    }
}

fn fits(own: &[&str], segments: &[&[u8]]) -> bool {
    own.iter().zip(segments).all(|(own, segment)| match own.split_once('*') {
        None => own.as_bytes() == *segment,
        Some((start, end)) => {
            segment.len() >= start.len() + end.len()
                && segment.starts_with(start.as_bytes())
                && segment.ends_with(end.as_bytes())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str) -> Vec<Known> {
        let segments: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
        known(std::iter::empty()).into_iter().filter(|known| known.is(&segments)).collect()
    }

    #[test]
    fn files_are_known_by_the_end_of_their_path_at_any_depth() {
        for path in [
            ".netrc",
            "a/b/.netrc",
            ".aws/credentials",
            "home/u/.aws/credentials",
            ".aws/sso/cache/0a1b.json",
            "root/.config/gh/hosts.yml",
            ".env",
            ".env.production",
            "deploy/prod.env",
            ".ssh/work_key",
        ] {
            assert_eq!(found(path).len(), 1, "{path}");
        }
        for path in ["netrc", "credentials", "x.aws/credentials", "env", "hosts.yml", ".aws/credentials/x"] {
            assert!(found(path).is_empty(), "{path}");
        }
    }

    #[test]
    fn folders_that_lead_to_known_files_are_told_from_others() {
        let leads = |path: &str| {
            let segments: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
            known(std::iter::empty()).iter().any(|known| known.is_below(&segments))
        };
        assert!(
            leads("x/.aws")
                && leads(".aws/sso/cache")
                && leads(".ssh")
                && leads(".config/gcloud/legacy_credentials/a")
        );
        assert!(!leads("bin/git") && !leads("src") && !leads("node_modules") && !leads(".netrc"));
    }
}

//! Names of files, folders, sockets and descriptors, said once.

/// nftables table (family `inet`).
pub const TABLE: &str = "terok";
/// NFLOG group of kernel denials in the container's namespace.
pub const NFLOG_GROUP: u16 = 7468;
/// Folder of rootful runtime state, one folder a container below.
pub const RUN_ROOTFUL: &str = "/run/terok";
/// Folder of rootful persistent state.
pub const STATE_ROOTFUL: &str = "/var/lib/terok";
/// Below `/run/user/UID` for a user.
pub const RUN_USER: &str = "terok";
/// Below the home directory for a user.
pub const STATE_USER: &str = ".local/state/terok";
/// A user's own profiles, below the home directory; system-wide ones are in [`PROFILES_SYSTEM`].
pub const PROFILES_USER: &str = ".config/terok/profiles";
/// System-wide profiles.
pub const PROFILES_SYSTEM: &str = "/etc/terok/profiles";

/// A user's settings ([`crate::settings`]), below the home directory; those of [`CONFIG_SYSTEM`] stand where it is silent.
pub const CONFIG_USER: &str = ".config/terok/config.toml";
/// The machine's settings.
pub const CONFIG_SYSTEM: &str = "/etc/terok/config.toml";
/// Which runtime the shim stands before, below a user's home directory; it stands over [`SHIM_SYSTEM`].
pub const SHIM_USER: &str = ".config/terok/shim.toml";
/// The machine's.
pub const SHIM_SYSTEM: &str = "/etc/terok/shim.toml";
/// Where a user's own installation has its programs, below the home directory.
pub const BIN_USER: &str = ".local/share/terok/bin";

/// Beside the state folders of a user's containers, while the user's `terok panic` is in force: no start is allowed.
pub const PANIC: &str = ".panic";
/// Root's, which counts for everybody: outside [`STATE_ROOTFUL`], where users could not see it.
pub const PANIC_ROOTFUL: &str = "/var/lib/terok.panic";

/// The vault's folder of a user, below the home directory.
pub const VAULT_USER: &str = ".local/share/terok/vault";
/// Root's.
pub const VAULT_ROOTFUL: &str = "/var/lib/terok.vault";
/// In it: the store.
pub const VAULT_STORE: &str = "vault.db";
/// In it: host keys that were learnt with `terok ssh hosts add`, in OpenSSH's form.
pub const VAULT_KNOWN_HOSTS: &str = "known_hosts";
/// Beside the store: what was taken back from containers, a file for each by its id.
pub const REVOKED: &str = "revoked";
/// Beside the runtime folders of containers: the unlocked vault's session (tmpfs).
pub const SESSION: &str = ".session";
/// In [`SESSION`]: the master key and its end.
pub const SESSION_KEY: &str = "key.json";
/// Beside the runtime folders: credentials that live with one container (`terok run --credential`), a file each by reference.
pub const EPHEMERAL: &str = ".ephemeral";
/// Beside the runtime folders: what precreate made for containers that are about to start, a folder each by id.
pub const BIRTH: &str = ".birth";
/// In a birth folder: [`crate::provision::Issued`] as JSON.
pub const GRANTED: &str = "granted.json";
/// In a birth folder: the folder that is mounted at [`crate::provision::INSIDE`].
pub const INSIDE: &str = "inside";
/// A user's own providers, below the home directory.
pub const PROVIDERS_USER: &str = ".config/terok/providers";
/// The machine's.
pub const PROVIDERS_SYSTEM: &str = "/etc/terok/providers";

/// In the runtime folder of a container: the Varlink socket.
pub const CONTROL: &str = "control.sock";
/// In the runtime folder: what container this is ([`crate::control::Container`] as JSON), written by `create`.
pub const CONTAINER: &str = "container.json";
/// In the state folder: the audit log.
pub const AUDIT: &str = "audit.jsonl";
/// In the state folder: operator state ([`crate::live::Live`]).
pub const LIVE: &str = "live.json";
/// In the state folder: names that were given a virtual address, one a line, `INDEX NAME`.
pub const NAMES: &str = "names";
/// In the state folder: why the last start was refused, and supervisor messages.
pub const LOG: &str = "log";

/// Where distributions keep the certificates of the authorities that the host trusts, the commonest first (the list of openssl-probe).
pub const CA_BUNDLES: [&str; 8] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Program names, as installed side by side in one folder.
pub const HOOK: &str = "terok-hook";
/// The supervisor.
pub const SUPERVISOR: &str = "terok-supervisor";
/// The OCI runtime that stands before the real one.
pub const SHIM: &str = "terok-shim";
/// Runtimes that the shim has a name for, `terok-shim-NAME`: called by it, it stands before that one. Where nothing is said, the first
/// that is there.
pub const RUNTIMES: [&str; 3] = ["crun", "runc", "youki"];
/// Where distributions have them.
pub const RUNTIME_FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
/// What engines call the shim: `podman run --runtime terok`.
pub const ENGINE_RUNTIME: &str = "terok";
/// The launcher.
pub const LAUNCHER: &str = "terok";

/// Whether `id` may name a folder: 1 to 128 of `[a-zA-Z0-9_.-]`, not starting with a dot or dash.
pub fn is_container_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && !id.starts_with(['.', '-'])
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether `text` may name a credential that lives with one container, and its file in [`EPHEMERAL`]: 32 of `0-9a-f`.
pub fn is_reference(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|octet| matches!(octet, b'0'..=b'9' | b'a'..=b'f'))
}

/// Name of the file in [`EPHEMERAL`] that container `id` has claimed; the unclaimed one is called `reference` alone.
pub fn claimed(reference: &str, id: &str) -> Option<String> {
    (is_reference(reference) && is_container_id(id)).then(|| format!("{reference}.{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_file_is_named_after_its_container_and_nothing_names_a_path() {
        let reference = "0123456789abcdef0123456789abcdef";
        assert_eq!(claimed(reference, "c0ffee").unwrap(), format!("{reference}.c0ffee"));
        for (reference, id) in [("../x", "c0ffee"), (reference, "../x"), ("", "c"), (&reference[1..], "c")] {
            assert_eq!(claimed(reference, id), None);
        }
    }
}

//! Whom the host trusts: the bundle of CA certificates of its distribution. Read once a process, before anything is spoken over TLS.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use terok_policy::layout::CA_BUNDLES;

/// Folders of certificates; those above them hold private keys as well.
const FOLDERS: [&str; 4] = ["certs", "pem", "extracted", "ca-certificates"];

/// A bundle is a tenth of this.
const LIMIT: u64 = 8 << 20;

/// Why nobody can be trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// No bundle.
    #[error("no CA certificates on this host (looked for {}); install the package ca-certificates", CA_BUNDLES.join(", "))]
    None,
    /// One that cannot be read, or nothing in it.
    #[error("{}: {reason}; reinstall the package ca-certificates", path.display())]
    Unreadable {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The protocol's own settings.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
}

/// The bundle's path and its text, PEM.
pub(crate) fn bundle() -> Result<(PathBuf, Vec<u8>), TrustError> {
    for path in files() {
        let mut text = Vec::new();
        match File::open(&path).and_then(|file| file.take(LIMIT).read_to_end(&mut text)) {
            Ok(0) => {}
            Ok(_) => return Ok((path, text)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(TrustError::Unreadable { path, reason: error.to_string() }),
        }
    }
    Err(TrustError::None)
}

/// What the host trusts as a TLS client: TLS 1.2 and 1.3, certificates always verified.
pub(crate) fn client() -> Result<ClientConfig, TrustError> {
    let (path, text) = bundle()?;
    let mut roots = RootCertStore::empty();
    // A bundle may hold one that is no root; what is no certificate at all ends the list like a torn file.
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates
        .map_err(|error| TrustError::Unreadable { path: path.clone(), reason: error.to_string() })?;
    if roots.add_parsable_certificates(certificates).0 == 0 {
        return Err(TrustError::Unreadable { path, reason: "holds no certificate".into() });
    }
    client_trusting(roots)
}

/// The same with other roots.
pub(crate) fn client_trusting(roots: RootCertStore) -> Result<ClientConfig, TrustError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(config.map_err(TrustError::Tls)?.with_root_certificates(roots).with_no_client_auth())
}

/// The files to be read, for Landlock: there a link is followed, so what it leads to is readable too.
pub(crate) fn files() -> Vec<PathBuf> {
    CA_BUNDLES.map(PathBuf::from).to_vec()
}

/// The same for who lives longer than a bundle does: an update puts another file in its place, which Landlock knows by its folder alone.
pub(crate) fn places() -> Vec<PathBuf> {
    files().into_iter().map(place).collect()
}

/// The bundle's folder, where by its name nothing but certificates is in it.
fn place(bundle: PathBuf) -> PathBuf {
    let bundle = bundle.canonicalize().unwrap_or(bundle);
    let folder = bundle
        .parent()
        .filter(|folder| folder.file_name().is_some_and(|name| FOLDERS.iter().any(|known| name == *known)));
    folder.map(Path::to_owned).unwrap_or(bundle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_hosts_bundle_is_found_where_its_distribution_keeps_it() {
        let there = files().iter().any(|path| path.exists());
        match client() {
            Ok(_) => assert!(there),
            Err(TrustError::None) => assert!(!there),
            Err(error) => panic!("{error}"),
        }
    }
    #[test]
    fn a_bundle_in_whose_place_an_update_put_another_is_read_by_who_was_confined_before() {
        let folder = tempfile::tempdir().unwrap();
        let (certs, ssl) = (folder.path().join("certs"), folder.path().join("ssl"));
        for folder in [&certs, &ssl] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("bundle.crt"), "old").unwrap();
        }
        std::fs::write(ssl.join("key"), "secret").unwrap();
        let places = [&certs, &ssl].map(|folder| place(folder.join("bundle.crt")));
        let replaced = certs.join("bundle.crt");
        crate::confined_reader(
            places.to_vec(),
            || {
                std::fs::write(certs.join("new"), "new").unwrap();
                std::fs::rename(certs.join("new"), &replaced).unwrap();
            },
            || {
                assert_eq!(std::fs::read_to_string(&replaced).unwrap(), "new");
                assert_eq!(std::fs::read_to_string(ssl.join("bundle.crt")).unwrap(), "old");
                assert!(std::fs::read(ssl.join("key")).is_err());
            },
        );
    }
}

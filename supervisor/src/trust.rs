//! Whom the host trusts: the bundle of CA certificates of its distribution. Read once a process, before anything is spoken over TLS.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

/// Where distributions keep it, the commonest first (the list of openssl-probe).
const BUNDLES: [&str; 8] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// A bundle is a tenth of this.
const LIMIT: u64 = 8 << 20;

/// Why nobody can be trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// No bundle.
    #[error("no CA certificates on this host (looked for {}); install the package ca-certificates", BUNDLES.join(", "))]
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
    BUNDLES.map(PathBuf::from).to_vec()
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
}

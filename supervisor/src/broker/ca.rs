//! A certificate authority for one container: nobody else trusts it, and it can speak for the brokered hosts and the broker alone (V2).

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use terok_kernel::statedir::Dir;
use terok_policy::{Name, name, provision};
use zeroize::Zeroizing;

/// In the runtime folder: key and certificate, PEM.
pub(crate) const FILE: &str = "ca.pem";
const FILE_LIMIT: u64 = 64 << 10;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A container may run for years.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// A leaf is made anew before it ends.
const LEAF_USE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The authority of this container.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    leaves: RefCell<HashMap<Name, (Arc<ServerConfig>, SystemTime)>>,
}

impl Ca {
    /// The authority of container `id` for `hosts`: the one in its runtime folder, which an earlier worker made, or a new one. Its certificate, and
    /// the host's with it, are put into `inside`, which the container sees.
    pub(crate) fn open(
        run_dir: &Dir,
        inside: &Dir,
        id: &str,
        hosts: &[Name],
        bundle: &[u8],
    ) -> anyhow::Result<Self> {
        let params = authority(id, hosts);
        let (ca, pem) = match run_dir.read(FILE, FILE_LIMIT)?.map(Zeroizing::new) {
            Some(kept) => {
                Self::of(params, &kept).with_context(|| run_dir.path().join(FILE).display().to_string())?
            }
            None => {
                let key = KeyPair::generate()?;
                let certificate = params.self_signed(&key)?;
                let kept = Zeroizing::new([key.serialize_pem(), certificate.pem()].concat());
                run_dir.write(FILE, kept.as_bytes())?;
                Self::of(params, kept.as_bytes())?
            }
        };
        inside.write_for_all(provision::CA, pem.as_bytes())?;
        let line = if bundle.is_empty() || bundle.ends_with(b"\n") { "" } else { "\n" };
        let together = [bundle, line.as_bytes(), pem.as_bytes()].concat();
        inside.write_for_all(provision::CA_BUNDLE, &together)?;
        Ok(ca)
    }

    fn of(params: CertificateParams, kept: &[u8]) -> anyhow::Result<(Self, String)> {
        let text = std::str::from_utf8(kept)?;
        let at = text.find("-----BEGIN CERTIFICATE-----").context("has no certificate")?;
        let (key, pem) = text.split_at(at);
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())?;
        let issuer = Issuer::new(params, KeyPair::from_pem(key)?);
        Ok((Ca { issuer, certificate, leaves: RefCell::default() }, pem.to_owned()))
    }

    /// How to serve `name`.
    pub(super) fn serving(&self, name: &Name) -> anyhow::Result<Arc<ServerConfig>> {
        let now = SystemTime::now();
        let fresh = |made: &SystemTime| now.duration_since(*made).is_ok_and(|age| age < LEAF_USE);
        if let Some((config, _)) = self.leaves.borrow().get(name).filter(|(_, made)| fresh(made)) {
            return Ok(config.clone());
        }
        let config = Arc::new(self.leaf(name)?);
        self.leaves.borrow_mut().insert(name.clone(), (config.clone(), now));
        Ok(config)
    }

    fn leaf(&self, name: &Name) -> anyhow::Result<ServerConfig> {
        let mut params = CertificateParams::new(vec![name.to_string()])?;
        params.distinguished_name.push(DnType::CommonName, name.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) =
            ((SystemTime::now() - DAY).into(), (SystemTime::now() + LEAF_LIFE).into());
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// What the authority is: the same for every worker of a container, but for its time.
fn authority(id: &str, hosts: &[Name]) -> CertificateParams {
    let mut params = CertificateParams::default();
    let short: String = id.chars().take(12).collect();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("terok, for container {short} alone"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let names = hosts.iter().map(Name::as_str).chain([name::VAULT]);
    let nowhere = |ip: IpAddr| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, 0));
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: names.map(|name| GeneralSubtree::DnsName(name.to_owned())).collect(),
        excluded_subtrees: vec![nowhere(IpAddr::from([0; 4])), nowhere(IpAddr::from([0; 16]))],
    });
    (params.not_before, params.not_after) =
        ((SystemTime::now() - DAY).into(), (SystemTime::now() + CA_LIFE).into());
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::{RootCertStore, pki_types::ServerName};
    use rustls_pki_types::UnixTime;

    fn dir() -> (tempfile::TempDir, Dir, Dir) {
        let dir = tempfile::tempdir().unwrap();
        let base = Dir::base(dir.path()).unwrap();
        let inside = base.make_private("inside").unwrap();
        (dir, base, inside)
    }

    #[test]
    fn the_next_worker_uses_the_same_authority_and_the_container_sees_it_behind_the_hosts() {
        let (path, run, inside) = dir();
        let hosts = ["api.example".parse().unwrap()];
        let first = Ca::open(&run, &inside, "0123456789abcdef", &hosts, b"HOST").unwrap();
        let second = Ca::open(&run, &inside, "0123456789abcdef", &hosts, b"HOST").unwrap();
        assert_eq!(first.certificate, second.certificate);
        let read = |name| std::fs::read_to_string(path.path().join("inside").join(name)).unwrap();
        assert_eq!(read("ca-bundle.crt"), format!("HOST\n{}", read("ca.crt")));
        assert!(!read("ca-bundle.crt").contains("PRIVATE"));
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path.path().join(FILE)).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn it_speaks_for_the_brokered_hosts_alone() {
        let (_path, run, inside) = dir();
        let ca = Ca::open(&run, &inside, "0123", &["api.example".parse().unwrap()], b"").unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate.clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let accepted = |name: &str| {
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            let key = KeyPair::generate().unwrap();
            let leaf = params.signed_by(&key, &ca.issuer).unwrap();
            let server = ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(leaf.der(), &[], &server, &[], UnixTime::now()).is_ok()
        };
        assert!(accepted("api.example") && accepted("vault.terok.internal"));
        assert!(
            !accepted("example")
                && !accepted("other.example")
                && !accepted("192.0.2.1")
                && !accepted("2001:db8::1")
        );
    }
}

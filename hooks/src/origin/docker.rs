//! Containers of Docker. What a person asks for is in `<data root>/containers/<id>/`: `--annotation` in `hostconfig.json` (and
//! never an image's), labels in `config.v2.json`, the image's among them. Labels are no part of a configuration.

use super::said::{Said, said};
use super::{Unknown, not_said, refuse_doubtful};
use crate::refusal::Refusal;
use crate::state::{Annotations, ours, read_file};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use terok_policy::{Policy, capabilities, layout};

/// Docker's namespace of containerd, where nobody gave it another (`--containerd-namespace`).
const NAMESPACE: &str = "moby";
/// Docker serves it inside the namespace of each container of a network that somebody made.
pub(super) const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Far above what Docker writes (2 KiB each, and as much as there are labels).
const LIMIT: u64 = 16 << 20;
/// What Docker mounts of a container's own folder, or of that whose network it joins.
const MOUNTED: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
/// Below a containerd's root: manifests and configurations of images, by digest.
const CONTENT: &str = "io.containerd.content.v1.content/blobs/sha256";
const CONTAINERD: &str = "/var/lib/containerd";

/// What Docker was asked for.
#[derive(Debug)]
pub(crate) struct Docker {
    pub(super) name: String,
    host: HostConfig,
    /// Those that are terok's.
    annotations: Annotations,
    /// Those that are terok's.
    labels: Annotations,
    /// Names of the networks it is connected to.
    networks: Vec<String>,
    /// What the image says; not asked where there is no label that may be the image's.
    image: Result<Said, String>,
}

/// `hostconfig.json`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    annotations: Option<Annotations>,
    network_mode: Option<String>,
    cap_add: Option<Vec<String>>,
    privileged: Option<bool>,
}

/// `config.v2.json`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Container {
    #[serde(rename = "ID")]
    id: String,
    name: Option<String>,
    driver: Option<String>,
    /// Digest of the image's configuration, or, where containerd keeps the images, of its manifest or index.
    image: Option<String>,
    /// Where containerd keeps the images: the manifest.
    image_manifest: Option<Descriptor>,
    config: Option<Config>,
    network_settings: Option<NetworkSettings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    labels: Option<Annotations>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
}

/// Whether container `id` of this containerd's `namespace` is Docker's.
pub(super) fn is_its(namespace: &str, id: &str, config: &Value) -> bool {
    let knows = |root: &PathBuf| folder(root, id).join("config.v2.json").symlink_metadata().is_ok();
    namespace == NAMESPACE || layout::is_container_id(id) && data_roots(config).iter().any(knows)
}

impl Docker {
    /// What it was asked for of container `id`. Its labels are not in `config`: where they cannot be read, nobody knows whether it
    /// is to be protected.
    pub(super) fn find(id: &str, config: &Value) -> Result<Self, Refusal> {
        Docker::read(id, config).map_err(|reason| {
            Refusal::Guard(format!(
                "cannot tell what Docker was asked for, labels among it, because {reason}; start the container without terok as its runtime if it needs no protection"
            ))
        })
    }

    fn read(id: &str, config: &Value) -> Result<Self, String> {
        if !layout::is_container_id(id) {
            return Err(format!("{id:?} is no container's id"));
        }
        let roots = data_roots(config);
        let found =
            roots.iter().find(|root| folder(root, id).join("config.v2.json").symlink_metadata().is_ok());
        let root = found.ok_or_else(|| match roots.first() {
            Some(root) => format!("{} has no config.v2.json", folder(root, id).display()),
            None => "the configuration shows no data folder of its".to_owned(),
        })?;
        // The folder itself may be reached by links; nothing below it.
        let root = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
        let container: Container = json(&folder(&root, id).join("config.v2.json"))?;
        let host: HostConfig = json(&folder(&root, id).join("hostconfig.json"))?;
        if container.id != id {
            return Err(format!("{} is another container's", folder(&root, id).display()));
        }
        let of = |all: Option<&Annotations>| all.map(ours).unwrap_or_default();
        let labels = of(container.config.as_ref().and_then(|config| config.labels.as_ref()));
        let annotations = of(host.annotations.as_ref());
        let image = match labels.iter().all(|(key, label)| annotations.get(key) == Some(label)) {
            true => Ok(Said::new()),
            false => image(&root, &container),
        };
        let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let networks = networks.into_keys().collect();
        let name = container.name.unwrap_or_default();
        Ok(Docker {
            name: name.trim_start_matches('/').to_owned(),
            host,
            annotations,
            labels,
            networks,
            image,
        })
    }

    /// `ours` with the labels. What the person said by annotation, an image's label does not change.
    pub(super) fn with_labels(&self, ours: Annotations) -> Result<Annotations, Refusal> {
        let mut both = ours;
        for (key, label) in &self.labels {
            match both.get(key) {
                None => {
                    both.insert(key.clone(), label.clone());
                }
                Some(annotation) if annotation == label || self.is_images(key, label) => {}
                Some(annotation) => {
                    return Err(Refusal::TwoValues {
                        key: key.clone(),
                        annotation: annotation.clone(),
                        label: label.clone(),
                    });
                }
            }
        }
        Ok(both)
    }

    /// Refuses what is neither the person's annotation nor the person's label.
    pub(super) fn check(&self, ours: &Annotations, policy: &Policy) -> Result<(), Refusal> {
        let annotated =
            |key: &str, value: &str| self.annotations.get(key).is_some_and(|given| given == value);
        let others: Annotations = ours
            .iter()
            .filter(|(key, value)| !annotated(key, value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if let Some((key, value)) = others.iter().find(|(key, value)| self.labels.get(*key) != Some(value)) {
            return Err(Refusal::Unasked { key: key.clone(), value: value.clone() });
        }
        if let Some(key) =
            self.labels.keys().chain(self.annotations.keys()).find(|key| !ours.contains_key(*key))
        {
            return Err(Refusal::Lacking { key: key.clone() });
        }
        match &self.image {
            Ok(said) => not_said(&others, said, "label"),
            Err(_) if others.is_empty() => Ok(()),
            Err(reason) => refuse_doubtful(&others, policy, Unknown::Damaged(reason.clone())),
        }
    }

    /// A label that cannot be compared may be the image's, too; but then it does not stand against an annotation.
    fn is_images(&self, key: &str, label: &str) -> bool {
        self.image.as_ref().is_ok_and(|said| said.iter().any(|(k, v)| k == key && v == label))
    }

    /// A network with a card, which `libnetwork-setkey` or Docker itself makes after the runtime has made the namespace. The mode
    /// stays `none` where the container was taken from there and connected to another one later.
    pub(super) fn brings_card(&self) -> bool {
        let of_none = match self.networks.is_empty() {
            true => self.mode() == "none",
            false => self.networks.iter().all(|network| network == "none"),
        };
        self.has_own_network() && !of_none
    }

    /// Neither the host's nor another container's.
    pub(super) fn has_own_network(&self) -> bool {
        self.mode() != "host" && !self.mode().starts_with("container:")
    }

    fn mode(&self) -> &str {
        self.host.network_mode.as_deref().unwrap_or_default()
    }

    /// Whether CAP_NET_RAW was asked for, which Docker gives to every container.
    pub(super) fn wants_raw(&self) -> bool {
        let is_raw = |name: &String| ["NET_RAW", "ALL"].iter().any(|raw| capabilities::same(name, raw));
        self.host.privileged.unwrap_or_default() || self.host.cap_add.iter().flatten().any(is_raw)
    }
}

fn folder(root: &Path, id: &str) -> PathBuf {
    root.join("containers").join(id)
}

/// Where Docker's data may be: `<root>/containers/<id>/hosts` is mounted, `<root>/overlay2/<layer>/merged`, `<root>/vfs/dir/<layer>` or
/// `<root>/rootfs/<driver>/<id>` is the root filesystem.
fn data_roots(config: &Value) -> Vec<PathBuf> {
    let mounts = config.get("mounts").and_then(Value::as_array).into_iter().flatten();
    let text = |mount: &Value, key| mount.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut roots: Vec<PathBuf> = mounts
        .filter(|mount| MOUNTED.contains(&text(mount, "destination").as_str()))
        .filter_map(|mount| {
            let source = PathBuf::from(text(mount, "source"));
            let all = source.parent()?.parent()?;
            (all.file_name()? == "containers").then(|| all.parent().map(Path::to_owned))?
        })
        .collect();
    let rootfs = config.pointer("/root/path").and_then(Value::as_str).unwrap_or_default();
    roots.extend(Path::new(rootfs).ancestors().nth(3).map(Path::to_owned));
    roots.retain(|root| root.is_absolute());
    roots.dedup();
    roots
}

/// What the image says, in its configuration.
fn image(root: &Path, container: &Container) -> Result<Said, String> {
    let of_containerd = || {
        let manifest = digest(&container.image_manifest.as_ref()?.digest)?;
        let roots = [root.join("containerd/daemon"), CONTAINERD.into()].into_iter();
        let mut stores = roots.filter_map(|root| root.join(CONTENT).canonicalize().ok());
        let blobs = stores.find(|blobs| blobs.join(manifest).exists())?;
        let manifest: Manifest = json(&blobs.join(manifest)).ok()?;
        Some(blobs.join(digest(&manifest.config.digest)?))
    };
    let of_docker = || {
        let driver = container.driver.as_deref().filter(|driver| is_plain(driver))?;
        let image = digest(container.image.as_deref()?)?;
        Some(root.join("image").join(driver).join("imagedb/content/sha256").join(image))
    };
    let path = match container.image_manifest {
        Some(_) => of_containerd(),
        None => of_docker(),
    };
    let path = path.ok_or("its image's configuration is in no place that is known")?;
    let json = octets(&path)?;
    said(&json).map_err(|error| format!("{} is not as expected: {error}", path.display()))
}

/// The hexadecimal part of a `sha256:` digest.
fn digest(text: &str) -> Option<&str> {
    let hex = text.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|octet| octet.is_ascii_hexdigit())).then_some(hex)
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_".contains(&octet))
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    serde_json::from_slice(&octets(path)?)
        .map_err(|error| format!("{} is not as expected: {error}", path.display()))
}

/// A file of the engine's: no link leads to it, and nobody but its owner and ours writes it.
fn octets(path: &Path) -> Result<Vec<u8>, String> {
    let about = |reason: &dyn std::fmt::Display| format!("{} {reason}", path.display());
    let real = path.canonicalize().map_err(|error| about(&format!("cannot be opened: {error}")))?;
    let meta = path.symlink_metadata().map_err(|error| about(&error))?;
    let own = std::fs::metadata("/proc/self").map_err(|error| format!("/proc/self: {error}"))?.uid();
    match () {
        () if real != path || !meta.is_file() => Err(about(&"is reached by a link, or is no file")),
        () if ![0, own].contains(&meta.uid()) => Err(about(&"belongs to another user")),
        () if meta.mode() & 0o022 != 0 => Err(about(&"is writable by others")),
        () => read_file(path, LIMIT).map_err(|error| about(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use terok_policy::Shield;

    /// A data folder as Docker keeps it, with one container.
    struct Host {
        root: tempfile::TempDir,
        config: Value,
        id: String,
        image: PathBuf,
    }

    fn fixture(name: &str) -> String {
        fs::read_to_string(format!("{}/tests/fixtures/docker-{name}.json", env!("CARGO_MANIFEST_DIR")))
            .unwrap()
    }

    impl Host {
        fn with(name: &str) -> Self {
            let root = tempfile::tempdir().unwrap();
            let place = root.path().canonicalize().unwrap();
            let config =
                fixture(&format!("{name}.config")).replace("/var/lib/docker", place.to_str().unwrap());
            let container = fixture(&format!("{name}.config.v2"));
            let read: Container = serde_json::from_str(&container).unwrap();
            let image = digest(read.image.as_deref().unwrap()).unwrap();
            let images = place.join("image").join(read.driver.unwrap()).join("imagedb/content/sha256");
            let host = Host {
                config: serde_json::from_str(&config).unwrap(),
                id: read.id,
                image: images.join(image),
                root,
            };
            fs::create_dir_all(&images).unwrap();
            fs::create_dir_all(host.file("")).unwrap();
            host.write("config.v2.json", &container);
            host.write("hostconfig.json", &fixture(&format!("{name}.hostconfig")));
            host.image(&fixture("26.1.5-image-label.image").replace(r#","terok.shield":"down""#, ""));
            host
        }

        fn file(&self, name: &str) -> PathBuf {
            self.root.path().join("containers").join(&self.id).join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.file(name), text).unwrap();
        }

        fn image(&self, text: &str) {
            fs::write(&self.image, text).unwrap();
        }

        /// Labels and annotations that Docker was asked for, and those of the image.
        fn saying(annotations: &[(&str, &str)], labels: &[(&str, &str)], image: &[(&str, &str)]) -> Self {
            let host = Host::with("26.1.5-bridge");
            let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
                pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
            };
            let edit = |name: &str, pointer: &str, pairs| {
                let mut value: Value = serde_json::from_slice(&fs::read(host.file(name)).unwrap()).unwrap();
                *value.pointer_mut(pointer).unwrap() = serde_json::to_value(map(pairs)).unwrap();
                host.write(name, &value.to_string());
            };
            edit("hostconfig.json", "/Annotations", annotations);
            edit("config.v2.json", "/Config/Labels", labels);
            let mut configuration: Value =
                serde_json::from_str(&fixture("26.1.5-image-label.image")).unwrap();
            configuration["config"]["Labels"] = serde_json::to_value(map(image)).unwrap();
            host.image(&configuration.to_string());
            host
        }

        fn origin(&self) -> Result<Origin, Refusal> {
            Origin::of_bundle(&self.bundle(), &self.id, &self.config)
        }

        fn bundle(&self) -> PathBuf {
            Path::new("/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby").join(&self.id)
        }

        /// What the shim makes of it, given these annotations in the configuration.
        fn judged(&self, config: &[(&str, &str)], policy: &Policy) -> Result<Annotations, Refusal> {
            let config = config.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            let origin = self.origin()?;
            let ours = origin.ours(&config)?;
            origin.check(&ours, policy)?;
            Ok(ours)
        }
    }

    const UP: (&str, &str) = ("terok.shield", "up");
    const DOWN: (&str, &str) = ("terok.shield", "down");

    fn down() -> Policy {
        Policy { shield: Shield::Down, ..Policy::default() }
    }

    #[test]
    fn what_docker_was_asked_for_is_the_persons_as_docker_26_and_20_10_write_it() {
        let host = Host::with("26.1.5-bridge");
        let ours = host.judged(&[UP], &Policy::default()).unwrap();
        assert_eq!(ours, BTreeMap::from([UP, ("terok.task", "t1")].map(|(k, v)| (k.into(), v.into()))));
        assert_eq!(host.origin().unwrap().name(), "box");
        for name in ["20.10.24-network", "20.10.24-joined", "26.1.5-none"] {
            let host = Host::with(name);
            let asked: &[_] = if name == "26.1.5-none" { &[UP] } else { &[] };
            host.judged(asked, &down()).unwrap();
        }
    }

    #[test]
    fn an_annotation_that_docker_was_not_asked_for_is_refused() {
        for config in [DOWN, ("terok.vault", "github")] {
            let host = Host::saying(&[UP], &[], &[]);
            let refused = host.judged(&[config], &Policy::default());
            assert!(matches!(refused, Err(Refusal::Unasked { .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_label_is_the_persons_unless_the_image_has_it() {
        let labelled = |image: &[_]| Host::saying(&[], &[DOWN], image).judged(&[], &down());
        assert_eq!(labelled(&[]).unwrap()["terok.shield"], "down");
        assert_eq!(labelled(&[UP]).unwrap()["terok.shield"], "down");
        let refused = labelled(&[DOWN]).unwrap_err();
        assert!(matches!(refused, Refusal::FromImage { .. }), "{refused}");
        assert!(refused.to_string().starts_with("label terok.shield"), "{refused}");
        // As Docker itself writes it: it does not tell an image's labels from others.
        let host = Host::with("26.1.5-image-label");
        host.image(&fixture("26.1.5-image-label.image"));
        let refused = host.judged(&[], &down());
        assert!(matches!(refused, Err(Refusal::FromImage { .. })), "{refused:?}");
    }

    #[test]
    fn a_label_is_the_images_however_its_configuration_spells_it() {
        for image in [
            r#"{"Config":{"LABELS":{"terok.shield":"down"}}}"#,
            r#"{"config":{"Labels":{"terok.shield":"down"}},"config":{"Labels":{}}}"#,
        ] {
            let host = Host::saying(&[], &[DOWN], &[]);
            host.image(image);
            let refused = host.judged(&[], &down());
            assert!(matches!(refused, Err(Refusal::FromImage { .. })), "{image}: {refused:?}");
        }
    }

    #[test]
    fn an_image_that_cannot_be_read_lets_labels_only_tighten() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for image in ["", "{", &deep] {
            let host = Host::saying(&[], &[DOWN], &[]);
            host.image(image);
            let refused = host.judged(&[], &down());
            assert!(matches!(refused, Err(Refusal::ImageUnknown { .. })), "{refused:?}");
            let host = Host::saying(&[], &[("terok.shield.allow", "evil.example")], &[]);
            host.image(image);
            assert!(host.judged(&[], &Policy::default()).is_err());
            let host = Host::saying(&[], &[("terok.shield", "block")], &[]);
            host.image(image);
            host.judged(&[], &Policy::default()).unwrap();
            // Nothing of it is by label.
            Host::saying(&[DOWN], &[], &[]).judged(&[DOWN], &down()).unwrap();
        }
        let host = Host::saying(&[], &[DOWN], &[]);
        fs::remove_file(&host.image).unwrap();
        assert!(matches!(host.judged(&[], &down()), Err(Refusal::ImageUnknown { .. })));
    }

    #[test]
    fn annotation_and_label_say_the_same_but_an_images_label_does_not_stand_against_an_annotation() {
        let refused = Host::saying(&[UP], &[DOWN], &[]).judged(&[UP], &Policy::default());
        assert!(matches!(refused, Err(Refusal::TwoValues { .. })), "{refused:?}");
        for label in [UP, DOWN] {
            let host = Host::saying(&[UP], &[label], &[label]);
            assert_eq!(host.judged(&[UP], &Policy::default()).unwrap()["terok.shield"], "up");
        }
    }

    #[test]
    fn create_finds_in_the_configuration_all_that_docker_was_asked_for() {
        let host = Host::saying(&[UP], &[("terok.task", "t")], &[]);
        let shield = BTreeMap::from([(UP.0.to_owned(), UP.1.to_owned())]);
        let refused = host.origin().unwrap().check(&shield, &Policy::default());
        assert!(matches!(refused, Err(Refusal::Lacking { .. })), "{refused:?}");
    }

    #[test]
    fn images_that_containerd_keeps_are_asked_through_their_manifest() {
        let host = Host::with("26.1.5-containerd-images");
        let refused = host.judged(&[], &down());
        assert!(matches!(refused, Err(Refusal::ImageUnknown { .. })), "{refused:?}");
        let container: Container =
            serde_json::from_str(&fixture("26.1.5-containerd-images.config.v2")).unwrap();
        let blobs = host.root.path().join("containerd/daemon").join(CONTENT);
        fs::create_dir_all(&blobs).unwrap();
        let configuration = "a".repeat(64);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{configuration}"}}}}"#);
        let manifest_digest = container.image_manifest.unwrap().digest;
        fs::write(blobs.join(digest(&manifest_digest).unwrap()), manifest).unwrap();
        fs::write(blobs.join(&configuration), fixture("26.1.5-image-label.image")).unwrap();
        let refused = host.judged(&[], &down());
        assert!(matches!(refused, Err(Refusal::FromImage { .. })), "{refused:?}");
        fs::write(blobs.join(&configuration), "{}").unwrap();
        host.judged(&[], &down()).unwrap();
    }

    #[test]
    fn files_that_others_may_have_written_are_not_believed() {
        let host = Host::with("26.1.5-bridge");
        fs::set_permissions(host.file("hostconfig.json"), fs::Permissions::from_mode(0o666)).unwrap();
        assert!(host.origin().unwrap_err().to_string().contains("writable by others"));

        let host = Host::with("26.1.5-bridge");
        let elsewhere = host.root.path().join("elsewhere");
        fs::rename(host.file("config.v2.json"), &elsewhere).unwrap();
        symlink(&elsewhere, host.file("config.v2.json")).unwrap();
        assert!(host.origin().unwrap_err().to_string().contains("reached by a link"));

        for hostile in ["", "[]", r#"{"ID":"another"}"#, r#"{"Config":{"Labels":{"terok.shield":1}}}"#] {
            let host = Host::with("26.1.5-bridge");
            host.write("config.v2.json", hostile);
            assert!(host.origin().unwrap_err().to_string().contains("cannot tell what Docker was asked for"));
        }
        let mut host = Host::with("26.1.5-bridge");
        host.id = "a b".into();
        host.origin().unwrap_err();
    }

    #[test]
    fn the_data_folder_is_found_by_a_mount_or_the_root_filesystem_and_may_be_a_link() {
        let mut host = Host::with("26.1.5-bridge");
        host.config["mounts"] = Value::Null;
        host.origin().unwrap();
        host.config["root"] = Value::Null;
        host.origin().unwrap_err();
        let mut host = Host::with("26.1.5-bridge");
        host.config["root"] = Value::Null;
        host.origin().unwrap();
        let link = tempfile::tempdir().unwrap();
        symlink(host.root.path(), link.path().join("docker")).unwrap();
        let through = link.path().join("docker/overlay2/x/merged");
        host.config = serde_json::json!({ "root": { "path": through } });
        host.origin().unwrap();
    }

    #[test]
    fn a_container_of_no_network_that_was_connected_to_one_brings_a_card_at_its_next_start() {
        let host = Host::with("26.1.5-none");
        assert_eq!(host.origin().unwrap().name_server(), Some(NAME_SERVER.into()));
        let mut container: Value =
            serde_json::from_slice(&fs::read(host.file("config.v2.json")).unwrap()).unwrap();
        container["NetworkSettings"]["Networks"] = serde_json::json!({ "net1": {} });
        host.write("config.v2.json", &container.to_string());
        assert!(host.origin().unwrap().brings_card(&host.config));
    }

    #[test]
    fn a_container_of_dockers_is_known_in_any_namespace_of_containerd() {
        let host = Host::with("26.1.5-image-label");
        let bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/other").join(&host.id);
        assert!(Origin::has_labels(&bundle, &host.id, &host.config));
        let origin = Origin::of_bundle(&bundle, &host.id, &host.config).unwrap();
        assert_eq!(origin.ours(&Annotations::new()).unwrap()["terok.shield"], "down");
        for id in ["another", "../x"] {
            assert!(!Origin::has_labels(&bundle, id, &host.config), "{id}");
        }
    }

    #[test]
    fn every_network_but_none_brings_a_card_and_raw_sockets_are_wanted_where_they_were_asked_for() {
        for (name, card) in [
            ("26.1.5-bridge", true),
            ("20.10.24-network", true),
            ("26.1.5-none", false),
            ("20.10.24-joined", false),
        ] {
            let host = Host::with(name);
            let origin = host.origin().unwrap();
            assert_eq!(origin.brings_card(&host.config), card, "{name}");
            assert!(origin.has_raw_by_default(), "{name}");
        }
        for name in ["26.1.5-privileged", "26.1.5-cap-raw", "26.1.5-cap-all"] {
            let host = Host::with("26.1.5-bridge");
            host.write("hostconfig.json", &fixture(&format!("{name}.hostconfig")));
            assert!(!host.origin().unwrap().has_raw_by_default(), "{name}");
        }
    }
}

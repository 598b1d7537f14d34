//! Containers of containers/storage (Podman, CRI-O). Podman 4.3 copies the annotations of an image's manifest into the
//! container's configuration; the store keeps that manifest where it can be compared.

use super::Unknown;
use super::said::{Said, said};
use crate::guards::{self, Wanted};
use crate::state::read_file;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

const LIST_LIMIT: u64 = 64 << 20;
const MANIFEST_LIMIT: u64 = 4 << 20;

/// A store of containers/storage: `<root>/<driver>-containers`, `<root>/<driver>-images`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Storage {
    root: PathBuf,
    driver: String,
}

/// What the store knows of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Record {
    /// Full id.
    pub(super) id: String,
    /// Names; the first is the container's own.
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    layer: Option<String>,
}

/// A container in its store, as far as both could be found.
#[derive(Debug)]
pub(crate) struct Found {
    storage: Storage,
    pub(super) record: Record,
}

impl Storage {
    /// From `<root>/<driver>-containers/<id>/userdata`.
    fn of_bundle(bundle: &Path) -> Option<Self> {
        let containers = bundle.parent()?.parent()?;
        let driver = containers.file_name()?.to_str()?.strip_suffix("-containers")?;
        Some(Storage { root: containers.parent()?.to_owned(), driver: driver.to_owned() })
    }

    /// From the root filesystem `<root>/<driver>/<layer>/merged` (overlay) or `<root>/<driver>/dir/<layer>` (vfs).
    fn of_rootfs(rootfs: &Path) -> Option<(Self, String)> {
        let last = rootfs.file_name()?.to_str()?;
        let parent = rootfs.parent()?;
        let (layer, driver) = match last {
            "merged" => (parent.file_name()?.to_str()?, parent.parent()?),
            layer if parent.file_name()? == "dir" => (layer, parent.parent()?),
            _ => return None,
        };
        let storage =
            Storage { root: driver.parent()?.to_owned(), driver: driver.file_name()?.to_str()?.to_owned() };
        Some((storage, layer.to_owned()))
    }

    /// From what Podman itself mounts: `<root>/<driver>-containers/<id>/userdata/shm`, and a file of the same container.
    fn of_mounts(config: &Value) -> Option<(Self, String)> {
        let mounts = config.get("mounts")?.as_array()?;
        let folder = |destination: &str| {
            let mount = mounts.iter().rfind(|mount| mount["destination"] == destination)?;
            Path::new(mount["source"].as_str()?).parent()
        };
        let id = |folder: &Path| Some(folder.parent()?.file_name()?.to_str()?.to_owned());
        let bundle = folder("/dev/shm").filter(|bundle| bundle.ends_with("userdata"))?;
        let own = id(bundle)?;
        let agrees = id(folder("/run/.containerenv")?)? == own;
        agrees.then_some((Self::of_bundle(bundle)?, own))
    }

    fn find(self, is_it: impl Fn(&Record) -> bool) -> Result<Found, String> {
        let folder = self.root.join(format!("{}-containers", self.driver));
        // Containers started with --rm are in the second.
        for list in ["containers.json", "volatile-containers.json"] {
            let path = folder.join(list);
            if !path.exists() {
                continue;
            }
            let json = read_file(&path, LIST_LIMIT).map_err(|error| format!("{} {error}", path.display()))?;
            let records: Vec<Record> = serde_json::from_slice(&json)
                .map_err(|error| format!("{} is not as expected: {error}", path.display()))?;
            if let Some(record) = records.into_iter().find(&is_it) {
                return Ok(Found { storage: self, record });
            }
        }
        Err(format!("{} does not list the container", folder.display()))
    }
}

/// The container with this id, by its bundle.
pub(super) fn by_bundle(bundle: &Path, id: &str) -> Result<Found, String> {
    let storage = Storage::of_bundle(bundle)
        .ok_or_else(|| format!("{} is not in a container store", bundle.display()))?;
    storage.find(|record| record.id == id)
}

/// The container by its configuration: all that `precreate` is told. Where a user namespace of its own could not reach the root file
/// system, Podman 5 has it below `/var/tmp` for as long as the runtime needs it.
pub(super) fn by_config(config: &Value) -> Result<Found, String> {
    let rootfs = Path::new(config.pointer("/root/path").and_then(Value::as_str).unwrap_or_default());
    if let Some((storage, layer)) = Storage::of_rootfs(rootfs) {
        return storage.find(|record| record.layer.as_ref() == Some(&layer));
    }
    let (storage, id) = Storage::of_mounts(config)
        .ok_or_else(|| format!("{} is not in a container store", rootfs.display()))?;
    storage.find(|record| record.id == id)
}

/// Whether a card comes into the namespace that the runtime makes: with a user namespace (`--userns`, `--uidmap`) Podman connects the
/// container after it was created. Nothing says so but the resolv.conf that it mounts wherever there is a network.
pub(super) fn brings_card(config: &Value) -> bool {
    let mut mounts = config.get("mounts").and_then(Value::as_array).into_iter().flatten();
    guards::wanted(config) == Wanted::Own
        && guards::has_user_namespace(config)
        && mounts.any(|mount| mount.get("destination").is_some_and(|place| place == "/etc/resolv.conf"))
}

impl Found {
    /// The container's name.
    pub(super) fn name(&self) -> String {
        self.record.names.iter().flatten().next().cloned().unwrap_or_default()
    }

    /// The `terok.` annotations of the image's manifest; none where there is no image.
    pub(super) fn image_annotations(&self) -> Result<Said, Unknown> {
        let Some(image) = self.record.image.as_deref().filter(|image| !image.is_empty()) else {
            return Ok(Said::new());
        };
        if !image.bytes().all(|octet| octet.is_ascii_hexdigit()) {
            return Err(Unknown::Missing(format!("image id {image:?} is none")));
        }
        let folder = self.storage.root.join(format!("{}-images", self.storage.driver));
        let path = folder.join(image).join("manifest");
        if !path.exists() {
            return Err(Unknown::Missing(format!("{} does not exist", path.display())));
        }
        let damaged = |reason: &dyn std::fmt::Display| {
            Unknown::Damaged(format!("{} is not as expected: {reason}", path.display()))
        };
        let json = read_file(&path, MANIFEST_LIMIT).map_err(|error| damaged(&error))?;
        said(&json).map_err(|error| damaged(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::*;
    use crate::refusal::Refusal;
    use crate::state::Annotations;
    use serde_json::json;
    use std::fs;
    use terok_policy::Policy;

    const IMAGE: &str = "2eebab8b296d42ded1a2bc1a14958970807977b47421fd0c7e864a4c5849e27d";

    /// A store as podman 4.3 writes it, with one container of an image that has these annotations.
    fn store(list: &str, manifest: &str) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let containers = root.path().join("overlay-containers");
        let image = root.path().join("overlay-images").join(IMAGE);
        fs::create_dir_all(&containers).unwrap();
        fs::create_dir_all(&image).unwrap();
        fs::write(containers.join("containers.json"), "[]").unwrap();
        let record =
            format!(r#"[{{"id":"c1","names":["box"],"image":"{IMAGE}","layer":"l1","flags":{{}}}}]"#);
        fs::write(containers.join(list), record).unwrap();
        fs::write(image.join("manifest"), manifest).unwrap();
        let bundle = containers.join("c1/userdata");
        (root, bundle)
    }

    fn by_bundle(bundle: &Path, id: &str) -> Origin {
        Origin::of_bundle(bundle, id, &Value::Null).unwrap()
    }

    /// As Podman 5.4 describes a container with `--userns=auto`, whose other files are those of container `id`.
    fn by_mounts(bundle: &Path, id: &str) -> Value {
        json!({ "root": { "path": "/var/tmp/intermediate-mountpoint-0.0" }, "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev/shm", "type": "bind", "source": bundle.join("shm") },
            { "destination": "/run/.containerenv", "type": "bind",
              "source": format!("/run/containers/storage/overlay-containers/{id}/userdata/.containerenv") },
        ] })
    }

    #[test]
    fn a_container_whose_mounts_are_not_its_own_is_unknown() {
        let (root, bundle) = store("containers.json", "{}");
        let down = Policy { shield: terok_policy::Shield::Down, ..Policy::default() };
        let of = |config: &Value| Origin::of_config(config).check(&annotations(&[]), &down);
        of(&by_mounts(&bundle, "c1")).unwrap();
        let mut without = by_mounts(&bundle, "c1");
        without["mounts"].as_array_mut().unwrap().pop();
        let volume = by_mounts(&root.path().join("overlay-containers/c1/volume"), "c1");
        let nowhere = by_mounts(&root.path().join("other-containers/c1/userdata"), "c1");
        for config in [by_mounts(&bundle, "c2"), without, volume, nowhere, json!({})] {
            let refused = of(&config);
            assert!(matches!(refused, Err(Refusal::ImageUnknown { .. })), "{config}: {refused:?}");
        }
    }

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn an_annotation_with_the_images_value_is_refused_and_another_value_is_the_persons() {
        let manifest = r#"{"schemaVersion":2,"annotations":{"terok.shield":"up"}}"#;
        for list in ["containers.json", "volatile-containers.json"] {
            let (root, bundle) = store(list, manifest);
            let rootfs = json!({ "root": { "path": root.path().join("overlay/l1/merged") } });
            let elsewhere = by_mounts(&bundle, "c1");
            for container in
                [by_bundle(&bundle, "c1"), Origin::of_config(&rootfs), Origin::of_config(&elsewhere)]
            {
                let refused = container.check(&annotations(&[("terok.shield", "up")]), &Policy::default());
                assert!(matches!(refused, Err(Refusal::FromImage { .. })), "{refused:?}");
                container.check(&annotations(&[("terok.shield", "block")]), &Policy::default()).unwrap();
                assert_eq!(container.name(), "box");
            }
        }
    }

    #[test]
    fn an_image_that_cannot_be_asked_refuses_only_what_grants() {
        let down = Policy { shield: terok_policy::Shield::Down, ..Policy::default() };
        let (_root, bundle) = store("containers.json", "garbage");
        let unknown = [by_bundle(&bundle, "c1"), by_bundle(&bundle, "c2"), by_bundle(Path::new("/b"), "c1")];
        for container in unknown {
            container.check(&annotations(&[]), &Policy::default()).unwrap();
            let refused = container.check(&annotations(&[]), &down);
            assert!(matches!(refused, Err(Refusal::ImageUnknown { .. })), "{refused:?}");
        }
        let (_root, bundle) = store("containers.json", "{}");
        by_bundle(&bundle, "c1").check(&annotations(&[]), &down).unwrap();
    }

    #[test]
    fn an_annotation_is_the_images_however_its_manifest_spells_or_hides_it() {
        for manifest in [
            r#"{"Annotations":{"terok.shield.allow":"evil.example"}}"#,
            r#"{"annotation\u017f":{"terok.shield.allow":"evil.example"}}"#,
            r#"{"annotations":{"terok.shield.allow":"evil.example"},"annotations":{"a":"b"}}"#,
            r#"{"annotations":{"terok.shield.allow":"x"},"ANNOTATIONS":{"terok.shield.allow":"evil.example"}}"#,
        ] {
            let (_root, bundle) = store("containers.json", manifest);
            let ours = annotations(&[("terok.shield", "up"), ("terok.shield.allow", "evil.example")]);
            let refused = by_bundle(&bundle, "c1").check(&ours, &Policy::default());
            assert!(matches!(refused, Err(Refusal::FromImage { .. })), "{manifest}: {refused:?}");
        }
    }

    #[test]
    fn podman_brings_a_card_to_a_user_namespace_behind_our_back_unless_there_is_no_network() {
        let config = |namespaces: &[&str], resolv_conf: bool| {
            let namespaces: Vec<_> = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
            let place = if resolv_conf { "/etc/resolv.conf" } else { "/etc/hosts" };
            json!({ "linux": { "namespaces": namespaces }, "mounts": [{ "destination": place }] })
        };
        let origin = by_bundle(Path::new("/b"), "c1");
        for (namespaces, resolv_conf, card) in [
            (&["network", "user"][..], true, true),
            (&["network", "user"], false, false),
            (&["network"], true, false),
            (&["user"], true, false),
        ] {
            let config = config(namespaces, resolv_conf);
            assert_eq!(origin.brings_card(&config), card, "{config}");
        }
    }

    #[test]
    fn a_manifest_that_only_podman_can_read_opens_nothing() {
        // Go takes a lone surrogate for U+FFFD.
        let manifest = r#"{"x":"\ud800","annotations":{"terok.shield.allow":"evil.example"}}"#;
        let (_root, bundle) = store("containers.json", manifest);
        let of =
            |pairs: &[(&str, &str)]| by_bundle(&bundle, "c1").check(&annotations(pairs), &Policy::default());
        for pair in [("terok.shield.allow", "evil.example"), ("terok.shield.profiles", "wide")] {
            assert!(matches!(of(&[pair]), Err(Refusal::ImageUnknown { .. })), "{pair:?}");
        }
        of(&[("terok.shield", "up")]).unwrap();
    }
}

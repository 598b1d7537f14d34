//! Whether the image spoke instead of the person (A2). Podman 4.3 copies the annotations of an image's manifest into the
//! container's configuration; containers/storage keeps that manifest where it can be compared.

use crate::refusal::Refusal;
use crate::state::{Annotations, read_file};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::path::{Path, PathBuf};
use terok_policy::Policy;
use terok_policy::annotation;

const LIST_LIMIT: u64 = 64 << 20;
const MANIFEST_LIMIT: u64 = 4 << 20;

/// A store of containers/storage: `<root>/<driver>-containers`, `<root>/<driver>-images`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    root: PathBuf,
    driver: String,
}

/// What the store knows of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Record {
    /// Full id.
    pub(crate) id: String,
    /// Names; the first is the container's own.
    #[serde(default)]
    pub(crate) names: Option<Vec<String>>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    layer: Option<String>,
}

/// A container in its store, as far as both could be found.
#[derive(Debug)]
pub(crate) struct Found {
    storage: Storage,
    pub(crate) record: Record,
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
pub(crate) fn by_bundle(bundle: &Path, id: &str) -> Result<Found, String> {
    let storage = Storage::of_bundle(bundle)
        .ok_or_else(|| format!("{} is not in a container store", bundle.display()))?;
    storage.find(|record| record.id == id)
}

/// The container whose root filesystem this is: all that `precreate` is told.
pub(crate) fn by_rootfs(rootfs: &Path) -> Result<Found, String> {
    let (storage, layer) = Storage::of_rootfs(rootfs)
        .ok_or_else(|| format!("{} is not in a container store", rootfs.display()))?;
    storage.find(|record| record.layer.as_ref() == Some(&layer))
}

/// Why the image cannot be asked.
enum Unknown {
    /// There is no manifest where one is looked for: another engine, another store.
    Missing(String),
    /// There is one, and Podman may have read annotations in it that we cannot: its author's doing.
    Damaged(String),
}

/// `terok.` keys with their values, each as often as it is there.
type Said = Vec<(String, String)>;

impl Found {
    /// The `terok.` annotations of the image's manifest; none where there is no image.
    fn image_annotations(&self) -> Result<Said, Unknown> {
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

/// Every pair below [`annotation::PREFIX`] wherever it stands in `manifest`. Podman's JSON reader takes `Annotations`,
/// `ANNOTATIONS` and `annotation\u{17f}` for `annotations` too and merges them if there are several: to look at every
/// object and at every repetition is to miss none.
fn said(manifest: &[u8]) -> serde_json::Result<Said> {
    let mut said = Said::new();
    let mut reader = serde_json::Deserializer::from_slice(manifest);
    Pairs(&mut said).deserialize(&mut reader)?;
    reader.end()?;
    Ok(said)
}

/// Collects the pairs of all objects; its value is the text, where the value read is one.
struct Pairs<'a>(&'a mut Said);

impl<'de> DeserializeSeed<'de> for Pairs<'_> {
    type Value = Option<String>;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pairs<'_> {
    type Value = Option<String>;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a manifest")
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned()))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        // Go reads null as the empty text.
        Ok(Some(String::new()))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element_seed(Pairs(self.0))?.is_some() {}
        Ok(None)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Self::Value, A::Error> {
        while let Some(key) = pairs.next_key::<String>()? {
            let text = pairs.next_value_seed(Pairs(self.0))?;
            if let Some(text) = text.filter(|_| key.starts_with(annotation::PREFIX)) {
                self.0.push((key, text));
            }
        }
        Ok(None)
    }
}

/// Refuses what the image said, and what it may have said where that cannot be known.
pub(crate) fn check(
    ours: &Annotations,
    policy: &Policy,
    container: &Result<Found, String>,
) -> Result<(), Refusal> {
    let from_image = match container {
        Ok(found) => found.image_annotations(),
        Err(reason) => Err(Unknown::Missing(reason.clone())),
    };
    let (grant, reason) = match from_image {
        Ok(from_image) => {
            let of_image = |key: &str, value: &str| from_image.iter().any(|(k, v)| k == key && v == value);
            return match ours.iter().find(|(key, value)| of_image(key, value)) {
                Some((key, value)) => Err(Refusal::FromImage { key: key.clone(), value: value.clone() }),
                None => Ok(()),
            };
        }
        Err(Unknown::Missing(reason)) => (annotation::grant(policy), reason),
        Err(Unknown::Damaged(reason)) => {
            let widens = [annotation::ALLOW, annotation::PROFILES]
                .into_iter()
                .find_map(|key| ours.get(key).map(|value| format!("{key}={value}")));
            (annotation::grant(policy).or(widens), reason)
        }
    };
    match grant {
        Some(grant) => Err(Refusal::ImageUnknown { grant, reason }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn an_annotation_with_the_images_value_is_refused_and_another_value_is_the_persons() {
        let manifest = r#"{"schemaVersion":2,"annotations":{"terok.shield":"up"}}"#;
        for list in ["containers.json", "volatile-containers.json"] {
            let (root, bundle) = store(list, manifest);
            let rootfs = root.path().join("overlay/l1/merged");
            for container in [by_bundle(&bundle, "c1"), by_rootfs(&rootfs)] {
                let refused = check(&annotations(&[("terok.shield", "up")]), &Policy::default(), &container);
                assert!(matches!(refused, Err(Refusal::FromImage { .. })), "{refused:?}");
                check(&annotations(&[("terok.shield", "block")]), &Policy::default(), &container).unwrap();
                assert_eq!(container.unwrap().record.names.unwrap()[0], "box");
            }
        }
    }

    #[test]
    fn an_image_that_cannot_be_asked_refuses_only_what_grants() {
        let down = Policy { shield: terok_policy::Shield::Down, ..Policy::default() };
        let (_root, bundle) = store("containers.json", "garbage");
        let unknown = [by_bundle(&bundle, "c1"), by_bundle(&bundle, "c2"), by_bundle(Path::new("/b"), "c1")];
        for container in unknown {
            check(&annotations(&[]), &Policy::default(), &container).unwrap();
            let refused = check(&annotations(&[]), &down, &container);
            assert!(matches!(refused, Err(Refusal::ImageUnknown { .. })), "{refused:?}");
        }
        let (_root, bundle) = store("containers.json", "{}");
        check(&annotations(&[]), &down, &by_bundle(&bundle, "c1")).unwrap();
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
            let refused = check(&ours, &Policy::default(), &by_bundle(&bundle, "c1"));
            assert!(matches!(refused, Err(Refusal::FromImage { .. })), "{manifest}: {refused:?}");
        }
    }

    #[test]
    fn a_manifest_that_only_podman_can_read_opens_nothing() {
        // Go takes a lone surrogate for U+FFFD.
        let manifest = r#"{"x":"\ud800","annotations":{"terok.shield.allow":"evil.example"}}"#;
        let (_root, bundle) = store("containers.json", manifest);
        let of = |pairs: &[(&str, &str)]| {
            check(&annotations(pairs), &Policy::default(), &by_bundle(&bundle, "c1"))
        };
        for pair in [("terok.shield.allow", "evil.example"), ("terok.shield.profiles", "wide")] {
            assert!(matches!(of(&[pair]), Err(Refusal::ImageUnknown { .. })), "{pair:?}");
        }
        of(&[("terok.shield", "up")]).unwrap();
    }
}

//! What an image says to terok, wherever in its JSON: its author writes it, and the engine's reader is more generous than ours.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use terok_policy::annotation;

/// `terok.` keys with their values, each as often as it is there.
pub(super) type Said = Vec<(String, String)>;

/// Every pair below [`annotation::PREFIX`] wherever it stands in `json`. Go's JSON reader, which Podman and Docker use, takes
/// `Annotations`, `ANNOTATIONS` and `annotation\u{17f}` for `annotations` too and merges them if there are several: to look at
/// every object and at every repetition is to miss none.
pub(super) fn said(json: &[u8]) -> serde_json::Result<Said> {
    let mut said = Said::new();
    let mut reader = serde_json::Deserializer::from_slice(json);
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

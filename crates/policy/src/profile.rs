//! Profiles: named lists of egress rules, one a line, `#` comments, `include NAME`.

use crate::policy::Sourced;
use std::collections::BTreeMap;

/// Profile texts by name. The bundled ones are compiled in; a user's own come from the caller.
#[derive(Debug, Clone, Default)]
pub struct Catalog(pub BTreeMap<String, String>);

/// What is wrong in a profile, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("profile {profile} line {line}: {reason}")]
pub struct ProfileError {
    /// Profile name.
    pub profile: String,
    /// Line number from 1; 0 for the profile as a whole.
    pub line: usize,
    /// What is wrong and what to do.
    pub reason: String,
}

impl Catalog {
    /// The profiles that ship with terok (`profiles/*.txt`).
    pub fn bundled() -> Self {
        todo!()
    }
    /// The rules of `names` with includes followed, duplicates removed, first source kept.
    /// An unknown name, an include cycle or a bad line is an error; the error hints at the nearest known name.
    pub fn resolve(&self, names: &[String]) -> Result<Vec<Sourced>, ProfileError> {
        let _ = names;
        todo!()
    }
}

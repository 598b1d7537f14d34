//! Where terok is installed, in which order, and whether Podman consults it: the library behind
//! `terok setup`, `terok uninstall`, `terok doctor` and the check that `terok run` makes before every start.
//! It starts nothing but Podman and the shim, and those only for `doctor`.

mod all_containers;
pub mod consulted;
pub mod containers_conf;
pub mod doctor;
pub mod engine;
mod findings;
pub mod hook_json;
pub mod host;
mod image;
pub mod in_use;
mod json_text;
pub mod podman;
pub mod probe;
mod process;
pub mod settings;
pub mod setup;
mod shim_findings;
mod shim_settings;
pub mod target;
mod trial;

/// A systemd unit that unlocks the vault at login; `@TEROK@` stands for the launcher.
pub const VAULT_UNIT: &str = include_str!("../assets/terok-vault.service");

//! End to end on real Podman: what must be shown, one module for each promise. The ids A1 … are attacks (tests/README.md).

mod birth;
mod cards;
mod egress;
mod expect;
mod floods;
mod guards;
mod host;
mod install;
mod launcher;
mod lifecycle;
mod live;
mod networks;
mod operator;
mod published;
mod rebinding;
mod shared;
mod tools;
mod vault_bytes;
mod vault_clean;
mod vault_clients;
mod vault_hostile;
mod vault_locked;
mod vault_oauth;
mod vault_run;
mod vault_ssh;
mod vault_tokens;

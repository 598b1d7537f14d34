//! The TCP proxy: each connection of the container is judged by what it was made for, held to that name where the
//! protocol says one (E4), dialled from the host's side and relayed.

pub mod hello;
pub mod http;
pub mod sniff;

//! The supervisor of one container: a parent that keeps the sockets and a worker that serves them (design §6).
//! A library so that fuzz targets and tests reach its parsers; the binary is `main` and nothing else.

pub(crate) mod audit;
pub(crate) mod context;
pub(crate) mod flows;
pub(crate) mod names;
pub mod proxy;
pub(crate) mod resolve;

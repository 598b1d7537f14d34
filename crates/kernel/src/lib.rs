//! Every syscall and all `unsafe` of terok, one kernel idea a file: namespaces, sockets, pidfds, process birth,
//! folders, confinement. What to do with them is decided elsewhere.

pub mod netlink;
pub mod nflog;
pub mod nft;
pub mod rtnl;

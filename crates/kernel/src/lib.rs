//! Every syscall and all `unsafe` of terok, one kernel idea a file: namespaces, sockets, netlink, nftables, pidfds,
//! process birth, folders, confinement. What to do with them is decided elsewhere.

pub mod birth;
pub mod capabilities;
pub mod confine;
pub mod conntrack;
pub mod error;
pub mod exec;
pub mod inherited;
pub mod landlock;
pub mod memfd;
pub mod netlink;
pub mod netns;
pub mod nflog;
pub mod nft;
pub mod pidfd;
pub mod program;
pub mod rtnl;
pub mod seccomp;
pub mod socket;
pub mod splice;
pub mod statedir;
pub mod tree;
pub mod userns;

pub use error::Error;

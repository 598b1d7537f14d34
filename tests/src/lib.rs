//! The harness of the end-to-end tests: real engines and a fake internet, inside the lab that `cargo xtask test` opens.
//! Tests ask the servers' own logs and the kernel, not terok, whether something got out.

mod container;
mod cri;
mod engine;
mod inet;
pub mod kubernetes;
mod vault;

pub use container::{Container, Ended, Pod, Recipe, Running, kill};
pub use engine::{Engine, Mode, Net, major, networks, networks_anew};
pub use inet::{
    Site, bad_addresses, bad_blocks, host_port, on_the_host, outside, queries, seen, seen_at, site,
};
pub use vault::{Answer, Locked, PASSPHRASE, Service, Vault, headers, secret};

use std::sync::{Mutex, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// How fast a refusal must be (E5).
pub const AT_ONCE: f64 = 50.0;

/// Held by every test while it runs; exclusively by those that change what is installed.
static INSTALLED: RwLock<()> = RwLock::new(());

/// What a running test holds of the lab.
#[derive(Debug)]
pub struct Lab(#[expect(dead_code, reason = "held until the test ends")] Held);

#[derive(Debug)]
enum Held {
    Shared(#[expect(dead_code, reason = "a guard")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "a guard")] RwLockWriteGuard<'static, ()>),
}

impl Lab {
    /// The lab with terok installed system-wide, or `None`, said aloud, outside of it.
    pub fn open() -> Option<Self> {
        in_lab().then(|| {
            let lab = Lab(Held::Shared(INSTALLED.read().unwrap_or_else(|poisoned| poisoned.into_inner())));
            install_once();
            lab
        })
    }

    /// The same with this engine's daemon, or `None`, said aloud, where it does not run.
    pub fn with(engine: Engine) -> Option<Self> {
        Self::open().filter(|_| engine.starts())
    }

    /// The lab for this test alone, which may uninstall and must leave a system-wide installation behind.
    pub fn alone() -> Option<Self> {
        in_lab().then(|| {
            let lab = Lab(Held::Alone(INSTALLED.write().unwrap_or_else(|poisoned| poisoned.into_inner())));
            install_once();
            lab
        })
    }
}

/// Installs system-wide, as root.
pub fn install() {
    set_up(&[]);
}

/// `terok setup --system` with more options. One after the other: tests that run side by side may each want it.
#[track_caller]
pub fn set_up(more: &[&str]) -> String {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    Mode::Rootful.terok(&[&["setup", "--system"], more].concat()).succeeded()
}

fn install_once() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(install);
}

fn in_lab() -> bool {
    let inside = std::env::var_os("TEROK_LAB").is_some();
    if !inside {
        terok_need::missing("podman", "not in the lab, which cargo xtask test opens");
    }
    inside
}

/// Longer than anything takes, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `ready` holds, and fails when it never does; `what` is for the message. Gives the time it took.
#[track_caller]
pub fn eventually(what: &str, mut ready: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    while !ready() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(pause);
        // What is looked at takes time from what is waited for.
        pause = (pause * 3 / 2).min(Duration::from_millis(200));
    }
    started.elapsed()
}

/// Writes one test as two, `NAME::rootless` and `NAME::rootful`.
#[macro_export]
macro_rules! both_modes {
    ($($(#[$doc:meta])* fn $name:ident($mode:ident: $kind:ty) $body:block)*) => {$(
        $(#[$doc])*
        mod $name {
            use super::*;
            fn test($mode: $kind) $body
            #[test]
            fn rootless() {
                let Some(_lab) = $crate::Lab::open() else { return };
                test($crate::Mode::Rootless);
            }
            #[test]
            fn rootful() {
                let Some(_lab) = $crate::Lab::open() else { return };
                test($crate::Mode::Rootful);
            }
        }
    )*};
}

/// Writes one test as two, `NAME::rootless` and `NAME::rootful`, which have the lab for themselves.
#[macro_export]
macro_rules! both_modes_alone {
    ($($(#[$doc:meta])* fn $name:ident($mode:ident: $kind:ty) $body:block)*) => {$(
        $(#[$doc])*
        mod $name {
            use super::*;
            fn test($mode: $kind) $body
            #[test]
            fn rootless() {
                let Some(_lab) = $crate::Lab::alone() else { return };
                test($crate::Mode::Rootless);
            }
            #[test]
            fn rootful() {
                let Some(_lab) = $crate::Lab::alone() else { return };
                test($crate::Mode::Rootful);
            }
        }
    )*};
}

/// Writes one test as one for each network, `NAME::sealed`, `NAME::sealed_rootful` and those of [`every_card!`].
#[macro_export]
macro_rules! every_network {
    ($($(#[$doc:meta])* fn $name:ident($net:ident: $kind:ty) $body:block)*) => {$(
        $(#[$doc])*
        mod $name {
            use super::*;
            fn test($net: $kind) $body
            $crate::on_networks! { sealed Sealed sealed_rootful SealedRootful slirp Slirp bridge Bridge rootful_bridge RootfulBridge pasta Pasta }
        }
    )*};
}

/// Writes one test as one for each network with a card, `NAME::slirp`, `NAME::bridge`, `NAME::rootful_bridge` and `NAME::pasta`.
#[macro_export]
macro_rules! every_card {
    ($($(#[$doc:meta])* fn $name:ident($net:ident: $kind:ty) $body:block)*) => {$(
        $(#[$doc])*
        mod $name {
            use super::*;
            fn test($net: $kind) $body
            $crate::on_networks! { slirp Slirp bridge Bridge rootful_bridge RootfulBridge pasta Pasta }
        }
    )*};
}

/// What [`every_network!`] and [`every_card!`] repeat: a test function for each network.
#[macro_export]
macro_rules! on_networks {
    ($($name:ident $net:ident)*) => {$(
        #[test]
        fn $name() {
            let Some(_lab) = $crate::Lab::open() else { return };
            if $crate::Net::$net.exists() {
                test($crate::Net::$net);
            }
        }
    )*};
}

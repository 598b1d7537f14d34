//! What goes where: the two installations, for the whole system and for one user.

use crate::host::Host;
use std::path::{Path, PathBuf};
use terok_policy::layout;

/// For whom terok is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every user of the machine, root included.
    System,
    /// One user's rootless Podman.
    User {
        /// Absolute home directory, pinned in the hook files (L6).
        home: PathBuf,
    },
}

/// An installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// For whom.
    pub scope: Scope,
    /// The user's configuration folder.
    pub config_home: PathBuf,
    /// Put before every path that is written; `/` for a real installation.
    pub destdir: PathBuf,
}

impl Target {
    /// The installation `host`'s person asks for. Root's Podman reads the system's hooks only, so root always gets [`Scope::System`].
    pub fn of(host: &Host, system: bool, destdir: Option<PathBuf>) -> Self {
        let scope =
            if system || !host.rootless() { Scope::System } else { Scope::User { home: host.home.clone() } };
        Target {
            scope,
            config_home: host.config_home.clone(),
            destdir: destdir.unwrap_or_else(|| host.root.clone()),
        }
    }

    /// The machine that the installation is for, as `host`'s person sees it: below a destdir there may be a whole one, as a pod sees
    /// its node; a package's has no processes.
    pub fn machine(&self, host: &Host) -> Host {
        Host { root: self.destdir.clone(), ..host.clone() }
    }

    /// Folder of `terok-hook`, `terok-shim` and `terok-supervisor`, without the destdir.
    pub fn bin_dir(&self) -> PathBuf {
        match &self.scope {
            Scope::System => PathBuf::from("/usr/libexec/terok"),
            Scope::User { .. } => self.share().join("bin"),
        }
    }

    /// Where the launcher goes, without the destdir.
    pub fn launcher(&self) -> PathBuf {
        match &self.scope {
            Scope::System => Path::new("/usr/local/bin").join(layout::LAUNCHER),
            Scope::User { .. } => self.bin_dir().join(layout::LAUNCHER),
        }
    }

    /// Where the hook files go, without the destdir. Not into the folder that Podman reads by itself: root's `podman build` and
    /// buildah read that one too and give up at a `precreate` hook ("unknown stage").
    pub fn hooks_dir(&self) -> PathBuf {
        self.share().join("hooks.d")
    }

    /// The drop-in that makes Podman read [`Target::hooks_dir`]; without the destdir.
    pub fn drop_in(&self) -> PathBuf {
        let config = match &self.scope {
            Scope::System => PathBuf::from("/etc"),
            Scope::User { .. } => self.config_home.clone(),
        };
        config.join("containers/containers.conf.d/50-terok.conf")
    }

    /// The drop-in that makes Podman know the shim; without the destdir.
    pub fn runtime_drop_in(&self) -> PathBuf {
        self.drop_in().with_file_name("50-terok-runtime.conf")
    }

    /// The shim's settings; without the destdir.
    pub fn shim_settings(&self) -> PathBuf {
        match &self.scope {
            Scope::System => PathBuf::from(layout::SHIM_SYSTEM),
            Scope::User { home } => home.join(layout::SHIM_USER),
        }
    }

    /// The settings file that `--all-containers` looks into; without the destdir.
    pub fn settings(&self) -> PathBuf {
        match &self.scope {
            Scope::System => PathBuf::from(layout::CONFIG_SYSTEM),
            Scope::User { home } => home.join(layout::CONFIG_USER),
        }
    }

    /// Folders that may be ours alone, innermost first: removed by `uninstall` where they are empty.
    pub fn folders(&self) -> Vec<PathBuf> {
        let settings = self.settings().parent().map(Path::to_path_buf);
        let mut folders = vec![self.bin_dir(), self.hooks_dir(), self.share()];
        folders.extend(settings);
        folders.extend(self.drop_in().ancestors().skip(1).take(2).map(Path::to_path_buf));
        if let Scope::User { .. } = &self.scope {
            folders.push(self.config_home.clone());
        }
        folders
    }

    /// `absolute` below the destdir.
    pub fn at(&self, absolute: &Path) -> PathBuf {
        self.destdir.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    fn share(&self) -> PathBuf {
        match &self.scope {
            Scope::System => PathBuf::from("/usr/share/terok"),
            Scope::User { home } => home.join(".local/share/terok"),
        }
    }

    /// A system installation at `/`.
    #[cfg(test)]
    pub(crate) fn tests_system() -> Self {
        Target { scope: Scope::System, config_home: "/home/u/.config".into(), destdir: "/".into() }
    }
}

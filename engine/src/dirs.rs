//! Where lighter keeps its files on the host.
//!
//! | what | as root | as a user |
//! | --- | --- | --- |
//! | data (`--root`, `LIGHTER_ROOT`) | `/var/lib/lighter` | `$XDG_DATA_HOME/lighter` |
//! | run time (`LIGHTER_RUN`) | `/run/lighter` | `$XDG_RUNTIME_DIR/lighter` |
//! | cache | `$XDG_CACHE_HOME/lighter` | the same |

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// The directories of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Images, root filesystems and the containers' disks.
    pub data: PathBuf,
    /// Locks, sockets and logs of running containers.
    pub run: PathBuf,
    /// Guest kernels.
    pub cache: PathBuf,
}

/// A directory that cannot be found or made.
#[derive(Debug, thiserror::Error)]
pub enum DirsError {
    /// The environment names none.
    #[error("no place for {what}: neither {variable} nor HOME is set")]
    NoHome {
        /// What would be there.
        what: &'static str,
        /// The variable that would name it.
        variable: &'static str,
    },
    /// The host refuses it.
    #[error("cannot make the directory {}; choose another one with {fix}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// How to choose another one.
        fix: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else could have put traps in it.
    #[error("the directory {} belongs to another user; set LIGHTER_RUN to one of your own", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
}

impl Dirs {
    /// The directories for this user and environment. `root` (the option `--root`) goes before `LIGHTER_ROOT`.
    pub fn find(root: Option<&Path>) -> Result<Self, DirsError> {
        let is_root = rustix::process::geteuid().is_root();
        Self::from_environment(root, is_root, |name| std::env::var_os(name))
    }

    fn from_environment(
        root: Option<&Path>,
        is_root: bool,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, DirsError> {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // XDG: a relative path in one of its variables is to be ignored.
        let xdg = |name| path(name).filter(|path| path.is_absolute());
        let home = |what, variable, below: &str| {
            path("HOME").map(|home| home.join(below)).ok_or(DirsError::NoHome { what, variable })
        };
        let data = match root.map(Path::to_owned).or_else(|| path("LIGHTER_ROOT")) {
            Some(path) => path,
            None if is_root => "/var/lib/lighter".into(),
            None => xdg("XDG_DATA_HOME")
                .map_or_else(|| home("images", "XDG_DATA_HOME", ".local/share"), Ok)?
                .join("lighter"),
        };
        let run = match path("LIGHTER_RUN") {
            Some(path) => path,
            None if is_root => "/run/lighter".into(),
            None => match xdg("XDG_RUNTIME_DIR") {
                Some(path) => path.join("lighter"),
                None => format!("/tmp/lighter-{}", rustix::process::geteuid().as_raw()).into(),
            },
        };
        let cache = match xdg("XDG_CACHE_HOME") {
            Some(path) => path.join("lighter"),
            None => home("guest kernels", "XDG_CACHE_HOME", ".cache")?.join("lighter"),
        };
        Ok(Self { data: absolute(data), run: absolute(run), cache })
    }

    /// Makes the data and run directories; the latter only for this user.
    pub fn create(&self) -> Result<(), DirsError> {
        create(&self.data, 0o755, "--root or LIGHTER_ROOT")?;
        create(&self.run, 0o700, "LIGHTER_RUN")?;
        let owner = std::fs::metadata(&self.run).map(|metadata| metadata.uid());
        if owner.is_ok_and(|uid| uid != rustix::process::geteuid().as_raw()) {
            return Err(DirsError::Foreign { path: self.run.clone() });
        }
        Ok(())
    }
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn create(path: &Path, mode: u32, fix: &'static str) -> Result<(), DirsError> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|source| DirsError::Create {
        path: path.to_owned(),
        fix,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(root: Option<&str>, is_root: bool, environment: &[(&str, &str)]) -> Result<Dirs, DirsError> {
        let variable =
            |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        Dirs::from_environment(root.map(Path::new), is_root, variable)
    }

    #[test]
    fn root_has_the_system_directories_and_a_user_those_of_xdg() {
        let root = find(None, true, &[("HOME", "/root")]).unwrap();
        assert_eq!(
            root,
            Dirs {
                data: "/var/lib/lighter".into(),
                run: "/run/lighter".into(),
                cache: "/root/.cache/lighter".into()
            }
        );
        let user = find(None, false, &[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/7")]).unwrap();
        assert_eq!(user.data, Path::new("/home/u/.local/share/lighter"));
        assert_eq!(user.run, Path::new("/run/user/7/lighter"));
    }

    #[test]
    fn the_option_goes_before_the_variable_and_the_variable_before_the_default() {
        let environment = [("HOME", "/root"), ("LIGHTER_ROOT", "/b"), ("LIGHTER_RUN", "/c")];
        assert_eq!(find(Some("/a"), true, &environment).unwrap().data, Path::new("/a"));
        let dirs = find(None, true, &environment).unwrap();
        assert_eq!((dirs.data.as_path(), dirs.run.as_path()), (Path::new("/b"), Path::new("/c")));
    }

    #[test]
    fn relative_xdg_paths_are_ignored_and_a_missing_home_is_said() {
        let dirs = find(None, false, &[("HOME", "/home/u"), ("XDG_DATA_HOME", "rel")]).unwrap();
        assert_eq!(dirs.data, Path::new("/home/u/.local/share/lighter"));
        assert!(find(None, false, &[]).unwrap_err().to_string().contains("HOME"));
    }
}

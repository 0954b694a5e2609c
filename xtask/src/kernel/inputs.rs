//! What a kernel is made from; the hash of it names the kernel in the cache.

use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::{build, step};

/// Debian's package of the source.
const PACKAGE: &str = "linux-source-6.12";
/// Changes whenever the same inputs would give another kernel, because the build itself changed.
const RECIPE: &str = "1";

/// One patch.
pub struct Patch {
    /// Where it is.
    pub path: PathBuf,
    text: Vec<u8>,
}

/// Everything that decides what the kernel is.
pub struct Inputs {
    version: String,
    compiler: String,
    fragment: String,
    patches: Vec<Patch>,
}

impl Inputs {
    /// Reads `resources/kernel` and asks for the versions of source and compiler.
    pub fn read() -> anyhow::Result<Self> {
        let directory = build::repository().join("resources/kernel");
        let fragment = directory.join("lighter.config");
        let inputs = Self {
            version: package_version()?,
            compiler: first_line(Command::new("gcc").arg("--version"))?
                + &first_line(Command::new("ld").arg("--version"))?,
            fragment: std::fs::read_to_string(&fragment)
                .with_context(|| format!("cannot read {}", fragment.display()))?,
            patches: patches(&directory.join("patches"))?,
        };
        inputs.check_series(&directory.join("version"))?;
        Ok(inputs)
    }

    /// Version of the Debian package, such as `6.12.117-1~deb12u1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The configuration fragment.
    pub fn fragment(&self) -> &str {
        &self.fragment
    }

    /// The patches, in the order of their names.
    pub fn patches(&self) -> &[Patch] {
        &self.patches
    }

    /// SHA-256 over all of it, in hexadecimal.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        let texts = [RECIPE, &self.version, &self.compiler, &self.fragment].map(str::as_bytes);
        for part in texts.into_iter().chain(self.patches.iter().map(|patch| patch.text.as_slice())) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hex(&hash.finalize())
    }

    /// A newer point release than the pinned one is fine, another series or an older release is not: the
    /// patches are made for the pin.
    fn check_series(&self, pin: &Path) -> anyhow::Result<()> {
        let pinned =
            std::fs::read_to_string(pin).with_context(|| format!("cannot read {}", pin.display()))?;
        let pinned = pinned.trim_ascii();
        let (have, want) = (release(&self.version), release(pinned));
        match (have, want) {
            (Some(have), Some(want)) if have[..2] == want[..2] && have[2] >= want[2] => Ok(()),
            _ => bail!(
                "{PACKAGE} is version {}, but {pinned} or a newer release of its series is needed: run \
                 `apt-get update && apt-get install {PACKAGE}`",
                self.version
            ),
        }
    }
}

/// SHA-256 of a file, in hexadecimal.
pub fn file_hash(path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut Writer(&mut hash))?;
    Ok(hex(&hash.finalize()))
}

struct Writer<'a>(&'a mut Sha256);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `6.12.117-1~deb12u1` as `[6, 12, 117]`.
fn release(version: &str) -> Option<[u32; 3]> {
    let mut numbers = version.split('-').next()?.split('.').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some([next()?, next()?, next()?])
}

fn package_version() -> anyhow::Result<String> {
    step::run_quietly(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", PACKAGE]))
        .with_context(|| format!("cannot tell the version of the package {PACKAGE}"))
}

fn first_line(command: &mut Command) -> anyhow::Result<String> {
    let text = step::run_quietly(command)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn patches(directory: &Path) -> anyhow::Result<Vec<Patch>> {
    let context = || format!("cannot read the patches in {}", directory.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(context)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| Ok(Patch { text: std::fs::read(&path).with_context(context)?, path }))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(fragment: &str, patch: &str) -> Inputs {
        let patches = vec![Patch { path: "0001-x.patch".into(), text: patch.into() }];
        Inputs { version: "6.12.117-1".into(), compiler: "gcc 12".into(), fragment: fragment.into(), patches }
    }

    #[test]
    fn the_hash_depends_on_every_input_and_on_where_one_ends() {
        let hash = inputs("ab", "c").hash();
        assert_eq!(hash, inputs("ab", "c").hash());
        assert_eq!(hash.len(), 64);
        assert_ne!(hash, inputs("a", "bc").hash());
        assert_ne!(hash, Inputs { version: "6.12.118-1".into(), ..inputs("ab", "c") }.hash());
        assert_ne!(hash, Inputs { compiler: "gcc 13".into(), ..inputs("ab", "c") }.hash());
    }

    #[test]
    fn the_pin_admits_newer_point_releases_only() {
        let pin = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(pin.path(), "6.12.117-1~deb12u1\n").unwrap();
        let with = |version: &str| Inputs { version: version.into(), ..inputs("", "") };
        assert!(with("6.12.117-1~deb12u1").check_series(pin.path()).is_ok());
        assert!(with("6.12.201-1").check_series(pin.path()).is_ok());
        for other in ["6.12.95-1", "6.13.200-1", "6.12", "junk"] {
            let error = with(other).check_series(pin.path()).unwrap_err().to_string();
            assert!(error.contains(other) && error.contains("apt-get"), "{error}");
        }
    }

    #[test]
    fn a_files_hash_is_its_sha256() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        assert!(file_hash(file.path()).unwrap().starts_with("ba7816bf8f01cfea"));
    }
}

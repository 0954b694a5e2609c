//! `--secret`: small files that a container finds in [`PLACE`], in memory.
//!
//! Only their paths are kept. What they hold is read at each start, goes to the agent over vsock and into a tmpfs
//! there: it is on no command line, in no environment and on no disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use agent_protocol::mount::Secret;

use super::{MountKind, MountSpec, VolumeError};

/// Where a container finds its secrets.
pub const PLACE: &str = "/run/secrets";
/// Bytes of one secret: a key or a certificate with its chain.
const MAX_BYTES: u64 = 64 << 10;
/// Bytes of all of a container: they go in one message.
const MAX_ALL: usize = 512 << 10;
/// Longest name, as on any file system.
const MAX_NAME: usize = 255;

/// The mount that `options`, each NAME\[=FILE\], ask for; without FILE it is the file NAME. `None` if there are none.
pub fn parse(options: &[String]) -> Result<Option<MountSpec>, VolumeError> {
    let mut files = BTreeMap::new();
    for text in options {
        let (name, file) = text.split_once('=').unwrap_or((text, text));
        let error =
            |why: &str| VolumeError::Syntax { option: "--secret", text: text.clone(), why: why.into() };
        if name.is_empty()
            || name.len() > MAX_NAME
            || name.contains(['/', '\0'])
            || [".", ".."].contains(&name)
        {
            return Err(error("has no name of a file before the =: write NAME=FILE"));
        }
        if file.is_empty() {
            return Err(error("names no file: write NAME=FILE"));
        }
        if files.insert(name.to_owned(), PathBuf::from(file)).is_some() {
            return Err(error("has a name that another secret has"));
        }
    }
    let mount =
        |files| MountSpec { kind: MountKind::Secrets { files }, target: PLACE.to_owned(), read_only: true };
    Ok((!files.is_empty()).then(|| mount(files)))
}

/// What the files hold now.
pub fn read(files: &BTreeMap<String, PathBuf>) -> Result<Vec<Secret>, VolumeError> {
    let mut all = 0;
    let secrets = files.iter().map(|(name, path)| {
        let content = content(path)?;
        all += content.len();
        Ok(Secret { name: name.clone(), content })
    });
    let secrets = secrets.collect::<Result<_, VolumeError>>()?;
    if all > MAX_ALL {
        return Err(VolumeError::Secret { why: format!("they have {all} bytes, {MAX_ALL} are possible") });
    }
    Ok(secrets)
}

fn content(path: &Path) -> Result<Vec<u8>, VolumeError> {
    let failed = |source| VolumeError::File { action: "read the secret", path: path.to_owned(), source };
    let mut content = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_BYTES {
        return Err(VolumeError::Secret {
            why: format!("{} is larger than {MAX_BYTES} bytes", path.display()),
        });
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(options: &[&str]) -> Result<BTreeMap<String, PathBuf>, String> {
        let options: Vec<String> = options.iter().map(|text| (*text).to_owned()).collect();
        match parse(&options).map_err(|error| error.to_string())?.map(|mount| mount.kind) {
            Some(MountKind::Secrets { files }) => Ok(files),
            _ => Ok(BTreeMap::new()),
        }
    }

    #[test]
    fn a_secret_has_a_name_and_a_file() {
        let found = files(&["key=/a/b=c", "token"]).unwrap();
        let expected = [("key", "/a/b=c"), ("token", "token")].map(|(name, file)| (name.into(), file.into()));
        assert_eq!(found, BTreeMap::from(expected));
        assert_eq!(files(&[]).unwrap(), BTreeMap::new());
        for wrong in ["", "=f", "a/b=f", "..=f", "a="] {
            assert!(files(&[wrong]).unwrap_err().contains("--secret"), "{wrong}");
        }
        assert!(files(&["a=1", "a=2"]).unwrap_err().contains("another secret"));
    }

    #[test]
    fn a_secret_is_read_when_it_is_needed_and_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let files = BTreeMap::from([("key".to_owned(), file.path().to_owned())]);
        std::fs::write(file.path(), "hunter2").unwrap();
        let secrets = read(&files).unwrap();
        assert_eq!(secrets[0].content, b"hunter2");
        assert!(!format!("{secrets:?}").contains("104, 117"), "{secrets:?}");
        std::fs::write(file.path(), vec![0; MAX_BYTES as usize + 1]).unwrap();
        assert!(read(&files).unwrap_err().to_string().contains("larger than 65536 bytes"));
    }
}

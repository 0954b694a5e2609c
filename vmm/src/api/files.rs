//! Files that a client names.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Bytes that are read of a CPU template. Stops a file from filling memory.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// A regular file, or a block device, that opens for reading.
pub fn check_readable(path: &Path) -> io::Result<()> {
    // Without O_NONBLOCK a FIFO would make this wait.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file and no block device"))
}

/// A CPU template: the value itself, or what the file holds that a configuration names in its place.
pub fn template(value: &serde_json::Value) -> io::Result<serde_json::Value> {
    let Some(path) = value.as_str() else { return Ok(value.clone()) };
    check_readable(Path::new(path))?;
    let mut text = Vec::new();
    File::open(path)?.take(MAX_TEMPLATE_BYTES).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Opens a file or FIFO for lines that nobody waits for: writes fail where they would block.
pub fn open_sink(path: &Path) -> io::Result<File> {
    // For reading too: a FIFO then opens without a reader, and stays open when one goes.
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_there_or_in_a_file() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("template");
        std::fs::write(&path, "{\"msr_modifiers\":[]}").unwrap();
        let value = serde_json::json!({"msr_modifiers":[]});
        assert_eq!(template(&value).unwrap(), value);
        assert_eq!(template(&serde_json::json!(path)).unwrap(), value);
        assert!(template(&serde_json::json!(base.path())).is_err());
        std::fs::write(&path, "{").unwrap();
        assert!(template(&serde_json::json!(path)).is_err());
    }

    #[test]
    fn fifos_and_directories_are_no_disks_and_nothing_waits_for_them() {
        let base = tempfile::tempdir().unwrap();
        let fifo = base.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        assert!(check_readable(&fifo).is_err());
        assert!(check_readable(base.path()).is_err());
        assert!(check_readable(&base.path().join("missing")).is_err());
        assert!(open_sink(&fifo).is_ok());
        let file = base.path().join("file");
        open_sink(&file).unwrap();
        check_readable(&file).unwrap();
    }
}

//! The program `nft`, which changes the kernel's packet filter.

use std::io::{self, Write as _};
use std::process::{Child, Command, Stdio};

/// Directories where administration programs lie, for a PATH that leaves them out.
const SYSTEM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// A script that is being carried out.
#[derive(Debug)]
pub struct Running(Child);

/// Carries out `script`: all of it or nothing.
pub fn run(script: &str) -> io::Result<()> {
    start(script)?.finish()
}

/// As [`run`], while the caller does something else.
pub fn start(script: &str) -> io::Result<Running> {
    let mut child = Command::new("nft")
        .env("PATH", search_path())
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // It reads everything before it says anything.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    match written {
        // An nft that ends early says why on stderr.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = child.wait();
            Err(error)
        }
        _ => Ok(Running(child)),
    }
}

impl Running {
    /// Waits for the end.
    pub fn finish(self) -> io::Result<()> {
        let output = self.0.wait_with_output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = crate::text::printable(&output.stderr);
        Err(io::Error::other(format!("nft ended with {}: {said}", output.status)))
    }
}

/// The program `name` as found in PATH and where administration programs lie.
pub fn find(name: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&search_path()).map(|directory| directory.join(name)).find(|path| path.is_file())
}

fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:{SYSTEM_PATH}")
}

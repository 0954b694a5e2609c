//! Builds the micro-guest with rustc and the system's linker; no target beside the host's own is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::step;

/// Where its source is.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/micro_guest");

/// Builds it in `directory` and gives the ELF file.
pub fn build(directory: &Path) -> anyhow::Result<PathBuf> {
    let source = Path::new(SOURCE);
    let program = directory.join("micro-guest");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols"]);
    // The linker of the system: its garbage collection takes what `core` keeps for unwinding.
    rustc.args(["-Clinker-features=-lld", "-Crelocation-model=static"]);
    rustc.args(["-Clink-args=-nostdlib -nostartfiles -static -no-pie"]);
    rustc.args(["-Clink-args=-Wl,--build-id=none,-z,max-page-size=4096"]);
    rustc.arg(format!("-Clink-arg=-Wl,-T,{}", source.join("link.ld").display()));
    step::run_quietly(rustc.arg("-o").arg(&program).arg(source.join("main.rs")))?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_has_an_entry_for_each_vmm() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(build(directory.path()).unwrap()).unwrap();
        assert_eq!(bytes[..4], *b"\x7fELF");
        let entry = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
        assert!((0x20_0000..0x30_0000).contains(&entry), "{entry:#x}");
        // Name "Xen", type 18: where PVH starts, a 32-bit address.
        let note = [&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0], &b"Xen\0"[..]].concat();
        assert_eq!(bytes.windows(note.len()).filter(|window| *window == note).count(), 1);
    }
}

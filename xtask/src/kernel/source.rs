//! The kernel's source tree: Debian's tarball with our patches.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::inputs::Patch;
use crate::step;

/// What the package installs.
const TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";
/// What our build never opens, as tar's patterns: two thirds of the files. Each directory's Kconfig stays.
const UNUSED: [&str; 23] = [
    "*.dts",
    "*.dtsi",
    "*/Documentation/*.rst",
    "*/Documentation/*.svg",
    "*/Documentation/*.txt",
    "*/Documentation/*.yaml",
    "*/arch/[!x]*/*.[chS]",
    "*/arch/xtensa/*.[chS]",
    "*/drivers/clk/*.[ch]",
    "*/drivers/gpu/*.[ch]",
    "*/drivers/iio/*.[ch]",
    "*/drivers/infiniband/*.[ch]",
    "*/drivers/media/*.[ch]",
    "*/drivers/net/ethernet/*.[ch]",
    "*/drivers/net/wireless/*.[ch]",
    "*/drivers/pinctrl/*.[ch]",
    "*/drivers/scsi/*.[ch]",
    "*/drivers/staging/*.[ch]",
    "*/drivers/usb/*.[ch]",
    "*/drivers/video/*.[ch]",
    "*/sound/*.[ch]",
    "*/tools/perf/*",
    "*/tools/testing/*",
];

/// Unpacks the source into the new directory `tree`.
pub fn unpack(tree: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(tree).with_context(|| format!("cannot make {}", tree.display()))?;
    let mut tar = Command::new("tar");
    tar.args(UNUSED.map(|pattern| format!("--exclude={pattern}")));
    tar.args(["--extract", "--strip-components=1", "--file", TARBALL, "--directory"]).arg(tree);
    tar.env("XZ_DEFAULTS", "--threads=0");
    step::run_quietly(&mut tar).map(drop)
}

/// Applies the patches in order.
pub fn patch(tree: &Path, patches: &[Patch]) -> anyhow::Result<()> {
    for patch in patches {
        let mut command = Command::new("patch");
        command.args(["--strip=1", "--batch", "--forward", "--silent", "--directory"]).arg(tree);
        command.arg("--input").arg(&patch.path);
        step::run_quietly(&mut command)
            .with_context(|| format!("{} does not apply to this release", patch.path.display()))?;
    }
    Ok(())
}

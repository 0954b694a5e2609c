//! Image to root file system: `lighter pull` (to one EROFS file) beside `skopeo copy` and `umoci unpack`
//! (to a directory), from the same OCI archive of a Debian root, as root, page cache warm for both.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;

use super::report::{Report, Row};
use super::stats::Samples;
use crate::{build, deps, step};

/// Runs both, in turn.
pub fn run(runs: usize) -> anyhow::Result<Report> {
    deps::ensure(deps::DEMO)?;
    deps::ensure(deps::TEST)?;
    let lighter = build::lighter()?;
    let scratch = tempfile::tempdir()?;
    let layout = step::step("making an image of debootstrap's minbase", || make_image(scratch.path()))?;
    let source = format!("oci:{}:latest", layout.display());
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    step::step("measuring", || {
        for round in 0..=runs {
            let a = time(|| pull(&lighter, &source, &scratch.path().join("store")))?;
            let b = time(|| unpack(&source, &scratch.path().join("peer")))?;
            if round > 0 {
                ours.push(a);
                theirs.push(b);
            }
            std::fs::remove_dir_all(scratch.path().join("store"))?;
            std::fs::remove_dir_all(scratch.path().join("peer"))?;
        }
        Ok(())
    })?;
    Ok(Report {
        title: "image to root file system",
        peer: "skopeo + umoci".into(),
        notes: vec![
            "Debian minbase made by debootstrap, one gzip layer, each run into an empty store".into(),
        ],
        rows: vec![Row { what: "image to root file system", unit: "s", lighter: ours, peer: theirs }],
    })
}

fn time(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn pull(lighter: &Path, source: &str, store: &Path) -> anyhow::Result<()> {
    step::run_quietly(Command::new(lighter).arg("--root").arg(store).args(["pull", "--unpack", source]))?;
    let built = std::fs::read_dir(store.join("rootfs"))?.count();
    anyhow::ensure!(built > 0, "lighter pull built no root file system");
    Ok(())
}

fn unpack(source: &str, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(directory)?;
    let copy = format!("oci:{}:latest", directory.join("layout").display());
    step::run_quietly(Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet", source, &copy]))?;
    let image = format!("{}:latest", directory.join("layout").display());
    step::run_quietly(Command::new("umoci").args(["unpack", "--image", &image]).arg(directory.join("bundle")))
        .map(drop)
}

fn make_image(scratch: &Path) -> anyhow::Result<std::path::PathBuf> {
    let tree = scratch.join("tree");
    step::run_quietly(Command::new("debootstrap").args(["--variant=minbase", "bookworm"]).arg(&tree))
        .context("debootstrap needs Debian's package archive")?;
    let layout = scratch.join("layout");
    let tagged = format!("{}:latest", layout.display());
    step::run_quietly(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    step::run_quietly(Command::new("umoci").args(["new", "--image", &tagged]))?;
    step::run_quietly(Command::new("umoci").args(["insert", "--image", &tagged]).arg(&tree).arg("/"))?;
    Ok(layout)
}

//! What confinement costs: a VMM in its cage beside one with `--no-sandbox`, in turn.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use jailer::child::{Namespaces, spawn};
use rustix::io::{FdFlags, fcntl_setfd};

use super::report::{Report, Row};
use super::stats::Samples;
use super::{guest_init, memory, monotonic};
use crate::{build, deps, kernel, step};

/// Starts of each kind in a round.
const STARTS: usize = 10;
/// The guest runs for so long before the VMM's memory is looked at.
const SETTLE: Duration = Duration::from_millis(300);

/// Runs both, in turn.
pub fn run(runs: usize) -> anyhow::Result<Report> {
    deps::ensure(deps::KERNEL)?;
    let kernel = kernel::ensure()?;
    let program = build::machine(&build::lighter()?)?;
    let scratch = tempfile::tempdir()?;
    let disk = guest_init::disk(scratch.path())?;
    let mut starts: [Samples; 2] = Default::default();
    let mut private: [Samples; 2] = Default::default();
    step::step("measuring", || {
        for round in 0..=runs {
            for number in 0..STARTS * 2 {
                let (kind, look) = (number % 2, number < 2);
                let (start_ms, kib) = one(&program, &kernel, &disk, scratch.path(), kind == 0, look)?;
                // The first round is for warming up.
                if round > 0 {
                    starts[kind].push(start_ms);
                    kib.into_iter().for_each(|kib| private[kind].push(kib));
                }
            }
        }
        Ok(())
    })?;
    let ([caged, free], [caged_kib, free_kib]) = (starts, private);
    let added = |caged: &Samples, free: &Samples| {
        caged.median().unwrap_or_default() - free.median().unwrap_or_default()
    };
    let notes = vec![
        format!("added to a start: {:.3} ms of at most 2", added(&caged, &free)),
        format!("added to the VMM's private memory: {:.0} KiB of at most 1024", added(&caged_kib, &free_kib)),
    ];
    Ok(Report {
        title: "sandbox",
        peer: "--no-sandbox".into(),
        notes,
        rows: vec![
            Row { what: "spawn to the first guest instruction", unit: "ms", lighter: caged, peer: free },
            Row { what: "private memory of the VMM", unit: "KiB", lighter: caged_kib, peer: free_kib },
        ],
    })
}

fn one(
    program: &Path,
    kernel: &Path,
    disk: &Path,
    scratch: &Path,
    caged: bool,
    look: bool,
) -> anyhow::Result<(f64, Option<f64>)> {
    let (vsock, control) = (scratch.join("v.sock"), scratch.join("control.sock"));
    let _ = std::fs::remove_file(&vsock);
    let _ = std::fs::remove_file(&control);
    let config = serde_json::json!({
        "vcpus": 1, "mem_size_mib": 256, "kernel": {"path": kernel, "cmdline": "root=/dev/vda ro init=/init"},
        "disks": [{"path": disk, "read_only": true}], "vsock": {"guest_cid": 3, "uds_path": vsock},
        "balloon": true, "console_log": scratch.join("console"), "control": control,
    });
    let mut text = tempfile::tempfile()?;
    text.write_all(&serde_json::to_vec(&config)?)?;
    text.rewind()?;
    let (reader, writer) = std::io::pipe()?;
    let log = File::create(scratch.join("vmm.log"))?;
    let mut arguments = vec!["vmm".to_owned(), "--config-fd".to_owned(), inherited(text.as_fd())?];
    arguments.extend(["--event-fd".to_owned(), inherited(writer.as_fd())?]);
    let root = rustix::process::geteuid().is_root();
    let namespaces = match (caged, root) {
        (false, _) => Namespaces::None,
        (true, true) => Namespaces::Pid,
        (true, false) => Namespaces::User,
    };
    match caged {
        true => arguments.extend(["--cage".to_owned(), if root { "root" } else { "user" }.to_owned()]),
        false => arguments.push("--no-seccomp".to_owned()),
    }
    let begin = monotonic();
    let mut child = spawn(program, &arguments, log.as_fd(), namespaces).context("cannot start the VMM")?;
    drop((writer, text));
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line)?;
    let event: serde_json::Value = serde_json::from_str(&line).context("the VMM reported nothing")?;
    let first = event["first_run_ns"].as_f64();
    let said = || std::fs::read_to_string(scratch.join("vmm.log")).unwrap_or_default();
    ensure!(first.is_some(), "the VMM did not start: {line} {}", said());
    let start_ms = first.unwrap_or_default() / 1e6 - begin * 1e3;
    let kib = match look {
        true => {
            std::thread::sleep(SETTLE);
            Some(memory::footprint(child.id(), &["vmlinux", "init.erofs"])?.private_kib as f64)
        }
        false => None,
    };
    child.kill()?;
    child.wait()?;
    Ok((start_ms, kib))
}

/// The number of `fd`, which children inherit until it is closed.
fn inherited(fd: BorrowedFd<'_>) -> anyhow::Result<String> {
    fcntl_setfd(fd, FdFlags::empty())?;
    Ok(fd.as_raw_fd().to_string())
}

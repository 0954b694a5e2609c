//! Virtio-blk from ring 3: the micro-guest reads a file under lighter and under QEMU, in turn.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::micro::{Bench, Lighter, Qemu};
use super::qemu;
use super::report::{Report, Row};
use super::stats::Samples;
use crate::{deps, step};

/// Size of the disk: more than a processor's caches, and soon read as a whole.
const DISK_BYTES: u64 = 128 << 20;

/// One figure: how the micro-guest reads.
struct Case {
    what: &'static str,
    bytes: u64,
    random: u8,
    depth: u64,
    warm: u64,
    operations: u64,
    /// The file is put out of the page cache before.
    cold: bool,
}

const fn case(what: &'static str, bytes: u64, random: u8, depth: u64, warm: u64, operations: u64) -> Case {
    Case { what, bytes, random, depth, warm, operations, cold: false }
}

/// 200,000 random reads touch practically every page of the disk once before what is measured.
const CASES: [Case; 4] = [
    case("4 KiB random read, depth 1, page cache", 4096, 1, 1, 200_000, 100_000),
    case("4 KiB random read, depth 32, page cache", 4096, 1, 32, 200_000, 500_000),
    case("1 MiB sequential read, depth 1, page cache", 1 << 20, 0, 1, 512, 4096),
    Case { cold: true, ..case("4 KiB random read, depth 32, from the medium", 4096, 1, 32, 0, 5_000) },
];

/// The settings of QEMU that are tried; the fastest one of each case counts.
const AIO: [&str; 2] = ["io_uring", "threads"];

/// Runs all, in turn.
pub fn run(runs: usize) -> anyhow::Result<Report> {
    deps::ensure(deps::BENCH)?;
    let bench = Bench::prepare()?;
    let disk = make_disk(bench.scratch())?;
    let mut rows = Vec::new();
    for case in &CASES {
        rows.push(step::step(case.what, || measure(&bench, &disk, case, runs))?);
    }
    Ok(Report {
        title: "block",
        peer: "QEMU virtio-blk".into(),
        notes: vec![
            format!(
                "{}; -M microvm, iothread with its default polling, cache=writeback, the faster of \
                     aio=io_uring and aio=threads in each row",
                qemu::version()?
            ),
            format!(
                "{} MiB file, one vCPU, one queue, EVENT_IDX; time for one request in the micro-guest's \
                     own cycles, which polls the used ring",
                DISK_BYTES >> 20
            ),
        ],
        rows,
    })
}

fn measure(bench: &Bench, disk: &Path, case: &Case, runs: usize) -> anyhow::Result<Row> {
    let mut ours = Samples::default();
    let mut theirs = AIO.map(|_| Samples::default());
    let test = format!(
        "micro.test=read micro.bytes={} micro.random={} micro.depth={} micro.warm={} micro.operations={}",
        case.bytes, case.random, case.depth, case.warm, case.operations
    );
    let disks = serde_json::json!([{"path": disk, "read_only": true}]);
    let lighter = Lighter { bench, disks, net: serde_json::json!([]) };
    for round in 0..=runs {
        prepare_cache(disk, case)?;
        let a = lighter.run(&test)?.micros(bench.clock);
        let mut peers = [0.0; AIO.len()];
        for (aio, figure) in AIO.iter().zip(&mut peers) {
            prepare_cache(disk, case)?;
            *figure = Qemu { bench, devices: devices(disk, aio) }.run(&test)?.micros(bench.clock);
        }
        if round > 0 {
            ours.push(a);
            theirs.iter_mut().zip(peers).for_each(|(samples, figure)| samples.push(figure));
        }
    }
    let fastest = theirs
        .into_iter()
        .min_by(|a, b| a.median().partial_cmp(&b.median()).unwrap_or(std::cmp::Ordering::Equal));
    Ok(Row { what: case.what, unit: "µs", lighter: ours, peer: fastest.unwrap_or_default() })
}

fn devices(disk: &Path, aio: &str) -> Vec<String> {
    let drive = format!("id=disk,file={},format=raw,if=none,readonly=on,aio={aio}", disk.display());
    ["-drive", &drive, "-object", "iothread,id=io", "-device", "virtio-blk-device,drive=disk,iothread=io"]
        .map(str::to_owned)
        .into()
}

/// A file of bytes that are not zero, written to the medium.
fn make_disk(directory: &Path) -> anyhow::Result<PathBuf> {
    let path = directory.join("disk");
    let mut file = File::create(&path)?;
    let block: Vec<u8> =
        (0..1u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for _ in 0..DISK_BYTES >> 20 {
        file.write_all(&block)?;
    }
    file.sync_all().context("cannot write the benchmark's disk")?;
    Ok(path)
}

/// The whole file in the page cache, or nothing of it.
fn prepare_cache(disk: &Path, case: &Case) -> anyhow::Result<()> {
    let mut file = File::open(disk)?;
    if case.cold {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    } else {
        std::io::copy(&mut file, &mut std::io::sink())?;
    }
    Ok(())
}

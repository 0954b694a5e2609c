//! Virtio-net from ring 3: the micro-guest sends frames through a TAP under lighter and under QEMU, in turn.
//!
//! The TAP is in a network namespace of the benchmark's own. For the echo an nftables rule sends each frame
//! that comes out of the guest back into it, in the kernel, so that no third program needs a processor.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use anyhow::Context;
use rustix::thread::UnshareFlags;

use super::micro::{Bench, Lighter, Qemu};
use super::report::{Report, Row};
use super::stats::Samples;
use super::{qemu, tap};
use crate::{deps, step};

/// Largest frame that a TAP carries: 65,521 bytes behind an Ethernet header.
const LARGE: u64 = 65_535;
const SMALL: u64 = 64;

/// One figure: what the micro-guest sends.
struct Case {
    what: &'static str,
    test: &'static str,
    bytes: u64,
    depth: u64,
    operations: u64,
}

const fn case(what: &'static str, test: &'static str, bytes: u64, depth: u64, operations: u64) -> Case {
    Case { what, test, bytes, depth, operations }
}

const CASES: [Case; 5] = [
    case("64-byte frames sent", "send", SMALL, 128, 1_000_000),
    case("64 KiB frames sent", "send", LARGE, 128, 100_000),
    case("64-byte frames there and back", "echo", SMALL, 64, 500_000),
    case("64 KiB frames there and back", "echo", LARGE, 32, 50_000),
    case("64-byte round trip, one at a time", "echo", SMALL, 1, 50_000),
];

/// Runs all, in turn.
pub fn run(runs: usize) -> anyhow::Result<Report> {
    // For `ip` and `nft`.
    deps::ensure(deps::TEST)?;
    deps::ensure(deps::BENCH)?;
    let bench = Bench::prepare()?;
    // SAFETY: only this thread, and what it starts, goes into the new namespace, which it never leaves;
    // nothing else of this program uses the network.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .context("cannot make a network namespace; run the benchmark as root")?;
    make_tap()?;
    let mut rows = Vec::new();
    for case in &CASES {
        rows.push(step::step(case.what, || measure(&bench, case, runs))?);
    }
    Ok(Report {
        title: "net",
        peer: "QEMU virtio-net".into(),
        notes: vec![
            format!(
                "{}; -M microvm, -netdev tap, vhost=off; the same TAP for both, no offloads",
                qemu::version()?
            ),
            "one vCPU, one pair of queues, EVENT_IDX, mergeable buffers; time for one frame in the \
             micro-guest's own cycles, which polls the used ring"
                .into(),
        ],
        rows,
    })
}

fn measure(bench: &Bench, case: &Case, runs: usize) -> anyhow::Result<Row> {
    reflect(case.test == "echo")?;
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    let test = format!(
        "micro.test={} micro.bytes={} micro.depth={} micro.warm={} micro.operations={}",
        case.test,
        case.bytes,
        case.depth,
        case.operations / 10,
        case.operations
    );
    for round in 0..=runs {
        let a = {
            let tap: OwnedFd = tap::attach(NAME)?;
            let net = serde_json::json!([{"fd": tap.as_raw_fd(), "mac": [2, 0, 0, 0, 0, 9]}]);
            Lighter { bench, disks: serde_json::json!([]), net }.run(&test)?.micros(bench.clock)
        };
        let b = Qemu { bench, devices: devices() }.run(&test)?.micros(bench.clock);
        if round > 0 {
            ours.push(a);
            theirs.push(b);
        }
    }
    Ok(Row { what: case.what, unit: "µs", lighter: ours, peer: theirs })
}

const NAME: &str = "lighter-bench0";

fn devices() -> Vec<String> {
    let netdev = format!("tap,id=net,ifname={NAME},script=no,downscript=no,vhost=off");
    ["-netdev", &netdev, "-device", "virtio-net-device,netdev=net,mac=02:00:00:00:00:09"]
        .map(str::to_owned)
        .into()
}

/// A TAP that stays when nobody has it open, with room for the largest frame.
fn make_tap() -> anyhow::Result<()> {
    // Without IPv6 the host itself sends nothing.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok();
    let ip = |args: &[&str]| step::run_quietly(Command::new("ip").args(args));
    ip(&["tuntap", "add", "dev", NAME, "mode", "tap", "vnet_hdr"])?;
    ip(&["link", "set", NAME, "mtu", "65521", "txqueuelen", "1000", "up"])?;
    Ok(())
}

/// Whether what the guest sends comes back to it.
fn reflect(on: bool) -> anyhow::Result<()> {
    let nft = |rule: String| step::run_quietly(Command::new("nft").arg(rule)).map(drop);
    // There is none the first time.
    let _ = nft("delete table netdev bench".into());
    if on {
        let chain = format!("type filter hook ingress device {NAME} priority 0; fwd to {NAME};");
        nft(format!("table netdev bench {{\nchain in {{\n{chain}\n}}\n}}"))?;
    }
    Ok(())
}

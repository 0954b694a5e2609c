//! What `cargo xtask bench clone` measures within one process: clones of a Linux guest, differential snapshots
//! of it, and the pause of a full one. Prints one JSON object with the samples.
//!
//! `cargo bench -p vmm --bench clone -- [--rounds N] [--keep DIR]`; DIR gets a snapshot and its configuration.

#![allow(clippy::unwrap_used, reason = "a panic is how a benchmark fails")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use support::linux::Bench;
use vmm::config::{BlockEngine, DiskConfig, RestoreConfig, VmConfig, VsockConfig};
use vmm::control::{Client, Done, Request};
use vmm::vm::{Happening, Vm};

const MEM_SIZE_MIB: u32 = 256;
const TIMEOUT: Duration = Duration::from_secs(60);

fn main() {
    let (mut rounds, mut keep) = (50, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rounds" => rounds = args.next().unwrap().parse().unwrap(),
            "--keep" => keep = Some(PathBuf::from(args.next().unwrap())),
            // What cargo adds.
            _ => {}
        }
    }
    let bench = Bench::new("idle");
    let mut config = machine(&bench);
    let control = bench.path("control");
    config.control = Some(control.clone());
    let mut vm = Vm::build(&config).unwrap();
    vm.control_at(&control).unwrap();
    vm.start().unwrap();
    bench.wait_for(&mut vm, "waiting");
    vm.run_for(Duration::from_secs(1), |_| ()).unwrap();

    let ask = |vm: &mut Vm, request: Request| -> (f64, Done) {
        let control = control.clone();
        let client = std::thread::spawn(move || {
            let mut client = Client::connect(&control, TIMEOUT).unwrap();
            let begin = Instant::now();
            let done = client.ask(&request).unwrap();
            (begin.elapsed().as_secs_f64() * 1e3, done)
        });
        while !client.is_finished() {
            vm.run_for(Duration::from_millis(1), |_| ()).unwrap();
        }
        client.join().unwrap()
    };
    let snapshot = |name: String, base: Option<PathBuf>| Request::Snapshot {
        dir: bench.path(&name),
        base,
        track: true,
        stay_paused: false,
    };
    let (_, done) = ask(&mut vm, snapshot("idle".into(), None));
    assert!(done.paused_us.is_some());
    let idle = bench.path("idle");
    connect(&mut vm, &bench.path("vsock"), 1025);
    let (mut full_ms, mut full_pause_ms, mut base) = (Vec::new(), Vec::new(), PathBuf::new());
    for round in 0..rounds.min(10) {
        let name = format!("full{round}");
        let (ms, done) = ask(&mut vm, snapshot(name.clone(), None));
        full_ms.push(ms);
        full_pause_ms.push(done.paused_us.unwrap() as f64 / 1e3);
        base = bench.path(&name);
        vm.run_for(Duration::from_millis(100), |_| ()).unwrap();
    }
    let mut difference_ms = Vec::new();
    let (mut difference_pause_ms, mut difference_kib) = (Vec::new(), Vec::new());
    for round in 0..rounds.min(20) {
        vm.run_for(Duration::from_secs(1), |_| ()).unwrap();
        let name = format!("difference{round}");
        let (ms, done) = ask(&mut vm, snapshot(name.clone(), Some(base)));
        difference_ms.push(ms);
        difference_pause_ms.push(done.paused_us.unwrap() as f64 / 1e3);
        difference_kib.push(done.memory_bytes.unwrap() as f64 / 1024.0);
        base = bench.path(&name);
    }
    drop(vm);

    let clone_config = VmConfig { control: None, console_log: Some("/dev/null".into()), ..config.clone() };
    // The first clone of a process asks KVM what it supports.
    let mut clone_ms: Vec<f64> = (0..=rounds).map(|_| clone_in_process(&clone_config, &idle)).collect();
    clone_ms.remove(0);
    if let Some(keep) = keep {
        keep_template(&clone_config, &idle, &keep);
    }
    println!(
        "{}",
        serde_json::json!({
            "clone_ms": clone_ms,
            "full_ms": full_ms,
            "full_pause_ms": full_pause_ms,
            "difference_ms": difference_ms,
            "difference_pause_ms": difference_pause_ms,
            "difference_kib": difference_kib,
        })
    );
}

/// Milliseconds from the wish for a clone to its first instruction.
fn clone_in_process(config: &VmConfig, snapshot: &Path) -> f64 {
    let _ = std::fs::remove_file(&config.vsock.as_ref().unwrap().uds_path);
    let begin = now();
    let mut vm = Vm::from_snapshot(config, snapshot).unwrap();
    vm.start().unwrap();
    let mut first_run = None;
    while first_run.is_none() {
        vm.run_for(Duration::from_millis(1), |happening| {
            if let Happening::FirstRun { at_ns } = happening {
                first_run = Some(at_ns);
            }
        })
        .unwrap();
    }
    (first_run.unwrap() - begin) as f64 / 1e6
}

/// Connects to `port` of the guest.
fn connect(vm: &mut Vm, vsock: &Path, port: u32) {
    let mut client = UnixStream::connect(vsock).unwrap();
    client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
    let thread = std::thread::spawn(move || {
        let mut answer = String::new();
        BufReader::new(client).read_line(&mut answer).unwrap();
        assert!(answer.starts_with("OK"), "{answer}");
    });
    while !thread.is_finished() {
        vm.run_for(Duration::from_millis(1), |_| ()).unwrap();
    }
    thread.join().unwrap();
}

/// Puts the snapshot, its disks and the configuration of a clone into `keep`.
fn keep_template(config: &VmConfig, snapshot: &Path, keep: &Path) {
    let copy = |from: &Path, to: &Path| {
        let status = Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap();
        assert!(status.success());
    };
    let to = keep.join("snapshot");
    std::fs::create_dir_all(&to).unwrap();
    for name in ["memory", "state"] {
        copy(&snapshot.join(name), &to.join(name));
    }
    let mut kept = config.clone();
    for disk in &mut kept.disks {
        let to = keep.join(disk.path.file_name().unwrap());
        copy(&disk.path, &to);
        disk.path = to;
    }
    kept.vsock = Some(VsockConfig { guest_cid: 3, uds_path: keep.join("vsock") });
    kept.restore = Some(RestoreConfig::full(to));
    std::fs::write(keep.join("config.json"), serde_json::to_vec_pretty(&kept).unwrap()).unwrap();
}

/// A machine with the devices of a container's.
fn machine(bench: &Bench) -> VmConfig {
    let mut config = bench.config(MEM_SIZE_MIB);
    for name in ["rootfs", "layer"] {
        let path = bench.path(name);
        std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let read_only = name == "rootfs";
        config.disks.push(DiskConfig {
            path,
            read_only,
            serial: String::new(),
            engine: BlockEngine::default(),
            limits: Default::default(),
        });
    }
    config.vsock = Some(VsockConfig { guest_cid: 3, uds_path: bench.path("vsock") });
    config
}

/// CLOCK_MONOTONIC in nanoseconds.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

//! The APIs: how soon the VMM's one answers, how long a call takes, what it costs in memory; and the engine's.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::engine_api::Engine;
use super::guest_init::{self, MARK};
use super::memory;
use super::report::{Report, Row};
use super::stats::Samples;
use crate::{build, deps, kernel, step};

/// Calls on one connection in a round.
const CALLS: usize = 200;
/// Starts of the program in a round.
const STARTS: usize = 20;
/// A guest that has not said that it runs by then hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to measure.
#[derive(clap::Args)]
pub struct ApiArgs {
    /// Measure this `lighter` and the VMM in it, and build none.
    #[arg(long)]
    lighter: Option<PathBuf>,
}

/// Runs it.
pub fn run(args: &ApiArgs, runs: usize) -> anyhow::Result<Report> {
    deps::ensure(deps::KERNEL)?;
    let kernel = kernel::ensure()?;
    let lighter = args.lighter.clone().map_or_else(build::lighter, Ok)?;
    let program = build::vmm(&lighter)?;
    let scratch = tempfile::tempdir()?;
    let disk = guest_init::disk(scratch.path())?;
    let engine = Engine::start(&lighter, scratch.path())?;
    let mut samples: [Samples; 7] = Default::default();
    step::step("measuring", || {
        for round in 0..=runs {
            let mut figures = [0.0; 7];
            figures[..6].copy_from_slice(&one(&program, &kernel, &disk, scratch.path())?);
            figures[6] = engine.list()?;
            // The first is for warming up.
            if round > 0 {
                samples.iter_mut().zip(figures).for_each(|(samples, figure)| samples.push(figure));
            }
        }
        Ok(())
    })?;
    let what = [
        ("spawn to the first answer of the API", "ms"),
        ("`PUT /machine-config` on an idle VMM", "ms"),
        ("`GET /vm/config` on an idle VMM", "ms"),
        ("`InstanceStart` to its answer", "ms"),
        ("`InstanceStart` to the first guest instruction", "ms"),
        ("private memory of the VMM with its API and a guest", "KiB"),
        ("`GET /v1/containers` of the engine's API, 1,000 of them", "ms"),
    ];
    let rows = what.into_iter().zip(samples);
    let rows =
        rows.map(|((what, unit), lighter)| Row { what, unit, lighter, peer: Samples::default() }).collect();
    Ok(Report {
        title: "api",
        peer: "–".into(),
        notes: vec![format!(
            "each sample of the first three is the median of {STARTS} starts or {CALLS} calls on one connection"
        )],
        rows,
    })
}

fn one(program: &Path, kernel: &Path, disk: &Path, scratch: &Path) -> anyhow::Result<[f64; 6]> {
    let mut starts = Samples::default();
    for _ in 1..STARTS {
        starts.push(Vmm::start(program, scratch)?.0);
    }
    let (start, vmm) = Vmm::start(program, scratch)?;
    starts.push(start);
    let mut client = vmm.connect()?;
    let machine = r#"{"vcpu_count":1,"mem_size_mib":256}"#;
    let puts = timed(&mut client, "PUT", "/machine-config", machine)?;
    let gets = timed(&mut client, "GET", "/vm/config", "")?;
    let console = scratch.join("console");
    let _ = std::fs::remove_file(&console);
    let arguments = "console=ttyS0 quiet rootfstype=erofs init=/init panic=-1 reboot=k";
    let calls = [
        ("/boot-source", serde_json::json!({"kernel_image_path": kernel, "boot_args": arguments})),
        (
            "/drives/root",
            serde_json::json!({"drive_id":"root","is_root_device":true,"is_read_only":true,"path_on_host":disk}),
        ),
        ("/vsock", serde_json::json!({"guest_cid":3,"uds_path":scratch.join("vsock")})),
        ("/serial", serde_json::json!({"serial_out_path":console})),
    ];
    for (path, body) in calls {
        call(&mut client, "PUT", path, &body.to_string())?;
    }
    let begin = Instant::now();
    call(&mut client, "PUT", "/actions", r#"{"action_type":"InstanceStart"}"#)?;
    let started = milliseconds(begin);
    while !std::fs::read_to_string(&console).unwrap_or_default().contains(MARK) {
        ensure!(begin.elapsed() < PATIENCE, "the guest does not say that it runs");
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = std::fs::read_to_string(scratch.join("log"))?;
    let first = log.split("first guest instruction ").nth(1).and_then(|rest| rest.split(' ').next());
    let first: f64 = first.context("the log says nothing of the first guest instruction")?.parse()?;
    let private = memory::footprint(vmm.child.id(), &["vmlinux", "init.erofs"])?.private_kib;
    Ok([
        starts.median().unwrap_or_default(),
        puts.median().unwrap_or_default(),
        gets.median().unwrap_or_default(),
        started,
        first / 1e3,
        private as f64,
    ])
}

/// A VMM with an API; killed in the end.
struct Vmm {
    child: Child,
    socket: PathBuf,
}

impl Vmm {
    /// Starts one and gives the milliseconds until it answered.
    fn start(program: &Path, scratch: &Path) -> anyhow::Result<(f64, Self)> {
        let (socket, log) = (scratch.join("api.sock"), scratch.join("log"));
        let _ = std::fs::remove_file(&socket);
        let _ = std::fs::remove_file(&log);
        let mut command = Command::new(program);
        command.arg("--api-sock").arg(&socket).arg("--log-path").arg(&log).arg("--boot-timer");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let begin = Instant::now();
        let child = command.spawn().context("cannot start the VMM")?;
        let vmm = Vmm { child, socket };
        let mut client = loop {
            match vmm.connect() {
                Ok(client) => break client,
                Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                Err(_) => std::thread::yield_now(),
            }
        };
        call(&mut client, "GET", "/", "")?;
        Ok((milliseconds(begin), vmm))
    }

    fn connect(&self) -> anyhow::Result<UnixStream> {
        let client = UnixStream::connect(&self.socket)?;
        client.set_read_timeout(Some(PATIENCE))?;
        Ok(client)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn timed(client: &mut UnixStream, method: &str, path: &str, body: &str) -> anyhow::Result<Samples> {
    let sample = |client: &mut UnixStream| {
        let begin = Instant::now();
        call(client, method, path, body).map(|()| milliseconds(begin))
    };
    (0..CALLS).map(|_| sample(client)).collect()
}

/// Makes a call and waits for its answer, which comes in one piece.
fn call(client: &mut UnixStream, method: &str, path: &str, body: &str) -> anyhow::Result<()> {
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
    client.write_all(request.as_bytes())?;
    let mut answer = [0; 8192];
    let count = client.read(&mut answer)?;
    let answer = String::from_utf8_lossy(answer.get(..count).unwrap_or_default());
    ensure!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

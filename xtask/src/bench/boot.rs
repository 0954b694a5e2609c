//! Start of a VM: the same kernel, disk and PID 1 under lighter's VMM and under QEMU's microvm, in turn.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use super::memory::{self, Footprint};
use super::report::{Report, Row};
use super::stats::Samples;
use super::tracefs::KvmTrace;
use super::{guest_init, monotonic, qemu};
use crate::{build, deps, kernel, step};

const MEM_SIZE_MIB: u32 = 256;
/// Command line of the guest, beside what each VMM adds for its devices.
const CMDLINE: &str = "root=/dev/vda ro rootfstype=erofs init=/init";
const CONSOLE: &str = "console=ttyS0 quiet reboot=k panic=-1";

/// What one start showed.
struct Start {
    to_first_entry_ms: f64,
    to_pid1_s: f64,
    footprint: Footprint,
}

/// Runs both, in turn.
pub fn run(runs: usize) -> anyhow::Result<Report> {
    deps::ensure(deps::KERNEL)?;
    deps::ensure(deps::DEMO)?;
    deps::ensure(deps::TEST)?;
    deps::ensure(deps::BENCH)?;
    let kernel = kernel::ensure()?;
    let lighter = build::lighter()?;
    let vmm = build::machine(&lighter)?;
    let scratch = tempfile::tempdir()?;
    let disk = guest_init::disk(scratch.path())?;
    let trace = KvmTrace::start()?;
    trace.arm()?;
    let quirks = kernel::host_cmdline()?;
    let (mut ours, mut theirs, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    step::step("measuring", || {
        for round in 0..=runs {
            let mut child = spawn_lighter(&vmm, &kernel, &disk)?;
            let a = observe(&trace, &mut child, &kernel)?;
            let cmdline = format!("{CONSOLE} {CMDLINE} {quirks}");
            let b = observe(
                &trace,
                &mut Contender::new(qemu::command(&kernel, &cmdline, &disk, MEM_SIZE_MIB))?,
                &kernel,
            )?;
            let c = whole_run(&lighter, &kernel, scratch.path())?;
            if round > 0 {
                ours.push(a);
                theirs.push(b);
                whole.push(c);
            }
        }
        Ok(())
    })?;
    let row = |what, unit, figure: fn(&Start) -> f64| Row {
        what,
        unit,
        lighter: ours.iter().map(figure).collect(),
        peer: theirs.iter().map(figure).collect(),
    };
    let mut rows = vec![
        row("process start to first guest instruction", "ms", |s| s.to_first_entry_ms),
        row("first guest instruction to PID 1", "s", |s| s.to_pid1_s),
        row("private memory of the VMM", "KiB", |s| s.footprint.private_kib as f64),
        row("PSS of the VMM", "KiB", |s| s.footprint.pss_kib as f64),
    ];
    let lighter_only =
        |what, samples: Samples| Row { what, unit: "s", lighter: samples, peer: Samples::default() };
    rows.push(lighter_only(
        "`lighter run` to the first byte of output",
        whole.iter().map(|w| w.first_byte_s).collect(),
    ));
    rows.push(lighter_only("guest entry to agent answering", whole.iter().map(|w| w.agent_s).collect()));
    Ok(Report {
        title: "boot",
        peer: "QEMU microvm".into(),
        notes: vec![
            format!("{}; {} MiB, 1 vCPU, the same kernel, disk and PID 1", qemu::version()?, MEM_SIZE_MIB),
            "first guest instruction: first KVM_RUN of the process in the host's trace".into(),
        ],
        rows,
    })
}

/// A started VMM and the stream on which its guest's console appears.
struct Contender {
    child: Child,
    start: f64,
    console: Box<dyn Read>,
    _config: Option<tempfile::NamedTempFile>,
}

impl Contender {
    fn new(mut command: Command) -> anyhow::Result<Self> {
        let start = monotonic();
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let console = Box::new(child.stdout.take().context("no stdout")?);
        Ok(Contender { child, start, console, _config: None })
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The VMM process as the engine starts it, with a pipe as its console log.
fn spawn_lighter(vmm: &Path, kernel: &Path, disk: &Path) -> anyhow::Result<Contender> {
    let (console, console_writer) = rustix::pipe::pipe()?;
    let config = serde_json::json!({
        "vcpus": 1,
        "mem_size_mib": MEM_SIZE_MIB,
        "kernel": {"path": kernel, "cmdline": CMDLINE},
        "disks": [{"path": disk, "read_only": true}],
        "console_log": format!("/proc/self/fd/{}", console_writer.as_raw_fd()),
    });
    let mut file = tempfile::NamedTempFile::new()?;
    serde_json::to_writer(&mut file, &config)?;
    file.flush()?;
    let config = inheritable(File::open(file.path())?.into())?;
    let events = inheritable(File::options().write(true).open("/dev/null")?.into())?;
    let mut command = Command::new(vmm);
    command.args([
        "vmm",
        "--config-fd",
        &config.as_raw_fd().to_string(),
        "--event-fd",
        &events.as_raw_fd().to_string(),
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let console_writer = inheritable(console_writer)?;
    let start = monotonic();
    let child = command.spawn().context("cannot start the VMM")?;
    drop(console_writer);
    Ok(Contender { child, start, console: Box::new(File::from(console)), _config: Some(file) })
}

fn inheritable(fd: OwnedFd) -> anyhow::Result<OwnedFd> {
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
    Ok(fd)
}

/// Waits for PID 1, reads the trace and the footprint, ends the VMM, and arms the trace for the next one:
/// arming after a spawn would miss the first entry.
fn observe(trace: &KvmTrace, contender: &mut Contender, kernel: &Path) -> anyhow::Result<Start> {
    let mut console = BufReader::new(&mut contender.console);
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        if console.read_line(&mut line)? == 0 {
            bail!("the guest ended before PID 1; its console said:\n{seen}");
        }
        if line.contains(guest_init::MARK) {
            break;
        }
        seen.push_str(&line);
    }
    let pid1 = monotonic();
    let id = contender.child.id();
    let entry = trace.first_entry(id)?;
    let name = kernel.display().to_string();
    let footprint = memory::footprint(id, &[&name])?;
    contender.child.kill()?;
    contender.child.wait()?;
    trace.arm()?;
    Ok(Start { to_first_entry_ms: (entry - contender.start) * 1e3, to_pid1_s: pid1 - entry, footprint })
}

/// What a whole `lighter run` showed.
struct Whole {
    first_byte_s: f64,
    agent_s: f64,
}

fn whole_run(lighter: &Path, kernel: &Path, scratch: &Path) -> anyhow::Result<Whole> {
    let root: PathBuf = scratch.join("root");
    let image = scratch.join("image");
    if !image.exists() {
        std::fs::create_dir_all(image.join("bin"))?;
        std::fs::copy("/bin/busybox", image.join("bin/busybox"))?;
    }
    let start = monotonic();
    let mut child = Command::new(lighter)
        .arg("--root")
        .arg(&root)
        .args(["run", "--rm", "--cold", "--network", "none", "--trace=json", "--kernel"])
        .arg(kernel)
        .arg(format!("dir:{}", image.display()))
        .args(["/bin/busybox", "echo", "first byte"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut byte = [0];
    child.stdout.take().context("no stdout")?.read_exact(&mut byte).context("lighter run gave no output")?;
    let first_byte_s = monotonic() - start;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let json = text.find('{').and_then(|at| text.get(at..)).context("no trace")?;
    let trace: serde_json::Value = serde_json::from_str(json.trim())?;
    let phases = trace["phases"].as_array().context("no phases")?;
    let guest = ["kernel", "agent"];
    let milliseconds: f64 = phases
        .iter()
        .filter(|phase| phase["name"].as_str().is_some_and(|name| guest.contains(&name)))
        .filter_map(|phase| phase["ms"].as_f64())
        .sum();
    Ok(Whole { first_byte_s, agent_s: milliseconds / 1e3 })
}

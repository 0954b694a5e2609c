//! Running `lighter` as a user would, with a limit of time.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{Column, CompareError, Options};

/// What one start may take. A boot takes ten seconds where a guest's kernel is emulated.
const RUN_LIMIT: Duration = Duration::from_secs(120);
/// What a program may take to end after it was asked to.
const END_LIMIT: Duration = Duration::from_secs(8);
/// As much of a program's output as is kept.
const MAX_OUTPUT: u64 = 1 << 20;
/// How often it is asked whether to stop.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// The program, and the image that its probes run in.
pub struct Lighter<'a> {
    program: &'a Path,
    probe_image: String,
    traces: tempfile::TempDir,
    end: Option<Instant>,
    stop: &'a AtomicBool,
}

/// One run.
pub struct Run {
    column: Column,
    image: Option<String>,
    command: Vec<String>,
    options: Vec<String>,
    keeps_stdin: bool,
    /// It is ended so long after its first byte of output; without any after [`RUN_LIMIT`].
    limit: Duration,
}

/// What became of it.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// From the command to its first byte of output; to its end where there was none.
    pub first_byte: Duration,
    /// To its end.
    pub whole: Duration,
    /// Exit code; `None` where it was ended.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Phases of the start and what each took, in ms.
    pub phases: Vec<(String, f64)>,
    /// Processor time that the container took, in ms; `None` where it did not end by itself.
    pub cpu: Option<f64>,
    /// The most memory that it took of the host, in MiB.
    pub peak: Option<f64>,
}

impl Run {
    /// The probe in its own image.
    pub fn probe(column: Column, arguments: &[&str]) -> Self {
        let command = [&["/probe"], arguments].concat().into_iter().map(str::to_owned).collect();
        Self { column, image: None, command, options: Vec::new(), keeps_stdin: false, limit: RUN_LIMIT }
    }

    /// The user's command in the user's image.
    pub fn image(column: Column, options: &Options) -> Self {
        let (image, command) = (Some(options.image.clone()), options.command.clone());
        // One that never ends, as a server, shall leave time for the rest.
        let limit = if options.quick { RUN_LIMIT / 12 } else { RUN_LIMIT / 2 };
        Self { column, image, command, options: Vec::new(), keeps_stdin: false, limit }
    }

    /// With more options of `lighter run`.
    pub fn with(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }
}

impl Ran {
    /// Whether it went well and said this.
    pub fn says(&self, text: &str) -> bool {
        self.code == Some(0) && self.stdout.contains(text)
    }

    /// Why not.
    pub fn why(&self) -> String {
        match (self.stderr.trim(), self.code) {
            ("", Some(code)) => format!("it ended with exit code {code}"),
            ("", None) => "it did not end in time".to_owned(),
            (said, _) => said.lines().last().unwrap_or(said).trim_start_matches("lighter: ").to_owned(),
        }
    }
}

impl<'a> Lighter<'a> {
    /// Makes the probe's image.
    pub fn new(
        options: &'a Options,
        end: Option<Instant>,
        stop: &'a AtomicBool,
    ) -> Result<Self, CompareError> {
        let file = |action| move |source| CompareError::File { action, source };
        let traces = tempfile::tempdir().map_err(file("make a directory for traces"))?;
        let directory = options.root.join("probe").join(programs::PROBE.id);
        make_probe_image(&directory).map_err(file("write the probe's image"))?;
        let probe_image = format!("dir:{}", directory.display());
        Ok(Self { program: &options.program, probe_image, traces, end, stop })
    }

    /// `lighter ARGUMENTS…`
    pub fn command(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(self.program);
        command.args(arguments);
        self.finish(command, RUN_LIMIT)
    }

    /// `lighter run` to its end.
    pub fn run(&self, run: &Run) -> Ran {
        let trace = self.traces.path().join("trace.json");
        let _ = std::fs::remove_file(&trace);
        let mut ran = self.finish(self.to_run(run, Some(&trace)), run.limit);
        read_trace(&trace, &mut ran);
        ran
    }

    /// `lighter run` of a probe that holds on until what is returned is dropped; `Err` says why it did not come up.
    pub fn hold(&self, column: Column, name: &str, arguments: &[&str]) -> Result<Held, String> {
        let mut run = Run::probe(column, arguments).with(&["-i", "--name", name]);
        run.keeps_stdin = true;
        let mut child = self.to_run(&run, None).spawn().map_err(|error| error.to_string())?;
        let lines = lines_of(child.stdout.take());
        let mut held = Held { child, said: String::new(), _lines: None };
        let end = Instant::now() + RUN_LIMIT;
        loop {
            match lines.recv_timeout(Duration::from_nanos(TICK.tv_nsec.unsigned_abs())) {
                Ok(line) if line.contains("ready") => {
                    (held.said, held._lines) = (line, Some(lines));
                    return Ok(held);
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if Instant::now() < end && !self.is_over() => {}
                Err(_) => return Err("it did not come up".to_owned()),
            }
        }
    }

    fn to_run(&self, run: &Run, trace: Option<&Path>) -> Command {
        let mut command = Command::new(self.program);
        command.args(["run", "--rm"]).args(run.column.options()).args(&run.options);
        if let Some(trace) = trace {
            command.arg("--trace=json").arg("--trace-file").arg(trace);
        }
        command.arg(run.image.as_ref().unwrap_or(&self.probe_image)).args(&run.command);
        command.stdin(if run.keeps_stdin { Stdio::piped() } else { Stdio::null() });
        // Ctrl-C is for us: what runs is ended in order.
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn finish(&self, mut command: Command, limit: Duration) -> Ran {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let began = Instant::now();
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Ran { stderr: error.to_string(), ..Ran::default() },
        };
        let spoke = Arc::new(OnceLock::new());
        let stdout = read_of(child.stdout.take(), Arc::clone(&spoke));
        let stderr = read_of(child.stderr.take(), Arc::default());
        let until = || spoke.get().map_or(began + RUN_LIMIT, |first: &Instant| *first + limit);
        let code = self.wait(&mut child, &until);
        let whole = began.elapsed();
        let stdout = stdout.recv_timeout(END_LIMIT).unwrap_or_default();
        let stderr = stderr.recv_timeout(END_LIMIT).unwrap_or_default();
        let first = spoke.get().map(|first| first.duration_since(began));
        Ran { first_byte: first.unwrap_or(whole), whole, code, stdout, stderr, ..Ran::default() }
    }

    fn wait(&self, child: &mut Child, until: &dyn Fn() -> Instant) -> Option<i32> {
        let mut asked: Option<Instant> = None;
        // Readable at its end: whoever looks again and again takes time from what is measured.
        let ended = Pid::from_child(child);
        let ended = pidfd_open(ended, PidfdFlags::empty()).ok();
        loop {
            match child.try_wait() {
                Ok(Some(status)) if asked.is_none() => return status.code(),
                Ok(Some(_)) | Err(_) => return None,
                Ok(None) => {}
            }
            match asked {
                None if Instant::now() >= until() || self.is_over() => {
                    // The container ends with it: `run` hands the signal on and then insists.
                    signal(child, libc::SIGTERM);
                    asked = Some(Instant::now());
                }
                Some(since) if since.elapsed() > END_LIMIT => {
                    signal(child, libc::SIGTERM);
                    let _ = child.kill();
                }
                _ => {}
            }
            match &ended {
                Some(ended) => drop(poll(&mut [PollFd::new(ended, PollFlags::IN)], Some(&TICK))),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.end.is_some_and(|end| Instant::now() >= end)
    }
}

fn signal(child: &Child, signal: libc::c_int) {
    if let Ok(pid) = libc::pid_t::try_from(child.id()) {
        // SAFETY: kill takes integers; the child is not reaped, so the ID is its own.
        unsafe { libc::kill(pid, signal) };
    }
}

/// A running container. It ends when this is dropped: its stdin ends.
pub struct Held {
    child: Child,
    /// The line with which it came up.
    pub said: String,
    _lines: Option<Receiver<String>>,
}

impl Held {
    /// Lets it end, without waiting for that: many end together.
    pub fn let_go(&mut self) {
        drop(self.child.stdin.take());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.let_go();
        let end = Instant::now() + END_LIMIT * 2;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= end {
                signal(&self.child, libc::SIGTERM);
                std::thread::sleep(END_LIMIT);
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Everything that comes; `first` is set when the first byte does.
fn read_of(stream: Option<impl Read + Send + 'static>, first: Arc<OnceLock<Instant>>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        if let Some(mut stream) = stream {
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                first.get_or_init(Instant::now);
                if (bytes.len() as u64) < MAX_OUTPUT {
                    bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
                }
            }
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

fn lines_of(stream: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in stream.into_iter().flat_map(|stream| BufReader::new(stream.take(MAX_OUTPUT)).lines()) {
            if line.is_ok_and(|line| sender.send(line).is_err()) {
                return;
            }
        }
    });
    receiver
}

fn read_trace(trace: &Path, ran: &mut Ran) {
    let text = std::fs::read(trace).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let phase = |phase: &serde_json::Value| Some((phase["name"].as_str()?.to_owned(), phase["ms"].as_f64()?));
    ran.phases = value["phases"].as_array().into_iter().flatten().filter_map(phase).collect();
    ran.cpu = value["used"]["cpu_ns"].as_f64().map(|ns| ns / 1e6);
    ran.peak = value["used"]["peak_memory"].as_f64().map(|bytes| bytes / f64::from(1 << 20));
}

/// A root directory with nothing but the probe; the same every time, so that it is one image with one template.
/// Made under another name first: others may compare at the same time.
fn make_probe_image(directory: &Path) -> std::io::Result<()> {
    use std::fs::{File, FileTimes, Permissions, create_dir, create_dir_all, rename, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;
    if directory.exists() {
        return Ok(());
    }
    let place = directory.parent().unwrap_or(directory);
    create_dir_all(place)?;
    let new = tempfile::tempdir_in(place)?;
    for name in ["dev", "etc", "proc", "sys", "tmp"] {
        create_dir(new.path().join(name))?;
    }
    let mut file = File::create(new.path().join("probe"))?;
    file.write_all(programs::PROBE.content)?;
    file.set_permissions(Permissions::from_mode(0o755))?;
    set_permissions(new.path(), Permissions::from_mode(0o755))?;
    set_permissions(new.path().join("tmp"), Permissions::from_mode(0o1777))?;
    // The same image each time.
    let time = FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    for name in ["probe", "dev", "etc", "proc", "sys", "tmp", ""] {
        File::open(new.path().join(name))?.set_times(time)?;
    }
    match rename(new.path(), directory) {
        // Somebody was quicker.
        Err(_) if directory.exists() => Ok(()),
        result => result,
    }
}

/// Where the image's files are, for [`crate::size`].
pub fn rootfs_of(container: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(container).ok()?;
    entries.filter_map(Result::ok).map(|entry| entry.path()).find(|path| {
        path.extension().is_some_and(|extension| extension == "erofs") && !path.ends_with("agent.erofs")
    })
}

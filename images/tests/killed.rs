//! The store survives SIGKILL before each system call that changes a file: of a pull, of building the root file
//! system, of a commit, of a removal with its collection. What is named is whole then, and the next command goes on.
//!
//! This program runs itself as the one to kill: `killed STEP STORE LAYOUT`, traced from the moment it stops itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};

use images::commit::CommitOptions;
use images::{Digest, ImageSource, PullOptions, Silent, Store, ensure_rootfs};
use libtest_mimic::{Arguments, Trial};
use serde_json::json;

/// What is done to the store, each on top of those before.
const STEPS: [&str; 4] = ["pull", "rootfs", "commit", "remove"];
/// System calls that may leave a trace on the disk, or let go of a lock.
const CHANGES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_copy_file_range,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_rename,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mkdir,
    libc::SYS_linkat,
    libc::SYS_flock,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [step, store, layout] = arguments.as_slice()
        && STEPS.contains(&step.as_str())
    {
        // SAFETY: no pointer is passed; the tracer sees the stop and goes on.
        unsafe { libc::raise(libc::SIGSTOP) };
        act(step, Path::new(store), Path::new(layout));
        return ExitCode::SUCCESS;
    }
    let run = || {
        whole_after_each_kill();
        Ok(())
    };
    libtest_mimic::run(
        &Arguments::from_args(),
        vec![Trial::test("a_store_survives_a_kill_at_every_step", run)],
    )
    .exit_code()
}

fn source(layout: &Path) -> ImageSource {
    format!("oci:{}", layout.display()).parse().unwrap()
}

fn act(step: &str, store: &Path, layout: &Path) {
    let store = Store::open(store).unwrap();
    let pull = || store.pull(&source(layout), &PullOptions::default(), &Silent).unwrap();
    match step {
        "pull" => drop(pull()),
        "rootfs" => drop(ensure_rootfs(&store, &pull(), &Silent).unwrap()),
        "commit" => {
            let name = "committed:1".parse().unwrap();
            let tar = layer("new");
            drop(store.commit(&pull(), &mut &*tar, Some(&name), &CommitOptions::default()).unwrap());
        }
        _ => drop(store.remove(&source(layout).to_string()).unwrap()),
    }
}

fn whole_after_each_kill() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(&directory.path().join("layout"));
    let mut kills = 0;
    for (index, step) in STEPS.into_iter().enumerate() {
        for call in 0.. {
            let store = directory.path().join(format!("{step}-{call}"));
            STEPS.iter().take(index).for_each(|before| act(before, &store, &layout));
            let killed = kill_at(call, step, &store, &layout);
            check(&store, step, call);
            // The same again, over whatever was left; a removal may have been done.
            let opened = Store::open(&store).unwrap();
            if step != "remove" || opened.image(&source(&layout).to_string()).is_ok() {
                act(step, &store, &layout);
            }
            check(&store, step, call);
            opened.prune().unwrap();
            check(&store, step, call);
            let partial = std::fs::read_dir(store.join("blobs/partial")).unwrap().count();
            assert_eq!(partial, 0, "{step}, killed at call {call}: something is left after a collection");
            std::fs::remove_dir_all(&store).unwrap();
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 60, "only {kills} kills");
}

/// Runs a step and kills it before its change number `call`; false where it ended before.
fn kill_at(call: usize, step: &str, store: &Path, layout: &Path) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(step).arg(store).arg(layout);
    // SAFETY: one system call without pointers, between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().unwrap();
    let pid = child.id() as libc::pid_t;
    // The stop of its exec; then that of its own.
    let mut request = libc::PTRACE_CONT;
    while wait(pid).expect("it stops itself first") != libc::SIGSTOP {
        go_on(request, pid);
    }
    request = libc::PTRACE_SYSCALL;
    let (mut entering, mut seen) = (true, 0);
    loop {
        go_on(request, pid);
        let Some(signal) = wait(pid) else {
            let status = child.wait();
            assert!(status.is_ok_and(|status| status.success()), "{step} failed by itself");
            return false;
        };
        if signal != libc::SIGTRAP {
            continue;
        }
        if entering && CHANGES.contains(&call_of(pid)) {
            if seen == call {
                kill(&mut child);
                return true;
            }
            seen += 1;
        }
        entering = !entering;
    }
}

fn go_on(request: libc::c_uint, pid: libc::pid_t) {
    // SAFETY: the child is ours and stopped; no pointer is passed.
    assert_eq!(unsafe { libc::ptrace(request, pid, 0, 0) }, 0);
}

/// The signal that stopped it; `None` where it ended. Its end stays to be waited for.
fn wait(pid: libc::pid_t) -> Option<i32> {
    // SAFETY: all zero is a valid siginfo_t, which the call fills.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WSTOPPED | libc::__WALL;
    // SAFETY: `info` is a local.
    let result = unsafe { libc::waitid(libc::P_PID, pid as u32, &raw mut info, flags | libc::WNOWAIT) };
    assert_eq!(result, 0);
    if [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&info.si_code) {
        return None;
    }
    // SAFETY: as above; takes what was seen.
    assert_eq!(unsafe { libc::waitid(libc::P_PID, pid as u32, &raw mut info, flags) }, 0);
    // SAFETY: the kernel has filled what a stop has.
    Some(unsafe { info.si_status() })
}

/// Number of the system call that it is about to make.
fn call_of(pid: libc::pid_t) -> i64 {
    // SAFETY: all zero is a valid structure of numbers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the child is stopped; `registers` is a local of the size that the call fills.
    assert_eq!(unsafe { libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &raw mut registers) }, 0);
    registers.orig_rax as i64
}

fn kill(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Everything that is named is there and is what its digest says; what has its final name is whole.
fn check(store: &Path, step: &str, call: usize) {
    let opened = Store::open(store).unwrap();
    let images = opened.images().unwrap();
    let names = std::fs::read_to_string(store.join("refs/index.json")).unwrap_or_default();
    let listed = if names.is_empty() {
        0
    } else {
        serde_json::from_str::<serde_json::Value>(&names).unwrap()["images"].as_object().unwrap().len()
    };
    assert_eq!(images.len(), listed, "{step}, killed at call {call}: a name leads to nothing");
    for image in images {
        let image = opened.image(&image.name).unwrap();
        ensure_rootfs(&opened, &image, &Silent).unwrap();
    }
    for entry in std::fs::read_dir(store.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = Vec::new();
        std::fs::File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(Digest::of(&bytes).hex(), name, "{step}, killed at call {call}: half a blob");
    }
}

/// A layer of one file.
fn layer(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(100_000);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, &*vec![7; 100_000]).unwrap();
    tar.into_inner().unwrap()
}

/// An image of one layer, as an OCI layout.
fn layout(directory: &Path) -> PathBuf {
    let layer = layer("old");
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], kind: &str| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    let platform = images::Platform::host();
    let config = json!({"architecture": platform.architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}});
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let layer = put(&layer, "application/vnd.oci.image.layer.v1.tar");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let manifest = put(manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    let index = json!({"schemaVersion": 2, "manifests": [manifest]}).to_string();
    std::fs::write(directory.join("index.json"), index).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    directory.to_owned()
}

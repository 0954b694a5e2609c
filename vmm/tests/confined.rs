//! A confined VMM saves differences: it can open no file, so its asker does.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use jailer::child::{Namespaces, spawn};
use support::{DATA, PATIENCE, config, kernel, words};
use vmm::config::{RestoreConfig, VmConfig};
use vmm::control::{Client, Request};
use vmm::vm::Vm;

kvm_tests!(differences_are_saved_by_a_vmm_in_its_cage);

guest!(counter: "xor eax, eax", "2: inc rax", "mov [r15], rax", "jmp 2b");

const A_WHILE: Duration = Duration::from_millis(50);

fn differences_are_saved_by_a_vmm_in_its_cage() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let kernel = kernel(counter);
    let plain = config(&kernel, 1);
    let caged = VmConfig { control: Some(path("control.sock")), ..plain.clone() };
    let mut text = tempfile::tempfile().unwrap();
    text.write_all(&serde_json::to_vec(&caged).unwrap()).unwrap();
    text.rewind().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let root = rustix::process::geteuid().is_root();
    let (namespaces, cage) = if root { (Namespaces::Pid, "root") } else { (Namespaces::User, "user") };
    let arguments =
        ["vmm", "--config-fd", &inherited(text.as_fd()), "--event-fd", &inherited(writer.as_fd())];
    let arguments: Vec<String> = arguments.into_iter().chain(["--cage", cage]).map(str::to_owned).collect();
    let program = Path::new(env!("CARGO_BIN_EXE_lighter-machine"));
    let log = tempfile::tempfile().unwrap();
    let mut child = spawn(program, &arguments, log.as_fd(), namespaces).unwrap();
    drop((text, writer));
    let mut first = String::new();
    BufReader::new(File::from(OwnedFd::from(reader))).read_line(&mut first).unwrap();
    assert!(first.contains("started"), "{first:?}");

    let mut client = Client::connect(&path("control.sock"), PATIENCE).unwrap();
    let mut save = |name: &str, base: Option<&str>| {
        std::thread::sleep(A_WHILE);
        let base = base.map(path);
        client.ask(&Request::Snapshot { dir: path(name), base, track: true, stay_paused: false }).unwrap()
    };
    let full = save("full", None).memory_bytes.unwrap();
    let difference = save("difference", Some("full")).memory_bytes.unwrap();
    assert!((1..full).contains(&difference), "{difference} of {full} bytes");
    save("second", Some("difference"));
    child.kill().unwrap();
    child.wait().unwrap();

    let count = |name: &str, bases: &[&str]| {
        let bases = bases.iter().map(|base| path(base)).collect();
        let restore = Some(RestoreConfig { bases, ..RestoreConfig::full(path(name)) });
        let config = VmConfig { restore, ..plain.clone() };
        let [count] = words(&Vm::from_snapshot(&config, &path(name)).unwrap(), DATA);
        count
    };
    let counts =
        [count("full", &[]), count("difference", &["full"]), count("second", &["difference", "full"])];
    assert!(counts.is_sorted_by(|a, b| a < b), "{counts:?}");
}

/// The number of `fd`, which children inherit until it is closed.
fn inherited(fd: BorrowedFd<'_>) -> String {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    fd.as_raw_fd().to_string()
}

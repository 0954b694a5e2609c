//! A VMM that was taken over reaches nothing: not from its event loop, not from a vCPU's thread. Without its cage and
//! its filters the same attempts succeed, so what stops them is the confinement.
//!
//! Everything that is attacked was made here: files, sockets, a process with its memory and namespaces.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use jailer::child::{Namespaces, spawn};
use jailer::filter::REFUSED;
use support::{config, kernel};
use vmm::compromised::{REACHED, STOPPED, names};
use vmm::config::DiskConfig;

kvm_tests!(
    a_compromised_vmm_reaches_nothing,
    the_cage_holds_without_the_filters,
    without_both_everything_is_reached
);

guest!(forever: "2: jmp 2b");

/// Attempts that a cage alone need not stop: they reach nothing outside.
const INSIDE: [&str; 3] = ["fork", "keyring", "bpf"];

/// What is attacked.
struct Decoys {
    directory: tempfile::TempDir,
    victim: Child,
    tcp: TcpListener,
    _sockets: (UnixListener, UnixListener),
}

impl Decoys {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("secret"), "another VM's disk").unwrap();
        let unix = UnixListener::bind(directory.path().join("socket")).unwrap();
        let name = SocketAddr::from_abstract_name(abstract_name(directory.path())).unwrap();
        let hidden = UnixListener::bind_addr(&name).unwrap();
        let victim = Command::new("sleep").arg("600").spawn().unwrap();
        Decoys { directory, victim, tcp: TcpListener::bind("127.0.0.1:0").unwrap(), _sockets: (unix, hidden) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the attempt `name` is to reach.
    fn target(&self, name: &str) -> String {
        let path = |name| self.path(name).to_str().unwrap().to_owned();
        let pid = self.victim.id();
        match name {
            "read-file" | "write-file" | "ring-open" => path("secret"),
            "make-file" => path("new"),
            "ptrace" | "signal" => pid.to_string(),
            "read-memory" | "vm-readv" => {
                let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
                let start = maps.split('-').next().unwrap();
                format!("{pid} {}", u64::from_str_radix(start, 16).unwrap())
            }
            "unix-socket" => path("socket"),
            "abstract-socket" => abstract_name(self.directory.path()),
            "tcp" => self.tcp.local_addr().unwrap().to_string(),
            "tap" => "/dev/net/tun".to_owned(),
            "exec" => "/bin/false".to_owned(),
            "mount" => self.directory.path().to_str().unwrap().to_owned(),
            "join-namespace" => format!("/proc/{pid}/ns/uts"),
            _ => String::new(),
        }
    }
}

impl Drop for Decoys {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

fn abstract_name(directory: &Path) -> String {
    format!("lighter-decoy-{}", directory.file_name().unwrap().to_str().unwrap())
}

/// Runs a VMM, one thread of which makes one attempt: true if it reached its target.
fn reaches(decoys: &Decoys, thread: &str, name: &str, caged: bool, filtered: bool) -> bool {
    let kernel = kernel(forever);
    let own = tempfile::NamedTempFile::new().unwrap();
    own.as_file().set_len(1 << 20).unwrap();
    let mut config = config(&kernel, 1);
    config.disks.push(DiskConfig {
        path: own.path().to_owned(),
        read_only: false,
        serial: String::new(),
        engine: Default::default(),
        limits: Default::default(),
    });
    let mut text = tempfile::tempfile().unwrap();
    text.write_all(&serde_json::to_vec(&config).unwrap()).unwrap();
    text.rewind().unwrap();
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut log = tempfile::tempfile().unwrap();
    let mut arguments = vec!["vmm".to_owned()];
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("--config-fd", inherited(text.as_fd()));
    add("--event-fd", inherited(writer.as_fd()));
    add("--parent", std::process::id().to_string());
    add("--attempt", format!("{thread}:{name}:{}", decoys.target(name)));
    let root = rustix::process::geteuid().is_root();
    let mut namespaces = Namespaces::None;
    if caged {
        namespaces = if root { Namespaces::Pid } else { Namespaces::User };
        add("--cage", if root { "root" } else { "user" }.to_owned());
    }
    if !filtered {
        arguments.push("--no-seccomp".to_owned());
    }
    let program = Path::new(env!("CARGO_BIN_EXE_lighter-machine"));
    let mut child = spawn(program, &arguments, log.as_fd(), namespaces).unwrap();
    drop((text, writer));
    let status = child.wait().unwrap();
    let mut said = String::new();
    log.rewind().unwrap();
    File::take(log, 1 << 16).read_to_string(&mut said).unwrap();
    let context = format!("{thread} {name} caged {caged} filtered {filtered}: {status}: {said}");
    // The program that `exec` runs ends with 1.
    let reached = said.contains(REACHED) || (name == "exec" && said.is_empty() && status.code() == Some(1));
    // Where signals were blocked the kernel does not ask the handler, which would say what was refused.
    let killed = status.signal() == Some(libc::SIGSYS) && (said.is_empty() || said.contains(REFUSED));
    let refused = said.contains(STOPPED);
    assert!(reached != (killed || refused), "neither reached nor stopped: {context}");
    assert!(!reached || !(caged && filtered), "reached: {context}");
    reached
}

/// The number of `fd`, which children inherit until it is closed.
fn inherited(fd: BorrowedFd<'_>) -> String {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    fd.as_raw_fd().to_string()
}

/// Those of the attempts that `wanted` names, from both threads, whose outcome is not `reached`.
fn wrong(wanted: impl Fn(&str) -> bool, caged: bool, filtered: bool, reached: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in names().filter(|name| wanted(name)) {
        for thread in ["worker", "vcpu"] {
            // A victim may have been killed.
            let decoys = Decoys::new();
            if reaches(&decoys, thread, name, caged, filtered) != reached {
                wrong.push(format!("{name} from {thread}"));
            }
        }
    }
    wrong
}

fn a_compromised_vmm_reaches_nothing() {
    assert_eq!(wrong(|_| true, true, true, false), Vec::<String>::new());
}

fn the_cage_holds_without_the_filters() {
    assert_eq!(wrong(|name| !INSIDE.contains(&name), true, false, false), Vec::<String>::new());
}

fn without_both_everything_is_reached() {
    let root = rustix::process::geteuid().is_root();
    let tap = Path::new("/dev/net/tun").exists();
    // What needs root shows nothing where there is none.
    let possible = |name: &str| {
        let needs_root =
            ["raw-socket", "mount", "make-namespace", "join-namespace", "become-root", "tap", "bpf"];
        (root || !needs_root.contains(&name)) && (tap || name != "tap")
    };
    assert_eq!(wrong(possible, false, false, true), Vec::<String>::new());
}

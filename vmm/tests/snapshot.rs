//! Snapshots through the control socket, and VMs that go on from them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use support::{DATA, PATIENCE, config, kernel, words};
use tempfile::{NamedTempFile, TempDir};
use vmm::config::VmConfig;
use vmm::control::{Client, ClientError, Done, RefusalKind, Request};
use vmm::vm::Vm;

kvm_tests!(
    a_snapshot_of_a_running_vm_goes_on_in_another_and_the_vm_too,
    a_clone_can_be_saved_again,
    requests_that_do_not_fit_are_refused_and_harm_nothing,
    a_snapshot_that_cannot_be_written_leaves_nothing,
    a_snapshot_of_another_machine_or_a_damaged_one_is_refused,
);

// Counts for ever in memory and in a register that it never reloads.
guest!(counter:
    "xor eax, eax",
    "mov r8, 0x1234567890abcdef",
    "2: inc rax",
    "mov [r15], rax",
    "mov [r15 + 8], r8",
    "jmp 2b",
);

const CONSTANT: u64 = 0x1234_5678_90ab_cdef;
const A_WHILE: Duration = Duration::from_millis(50);

/// A running VM with a control socket, and where its files are.
struct Bench {
    directory: TempDir,
    kernel: NamedTempFile,
    vm: Vm,
}

impl Bench {
    fn new(vcpus: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kernel = kernel(counter);
        let mut vm = Vm::build(&config(&kernel, vcpus)).unwrap();
        vm.control_at(&directory.path().join("control.sock")).unwrap();
        vm.start().unwrap();
        vm.run_for(A_WHILE, |_| ()).unwrap();
        Bench { directory, kernel, vm }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, vcpus: u8) -> VmConfig {
        config(&self.kernel, vcpus)
    }

    /// Asks over the socket, from another thread, while this one runs the VM.
    fn ask(&mut self, request: Request) -> Result<Done, ClientError> {
        let socket = self.path("control.sock");
        let client = std::thread::spawn(move || Client::connect(&socket, PATIENCE)?.ask(&request));
        while !client.is_finished() {
            self.vm.run_for(Duration::from_millis(1), |_| ()).unwrap();
        }
        client.join().unwrap()
    }

    fn save(&mut self, name: &str) -> PathBuf {
        let dir = self.path(name);
        let done = self.ask(Request::Snapshot { dir: dir.clone() }).unwrap();
        assert!(done.paused_us.is_some() && done.memory_bytes.is_some_and(|bytes| bytes > 0));
        dir
    }
}

fn count(vm: &Vm) -> u64 {
    let [count] = words(vm, DATA);
    count
}

/// Runs `vm`, which was at `from` at least, and gives where it is then.
fn goes_on(vm: &mut Vm, from: u64) -> u64 {
    vm.run_for(A_WHILE, |_| ()).unwrap();
    let [count, constant] = words(vm, DATA);
    assert!(count > from, "{count} {from}");
    assert_eq!(constant, CONSTANT, "a register that only the saved state has");
    count
}

fn a_snapshot_of_a_running_vm_goes_on_in_another_and_the_vm_too() {
    for vcpus in [1, 2, 4] {
        let mut bench = Bench::new(vcpus);
        let before = count(&bench.vm);
        let snapshot = bench.save("snapshot");
        let mut clones: Vec<Vm> =
            (0..2).map(|_| Vm::from_snapshot(&bench.config(vcpus), &snapshot).unwrap()).collect();
        let at_save = count(&clones[0]);
        assert!(at_save >= before && at_save == count(&clones[1]));
        for clone in &mut clones {
            clone.start().unwrap();
            goes_on(clone, at_save);
        }
        goes_on(&mut bench.vm, at_save);
    }
}

fn a_clone_can_be_saved_again() {
    let mut bench = Bench::new(1);
    let first = bench.save("first");
    let mut clone = Vm::from_snapshot(&bench.config(1), &first).unwrap();
    clone.start().unwrap();
    let seen = goes_on(&mut clone, 0);
    clone.pause().unwrap();
    let second = bench.path("second");
    clone.snapshot(&second).unwrap();
    let mut grandchild = Vm::from_snapshot(&bench.config(1), &second).unwrap();
    assert_eq!(count(&grandchild), count(&clone));
    grandchild.start().unwrap();
    goes_on(&mut grandchild, seen);
}

fn refused(result: Result<Done, ClientError>) -> (RefusalKind, String) {
    match result {
        Err(ClientError::Refused(refusal)) => (refusal.kind, refusal.message),
        other => panic!("{other:?}"),
    }
}

fn requests_that_do_not_fit_are_refused_and_harm_nothing() {
    let mut bench = Bench::new(1);
    let state = |bench: &mut Bench| bench.ask(Request::Status).unwrap().state.unwrap();
    assert_eq!(state(&mut bench), "running");
    let (kind, message) = refused(bench.ask(Request::Resume));
    assert_eq!((kind, message.as_str()), (RefusalKind::State, "cannot resume a VM that is running"));
    let (kind, message) = refused(bench.ask(Request::Snapshot { dir: "relative".into() }));
    assert_eq!((kind, message.as_str()), (RefusalKind::Request, "dir relative is not absolute"));
    bench.ask(Request::Pause).unwrap();
    assert_eq!(state(&mut bench), "paused");
    assert_eq!(refused(bench.ask(Request::Pause)).0, RefusalKind::State);
    let paused = count(&bench.vm);
    bench.vm.run_for(A_WHILE, |_| ()).unwrap();
    assert_eq!(count(&bench.vm), paused);
    bench.ask(Request::Resume).unwrap();
    goes_on(&mut bench.vm, paused);
}

fn a_snapshot_that_cannot_be_written_leaves_nothing() {
    let mut bench = Bench::new(1);
    // Neither into a directory that is not there, nor over one that has something in it.
    let (kind, message) = refused(bench.ask(Request::Snapshot { dir: bench.path("missing/snapshot") }));
    assert!(kind == RefusalKind::Host && message.contains("missing/snapshot.partial"), "{message}");
    let taken = bench.path("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("file"), "kept").unwrap();
    assert_eq!(refused(bench.ask(Request::Snapshot { dir: taken.clone() })).0, RefusalKind::Host);
    assert_eq!(std::fs::read_to_string(taken.join("file")).unwrap(), "kept");
    assert!(!bench.path("taken.partial").exists());
    // What a dead VMM left under the name is no obstacle.
    std::fs::create_dir(bench.path("again.partial")).unwrap();
    bench.save("again");
    goes_on(&mut bench.vm, 0);
}

fn error(config: &VmConfig, snapshot: &Path) -> String {
    vmm::text::with_causes(&Vm::from_snapshot(config, snapshot).err().unwrap())
}

fn a_snapshot_of_another_machine_or_a_damaged_one_is_refused() {
    let mut bench = Bench::new(1);
    let snapshot = bench.save("snapshot");
    let plain = bench.config(1);
    assert!(error(&bench.config(2), &snapshot).contains("1 vCPUs, this one has 2 vCPUs"));
    let larger = VmConfig { mem_size_mib: 64, ..plain.clone() };
    assert!(error(&larger, &snapshot).contains("32 MiB of memory, this one has 64 MiB"));
    let console = VmConfig { console_log: Some(bench.path("console")), ..plain.clone() };
    assert!(error(&console, &snapshot).contains("no serial port, this one has a serial port"));
    let state = snapshot.join("state");
    let whole = std::fs::read(&state).unwrap();
    for len in [0, 7, 20, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&state, &whole[..len]).unwrap();
        assert!(error(&plain, &snapshot).contains("state"), "{len} bytes");
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 8;
    std::fs::write(&state, flipped).unwrap();
    assert!(error(&plain, &snapshot).contains("damaged"));
    std::fs::write(&state, &whole).unwrap();
    std::fs::File::options().write(true).open(snapshot.join("memory")).unwrap().set_len(4096).unwrap();
    assert!(error(&plain, &snapshot).contains("has 4096 bytes"));
    std::fs::remove_file(&state).unwrap();
    assert!(error(&plain, &snapshot).contains("cannot read"));
}

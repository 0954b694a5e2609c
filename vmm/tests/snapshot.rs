//! Snapshots through the control socket, and VMs that go on from them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::{DATA, PATIENCE, config, kernel, words};
use tempfile::{NamedTempFile, TempDir};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::config::{RestoreConfig, VmConfig};
use vmm::control::{Client, ClientError, Done, RefusalKind, Request};
use vmm::vm::{SaveOrder, Vm};

kvm_tests!(
    a_snapshot_of_a_running_vm_goes_on_in_another_and_the_vm_too,
    a_clone_can_be_saved_again,
    requests_that_do_not_fit_are_refused_and_harm_nothing,
    a_snapshot_that_cannot_be_written_leaves_nothing,
    a_snapshot_of_another_machine_or_a_damaged_one_is_refused,
    differences_restore_on_their_bases_and_hold_only_what_was_written,
    a_base_that_does_not_fit_is_refused,
    a_full_disk_is_said_and_the_vm_and_its_dirty_pages_survive,
    a_vm_may_stay_paused_for_its_disks_and_one_save_is_made_at_a_time,
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
        let done = self.ask(Request::snapshot(&dir)).unwrap();
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

/// The asker makes the files, so it is the one who fails.
fn not_written(result: Result<Done, ClientError>) -> String {
    match result {
        Err(ClientError::Write(error)) => vmm::text::with_causes(&error),
        other => panic!("{other:?}"),
    }
}

fn requests_that_do_not_fit_are_refused_and_harm_nothing() {
    let mut bench = Bench::new(1);
    let state = |bench: &mut Bench| bench.ask(Request::Status).unwrap().state.unwrap();
    assert_eq!(state(&mut bench), "running");
    let (kind, message) = refused(bench.ask(Request::Resume));
    assert_eq!((kind, message.as_str()), (RefusalKind::State, "cannot resume a VM that is running"));
    let (kind, message) = refused(bench.ask(Request::snapshot("relative")));
    assert_eq!((kind, message.as_str()), (RefusalKind::Request, "relative is not absolute"));
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
    let message = not_written(bench.ask(Request::snapshot(bench.path("missing/snapshot"))));
    assert!(message.contains("missing/snapshot.partial"), "{message}");
    let taken = bench.path("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("file"), "kept").unwrap();
    let message = not_written(bench.ask(Request::snapshot(&taken)));
    assert!(message.contains("taken"), "{message}");
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

/// Asks for a snapshot with these options.
fn save_as(bench: &mut Bench, name: &str, base: Option<&Path>) -> (PathBuf, Done) {
    let dir = bench.path(name);
    let base = base.map(Path::to_owned);
    let request = Request::Snapshot { dir: dir.clone(), base, track: true, stay_paused: false };
    let done = bench.ask(request).unwrap();
    (dir, done)
}

/// The VM of `snapshot` on its `bases`.
fn on_bases(bench: &Bench, snapshot: &Path, bases: &[&PathBuf], track: bool) -> VmConfig {
    let bases = bases.iter().map(|&base| base.clone()).collect();
    let restore = Some(RestoreConfig { bases, track, ..RestoreConfig::full(snapshot.to_owned()) });
    VmConfig { restore, ..bench.config(1) }
}

fn differences_restore_on_their_bases_and_hold_only_what_was_written() {
    let mut bench = Bench::new(1);
    // Zeroed later: that is a difference too.
    bench.vm.memory().write_slice(&[7; 4096], GuestAddress(0x100_0000)).unwrap();
    bench.vm.memory().write_slice(&[8; 4096], GuestAddress(0x101_0000)).unwrap();
    let (full, done) = save_as(&mut bench, "full", None);
    let full_bytes = done.memory_bytes.unwrap();
    goes_on(&mut bench.vm, 0);
    bench.vm.memory().write_slice(&[0; 4096], GuestAddress(0x100_0000)).unwrap();
    let (first, done) = save_as(&mut bench, "first", Some(&full));
    let bytes = done.memory_bytes.unwrap();
    assert!((1..full_bytes).contains(&bytes) && bytes < 64 << 10, "{bytes} of {full_bytes}");
    goes_on(&mut bench.vm, 0);
    let (second, _) = save_as(&mut bench, "second", Some(&first));
    bench.ask(Request::Pause).unwrap();
    let at_pause = bench.path("paused");
    bench
        .ask(Request::Snapshot {
            dir: at_pause.clone(),
            base: Some(second.clone()),
            track: false,
            stay_paused: false,
        })
        .unwrap();

    let counts: Vec<u64> = [(&full, vec![]), (&first, vec![&full]), (&second, vec![&first, &full])]
        .into_iter()
        .map(|(snapshot, bases)| {
            let config = on_bases(&bench, snapshot, &bases, false);
            let mut vm = Vm::from_snapshot(&config, snapshot).unwrap();
            let byte = |vm: &Vm, at| vm.memory().read_obj::<u8>(GuestAddress(at)).unwrap();
            let zeroed = if bases.is_empty() { 7 } else { 0 };
            assert_eq!((byte(&vm, 0x100_0000), byte(&vm, 0x101_0000)), (zeroed, 8));
            let at_save = count(&vm);
            vm.start().unwrap();
            goes_on(&mut vm, at_save);
            at_save
        })
        .collect();
    assert!(counts.is_sorted_by(|a, b| a < b), "{counts:?}");
    // All of the memory, after the whole chain.
    let config = on_bases(&bench, &at_pause, &[&second, &first, &full], false);
    let restored = Vm::from_snapshot(&config, &at_pause).unwrap();
    assert!(memory_bytes(&restored) == memory_bytes(&bench.vm), "memory differs");
    // A clone that logs from its start can be saved as a difference from what it was cloned from.
    let mut clone = Vm::from_snapshot(&on_bases(&bench, &full, &[], true), &full).unwrap();
    clone.start().unwrap();
    goes_on(&mut clone, counts[0]);
    clone.pause().unwrap();
    let branch = bench.path("branch");
    let base = Some(vmm::snapshot::Snapshot::read(&full).unwrap().identity.id);
    let order = SaveOrder { base, track: true, ..SaveOrder::full(&branch) };
    clone.snapshot_as(order).unwrap();
    let restored = Vm::from_snapshot(&on_bases(&bench, &branch, &[&full], false), &branch).unwrap();
    assert!(memory_bytes(&restored) == memory_bytes(&clone), "memory differs");
}

fn memory_bytes(vm: &Vm) -> Vec<u8> {
    let mut bytes = vec![0; 32 << 20];
    vm.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

fn a_base_that_does_not_fit_is_refused() {
    let mut bench = Bench::new(1);
    let plain = bench.save("plain");
    let request = |bench: &Bench, base: &PathBuf| Request::Snapshot {
        dir: bench.path("difference"),
        base: Some(base.clone()),
        track: false,
        stay_paused: false,
    };
    let wanted = request(&bench, &plain);
    let (kind, message) = refused(bench.ask(wanted));
    assert!(
        kind == RefusalKind::Request && message.contains("take a full snapshot with `track`"),
        "{message}"
    );
    let (full, _) = save_as(&mut bench, "full", None);
    let wanted = request(&bench, &plain);
    let (_, message) = refused(bench.ask(wanted));
    assert!(message.contains("they are known since snapshot"), "{message}");
    let wanted = request(&bench, &bench.path("nothing"));
    assert!(refused(bench.ask(wanted)).1.contains("cannot read"));
    assert!(!bench.path("difference.partial").exists());
    let (difference, _) = save_as(&mut bench, "difference", Some(&full));
    let refusal =
        |snapshot: &Path, bases: &[&PathBuf]| error(&on_bases(&bench, snapshot, bases, false), snapshot);
    assert!(refusal(&difference, &[]).contains("which must be given too"));
    assert!(refusal(&difference, &[&plain]).contains("plain is snapshot"));
    assert!(refusal(&difference, &[&full, &plain]).contains("full is a full snapshot"));
    assert!(refusal(&full, &[&plain]).contains("plain cannot be its base"));
}

fn a_full_disk_is_said_and_the_vm_and_its_dirty_pages_survive() {
    let mut bench = Bench::new(1);
    let small = bench.path("small");
    std::fs::create_dir(&small).unwrap();
    let Some(_mounted) = SmallDisk::mount(&small, 2) else {
        println!("skipped: only root can make a small disk");
        return;
    };
    let page = [9; 4096];
    // Twice the small disk.
    for at in 0..1024 {
        bench.vm.memory().write_slice(&page, GuestAddress(0x100_0000 + at * 4096)).unwrap();
    }
    let dir = small.join("snapshot");
    let full = |message: &str| message.contains("No space left on device") && message.contains("memory");
    let (kind, message) = refused(bench.ask(Request::snapshot(&dir)));
    assert!(kind == RefusalKind::Host && full(&message), "{message}");
    let nothing_left = || std::fs::read_dir(&small).unwrap().next().is_none();
    assert!(nothing_left());
    goes_on(&mut bench.vm, 0);
    // A difference that fails loses nothing: the next one has what it should have had.
    let (base, _) = save_as(&mut bench, "base", None);
    for at in 0..1024 {
        bench.vm.memory().write_slice(&[3; 4096], GuestAddress(0x100_0000 + at * 4096)).unwrap();
    }
    let request = Request::Snapshot { dir, base: Some(base.clone()), track: true, stay_paused: false };
    assert!(full(&refused(bench.ask(request)).1));
    assert!(nothing_left());
    let (difference, done) = save_as(&mut bench, "difference", Some(&base));
    assert!(done.memory_bytes.unwrap() >= 4 << 20);
    let vm = Vm::from_snapshot(&on_bases(&bench, &difference, &[&base], false), &difference).unwrap();
    assert_eq!(vm.memory().read_obj::<u8>(GuestAddress(0x100_0000 + 1023 * 4096)).unwrap(), 3);
    goes_on(&mut bench.vm, 0);
}

/// A tmpfs that only this thread and those that it starts see.
struct SmallDisk(std::ffi::CString);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Option<Self> {
        use std::os::unix::ffi::OsStrExt as _;
        let at = std::ffi::CString::new(at.as_os_str().as_bytes()).unwrap();
        let options = std::ffi::CString::new(format!("size={mib}m")).unwrap();
        // SAFETY: system calls with strings that end; they change the mounts of this thread alone.
        let done = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::mount(c"none".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast())
                    == 0
        };
        done.then_some(SmallDisk(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
    }
}

fn a_vm_may_stay_paused_for_its_disks_and_one_save_is_made_at_a_time() {
    let mut bench = Bench::new(1);
    let dir = bench.path("snapshot");
    bench.ask(Request::Snapshot { dir: dir.clone(), base: None, track: false, stay_paused: true }).unwrap();
    assert_eq!(bench.ask(Request::Status).unwrap().state.as_deref(), Some("paused"));
    let vm = Vm::from_snapshot(&bench.config(1), &dir).unwrap();
    assert!(memory_bytes(&vm) == memory_bytes(&bench.vm), "memory differs");
    bench.ask(Request::Resume).unwrap();
    goes_on(&mut bench.vm, count(&vm));
    // Nobody would let it go on: it does not stay.
    let request = Request::Snapshot { dir: bench.path("dead"), base: None, track: false, stay_paused: true };
    let mut line = serde_json::to_vec(&request).unwrap();
    line.push(b'\n');
    std::os::unix::net::UnixStream::connect(bench.path("control.sock")).unwrap().write_all(&line).unwrap();
    while !bench.path("dead").exists() {
        bench.vm.run_for(Duration::from_millis(1), |_| ()).unwrap();
    }
    bench.vm.run_for(A_WHILE, |_| ()).unwrap();
    assert_eq!(bench.ask(Request::Status).unwrap().state.as_deref(), Some("running"));
    // A wish to resume that comes while it is saved counts.
    let socket = bench.path("control.sock");
    let request = Request::Snapshot { dir: bench.path("wish"), base: None, track: false, stay_paused: true };
    let client = std::thread::spawn(move || {
        let mut saver = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let mut line = serde_json::to_vec(&request).unwrap();
        line.push(b'\n');
        saver.write_all(&line).unwrap();
        let _ = Client::connect(&socket, PATIENCE).unwrap().ask(&Request::Resume);
        saver.read_exact(&mut [0]).unwrap();
    });
    while !client.is_finished() {
        bench.vm.run_for(Duration::from_millis(1), |_| ()).unwrap();
    }
    client.join().unwrap();
    assert_eq!(bench.ask(Request::Status).unwrap().state.as_deref(), Some("running"));
    let refusal = (RefusalKind::State, "cannot save a VM that is being saved".to_owned());
    let both_at_once = |bench: &mut Bench, round: usize| {
        let (socket, dir) = (bench.path("control.sock"), bench.path(&format!("first{round}")));
        let first = std::thread::spawn(move || {
            Client::connect(&socket, PATIENCE).unwrap().ask(&Request::snapshot(dir))
        });
        let second = bench.ask(Request::snapshot(bench.path(&format!("second{round}"))));
        while !first.is_finished() {
            bench.vm.run_for(Duration::from_millis(1), |_| ()).unwrap();
        }
        let failed: Vec<_> = [first.join().unwrap(), second].into_iter().filter(Result::is_err).collect();
        assert!(failed.len() < 2, "one of them is made: {failed:?}");
        failed.into_iter().map(refused).inspect(|failed| assert_eq!(*failed, refusal)).count()
    };
    assert!((0..100).any(|round| both_at_once(&mut bench, round) == 1), "never refused");
}

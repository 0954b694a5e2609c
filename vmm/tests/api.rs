//! The API socket of the real program, with tiny guests: its calls in each state, its snapshots, its ends.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::http::{Api, spawn, wait};
use support::{DATA, PATIENCE, kernel};
use tempfile::NamedTempFile;

kvm_tests!(
    a_guest_is_configured_started_paused_and_ends,
    defaults_are_there_before_anything_was_put,
    bad_configurations_are_refused_and_the_vmm_goes_on,
    calls_in_the_wrong_state_are_refused,
    snapshots_go_on_where_they_stopped_and_differences_lie_over_their_base,
    bad_snapshots_are_refused_and_the_vmm_goes_on,
    the_process_tells_by_its_code_how_it_ended,
    a_configuration_file_boots_with_and_without_a_socket,
    a_client_that_says_half_and_leaves_disturbs_nobody,
    metadata_and_metrics_are_kept,
    another_process_gives_the_pages_of_a_snapshot,
    three_keys_reach_the_guest,
    the_examples_of_the_documentation_work,
    a_drive_gets_another_medium_while_its_guest_runs,
    a_cpu_template_reaches_the_guest_and_its_clone,
    devices_have_limits_that_can_be_changed,
    memory_that_can_be_plugged_is_part_of_a_snapshot,
    huge_pages_take_a_pool_and_say_so,
);

guest!(power_off: "nop");
guest!(reboot: "mov dx, 0x64", "mov al, 0xfe", "out dx, al", "2: jmp 2b");
guest!(triple_fault: "lidt [rip + 99f]", "ud2");
guest!(counting: "2: inc qword ptr [r15]", "jmp 2b");
// Ends when it has read Delete from its keyboard.
guest!(keyboard:
    "2: in al, 0x64",
    "test al, 1",
    "jz 2b",
    "in al, 0x60",
    "cmp al, 0x71",
    "jne 2b",
);
// Leaves KVM's feature bits and the microcode's revision, and counts.
guest!(asking:
    "mov eax, 0x40000001",
    "xor ecx, ecx",
    "cpuid",
    "mov [r15 + 8], rax",
    "mov ecx, 0x8b",
    "rdmsr",
    "mov [r15 + 16], eax",
    "mov [r15 + 20], edx",
    "2: inc qword ptr [r15]",
    "jmp 2b",
);
guest!(printing: "mov dx, 0x3f8", "mov al, 0x68", "out dx, al", "mov al, 0x0a", "out dx, al");

fn configure(api: &Api, kernel: &NamedTempFile) {
    api.done("PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64}));
    api.done("PUT", "/boot-source", &json!({"kernel_image_path": kernel.path()}));
}

fn start(api: &Api) {
    api.done("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
}

fn state(api: &Api) -> Value {
    api.get("/")["state"].clone()
}

fn set_state(api: &Api, state: &str) {
    api.done("PATCH", "/vm", &json!({ "state": state }));
}

fn a_guest_is_configured_started_paused_and_ends() {
    let kernel = kernel(counting);
    let mut api = Api::start(&["--id", "vm-1"]);
    configure(&api, &kernel);
    assert_eq!(state(&api), "Not started");
    start(&api);
    assert_eq!(api.get("/")["id"], "vm-1");
    assert_eq!(state(&api), "Running");
    // Neither is an error where it is so already, as in Firecracker.
    for (wanted, found) in
        [("Resumed", "Running"), ("Paused", "Paused"), ("Paused", "Paused"), ("Resumed", "Running")]
    {
        set_state(&api, wanted);
        assert_eq!(state(&api), found);
    }
    let config = api.get("/vm/config");
    assert_eq!(config["boot-source"]["kernel_image_path"], json!(kernel.path()));
    assert_eq!(config["machine-config"]["mem_size_mib"], 64);
    api.signal(libc::SIGTERM);
    assert_eq!(api.wait().code(), Some(143));
    assert!(!api.socket.exists());
}

fn defaults_are_there_before_anything_was_put() {
    let api = Api::start(&[]);
    assert_eq!(api.get("/")["app_name"], "Firecracker");
    assert!(api.get("/version")["firecracker_version"].is_string());
    let machine = json!({
        "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false, "huge_pages": "None"
    });
    assert_eq!(api.get("/machine-config"), machine);
    let config = api.get("/vm/config");
    assert_eq!(
        (&config["drives"], &config["vsock"], &config["machine-config"]),
        (&json!([]), &Value::Null, &machine)
    );
    assert_eq!(api.get("/mmds"), json!({}));
}

fn bad_configurations_are_refused_and_the_vmm_goes_on() {
    let kernel = kernel(power_off);
    let mut api = Api::start(&[]);
    assert!(
        api.refused("PUT", "/actions", &json!({"action_type":"InstanceStart"})).contains("without kernel")
    );
    rustix::fs::mkfifoat(rustix::fs::CWD, api.path("fifo"), rustix::fs::Mode::RWXU).unwrap();
    for path in [api.path("missing"), api.path("fifo"), api.path("")] {
        assert!(
            api.refused("PUT", "/boot-source", &json!({"kernel_image_path": path})).contains("kernel file")
        );
        let drive = json!({"drive_id":"a","is_root_device":false,"path_on_host":path});
        assert!(api.refused("PUT", "/drives/a", &drive).starts_with("Drive config error"));
        assert!(
            api.refused("PUT", "/pmem/a", &json!({"id":"a","path_on_host":path})).starts_with("Pmem config")
        );
    }
    let net = json!({"iface_id":"eth0","host_dev_name":"no such interface"});
    assert!(api.refused("PUT", "/network-interfaces/eth0", &net).contains("Open tap device failed"));
    api.refused("PUT", "/vsock", &json!({"guest_cid":2,"uds_path":"v"}));
    assert!(api.refused("PUT", "/hotplug/memory", &json!({"total_size_mib":64})).contains("Total size"));
    assert!(api.refused("PUT", "/cpu-config", &json!({"msr_modifiers":[1]})).starts_with("CPU config error"));
    // A kernel that is none is found out at the start, and another one may be given then.
    std::fs::write(api.path("script"), "#!/bin/sh\n").unwrap();
    api.done("PUT", "/boot-source", &json!({"kernel_image_path": api.path("script")}));
    let message = api.refused("PUT", "/actions", &json!({"action_type":"InstanceStart"}));
    assert!(message.starts_with("Start microvm error: cannot boot"), "{message}");
    assert_eq!(state(&api), "Not started");
    configure(&api, &kernel);
    start(&api);
    assert_eq!(api.wait().code(), Some(0));
}

fn calls_in_the_wrong_state_are_refused() {
    let kernel = kernel(counting);
    let api = Api::start(&[]);
    let calls = [
        ("PATCH", "/vm", json!({"state":"Paused"})),
        ("PUT", "/snapshot/create", json!({"snapshot_path":"s","mem_file_path":"m"})),
        ("PUT", "/actions", json!({"action_type":"FlushMetrics"})),
        ("PATCH", "/balloon", json!({"amount_mib":1})),
    ];
    for (method, path, body) in &calls {
        assert!(api.refused(method, path, body).ends_with("not supported before starting the microVM."));
    }
    configure(&api, &kernel);
    start(&api);
    let calls = [
        ("PUT", "/actions", json!({"action_type":"InstanceStart"})),
        ("PUT", "/machine-config", json!({"vcpu_count":1,"mem_size_mib":64})),
        ("PUT", "/boot-source", json!({"kernel_image_path":kernel.path()})),
        ("PUT", "/vsock", json!({"guest_cid":3,"uds_path":"v"})),
    ];
    for (method, path, body) in &calls {
        assert!(api.refused(method, path, body).ends_with("not supported after starting the microVM."));
    }
    let create = json!({"snapshot_path":api.path("s"),"mem_file_path":api.path("m")});
    assert!(api.refused("PUT", "/snapshot/create", &create).contains("must be paused"));
    assert!(api.refused("PATCH", "/balloon", &json!({"amount_mib":1})).contains("No balloon device"));
    assert_eq!(api.call("GET", "/nothing", "").0, 400);
    assert_eq!(state(&api), "Running");
}

/// The counter of [`counting`] in a file of memory.
fn count(path: &str) -> u64 {
    let mut bytes = [0; 8];
    File::open(path).unwrap().read_exact_at(&mut bytes, DATA).unwrap();
    u64::from_le_bytes(bytes)
}

fn snapshots_go_on_where_they_stopped_and_differences_lie_over_their_base() {
    let kernel = kernel(counting);
    let first = Api::start(&[]);
    first.done("PUT", "/machine-config", &json!({"vcpu_count":1,"mem_size_mib":64,"track_dirty_pages":true}));
    first.done("PUT", "/boot-source", &json!({"kernel_image_path": kernel.path()}));
    start(&first);
    let files = |kind: &str| json!({"snapshot_type":kind,"snapshot_path":first.path("state"),"mem_file_path":first.path("mem")});
    let memory = first.path("mem");
    let begin = Instant::now();
    let mut last = 0;
    for kind in ["Full", "Diff", "Diff"] {
        loop {
            std::thread::sleep(Duration::from_millis(10));
            set_state(&first, "Paused");
            first.done("PUT", "/snapshot/create", &files(kind));
            set_state(&first, "Resumed");
            // On a busy host the guest may not have run yet.
            if count(&memory) > last {
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "{kind}: {last}");
        }
        last = count(&memory);
    }
    // What else the guest's memory holds is the base's: the code that it runs.
    let load = json!({
        "snapshot_path": first.path("state"),
        "mem_backend": {"backend_type":"File","backend_path":memory},
        "track_dirty_pages": true,
    });
    let second = Api::start(&[]);
    second.done("PUT", "/snapshot/load", &load);
    assert_eq!(state(&second), "Paused");
    assert_eq!(second.get("/machine-config")["mem_size_mib"], 64);
    let own = json!({"snapshot_path":second.path("state"),"mem_file_path":second.path("mem")});
    loop {
        set_state(&second, "Resumed");
        std::thread::sleep(Duration::from_millis(10));
        set_state(&second, "Paused");
        second.done("PUT", "/snapshot/create", &own);
        assert!(count(&second.path("mem")) >= last);
        if count(&second.path("mem")) > last {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "the clone does not run");
    }
    assert_eq!(count(&memory), last, "the clone wrote into its snapshot");
    // The deprecated way, running at once.
    let third = Api::start(&[]);
    let load = json!({"snapshot_path":first.path("state"),"mem_file_path":memory,"resume_vm":true});
    third.done("PUT", "/snapshot/load", &load);
    assert_eq!(state(&third), "Running");
}

fn bad_snapshots_are_refused_and_the_vmm_goes_on() {
    let kernel = kernel(counting);
    let api = Api::start(&[]);
    let load = |state: &str, memory: &str| json!({"snapshot_path":state,"mem_backend":{"backend_type":"File","backend_path":memory}});
    std::fs::write(api.path("nonsense"), "nonsense").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, api.path("fifo"), rustix::fs::Mode::RWXU).unwrap();
    for name in ["missing", "nonsense", "fifo", ""] {
        let message = api.refused("PUT", "/snapshot/load", &load(&api.path(name), &api.path("nonsense")));
        assert!(message.starts_with("Load snapshot error: Failed to restore"), "{message}");
    }
    // One that is right but for its memory.
    let other = Api::start(&[]);
    configure(&other, &kernel);
    start(&other);
    set_state(&other, "Paused");
    let create = json!({"snapshot_path":other.path("s"),"mem_file_path":"/nowhere/m"});
    assert!(other.refused("PUT", "/snapshot/create", &create).starts_with("Create snapshot error"));
    other.done(
        "PUT",
        "/snapshot/create",
        &json!({"snapshot_path":other.path("s"),"mem_file_path":other.path("m")}),
    );
    let message = api.refused("PUT", "/snapshot/load", &load(&other.path("s"), &api.path("nonsense")));
    assert!(message.contains("bytes; memory of"), "{message}");
    let mut overridden = load(&other.path("s"), &other.path("m"));
    overridden["network_overrides"] = json!([{"iface_id":"eth7","host_dev_name":"t"}]);
    assert!(api.refused("PUT", "/snapshot/load", &overridden).contains("eth7"));
    let mut uffd = load(&other.path("s"), &other.path("nobody"));
    uffd["mem_backend"]["backend_type"] = "Uffd".into();
    assert!(api.refused("PUT", "/snapshot/load", &uffd).contains("cannot hand guest memory to"));
    // Nothing of it kept the VMM from the right one.
    api.done("PUT", "/snapshot/load", &load(&other.path("s"), &other.path("m")));
    assert_eq!(state(&api), "Paused");
    let touched = Api::start(&[]);
    configure(&touched, &kernel);
    let message = touched.refused("PUT", "/snapshot/load", &load(&other.path("s"), &other.path("m")));
    assert!(message.contains("not allowed after configuring"), "{message}");
}

fn the_process_tells_by_its_code_how_it_ended() {
    for (guest, code) in [(power_off as extern "C" fn(), 0), (reboot, 0), (triple_fault, 1)] {
        let kernel = kernel(guest);
        let mut api = Api::start(&[]);
        configure(&api, &kernel);
        start(&api);
        assert_eq!(api.wait().code(), Some(code), "{}", api.output());
    }
    let mut api = Api::start(&[]);
    api.signal(libc::SIGTERM);
    assert_eq!(api.wait().code(), Some(143));
    let base = tempfile::tempdir().unwrap();
    assert_eq!(wait(&mut spawn(base.path(), &["--nonsense"])).code(), Some(153));
    assert_eq!(wait(&mut spawn(base.path(), &["--version"])).code(), Some(0));
    let missing = ["--no-api", "--config-file", "/missing"];
    assert_eq!(wait(&mut spawn(base.path(), &missing)).code(), Some(152));
}

fn a_configuration_file_boots_with_and_without_a_socket() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("vm.json");
    let write = |kernel: &NamedTempFile| {
        let config = json!({
            "boot-source": {"kernel_image_path": kernel.path(), "boot_args": "quiet"},
            "drives": [],
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 64},
        });
        std::fs::write(&path, config.to_string()).unwrap();
    };
    let file = path.to_str().unwrap();
    let printing = kernel(printing);
    write(&printing);
    assert_eq!(wait(&mut spawn(base.path(), &["--no-api", "--config-file", file])).code(), Some(0));
    let output = std::fs::read_to_string(base.path().join("output")).unwrap();
    assert!(output.lines().any(|line| line == "h"), "the console is on standard output: {output}");
    let counting = kernel(counting);
    write(&counting);
    let api = Api::start(&["--config-file", file, "--boot-timer"]);
    assert_eq!(state(&api), "Running");
    assert_eq!(api.get("/machine-config")["mem_size_mib"], 64);
    let begin = Instant::now();
    while !api.output().contains("first guest instruction") {
        assert!(begin.elapsed() < PATIENCE, "{}", api.output());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_client_that_says_half_and_leaves_disturbs_nobody() {
    let kernel = kernel(counting);
    let api = Api::start(&["--http-api-max-payload-size", "1000"]);
    let mut silent = UnixStream::connect(&api.socket).unwrap();
    silent.write_all(b"PUT /actions HTTP/1.1\r\nContent-Length: 34\r\n\r\n{\"action").unwrap();
    configure(&api, &kernel);
    start(&api);
    // Half before the start, the other half after it: the connection lives on, the call does not fit any more.
    silent.write_all(b"_type\":\"InstanceStart\"}   ").unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 12];
    silent.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    let mut gone = UnixStream::connect(&api.socket).unwrap();
    gone.write_all(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\nGET").unwrap();
    drop(gone);
    assert_eq!(api.call("PUT", "/mmds", &"x".repeat(1001)).0, 413);
    assert_eq!(api.call("PUT", "/mmds", "{\"a\":").0, 400);
    assert_eq!(state(&api), "Running");
}

fn metadata_and_metrics_are_kept() {
    let kernel = kernel(counting);
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("metadata");
    std::fs::write(&file, "{\"from\":\"file\"}").unwrap();
    let api = Api::start(&["--metadata", file.to_str().unwrap(), "--mmds-size-limit", "60"]);
    assert_eq!(api.get("/mmds"), json!({"from":"file"}));
    api.done("PATCH", "/mmds", &json!({"more":{"a":1}}));
    api.done("PUT", "/metrics", &json!({"metrics_path": api.path("metrics")}));
    api.done("PUT", "/logger", &json!({"log_path": api.path("log"), "level": "Info", "show_level": true}));
    configure(&api, &kernel);
    start(&api);
    assert_eq!(api.get("/mmds"), json!({"from":"file","more":{"a":1}}));
    assert_eq!(api.call("PUT", "/mmds", &json!({"a":"x".repeat(60)}).to_string()).0, 413);
    set_state(&api, "Paused");
    api.done("PUT", "/actions", &json!({"action_type":"FlushMetrics"}));
    let metrics: Value =
        serde_json::from_str(&std::fs::read_to_string(api.path("metrics")).unwrap()).unwrap();
    assert_eq!(metrics["put_api_requests"]["actions_count"], 1);
    assert_eq!(metrics["put_api_requests"]["mmds_fails"], 1);
    assert!(metrics["latencies_us"]["pause_vm"].is_u64());
    let log = std::fs::read_to_string(api.path("log")).unwrap();
    assert!(log.contains(":main:INFO] The API server received a PUT request"), "{log}");
}

fn a_drive_gets_another_medium_while_its_guest_runs() {
    let kernel = kernel(counting);
    let api = Api::start(&[]);
    for (name, sectors) in [("one", 8), ("two", 16), ("odd", 0)] {
        std::fs::write(api.path(name), vec![0; sectors * 512 + usize::from(sectors == 0)]).unwrap();
    }
    configure(&api, &kernel);
    let put = json!({"drive_id":"data","is_root_device":false,"path_on_host":api.path("one")});
    api.done("PUT", "/drives/data", &put);
    start(&api);
    let patch = |name: &str| json!({"drive_id":"data","path_on_host":api.path(name)});
    for name in ["missing", "odd", ""] {
        let message = api.refused("PATCH", "/drives/data", &patch(name));
        assert!(message.contains("Unable to patch the block device"), "{message}");
    }
    assert!(api.refused("PATCH", "/drives/none", &json!({"drive_id":"none"})).contains("no such drive"));
    api.done("PATCH", "/drives/data", &patch("two"));
    assert_eq!(api.get("/vm/config")["drives"][0]["path_on_host"], json!(api.path("two")));
    // A snapshot from here on is of the new medium, and does not fit the old one.
    set_state(&api, "Paused");
    api.done(
        "PUT",
        "/snapshot/create",
        &json!({"snapshot_path":api.path("s"),"mem_file_path":api.path("m")}),
    );
    let other = Api::start(&[]);
    other.done(
        "PUT",
        "/snapshot/load",
        &json!({"snapshot_path":api.path("s"),"mem_file_path":api.path("m")}),
    );
    assert_eq!(other.get("/vm/config")["drives"][0]["path_on_host"], json!(api.path("two")));
}

/// With tiny guests for kernels: two that run on, then one that ends.
fn the_examples_of_the_documentation_work() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md")).unwrap();
    let examples: Vec<&str> =
        text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 3);
    let base = tempfile::tempdir().unwrap();
    let path = |name: &str| base.path().join(name);
    std::fs::copy(kernel(counting).path(), path("vmlinux")).unwrap();
    std::fs::copy(kernel(power_off).path(), path("ending")).unwrap();
    for (name, size) in [("root.img", 4096), ("data.img", 4096), ("larger.img", 8192), ("layer.img", 2 << 20)]
    {
        File::create(path(name)).unwrap().set_len(size).unwrap();
    }
    let _passt = std::os::unix::net::UnixListener::bind(path("passt.sock")).unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_lighter-vmm"));
    let search = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let script = format!(
        "set -eux\ntrap 'kill $first $second 2>/dev/null || true' EXIT\n{}\n{}\nmv ending vmlinux\n{}",
        examples[0], examples[1], examples[2]
    );
    let mut shell = std::process::Command::new("bash");
    shell.arg("-c").arg(script).env("PATH", search).current_dir(base.path());
    let output = shell.stdin(std::process::Stdio::null()).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(
        said.contains("\"state\":\"Running\"") && said.contains("\"uds_path\":\"clone.vsock\""),
        "{said}"
    );
    assert!(path("vm.metrics").metadata().unwrap().len() > 0);
}

fn three_keys_reach_the_guest() {
    let kernel = kernel(keyboard);
    let mut api = Api::start(&[]);
    configure(&api, &kernel);
    start(&api);
    api.done("PUT", "/actions", &json!({"action_type":"SendCtrlAltDel"}));
    assert_eq!(api.wait().code(), Some(0));
}

/// Gives pages of `file` until the VMM is gone; gives how many.
fn handle_faults(listener: &std::os::unix::net::UnixListener, file: &str) -> usize {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::os::fd::AsRawFd as _;
    const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
    let (socket, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 4096];
    let mut buffer = [std::io::IoSliceMut::new(&mut text)];
    let len = recvmsg(&socket, &mut buffer, &mut control, RecvFlags::empty()).unwrap().bytes;
    let uffd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let uffd = uffd.unwrap();
    let mappings: Value = serde_json::from_slice(&text[..len]).unwrap();
    let number = |field: &str| mappings[0][field].as_u64().unwrap();
    assert_eq!((number("size"), number("offset"), number("page_size")), (64 << 20, 0, 4096));
    let file = File::open(file).unwrap();
    let mut given = 0;
    loop {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(&uffd, PollFlags::IN), PollFd::new(&socket, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        if !fds[1].revents().is_empty() {
            return given;
        }
        // struct uffd_msg: the address of a page fault is its third word.
        let mut message = [0; 32];
        if rustix::io::read(&uffd, &mut message).is_err() {
            continue;
        }
        let address = u64::from_le_bytes(message[16..24].try_into().unwrap()) & !4095;
        let mut page = [0_u8; 4096];
        file.read_exact_at(&mut page, address - number("base_host_virt_addr")).unwrap();
        let mut copy = [address, page.as_ptr() as u64, 4096, 0, 0];
        // SAFETY: struct uffdio_copy has these five words; the source is the page above, the target another process's.
        let copied = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_COPY, copy.as_mut_ptr()) };
        // A vCPU and the saver may have asked for one page at a time: it is given once.
        given += usize::from(copied == 0);
    }
}

fn another_process_gives_the_pages_of_a_snapshot() {
    let kernel = kernel(counting);
    let first = Api::start(&[]);
    configure(&first, &kernel);
    start(&first);
    set_state(&first, "Paused");
    let (state, memory) = (first.path("state"), first.path("mem"));
    first.done("PUT", "/snapshot/create", &json!({"snapshot_path":state,"mem_file_path":memory}));
    let listener = std::os::unix::net::UnixListener::bind(first.path("handler")).unwrap();
    let file = memory.clone();
    let handler = std::thread::spawn(move || handle_faults(&listener, &file));
    let second = Api::start(&[]);
    let backend = json!({"backend_type":"Uffd","backend_path":first.path("handler")});
    second.done(
        "PUT",
        "/snapshot/load",
        &json!({"snapshot_path":state,"mem_backend":backend,"resume_vm":true}),
    );
    let begin = Instant::now();
    let own = json!({"snapshot_path":second.path("state"),"mem_file_path":second.path("mem")});
    loop {
        set_state(&second, "Paused");
        second.done("PUT", "/snapshot/create", &own);
        if count(&second.path("mem")) > count(&memory) {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "the guest does not go on");
        set_state(&second, "Resumed");
        std::thread::sleep(Duration::from_millis(10));
    }
    // What nobody touched before is in its snapshot too: the whole of the kernel.
    let page = |path: &str| {
        let mut page = [0; 4096];
        File::open(path).unwrap().read_exact_at(&mut page, support::CODE).unwrap();
        page
    };
    assert_eq!(page(&memory), page(&second.path("mem")));
    assert!(page(&memory).iter().any(|byte| *byte != 0));
    drop(second);
    assert_eq!(handler.join().unwrap(), (64 << 20) / 4096, "each page once");
}

/// Words of guest memory from `DATA` on, in a snapshot's file.
fn words<const N: usize>(path: &str) -> [u64; N] {
    let mut bytes = vec![0; N * 8];
    File::open(path).unwrap().read_exact_at(&mut bytes, DATA).unwrap();
    std::array::from_fn(|word| u64::from_le_bytes(bytes[word * 8..word * 8 + 8].try_into().unwrap()))
}

/// Lets the guest of `api` run until it counts, and saves it to the files `s` and `m`.
fn save_when_it_counts(api: &Api) {
    let begin = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(10));
        set_state(api, "Paused");
        let paths = json!({"snapshot_path":api.path("s"),"mem_file_path":api.path("m")});
        api.done("PUT", "/snapshot/create", &paths);
        if count(&api.path("m")) > 0 {
            return;
        }
        set_state(api, "Resumed");
        assert!(begin.elapsed() < PATIENCE, "the guest does not run");
    }
}

fn a_cpu_template_reaches_the_guest_and_its_clone() {
    let kernel = kernel(asking);
    let leaf = |bitmap: &str| {
        let modifiers = json!([{"register":"eax","bitmap":bitmap}]);
        json!([{"leaf":"0x40000001","subleaf":"0x0","flags":0,"modifiers":modifiers}])
    };
    let template = json!({
        "kvm_capabilities": ["0", "!56"],
        "cpuid_modifiers": leaf("0bxx01"),
        "msr_modifiers": [{"addr":"0x8b","bitmap":"0b1010_1111_0000_0000_0000_0000_0000_0000_0000_0000"}],
    });
    let api = Api::start(&[]);
    configure(&api, &kernel);
    api.done("PUT", "/cpu-config", &template);
    assert_eq!(api.get("/vm/config")["cpu-config"], template);
    start(&api);
    save_when_it_counts(&api);
    let [_, features, revision] = words(&api.path("m"));
    assert_eq!((features & 0b11, revision), (0b01, 0xaf << 32));
    // The snapshot has the template: a machine without would be another one.
    let clone = Api::start(&[]);
    let paths = json!({"snapshot_path":api.path("s"),"mem_file_path":api.path("m"),"resume_vm":true});
    clone.done("PUT", "/snapshot/load", &paths);
    assert_eq!(clone.get("/vm/config")["cpu-config"], template);
    for (template, why) in [
        (json!({"kvm_capabilities":["99999"]}), "lacks capability 99999"),
        (
            json!({"cpuid_modifiers":[{"leaf":"0x12345","subleaf":"0x0","flags":0,"modifiers":[]}]}),
            "leaf 0x12345",
        ),
        (json!({"msr_modifiers":[{"addr":"0x12345","bitmap":"0b1"}]}), "MSR 0x12345"),
    ] {
        let other = Api::start(&[]);
        configure(&other, &kernel);
        other.done("PUT", "/cpu-config", &template);
        let message = other.refused("PUT", "/actions", &json!({"action_type":"InstanceStart"}));
        assert!(message.contains(why), "{message}");
        assert_eq!(state(&other), "Not started");
    }
}

fn devices_have_limits_that_can_be_changed() {
    let kernel = kernel(printing);
    let mut api = Api::start(&[]);
    configure(&api, &kernel);
    File::create(api.path("layer")).unwrap().set_len(2 << 20).unwrap();
    let ops = |size: u64| json!({"ops":{"size":size,"refill_time":1000}});
    let pmem = json!({"id":"layer","path_on_host":api.path("layer"),"rate_limiter":ops(1)});
    api.done("PUT", "/pmem/layer", &pmem);
    api.done("PUT", "/entropy", &json!({"rate_limiter":ops(2)}));
    let bucket = json!({"size":1,"refill_time":3_600_000});
    api.done("PUT", "/serial", &json!({"serial_out_path":api.path("console"),"rate_limiter":bucket}));
    start(&api);
    assert_eq!(api.wait().code(), Some(0), "{}", api.output());
    // "h" and the end of its line, of which one byte passes.
    assert_eq!(std::fs::read_to_string(api.path("console")).unwrap(), "h");

    let kernel = support::kernel(counting);
    let api = Api::start(&[]);
    configure(&api, &kernel);
    File::create(api.path("layer")).unwrap().set_len(2 << 20).unwrap();
    api.done("PUT", "/pmem/layer", &json!({"id":"layer","path_on_host":api.path("layer")}));
    start(&api);
    api.done("PATCH", "/pmem/layer", &json!({"id":"layer","rate_limiter":ops(3)}));
    assert_eq!(api.get("/vm/config")["pmem"][0]["rate_limiter"]["ops"]["size"], 3);
    assert!(api.refused("PATCH", "/pmem/none", &json!({"id":"none"})).contains("no such device"));
    for path in ["/pmem/layer", "/drives/any", "/network-interfaces/any"] {
        let (status, answer) = api.call("DELETE", path, "");
        assert_eq!(status, 400);
        assert!(answer["fault_message"].as_str().unwrap().contains("--enable-pci"), "{answer}");
    }
}

/// With a guest that has no driver for it; `api_guest` has one.
fn memory_that_can_be_plugged_is_part_of_a_snapshot() {
    let kernel = kernel(counting);
    let api = Api::start(&[]);
    configure(&api, &kernel);
    assert!(
        api.refused("PATCH", "/hotplug/memory", &json!({"requested_size_mib":2})).contains("before starting")
    );
    api.done("PUT", "/hotplug/memory", &json!({"total_size_mib":256}));
    let sizes = json!({"total_size_mib":256,"block_size_mib":2,"slot_size_mib":128});
    assert_eq!(api.get("/vm/config")["memory-hotplug"], sizes);
    api.done("PUT", "/balloon", &json!({"amount_mib":0,"deflate_on_oom":true,"free_page_hinting":true}));
    start(&api);
    let status = json!({
        "total_size_mib":256,"block_size_mib":2,"slot_size_mib":128,"plugged_size_mib":0,"requested_size_mib":0
    });
    assert_eq!(api.get("/hotplug/memory"), status);
    let message = api.refused("PATCH", "/hotplug/memory", &json!({"requested_size_mib":128}));
    assert!(message.contains("no driver"), "{message}");
    assert_eq!(api.get("/balloon/hinting/status"), json!({"host_cmd":0,"guest_cmd":null}));
    assert!(api.refused("PATCH", "/balloon/hinting/start", &json!({})).contains("no driver"));
    save_when_it_counts(&api);
    assert_eq!(std::fs::metadata(api.path("m")).unwrap().len(), 320 << 20);
    let clone = Api::start(&[]);
    let paths = json!({"snapshot_path":api.path("s"),"mem_file_path":api.path("m"),"resume_vm":true});
    clone.done("PUT", "/snapshot/load", &paths);
    assert_eq!(clone.get("/hotplug/memory"), status);

    let without = Api::start(&[]);
    configure(&without, &kernel);
    start(&without);
    assert!(
        without
            .refused("PATCH", "/hotplug/memory", &json!({"requested_size_mib":0}))
            .contains("PUT /hotplug")
    );
    for path in ["/hotplug/memory", "/balloon/hinting/status"] {
        assert_eq!(without.call("GET", path, "").0, 400);
    }
}

/// Pages of 2 MiB that the host has set aside, as they were before when it is dropped.
struct Pool(String);

impl Pool {
    const PATH: &str = "/proc/sys/vm/nr_hugepages";

    /// Of `count` pages more; none where they cannot be had.
    fn with(count: u64) -> Option<Self> {
        let before = std::fs::read_to_string(Self::PATH).ok()?.trim().to_owned();
        let wanted = before.parse::<u64>().ok()? + count;
        std::fs::write(Self::PATH, wanted.to_string()).ok()?;
        let pool = Pool(before);
        let now = std::fs::read_to_string(Self::PATH).ok()?;
        (now.trim() == wanted.to_string()).then_some(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::PATH, &self.0);
    }
}

fn huge_pages_take_a_pool_and_say_so() {
    let kernel = kernel(counting);
    let machine = |mib: u32| json!({"vcpu_count":1,"mem_size_mib":mib,"huge_pages":"2M"});
    let api = Api::start(&[]);
    configure(&api, &kernel);
    assert!(api.refused("PUT", "/machine-config", &machine(63)).contains("even"));
    // More than any pool has.
    api.done("PUT", "/machine-config", &machine(1 << 20));
    let message = api.refused("PUT", "/actions", &json!({"action_type":"InstanceStart"}));
    assert!(message.contains("/proc/sys/vm/nr_hugepages"), "{message}");
    let Some(_pool) = Pool::with(32) else {
        println!("skipped: the host gives no huge pages");
        return;
    };
    api.done("PUT", "/machine-config", &machine(64));
    start(&api);
    save_when_it_counts(&api);
    let paths = |pages: &str| json!({"snapshot_path":api.path("s"),"mem_file_path":api.path("m"),"resume_vm":true,"huge_pages":pages});
    let clone = Api::start(&[]);
    assert!(clone.refused("PUT", "/snapshot/load", &paths("Snapshot")).contains("huge_pages to None"));
    clone.done("PUT", "/snapshot/load", &paths("None"));
    assert_eq!(clone.get("/machine-config")["huge_pages"], "None");
}

//! A VM as a whole: how it ends, its console, its vCPUs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::os::fd::AsRawFd;

use support::{DATA, PATIENCE, config, kernel, run, words};
use vmm::config::{BlockEngine, DiskConfig, NetBackend, NetConfig, PmemConfig, VmExit, VsockConfig};
use vmm::control::{Client, Done, Request};
use vmm::emulation::detect;
use vmm::vm::{Happening, Vm};

kvm_tests!(
    each_end_of_a_guest_is_told_apart,
    the_serial_port_writes_the_console_log,
    every_processor_starts,
    a_ready_driver_is_reported_by_name_once,
    writes_to_persistent_memory_reach_the_file_only_where_they_may,
    the_control_socket_steers_the_balloon,
    what_cannot_be_built_is_refused_with_a_reason,
    the_probe_agrees_with_what_the_processor_says,
);

guest!(power_off: "nop");
guest!(reset: "mov al, 0xfe", "out 0x64, al", "2: hlt", "jmp 2b");
guest!(triple_fault: "ud2");

fn each_end_of_a_guest_is_told_apart() {
    assert_eq!(run(power_off, 1).0, VmExit::PowerOff);
    assert_eq!(run(reset, 1).0, VmExit::Reset);
    let VmExit::GuestFault { what } = run(triple_fault, 1).0 else { panic!("a triple fault is a fault") };
    assert!(what.starts_with("triple fault (vCPU 0, rip "), "{what}");
}

guest!(hello:
    "lea rsi, [rip + 3f]",
    "mov ecx, 6",
    "mov dx, 0x3f8",
    "rep outsb",
    "jmp 4f",
    "3: .ascii \"hello\\n\"",
    "4:",
);

fn the_serial_port_writes_the_console_log() {
    let kernel = kernel(hello);
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut config = config(&kernel, 1);
    config.console_log = Some(log.path().to_owned());
    let mut vm = Vm::build(&config).unwrap();
    vm.start().unwrap();
    assert_eq!(vm.run_for(PATIENCE, |_| ()).unwrap(), Some(VmExit::PowerOff));
    assert_eq!(std::fs::read_to_string(log.path()).unwrap(), "hello\n");
}

// Starts every other vCPU with INIT and SIPI through x2APIC; each adds one to the counter at 0x6000.
guest!(all_processors:
    "lea rsi, [rip + 3f]",
    "mov edi, 0x8000",
    "mov ecx, 64",
    "rep movsb",
    // IA32_APIC_BASE: x2APIC on, then the spurious vector with the APIC enabled.
    "mov ecx, 0x1b",
    "rdmsr",
    "or eax, 0xc00",
    "wrmsr",
    "mov ecx, 0x80f",
    "mov eax, 0x1ff",
    "xor edx, edx",
    "wrmsr",
    "mov ecx, 0x830",
    "mov eax, 0xc4500",
    "wrmsr",
    "mov eax, 0xc4608",
    "wrmsr",
    "2: mov eax, [r15 - 8]",
    "cmp eax, [0x6000]",
    "pause",
    "jne 2b",
    "jmp 4f",
    "3: .code16",
    "xor ax, ax",
    "mov ds, ax",
    "lock inc dword ptr [0x6000]",
    "5: cli",
    "hlt",
    "jmp 5b",
    ".code64",
    "4:",
);

fn every_processor_starts() {
    for vcpus in [1_u8, 2, 4, 32] {
        let kernel = kernel(all_processors);
        let mut vm = Vm::build(&config(&kernel, vcpus)).unwrap();
        let others = u32::from(vcpus) - 1;
        vm_memory::Bytes::write_obj(vm.memory(), others, vm_memory::GuestAddress(DATA - 8)).unwrap();
        vm.start().unwrap();
        let exit = vm.run_for(PATIENCE, |_| ()).unwrap();
        let [started] = words(&vm, 0x6000);
        assert_eq!((exit, started), (Some(VmExit::PowerOff), u64::from(others)), "{vcpus} vCPUs");
    }
}

// Negotiates the rng device in the last slot, whose address the test leaves at DATA - 8.
guest!(driver:
    "mov ebx, [r15 - 8]",
    // The identity map ends at one GiB: a third page table maps 3 to 4 GiB the same way.
    "lea rdi, [r15 + 0x10000]",
    "mov eax, 0xc0000083",
    "mov ecx, 512",
    "2: mov [rdi], rax",
    "add rax, 0x200000",
    "add rdi, 8",
    "dec ecx",
    "jnz 2b",
    "lea rax, [r15 + 0x10003]",
    "mov [0xa018], rax",
    "mov rax, cr3",
    "mov cr3, rax",
    "mov eax, [rbx]",
    "mov [r15], rax",
    // ACKNOWLEDGE and DRIVER, VIRTIO_F_VERSION_1, FEATURES_OK, DRIVER_OK with no queue.
    "mov dword ptr [rbx + 0x70], 3",
    "mov dword ptr [rbx + 0x24], 1",
    "mov dword ptr [rbx + 0x20], 1",
    "mov dword ptr [rbx + 0x70], 11",
    "mov dword ptr [rbx + 0x70], 15",
    "mov eax, [rbx + 0x70]",
    "mov [r15 + 8], rax",
);

fn a_ready_driver_is_reported_by_name_once() {
    let kernel = kernel(driver);
    let mut vm = Vm::build(&config(&kernel, 1)).unwrap();
    let rng = arch::layout::virtio_mmio_address(0) as u32;
    vm_memory::Bytes::write_obj(vm.memory(), rng, vm_memory::GuestAddress(DATA - 8)).unwrap();
    vm.start().unwrap();
    let mut seen = Vec::new();
    let exit = vm.run_for(PATIENCE, |happening| seen.push(happening)).unwrap();
    assert_eq!(exit, Some(VmExit::PowerOff));
    assert_eq!(words(&vm, DATA), [0x7472_6976, 15]);
    assert!(matches!(seen[0], Happening::FirstRun { .. }), "{seen:?}");
    assert_eq!(seen[1..], [Happening::DriverReady { device: "rng".into() }]);
}

// Reads the first word of the persistent memory at 4 GiB, writes one, and reads it again.
guest!(pmem:
    // The identity map ends at one GiB: a third page table maps the fifth one the same way.
    "lea rdi, [r15 + 0x10000]",
    "mov rax, 0x100000083",
    "mov [rdi], rax",
    "lea rax, [r15 + 0x10003]",
    "mov [0xa020], rax",
    "mov rax, cr3",
    "mov cr3, rax",
    "mov rbx, 0x100000000",
    "mov rax, [rbx]",
    "mov [r15], rax",
    "mov rax, 0x6e6574746972770a",
    "mov [rbx], rax",
    "mov rax, [rbx]",
    "mov [r15 + 8], rax",
);

fn writes_to_persistent_memory_reach_the_file_only_where_they_may() {
    const BEFORE: u64 = 0x0123_4567_89ab_cdef;
    const WRITTEN: u64 = 0x6e65_7474_6972_770a;
    let kernel = kernel(pmem);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = BEFORE.to_le_bytes().to_vec();
    bytes.resize(2 << 20, 0);
    std::fs::write(file.path(), bytes).unwrap();
    for (read_only, after) in [(true, BEFORE), (false, WRITTEN)] {
        let mut config = config(&kernel, 1);
        config.pmem = vec![PmemConfig { path: file.path().to_owned(), read_only }];
        let mut vm = Vm::build(&config).unwrap();
        vm.start().unwrap();
        assert_eq!(vm.run_for(PATIENCE, |_| ()).unwrap(), Some(VmExit::PowerOff));
        assert_eq!(words(&vm, DATA), [BEFORE, after], "read-only: {read_only}");
        assert_eq!(std::fs::read(file.path()).unwrap()[..8], after.to_le_bytes());
    }
}

guest!(forever: "2: jmp 2b");

/// What a client hears whose requests a VM with or without a balloon answers.
fn answers(balloon: bool, requests: &[Request]) -> Vec<Result<Done, String>> {
    let kernel = kernel(forever);
    let mut config = config(&kernel, 1);
    config.balloon = balloon;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let mut vm = Vm::build(&config).unwrap();
    vm.control_at(&path).unwrap();
    vm.start().unwrap();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut client = Client::connect(&path, PATIENCE).unwrap();
            let ask = |request| client.ask(request).map_err(|error| error.to_string());
            requests.iter().map(ask).collect()
        });
        while !client.is_finished() {
            vm.run_for(std::time::Duration::from_millis(10), |_| ()).unwrap();
        }
        if let Some(balloon) = vm.balloon() {
            assert_eq!(balloon.target_mib(), 8);
        }
        client.join().unwrap()
    })
}

fn the_control_socket_steers_the_balloon() {
    let requests = [Request::Status, Request::Balloon { mib: 8 }, Request::Balloon { mib: 33 }];
    let status = |answer: &Result<Done, String>| answer.as_ref().unwrap().balloon_mib;
    let with = answers(true, &requests);
    assert_eq!(status(&with[0]), Some(0));
    assert_eq!(with[1..], [Ok(Done::default()), Err("a balloon of 33 MiB: the guest has 32 MiB".into())]);
    let without = answers(false, &requests);
    assert_eq!(status(&without[0]), None);
    assert_eq!(without[1], Err("this VM has no balloon".into()));
}

fn what_cannot_be_built_is_refused_with_a_reason() {
    let kernel = kernel(power_off);
    let refusal = |edit: &dyn Fn(&mut vmm::config::VmConfig)| {
        let mut config = config(&kernel, 1);
        edit(&mut config);
        Vm::build(&config).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refusal(&|config| config.vcpus = 33), "33 vCPUs: from 1 to 32 are possible");
    assert_eq!(refusal(&|config| config.vcpus = 0), "0 vCPUs: from 1 to 32 are possible");
    assert!(refusal(&|config| config.mem_size_mib = 8).starts_with("8 MiB of guest memory: from 32"));
    assert!(refusal(&|config| config.kernel.path = "/missing".into()).contains("/missing"));
    assert!(refusal(&|config| config.kernel.cmdline = "x".repeat(3000)).contains("the kernel takes at most"));
    let disk = DiskConfig {
        path: "/missing".into(),
        read_only: true,
        serial: String::new(),
        engine: BlockEngine::Sync,
        limits: Default::default(),
    };
    assert!(refusal(&|config| config.disks = vec![disk.clone()]).contains("/missing"));
    assert!(refusal(&|config| config.disks = vec![disk.clone(); 17]).contains("17 disks"));
    assert!(
        refusal(&|config| config.spare_slots = 19)
            .starts_with("20 virtio devices and spare slots: at most 19")
    );
    let plug_two = refusal(&|config| {
        config.spare_slots = 1;
        config.plugged.disks = vec![disk.clone(); 2];
    });
    assert_eq!(plug_two, "2 plugged devices: there are 1 spare slots");
    let null = std::fs::File::open("/dev/null").unwrap();
    let net = |fd| {
        let mac = [2, 0, 0, 0, 0, 1];
        vec![NetConfig {
            fd,
            backend: NetBackend::Tap,
            mac,
            limits: Default::default(),
            mtu: None,
            service: None,
        }]
    };
    assert!(refusal(&|config| config.net = net(null.as_raw_fd())).contains("TAP"));
    assert!(refusal(&|config| config.net = net(-1)).contains("TAP"));
    let vsock = VsockConfig { guest_cid: 2, uds_path: "/missing/v.sock".into() };
    assert!(refusal(&|config| config.vsock = Some(vsock.clone())).contains("vsock"));
}

fn the_probe_agrees_with_what_the_processor_says() {
    let kvm = kvm_ioctls::Kvm::new().unwrap();
    assert_eq!(detect::probe(&kvm).unwrap(), detect::emulated_ring0(&kvm).unwrap());
}

//! `lighter-jailer` as a client of Firecracker's jailer uses it: same command line, same tree, and a program that holds
//! nothing.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const UID: u32 = 71_234;
const GID: u32 = 71_235;

/// A directory with the VMM in it under Firecracker's name.
struct Place(tempfile::TempDir);

impl Place {
    /// None without root, which jailing takes.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: it takes root to jail a program");
            return None;
        }
        let place = Place(tempfile::tempdir().unwrap());
        fs::set_permissions(place.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(place.program(), programs::VMM.content).unwrap();
        fs::set_permissions(place.program(), fs::Permissions::from_mode(0o755)).unwrap();
        Some(place)
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("firecracker")
    }

    /// Firecracker's layout: base, name of the program, ID.
    fn root(&self, id: &str) -> PathBuf {
        self.0.path().join("jail/firecracker").join(id).join("root")
    }

    fn jail(&self, id: &str, more: &str, rest: &str) -> Output {
        let (program, base) = (self.program(), self.0.path().join("jail"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_lighter-jailer"));
        command.args(["--id", id, "--uid", &UID.to_string(), "--gid", &GID.to_string()]);
        command.arg("--exec-file").arg(program).arg("--chroot-base-dir").arg(base);
        command.args(more.split_whitespace()).arg("--").args(rest.split_whitespace());
        command.output().unwrap()
    }
}

fn status(pid: &str, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Asks the API until it answers.
fn ask(socket: &Path) -> String {
    call(socket, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

/// The beginning of the answer to `request`, once somebody listens.
fn call(socket: &Path, request: &str) -> String {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(mut stream) = UnixStream::connect(socket) {
            stream.write_all(request.as_bytes()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut answer = [0; 512];
            let count = stream.read(&mut answer).unwrap();
            return String::from_utf8_lossy(&answer[..count]).into_owned();
        }
        assert!(Instant::now() < end, "nothing listens on {}", socket.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_jailed_vmm_serves_its_api_and_holds_nothing() {
    let Some(place) = Place::new() else { return };
    let more = "--new-pid-ns --daemonize --resource-limit no-file=512 --resource-limit fsize=1048576";
    let output = place.jail("vm-1", more, "--api-sock /run/api.sock");
    assert!(output.status.success(), "{output:?}");
    let root = place.root("vm-1");
    let answer = ask(&root.join("run/api.sock"));
    assert!(answer.contains("\"id\":\"vm-1\""), "{answer}");
    let pid = fs::read_to_string(root.join("firecracker.pid")).unwrap();
    assert_eq!(status(&pid, "Uid"), [UID.to_string().as_str(); 4].join(" "));
    assert_eq!(status(&pid, "Gid"), [GID.to_string().as_str(); 4].join(" "));
    for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(status(&pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(&pid, "NoNewPrivs"), "1");
    assert_eq!(status(&pid, "NSpid").split(' ').next_back(), Some("1"));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(
        limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 512 ")),
        "{limits}"
    );
    assert!(
        limits.lines().any(|line| line.starts_with("Max file size") && line.contains("1048576")),
        "{limits}"
    );
    let inside = format!("/proc/{pid}/root");
    assert!(!Path::new(&inside).join("etc").exists() && Path::new(&inside).join("dev/kvm").exists());
    for (device, number) in [("kvm", (10, 232)), ("net/tun", (10, 200)), ("urandom", (1, 9))] {
        let found = fs::metadata(root.join("dev").join(device)).unwrap();
        let parts = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
        assert_eq!((parts, found.uid(), found.gid()), (number, UID, GID), "{device}");
    }
    drop(Alive(pid.parse().unwrap()));
}

/// Control groups below the root of each hierarchy, gone when it is dropped.
struct Groups {
    parent: String,
    /// Version, file and where the group is in the file system.
    files: Vec<(u8, &'static str, PathBuf)>,
}

impl Groups {
    /// `pids.max` in whichever version this host has it, and with version 1 in a second hierarchy too.
    fn find() -> Self {
        let parent = format!("lighter-test-{}", std::process::id());
        let mut files = Vec::new();
        for line in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let place = Path::new(words[1]);
            let has = |name: &str| match words[2] {
                "cgroup" => words[3].split(',').any(|own| own == name),
                _ => fs::read_to_string(place.join("cgroup.controllers"))
                    .is_ok_and(|own| own.split_whitespace().any(|own| own == name)),
            };
            let version = if words[2] == "cgroup2" { 2 } else { 1 };
            for (controller, file) in [("pids", "pids.max"), ("cpuset", "cpuset.cpus")] {
                if words[2].starts_with("cgroup") && has(controller) {
                    files.push((version, file, place.join(&parent)));
                }
            }
        }
        files.sort();
        files.dedup_by_key(|(version, file, _)| (*version, *file));
        Groups { parent, files }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for (_, _, place) in &self.files {
            // Its process may be on its way out.
            for _ in 0..200 {
                let _ = fs::remove_dir(place.join("vm-5"));
                if fs::remove_dir(place).is_ok() || !place.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

#[test]
fn a_jailed_vmm_is_in_the_control_groups_that_were_asked_for() {
    let Some(place) = Place::new() else { return };
    let groups = Groups::find();
    for version in [1, 2] {
        let files: Vec<_> = groups.files.iter().filter(|(own, ..)| *own == version).collect();
        if files.is_empty() {
            eprintln!("skipped: this host has no controller in version {version}");
            continue;
        }
        let mut more = format!("--daemonize --cgroup-version {version} --parent-cgroup {}", groups.parent);
        for (_, file, _) in &files {
            more += &format!(" --cgroup {file}={}", if *file == "pids.max" { "77" } else { "0" });
        }
        let output = place.jail("vm-5", &more, "--api-sock /run/api.sock");
        assert!(output.status.success(), "{output:?}");
        let root = place.root("vm-5");
        ask(&root.join("run/api.sock"));
        let pid = fs::read_to_string(root.join("firecracker.pid")).unwrap();
        let alive = Alive(pid.parse().unwrap());
        for (_, file, group) in files {
            let group = group.join("vm-5");
            let read = |name: &str| fs::read_to_string(group.join(name)).unwrap();
            assert_eq!(read(file).trim(), if *file == "pids.max" { "77" } else { "0" }, "{file}");
            assert!(read("cgroup.procs").lines().any(|line| line == pid), "{file}");
        }
        drop(alive);
        let _ = fs::remove_file(root.join("run/api.sock"));
    }
}

/// A process that is killed, and gone, when this is dropped.
struct Alive(i32);

impl Drop for Alive {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        while Path::new(&format!("/proc/{}/root/dev", self.0)).exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// A network namespace with a name.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).output();
    }
}

#[test]
fn a_jailed_vmm_uses_a_tap_of_the_network_namespace_that_it_was_given() {
    let Some(place) = Place::new() else { return };
    let namespace = Namespace(format!("lighter-test-{}", std::process::id()));
    let Namespace(name) = &namespace;
    ip(&format!("netns add {name}"));
    ip(&format!("-netns {name} tuntap add tap0 mode tap user {UID}"));
    let path = format!("/run/netns/{name}");
    let output = place.jail("vm-6", &format!("--daemonize --netns {path}"), "--api-sock /run/api.sock");
    assert!(output.status.success(), "{output:?}");
    let root = place.root("vm-6");
    let socket = root.join("run/api.sock");
    let put = |tap: &str| {
        let body = format!(r#"{{"iface_id":"eth0","host_dev_name":"{tap}"}}"#);
        let head = "PUT /network-interfaces/eth0 HTTP/1.1\r\nConnection: close\r\nContent-Length: ";
        call(&socket, &format!("{head}{}\r\n\r\n{body}", body.len()))
    };
    let answer = put("tap0");
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    // It may make none.
    let answer = put("tap1");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("Open tap device failed"), "{answer}");
    let pid = fs::read_to_string(root.join("firecracker.pid")).unwrap();
    let _alive = Alive(pid.parse().unwrap());
    let inode = |path: &str| fs::metadata(path).unwrap().ino();
    let own = format!("/proc/{pid}/ns/net");
    assert_eq!(inode(&own), inode(&path));
    assert_ne!(inode(&own), inode("/proc/self/ns/net"));
}

#[test]
fn the_program_gets_its_id_and_the_rest() {
    let Some(place) = Place::new() else { return };
    let output = place.jail("vm-2", "", "--version");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("Firecracker v"), "{output:?}");
    // A second life in the same tree.
    assert!(place.jail("vm-2", "", "--version").status.success());
}

#[test]
fn what_is_wrong_is_named() {
    let Some(place) = Place::new() else { return };
    for (more, named) in [
        ("--netns /no/such/namespace", "/no/such/namespace"),
        ("--cgroup nonsense.max=1", "nonsense"),
        ("--frob", "--frob"),
    ] {
        let output = place.jail("vm-3", more, "");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(named), "{output:?}");
    }
}

//! What the processes of live VMs really hold, as `lighter inspect --security` shows it.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use lighter_tests::namespace::Namespace;
use serde_json::Value;

fn main() -> ExitCode {
    run_tests(vec![
        test("a_vmm_holds_nothing_but_what_its_machine_was_given", &[Need::Kvm], confined),
        test("its_helpers_hold_what_their_work_takes", HELPED, helpers),
    ])
}

const HELPED: &[Need] = &[Need::Kvm, Need::Root, Need::Program("ip"), Need::Program("passt")];

/// First user ID that VMMs get from root (`jailer::FIRST_UID`).
const FIRST_UID: u64 = 0x7000_0000;

fn confined() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let run = |name: &str, more: &[&str]| {
        let first = ["run", "-d", "--rm", "--network", "none", "--name", name];
        let command = ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1; done"];
        let child = installation.command([&first[..], more, &[&image], &command].concat()).spawn()?;
        finish(child, GUEST_DEADLINE)
    };
    let look = |name: &str| -> anyhow::Result<Value> {
        let json = installation.stdout(["inspect", "--security", "--format", "json", name])?;
        serde_json::from_str::<Vec<Value>>(&json)?.pop().context("an empty list")
    };
    for name in ["cell", "other"] {
        let output = run(name, &[])?;
        ensure!(output.status.success(), "{output:?}");
    }
    // Its life goes on in there.
    ensure!(installation.stdout(["exec", "cell", "echo", "alive"])? == "alive\n");
    installation.stdout(["pause", "cell"])?;
    installation.stdout(["unpause", "cell"])?;
    installation.stdout(["snapshot", "create", "cell", "saved"]).context("a snapshot of a confined VMM")?;

    let (cell, other) = (look("cell")?, look("other")?);
    ensure!(cell["missing"] == serde_json::json!([]) && cell["sandboxed"] == true, "{cell:#}");
    for namespace in ["ipc", "mnt", "net", "pid", "user", "uts"] {
        ensure!(cell["namespaces"][namespace] == true, "{namespace}: {cell:#}");
    }
    let sets = cell["capabilities"].as_object().context("no capabilities")?;
    ensure!(sets.len() == 5 && sets.values().all(|set| set == "0000000000000000"), "{sets:?}");
    ensure!(cell["no_new_privs"] == true && cell["limits"]["Max core file size"] == "0", "{cell:#}");
    let root = cell["root"].as_array().context("no root")?;
    ensure!(root.iter().all(|file| file["socket"] == true), "{root:?}");
    let mounts = cell["mounts"].as_array().context("no mounts")?;
    ensure!(mounts.len() == root.len() + 1, "{mounts:?}");
    if rustix::process::geteuid().is_root() {
        ensure!(cell["uid"].as_u64() >= Some(FIRST_UID) && cell["uid"] != other["uid"], "{cell:#}");
        ensure!(cell["groups"] == serde_json::json!([]), "{cell:#}");
    }
    let threads = cell["threads"].as_array().context("no threads")?;
    ensure!(threads.len() >= 2 && threads.iter().all(|thread| thread["seccomp"] == "filter"), "{threads:?}");
    ensure!(threads.iter().any(|thread| thread["role"] == "vcpu"), "{threads:?}");
    for role in ["vcpu", "worker", "saver"] {
        let calls = cell["calls"][role].as_array().context("no calls")?;
        ensure!(
            !calls.is_empty() && !calls.iter().any(|call| call == "execve" || call == "openat"),
            "{calls:?}"
        );
    }
    files(&cell, &installation)?;

    let output = run("bare", &["--no-sandbox"])?;
    let warning = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && warning.contains("--no-sandbox: "), "{output:?}");
    let bare = look("bare")?;
    ensure!(
        bare["sandboxed"] == false && bare["missing"].as_array().is_some_and(|all| all.len() > 5),
        "{bare:#}"
    );
    let table = installation.stdout(["inspect", "--security", "bare"])?;
    ensure!(table.contains("off (--no-sandbox)") && table.contains("net namespace"), "{table}");
    installation.stdout(["rm", "-f", "cell", "other", "bare"])?;
    Ok(())
}

/// The file server and the user-mode network of a live machine.
fn helpers() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let host = Namespace::new()?;
    host.add_wire("198.51.100.1/24")?;
    let share = tempfile::tempdir()?;
    let volume = format!("{}:/s", share.path().display());
    let options = ["run", "-d", "--rm", "--name", "helped", "--network", "user", "-v", &volume];
    let command = ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1; done"];
    let image = busybox_reference()?;
    host.stdout(&installation, &[&options[..], &[&image], &command].concat())?;
    let json = host.stdout(&installation, &["inspect", "--security", "--format", "json", "helped"])?;
    let report = serde_json::from_str::<Vec<Value>>(&json)?.pop().context("an empty list")?;
    let helpers = report["helpers"].as_array().context("no helpers")?;
    ensure!(helpers.len() == 2 && report["missing"] == serde_json::json!([]), "{report:#}");
    for helper in helpers {
        let name = helper["name"].as_str().context("no name")?;
        ensure!(helper["missing"] == serde_json::json!([]), "{helper:#}");
        ensure!(helper["filter"] == true && helper["no_new_privs"] == true, "{helper:#}");
        let network = name.starts_with("passt");
        for (namespace, own) in
            [("mnt", true), ("pid", true), ("ipc", true), ("uts", true), ("net", !network)]
        {
            ensure!(helper["namespaces"][namespace] == own, "{namespace}: {helper:#}");
        }
        let capabilities = helper["capabilities"]["effective"].as_str().context("no capabilities")?;
        match network {
            true => ensure!(
                capabilities == "0000000000000000" && helper["root_entries"] == 0 && helper["uid"] != 0,
                "{helper:#}"
            ),
            // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID and SETFCAP; its one share, and /proc/self/fd.
            false => ensure!(
                name == "file server" && capabilities == "00000000800000db" && helper["root_entries"] == 2,
                "{helper:#}"
            ),
        }
    }
    host.stdout(&installation, &["rm", "-f", "helped"])?;
    Ok(())
}

/// What is open is the machine's: nothing of the other one, no directory, no terminal.
fn files(report: &Value, installation: &Installation) -> anyhow::Result<()> {
    let own = report["container"].as_str().context("no ID")?;
    let data = installation.root();
    let data = data.to_str().context("an odd path")?;
    for file in report["files"].as_array().context("no files")? {
        let what = file["what"].as_str().context("no name")?;
        let kernel_made =
            ["anon_inode:", "socket:", "pipe:", "/memfd:"].iter().any(|kind| what.starts_with(kind));
        let device = ["/dev/null", "/dev/kvm"].contains(&what);
        let shared = !file["writable"].as_bool().unwrap_or(true);
        let of_own_container = what.contains(&format!("/containers/{own}/"));
        let own_memory = what.ends_with("/pagemap") || what.ends_with("/maps");
        ensure!(
            kernel_made || device || of_own_container || shared || own_memory,
            "{what} is none of its business, below {data}: {report:#}"
        );
        ensure!(!what.contains("/containers/") || of_own_container, "{what} is another container's");
    }
    Ok(())
}

//! Snapshots of running containers, restored, cloned and carried to another installation.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox_reference, oci_layout};
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use lighter_tests::registry::Registry;
use serde_json::Value;

/// Counts quickly for a while, again and again, so that something is often on its way.
const COUNTER: &str =
    "echo $$ > /tmp/pid; i=0; while :; do i=$((i+1)); echo $i; [ $((i % 40)) = 0 ] && sleep 1; done";
/// The same at leisure.
const TICKER: &str = "echo first > /tmp/file; i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done";

fn main() -> ExitCode {
    run_tests(vec![
        test("a_restored_container_goes_on_where_it_was_saved", &[Need::Kvm], restored),
        test("clones_have_identities_of_their_own_and_lose_no_output", &[Need::Kvm], cloned),
        test("an_exported_snapshot_goes_on_in_another_installation", &[Need::Kvm], carried),
        test(
            "a_snapshot_goes_through_a_registry",
            &[Need::Kvm, Need::Program("docker-registry"), Need::Program("skopeo"), Need::Program("umoci")],
            through_a_registry,
        ),
        test("a_snapshot_removed_under_its_copies_does_not_matter", &[Need::Kvm], removed),
        test("whoever_makes_a_snapshot_may_die_at_any_time", &[Need::Kvm], killed),
        test("a_vmm_or_keeper_may_die_while_it_saves", &[Need::Kvm], killed_while_saving),
        test("what_cannot_be_saved_or_found_is_said", &[Need::Kvm], refused),
        test("a_snapshot_of_another_processor_is_refused_with_both_values", &[Need::Kvm], other_processor),
    ])
}

/// An installation whose containers end with the test, however that ends.
struct Tidy(Installation);

impl Tidy {
    fn new() -> anyhow::Result<Self> {
        Ok(Tidy(Installation::new()?))
    }
}

impl std::ops::Deref for Tidy {
    type Target = Installation;

    fn deref(&self) -> &Installation {
        &self.0
    }
}

impl Drop for Tidy {
    fn drop(&mut self) {
        let ids = self.stdout(["ps", "-aq"]).unwrap_or_default();
        for id in ids.lines() {
            let _ = self.output(["rm", "-f", id]);
        }
    }
}

/// A running container called `name`.
fn start(installation: &Installation, name: &str, script: &str) -> anyhow::Result<()> {
    let image = busybox_reference()?;
    installation
        .stdout(["run", "-d", "--name", name, "--network", "none", &image, "sh", "-c", script])
        .map(|_| ())
}

/// Waits until the container's log has a number of at least `at_least`, and gives all its whole lines.
fn numbers(installation: &Installation, name: &str, at_least: u64) -> anyhow::Result<Vec<u64>> {
    let end = Instant::now() + GUEST_DEADLINE;
    loop {
        let log = installation.stdout(["logs", name])?;
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let numbers: Vec<u64> = whole.lines().filter_map(|line| line.parse().ok()).collect();
        if numbers.last().is_some_and(|last| *last >= at_least) {
            return Ok(numbers);
        }
        ensure!(Instant::now() < end, "{name} does not go on: {:?}", numbers.last());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn ensure_contiguous(numbers: &[u64]) -> anyhow::Result<()> {
    for pair in numbers.windows(2) {
        ensure!(pair[1] == pair[0] + 1, "{} is followed by {}", pair[0], pair[1]);
    }
    Ok(())
}

fn json(installation: &Installation, args: &[&str]) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&installation.stdout(args)?)?)
}

/// What `lighter ARGS…` says when it fails.
fn failure(installation: &Installation, args: &[&str]) -> anyhow::Result<String> {
    let output = installation.output(args)?;
    ensure!(output.status.code() == Some(125) || output.status.code() == Some(1), "{}", output.status);
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn restored() -> anyhow::Result<()> {
    let installation = Tidy::new()?;
    start(&installation, "one", TICKER)?;
    numbers(&installation, "one", 2)?;
    ensure!(installation.stdout(["snapshot", "create", "one", "saved"])?.trim() == "saved");
    installation.stdout(["exec", "one", "sh", "-c", "echo changed > /tmp/file"])?;
    let before = numbers(&installation, "one", 4)?;
    let listed = json(&installation, &["snapshot", "ls", "--format", "json"])?;
    ensure!(listed["snapshots"][0]["name"] == "saved" && listed["snapshots"][0]["container"] == "one");
    let inspected = json(&installation, &["snapshot", "inspect", "saved"])?;
    ensure!(inspected[0]["snapshot"]["spec"]["rootfs"].is_string() && inspected[0]["vcpus"] == 1);
    installation.stdout(["rm", "-f", "one"])?;
    installation.stdout(["restore", "saved", "--name", "back"])?;
    let after = numbers(&installation, "back", 4)?;
    ensure_contiguous(&after)?;
    ensure!(after[0] <= before.last().copied().unwrap_or(0) && after[0] > 1, "{after:?}");
    ensure!(installation.stdout(["exec", "back", "cat", "/tmp/file"])?.trim() == "first");
    // Its disk is its own: what it writes is there after a stop and a start, which boots.
    installation.stdout(["exec", "back", "sh", "-c", "echo kept > /root/file"])?;
    installation.stdout(["stop", "-t", "0", "back"])?;
    installation.stdout(["start", "back"])?;
    ensure!(installation.stdout(["exec", "back", "cat", "/root/file"])?.trim() == "kept");
    installation.stdout(["rm", "-f", "back"])?;
    installation.stdout(["snapshot", "rm", "saved"])?;
    ensure!(failure(&installation, &["restore", "saved"])?.contains("no such snapshot"));
    ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    Ok(())
}

fn cloned() -> anyhow::Result<()> {
    let installation = Tidy::new()?;
    start(&installation, "one", COUNTER)?;
    numbers(&installation, "one", 100)?;
    let ids = installation.stdout(["clone", "one", "-n", "2", "--name", "copy"])?;
    ensure!(ids.lines().count() == 2, "{ids}");
    let copies = [numbers(&installation, "copy-1", 200)?, numbers(&installation, "copy-2", 200)?];
    // What was written before the branch is in the original's log, what came after in each one's own.
    let original = numbers(&installation, "one", copies[0][0])?;
    ensure_contiguous(&original)?;
    for copy in &copies {
        ensure_contiguous(copy)?;
        ensure!(original.contains(&(copy[0] - 1)), "{} before {}", original.len(), copy[0]);
    }
    ensure!(copies[0][0] == copies[1][0], "both go on from one moment");
    let mut seen = HashSet::new();
    for name in ["one", "copy-1", "copy-2"] {
        let of = |command: &str| installation.stdout(["exec", name, "sh", "-c", command]);
        ensure!(seen.insert(of("hostname; cat /etc/hostname")?), "the host name of {name}");
        ensure!(seen.insert(of("head -c 16 /dev/urandom | md5sum")?), "random bytes of {name}");
        ensure!(of("cat /tmp/pid; kill -0 $(cat /tmp/pid) && echo runs")?.ends_with("runs\n"));
        let now: i64 = of("date +%s")?.trim().parse()?;
        let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() as i64;
        ensure!((host - now).abs() <= 30, "the clock of {name}: {now}, {host}");
    }
    // A copy of a copy.
    installation.stdout(["clone", "copy-1", "--name", "again"])?;
    let again = numbers(&installation, "again", copies[0][0] + 100)?;
    ensure_contiguous(&again)?;
    installation.stdout(["rm", "-f", "one", "copy-1", "copy-2", "again"])?;
    ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    Ok(())
}

fn carried() -> anyhow::Result<()> {
    let (here, there) = (Tidy::new()?, Tidy::new()?);
    start(&here, "one", TICKER)?;
    numbers(&here, "one", 2)?;
    here.stdout(["snapshot", "create", "one"])?;
    let base = tempfile::tempdir()?;
    let file = base.path().join("one.lighter");
    let path = file.to_str().context("a path that is no text")?;
    here.stdout(["snapshot", "export", "one", path])?;
    ensure!(failure(&here, &["snapshot", "export", "one", path])?.contains("cannot write"));
    here.stdout(["rm", "-f", "one"])?;
    there.stdout(["snapshot", "import", path, "travelled"])?;
    ensure!(failure(&there, &["snapshot", "import", path, "travelled"])?.contains("already"));
    there.stdout(["restore", "travelled", "--name", "one"])?;
    let after = numbers(&there, "one", 5)?;
    ensure_contiguous(&after)?;
    ensure!(after[0] > 1 && there.stdout(["exec", "one", "cat", "/tmp/file"])?.trim() == "first");
    there.stdout(["rm", "-f", "one"])?;
    // Half a file.
    let bytes = std::fs::read(&file)?;
    std::fs::write(&file, &bytes[..bytes.len() / 2])?;
    ensure!(failure(&there, &["snapshot", "import", path, "half"])?.contains("cannot import"));
    ensure!(
        json(&there, &["snapshot", "ls", "--format", "json"])?["snapshots"].as_array().map(Vec::len)
            == Some(1)
    );
    Ok(())
}

fn through_a_registry() -> anyhow::Result<()> {
    let (here, there) = (Tidy::new()?, Tidy::new()?);
    let registry = Registry::start()?;
    start(&here, "one", TICKER)?;
    here.stdout(["exec", "one", "sh", "-c", "echo first > /tmp/file"])?;
    here.stdout(["snapshot", "create", "one"])?;
    here.stdout(["rm", "-f", "one"])?;
    let reference = format!("{}/machines/one:now", registry.address);
    let pushed = here.stdout(["snapshot", "push", "one", &reference])?;
    ensure!(pushed.contains("digest: sha256:") && !pushed.contains("sent: 0 B"), "{pushed}");
    // What is there is not sent again.
    let again =
        here.stdout(["snapshot", "push", "one", &format!("{}/machines/one:later", registry.address)])?;
    ensure!(again.contains("sent: 0 B"), "{again}");
    there.stdout(["snapshot", "pull", &reference, "pulled"])?;
    ensure!(failure(&there, &["snapshot", "pull", &reference, "pulled"])?.contains("already"));
    there.stdout(["restore", "pulled", "--name", "one"])?;
    ensure_contiguous(&numbers(&there, "one", 5)?)?;
    ensure!(there.stdout(["exec", "one", "cat", "/tmp/file"])?.trim() == "first");
    there.stdout(["rm", "-f", "one"])?;
    let base = tempfile::tempdir()?;
    let layout = oci_layout(base.path(), &[])?;
    let image = registry.push(&format!("oci:{}:latest", layout.display()), "image:1")?;
    let refused = failure(&there, &["snapshot", "pull", &image, "image"])?;
    ensure!(refused.contains("is no application/vnd.lighter.snapshot"), "{refused}");
    ensure!(failure(&there, &["snapshot", "pull", &format!("{reference}r"), "none"])?.contains("nowr"));
    let left = json(&there, &["snapshot", "ls", "--format", "json"])?;
    ensure!(left["snapshots"].as_array().map(Vec::len) == Some(1), "{left}");
    Ok(())
}

fn removed() -> anyhow::Result<()> {
    let installation = Tidy::new()?;
    start(&installation, "one", TICKER)?;
    installation.stdout(["snapshot", "create", "one", "saved"])?;
    installation.stdout(["restore", "saved", "--name", "copy"])?;
    installation.stdout(["snapshot", "rm", "saved"])?;
    installation.stdout(["rm", "-f", "one"])?;
    // Programs whose pages were never touched come from the files that were removed.
    ensure!(installation.stdout(["exec", "copy", "sh", "-c", "seq 3 | sort -r | head -1"])?.trim() == "3");
    let next = numbers(&installation, "copy", 1)?.last().copied().unwrap_or(0) + 3;
    numbers(&installation, "copy", next)?;
    installation.stdout(["rm", "-f", "copy"]).map(|_| ())
}

fn killed() -> anyhow::Result<()> {
    let installation = Tidy::new()?;
    start(&installation, "one", TICKER)?;
    let mut last = numbers(&installation, "one", 1)?.last().copied().unwrap_or(0);
    for (round, after_ms) in [0, 2, 5, 10, 15, 20, 30, 45, 60, 90, 130, 200, 400, 800].into_iter().enumerate()
    {
        let verb: &[&str] = match round % 2 {
            0 => &["snapshot", "create", "one", "half"],
            _ => &["clone", "one", "--name", "half"],
        };
        let mut child = installation.command(verb).spawn()?;
        std::thread::sleep(Duration::from_millis(after_ms));
        child.kill()?;
        finish(child, GUEST_DEADLINE)?;
        // The container goes on, and nothing half made is to be seen.
        last = numbers(&installation, "one", last + 2)?.last().copied().unwrap_or(0);
        // A copy that was made is one, or has ended with the reason in its state.
        let containers = installation.stdout(["ps", "-a", "--format", "{{.Names}} {{.Status}}"])?;
        ensure!(
            containers.lines().all(|line| line.contains(" Up ") || line.starts_with("half ")),
            "after {after_ms} ms: {containers}"
        );
        let _ = installation.output(["rm", "-f", "half"])?;
        let _ = installation.output(["snapshot", "rm", "half"])?;
    }
    ensure_contiguous(&numbers(&installation, "one", last)?)?;
    let left = std::fs::read_dir(installation.root().join("snapshots"))?.count();
    ensure!(left == 0, "{left} drafts are left");
    installation.stdout(["rm", "-f", "one"])?;
    ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    Ok(())
}

fn killed_while_saving() -> anyhow::Result<()> {
    let installation = Tidy::new()?;
    let mut saved = 0;
    for (round, after_ms) in [5, 15, 30, 50, 80, 200].into_iter().enumerate() {
        let (verb, process) = match round % 4 {
            0 => (vec!["snapshot", "create", "one", "half"], "Pid"),
            1 => (vec!["snapshot", "create", "one", "half"], "KeeperPid"),
            2 => (vec!["clone", "one", "--name", "half"], "Pid"),
            _ => (vec!["clone", "one", "--name", "half"], "KeeperPid"),
        };
        start(&installation, "one", TICKER)?;
        numbers(&installation, "one", 1)?;
        let pid = installation.stdout(["inspect", "-f", &format!("{{{{.State.{process}}}}}"), "one"])?;
        let pid = rustix::process::Pid::from_raw(pid.trim().parse()?).context("no process")?;
        let child = installation.command(&verb).stderr(std::process::Stdio::piped()).spawn()?;
        std::thread::sleep(Duration::from_millis(after_ms));
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        let output = finish(child, GUEST_DEADLINE)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() || said.starts_with("lighter: "),
            "{verb:?} after {after_ms} ms: {said}"
        );
        let status = || installation.stdout(["inspect", "-f", "{{.State.Status}} {{.State.Error}}", "one"]);
        let end = Instant::now() + GUEST_DEADLINE;
        while status()?.starts_with("running") {
            ensure!(
                Instant::now() < end,
                "{process} was killed after {after_ms} ms, and still: {}",
                status()?
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        ensure!(status()?.contains("kill"), "{}", status()?);
        // What was saved before the end is whole, what was not is not there.
        let list = json(&installation, &["snapshot", "ls", "--format", "json"])?;
        let made = list.to_string().contains("\"half\"");
        if verb[0] == "snapshot" {
            ensure!(made == output.status.success(), "{list} after {said}");
        }
        if made {
            installation.stdout(["restore", "half", "--name", "copy"])?;
            let next = numbers(&installation, "copy", 1)?.last().copied().unwrap_or(0) + 2;
            numbers(&installation, "copy", next)?;
            installation.stdout(["rm", "-f", "copy"])?;
            installation.stdout(["snapshot", "rm", "half"])?;
            saved += 1;
        }
        let _ = installation.output(["rm", "-f", "half"])?;
        installation.stdout(["rm", "-f", "one"])?;
        ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    }
    ensure!(saved < 4, "every snapshot was made before the kill");
    let left = std::fs::read_dir(installation.root().join("snapshots"))?.count();
    ensure!(left == 0, "{left} drafts are left");
    Ok(())
}

fn refused() -> anyhow::Result<()> {
    let installation = Tidy::new()?;
    ensure!(failure(&installation, &["snapshot", "create", "none"])?.contains("no such container"));
    start(&installation, "one", TICKER)?;
    ensure!(failure(&installation, &["snapshot", "create", "one", "../x"])?.contains("is no name"));
    installation.stdout(["pause", "one"])?;
    ensure!(failure(&installation, &["snapshot", "create", "one"])?.contains("unpause it first"));
    installation.stdout(["unpause", "one"])?;
    installation.stdout(["snapshot", "create", "one"])?;
    ensure!(failure(&installation, &["snapshot", "create", "one"])?.contains("already"));
    ensure!(failure(&installation, &["restore", "one", "--name", "one"])?.contains("in use"));
    installation.stdout(["stop", "-t", "0", "one"])?;
    ensure!(failure(&installation, &["clone", "one"])?.contains("not running"));
    installation.stdout(["rm", "one"])?;
    ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    Ok(())
}

fn other_processor() -> anyhow::Result<()> {
    let installation = Tidy::new()?;
    start(&installation, "one", TICKER)?;
    installation.stdout(["snapshot", "create", "one", "saved"])?;
    installation.stdout(["rm", "-f", "one"])?;
    let path = installation.root().join("snapshots/saved/vm/state");
    let mut bytes = std::fs::read(&path)?;
    // The fingerprint is the first section; its CPUID leaves are at its end, before the next one. One bit of
    // the last leaf's last register is another processor's. Its checksum is made right, and the table's.
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let (count, len) = (word(&bytes, 12) as usize, word(&bytes, 24) as usize);
    let table = 16 + count * 16;
    let body = table + 4;
    bytes[body + len - 1] ^= 1;
    let sum = crc32(&bytes[body..body + len]);
    bytes[20..24].copy_from_slice(&sum.to_le_bytes());
    let sum = crc32(&bytes[..table]);
    bytes[table..body].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, bytes)?;
    let said = failure(&installation, &["restore", "saved"])?;
    ensure!(
        said.contains("the snapshot is of a machine with CPUID") && said.contains("this one has CPUID"),
        "{said}"
    );
    Ok(())
}

/// CRC-32 as in zip files, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

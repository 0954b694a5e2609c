//! What bad input gets: exit 125, the thing, the reason and the fix, and nothing left behind. No guest boots.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::ensure;
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{self, busybox_reference, oci_layout, run};
use lighter_tests::lighter::Installation;

const UMOCI: &[Need] = &[Need::Program("umoci")];

fn main() -> ExitCode {
    run_tests(vec![
        test("a_reference_that_does_not_parse_is_named", &[], bad_reference),
        test("an_unknown_option_is_refused", &[], unknown_option),
        test("an_unknown_image_offline_is_named", &[], unknown_image),
        test("an_unreachable_registry_is_named", &[], unreachable_registry),
        test("a_missing_oci_directory_is_named", &[], missing_directory),
        test("a_file_that_is_not_a_kernel_is_refused", &[Need::Kvm], not_a_kernel),
        test("a_kernel_that_is_not_there_is_refused", &[], missing_kernel),
        test("too_little_memory_is_refused_with_the_minimum", &[], too_little_memory),
        test("too_many_cpus_are_refused", &[], too_many_cpus),
        test("no_command_at_all_is_refused", UMOCI, no_command),
        test("a_blob_that_does_not_match_its_digest_is_refused", UMOCI, broken_digest),
        test("a_truncated_layer_is_refused", UMOCI, truncated_layer),
        test("an_env_file_that_is_missing_is_named", &[], missing_env_file),
        test("a_layer_that_climbs_out_is_refused_or_kept_inside", UMOCI, climbing_layer),
        test("a_full_disk_is_named_and_nothing_half_made_stays", &[Need::Kvm, Need::Root], full_disk),
        test("doctor_tells_of_a_missing_kvm", &[], doctor),
    ])
}

/// `lighter ARGS` must fail with 125, say each of `words`, say nothing on stdout and leave nothing.
fn refused(args: &[&str], words: &[&str]) -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let output = installation.output(args)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125), "{args:?} ended with {}: {stderr}", output.status);
    ensure!(output.stdout.is_empty(), "stdout: {}", String::from_utf8_lossy(&output.stdout));
    for word in words {
        ensure!(stderr.contains(word), "{args:?} does not say {word:?}: {stderr}");
    }
    ensure!(!stderr.contains("panicked"), "{stderr}");
    let left = installation.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn bad_reference() -> anyhow::Result<()> {
    refused(&["run", "--rm", "Upper/Case:tag"], &["Upper/Case"])?;
    refused(&["run", "--rm", "name@sha256:12"], &["sha256:12"])?;
    refused(&["pull", "a b"], &["a b"])
}

fn unknown_option() -> anyhow::Result<()> {
    refused(&["run", "--no-such-option", "alpine"], &["--no-such-option"])?;
    refused(&["no-such-verb"], &["no-such-verb"])
}

fn unknown_image() -> anyhow::Result<()> {
    refused(&["run", "--rm", "--pull", "never", "no/such:image"], &["no/such:image", "lighter pull"])
}

/// Port 1 of loopback: nobody listens there.
fn unreachable_registry() -> anyhow::Result<()> {
    refused(&["run", "--rm", "127.0.0.1:1/some/image:tag"], &["127.0.0.1:1", "refused"])
}

fn missing_directory() -> anyhow::Result<()> {
    refused(&["run", "--rm", "oci:/no/such/layout:tag"], &["/no/such/layout"])?;
    refused(&["run", "--rm", "docker-archive:/etc/passwd"], &["/etc/passwd is not a whole tar archive"])?;
    refused(&["run", "--rm", "dir:/no/such/root", "true"], &["/no/such/root"])
}

fn not_a_kernel() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    refused(
        &["run", "--rm", "--kernel", "/etc/passwd", &image, "true"],
        &["/etc/passwd", "vmlinux", "bzImage"],
    )
}

fn missing_kernel() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    refused(&["run", "--rm", "--initrd", "/tmp", &image, "true"], &["/tmp", "initrd", "regular file"])?;
    refused(&["run", "--rm", "--kernel", "/no/such/vmlinux", &image, "true"], &["/no/such/vmlinux"])
}

fn too_little_memory() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    refused(&["run", "--rm", "-m", "4m", &image, "true"], &["4", "MiB"])?;
    refused(&["run", "--rm", "-m", "64", &image, "true"], &["64", "bytes"])?;
    refused(&["run", "--rm", "-m", "plenty", &image, "true"], &["plenty"])
}

fn too_many_cpus() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    refused(&["run", "--rm", "--cpus", "33", &image, "true"], &["33", "32"])?;
    refused(&["run", "--rm", "--cpus", "0", &image, "true"], &["0"])
}

fn no_command() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let image = format!("oci:{}:latest", oci_layout(directory.path(), &["--clear=config.cmd"])?.display());
    refused(&["run", "--rm", "--network", "none", &image], &["command"])
}

fn missing_env_file() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    refused(&["run", "--rm", "--env-file", "/no/such/env", &image, "true"], &["/no/such/env"])
}

/// The largest blob of a layout: its layer.
fn layer(layout: &Path) -> anyhow::Result<std::path::PathBuf> {
    let mut blobs = Vec::new();
    for entry in std::fs::read_dir(layout.join("blobs/sha256"))? {
        let entry = entry?;
        blobs.push((entry.metadata()?.len(), entry.path()));
    }
    blobs.sort();
    let (_, path) = blobs.pop().ok_or_else(|| anyhow::anyhow!("no blobs"))?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
    Ok(path)
}

fn broken_digest() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let layout = oci_layout(directory.path(), &[])?;
    let blob = layer(&layout)?;
    let mut bytes = std::fs::read(&blob)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes)?;
    refused(&["run", "--rm", &format!("oci:{}:latest", layout.display()), "true"], &["sha256:", "match"])
}

fn truncated_layer() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let layout = oci_layout(directory.path(), &[])?;
    let blob = layer(&layout)?;
    let length = blob.metadata()?.len();
    std::fs::OpenOptions::new().write(true).open(&blob)?.set_len(length / 2)?;
    refused(&["run", "--rm", &format!("oci:{}:latest", layout.display()), "true"], &["sha256:"])
}

/// A tar with `../` in a name, as a layer: nothing may appear outside the root file system.
fn climbing_layer() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let decoy = directory.path().join("decoy");
    std::fs::write(&decoy, "untouched")?;
    let inside = directory.path().join("in/side");
    std::fs::create_dir_all(&inside)?;
    let tar = directory.path().join("layer.tar");
    std::fs::write(directory.path().join("in/decoy"), "overwritten")?;
    run(Command::new("tar").current_dir(&inside).arg("-cPf").arg(&tar).arg("../decoy"))?;
    let layout = directory.path().join("layout");
    let tagged = format!("{}:latest", layout.display());
    run(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    run(Command::new("umoci").args(["new", "--image", &tagged]))?;
    run(Command::new("umoci").args(["raw", "add-layer", "--image", &tagged]).arg(&tar))?;
    refused(&["run", "--rm", "--network", "none", &format!("oci:{tagged}"), "true"], &["../decoy"])?;
    ensure!(std::fs::read_to_string(&decoy)? == "untouched");
    Ok(())
}

/// The data directory is a file system of 1 MiB in a mount namespace of the test; busybox alone is larger.
fn full_disk() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    std::fs::create_dir_all(installation.root())?;
    let script = "mount -t tmpfs -o size=1m none \"$LIGHTER_ROOT\"; \"$@\"; code=$?
        find \"$LIGHTER_ROOT\" -type f -size +0; exit $code";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(lighter_tests::lighter::binary())
        .args(["run", "--rm", "--network", "none", &busybox_reference()?, "true"])
        .env("LIGHTER_ROOT", installation.root())
        .env("LIGHTER_RUN", installation.run_directory())
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125), "{}: {stderr}", output.status);
    ensure!(stderr.contains("No space left"), "{stderr}");
    let left = String::from_utf8_lossy(&output.stdout);
    ensure!(left.is_empty(), "left behind: {left}");
    let containers = installation.leftovers()?;
    ensure!(containers.is_empty(), "left behind: {containers:?}");
    Ok(())
}

/// In a mount namespace where /dev/kvm is covered by an empty file, doctor and run say so and how to mend it.
fn doctor() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let healthy = installation.output(["doctor", "--format", "json"])?;
    let findings: serde_json::Value = serde_json::from_slice(&healthy.stdout)?;
    let checks = findings["checks"].as_array().map(Vec::len).unwrap_or(0);
    ensure!(checks >= 7, "{findings}");
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let script = "mount -t tmpfs none /dev && exec \"$@\"";
    let binary = lighter_tests::lighter::binary();
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(&binary)
        .args(["doctor", "--format", "json"])
        .output()?;
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let kvm = findings["checks"].as_array().into_iter().flatten().find(|check| check["name"] == "kvm");
    let kvm = kvm.ok_or_else(|| anyhow::anyhow!("no check of kvm: {findings}"))?;
    ensure!(kvm["status"] == "fail" && !kvm["fix"].as_str().unwrap_or_default().is_empty(), "{kvm}");
    let image = image::busybox_reference()?;
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(&binary)
        .args(["run", "--rm", "--network", "none", &image, "true"])
        .env("LIGHTER_ROOT", installation.root())
        .env("LIGHTER_RUN", installation.run_directory())
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125) && stderr.contains("/dev/kvm"), "{}: {stderr}", output.status);
    Ok(())
}

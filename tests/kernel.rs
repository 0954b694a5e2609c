//! Other kernels: what boots, and what a kernel that lacks a driver gets said.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox_reference, run};
use lighter_tests::lighter::Installation;

const DISTRIBUTION: &[Need] = &[Need::Kvm, Need::Variable("LIGHTER_DISTRIBUTION_KERNEL")];

fn main() -> ExitCode {
    run_tests(vec![
        test("a_kernel_given_by_path_boots_and_takes_arguments", &[Need::Kvm], by_path),
        test("a_bzimage_boots", &[Need::Kvm], bzimage),
        test("a_kernel_that_ends_at_once_is_reported_not_waited_for", &[Need::Kvm], halting_kernel),
        test("an_initrd_is_given_to_the_guest", &[Need::Kvm], initrd),
        test("a_kernel_of_a_distribution_is_told_what_it_lacks", DISTRIBUTION, distribution_kernel),
        test("a_kernel_without_the_disk_driver_is_told_so", &[Need::Kvm], no_driver),
    ])
}

/// The kernel that `cargo xtask kernel` built.
fn kernel() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("LIGHTER_KERNEL") {
        return Ok(path.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let path = run(Command::new(cargo).args(["xtask", "kernel"]))?;
    Ok(path.trim().into())
}

fn by_path() -> anyhow::Result<()> {
    let kernel = kernel()?.display().to_string();
    let image = busybox_reference()?;
    let args = [
        "run",
        "--rm",
        "--network",
        "none",
        "--kernel",
        &kernel,
        "--kernel-arg",
        "lighter.test=yes",
        &image,
        "cat",
        "/proc/cmdline",
    ];
    let stdout = Installation::shared()?.stdout(args)?;
    ensure!(stdout.contains("lighter.test=yes"), "{stdout}");
    Ok(())
}

/// An ELF that only writes the reset command to the keyboard controller: not Linux, but a kernel.
fn halting_kernel() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("kernel");
    // mov al, 0xfe; out 0x64, al; hlt; jmp .
    std::fs::write(&path, elf(&[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfe]))?;
    let image = busybox_reference()?;
    let output = Installation::shared()?.output([
        "run",
        "--rm",
        "--network",
        "none",
        "--kernel",
        &path.display().to_string(),
        &image,
        "true",
    ])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125), "{}: {stderr}", output.status);
    ensure!(stderr.contains("virtio") && stderr.contains("docs/kernel.md"), "{stderr}");
    Ok(())
}

/// Our own kernel with its virtio block driver blacklisted from the command line.
fn no_driver() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let args = [
        "run",
        "--rm",
        "--network",
        "none",
        "--kernel-arg",
        "initcall_blacklist=virtio_blk_init",
        &image,
        "true",
    ];
    let output = Installation::shared()?.output(args)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125), "{}: {stderr}", output.status);
    ensure!(stderr.contains("virtio-blk") && stderr.contains("docs/kernel.md"), "{stderr}");
    Ok(())
}

/// A real bzImage, whose drivers are modules that it looks for in an initrd: it is started and then its end is told,
/// with what it lacks. Where ring 0 is emulated it ends while it unpacks itself, by an instruction that KVM does not
/// emulate, and that is told as well.
fn distribution_kernel() -> anyhow::Result<()> {
    let kernel = std::env::var("LIGHTER_DISTRIBUTION_KERNEL")?;
    let image = busybox_reference()?;
    let args = ["run", "--rm", "--network", "none", "--kernel", &kernel, &image, "true"];
    let installation = Installation::new()?;
    let output = installation.output(args)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125), "{}: {stderr}", output.status);
    for word in ["the guest ended before its agent answered", "virtio", "docs/kernel.md"] {
        ensure!(stderr.contains(word), "{word:?} is not said: {stderr}");
    }
    if stderr.contains("KVM cannot emulate") {
        ensure!(stderr.contains("emulates guest kernels on this host"), "{stderr}");
    }
    let left = installation.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// The smallest 64-bit ELF with one loadable segment at 1 MiB.
fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend((BASE + HEADERS).to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 12]);
    file.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let size = HEADERS + code.len() as u64;
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// The ELF kernel in the envelope of a bzImage: the payload as the 64-bit entry finds it.
///
/// A real bzImage unpacks itself, which takes minutes where ring 0 is emulated; the loader's part is the
/// setup header, the load address and the 64-bit entry at 0x200, and that is what this exercises.
fn bzimage() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("bzImage");
    let mut image = vec![0u8; 1024];
    image[0x1f1] = 1; // setup_sects: the boot sector and one more
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x211] = 1; // LOADED_HIGH
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&3u16.to_le_bytes()); // XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x10_0000u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
    let mut payload = vec![0xf4u8; 0x200];
    // "bz\n" to the serial port, then power off through port 0x600.
    for byte in b"booted as bzImage\n" {
        payload.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, *byte, 0xee]);
    }
    payload.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd]);
    let paragraphs = u32::try_from(payload.len().div_ceil(16))?;
    payload.resize(payload.len().div_ceil(16) * 16, 0);
    image[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    image.extend(payload);
    std::fs::File::create(&path)?.write_all(&image)?;
    let busybox = busybox_reference()?;
    let output = Installation::shared()?.output([
        "run",
        "--rm",
        "--network",
        "none",
        "--kernel",
        &path.display().to_string(),
        &busybox,
        "true",
    ])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    // It is no Linux, so the run fails, but the console shows that it ran.
    ensure!(output.status.code() == Some(125), "{}: {stderr}", output.status);
    ensure!(stderr.contains("booted as bzImage"), "{stderr}");
    Ok(())
}

/// The guest kernel sees the initrd: a newc archive with one file, kept in /proc/cmdline's sibling, rootfs.
fn initrd() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("initrd");
    let root = directory.path().join("root");
    std::fs::create_dir(&root)?;
    std::fs::write(root.join("marker"), "initrd was here\n")?;
    let output = Command::new("sh")
        .args(["-c", "cd \"$1\" && find . | /bin/busybox cpio -o -H newc", "sh"])
        .arg(&root)
        .output()
        .context("no cpio")?;
    std::fs::write(&archive, output.stdout)?;
    let image = busybox_reference()?;
    let args = [
        "run",
        "--rm",
        "--network",
        "none",
        "--initrd",
        &archive.display().to_string(),
        &image,
        "echo",
        "up",
    ];
    // An initrd without /init is unpacked and then the disk is mounted as always.
    let stdout = Installation::shared()?.stdout(args)?;
    ensure!(stdout == "up\n", "{stdout}");
    Ok(())
}

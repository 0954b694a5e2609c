//! The files of containers: what changed, copies both ways, images made of them.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox, run};
use lighter_tests::lighter::Installation;

const GUEST: &[Need] = &[Need::Kvm, Need::Root];
const TOOLS: &[Need] = &[Need::Kvm, Need::Root, Need::Program("skopeo"), Need::Program("umoci")];

fn main() -> ExitCode {
    run_tests(vec![
        test("a_commit_has_exactly_the_changes_and_runs_again", TOOLS, commit),
        test("files_go_in_and_out_by_the_rules_of_docker_cp", GUEST, copies),
        test("a_large_file_is_the_same_on_both_sides", GUEST, large_file),
        test("a_container_cannot_reach_out_of_the_destination", GUEST, escapes),
        test("an_exported_container_is_imported_again", GUEST, export),
        test("the_files_of_a_stopped_container_are_reached_too", GUEST, stopped),
    ])
}

/// A running container of its own, removed on drop.
struct Running {
    lighter: Installation,
    files: tempfile::TempDir,
}

impl Running {
    fn start(script: &str) -> anyhow::Result<Self> {
        let made = Self { lighter: Installation::new()?, files: tempfile::tempdir()? };
        made.import()?;
        let script = format!("{script}; touch /tmp/ready; exec sleep 100000");
        let arguments =
            ["run", "-d", "--name", "box", "--network", "none", "-m", "128m", "base:1", "sh", "-c"];
        made.lighter.stdout(arguments.into_iter().chain([script.as_str()]))?;
        made.guest("while ! test -e /tmp/ready; do sleep 0.1; done")?;
        Ok(made)
    }

    /// The image `base:1`.
    fn import(&self) -> anyhow::Result<()> {
        let tar = Command::new("tar")
            .args(["-C"])
            .arg(busybox()?)
            .args(["-c", "."])
            .stdout(Stdio::piped())
            .spawn()?;
        let path = ["import", "-c", "ENV PATH=/bin", "-", "base:1"];
        let import = self.lighter.command(path).stdin(tar.stdout.context("no pipe")?).status()?;
        ensure!(import.success(), "import: {import}");
        Ok(())
    }

    fn guest(&self, script: &str) -> anyhow::Result<String> {
        self.lighter.stdout(["exec", "box", "sh", "-c", script])
    }

    fn cp(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.lighter.stdout(["cp"].iter().chain(arguments)).map(drop)
    }

    fn refused(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.lighter.output(["cp"].iter().chain(arguments))?;
        ensure!(output.status.code() == Some(125), "{arguments:?} ended with {}", output.status);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.lighter.output(["rm", "-f", "box"]);
    }
}

fn commit() -> anyhow::Result<()> {
    let script = "rm -r /home; mkdir -p /home/new; rm /etc/group; echo changed > /etc/passwd; \
        mkdir -m 700 /data; echo 1 > /data/a; ln /data/a /data/b; ln -s a /data/l; \
        mknod /data/null c 1 3; chown 1000:50 /data/a; chmod 4711 /data/a; touch /root/x; rm /root/x";
    let container = Running::start(script)?;
    let diff = container.lighter.stdout(["diff", "box"])?;
    let expected = "A /data\nA /data/a\nA /data/b\nA /data/l\nA /data/null\nC /etc\nD /etc/group\nC /etc/passwd\n\
        C /home\nD /home/user\nA /home/new\nC /tmp\nA /tmp/ready\n";
    ensure!(diff == expected, "the changes are\n{diff}");
    let author = "somebody <a@b>";
    container.lighter.stdout([
        "commit",
        "-a",
        author,
        "-m",
        "as tested",
        "-c",
        "CMD [\"cat\", \"/etc/passwd\"]",
        "box",
        "mine:1",
    ])?;
    let history = container.lighter.stdout(["history", "mine:1"])?;
    ensure!(history.contains("as tested"), "{history}");
    // Others understand it.
    let (archive, layout, bundle) =
        (container.text("a.tar"), container.text("layout"), container.text("bundle"));
    container.lighter.stdout(["save", "-o", archive.as_str(), "mine:1"])?;
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet"])
        .args([format!("docker-archive:{archive}:mine:1"), format!("oci:{layout}:x")]))?;
    run(Command::new("umoci").args(["unpack", "--image", &format!("{layout}:x"), &bundle]))?;
    let root = Path::new(&bundle).join("rootfs");
    let a = root.join("data/a").symlink_metadata()?;
    ensure!((a.mode() & 0o7777, a.uid(), a.gid(), a.nlink()) == (0o4711, 1000, 50, 2), "{a:?}");
    ensure!(root.join("data/null").symlink_metadata()?.rdev() == 0x103, "the device");
    ensure!(!root.join("home/user").exists() && root.join("home/new").is_dir(), "the replaced directory");
    ensure!(!root.join("etc/group").exists() && root.join("bin/busybox").exists(), "the whiteout");
    ensure!(!root.join("etc/hosts").exists(), "a file of lighter's is in the layer");
    // And so does lighter.
    let output = container.lighter.stdout(["run", "--rm", "--network", "none", "-m", "128m", "mine:1"])?;
    ensure!(output == "changed\n", "{output:?}");
    Ok(())
}

fn copies() -> anyhow::Result<()> {
    let container = Running::start("mkdir -p /srv/d/sub; echo in > /srv/d/sub/f; ln -s sub/f /srv/d/l")?;
    let path = |name: &str| container.text(name);
    std::fs::create_dir_all(container.path("tree/sub"))?;
    std::fs::write(container.path("tree/sub/f"), "out")?;
    std::fs::set_permissions(container.path("tree/sub/f"), std::fs::Permissions::from_mode(0o640))?;
    symlink("sub/f", container.path("tree/l"))?;
    std::os::unix::fs::chown(container.path("tree/sub/f"), Some(1000), Some(50))?;
    container.cp(&[&path("tree"), "box:/srv/new"])?;
    container.cp(&[&path("tree"), "box:/srv/d"])?;
    container.cp(&[&(path("tree") + "/."), "box:/srv/d"])?;
    container.cp(&["-a", &path("tree/sub/f"), "box:/srv/kept"])?;
    container.cp(&["-L", &path("tree/l"), "box:/srv/followed"])?;
    let listed = container
        .guest("cd /srv; stat -c '%n %F %a %u:%g' new/sub/f d/tree/l d/sub/f kept followed; cat d/sub/f")?;
    let expected = "new/sub/f regular file 640 0:0\nd/tree/l symbolic link 777 0:0\nd/sub/f regular file 640 0:0\n\
        kept regular file 640 1000:50\nfollowed regular file 640 0:0\nout";
    ensure!(listed == expected, "{listed}");
    container.cp(&["box:/srv/d", &path("made")])?;
    container.cp(&["box:srv/d/sub/f", &path("made/g")])?;
    container.cp(&["-a", "box:/srv/kept", &path("made")])?;
    container.cp(&["-L", "box:/srv/d/l", &path("made/followed")])?;
    ensure!(std::fs::read_to_string(container.path("made/g"))? == "out");
    ensure!(std::fs::read_link(container.path("made/l"))? == Path::new("sub/f"));
    ensure!(container.path("made/followed").symlink_metadata()?.is_file());
    ensure!(
        container.path("made/kept").metadata()?.uid() == 1000
            && container.path("made/g").metadata()?.uid() == 0
    );
    // A stream, through tar on both sides.
    let mut tar = container.lighter.command(["cp", "box:/srv/d/sub", "-"]).spawn()?;
    let names = run(Command::new("tar").arg("-t").stdin(tar.stdout.take().context("no pipe")?))?;
    ensure!(tar.wait()?.success() && names == "sub/\nsub/f\n", "{names}");
    for (arguments, why) in [
        (["box:/absent", &path("x")], "cannot find /absent"),
        ([&path("absent"), "box:/srv"], "cannot find"),
        ([&path("tree"), "box:/srv/kept"], "cannot replace a file"),
        ([&path("tree/sub/f"), "box:/absent/f"], "cannot"),
        ([&path("tree/sub/f"), "box:/srv/none/"], "no such directory"),
        (["box:/srv/d", &path("made/g")], "cannot replace a file"),
        ([&path("tree"), "box:/proc/x"], "cannot"),
        ([&path("tree"), "other:/x"], "no such container"),
        (["box:/srv", "box:/x"], "one side"),
        ([&path("tree"), &path("x")], "neither side"),
    ] {
        let said = container.refused(&arguments)?;
        ensure!(said.contains(why), "{arguments:?}: {said}");
    }
    Ok(())
}

fn large_file() -> anyhow::Result<()> {
    let container = Running::start("true")?;
    // Not a whole number of blocks, and larger than what goes through the connection.
    let mut content = vec![0; (5 << 20) + 123];
    let mut state = 1u64;
    for byte in &mut content {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = state.to_be_bytes()[0];
    }
    std::fs::File::create(container.path("large"))?.write_all(&content)?;
    let sum = run(Command::new("md5sum").arg(container.path("large")))?;
    let sum = sum.split(' ').next().unwrap_or_default();
    container.cp(&[&container.text("large"), "box:/large"])?;
    // The guest reads what the host wrote; what it writes over it then is what the host reads.
    let seen = container.guest("md5sum /large; echo changed | dd of=/large bs=1 seek=4096 conv=notrunc")?;
    ensure!(seen.starts_with(sum), "{seen} is not {sum}");
    container.cp(&["box:/large", &container.text("back")])?;
    content[4096..4104].copy_from_slice(b"changed\n");
    ensure!(std::fs::read(container.path("back"))? == content, "the copy back differs");
    // One of the image's own.
    container.cp(&["box:/bin/busybox", &container.text("busybox")])?;
    ensure!(std::fs::read(container.path("busybox"))? == std::fs::read(busybox()?.join("bin/busybox"))?);
    // One with a hole, and one in memory, which is on no disk.
    container.guest("dd if=/bin/busybox of=/sparse bs=1k count=1 seek=2000; cp /bin/busybox /dev/shm/b")?;
    container.cp(&["box:/sparse", &container.text("sparse")])?;
    let sparse = std::fs::read(container.path("sparse"))?;
    ensure!(sparse.len() == 2001 << 10 && sparse[..2000 << 10].iter().all(|byte| *byte == 0), "the hole");
    container.cp(&["box:/dev/shm/b", &container.text("b")])?;
    ensure!(std::fs::read(container.path("b"))? == std::fs::read(container.path("busybox"))?, "from memory");
    Ok(())
}

fn escapes() -> anyhow::Result<()> {
    let container = Running::start(
        "mkdir /evil; echo x > /evil/f; chmod 6755 /evil/f; mkfifo /evil/p; ln -s / /evil/root",
    )?;
    let victim = container.path("victim");
    std::fs::create_dir(&victim)?;
    std::fs::create_dir(container.path("dst"))?;
    // A link of the destination's, in the way of a directory of the container's.
    container.guest("mkdir -p /tree/x; echo x > /tree/x/f")?;
    std::fs::create_dir(container.path("dst/tree"))?;
    symlink(&victim, container.path("dst/tree/x"))?;
    container.cp(&["box:/tree", &container.text("dst")])?;
    ensure!(std::fs::read_dir(&victim)?.count() == 0, "a file went through the link");
    ensure!(container.path("dst/tree/x/f").is_file(), "the directory did not take the link's place");
    container.cp(&["box:/evil", &container.text("dst")])?;
    let evil = container.path("dst/evil");
    ensure!(evil.join("f").metadata()?.mode() & 0o7777 == 0o755, "set-user-ID on the host");
    ensure!(!evil.join("p").exists() && evil.join("root").symlink_metadata()?.is_symlink());
    Ok(())
}

fn export() -> anyhow::Result<()> {
    let container = Running::start("rm /etc/group; echo kept > /kept")?;
    let tar = container.text("root.tar");
    container.lighter.stdout(["export", "-o", tar.as_str(), "box"])?;
    let import =
        ["import", "-c", "CMD [\"/bin/sh\", \"-c\", \"cat /kept; ls /etc/group\"]", "-c", "ENV PATH=/bin"];
    container.lighter.stdout(import.into_iter().chain([tar.as_str(), "again:1"]))?;
    let output = container.lighter.output(["run", "--rm", "--network", "none", "-m", "128m", "again:1"])?;
    ensure!(output.stdout == b"kept\n" && output.status.code() == Some(1), "{output:?}");
    Ok(())
}

fn stopped() -> anyhow::Result<()> {
    let container = Running::start("echo kept > /kept")?;
    container.lighter.stdout(["stop", "-t", "1", "box"])?;
    let large = vec![7; (1 << 20) + 1];
    std::fs::write(container.path("large"), &large)?;
    container.cp(&[&container.text("large"), "box:/large"])?;
    container.cp(&["box:/kept", &container.text("kept")])?;
    ensure!(std::fs::read_to_string(container.path("kept"))? == "kept\n");
    let diff = container.lighter.stdout(["diff", "box"])?;
    ensure!(diff == "A /kept\nA /large\nC /tmp\nA /tmp/ready\n", "{diff}");
    container.lighter.stdout(["start", "box"])?;
    let sum = run(Command::new("md5sum").arg(container.path("large")))?;
    let seen = container.guest("md5sum /large")?;
    ensure!(seen.get(..32) == sum.get(..32), "{seen} is not {sum}");
    Ok(())
}

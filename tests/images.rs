//! From a registry to the guest's root: nothing is lost, nothing is added.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lighter_tests::guest_program;
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox, oci_layout, run};
use lighter_tests::lighter::Installation;
use lighter_tests::registry::Registry;

const REGISTRY: &[Need] = &[
    Need::Kvm,
    Need::Root,
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("umoci"),
];

fn main() -> ExitCode {
    run_tests(vec![
        test("an_image_from_a_real_registry_runs", REGISTRY, from_registry),
        test("the_guest_sees_what_umoci_unpacks_of_a_hostile_tree", REGISTRY, hostile_tree),
        test(
            "the_guest_sees_what_umoci_unpacks_of_debian",
            &[Need::Kvm, Need::Root, Need::Program("debootstrap"), Need::Program("umoci")],
            debian,
        ),
        test("an_image_that_buildah_made_runs", &[Need::Kvm, Need::Root, Need::Program("buildah")], buildah),
        test("archives_of_docker_and_oci_run", REGISTRY, archives),
    ])
}

fn from_registry() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let layout =
        oci_layout(directory.path(), &["--config.cmd=/bin/echo", "--config.cmd=hello from a registry"])?;
    let registry = Registry::start()?;
    let reference = registry.push(&format!("oci:{}:latest", layout.display()), "test/busybox:1")?;
    let installation = Installation::new()?;
    let stdout = installation.stdout(["run", "--rm", "--network", "none", &reference])?;
    ensure!(stdout == "hello from a registry\n", "{stdout:?}");
    drop(registry);
    // The store has it now: the second run needs no registry.
    let images = installation.stdout(["images", "--format", "json"])?;
    ensure!(images.contains("test/busybox"), "{images}");
    let stdout =
        installation.stdout(["run", "--rm", "--network", "none", &reference, "/bin/echo", "again"])?;
    ensure!(stdout == "again\n", "{stdout:?}");
    installation.stdout(["rmi", &reference])?;
    let images = installation.stdout(["images", "--format", "json"])?;
    ensure!(!images.contains("test/busybox"), "{images}");
    installation.stdout(["system", "prune", "--force"])?;
    let blobs = std::fs::read_dir(installation.root().join("blobs/sha256"))?.count();
    ensure!(blobs == 0, "{blobs} blobs are left after the only image was removed");
    Ok(())
}

/// A tree with everything that an unpacker gets wrong, in two layers, the second one with whiteouts.
fn hostile_tree() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let base = directory.path().join("base");
    std::fs::create_dir(&base)?;
    run(Command::new("cp").arg("-a").arg(busybox()?).arg(base.join("tree")))?;
    let tree = base.join("tree");
    let script = r#"
        set -e; cd "$1"
        mkdir -p odd/deep odd/opaque/inside odd/gone
        echo one > odd/one; ln odd/one odd/hard; ln -s ../one odd/deep/link; ln -s /absolute/nowhere odd/dangling
        mknod odd/null c 1 3; mknod odd/block b 7 1; mkfifo odd/fifo
        echo s > odd/setuid; chmod 4755 odd/setuid; echo g > odd/setgid; chmod 2750 odd/setgid; chown 1234:5678 odd/setgid
        mkdir odd/sticky; chmod 1777 odd/sticky
        : > odd/empty; truncate -s 3000000 odd/sparse; printf end >> odd/sparse
        head -c 4096 /dev/urandom > odd/block_exact; head -c 4097 /dev/urandom > odd/block_plus
        head -c 4000 /dev/urandom > odd/tail; head -c 1 /dev/urandom > odd/byte; head -c 200001 /dev/urandom > odd/big
        n=$(printf 'x%.0s' $(seq 255)); echo long > "odd/$n"
        printf 'non utf8' > "odd/$(printf 'caf\351')"; echo space > 'odd/a b'; printf nl > "odd/$(printf 'new\nline')"
        d=odd/deep; for i in $(seq 30); do d=$d/0123456789; mkdir $d; done; echo deep > $d/file
        i=0; mkdir odd/many; while [ $i -lt 300 ]; do : > odd/many/file$i; i=$((i+1)); done
        touch -d '2001-02-03 04:05:06' odd/one; touch -h -d '1999-01-01' odd/dangling
        echo cap > odd/cap; setcap cap_net_raw+ep odd/cap
        echo attr > odd/attr; setfattr -n user.colour -v green odd/attr
        echo hidden > odd/opaque/inside/old; echo gone > odd/gone/file; echo removed > odd/removed; echo replaced > odd/replaced
    "#;
    run(Command::new("sh").args(["-c", script, "sh"]).arg(&tree))?;
    let layout = directory.path().join("layout");
    let tagged = format!("{}:latest", layout.display());
    run(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    run(Command::new("umoci").args(["new", "--image", &tagged]))?;
    run(Command::new("umoci").args(["insert", "--image", &tagged]).arg(&tree).arg("/"))?;
    // The second layer is made by umoci itself, from a changed bundle.
    let bundle = directory.path().join("bundle");
    run(Command::new("umoci").args(["unpack", "--image", &tagged]).arg(&bundle))?;
    let change = r#"
        set -e; cd "$1"
        rm -r odd/gone odd/removed odd/opaque; mkdir -p odd/opaque; echo new > odd/opaque/new
        rm odd/replaced; mkdir odd/replaced; echo inside > odd/replaced/inside; echo more >> odd/one; chmod 600 odd/tail
    "#;
    run(Command::new("sh").args(["-c", change, "sh"]).arg(bundle.join("rootfs")))?;
    run(Command::new("umoci").args(["repack", "--image", &tagged]).arg(&bundle))?;
    let registry = Registry::start()?;
    let reference = registry.push(&format!("oci:{tagged}"), "test/odd:2")?;
    compare(&tagged, &reference, directory.path(), 600)
}

fn debian() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let tree = directory.path().join("debian");
    run(Command::new("debootstrap").args(["--variant=minbase", "bookworm"]).arg(&tree))?;
    // The test's own program, and less to read through an emulated kernel.
    let trim = "cd \"$1\"; rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/* usr/lib/x86_64-linux-gnu/gconv usr/lib/x86_64-linux-gnu/perl-base; mkdir guest";
    run(Command::new("sh").args(["-c", trim, "sh"]).arg(&tree))?;
    for program in guest_program::all()? {
        run(Command::new("cp").arg(program).arg(tree.join("guest")))?;
    }
    let layout = directory.path().join("layout");
    let tagged = format!("{}:latest", layout.display());
    run(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    run(Command::new("umoci").args(["new", "--image", &tagged]))?;
    run(Command::new("umoci").args(["insert", "--image", &tagged]).arg(&tree).arg("/"))?;
    compare(&tagged, &format!("oci:{tagged}"), directory.path(), 1200)
}

/// What lighter itself puts over the image's files, so that no image can show its own.
const OWN: &[&str] = &["dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf", ".dockerenv"];

/// Reading every file of an image through an emulated kernel takes minutes.
const COMPARE_DEADLINE: Duration = Duration::from_secs(1200);

/// Lists the guest's root and the root that umoci unpacks with the same program; they must be equal.
fn compare(tagged: &str, reference: &str, scratch: &Path, at_least: usize) -> anyhow::Result<()> {
    let bundle = scratch.join("unpacked");
    run(Command::new("umoci").args(["unpack", "--image", tagged]).arg(&bundle))?;
    let program =
        guest_program::all()?.into_iter().find(|path| path.ends_with("tree_list")).context("no tree_list")?;
    let expected = run(Command::new(program).arg(bundle.join("rootfs")).args(OWN))?;
    let installation = Installation::new()?;
    let mut args = vec!["run", "--rm", "--network", "none", reference, "/guest/tree_list", "/"];
    args.extend(OWN);
    let found = installation.stdout_within(args, COMPARE_DEADLINE)?;
    let expected: BTreeSet<&str> = expected.lines().collect();
    let found: BTreeSet<&str> = found.lines().collect();
    ensure!(expected.len() >= at_least, "only {} entries to compare", expected.len());
    let missing: Vec<_> = expected.difference(&found).take(10).collect();
    let added: Vec<_> = found.difference(&expected).take(10).collect();
    ensure!(
        missing.is_empty() && added.is_empty(),
        "the guest lacks {missing:#?}\nand has instead {added:#?}"
    );
    Ok(())
}

fn buildah() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let storage = directory.path().join("storage");
    let buildah = |args: &[&str]| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
        command.args(["--storage-driver", "vfs"]).args(args);
        run(&mut command)
    };
    let container = buildah(&["from", "scratch"])?.trim().to_owned();
    buildah(&["copy", &container, &busybox()?.display().to_string(), "/"])?;
    buildah(&[
        "config",
        "--env",
        "MADE_BY=buildah",
        "--cmd",
        "/bin/sh -c 'echo made by $MADE_BY'",
        &container,
    ])?;
    let archive = directory.path().join("image.tar");
    buildah(&["commit", "--quiet", &container, &format!("oci-archive:{}", archive.display())])?;
    let installation = Installation::new()?;
    let stdout = installation.stdout([
        "run",
        "--rm",
        "--network",
        "none",
        &format!("oci-archive:{}", archive.display()),
    ])?;
    ensure!(stdout == "made by buildah\n", "{stdout:?}");
    Ok(())
}

fn archives() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let layout = oci_layout(directory.path(), &["--config.cmd=/bin/hostname"])?;
    let archive = directory.path().join("docker.tar");
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet"])
        .arg(format!("oci:{}:latest", layout.display()))
        .arg(format!("docker-archive:{}:test:1", archive.display())))?;
    let installation = Installation::new()?;
    let reference = format!("docker-archive:{}", archive.display());
    let args = ["run", "--rm", "--network", "none", "--hostname", "from-docker", &reference];
    let mut child = installation.command(args).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let output = lighter_tests::lighter::finish(child, lighter_tests::lighter::GUEST_DEADLINE)?;
    if line != "from-docker\n" || !output.status.success() {
        bail!("{line:?}, {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

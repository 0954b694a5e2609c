//! `lighter run` as an ordinary user who may open `/dev/kvm` and nothing else: no capability, no privilege to gain,
//! directories of its own, and a network in user mode.

use std::io::Read;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::make_busybox;
use lighter_tests::lighter::{GUEST_DEADLINE, binary, finish};
use lighter_tests::namespace::Namespace;

const NEEDS: &[Need] = &[
    Need::Kvm,
    Need::Root,
    Need::Program("ip"),
    Need::Program("passt"),
    Need::Program("setpriv"),
    Need::Program("unshare"),
];
/// A user who owns nothing.
const USER: u32 = 64_999;
/// Runs what follows as that user, in a mount namespace in which the devices are the user's to open.
const AS_USER: &str = r#"
    set -e
    directory=$1; shift
    mount --make-rprivate /
    mknod -m 666 $directory/kvm c 10 232
    mknod -m 666 $directory/null c 1 3
    mount --bind $directory/kvm /dev/kvm
    mount --bind $directory/null /dev/null
    exec setpriv --reuid 64999 --regid 64999 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
"#;

fn main() -> ExitCode {
    run_tests(vec![test("a_user_without_any_privilege_runs_a_container_with_a_network", NEEDS, all_of_it)])
}

fn all_of_it() -> anyhow::Result<()> {
    let host = Namespace::new()?;
    host.add_wire("198.51.100.1/24")?;
    let base = tempfile::Builder::new().prefix("lu").tempdir()?;
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755))?;
    let home = base.path().join("home");
    let image = base.path().join("image");
    make_busybox(&image)?;
    std::fs::create_dir(&home)?;
    let program = base.path().join("lighter");
    std::fs::copy(binary(), &program)?;
    let kernel = base.path().join("vmlinux");
    std::fs::copy(guest_kernel()?, &kernel)?;
    let share = base.path().join("share");
    std::fs::create_dir(&share)?;
    std::fs::write(share.join("mine"), "mine\n")?;
    std::fs::write(share.join("others"), "others\n")?;
    for path in [&home, &share, &share.join("mine")] {
        chown(path, Some(USER), Some(USER))?;
    }

    // What the guest may reach, and what not although it is on the same host.
    let reached =
        host.inside(|| Ok(TcpListener::bind("198.51.100.1:7000")?))?.join().ok().context("no listener")??;
    let hidden =
        host.inside(|| Ok(TcpListener::bind("127.0.0.1:7001")?))?.join().ok().context("no listener")??;
    let udp = host.inside(|| Ok(UdpSocket::bind("198.51.100.1:53")?))?.join().ok().context("no socket")??;
    let world = std::thread::spawn(move || -> anyhow::Result<()> {
        use std::io::Write as _;
        reached.accept()?.0.write_all(b"from the world\n")?;
        Ok(())
    });
    // A hostile guest sends what is for the host's loopback out of eth0.
    let script = r#"
        id -u; stat -c %u:%g /s/mine /s/others; cat /s/mine
        echo new > /s/new; echo x 2>/dev/null > /s/others || echo refused; chown 7 /s/new 2>/dev/null || echo kept
        echo x 2>/dev/null > /ro/mine || echo read-only; nc -w 60 198.51.100.1 7000 < /dev/null
        nslookup datagram 198.51.100.1 > /dev/null 2>&1 &
        ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via 10.0.2.2
        echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet 2>/dev/null
        nc -w 2 127.0.0.1 7001 < /dev/null 2>/dev/null; nc -w 2 10.0.2.2 7001 < /dev/null 2>/dev/null
        echo serving; echo from the guest | nc -l -p 80
    "#;
    let options = ["--privileged", "--pull", "never", "-p", "127.0.0.1:18073:80", "--kernel"];
    let child = host
        .command(&["unshare", "--mount", "sh", "-c", AS_USER, "sh"])
        .arg(base.path())
        .arg(&program)
        .args(["run", "--rm"])
        .args(options)
        .arg(&kernel)
        .args(["-v", &format!("{}:/s", share.display()), "-v", &format!("{}:/ro:ro", share.display())])
        .arg(format!("dir:{}", image.display()))
        .args(["sh", "-c", script])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", &home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run unshare")?;
    let call = host.inside(call_when_it_serves)?;
    let output = finish(child, GUEST_DEADLINE)?;
    let (heard, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let wanted = "0\n0:0\n65534:65534\nmine\nrefused\nkept\nread-only\nfrom the world\nserving\n";
    ensure!(heard == wanted, "{heard}{said}");
    let new = share.join("new").metadata()?;
    ensure!((new.uid(), new.gid()) == (USER, USER), "{new:?}");
    ensure!(output.status.success(), "{}: {said}", output.status);
    world.join().ok().context("the world panicked")??;
    let called = call.join().ok().context("the caller panicked")??;
    ensure!(called == "from the guest\n", "the host heard {called:?}");
    udp.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut buffer = [0; 512];
    let count = udp.recv(&mut buffer).context("no datagram came")?;
    let query = buffer.get(..count).unwrap_or_default();
    ensure!(query.windows(8).any(|window| window == b"datagram"), "another datagram came");
    hidden.set_nonblocking(true)?;
    ensure!(hidden.accept().is_err(), "the guest reached a service on the host's loopback");
    nothing_is_left(&home)
}

/// The published port, as soon as somebody answers behind it.
fn call_when_it_serves() -> anyhow::Result<String> {
    let end = Instant::now() + GUEST_DEADLINE;
    while Instant::now() < end {
        // passt takes the connection whether or not the guest listens yet.
        let mut text = String::new();
        if let Ok(mut stream) = TcpStream::connect("127.0.0.1:18073") {
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let _ = stream.read_to_string(&mut text);
        }
        if !text.is_empty() {
            return Ok(text);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    anyhow::bail!("nobody answers on the published port")
}

/// No process of the user, and no container.
fn nothing_is_left(home: &Path) -> anyhow::Result<()> {
    let processes = Command::new("ps").args(["-o", "stat=,args=", "-u", &USER.to_string()]).output()?;
    let processes = String::from_utf8_lossy(&processes.stdout).into_owned();
    // What has ended may wait for a slow PID 1 to notice.
    let left: Vec<_> = processes.lines().filter(|line| !line.starts_with('Z')).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    let containers = home.join(".local/share/lighter/containers");
    let count = std::fs::read_dir(&containers).map(Iterator::count).unwrap_or_default();
    ensure!(count == 0, "{count} containers are left in {}", containers.display());
    std::fs::remove_dir_all(format!("/tmp/lighter-{USER}")).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    Ok(())
}

/// The kernel that root's lighter uses.
fn guest_kernel() -> anyhow::Result<std::path::PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
    let cache =
        cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache"))).context("no HOME")?;
    Ok(cache.join("lighter/kernel/current/vmlinux").canonicalize()?)
}

//! What reads images is confined: it works as root and as an ordinary user, and taken over it reaches nothing.
//!
//! This program is also what is started: with the verb it does its job, or what the file `ORDERS` beside it says, at
//! the moment at which an image could have taken it over. Everything that is attacked was made here.

mod attempts;

use std::io::{Read as _, Seek as _};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};

use anyhow::{Context, bail, ensure};
use attempts::{ATTEMPTS, REACHED, STOPPED};
use engine::intake;
use images::{Digest, Image, ImageSource, PullOptions, Silent, Store};
use jailer::filter::REFUSED;
use lighter_tests::harness::{Need, main as run_tests, test};
use serde_json::json;

/// Extension of the file that orders an attempt: its name, a line feed, its target.
const ORDERS: &str = "orders";
/// Verb of the ordinary user's part.
const AS_USER: &str = "as-user";
/// Verb of a process that makes an attempt without a cage.
const BARE: &str = "bare";
/// A user who owns nothing.
const USER: u32 = 64_998;
/// Runs what follows the directory as that user, who may open `/dev/null`.
const BECOME_USER: &str = r#"
    set -e
    directory=$1; shift
    mount --make-rprivate /
    mknod -m 666 $directory/null c 1 3
    mount --bind $directory/null /dev/null
    exec setpriv --reuid 64998 --regid 64998 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
"#;
const USER_NEEDS: &[Need] = &[Need::Root, Need::Program("setpriv"), Need::Program("unshare")];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        [intake::VERB, "--job-fd", job, "--wire-fd", wire, "--cage", start] => serve(job, wire, start),
        [BARE, name, target] => try_it(name, target, &[]),
        [AS_USER, directory] => everything(Path::new(directory)),
        _ => {
            return run_tests(vec![
                test("what_reads_images_reaches_nothing_when_it_is_taken_over", &[], as_this_user),
                test("nor_does_it_as_an_ordinary_user", USER_NEEDS, as_ordinary_user),
            ]);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the hidden verb.
fn serve(job: &str, wire: &str, start: &str) -> anyhow::Result<()> {
    let start = start.parse().ok().context("no such start")?;
    let text = std::fs::read_to_string(orders()?).unwrap_or_default();
    let Some((name, target)) = text.split_once('\n') else {
        return Ok(intake::serve(job.parse()?, wire.parse()?, start, None)?);
    };
    // What fails says so.
    let act = |missing: &[String]| drop(try_it(name, target, missing));
    Ok(intake::serve(job.parse()?, wire.parse()?, start, Some(&act))?)
}

/// Makes an attempt and says how it went; `missing` is what the cage lacks.
fn try_it(name: &str, target: &str, missing: &[String]) -> anyhow::Result<()> {
    let (_, attempt) = ATTEMPTS.iter().find(|(known, _)| *known == name).context("no such attempt")?;
    match (missing, attempt(target)) {
        ([], Ok(())) => eprintln!("{REACHED}"),
        ([], Err(why)) => eprintln!("{STOPPED}{why}"),
        (missing, _) => eprintln!("not confined: {missing:?}"),
    }
    Ok(())
}

fn orders() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_extension(ORDERS))
}

fn as_this_user() -> anyhow::Result<()> {
    everything(tempfile::tempdir()?.path())
}

/// The same by a copy of this program that the user may run.
fn as_ordinary_user() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))?;
    chown(directory.path(), Some(USER), Some(USER))?;
    let program = directory.path().join("program");
    std::fs::copy(std::env::current_exe()?, &program)?;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", BECOME_USER, "sh"])
        .args([directory.path(), &program, Path::new(AS_USER), directory.path()])
        .env("HOME", directory.path())
        .env("TMPDIR", directory.path())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// In `directory`, which is empty but for what is needed.
fn everything(directory: &Path) -> anyhow::Result<()> {
    let store = Store::open(directory.join("store"))?;
    let layout = layout(&directory.join("layout"))?;
    let image = works(&store, &layout, directory)?;
    for (name, _) in ATTEMPTS {
        for work in [fetch, unpack] {
            let decoys = Decoys::new(directory, &store)?;
            std::fs::write(orders()?, format!("{name}\n{}", decoys.target(name)?))?;
            ensure!(!reached(name, &work(&store, &image))?, "{name} was reached in a cage");
        }
        let decoys = Decoys::new(directory, &store)?;
        let root = rustix::process::geteuid().is_root();
        if root || !attempts::NEED_ROOT.contains(name) {
            ensure!(reached(name, &bare(name, &decoys)?)?, "{name} shows nothing: it fails without a cage");
        }
    }
    let _ = std::fs::remove_file(orders()?);
    Ok(())
}

/// An image comes in and is unpacked; its errors are told.
fn works(store: &Store, layout: &Path, directory: &Path) -> anyhow::Result<Image> {
    let _ = std::fs::remove_file(orders()?);
    let source: ImageSource = format!("oci:{}", layout.display()).parse()?;
    let image = intake::pull(store, &source, &PullOptions::default(), &Silent)?;
    let rootfs = intake::ensure_rootfs(store, &image, &Silent)?;
    ensure!(rootfs.metadata()?.len() > 0, "an empty root file system");
    let missing: ImageSource = format!("oci-archive:{}", directory.join("none").display()).parse()?;
    let error = intake::pull(store, &missing, &PullOptions::default(), &Silent).err().context("no error")?;
    ensure!(error.to_string().contains("none"), "{error}");
    let unreachable: ImageSource = "127.0.0.1:1/x".parse()?;
    let error =
        intake::pull(store, &unreachable, &PullOptions::default(), &Silent).err().context("no error")?;
    ensure!(error.to_string().contains("127.0.0.1:1"), "{error}");
    Ok(image)
}

/// A process that talks to a registry, with a store to write to.
fn fetch(store: &Store, _: &Image) -> String {
    let source: ImageSource = "127.0.0.1:1/x".parse().expect("a reference");
    match intake::pull(store, &source, &PullOptions::default(), &Silent) {
        Ok(_) => "an image".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A process that unpacks layers.
fn unpack(store: &Store, image: &Image) -> String {
    let rootfs = image.chain_id().map(|chain| chain.0.hex().to_owned()).unwrap_or_default();
    for file in std::fs::read_dir(store.rootfs_dir()).into_iter().flatten().flatten() {
        if file.file_name().to_string_lossy().starts_with(&rootfs) {
            let _ = std::fs::remove_file(file.path());
        }
    }
    match intake::ensure_rootfs(store, image, &Silent) {
        Ok(_) => "a root file system".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A process of this program without any confinement.
fn bare(name: &str, decoys: &Decoys) -> anyhow::Result<String> {
    let mut said = tempfile::tempfile_in(decoys.directory.path())?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([BARE, name, &decoys.target(name)?]).stderr(said.try_clone()?);
    let status = command.status()?;
    let mut text = String::new();
    said.rewind()?;
    said.take(4096).read_to_string(&mut text)?;
    Ok(format!("exit code {}: {text}", status.code().unwrap_or_default()))
}

/// Whether an attempt reached its target, from what its process said.
fn reached(name: &str, said: &str) -> anyhow::Result<bool> {
    if said.contains(REACHED) {
        return Ok(true);
    }
    let killed = said.contains("killed by its seccomp filter") || said.contains(REFUSED);
    // Its end without any word, where a program was run in its place.
    let replaced = name == "exec" && said.ends_with("exit code 1: ");
    match killed || said.contains(STOPPED) {
        true => Ok(false),
        false if replaced => Ok(true),
        false => bail!("neither reached nor stopped: {said}"),
    }
}

/// What is attacked.
struct Decoys {
    directory: tempfile::TempDir,
    index: PathBuf,
    victim: Child,
    tcp: TcpListener,
    _sockets: (UnixListener, UnixListener),
}

impl Decoys {
    fn new(base: &Path, store: &Store) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir_in(base)?;
        std::fs::write(directory.path().join("secret"), "somebody's secret")?;
        let unix = UnixListener::bind(directory.path().join("socket"))?;
        let hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name(hidden(directory.path()))?)?;
        let victim = Command::new("sleep").arg("600").spawn()?;
        let index = store.root().join("refs/index.json");
        Ok(Self {
            directory,
            index,
            victim,
            tcp: TcpListener::bind("127.0.0.1:0")?,
            _sockets: (unix, hidden),
        })
    }

    /// What the attempt `name` is to reach.
    fn target(&self, name: &str) -> anyhow::Result<String> {
        let path = |name| self.directory.path().join(name).display().to_string();
        let pid = self.victim.id();
        Ok(match name {
            "read-file" | "write-file" => path("secret"),
            "make-file" => path("new"),
            "change-names" => self.index.display().to_string(),
            "ptrace" | "signal" => pid.to_string(),
            "read-memory" => {
                let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
                let start = maps.split('-').next().context("no memory")?;
                format!("{pid} {}", u64::from_str_radix(start, 16)?)
            }
            "unix-socket" => path("socket"),
            "abstract-socket" => hidden(self.directory.path()),
            "listen" => self.tcp.local_addr()?.to_string(),
            "exec" => "/bin/false".to_owned(),
            "mount" => self.directory.path().display().to_string(),
            _ => String::new(),
        })
    }
}

impl Drop for Decoys {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

fn hidden(directory: &Path) -> String {
    format!("lighter-decoy-{}", directory.file_name().unwrap_or_default().to_string_lossy())
}

/// An image of one file, as an OCI layout.
fn layout(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "hello", &b"hello"[..])?;
    let layer = tar.into_inner()?;
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8], kind: &str| -> anyhow::Result<serde_json::Value> {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes)?;
        Ok(json!({"mediaType": kind, "digest": digest, "size": bytes.len()}))
    };
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}});
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json")?;
    let layer = put(&layer, "application/vnd.oci.image.layer.v1.tar")?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let manifest = put(manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json")?;
    let index = json!({"schemaVersion": 2, "manifests": [manifest]}).to_string();
    std::fs::write(directory.join("index.json"), index)?;
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(directory.to_owned())
}

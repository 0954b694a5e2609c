//! Root filesystems against what others make of the same image: every entry of `umoci unpack`, `fsck.erofs`,
//! `e2fsck` and the kernel's own mount.
//!
//! A test whose programs or privileges are missing is counted as ignored, with the reason, never as passed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use images::ext4::create_writable_layer;
use images::{Digest, Image, PullOptions, Silent, Store, ensure_rootfs};
use libtest_mimic::{Arguments, Failed, Trial};

type Outcome = Result<(), Failed>;

/// A name, the programs needed besides root, the test.
type Test = (&'static str, &'static [&'static str], fn() -> Outcome);

fn main() {
    let tests: [Test; 4] = [
        ("an_image_has_exactly_what_umoci_unpacks", &["umoci", "fsck.erofs", "mount", "setcap"], layers),
        ("a_directory_has_exactly_what_it_has", &["fsck.erofs", "mount", "setcap"], directory),
        ("many_at_once_build_one_file_and_a_crashed_build_is_swept", &["umoci"], at_once),
        ("a_writable_layer_is_clean_before_and_after_use", &["e2fsck", "mount"], writable),
    ];
    let trials = tests.into_iter().map(|(name, programs, run)| {
        let lacking =
            programs.iter().find(|program| !in_path(program)).map(|program| format!("no {program}"));
        let root = rustix::process::geteuid().is_root();
        let lacking = lacking.or_else(|| (!root).then(|| "not root".to_owned()));
        let trial = Trial::test(name, run);
        match lacking {
            Some(reason) => trial.with_ignored_flag(true).with_kind(format!("skipped: {reason}")),
            None => trial,
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn layers() -> Outcome {
    let bench = Bench::new()?;
    bench.umoci_image()?;
    let reference = bench.path("reference");
    run(Command::new("umoci").args(["unpack", "--image"]).arg(bench.path("layout:test")).arg(&reference))?;
    let rootfs = bench.rootfs(&bench.pull("oci", "layout:test")?)?;
    run(Command::new("fsck.erofs").arg(&rootfs))?;
    let mount = Mount::new(&rootfs, &bench.path("mnt"), "erofs")?;
    same(&entries(&reference.join("rootfs"))?, &entries(&mount.0)?)
}

fn directory() -> Outcome {
    let bench = Bench::new()?;
    let source = bench.path("source");
    rich_tree(&source)?;
    let image = bench.pull("dir", "source")?;
    let rootfs = bench.rootfs(&image)?;
    check(rootfs == bench.rootfs(&image)?, "an unchanged directory has the same image")?;
    run(Command::new("fsck.erofs").arg(&rootfs))?;
    check(fs::metadata(&rootfs)?.blocks() * 512 < 12 << 20, "holes take no space")?;
    let mount = Mount::new(&rootfs, &bench.path("mnt"), "erofs")?;
    same(&entries(&source)?, &entries(&mount.0)?)?;
    drop(mount);
    fs::write(source.join("more"), "")?;
    check(rootfs != bench.rootfs(&image)?, "a changed directory has another image")
}

fn at_once() -> Outcome {
    let bench = Bench::new()?;
    bench.umoci_image()?;
    let image = bench.pull("oci", "layout:test")?;
    let crashed = bench.store.rootfs_dir().join("crashed.erofs.partial");
    fs::write(&crashed, "half")?;
    let build = || bench.rootfs(&image);
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let builders: Vec<_> = (0..4).map(|_| scope.spawn(build)).collect();
        builders.into_iter().map(|builder| builder.join().expect("no panic")).collect::<Result<_, _>>()
    })?;
    check(paths.iter().all(|path| *path == paths[0]), "one path")?;
    let files = fs::read_dir(bench.store.rootfs_dir())?.count();
    check(files == 1, "nothing but the image is left")
}

fn writable() -> Outcome {
    let bench = Bench::new()?;
    for size in [32 << 20, 1 << 30, (10u64 << 30) + 12_345] {
        let path = bench.path("rw.ext4");
        create_writable_layer(&path, size)?;
        run(Command::new("e2fsck").arg("-fn").arg(&path))?;
        let mount = Mount::new(&path, &bench.path("mnt"), "ext4")?;
        check(mount.0.join("upper").is_dir() && mount.0.join("work").is_dir(), "both directories")?;
        fs::write(mount.0.join("upper/file"), vec![1; 5 << 20])?;
        drop(mount);
        run(Command::new("e2fsck").arg("-fn").arg(&path))?;
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// Everything a layer can hold, below `root`.
fn rich_tree(root: &Path) -> Outcome {
    let bytes = |size: usize| (0..size).map(|n| ((n * n) >> 3) as u8).collect::<Vec<_>>();
    fs::create_dir_all(root.join("many/deep"))?;
    for size in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 100_000, 3_000_000] {
        fs::write(root.join(format!("size{size}")), bytes(size))?;
    }
    for n in 0..2000 {
        fs::write(root.join(format!("many/{n:0width$}", width = 4 + n % 250)), n.to_string())?;
    }
    let sparse = fs::File::create(root.join("sparse"))?;
    sparse.write_all_at(b"middle", 10_000_001)?;
    sparse.set_len(16 << 20)?;
    fs::hard_link(root.join("size100000"), root.join("many/deep/hard link"))?;
    fs::hard_link(root.join("size1"), root.join("another"))?;
    symlink("../etc/passwd", root.join("link"))?;
    symlink("x".repeat(3000), root.join("long link"))?;
    fs::write(root.join("n".repeat(255)), "")?;
    fs::write(root.join("new\nline"), "")?;
    fs::write(root.join(<OsString as std::os::unix::ffi::OsStringExt>::from_vec(b"\xff\xfe".to_vec())), "")?;
    fs::set_permissions(root.join("size4096"), PermissionsExt::from_mode(0o6755))?;
    fs::set_permissions(root.join("many/deep"), PermissionsExt::from_mode(0o1777))?;
    std::os::unix::fs::lchown(root.join("link"), Some(70_000), Some(4_000_000_000))?;
    for (name, kind) in [("null", "c 1 3"), ("disk", "b 259 70000"), ("pipe", "p")] {
        run(Command::new("mknod").arg(root.join(name)).args(kind.split(' ')))?;
    }
    run(Command::new("setcap").arg("cap_net_raw+ep").arg(root.join("size2049")))?;
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(path), name, value, rustix::fs::XattrFlags::empty())
    };
    set("size1", "user.text", b"value\0with\nall")?;
    set("size2048", "user.text", b"value\0with\nall")?;
    set("many", "trusted.mine", &[7; 200])?;
    run(Command::new("touch").args(["-h", "-d", "2001-02-03 04:05:06.789012345"]).arg(root.join("link")))?;
    run(Command::new("touch").args(["-d", "1960-01-01 00:00:00 UTC"]).arg(root.join("size0")))?;
    run(Command::new("touch").args(["-d", "2001-02-03 04:05:06.789012345"]).arg(root.join("many/deep")))?;
    Ok(())
}

/// What a second layer changes: all kinds of removal and replacement.
fn change(root: &Path) -> Outcome {
    fs::remove_file(root.join("size1"))?;
    fs::remove_dir_all(root.join("many"))?;
    fs::create_dir(root.join("many"))?;
    fs::write(root.join("many/new"), "new")?;
    fs::remove_file(root.join("link"))?;
    fs::create_dir(root.join("link"))?;
    fs::write(root.join("link/inside"), "")?;
    fs::write(root.join("size4097"), "shorter now")?;
    fs::remove_file(root.join("null"))?;
    fs::write(root.join("null"), "a file now")?;
    fs::set_permissions(root.join("size4095"), PermissionsExt::from_mode(0o400))?;
    Ok(())
}

/// A temporary directory with a store in it.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Result<Self, Failed> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(dir.path().join("store"))?;
        Ok(Self { dir, store })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pull(&self, transport: &str, name: &str) -> Result<Image, Failed> {
        let source = format!("{transport}:{}", self.path(name).display()).parse()?;
        Ok(self.store.pull(&source, &PullOptions::default(), &Silent)?)
    }

    fn rootfs(&self, image: &Image) -> Result<PathBuf, Failed> {
        ensure_rootfs(&self.store, image, &Silent).map_err(|error| {
            let causes =
                std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            causes.map(ToString::to_string).collect::<Vec<_>>().join(": ").into()
        })
    }

    /// Makes `layout:test` with a layer of everything and one that changes it.
    fn umoci_image(&self) -> Outcome {
        let layout = self.path("layout");
        let image = self.path("layout:test");
        run(Command::new("umoci").args(["init", "--layout"]).arg(layout))?;
        run(Command::new("umoci").args(["new", "--image"]).arg(&image))?;
        for (bundle, fill) in [("first", rich_tree as fn(&Path) -> Outcome), ("second", change)] {
            let bundle = self.path(bundle);
            run(Command::new("umoci").args(["unpack", "--image"]).arg(&image).arg(&bundle))?;
            fill(&bundle.join("rootfs"))?;
            run(Command::new("umoci").args(["repack", "--image"]).arg(&image).arg(&bundle))?;
            fs::remove_dir_all(bundle)?;
        }
        Ok(())
    }
}

/// A mounted image, read-only if it is EROFS.
struct Mount(PathBuf);

impl Mount {
    fn new(image: &Path, at: &Path, file_system: &str) -> Result<Self, Failed> {
        fs::create_dir_all(at)?;
        run(Command::new("mount").args(["-o", "loop", "-t", file_system]).arg(image).arg(at))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "cannot unmount {}", self.0.display());
    }
}

/// All that can be said about one path.
#[derive(Debug, PartialEq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    links: u64,
    device: u64,
    content: Option<Digest>,
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    same_as: PathBuf,
}

fn entries(root: &Path) -> Result<BTreeMap<PathBuf, Entry>, Failed> {
    let mut found = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            for child in fs::read_dir(&path)? {
                pending.push(relative.join(child?.file_name()));
            }
        }
        found.insert(relative, (path, metadata));
    }
    let mut first = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for (relative, (path, metadata)) in found {
        let same_as = first.entry(metadata.ino()).or_insert_with(|| relative.clone()).clone();
        let entry = Entry {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            links: metadata.nlink(),
            device: metadata.rdev(),
            content: if metadata.is_file() { Some(digest_of(&path)?) } else { None },
            target: fs::read_link(&path).ok(),
            xattrs: xattrs(&path)?,
            same_as,
        };
        entries.insert(relative, entry);
    }
    Ok(entries)
}

fn digest_of(path: &Path) -> Result<Digest, Failed> {
    use std::io::Read;
    let mut file = fs::File::open(path)?;
    let mut hasher = images::digest::Hasher::new(images::digest::Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Failed> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names)?;
    let mut xattrs = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(len);
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

fn same(expected: &BTreeMap<PathBuf, Entry>, actual: &BTreeMap<PathBuf, Entry>) -> Outcome {
    check(expected.len() > 20, "the reference is there")?;
    for path in expected.keys().chain(actual.keys()) {
        let (expected, actual) = (expected.get(path), actual.get(path));
        if expected != actual {
            return Err(
                format!("{} differs:\nexpected {expected:?}\nactual   {actual:?}", path.display()).into()
            );
        }
    }
    Ok(())
}

fn check(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(format!("not so: {what}").into()) }
}

fn run(command: &mut Command) -> Result<String, Failed> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).any(|dir| dir.join(program).is_file())
}

//! The container's root: the image, read-only, and a directory over it that takes every write.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::chown;
use std::path::Path;

use agent::failure::{Context as _, Failure, check};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};

use crate::names::{BASE, BUNDLE, CHANGES, IMAGE, LAYER, MAPPED, ROOT};
use crate::{Isolation, WardenConfig, idmap, names};

/// Nodes of `/dev`: name, major, minor.
const NODES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Mounts everything below [`BASE`], in the warden's own mount namespace.
pub fn make(config: &WardenConfig) -> Result<(), Failure> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during("keep mounts to ourselves")?;
    let contained = config.isolation == Isolation::Container;
    if contained {
        // Of the PID namespace that the warden is in: its children have other numbers for the host.
        mount_on("/proc", "proc")?;
    }
    let owner = contained.then(|| idmap::base(&config.id));
    let map = contained.then(|| idmap::namespace(idmap::base(&config.id))).transpose()?;
    let map = map.as_ref().map(|map| map.as_fd());
    // Both are taken before the cover may hide them.
    let image = File::open(&config.image).during(&format!("open {}", config.image.display()))?;
    let layer = config.layer.as_deref().map(layer).transpose()?;
    let shares = config.shares.iter().map(|path| share(path)).collect::<Result<Vec<_>, _>>()?;
    mount("warden", BASE, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, Some(c"mode=755"))
        .during(&format!("mount a memory file system on {BASE}"))?;
    for directory in [IMAGE, MAPPED, LAYER, CHANGES, ROOT, BUNDLE] {
        fs::create_dir(directory).during(directory)?;
    }
    for (number, (share, is_directory)) in shares.iter().enumerate() {
        let path = names::share(number);
        match is_directory {
            true => fs::create_dir(&path).during(&path)?,
            false => drop(File::create(&path).during(&path)?),
        }
        idmap::place(share, &path, map)?;
    }
    mount_image(&image)?;
    idmap::place(&idmap::copy_of(Path::new(IMAGE))?, MAPPED, map)?;
    match &layer {
        Some([layer, changes]) => {
            idmap::place(layer, LAYER, map)?;
            idmap::place(changes, CHANGES, None)?;
        }
        None => {
            for directory in [(LAYER, "upper"), (LAYER, "work"), (CHANGES, "upper")]
                .map(|(parent, name)| format!("{parent}/{name}"))
            {
                fs::create_dir(&directory)
                    .and_then(|()| chown(&directory, owner, owner))
                    .during(&directory)?;
            }
        }
    }
    let options = CString::new(format!("lowerdir={MAPPED},upperdir={LAYER}/upper,workdir={LAYER}/work"))
        .map_err(|_| Failure::agent("invariant: constant paths hold no NUL"))?;
    let mounted =
        as_owner(owner, || mount("overlay", ROOT, "overlay", MountFlags::empty(), Some(options.as_c_str())))?;
    mounted.during("mount the overlay (its upper layer cannot be on overlayfs or NFS; see LIGHTER_ROOT)")
}

/// Runs `mount` as `owner` with every capability of ours: an overlay writes to its layers as who has mounted it, and
/// through a mount with an ID map nobody writes who is not in that map.
fn as_owner<T>(owner: Option<u32>, mount: impl FnOnce() -> T) -> Result<T, Failure> {
    let Some(owner) = owner else { return Ok(mount()) };
    const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    // SAFETY: these calls take integers and change the identity of this thread, the process's only one.
    unsafe {
        let bits =
            check(libc::prctl(libc::PR_GET_SECUREBITS)).during("read the secure bits")? as libc::c_ulong;
        let set = |bits: libc::c_ulong| {
            check(libc::prctl(libc::PR_SET_SECUREBITS, bits)).during("set the secure bits")
        };
        set(bits | SECBIT_NO_SETUID_FIXUP)?;
        libc::setfsgid(owner);
        libc::setfsuid(owner);
        let result = mount();
        libc::setfsuid(0);
        libc::setfsgid(0);
        set(bits)?;
        Ok(result)
    }
}

/// A directory or file of the host as a detached mount, and whether it is a directory.
fn share(path: &Path) -> Result<(OwnedFd, bool), Failure> {
    let is_directory = path.metadata().during(&format!("find {}", path.display()))?.is_dir();
    Ok((idmap::copy_of(path)?, is_directory))
}

/// The writable layer's directory as two detached mounts.
fn layer(path: &Path) -> Result<[OwnedFd; 2], Failure> {
    for directory in [path.to_owned(), path.join("upper"), path.join("work")] {
        match fs::create_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.during(&format!("make {}", directory.display()))?,
        }
    }
    Ok([idmap::copy_of(path)?, idmap::copy_of(path)?])
}

/// Mounts the image right from its file (Linux 6.12), or from a loop device.
fn mount_image(image: &File) -> Result<(), Failure> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    let file = format!("/proc/self/fd/{}", image.as_raw_fd());
    match mount(file.as_str(), IMAGE, "erofs", flags, None) {
        Ok(()) => Ok(()),
        Err(Errno::NODEV) => Err(Failure::agent(
            "this host's kernel has no EROFS, which holds images (CONFIG_EROFS_FS; `modprobe erofs`): use --isolation vm",
        )),
        Err(_) => {
            let device = loop_device(image)?;
            mount(device.as_str(), IMAGE, "erofs", flags, None).during("mount the image")
        }
    }
}

/// A read-only loop device on `image` that vanishes with its last user, loop(4).
fn loop_device(image: &File) -> Result<String, Failure> {
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
    const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
    const LO_FLAGS_READ_ONLY: u32 = 1;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    /// Offset of `lo_flags` in struct loop_config: descriptor, block size, then loop_info64.
    const FLAGS_AT: usize = 8 + 52;
    let control = File::open("/dev/loop-control").during("open /dev/loop-control (`modprobe loop`)")?;
    for _ in 0..16 {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })
            .during("find a loop device")?;
        let name = format!("/dev/loop{number}");
        let device = File::open(&name).during(&name)?;
        // struct loop_config, all zero but the descriptor and the flags.
        let mut request = [0u8; 304];
        let set = |request: &mut [u8; 304], at: usize, value: u32| {
            if let Some(place) = request.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        };
        set(&mut request, 0, u32::try_from(image.as_raw_fd()).unwrap_or_default());
        set(&mut request, FLAGS_AT, LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR);
        // SAFETY: the request is a live struct loop_config of its full 304 bytes.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, request.as_ptr()) }) {
            Ok(_) => {
                // The mount is the next user; until then this descriptor has to stay.
                let _ = std::mem::ManuallyDrop::new(device);
                return Ok(name);
            }
            // Somebody else took it meanwhile.
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno).during("set up a loop device"),
        }
    }
    Err(Failure::agent("no loop device is free"))
}

/// Makes a `/dev` with the standard nodes at `target`, whatever the host's look like.
pub fn mount_dev(target: &str) -> Result<(), Failure> {
    directory(target)?;
    mount("dev", target, "tmpfs", MountFlags::NOSUID, Some(c"mode=755,size=65536k")).during(target)?;
    for (name, major, minor) in NODES {
        let path = format!("{target}/{name}");
        mknodat(
            CWD,
            path.as_str(),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(*major, *minor),
        )
        .during(&path)?;
        // Past the umask.
        rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(0o666)).during(&path)?;
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        std::os::unix::fs::symlink(to, format!("{target}/{link}")).during(link)?;
    }
    let pts = format!("{target}/pts");
    directory(&pts)?;
    mount(
        "devpts",
        pts.as_str(),
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5"),
    )
    .during(&pts)?;
    let shm = format!("{target}/shm");
    directory(&shm)?;
    mount(
        "shm",
        shm.as_str(),
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=1777,size=65536k"),
    )
    .during(&shm)
}

/// Mounts `kind` on `target`, which is made.
pub fn mount_on(target: &str, kind: &str) -> Result<(), Failure> {
    directory(target)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(kind, target, kind, flags, None).during(&format!("mount {kind} on {target}"))
}

/// From now on nobody writes to the root of this process.
pub fn make_read_only() -> Result<(), Failure> {
    mount_remount("/", MountFlags::RDONLY, c"").during("make the root read-only")
}

/// Makes a directory unless it is there.
pub fn directory(path: &str) -> Result<(), Failure> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.during(&format!("make {path}")),
    }
}

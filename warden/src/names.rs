//! Where things are in the warden's mount namespace.
//!
//! A memory file system covers a directory that every host has and that every user may pass: a container's root is not
//! root of the host, and the directories of lighter are closed to others.

/// Covered by the memory file system.
pub const BASE: &str = "/mnt";
/// The image, read-only, with its own user IDs.
pub const IMAGE: &str = "/mnt/image";
/// The same with the IDs that the container's users have on the host.
pub const MAPPED: &str = "/mnt/mapped";
/// Directory with the writable layer's `upper` and `work`.
pub const LAYER: &str = "/mnt/layer";
/// The same with the container's own user IDs.
pub const CHANGES: &str = "/mnt/changes";
/// The container's root.
pub const ROOT: &str = "/mnt/root";
/// The OCI runtime's bundle and state, and the files that are laid over the image's.
pub const BUNDLE: &str = "/mnt/bundle";

/// A directory or file of the host that is mounted in the container.
pub fn share(number: usize) -> String {
    format!("{BASE}/share{number}")
}

//! What a tar entry's name means: components inside the root, or a whiteout. Pure, no tree needed.
//!
//! A leading `/` is dropped, as real unpackers do; `..` is refused, since nothing but an attack has it.

use super::limits::{MAX_NAME, MAX_PATH};

/// What the names of whiteouts begin with.
const WHITEOUT: &[u8] = b".wh.";

/// A name that no honest layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It would climb out of the directory it is in.
    #[error("its path contains `..`")]
    Climbs,
    /// Above the limit.
    #[error("its path is longer than {MAX_PATH} bytes")]
    TooLong,
    /// Above the limit.
    #[error("a part of its path is longer than {MAX_NAME} bytes")]
    NameTooLong,
    /// Linux has no such names.
    #[error("its path contains a NUL byte")]
    Nul,
    /// `.wh.` alone, or of `.` or `..`.
    #[error("it is a whiteout of nothing that can be removed")]
    Whiteout,
}

/// What the last component of a name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role<'a> {
    /// An ordinary entry of this name.
    Entry(&'a [u8]),
    /// `.wh.NAME`: what lower layers have under NAME is gone.
    Whiteout(&'a [u8]),
    /// `.wh..wh..opq`: what lower layers have in this directory is gone.
    Opaque,
    /// Another `.wh..wh.` name, aufs' own bookkeeping: means nothing here.
    Ignored,
}

/// The components of `path` below the root; none for the root itself.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    if path.len() > MAX_PATH {
        return Err(PathError::TooLong);
    }
    if path.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(PathError::Climbs),
            _ => components.push(component),
        }
    }
    // The prefix of a whiteout does not count: the name that it removes may have the full length.
    let length = |(at, component): (usize, &&[u8])| match component.strip_prefix(WHITEOUT) {
        Some(name) if at + 1 == components.len() => name.len(),
        _ => component.len(),
    };
    if components.iter().enumerate().map(length).any(|length| length > MAX_NAME) {
        return Err(PathError::NameTooLong);
    }
    Ok(components)
}

/// Tells whiteouts from entries.
pub(super) fn role(name: &[u8]) -> Result<Role<'_>, PathError> {
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Role::Entry(name)),
        Some(b".wh..opq") => Ok(Role::Opaque),
        Some(b"" | b"." | b"..") => Err(PathError::Whiteout),
        Some(rest) if rest.starts_with(WHITEOUT) => Ok(Role::Ignored),
        Some(rest) => Ok(Role::Whiteout(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_below_the_root() {
        let of = |path: &'static str| components(path.as_bytes());
        assert_eq!(of("a/b"), Ok(vec![&b"a"[..], b"b"]));
        assert_eq!(of("./a//b/."), of("a/b"));
        assert_eq!(of("/a/b/"), of("a/b"));
        assert_eq!(of("./"), Ok(vec![]));
        assert_eq!(of("..a/.b../..."), Ok(vec![&b"..a"[..], b".b..", b"..."]));
    }

    #[test]
    fn hostile_names_are_refused() {
        for path in ["..", "../x", "a/../b", "/..", "a/.."] {
            assert_eq!(components(path.as_bytes()), Err(PathError::Climbs));
        }
        assert_eq!(components(b"a\0b"), Err(PathError::Nul));
        assert_eq!(components(&[b'a'; 256]), Err(PathError::NameTooLong));
        assert_eq!(components(&b"a/".repeat(2049)), Err(PathError::TooLong));
    }

    #[test]
    fn a_whiteout_can_name_a_file_of_full_length_but_is_no_longer_name_for_a_directory() {
        let whiteout = [b".wh.", &[b'a'; 255][..]].concat();
        assert_eq!(components(&whiteout), Ok(vec![&whiteout[..]]));
        assert_eq!(components(&[&whiteout, &b"/x"[..]].concat()), Err(PathError::NameTooLong));
        assert_eq!(components(&[&whiteout, &b"a"[..]].concat()), Err(PathError::NameTooLong));
    }

    #[test]
    fn whiteouts_are_told_apart() {
        assert_eq!(role(b"x"), Ok(Role::Entry(b"x")));
        assert_eq!(role(b".wh.x"), Ok(Role::Whiteout(b"x")));
        assert_eq!(role(b".wh..wh..opq"), Ok(Role::Opaque));
        assert_eq!(role(b".wh..wh.plnk"), Ok(Role::Ignored));
        assert_eq!(role(b".wh...x"), Ok(Role::Whiteout(b"..x")));
        for name in [&b".wh."[..], b".wh..", b".wh..."] {
            assert_eq!(role(name), Err(PathError::Whiteout));
        }
    }
}

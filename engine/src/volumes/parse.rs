//! `-v`, `--mount` and `--tmpfs`, as Docker writes them.

use std::path::Path;

use super::{MountKind, MountSpec, VolumeError};

const NOSUID: u32 = 2;
const NODEV: u32 = 4;
const NOEXEC: u32 = 8;
const RDONLY: u32 = 1;
const NOATIME: u32 = 1024;
/// What a tmpfs has unless its options say otherwise.
const TMPFS_FLAGS: u32 = NOSUID | NODEV | NOEXEC;
/// Options of `-v` that mean nothing here: labels of SELinux, hints for other systems, propagation that a guest has
/// anyway.
const IGNORED: [&str; 8] = ["rw", "z", "Z", "cached", "delegated", "consistent", "private", "rprivate"];

/// `-v [SOURCE:]TARGET[:OPTIONS]`
pub fn volume(text: &str) -> Result<MountSpec, VolumeError> {
    let error = |why: &str| syntax("-v", text, why);
    let parts: Vec<&str> = text.split(':').collect();
    let (source, place, options) = match parts.as_slice() {
        [place] => (None, *place, ""),
        [source, place] => (Some(*source), *place, ""),
        [source, place, options] => (Some(*source), *place, *options),
        _ => return Err(error("has too many colons: write SOURCE:TARGET[:ro]")),
    };
    let (mut read_only, mut copy) = (false, true);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "nocopy" => copy = false,
            other if IGNORED.contains(&other) => {}
            other => return Err(error(&format!("has the option {other:?}: there are ro, rw and nocopy"))),
        }
    }
    let kind = match source {
        Some("") => return Err(error("has no source: write SOURCE:TARGET")),
        Some(source) if source.starts_with(['/', '.', '~']) => MountKind::Bind { source: absolute(source) },
        Some(name) => MountKind::Volume { name: name.to_owned(), anonymous: false, copy },
        None => MountKind::Volume { name: String::new(), anonymous: true, copy },
    };
    Ok(MountSpec { kind, target: target(place).map_err(|why| error(&why))?, read_only })
}

/// `--mount type=bind|volume|tmpfs,source=…,target=…,readonly`
pub fn mount(text: &str) -> Result<MountSpec, VolumeError> {
    let error = |why: &str| syntax("--mount", text, why);
    let (mut kind, mut source, mut place) = ("volume", None, None);
    let (mut read_only, mut copy, mut flags, mut data) = (false, true, TMPFS_FLAGS, Vec::new());
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        let yes = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(error(&format!("has {key}={other}: write true or false"))),
        };
        match key {
            "type" => kind = value,
            "source" | "src" => source = Some(value),
            "target" | "dst" | "destination" => place = Some(value),
            "readonly" | "ro" => read_only = yes()?,
            "volume-nocopy" => copy = !yes()?,
            "tmpfs-size" => data.push(format!("size={value}")),
            "tmpfs-mode" => data.push(format!("mode={value}")),
            "bind-propagation" if IGNORED.contains(&value) => {}
            "consistency" => {}
            other => {
                return Err(error(&format!(
                    "has the key {other:?}: there are type, source, target, readonly, volume-nocopy, tmpfs-size and \
                     tmpfs-mode"
                )));
            }
        }
    }
    let kind = match (kind, source) {
        ("bind", Some(source)) if !source.is_empty() => MountKind::Bind { source: absolute(source) },
        ("bind", _) => return Err(error("has no source: a bind mount needs source=PATH")),
        ("volume", source) => {
            let name = source.unwrap_or_default().to_owned();
            MountKind::Volume { anonymous: name.is_empty(), name, copy }
        }
        ("tmpfs", None) => {
            if read_only {
                flags |= RDONLY;
            }
            MountKind::Tmpfs { flags, data: tmpfs_data(&data).map_err(|why| error(&why))? }
        }
        ("tmpfs", Some(_)) => return Err(error("has a source: memory has none")),
        (other, _) => return Err(error(&format!("has type={other}: there are bind, volume and tmpfs"))),
    };
    let place = place.ok_or_else(|| error("has no target: write target=/PATH"))?;
    Ok(MountSpec { kind, target: target(place).map_err(|why| error(&why))?, read_only })
}

/// `--tmpfs TARGET[:OPTIONS]`
pub fn tmpfs(text: &str) -> Result<MountSpec, VolumeError> {
    let error = |why: &str| syntax("--tmpfs", text, why);
    let (place, options) = text.split_once(':').unwrap_or((text, ""));
    let (mut flags, mut data) = (TMPFS_FLAGS, Vec::new());
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "rw" => flags &= !RDONLY,
            "ro" => flags |= RDONLY,
            "exec" => flags &= !NOEXEC,
            "noexec" => flags |= NOEXEC,
            "suid" => flags &= !NOSUID,
            "nosuid" => flags |= NOSUID,
            "dev" => flags &= !NODEV,
            "nodev" => flags |= NODEV,
            "noatime" => flags |= NOATIME,
            other => data.push(other.to_owned()),
        }
    }
    let data = tmpfs_data(&data).map_err(|why| error(&why))?;
    let place = target(place).map_err(|why| error(&why))?;
    Ok(MountSpec { kind: MountKind::Tmpfs { flags, data }, target: place, read_only: flags & RDONLY != 0 })
}

/// Options of tmpfs(5), those that a container may choose.
fn tmpfs_data(options: &[String]) -> Result<String, String> {
    for option in options {
        let known = option.split_once('=').is_some_and(|(key, value)| {
            ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"].contains(&key)
                && !value.is_empty()
                && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'%')
        });
        if !known {
            return Err(format!(
                "has the option {option:?}: there are size=, mode=, uid=, gid=, nr_inodes=, ro, exec, suid and dev"
            ));
        }
    }
    Ok(options.join(","))
}

/// The place of a mount in its canonical form.
pub fn target(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!(
            "has the target {text:?}: write it from the root of the container, for example /data"
        ));
    }
    let mut parts = Vec::new();
    for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." || part.contains('\0') {
            return Err(format!("has the target {text:?}: write it without .."));
        }
        parts.push(part);
    }
    match parts.first() {
        None => Err("is for the root of the container, which is its image".to_owned()),
        Some(&"proc") => Err("is for /proc, which is the kernel's".to_owned()),
        Some(_) => Ok(format!("/{}", parts.join("/"))),
    }
}

/// As seen from any working directory. A leading `~` is the shell's business, so here it is a name.
fn absolute(source: &str) -> std::path::PathBuf {
    std::path::absolute(source).unwrap_or_else(|_| Path::new(source).to_owned())
}

fn syntax(option: &'static str, text: &str, why: &str) -> VolumeError {
    VolumeError::Syntax { option, text: text.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_written_as_dockers() {
        let bind = volume("/srv/www:/www/:ro,z").unwrap();
        assert_eq!(bind.kind, MountKind::Bind { source: "/srv/www".into() });
        assert_eq!((bind.target.as_str(), bind.read_only), ("/www", true));
        let here = volume("./x:/x").unwrap();
        assert_eq!(here.kind, MountKind::Bind { source: std::env::current_dir().unwrap().join("x") });
        let named = volume("data:/var//lib/./data").unwrap();
        assert_eq!(named.kind, MountKind::Volume { name: "data".into(), anonymous: false, copy: true });
        assert_eq!(named.target, "/var/lib/data");
        let anonymous = volume("/data").unwrap();
        assert!(matches!(anonymous.kind, MountKind::Volume { anonymous: true, .. }));
    }

    #[test]
    fn mounts_are_written_as_dockers() {
        let bind = mount("type=bind,source=/srv,target=/x,readonly").unwrap();
        assert_eq!(bind, volume("/srv:/x:ro").unwrap());
        assert_eq!(mount("src=data,dst=/x").unwrap(), volume("data:/x").unwrap());
        let memory = mount("type=tmpfs,destination=/x,tmpfs-size=1m,tmpfs-mode=1770").unwrap();
        assert_eq!(memory, tmpfs("/x:size=1m,mode=1770").unwrap());
        let open = tmpfs("/x:exec,size=50%").unwrap();
        assert_eq!(open.kind, MountKind::Tmpfs { flags: NOSUID | NODEV, data: "size=50%".into() });
    }

    #[test]
    fn what_cannot_be_mounted_says_why() {
        let refused = |result: Result<MountSpec, VolumeError>, what: &str| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(what), "{text}");
        };
        refused(volume("a:/b:ro:c"), "colons");
        refused(volume("data:/x:shared"), "shared");
        refused(volume("data:x"), "from the root");
        refused(volume("data:/x/../y"), "without ..");
        refused(volume("data:/"), "image");
        refused(volume("data:/proc/sys"), "kernel's");
        refused(volume(":/x"), "no source");
        refused(mount("type=npipe,target=/x"), "npipe");
        refused(mount("type=bind,target=/x"), "source=PATH");
        refused(mount("type=tmpfs,source=x,target=/x"), "has a source");
        refused(mount("source=x"), "no target");
        refused(mount("source=x,target=/x,readonly=maybe"), "true or false");
        refused(mount("source=x,target=/x,volume-driver=nfs"), "volume-driver");
        refused(tmpfs("/x:size=1m,lower=/etc"), "lower");
        refused(tmpfs("/x:size=1 ,mode=7"), "size");
    }
}

//! From what was asked for to what can be mounted again and again.

use std::collections::BTreeSet;

use oci_spec::image::Config;

use super::{MountKind, MountSpec, VolumeError, parse, store};

/// Mounts of one container. Each share takes room in the machine's start.
pub const LONGEST_LIST: usize = 64;

/// Checks `mounts`, resolves the host's paths, and adds a volume for each place in `image_volumes` that has no mount.
pub fn resolve(mut mounts: Vec<MountSpec>, image_volumes: &[String]) -> Result<Vec<MountSpec>, VolumeError> {
    let mut targets = BTreeSet::new();
    for mount in &mounts {
        if !targets.insert(mount.target.clone()) {
            return Err(VolumeError::Twice(mount.target.clone()));
        }
    }
    // An image may say anything; what cannot be mounted is none of its business.
    let own = image_volumes.iter().filter_map(|place| parse::target(place).ok());
    for target in own.filter(|target| targets.insert(target.clone())).collect::<Vec<_>>() {
        let kind = MountKind::Volume { name: String::new(), anonymous: true, copy: true };
        mounts.push(MountSpec { kind, target, read_only: false });
    }
    if mounts.len() > LONGEST_LIST {
        return Err(VolumeError::TooMany { count: mounts.len() });
    }
    mounts.iter_mut().try_for_each(|mount| settle(&mut mount.kind))?;
    Ok(mounts)
}

/// A name for a volume to which nobody gives one.
pub fn random_name() -> String {
    let random: [u8; 32] = crate::container::id::random();
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the image's configuration wants to outlive a container.
pub fn of_image(config: &Config) -> Vec<String> {
    config.volumes().clone().unwrap_or_default()
}

fn settle(kind: &mut MountKind) -> Result<(), VolumeError> {
    match kind {
        MountKind::Bind { source } => {
            let error = |error| VolumeError::Source { path: source.clone(), source: error };
            let real = source.canonicalize().map_err(error)?;
            let metadata = real.metadata().map_err(error)?;
            if !metadata.is_dir() && !metadata.is_file() {
                return Err(VolumeError::Kind(real));
            }
            *source = real;
        }
        MountKind::Volume { name, .. } if name.is_empty() => {
            *name = random_name();
        }
        MountKind::Volume { name, .. } => store::check_name(name)?,
        MountKind::Secrets { files } => {
            for path in files.values_mut() {
                let error = |error| VolumeError::Source { path: path.clone(), source: error };
                *path = path.canonicalize().map_err(error)?;
            }
            super::secret::read(files)?;
        }
        MountKind::Tmpfs { .. } => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(texts: &[&str]) -> Vec<MountSpec> {
        texts.iter().map(|text| parse::volume(text).unwrap()).collect()
    }

    #[test]
    fn the_images_volumes_get_names_of_their_own_unless_something_is_mounted_there() {
        let places = ["/data".to_owned(), "/cache/".to_owned(), "no place".to_owned()];
        let resolved = resolve(mounts(&["mine:/data"]), &places).unwrap();
        assert_eq!(resolved.len(), 2);
        let MountKind::Volume { name, anonymous, .. } = &resolved[1].kind else { panic!("no volume") };
        assert_eq!((resolved[1].target.as_str(), name.len(), *anonymous), ("/cache", 64, true));
    }

    #[test]
    fn what_the_host_does_not_have_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        let bind = |name: &str| resolve(mounts(&[&format!("{}:/x", path(name).display())]), &[]);
        assert_eq!(bind("link").unwrap(), bind("file").unwrap());
        let refused = |result: Result<Vec<MountSpec>, VolumeError>, what: &str| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(what), "{text}");
        };
        refused(bind("missing"), "mkdir -p");
        refused(bind("socket"), "neither");
        refused(resolve(mounts(&["a1:/x", "b1:/x"]), &[]), "two mounts are for /x");
        refused(resolve(mounts(&["x/y:/x"]), &[]), "no name for a volume");
        let many: Vec<String> = (0..70).map(|number| format!("/v{number}")).collect();
        refused(resolve(Vec::new(), &many), "at most 64");
    }
}

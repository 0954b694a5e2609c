//! Taking images in: what a registry, an archive or a layer says is read by processes of their own that hold little.
//!
//! ```text
//! caller ── job (memory file) ──► lighter intake: opens what the job names ─► cage ─► filter ─► reads hostile bytes
//!    ▲ progress, question for credentials, result (JSON lines) ┘                   fetch:  blobs/, network, /etc/hosts …
//!    └ checks digests and platform, writes the name, syncs and renames             unpack: open files, nothing else
//! ```
//!
//! A process that its input has taken over has no way out: see `docs/security/sandbox.md`. What it claims is checked:
//! manifests and configurations against their digests, layers against their diff IDs when they are unpacked.

mod calls;
mod helper;
mod job;
mod worker;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use images::pull::{Failure, LoadFrom, Present};
use images::rootfs::{self, RootfsError};
use images::{ChainId, Image, ImageSource, Layer, Progress, PullError, PullOptions, Store};

use self::helper::Helper;
use self::job::{Answer, Layered, Options, Work};

pub use self::worker::{Attempt, serve};
pub use jailer::cage::Start;

/// Name of the verb that such a process runs as.
pub const VERB: &str = "intake";

/// As [`Store::pull`]; what has to be fetched is fetched by a confined process.
pub fn pull(
    store: &Store,
    source: &ImageSource,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Image, PullError> {
    let source = source.clone().absolute();
    // Until the names are written nobody may collect what was fetched.
    let _lease = store.lease()?;
    let known = match store.present(&source, options)? {
        Present::Image(image) => return Ok(*image),
        Present::Not(known) => known,
    };
    // What is no file has no name in a cage.
    if source.path().is_some_and(|path| !path.is_file() && !path.is_dir()) {
        return store.pull(&source, options, progress);
    }
    let work = Work::Fetch { store: store.root().to_owned(), source: source.to_string(), known };
    let mut helper = Helper::start(work, Options::of(options), &[]).map_err(host)?;
    let asked = match &source {
        ImageSource::Registry(reference) => Some((reference, &options.registry.keychain)),
        _ => None,
    };
    match helper.hear(progress, asked)? {
        Answer::Fetched(fetched) => store.adopt(&source, options, fetched),
        _ => Err(helper.nonsense()),
    }
}

/// As [`Store::load_archive`], by a confined process.
pub fn load(
    store: &Store,
    from: &LoadFrom<'_>,
    stream: &mut (dyn Read + Send),
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Vec<Image>, PullError> {
    let _lease = store.lease()?;
    let root = store.root().to_owned();
    let unnamed = match from {
        LoadFrom::Path(path) => {
            let path = std::path::absolute(path).map_err(host)?;
            let work = Work::Load { store: root, path, stream: None };
            Helper::start(work, Options::of(options), &[]).map_err(host)?.loaded(progress)?
        }
        LoadFrom::Stream(name) => {
            let (reader, mut writer) = io::pipe().map_err(host)?;
            let work = Work::Load { store: root, path: PathBuf::from(name), stream: Some(0) };
            let mut helper = Helper::start(work, Options::of(options), &[reader.as_fd()]).map_err(host)?;
            drop(reader);
            std::thread::scope(|scope| {
                // A process that stops reading says why itself; a stream that breaks is shorter for it.
                scope.spawn(move || io::copy(stream, &mut writer));
                helper.loaded(progress)
            })?
        }
    };
    store.adopt_archive(unnamed, options)
}

/// As [`rootfs::ensure_rootfs`]; layers are unpacked by a confined process. A directory is read here: it is the user's
/// own.
pub fn ensure_rootfs(store: &Store, image: &Image, progress: &dyn Progress) -> Result<PathBuf, RootfsError> {
    rootfs::ensure_rootfs_by(store, image, progress, &|file, at, chain_id, layers| {
        unpack(file, at, &image.name, chain_id, layers, progress)
    })
}

fn unpack(
    file: &File,
    at: &Path,
    image: &str,
    chain_id: &ChainId,
    layers: &[Layer],
    progress: &dyn Progress,
) -> Result<(), RootfsError> {
    let failed = |error: io::Error| RootfsError::Elsewhere(format!("cannot start the unpacker: {error}"));
    let open = |layer: &Layer| {
        File::open(layer.path()).map_err(|source| RootfsError::File {
            action: "open the layer",
            path: layer.path().to_owned(),
            source,
        })
    };
    let files = layers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let fds: Vec<_> = std::iter::once(file.as_fd()).chain(files.iter().map(|file| file.as_fd())).collect();
    let layers =
        layers.iter().map(|layer| Layered { name: layer.digest.to_string(), diff_id: layer.diff_id.clone() });
    let work = Work::Unpack {
        image: image.to_owned(),
        at: at.to_owned(),
        chain_id: chain_id.clone(),
        layers: layers.collect(),
    };
    let mut helper = Helper::start(work, Options::none(), &fds).map_err(failed)?;
    match helper.hear(progress, None) {
        Ok(Answer::Unpacked) => Ok(()),
        Ok(_) => Err(RootfsError::Elsewhere(helper.nonsense().to_string())),
        Err(error) => Err(RootfsError::Elsewhere(error.to_string())),
    }
}

fn host(error: io::Error) -> PullError {
    let text = format!("cannot start the process that fetches images: {error}");
    PullError::Elsewhere { failure: Failure::Host, text }
}

//! The confined process itself.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use images::auth::{Keychain, Owner};
use images::pull::LoadFrom;
use images::rootfs::{RootfsError, build_from_layers};
use images::unpack::{self, Limits};
use images::{Event, ImageSource, Progress, PullError, PullOptions, Store};
use jailer::cage::{self, Cage, Given, Start};
use rustix::process::{Resource, Signal, set_parent_process_death_signal};
use vmm::text::with_causes;

use super::calls;
use super::job::{Answer, Job, Message, Reply, Step, Work};
use crate::keeper::spawn::inherited;

/// Longest job that is read.
const MAX_JOB: u64 = 16 << 20;
/// Largest file, and all of a root file system: what a bomb may come to.
const MAX_FILE: u64 = 2 * unpack::limits::MAX_UNPACKED_BYTES;
/// Private memory of who fetches: manifests, and what few layers have in flight.
const FETCH_DATA: u64 = 1 << 30;
/// Private memory of who unpacks: a tree of four million entries, see `unpack::limits`.
const UNPACK_DATA: u64 = 6 << 30;
/// Threads, and descriptors beside the layers'.
const THREADS: u64 = 64;
const FILES: u64 = 256;
/// Processor time. A layer at its limits takes minutes.
const SECONDS: u64 = 3600;
/// Where names of hosts are looked up.
const NAMES: [&str; 5] =
    ["/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"];
/// Progress of one layer is told so often at most.
const TELL: Duration = Duration::from_millis(20);

/// What a test does where an image could have taken the process over; it is given what the host did not permit.
pub type Attempt<'a> = &'a dyn Fn(&[String]);

/// The hidden verb: does one job. Called first thing in `main`, with no other thread in the process; both descriptors
/// are the parent's gift. `attempt` is done instead of the job, once it is confined.
pub fn serve(job: RawFd, wire: RawFd, start: Start, attempt: Option<Attempt<'_>>) -> io::Result<()> {
    let [job, wire] = [job, wire].map(inherited);
    let (job, wire) = (File::from(job?), Arc::new(Wire::new(UnixStream::from(wire?))));
    let mut text = Vec::new();
    job.take(MAX_JOB).read_to_end(&mut text)?;
    let Job { work, options, fds } = serde_json::from_slice(&text)?;
    for (name, value) in &options.variables {
        // SAFETY: there is one thread.
        unsafe { std::env::set_var(name, value) };
    }
    let files = fds.into_iter().map(|fd| inherited(fd).map(File::from)).collect::<io::Result<Vec<_>>>()?;
    let mut options = options.into_pull();
    let message = match prepare(&work, &mut options) {
        Err(error) => failure(&error),
        Ok((store, cage)) => {
            let missing = confine(start, &cage, files.len())?;
            if let Some(attempt) = attempt {
                attempt(&missing);
                return Ok(());
            }
            options.registry.keychain = wire.keychain();
            done(work, store, files, &options, &wire)
        }
    };
    wire.send(&message)
}

/// What a process needs besides its descriptors.
struct Need {
    given: Vec<Given>,
    network: bool,
    data: u64,
    unpacks: bool,
}

/// Opens and reads all that has to be looked up on the host.
fn prepare(work: &Work, options: &mut PullOptions) -> Result<(Option<Store>, Need), PullError> {
    let (store, path, registry) = match work {
        Work::Unpack { .. } => {
            return Ok((None, Need { given: Vec::new(), network: false, data: UNPACK_DATA, unpacks: true }));
        }
        Work::Fetch { store, source, .. } => match parse(source)? {
            ImageSource::Registry(reference) => (store, None, Some(reference)),
            source => (store, source.path().map(Path::to_owned), None),
        },
        Work::Load { store, path, stream } => (store, stream.is_none().then(|| path.clone()), None),
    };
    let mut given = vec![Given::Writable(store.join("blobs"))];
    given.extend(path.map(Given::Readable));
    if let Some(reference) = &registry {
        options.registry.prepare(reference.registry())?;
        given.extend(NAMES.map(|name| Given::Readable(PathBuf::from(name))));
    }
    let need = Need { given, network: registry.is_some(), data: FETCH_DATA, unpacks: false };
    Ok((Some(Store::open(store)?), need))
}

/// Gives up everything else; what the host does not permit is returned.
fn confine(start: Start, need: &Need, files: usize) -> io::Result<Vec<String>> {
    let Need { given, network, data, unpacks } = need;
    let limits = cage::Limits {
        files: FILES + files as u64,
        file_bytes: MAX_FILE,
        data_bytes: *data,
        threads: THREADS,
    };
    let cage = Cage { start, given: given.clone(), network: *network, limits };
    let mut missing: Vec<_> = cage::enter(&cage).iter().map(|missing| with_causes(missing)).collect();
    if let Err(error) = jailer::privileges::limit(Resource::Cpu, SECONDS) {
        missing.push(with_causes(&error));
    }
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // With its first thread the C library installs signal handlers, which no filter permits.
    let _ = std::thread::spawn(|| {}).join();
    match unpacks {
        true => calls::UNPACK.install()?,
        false => calls::FETCH.install()?,
    }
    Ok(missing)
}

fn done(
    work: Work,
    store: Option<Store>,
    files: Vec<File>,
    options: &PullOptions,
    wire: &Arc<Wire>,
) -> Message {
    let answer = match (work, store) {
        (Work::Fetch { source, known, .. }, Some(store)) => parse(&source)
            .and_then(|source| store.fetch(&source, options, known, &**wire).map(Answer::Fetched)),
        (Work::Load { path, stream, .. }, Some(store)) => {
            let name = path.display().to_string();
            let from = if stream.is_some() { LoadFrom::Stream(&name) } else { LoadFrom::Path(&path) };
            let mut stream: Box<dyn io::Read> = match stream.and_then(|index| files.into_iter().nth(index)) {
                Some(file) => Box::new(file),
                None => Box::new(io::empty()),
            };
            store.fetch_archive(&from, &mut stream, options, &**wire).map(Answer::Loaded)
        }
        (Work::Unpack { image, at, chain_id, layers }, _) => {
            let mut files = files.into_iter();
            let Some(mut file) = files.next() else { return Message::failed("no file to write to") };
            let source = |(layer, file): (super::job::Layered, File)| unpack::Layer {
                name: layer.name,
                diff_id: layer.diff_id,
                source: Box::new(file),
            };
            let sources = layers.into_iter().zip(files).map(source).collect();
            return match build_from_layers(
                &mut file,
                &at,
                &image,
                &chain_id,
                sources,
                &Limits::default(),
                &**wire,
            ) {
                Ok(()) => Message::Done(Answer::Unpacked),
                Err(error @ RootfsError::Unpack { .. }) => Message::failed(with_causes(&error)),
                Err(error) => Message::failed(with_causes(&error)),
            };
        }
        (_, None) => return Message::failed("no store to write to"),
    };
    answer.map_or_else(|error| failure(&error), Message::Done)
}

fn parse(source: &str) -> Result<ImageSource, PullError> {
    ImageSource::from_str(source).map_err(|error| PullError::Elsewhere {
        failure: images::pull::Failure::Unusable,
        text: with_causes(&error),
    })
}

fn failure(error: &PullError) -> Message {
    Message::Failed { failure: error.failure(), text: with_causes(error) }
}

impl Message {
    fn failed(text: impl Into<String>) -> Self {
        Self::Failed { failure: images::pull::Failure::Unusable, text: text.into() }
    }
}

/// The way to the parent.
struct Wire(Mutex<Ends>);

struct Ends {
    stream: BufReader<UnixStream>,
    told: Instant,
}

impl Wire {
    fn new(stream: UnixStream) -> Self {
        Self(Mutex::new(Ends { stream: BufReader::new(stream), told: Instant::now() }))
    }

    fn send(&self, message: &Message) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send(message)
    }

    /// Asks the parent, who looks.
    fn keychain(self: &Arc<Self>) -> Keychain {
        let wire = self.clone();
        let ask = move |_: &images::Reference| {
            let mut ends = wire.0.lock().unwrap_or_else(PoisonError::into_inner);
            let mut line = String::new();
            ends.send(&Message::Credentials).map_err(|error| error.to_string())?;
            ends.stream.read_line(&mut line).map_err(|error| error.to_string())?;
            serde_json::from_str::<Reply>(&line).map_err(|_| "no answer".to_owned())?
        };
        Keychain { owner: Some(Owner(Arc::new(ask))), ..Keychain::default() }
    }
}

impl Ends {
    fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)
    }
}

impl Progress for Wire {
    fn event(&self, event: Event<'_>) {
        let Some(step) = Step::of(event) else { return };
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(step, Step::LayerBytes { .. }) {
            if ends.told.elapsed() < TELL {
                return;
            }
            ends.told = Instant::now();
        }
        // A parent that is gone ends this process.
        let _ = ends.send(&Message::Step(step));
    }
}

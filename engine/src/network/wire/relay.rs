//! Hands frames on between the machine and the user-mode network, and those of the guest through the filter.
//!
//! A thread for each direction, and one for published UDP ports, that end when either side hangs up. Frames are behind their length, four
//! bytes, big endian, as passt takes them.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::datagrams::Datagrams;
use super::filter::{Filter, Verdict};
use super::refusal::refusal;
use crate::network::services::Denial;

/// Bytes of a frame's length.
const LENGTH: usize = 4;
/// Longest frame that a machine sends: an Ethernet header, a VLAN tag twice, and the longest packet.
const MAX_FRAME: usize = 65_535 + 14 + 8;
/// Bytes that are handed on at once.
const CHUNK: usize = 64 << 10;
/// Denials that are told of in a second, as of bridges (stops a guest from flooding the log).
const DENIALS_PER_SECOND: u32 = 20;

/// A relay, ended on drop.
#[derive(Debug)]
pub struct Relay {
    machine: UnixStream,
    network: UnixStream,
    filter: Option<Arc<Filter>>,
    datagrams: Option<Arc<Datagrams>>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Between the `machine`'s and the `network`'s socket. Nothing passes before [`Relay::start`].
    pub fn new(
        machine: OwnedFd,
        network: OwnedFd,
        filter: Option<Filter>,
        datagrams: Option<Datagrams>,
    ) -> Self {
        Self {
            machine: machine.into(),
            network: network.into(),
            filter: filter.map(Arc::new),
            datagrams: datagrams.map(Arc::new),
            threads: Vec::new(),
        }
    }

    /// What limits the way out.
    pub fn filter(&self) -> Option<&Arc<Filter>> {
        self.filter.as_ref()
    }

    /// Lets pass what the filter allows, tells of the rest, and serves the published ports.
    pub fn start(&mut self, on_denied: Box<dyn Fn(Denial) + Send>) -> io::Result<()> {
        // The machine hears of all of them.
        let machine = Arc::new(Mutex::new(self.machine.try_clone()?));
        let (from, to) = (self.machine.try_clone()?, self.network.try_clone()?);
        let mut leaving = Leaving {
            filter: self.filter.clone(),
            datagrams: self.datagrams.clone(),
            machine: machine.clone(),
            network: to,
            pending: Vec::new(),
            quota: Quota::new(Instant::now()),
            on_denied,
        };
        self.spawn("egress", move || each_frame(from, |frame, more| leaving.frame(frame, more)))?;
        if let Some(datagrams) = self.datagrams.clone() {
            let (wire, machine) = (self.machine.try_clone()?, machine.clone());
            self.spawn("datagrams", move || {
                datagrams.serve(&wire, |frame| {
                    let mut bytes = Vec::new();
                    put(&mut bytes, frame);
                    write(&machine, &mut bytes)
                })
            })?;
        }
        let from = self.network.try_clone()?;
        let mut pending = Vec::new();
        self.spawn("ingress", move || {
            each_frame(from, |frame, more| {
                put(&mut pending, frame);
                if more && pending.len() < CHUNK {
                    return Ok(());
                }
                write(&machine, &mut pending)
            })
        })
    }

    /// A thread that hangs up on both sides when it ends.
    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let sides = [self.machine.try_clone()?, self.network.try_clone()?];
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // It ends by an error in any case; each of them says that a side is gone, or speaks another language.
            let _ = work();
            sides.iter().for_each(hang_up);
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        hang_up(&self.machine);
        hang_up(&self.network);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn hang_up(side: &UnixStream) {
    // Fails only where it is done.
    let _ = side.shutdown(Shutdown::Both);
}

/// The way out of the guest.
struct Leaving {
    filter: Option<Arc<Filter>>,
    datagrams: Option<Arc<Datagrams>>,
    machine: Arc<Mutex<UnixStream>>,
    network: UnixStream,
    /// Frames that passed and are not sent yet.
    pending: Vec<u8>,
    quota: Quota,
    on_denied: Box<dyn Fn(Denial) + Send>,
}

impl Leaving {
    fn judge(&self, frame: &[u8]) -> Verdict {
        if self.datagrams.as_ref().is_some_and(|datagrams| datagrams.answer(frame)) {
            return Verdict::Drop;
        }
        self.filter.as_ref().map_or(Verdict::Pass, |filter| filter.leaving(frame))
    }

    /// One frame; `more` says that the next one is there already.
    fn frame(&mut self, frame: &[u8], more: bool) -> io::Result<()> {
        match self.judge(frame) {
            Verdict::Pass => put(&mut self.pending, frame),
            Verdict::Drop => {}
            Verdict::Deny(denial) => {
                if let Some(refusal) = refusal(frame) {
                    let mut bytes = Vec::new();
                    put(&mut bytes, &refusal);
                    write(&self.machine, &mut bytes)?;
                }
                if self.quota.take(Instant::now()) {
                    (self.on_denied)(denial);
                }
            }
        }
        if !more || self.pending.len() >= CHUNK {
            self.network.write_all(&self.pending)?;
            self.pending.clear();
        }
        Ok(())
    }
}

/// So many a second.
#[derive(Debug)]
struct Quota {
    second: Instant,
    taken: u32,
}

impl Quota {
    fn new(now: Instant) -> Self {
        Self { second: now, taken: 0 }
    }

    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        self.taken = self.taken.saturating_add(1);
        self.taken <= DENIALS_PER_SECOND
    }
}

/// Reads frames until the other side hangs up, or `take` fails.
fn each_frame(from: UnixStream, mut take: impl FnMut(&[u8], bool) -> io::Result<()>) -> io::Result<()> {
    let mut from = BufReader::with_capacity(CHUNK, from);
    let mut frame = Vec::new();
    loop {
        let mut length = [0; LENGTH];
        from.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        frame.resize(length, 0);
        from.read_exact(&mut frame)?;
        take(&frame, from.buffer().len() > LENGTH)?;
    }
}

/// Appends a frame behind its length. A frame is never longer than [`MAX_FRAME`].
fn put(bytes: &mut Vec<u8>, frame: &[u8]) {
    bytes.extend(u32::try_from(frame.len()).unwrap_or_default().to_be_bytes());
    bytes.extend(frame);
}

/// Whole frames, so that those of two threads do not mix.
fn write(to: &Mutex<UnixStream>, bytes: &mut Vec<u8>) -> io::Result<()> {
    to.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes)?;
    bytes.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::packet::TCP;
    use super::super::packet::tests::to_port;
    use super::*;

    /// A relay between the two sides, and what is denied.
    fn relay(rules: &[&str]) -> (Relay, UnixStream, UnixStream, mpsc::Receiver<Denial>) {
        let ((machine, ours), (network, theirs)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let mut relay = Relay::new(machine.into(), network.into(), Some(Filter::new(rules)), None);
        let (told, hears) = mpsc::channel();
        relay.start(Box::new(move |denial| drop(told.send(denial)))).unwrap();
        (relay, ours, theirs, hears)
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, frame);
        bytes
    }

    fn next(stream: &mut UnixStream) -> Vec<u8> {
        let mut length = [0; LENGTH];
        stream.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).unwrap();
        frame
    }

    #[test]
    fn what_is_allowed_passes_and_the_rest_is_refused_and_told() {
        let (_relay, mut machine, mut network, denials) = relay(&["192.0.2.1:443"]);
        let (allowed, denied) = (to_port("192.0.2.1", TCP, 443), to_port("192.0.2.2", TCP, 443));
        machine.write_all(&[framed(&allowed), framed(&denied), framed(&allowed)].concat()).unwrap();
        assert_eq!([next(&mut network), next(&mut network)], [allowed.clone(), allowed]);
        assert_eq!(denials.recv().unwrap().destination.to_string(), "192.0.2.2");
        assert_eq!(next(&mut machine), refusal(&denied).unwrap());
        network.write_all(&framed(&denied)).unwrap();
        assert_eq!(next(&mut machine), denied, "what comes in is not filtered");
    }

    #[test]
    fn a_side_that_hangs_up_or_sends_no_frames_ends_both() {
        let (_relay, machine, mut network, _) = relay(&[]);
        drop(machine);
        assert_eq!(network.read(&mut [0; 8]).unwrap(), 0);
        let (_relay, mut machine, mut network, _) = relay(&[]);
        machine.write_all(&[0xff; 8]).unwrap();
        assert_eq!(network.read(&mut [0; 8]).unwrap(), 0);
        let (relay, mut machine, _network, _) = relay(&[]);
        drop(relay);
        assert_eq!(machine.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn so_many_denials_a_second_are_told_of_and_no_more() {
        let start = Instant::now();
        let mut quota = Quota::new(start);
        assert_eq!((0..1000).filter(|_| quota.take(start)).count(), 20);
        assert!(quota.take(start + Duration::from_secs(1)));
    }
}

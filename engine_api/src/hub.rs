//! Events for many listeners: one reader of the file, however many streams there are.
//!
//! ```text
//! events.jsonl ─► follower (a task, while anybody listens) ─► each listener's queue ─► its connection
//! ```
//!
//! A listener that does not read is dropped and comes back with `Last-Event-ID`. What it costs while nothing happens is
//! its connection and an empty queue.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::dirs::Dirs;
use engine::events::{Event, Events};
use hyper::body::Bytes;
use tokio::sync::mpsc;

use crate::body::Chunks;
use crate::problem::Problem;

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_millis(50);
/// Events that may wait for a listener.
const QUEUE: usize = 256;
/// Looks at the file between two signs of life.
const SIGN: u32 = 600;

/// Which events a listener wants: all values of one key are alternatives, all keys must fit.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// In ns since 1970; events before that are left out.
    pub since: u64,
    /// Events from then on are left out.
    pub until: u64,
    /// `type`
    pub kinds: Vec<String>,
    /// Actions.
    pub actions: Vec<String>,
    /// Names, IDs, or beginnings of IDs.
    pub containers: Vec<String>,
    /// Images.
    pub images: Vec<String>,
}

impl Filter {
    fn fits(&self, event: &Event) -> bool {
        let any =
            |wanted: &[String], fits: &dyn Fn(&String) -> bool| wanted.is_empty() || wanted.iter().any(fits);
        (self.since..self.until).contains(&event.time_ns)
            && any(&self.kinds, &|kind| *kind == event.kind)
            && any(&self.actions, &|action| *action == event.action)
            && any(&self.containers, &|name| *name == event.name || event.id.starts_with(name.as_str()))
            && any(&self.images, &|image| {
                let of = event.attributes.get("image");
                of.is_some_and(|of| of == image || crate::convert::familiar(of) == *image)
            })
    }
}

#[derive(Debug)]
struct Listener {
    queue: mpsc::Sender<Result<Bytes, Problem>>,
    filter: Filter,
}

#[derive(Debug)]
struct State {
    events: Events,
    /// The last one that listeners were told of.
    last: Option<Event>,
    listeners: Vec<Listener>,
    following: bool,
    closed: bool,
}

/// The events of one installation, or of one tenant.
#[derive(Debug)]
pub struct Hub {
    dirs: Dirs,
    state: Mutex<State>,
}

impl Hub {
    /// Nobody listens yet.
    pub fn new(dirs: &Dirs) -> Arc<Self> {
        let state = State {
            events: Events::open(dirs),
            last: None,
            listeners: Vec::new(),
            following: false,
            closed: false,
        };
        Arc::new(Self { dirs: dirs.clone(), state: Mutex::new(state) })
    }

    /// Events that fit `filter` from now on, after those that it wants of the past. Reads the file, so it may wait.
    pub fn listen(self: &Arc<Self>, filter: Filter, past: bool) -> Result<Chunks, Problem> {
        let (queue, chunks) = mpsc::channel(QUEUE);
        let runtime = tokio::runtime::Handle::current();
        let hub = Arc::clone(self);
        if !past {
            hub.add(Listener { queue, filter }, &mut Vec::new().into_iter());
            return Ok(chunks);
        }
        // As long as there is more than fits into the queue, a thread waits for the listener to read.
        runtime.clone().spawn_blocking(move || {
            let mut own = Events::open(&hub.dirs);
            let send = |event: &Event| {
                let sent = async {
                    tokio::time::timeout(crate::transfer::STALL, queue.send(Ok(frame(event)))).await
                };
                matches!(runtime.block_on(sent), Ok(Ok(())))
            };
            while let Ok(Some(event)) = own.next_event() {
                if filter.fits(&event) && !send(&event) {
                    return;
                }
            }
            // What has come meanwhile is told with the file in hand, so that nothing is told twice or not at all.
            let mut rest = std::iter::from_fn(|| own.next_event().ok().flatten());
            hub.add(Listener { queue: queue.clone(), filter: filter.clone() }, &mut rest);
        });
        Ok(chunks)
    }

    fn add(self: &Arc<Self>, listener: Listener, rest: &mut dyn Iterator<Item = Event>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tell();
        if state.closed {
            return;
        }
        state.listeners.push(listener);
        // Those that all others were told of already; what comes after the last of them everybody is told of.
        let known: Vec<Event> = rest.collect();
        let last = state.last.clone();
        let told =
            known.iter().rposition(|event| Some(event) == last.as_ref()).map_or(known.len(), |at| at + 1);
        if let Some(listener) = state.listeners.last() {
            known.iter().take(told).filter(|event| listener.filter.fits(event)).for_each(|event| {
                let _ = listener.queue.try_send(Ok(frame(event)));
            });
        }
        if !std::mem::replace(&mut state.following, true) {
            drop(state);
            tokio::runtime::Handle::current().spawn(Arc::clone(self).follow());
        }
    }

    /// Tells listeners of what happens until there are none.
    async fn follow(self: Arc<Self>) {
        for turn in 1u32.. {
            tokio::time::sleep(INTERVAL).await;
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.tell();
            if turn.is_multiple_of(SIGN) {
                state.listeners.iter().for_each(|listener| {
                    let _ = listener.queue.try_send(Ok(Bytes::from_static(b":\n\n")));
                });
            }
            let now = engine::container::state::now_ns();
            state.listeners.retain(|listener| !listener.queue.is_closed() && listener.filter.until > now);
            if state.listeners.is_empty() {
                state.following = false;
                return;
            }
        }
    }

    /// Ends all streams.
    pub fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        state.listeners.clear();
    }
}

impl State {
    /// Reads what has come and tells of it.
    fn tell(&mut self) {
        while let Ok(Some(event)) = self.events.next_event() {
            if !self.listeners.is_empty() {
                let frame = frame(&event);
                self.listeners.retain(|listener| {
                    !listener.filter.fits(&event) || listener.queue.try_send(Ok(frame.clone())).is_ok()
                });
            }
            self.last = Some(event);
        }
    }
}

/// A server-sent event. Its ID is the time: who comes back with it as `Last-Event-ID` goes on behind it.
fn frame(event: &Event) -> Bytes {
    let data = serde_json::to_string(&crate::types::Event::from(event)).unwrap_or_default();
    format!("id: {}\nevent: {}\ndata: {data}\n\n", event.time_ns, event.kind).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::events::emit;

    fn names(chunks: &mut Chunks) -> Vec<String> {
        let mut found = Vec::new();
        while let Ok(Ok(chunk)) = chunks.try_recv() {
            let text = String::from_utf8(chunk.to_vec()).unwrap();
            found.push(text.split("\"name\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned());
        }
        found
    }

    #[test]
    fn nothing_is_told_twice_or_not_at_all() {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(tell());
    }

    async fn tell() {
        let base = tempfile::tempdir().unwrap();
        let dirs = Dirs { data: base.path().into(), run: base.path().into(), cache: base.path().into() };
        let hub = Hub::new(&dirs);
        let say = |name: &str| emit(&dirs, &Event::new("container", "start", "0123", name));
        say("one");
        let all = || Filter { until: u64::MAX, ..Filter::default() };
        let mut new = hub.listen(all(), false).unwrap();
        let mut past = hub.listen(all(), true).unwrap();
        say("two");
        tokio::time::sleep(INTERVAL * 6).await;
        say("three");
        tokio::time::sleep(INTERVAL * 6).await;
        assert_eq!(names(&mut new), ["two", "three"]);
        assert_eq!(names(&mut past), ["one", "two", "three"]);
        let other = Filter { actions: vec!["die".into()], ..all() };
        let mut none = hub.listen(other, true).unwrap();
        tokio::time::sleep(INTERVAL * 4).await;
        assert!(names(&mut none).is_empty());
        hub.close();
        assert!(new.recv().await.is_none());
    }
}

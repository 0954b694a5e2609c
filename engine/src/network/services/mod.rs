//! What a running container needs of the host beside its packets: a proxy for its published ports, answers to its
//! questions for names, and word of what it was denied. One thread for all, gone with [`Services`].
//!
//! Many clients meet here, so it is asynchronous, on a runtime of this one thread. Everything is bounded.

pub mod denials;
mod dns;
mod proxy;
mod upstream;
pub mod zone;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::LocalSet;

use super::bridge::Bridge;
use super::claim::Claim;
use super::guest::Guest;
use super::wire::Filter;
pub use denials::Denial;
pub use proxy::Target;
use zone::Zone;

/// A container in its networks.
pub type Places = Vec<(Bridge, Guest)>;

/// What is to be served.
pub struct Settings {
    /// Ports of the host.
    pub claims: Vec<Claim>,
    /// Where they lead; `None` where nothing is published.
    pub target: Option<Target>,
    /// The machine's vsock device, where questions for names arrive; `None`: no answers.
    pub vsock: Option<PathBuf>,
    /// Who is asked what lighter does not know.
    pub servers: Vec<IpAddr>,
    /// The container in its networks.
    pub places: Places,
    /// Filters a network in user mode, by name too.
    pub filter: Option<Arc<Filter>>,
    /// Hears of denied packets.
    pub denials: Option<denials::Listener>,
    /// Told of them.
    pub on_denied: Box<dyn Fn(Denial) + Send>,
}

/// The running services, ended on drop.
#[derive(Debug)]
pub struct Services {
    /// Dropped to end them.
    places: Option<UnboundedSender<Places>>,
    thread: Option<JoinHandle<()>>,
}

impl Services {
    /// Starts them, in the network namespace of this thread. The sockets are there when this returns.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let listeners = settings.vsock.as_deref().map(dns::Listeners::bind).transpose()?;
        let (places, mut changes) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new().name("network".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                let zone = serve(settings, listeners);
                while let Some(places) = changes.recv().await {
                    zone.set_places(places);
                }
            });
        })?;
        Ok(Self { places: Some(places), thread: Some(thread) })
    }

    /// The container is in other networks from now on.
    pub fn set_places(&self, places: Places) {
        // Fails only where the thread has ended, and nobody is served any more.
        let _ = self.places.iter().try_for_each(|sender| sender.send(places.clone()));
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.places = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Spawns what serves, within a `LocalSet`.
fn serve(settings: Settings, listeners: Option<dns::Listeners>) -> Rc<Zone> {
    let Settings { claims, target, servers, places, filter, denials, on_denied, .. } = settings;
    if let Some(target) = &target {
        proxy::serve(claims, target);
    }
    let zone = Rc::new(Zone::new(places, filter));
    zone.allow_known_names(&servers);
    if let Some(listeners) = listeners {
        listeners.serve(&zone, &servers.into());
    }
    if let Some(listener) = denials {
        tokio::task::spawn_local(listener.serve(on_denied));
    }
    zone
}

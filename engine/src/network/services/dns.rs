//! Questions for names, as the guest's agent passes them on.
//!
//! ```text
//! process ─► 127.0.0.11:53 in the guest ─► agent ─► vsock port 53 or 1053 ─► here ─► zone, or the host's servers
//! ```
//!
//! Both ports carry messages behind their length. Port 53 is for what came by TCP; a question on port 1053 came by UDP
//! and is passed on by UDP, so that its answer has the size that the process in the guest can take.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::{DNS_DATAGRAM_PORT, DNS_STREAM_PORT};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::upstream::{self, read_message, write_message};
use super::zone::{Decision, Zone, failure};

/// Connections of the guest at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// A connection on which nothing is asked for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The sockets to which the machine's vsock device leads the agent.
pub struct Listeners {
    stream: StdListener,
    datagram: StdListener,
}

impl Listeners {
    /// Beside the vsock device's socket `vsock`.
    pub fn bind(vsock: &Path) -> io::Result<Self> {
        let bind = |port: u32| {
            let path = PathBuf::from(format!("{}_{port}", vsock.display()));
            // Left by an earlier life of the same container.
            let _ = std::fs::remove_file(&path);
            let listener = StdListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(listener)
        };
        Ok(Self { stream: bind(DNS_STREAM_PORT)?, datagram: bind(DNS_DATAGRAM_PORT)? })
    }

    /// Serves by tasks of this `LocalSet`.
    pub fn serve(self, zone: &Rc<Zone>, servers: &Rc<[std::net::IpAddr]>) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        for (listener, stream) in [(self.stream, true), (self.datagram, false)] {
            let Ok(listener) = UnixListener::from_std(listener) else { continue };
            let server = Server { zone: zone.clone(), servers: servers.clone(), stream };
            spawn_local(accept(listener, server, connections.clone()));
        }
    }
}

#[derive(Clone)]
struct Server {
    zone: Rc<Zone>,
    servers: Rc<[std::net::IpAddr]>,
    /// By TCP.
    stream: bool,
}

async fn accept(listener: UnixListener, server: Server, connections: Arc<Semaphore>) {
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((connection, _)) => {
                let server = server.clone();
                spawn_local(async move {
                    // The guest may hang up at any time.
                    let _ = server.converse(connection).await;
                    drop(permit);
                });
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

impl Server {
    async fn converse(&self, mut connection: UnixStream) -> io::Result<()> {
        loop {
            let query = timeout(IDLE, read_message(&mut connection)).await??;
            let Some(answer) = self.answer(&query).await else { return Ok(()) };
            timeout(IDLE, write_message(&mut connection, &answer)).await??;
        }
    }

    async fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let answer = match self.zone.decide(query) {
            Decision::Ignore => return None,
            Decision::Answer(answer) => Some(answer),
            Decision::Forward => upstream::ask(&self.servers, query, self.stream).await,
        };
        let answer = answer.or_else(|| failure(query))?;
        // Before the guest knows the address, so that its first packet passes.
        self.zone.allow_answer(&answer).await;
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_starts_again_gets_its_sockets_again() {
        let base = tempfile::tempdir().unwrap();
        let vsock = base.path().join("v.sock");
        drop(Listeners::bind(&vsock).unwrap());
        Listeners::bind(&vsock).unwrap();
    }
}

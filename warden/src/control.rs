//! Pausing: the part of a VMM's control socket that containers have too.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use vmm::control::{Answer, Done, Refusal, RefusalKind, Request};

use crate::cgroup;

/// Longest request. Stops a client from filling memory.
const MAX_LINE: u64 = 16 << 10;
/// What a client may take: clients are lighter's own, and write at once.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Takes one client with one request.
pub fn serve(listener: &UnixListener, id: &str) {
    let Ok((stream, _)) = listener.accept() else { return };
    // A client that is gone or silent is none of ours.
    let _ = answer(&stream, id);
}

fn answer(mut stream: &UnixStream, id: &str) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line)?;
    let refused = |kind, message: String| Answer::Error(Refusal { kind, message });
    let frozen = |frozen| match cgroup::freeze(id, frozen) {
        Ok(()) => Answer::Ok(Done::default()),
        Err(message) => refused(RefusalKind::Host, message),
    };
    let answer = match serde_json::from_slice(&line) {
        Ok(Request::Pause) => frozen(true),
        Ok(Request::Resume) => frozen(false),
        Ok(_) => {
            refused(RefusalKind::Request, "snapshots and memory balloons need --isolation vm".to_owned())
        }
        Err(error) => refused(RefusalKind::Request, format!("this is no request: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    stream.write_all(&text)
}

//! What the server logs: one JSON object a line, on stderr. Whoever does not read it makes nobody wait.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use serde_json::{Value, json};

use crate::convert::rfc3339;

/// Lines that may wait to be written; what comes beyond is counted and left out.
const WAITING: usize = 4096;

/// A log.
#[derive(Debug)]
pub struct Log {
    lines: SyncSender<String>,
    lost: AtomicU64,
}

impl Log {
    /// A log whose lines a thread writes.
    pub fn new() -> std::io::Result<Self> {
        let (lines, waiting) = sync_channel::<String>(WAITING);
        std::thread::Builder::new().name("log".into()).stack_size(64 << 10).spawn(move || {
            for line in waiting {
                let _ = std::io::stderr().write_all(line.as_bytes());
            }
        })?;
        Ok(Self { lines, lost: AtomicU64::new(0) })
    }

    /// Adds time, level and message to `fields`.
    pub fn say(&self, level: &str, message: &str, fields: Value) {
        let mut line =
            json!({"time": rfc3339(engine::container::state::now_ns()), "level": level, "message": message});
        if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields) {
            line.extend(fields);
            match self.lost.swap(0, Ordering::Relaxed) {
                0 => {}
                lost => drop(line.insert("lines_lost".into(), lost.into())),
            }
        }
        if self.lines.try_send(format!("{line}\n")).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

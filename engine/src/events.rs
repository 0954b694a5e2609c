//! What happened to containers: one JSON line each in `events.jsonl` below the data directory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::container::state::now_ns;
use crate::dirs::Dirs;
use crate::lock::Lock;

/// A file this large is followed by a new one; the one before it is kept, older ones go.
const MAX_FILE: u64 = 8 << 20;
/// Longest line that is read.
const MAX_LINE: u64 = 64 << 10;

/// Something that happened.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Event {
    /// When, in ns since 1970.
    pub time_ns: u64,
    /// To what kind of thing: `container`, `network`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// What: `create`, `start`, `die`, ...
    pub action: String,
    /// To which: its ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// More, by name.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    /// An event of now.
    pub fn new(kind: &str, action: &str, id: &str, name: &str) -> Self {
        Self {
            time_ns: now_ns(),
            kind: kind.to_owned(),
            action: action.to_owned(),
            id: id.to_owned(),
            name: name.to_owned(),
            attributes: BTreeMap::new(),
        }
    }

    /// The same with one more attribute.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.attributes.insert(name.to_owned(), value.to_string());
        self
    }
}

/// Writes `event` down. A host that cannot keep it is no reason for what happens not to happen.
pub fn emit(dirs: &Dirs, event: &Event) {
    let _ = append(dirs, event);
}

fn append(dirs: &Dirs, event: &Event) -> io::Result<()> {
    let path = path(dirs);
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let _lock = Lock::acquire(&dirs.data.join("events.lock"))?;
    if path.metadata().is_ok_and(|metadata| metadata.len() >= MAX_FILE) {
        std::fs::rename(&path, old_path(dirs))?;
    }
    // One write to a file opened for appending: a crash tears nothing of others.
    let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
    let whole = file.metadata()?.len();
    let written = file.write_all(&line);
    if written.is_err() {
        // The disk is full: half a line would swallow the next one.
        let _ = file.set_len(whole);
    }
    written
}

/// Reads events in order, and those that come.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    /// Files to read, the current one last.
    file: Option<BufReader<File>>,
    old: Option<BufReader<File>>,
}

impl Events {
    /// All events that are still known.
    pub fn open(dirs: &Dirs) -> Self {
        let open = |path: &Path| File::open(path).ok().map(BufReader::new);
        Self { old: open(&old_path(dirs)), file: open(&path(dirs)), path: path(dirs) }
    }

    /// The next event; `None` if there is none yet. A line that is none is left out.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(old) = &mut self.old {
                match read_line(old)? {
                    Some(line) => match serde_json::from_slice(&line) {
                        Ok(event) => return Ok(Some(event)),
                        Err(_) => continue,
                    },
                    None => self.old = None,
                }
            }
            let Some(file) = &mut self.file else {
                match File::open(&self.path) {
                    Ok(file) => self.file = Some(BufReader::new(file)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                }
                continue;
            };
            match read_line(file)? {
                Some(line) => {
                    if let Ok(event) = serde_json::from_slice(&line) {
                        return Ok(Some(event));
                    }
                }
                None => {
                    let ours = file.get_ref().metadata()?.ino();
                    match self.path.metadata() {
                        Ok(there) if there.ino() != ours => self.file = None,
                        _ => return Ok(None),
                    }
                }
            }
        }
    }
}

/// A whole line; what is not whole yet is left for the next time.
fn read_line(file: &mut BufReader<File>) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    let mut line = Vec::new();
    let count = file.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    if count == 0 {
        return Ok(None);
    }
    if !line.ends_with(b"\n") && (count as u64) < MAX_LINE {
        file.seek_relative(-i64::try_from(count).unwrap_or_default())?;
        return Ok(None);
    }
    Ok(Some(line))
}

fn path(dirs: &Dirs) -> PathBuf {
    dirs.data.join("events.jsonl")
}

fn old_path(dirs: &Dirs) -> PathBuf {
    dirs.data.join("events.old.jsonl")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::test_dirs;

    #[test]
    fn events_are_read_in_order_and_followed_over_a_rotation() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        let mut events = Events::open(&dirs);
        assert_eq!(events.next_event().unwrap(), None);
        let event = |name: &str| Event::new("container", "start", "0123", name).with("image", "x");
        emit(&dirs, &event("one"));
        std::fs::OpenOptions::new().append(true).open(path(&dirs)).unwrap().write_all(b"nonsense\n").unwrap();
        emit(&dirs, &event("two"));
        let mut next = || events.next_event().unwrap().map(|event| event.name);
        assert_eq!([next(), next(), next()], [Some("one".into()), Some("two".into()), None]);
        std::fs::OpenOptions::new().append(true).open(path(&dirs)).unwrap().set_len(MAX_FILE).unwrap();
        emit(&dirs, &event("three"));
        assert_eq!([next(), next()], [Some("three".into()), None]);
        let mut all = Events::open(&dirs);
        let names: Vec<_> =
            std::iter::from_fn(|| all.next_event().unwrap()).map(|event| event.name).collect();
        assert_eq!(names, ["one", "two", "three"]);
    }
}

//! What a container wrote, and what its guest's kernel said.

use std::io::Read as _;
use std::time::Duration;

use engine::container::record::Record as ContainerRecord;
use engine::log::reader::Reader;
use engine::log::{Record, Stream};
use hyper::Method;
use hyper::body::Bytes;
use tokio::sync::mpsc;

use super::containers::TAG;
use super::plain;
use crate::body::WAITING;
use crate::call::Call;
use crate::convert::rfc3339;
use crate::operation::ParamKind::{Choice, Flag, Number, Text};
use crate::operation::{Content, Operation, of, param};
use crate::problem::{Kind, Problem};
use crate::reply::{EVENTS, Reply};
use crate::session::{frame, kind};
use crate::transfer::STALL;
use crate::types::LogLine;

/// How often a followed log is looked at.
const INTERVAL: Duration = Duration::from_millis(50);
/// Bytes that are read at once.
const PORTION: usize = 256 << 10;
/// Largest console: the VMM keeps no more of it.
const MAX_CONSOLE: u64 = 16 << 20;
/// Type of frames.
pub const FRAMES: &str = "application/vnd.lighter.frames";
const BYTES: &str = "application/octet-stream";

pub const OPERATIONS: &[Operation] = &[
    Operation {
        summary: "What a container wrote",
        query: &[
            param("follow", Flag, "Go on with what comes, until it ends."),
            param("since", Text, "Only what is not older: RFC 3339, or seconds since 1970."),
            param("until", Text, "Only what is older."),
            param("tail", Number(0, u32::MAX as u64), "Only the last so many lines."),
            param(
                "format",
                Choice(&["raw", "frames", "events"]),
                "`raw`: the bytes of both streams (the default); `frames`: frames as of attach; `events`: server-sent events.",
            ),
        ],
        gives: &[(
            200,
            Content::Any(&[Content::Bytes(BYTES), Content::Bytes(FRAMES), Content::Events(of::<LogLine>)]),
            "What it wrote.",
        )],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/containers/{container}/logs", "getLogs", TAG, logs)
    },
    Operation {
        summary: "What the kernel of a container's guest said",
        gives: &[(200, Content::Bytes(BYTES), "The console of its last start.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/containers/{container}/console", "getConsole", TAG, |call| {
            let record = call.container()?;
            let missing =
                |_| Problem::new(Kind::CONFLICT, format!("container {} was never started", record.name));
            let mut text = Vec::new();
            std::fs::File::open(record.console())
                .map_err(missing)?
                .take(MAX_CONSOLE)
                .read_to_end(&mut text)?;
            Ok(Reply::whole(200, BYTES, text))
        })
    },
];

#[derive(Clone, Copy)]
enum Format {
    Raw,
    Frames,
    Events,
}

/// Reads a log in portions.
struct Portions {
    record: ContainerRecord,
    reader: Reader,
    format: Format,
    range: std::ops::Range<u64>,
    /// Lines still to be left out.
    skip: usize,
}

fn logs(call: &mut Call) -> Result<Reply, Problem> {
    let record = call.container()?;
    let (format, kind) = match call.text("format") {
        Some("frames") => (Format::Frames, FRAMES),
        Some("events") => (Format::Events, EVENTS),
        _ => (Format::Raw, BYTES),
    };
    let range = call.moment("since")?.unwrap_or(0)..call.moment("until")?.unwrap_or(u64::MAX);
    let mut portions = Portions { reader: Reader::new(&record.log()), record, format, range, skip: 0 };
    if let Some(tail) = call.number("tail") {
        portions.skip = portions.lines()?.saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX));
    }
    let follow = call.flag("follow");
    let (sender, chunks) = mpsc::channel(WAITING);
    tokio::runtime::Handle::current().spawn(async move {
        let _ = relay(portions, follow, &sender).await;
    });
    Ok(Reply::stream(kind, matches!(format, Format::Events).then(|| Bytes::from_static(b":\n\n")), chunks))
}

/// Hands portions on; between them nobody waits for more than the timer, so that many may follow.
async fn relay(
    mut portions: Portions,
    follow: bool,
    sender: &mpsc::Sender<Result<Bytes, Problem>>,
) -> Option<()> {
    // What was written before the end, and nothing comes after it.
    let mut last = !follow;
    loop {
        let (back, bytes) = tokio::task::spawn_blocking(move || {
            let bytes = portions.next();
            (portions, bytes)
        })
        .await
        .ok()?;
        portions = back;
        match bytes {
            Ok(bytes) if bytes.is_empty() && last => return Some(()),
            Ok(bytes) if bytes.is_empty() => {
                tokio::time::sleep(INTERVAL).await;
                if sender.is_closed() {
                    return None;
                }
                let over = engine::container::state::now_ns() >= portions.range.end;
                last = over || portions.record.refresh().is_none() || !portions.record.state.status.is_live();
            }
            Ok(bytes) => tokio::time::timeout(STALL, sender.send(Ok(bytes.into()))).await.ok()?.ok()?,
            Err(problem) => {
                let _ = sender.send(Err(problem)).await;
                return None;
            }
        }
    }
}

impl Portions {
    /// How many lines there are; one that is not ended counts.
    fn lines(&self) -> Result<usize, Problem> {
        let mut reader = Reader::new(&self.record.log());
        let (mut lines, mut open) = (0, [false; 2]);
        while let Some(entry) = reader.next_record()? {
            if self.range.contains(&entry.time_ns) {
                lines += entry.bytes.iter().filter(|byte| **byte == b'\n').count();
                open[entry.stream as usize] = entry.bytes.last().is_some_and(|last| *last != b'\n');
            }
        }
        Ok(lines + open.into_iter().filter(|open| *open).count())
    }

    /// What there is, not much more than a portion.
    fn next(&mut self) -> Result<Vec<u8>, Problem> {
        let mut out = Vec::new();
        while out.len() < PORTION {
            let Some(entry) = self.reader.next_record()? else { break };
            if self.range.contains(&entry.time_ns) {
                self.add(&entry, &mut out);
            }
        }
        Ok(out)
    }

    fn add(&mut self, entry: &Record, out: &mut Vec<u8>) {
        let mut bytes = entry.bytes.as_slice();
        while self.skip > 0 {
            let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
            bytes = &bytes[end + 1..];
            self.skip -= 1;
        }
        if bytes.is_empty() {
            return;
        }
        let (kind, stream) = match entry.stream {
            Stream::Stdout => (kind::STDOUT, "stdout"),
            Stream::Stderr => (kind::STDERR, "stderr"),
        };
        match self.format {
            Format::Raw => out.extend_from_slice(bytes),
            Format::Frames => {
                bytes.chunks(crate::session::MAX_FRAME).for_each(|part| out.extend(frame(kind, part)))
            }
            Format::Events => {
                let text = String::from_utf8_lossy(bytes).into_owned();
                let line = LogLine { time: rfc3339(entry.time_ns), stream: stream.to_owned(), text };
                let line = serde_json::to_string(&line).unwrap_or_default();
                out.extend_from_slice(format!("event: log\ndata: {line}\n\n").as_bytes());
            }
        }
    }
}

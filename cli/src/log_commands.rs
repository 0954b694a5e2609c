//! Verbs that show what was said and what happened: `logs`, `console`, `events`.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use engine::container::record;
use engine::dirs::Dirs;
use engine::events::{Event, Events};
use engine::log::reader::Reader;
use engine::log::{Record, Stream};
use serde_json::json;

use crate::container_args::{ConsoleArgs, EventsArgs, LogsArgs};
use crate::output::{self, Format};
use crate::template_format;
use crate::times::{moment, rfc3339};

/// How often a followed file is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// `lighter logs`
pub fn logs(dirs: &Dirs, args: &LogsArgs) -> anyhow::Result<()> {
    let mut record = record::find(dirs, &args.container)?;
    let bound = |text: &Option<String>| text.as_deref().map(moment).transpose();
    let (since, until) = (bound(&args.since)?.unwrap_or(0), bound(&args.until)?.unwrap_or(u64::MAX));
    let tail = match args.tail.as_str() {
        "all" => None,
        number => Some(
            number
                .parse::<usize>()
                .with_context(|| format!("-n {number:?} is no number of lines, nor all"))?,
        ),
    };
    let mut reader = Reader::new(&record.log());
    let mut printer = Printer::new(args);
    if let Some(lines) = tail {
        let skipped = printer.lines(&record.log(), since, until)?.saturating_sub(lines);
        printer.skip(skipped);
    }
    loop {
        while let Some(entry) = reader.next_record().context("cannot read the log")? {
            printer.tell_lost(reader.take_lost())?;
            if (since..until).contains(&entry.time_ns) {
                printer.print(&entry)?;
            }
        }
        printer.flush()?;
        if !args.follow || engine::container::state::now_ns() >= until {
            return Ok(());
        }
        let alive = record.refresh().is_some() && record.state.status.is_live();
        if !alive {
            // What was written before the end, and nothing comes after it.
            while let Some(entry) = reader.next_record().context("cannot read the log")? {
                printer.print(&entry)?;
            }
            return printer.finish();
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Prints records to the stream that they came from.
struct Printer<'a> {
    args: &'a LogsArgs,
    stdout: std::io::BufWriter<std::io::Stdout>,
    stderr: std::io::BufWriter<std::io::Stderr>,
    /// Lines still to be left out, then lines begun, by stream.
    skip: usize,
    at_line_start: [bool; 2],
}

impl<'a> Printer<'a> {
    fn new(args: &'a LogsArgs) -> Self {
        Self {
            args,
            stdout: std::io::BufWriter::new(std::io::stdout()),
            stderr: std::io::BufWriter::new(std::io::stderr()),
            skip: 0,
            at_line_start: [true; 2],
        }
    }

    /// How many lines there are; one that is not ended counts.
    fn lines(&self, log: &std::path::Path, since: u64, until: u64) -> anyhow::Result<usize> {
        let mut reader = Reader::new(log);
        let mut lines = 0;
        let mut open = [false; 2];
        while let Some(entry) = reader.next_record().context("cannot read the log")? {
            if (since..until).contains(&entry.time_ns) {
                lines += entry.bytes.iter().filter(|byte| **byte == b'\n').count();
                if let (Some(open), Some(last)) = (open.get_mut(entry.stream as usize), entry.bytes.last()) {
                    *open = *last != b'\n';
                }
            }
        }
        Ok(lines + open.into_iter().filter(|open| *open).count())
    }

    fn skip(&mut self, lines: usize) {
        self.skip = lines;
    }

    fn print(&mut self, entry: &Record) -> anyhow::Result<()> {
        let broken = "cannot write the log";
        let mut bytes = &entry.bytes[..];
        while self.skip > 0 {
            let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(()) };
            bytes = bytes.get(end + 1..).unwrap_or_default();
            self.skip -= 1;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if self.args.format == Format::Json {
            let line = json!({"time": rfc3339(entry.time_ns), "stream": entry.stream,
                "text": String::from_utf8_lossy(bytes)});
            return writeln!(self.stdout, "{line}").context(broken);
        }
        let out: &mut dyn std::io::Write = match entry.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        if !self.args.timestamps {
            return out.write_all(bytes).context(broken);
        }
        let time = rfc3339(entry.time_ns);
        let Some(at_start) = self.at_line_start.get_mut(entry.stream as usize) else { return Ok(()) };
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if *at_start {
                write!(out, "{time} ").context(broken)?;
            }
            out.write_all(line).context(broken)?;
            *at_start = line.ends_with(b"\n");
        }
        Ok(())
    }

    /// Whoever reads more slowly than is written, and falls back by more than is kept, is told where.
    fn tell_lost(&mut self, files: u64) -> anyhow::Result<()> {
        if files == 0 {
            return Ok(());
        }
        self.flush()?;
        eprintln!(
            "lighter: {files} files of the log were rotated away here before they were read; \
             start the container with a larger --log-opt max-size or max-file to keep more"
        );
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.stdout.flush().and_then(|()| self.stderr.flush()).context("cannot write the log")
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.flush()
    }
}

/// `lighter console`: what the guest's kernel said.
pub fn console(dirs: &Dirs, args: &ConsoleArgs) -> anyhow::Result<()> {
    let record = record::find(dirs, &args.container)?;
    let path = record.console();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("container {} has no console yet: it was never started", record.name)
        }
        Err(error) => return Err(error).context("cannot read the console"),
    };
    std::io::stdout().write_all(&text).context("cannot write to stdout")
}

/// `lighter events`
pub fn events(dirs: &Dirs, args: &EventsArgs) -> anyhow::Result<()> {
    let now = engine::container::state::now_ns();
    let since = args.since.as_deref().map(moment).transpose()?.unwrap_or(now);
    let until = args.until.as_deref().map(moment).transpose()?;
    let filters = args.filter.iter().map(|text| filter(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut events = Events::open(dirs);
    loop {
        while let Some(event) = events.next_event().context("cannot read the events")? {
            let wanted = (since..until.unwrap_or(u64::MAX)).contains(&event.time_ns);
            let fits = filters.iter().all(|(key, _)| {
                filters
                    .iter()
                    .filter(|(other, _)| other == key)
                    .any(|(key, value)| matches(&event, key, value))
            });
            if wanted && fits {
                output::print(&shown(&event, &args.format)?)?;
            }
        }
        if until.is_some_and(|until| engine::container::state::now_ns() >= until) {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
    }
}

fn shown(event: &Event, format: &str) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(event)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("time".to_owned(), rfc3339(event.time_ns).into());
    }
    Ok(match format {
        "json" => value.to_string(),
        template => template_format::fill(template, &value)?,
    } + "\n")
}

fn filter(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text.split_once('=').with_context(|| format!("--filter {text:?}: write KEY=VALUE"))?;
    ensure!(
        ["type", "event", "container", "image"].contains(&key),
        "--filter {key:?} is unknown: lighter has type, event, container, image"
    );
    Ok((key.to_owned(), value.to_owned()))
}

fn matches(event: &Event, key: &str, value: &str) -> bool {
    match key {
        "type" => event.kind == value,
        "event" => event.action == value,
        "container" => event.name == value || event.id.starts_with(value),
        _ => event
            .attributes
            .get("image")
            .is_some_and(|image| image == value || crate::image_commands::familiar(image) == value),
    }
}

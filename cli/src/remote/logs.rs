//! Verbs that show what was said and what happened, over the API.

use std::io::Read as _;

use anyhow::Context as _;
use engine_api::client::{Client, encode};
use engine_api::types::LogLine;
use serde_json::Value;

use super::{container, session};
use crate::container_args::{ConsoleArgs, EventsArgs, LogsArgs};
use crate::output::{self, Format};
use crate::{template_format, times};

/// `lighter logs`
pub fn logs(client: &Client, args: &LogsArgs) -> anyhow::Result<()> {
    let json = args.format == Format::Json;
    let lines = json || args.timestamps;
    let mut query = format!("format={}&follow={}", if lines { "events" } else { "frames" }, args.follow);
    for (name, bound) in [("since", &args.since), ("until", &args.until)] {
        if let Some(text) = bound {
            query += &format!("&{name}={}", encode(&times::rfc3339(times::moment(text)?)));
        }
    }
    if args.tail != "all" {
        let lines = args.tail.parse::<u32>();
        let lines = lines.with_context(|| format!("-n {:?} is no number of lines, nor all", args.tail))?;
        query += &format!("&tail={lines}");
    }
    let path = format!("{}/logs?{query}", container(&args.container));
    let mut answer = client.send("GET", &path, None, &[])?;
    if json {
        answer.events(|_, data| Ok(output::print(&format!("{data}\n")).is_ok()))?;
        return Ok(());
    }
    if args.timestamps {
        let mut at_start = [true; 2];
        answer.events(|_, data| Ok(print_with_time(&serde_json::from_str(data)?, &mut at_start).is_ok()))?;
        return Ok(());
    }
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let count = answer.read(&mut chunk).context("the log broke off")?;
        if count == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&chunk[..count]);
        session::print_frames(&mut bytes)?;
    }
}

/// Prints a part of what was written to where it came from, each line with the time of its beginning.
fn print_with_time(part: &LogLine, at_start: &mut [bool; 2]) -> std::io::Result<()> {
    let errors = part.stream == "stderr";
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    let out: &mut dyn std::io::Write = if errors { &mut stderr } else { &mut stdout };
    let [of_stdout, of_stderr] = at_start;
    let at_start = if errors { of_stderr } else { of_stdout };
    for line in part.text.split_inclusive('\n') {
        if *at_start {
            write!(out, "{} ", part.time)?;
        }
        write!(out, "{line}")?;
        *at_start = line.ends_with('\n');
    }
    out.flush()
}

/// `lighter console`
pub fn console(client: &Client, args: &ConsoleArgs) -> anyhow::Result<()> {
    let mut answer = client.send("GET", &format!("{}/console", container(&args.container)), None, &[])?;
    std::io::copy(&mut answer, &mut std::io::stdout()).context("cannot print the console").map(drop)
}

/// `lighter events`
pub fn events(client: &Client, args: &EventsArgs) -> anyhow::Result<()> {
    let mut query = Vec::new();
    for (name, bound) in [("since", &args.since), ("until", &args.until)] {
        if let Some(text) = bound {
            query.push(format!("{name}={}", encode(&times::rfc3339(times::moment(text)?))));
        }
    }
    for filter in &args.filter {
        let (key, value) =
            filter.split_once('=').with_context(|| format!("--filter {filter:?}: write KEY=VALUE"))?;
        let key = if key == "event" { "action" } else { key };
        query.push(format!("{}={}", encode(key), encode(value)));
    }
    let answer = client.send("GET", &format!("/v1/events?{}", query.join("&")), None, &[])?;
    let mut failed = None;
    answer.events(|_, data| {
        let shown = match args.format.as_str() {
            "json" => Ok(data.to_owned()),
            template => serde_json::from_str(data)
                .map_err(Into::into)
                .and_then(|value: Value| template_format::fill(template, &value)),
        };
        failed = shown.and_then(|line| output::print(&(line + "\n"))).err();
        Ok(failed.is_none())
    })?;
    failed.map_or(Ok(()), Err)
}

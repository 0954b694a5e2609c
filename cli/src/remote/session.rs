//! `exec` over the API: our streams, our signals and our terminal's size go over a connection of frames.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, ensure};
use engine::plan::environment::environment;
use engine::session::signals::Signals;
use engine::session::terminal::{self, RawMode};
use engine_api::client::{Client, encode};
use engine_api::session::{End, frame, kind, parse};
use engine_api::types::{Exec, Executed};
use rustix::event::{PollFd, PollFlags, poll};

use crate::container_args::ExecArgs;
use crate::output;

const SIGWINCH: i32 = 28;

/// `lighter exec`; gives the exit code.
pub fn exec(client: &Client, args: ExecArgs) -> anyhow::Result<u8> {
    let (interactive, tty) = (args.process.interactive, args.process.tty);
    ensure!(
        args.detach || !(interactive && tty) || std::io::stdin().is_terminal(),
        "-t wants a terminal as stdin, but it is none: leave -t out"
    );
    let host = |name: &str| std::env::var(name).ok();
    let variables = environment(&args.process.environment(), &[], "", false, host)?;
    let pairs = variables.iter().filter_map(|pair| pair.split_once('='));
    let named = pairs.filter(|(name, _)| !matches!(*name, "PATH" | "HOSTNAME"));
    let wanted = Exec {
        command: args.command,
        environment: named.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        working_dir: args.process.workdir.clone(),
        user: args.process.user.clone(),
        privileged: args.privileged,
        tty: tty && !args.detach,
        stdin: interactive && !args.detach,
        input: None,
        detach: args.detach,
    };
    let path = format!("/v1/containers/{}/exec", encode(&args.container));
    if args.detach {
        let executed: Executed = client.post(&path, &wanted)?;
        executed.error.iter().for_each(|text| output::problem(text));
        return Ok(executed.exit_code.unwrap_or_default());
    }
    let signals = Signals::block().context("cannot watch signals")?;
    let mut connection = client.upgrade(&path, Some(&wanted))?;
    let stdin = std::io::stdin();
    let raw = if tty && interactive { RawMode::enter(stdin.as_fd())? } else { None };
    let to = connection.get_ref().try_clone().context("cannot share the connection")?;
    if interactive {
        let to = to.try_clone().context("cannot share the connection")?;
        std::thread::spawn(move || send_stdin(to));
    }
    std::thread::spawn(move || send_signals(to, &signals, tty));
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let count = connection.read(&mut chunk).context("the connection to the server broke")?;
        ensure!(count > 0, "the server went away; the process may go on");
        bytes.extend_from_slice(&chunk[..count]);
        if let Some(end) = print_frames(&mut bytes)? {
            drop(raw);
            end.error.iter().for_each(|text| output::problem(text));
            return Ok(end.exit_code);
        }
    }
}

/// Prints the whole frames at the beginning of `bytes` and takes them away; gives the end where it came.
pub fn print_frames(bytes: &mut Vec<u8>) -> anyhow::Result<Option<End>> {
    let mut end = None;
    let mut done = 0;
    while let Some((kind, body, length)) = parse(bytes.get(done..).unwrap_or_default())? {
        match kind {
            kind::STDOUT => std::io::stdout().write_all(body).context("cannot write to stdout")?,
            kind::STDERR => drop(std::io::stderr().write_all(body)),
            kind::NOTICE => output::notice(&String::from_utf8_lossy(body)),
            kind::END => end = Some(serde_json::from_slice(body)?),
            _ => {}
        }
        done += length;
    }
    bytes.drain(..done);
    std::io::stdout().flush().context("cannot write to stdout")?;
    Ok(end)
}

fn send_stdin(mut to: UnixStream) {
    let mut chunk = [0; 16 << 10];
    loop {
        let count = std::io::stdin().read(&mut chunk).unwrap_or_default();
        let part = chunk.get(..count).unwrap_or_default();
        if to.write_all(&frame(kind::STDIN, part)).is_err() || count == 0 {
            return;
        }
    }
}

fn send_signals(mut to: UnixStream, signals: &Signals, tty: bool) {
    let size = || {
        let size = terminal::size(std::io::stdout()).filter(|_| tty)?;
        let [rows, columns] = [size.rows, size.columns].map(u16::to_be_bytes);
        Some(frame(kind::SIZE, &[rows, columns].concat()))
    };
    let mut next = size();
    loop {
        if next.take().is_some_and(|frame| to.write_all(&frame).is_err()) {
            return;
        }
        let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], None);
        next = match signals.next() {
            Some(SIGWINCH) => size(),
            Some(signal) => u8::try_from(signal).ok().map(|signal| frame(kind::SIGNAL, &[signal])),
            None => None,
        };
    }
}

//! Verbs that give the caller's streams to a process: `run`, `start -a`, `attach`, `exec`.

use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use engine::container::record::{self, Record};
use engine::dirs::Dirs;
use engine::exec::{self, ExecOptions};
use engine::keeper::client;
use engine::keeper::protocol::Request;
use engine::run::Watcher;
use engine::session::peer::Peer;
use engine::session::signals::Signals;
use engine::session::{Caller, Leave, Manner, Streams, terminal};
use engine::trace::Trace;
use engine::verbs;

use crate::container_args::{AttachArgs, ExecArgs, StartArgs};
use crate::lifecycle_commands::{each, start_detached};
use crate::output::{self, Format};
use crate::progress::Bars;
use crate::run_options::RunArgs;

/// `lighter run`: nothing on stdout but what the container writes. Gives the exit code.
pub fn run(dirs: &Dirs, args: RunArgs, mut trace: Trace) -> anyhow::Result<u8> {
    let (trace_format, trace_file) = (args.trace, args.trace_file.clone());
    let (interactive, tty, detach) = (args.process.interactive, args.process.tty, args.detach);
    let detach_keys = args.process.detach_keys.parse()?;
    let (signals, cidfile) = (args.sig_proxy, args.cidfile.clone());
    let options = args.run_options()?;
    ensure!(
        detach || !(interactive && tty) || std::io::stdin().is_terminal(),
        "-t wants a terminal as stdin, but it is none: leave -t out"
    );
    let bars = Bars::new();
    let watcher =
        Watcher { progress: &bars, ready: &|| bars.clear(), notice: &|text: &str| output::notice(text) };
    let made = engine::run::make(dirs, &options, &watcher, &mut trace);
    bars.clear();
    let (made, blocked) = match made? {
        Ok(made) => made,
        Err(outcome) => return Ok(outcome.exit_code()),
    };
    let id = made.id().clone();
    if let Some(path) = &cidfile {
        write_cidfile(path, id.as_str())?;
    }
    if detach {
        let mut link = made.start(dirs, &[])?;
        let record = record::read(dirs, id.as_str()).or_else(|_| record::placeholder(dirs, &id));
        verbs::wait_until_started(
            &record.context("cannot read what was just made")?,
            &mut link,
            &output::notice,
        )?;
        output::print(&format!("{id}\n"))?;
        return Ok(0);
    }
    let attach = Request::Attach { stdin: interactive, size: tty.then(own_size).flatten() };
    let link = made.start(dirs, &[attach])?;
    let manner = Manner { terminal: tty, signals, owner: true, detach_keys };
    let code = stay(Peer::Keeper(link), manner, interactive, &blocked, &mut trace)?;
    if let Some(format) = trace_format {
        show_trace(&trace, format, trace_file.as_deref())?;
    }
    Ok(code)
}

/// `lighter start`
pub fn start(dirs: &Dirs, args: &StartArgs) -> anyhow::Result<u8> {
    if !args.attach && !args.interactive {
        return each(&args.containers, |name| start_detached(dirs, name));
    }
    let [name] = args.containers.as_slice() else { bail!("-a and -i take one container at a time") };
    let record = record::find(dirs, name)?;
    if record.state.status.is_live() {
        return attach_to(dirs, &record, args.interactive, true, &args.detach_keys);
    }
    let blocked = Signals::block().context("cannot watch signals")?;
    let tty = record.spec.plan.process().terminal.is_some();
    let attach = Request::Attach { stdin: args.interactive, size: tty.then(own_size).flatten() };
    let link = verbs::open_when_free(|| engine::run::start(dirs, &record, std::slice::from_ref(&attach)))?;
    let manner =
        Manner { terminal: tty, signals: true, owner: false, detach_keys: args.detach_keys.parse()? };
    stay(Peer::Keeper(link), manner, args.interactive, &blocked, &mut Trace::start())
}

/// `lighter attach`
pub fn attach(dirs: &Dirs, args: &AttachArgs) -> anyhow::Result<u8> {
    let record = verbs::running(dirs, &args.container)?;
    let interactive = !args.no_stdin && record.spec.plan.process().stdin;
    attach_to(dirs, &record, interactive, args.sig_proxy, &args.detach_keys)
}

fn attach_to(
    _dirs: &Dirs,
    record: &Record,
    interactive: bool,
    signals: bool,
    detach_keys: &str,
) -> anyhow::Result<u8> {
    let blocked = Signals::block().context("cannot watch signals")?;
    let tty = record.spec.plan.process().terminal.is_some();
    let mut link = client::connect(record)?;
    let attach = Request::Attach { stdin: interactive, size: tty.then(own_size).flatten() };
    link.send(&attach).context("cannot speak with the container's keeper")?;
    let manner = Manner { terminal: tty, signals, owner: false, detach_keys: detach_keys.parse()? };
    stay(Peer::Keeper(link), manner, interactive, &blocked, &mut Trace::start())
}

/// `lighter exec`
pub fn exec(dirs: &Dirs, args: ExecArgs) -> anyhow::Result<u8> {
    let record = record::find(dirs, &args.container)?;
    ensure!(
        args.detach || !(args.process.interactive && args.process.tty) || std::io::stdin().is_terminal(),
        "-t wants a terminal as stdin, but it is none: leave -t out"
    );
    let default_size = engine::TerminalSize { rows: 24, columns: 80 };
    let options = ExecOptions {
        command: args.command,
        environment: args.process.environment(),
        workdir: args.process.workdir.clone(),
        user: args.process.user.clone(),
        interactive: args.process.interactive && !args.detach,
        terminal: args.process.tty.then(|| own_size().unwrap_or(default_size)),
        privileged: args.privileged,
    };
    let process = exec::process(&record, &options)?;
    let blocked = Signals::block().context("cannot watch signals")?;
    let link = exec::start(&record, process)?;
    let manner = Manner {
        terminal: args.process.tty,
        signals: true,
        owner: false,
        detach_keys: args.process.detach_keys.parse()?,
    };
    if args.detach {
        return detached(link);
    }
    stay(Peer::Agent(link), manner, args.process.interactive, &blocked, &mut Trace::start())
}

/// Waits until a process that nobody listens to runs.
fn detached(link: engine::session::link::Link) -> anyhow::Result<u8> {
    use engine::session::peer::Said;
    let mut peer = Peer::Agent(link);
    loop {
        let mut flags = rustix::event::PollFlags::IN;
        flags.set(rustix::event::PollFlags::OUT, peer.is_waiting());
        rustix::event::poll(&mut [rustix::event::PollFd::new(&peer, flags)], None).context("cannot wait")?;
        for said in peer.receive()?.context("the container ended")? {
            match said {
                Said::Started => return Ok(0),
                Said::Ended(outcome) => {
                    outcome.problem().into_iter().for_each(output::problem);
                    return Ok(outcome.exit_code());
                }
                _ => {}
            }
        }
    }
}

/// Gives the process our streams until it ends or we detach.
pub fn stay(
    peer: Peer,
    manner: Manner,
    interactive: bool,
    signals: &Signals,
    trace: &mut Trace,
) -> anyhow::Result<u8> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams =
        Streams { stdin: interactive.then(|| stdin.as_fd()), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
    let notice = |text: &str| output::notice(text);
    match Caller::new(peer, manner, streams, signals, trace, &notice).run()? {
        Leave::Detached => Ok(0),
        Leave::Ended(outcome) => {
            outcome.problem().into_iter().for_each(output::problem);
            Ok(outcome.exit_code())
        }
    }
}

/// The size of our terminal, if we have one.
pub fn own_size() -> Option<engine::TerminalSize> {
    terminal::size(std::io::stdout())
}

pub fn write_cidfile(path: &Path, id: &str) -> anyhow::Result<()> {
    let mut file = std::fs::File::create_new(path)
        .with_context(|| format!("cannot make the file {} of --cidfile", path.display()))?;
    file.write_all(id.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn show_trace(trace: &Trace, format: Format, file: Option<&Path>) -> anyhow::Result<()> {
    let report = trace.report();
    let text = match format {
        Format::Json => serde_json::to_string(&report)? + "\n",
        Format::Table => {
            let mut table = output::table(&["PHASE", "MS"]);
            for phase in &report.phases {
                table.add_row([phase.name.to_owned(), format!("{:.2}", phase.ms)]);
            }
            table.add_row(["total".to_owned(), format!("{:.2}", report.total_ms)]);
            output::align_right(&mut table, 1);
            format!("{table}\n")
        }
    };
    match file {
        Some(path) => std::fs::write(path, text)
            .with_context(|| format!("cannot write the trace to {}", path.display())),
        None => std::io::stderr().write_all(text.as_bytes()).context("cannot write the trace to stderr"),
    }
}

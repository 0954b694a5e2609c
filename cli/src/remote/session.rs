//! Verbs over the API that stay with a process: `run`, `start -a`, `attach`, `exec`. The connection becomes a stream of
//! frames, and the caller at our end of it is the same as without a server.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, bail, ensure};
use engine::plan::environment::environment;
use engine::session::Manner;
use engine::session::peer::Peer;
use engine::session::signals::Signals;
use engine::trace::Trace;
use engine_api::client::frames::{Frames, Stop};
use engine_api::client::{Client, encode};
use engine_api::session::{End, kind, parse};
use engine_api::types::{Container, Exec, Executed};

use super::{container, create};
use crate::container_args::{AttachArgs, ExecArgs, StartArgs};
use crate::lifecycle_commands::each;
use crate::output;
use crate::run_options::RunArgs;
use crate::session_commands::{own_size, stay, write_cidfile};

/// `lighter run`; gives the exit code.
pub fn run(client: &Client, mut args: RunArgs) -> anyhow::Result<u8> {
    let (interactive, tty, remove, signals) =
        (args.process.interactive, args.process.tty, args.rm, args.sig_proxy);
    let (detach_keys, cidfile) = (args.process.detach_keys.parse()?, args.cidfile.take());
    if args.detach {
        let made = create::make(client, args, true)?;
        cidfile.iter().try_for_each(|path| write_cidfile(path, &made.id))?;
        output::print(&format!("{}\n", made.id))?;
        return Ok(0);
    }
    ensure!(
        !(interactive && tty) || std::io::stdin().is_terminal(),
        "-t wants a terminal as stdin, but it is none: leave -t out"
    );
    let made = create::make(client, args, false)?;
    cidfile.iter().try_for_each(|path| write_cidfile(path, &made.id))?;
    let manner = Manner { terminal: tty, signals, owner: true, detach_keys };
    let started = attached(client, &made.id, "start", manner, interactive);
    if started.is_err() && remove {
        // It has no keeper that would remove it; one that runs after all stays.
        let _ = client.tell("DELETE", &container(&made.id), None::<&()>);
    }
    started
}

/// `lighter start`
pub fn start(client: &Client, args: &StartArgs) -> anyhow::Result<u8> {
    if !args.attach && !args.interactive {
        return each(&args.containers, |name| super::act(client, name, "start"));
    }
    let [name] = args.containers.as_slice() else { bail!("-a and -i take one container at a time") };
    let found: Container = client.get(&container(name))?;
    let detach_keys = args.detach_keys.parse()?;
    let manner = Manner { terminal: found.tty, signals: true, owner: false, detach_keys };
    attached(client, &found.summary.id, "start", manner, args.interactive)
}

/// `lighter attach`
pub fn attach(client: &Client, args: &AttachArgs) -> anyhow::Result<u8> {
    let found: Container = client.get(&container(&args.container))?;
    let detach_keys = args.detach_keys.parse()?;
    let manner = Manner { terminal: found.tty, signals: args.sig_proxy, owner: false, detach_keys };
    attached(client, &found.summary.id, "attach", manner, !args.no_stdin && found.stdin)
}

/// Stays with the process of the container `id`, which `verb` starts or finds.
fn attached(client: &Client, id: &str, verb: &str, manner: Manner, stdin: bool) -> anyhow::Result<u8> {
    let signals = Signals::block().context("cannot watch signals")?;
    let size = own_size().filter(|_| manner.terminal);
    let size = size.map(|size| format!("&rows={}&columns={}", size.rows.max(1), size.columns.max(1)));
    let path = format!("{}/{verb}?stdin={stdin}{}", container(id), size.unwrap_or_default());
    let connection = client.upgrade(&path, None::<&()>)?;
    let (asker, path) = (client.clone(), format!("{}/stop", container(id)));
    let stop: Stop = Box::new(move || {
        let (asker, path) = (asker.clone(), path.clone());
        // Answers when it has ended, and the end comes over the stream.
        std::thread::spawn(move || drop(asker.tell("POST", &path, None::<&()>)));
    });
    let peer = Peer::Proxy(Box::new(Frames::new(connection, Some(stop))?));
    stay(peer, manner, stdin, &signals, &mut Trace::start())
}

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
    let detach_keys = args.process.detach_keys.parse()?;
    let signals = Signals::block().context("cannot watch signals")?;
    let connection = client.upgrade(&path, Some(&wanted))?;
    let mut frames = Frames::new(connection, None)?;
    if let Some(size) = own_size().filter(|_| tty) {
        use engine::session::peer::Proxy as _;
        frames.say(engine::HostMessage::Resize(size))?;
    }
    let manner = Manner { terminal: tty, signals: true, owner: false, detach_keys };
    stay(Peer::Proxy(Box::new(frames)), manner, interactive, &signals, &mut Trace::start())
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

//! Every verb and every option of the command line, as its own definition lists them, against a server that notes what
//! it is asked for. A new verb or option that is left out on the way, and gives no reason, fails here.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use clap::{Arg, ArgAction, FromArgMatches as _};

use super::*;
use crate::output;

/// Verbs that are done here, whatever `--host` says, and why.
const HERE: &[(&str, &str)] = &[
    ("serve", "it is the server"),
    ("generate completion", "it is about this program"),
    ("generate man", "it is about this program"),
];

/// Options, of every verb or of one, that say how something is shown, asked or kept here, so no server hears of them.
const SHOWN_HERE: &[&str] = &[
    "quiet",
    "no_trunc",
    "format",
    "output",
    "detach_keys",
    "sig_proxy",
    "cidfile",
    "no_stdin",
    "latest",
    "no_stream",
    "attach",
    "interactive of start",
    // Whose owners the files get here.
    "archive of cp",
    // Whether a 404 is a failure.
    "force of network rm",
    "force of volume rm",
    // Of no effect without a server, either.
    "detach of create",
    "platform of push",
];

/// A server that has nothing and notes what it is asked for.
struct Recorder {
    _base: tempfile::TempDir,
    client: Client,
    asked: Receiver<String>,
}

impl Recorder {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let (sender, asked) = channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = sender.send(request(&mut stream));
                let gone = br#"{"type":"/v1/problems/not-found","title":"t","status":404,"detail":"gone"}"#;
                let head = format!("HTTP/1.1 404 x\r\ncontent-length: {}\r\n\r\n", gone.len());
                let _ = stream.write_all(&[head.as_bytes(), gone].concat());
            }
        });
        let client = Client::new(&format!("unix://{}", path.display()), None).unwrap();
        Self { _base: base, client, asked }
    }

    /// What the server is asked for, and what comes of it.
    fn asked(&self, args: &[String]) -> (Vec<String>, anyhow::Result<u8>) {
        let matches = Cli::command().try_get_matches_from(["lighter".to_owned()].iter().chain(args));
        let matches = match matches {
            Ok(matches) => matches,
            Err(error) => return (Vec::new(), Err(anyhow::anyhow!("{error}"))),
        };
        let command = Cli::from_arg_matches(&matches).unwrap().command;
        let done = refused::check(&matches).and_then(|()| dispatch(&self.client, command));
        (self.asked.try_iter().collect(), done)
    }
}

/// The head and body of a request.
fn request(stream: &mut UnixStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut text, mut chunk) = (String::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut chunk).unwrap_or(0);
        text += &String::from_utf8_lossy(&chunk[..count]);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            if count == 0 { return text } else { continue }
        };
        let length =
            head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let whole = match length {
            Some(length) => body.len() >= length,
            None => !head.contains("chunked") || body.ends_with("0\r\n\r\n"),
        };
        if whole || count == 0 {
            return text;
        }
    }
}

/// Each verb that does something, with the words before it.
fn verbs(command: &clap::Command, path: &str) -> Vec<(String, clap::Command)> {
    let below = command.get_subcommands().filter(|command| !command.is_hide_set());
    let found: Vec<_> =
        below.flat_map(|command| verbs(command, format!("{path} {}", command.get_name()).trim())).collect();
    if found.is_empty() { vec![(path.to_owned(), command.clone())] } else { found }
}

/// What stands behind `verb` at least, without anything that asks.
fn words(verb: &str, scratch: &std::path::Path) -> Vec<String> {
    let file = scratch.join("file").display().to_string();
    let rest: Vec<&str> = match verb {
        "cp" => vec!["x:/a", &file],
        "load" => vec!["--input", "/dev/null"],
        "import" => vec!["/dev/null"],
        "export" | "save" => vec!["-o", &file, "x"],
        "snapshot export" => vec!["x", &file],
        "snapshot import" => vec!["/dev/null", "x"],
        "snapshot push" => vec!["x", "r.example/x:1"],
        "snapshot pull" => vec!["r.example/x:1", "x"],
        "container prune" | "network prune" | "volume prune" | "system prune" => vec!["--force"],
        "update" => vec!["--restart", "no", "x"],
        "exec" => vec!["x", "true"],
        "rename" | "tag" | "network connect" | "network disconnect" => vec!["x", "y"],
        "ps" | "images" | "events" | "stats" | "doctor" | "version" | "container ls" | "network ls"
        | "volume ls" | "snapshot ls" | "system df" => vec![],
        _ => vec!["x"],
    };
    verb.split(' ').chain(rest).map(str::to_owned).collect()
}

/// A value for an option, and what else it needs.
fn value(verb: &str, option: &Arg, scratch: &std::path::Path) -> Vec<String> {
    let long = format!("--{}", option.get_long().unwrap_or_else(|| panic!("{verb}: {}", option.get_id())));
    let takes_none = matches!(option.get_action(), ArgAction::SetTrue);
    let choices = option.get_possible_values();
    let environment = scratch.join("environment").display().to_string();
    let key = scratch.join("key.pem").display().to_string();
    let sample = match option.get_id().as_str() {
        _ if takes_none => return vec![long],
        "tls_verify" | "memory_reclaim" => return vec![format!("{long}=false")],
        "trace" => return vec![long],
        "trace_file" => return vec!["--trace".into(), long, "/tmp/x".into()],
        "cpu_period" => return vec![long, "50000".into(), "--cpu-quota".into(), "25000".into()],
        "filter" if verb == "events" => "event=start",
        "filter" if verb == "volume ls" => "dangling=true",
        "filter" => "name=y",
        "compression" => "zstd",
        _ if !choices.is_empty() => return vec![long, choices.last().unwrap().get_name().to_owned()],
        "cpus" => "0.5",
        "cpuset_cpus" => "0",
        "cpu_shares" | "cpu_quota" => "20000",
        "memory" | "shm_size" | "log_max_size" => "128m",
        "device_read_bps" | "device_write_bps" | "network_rate" => "10mb",
        "device_read_iops" | "device_write_iops" | "pids_limit" | "retries" | "time" | "last" | "number"
        | "runs" | "health_retries" | "stop_timeout" | "tail" => "7",
        "env" => "A=1",
        "env_file" => &environment,
        "verify_key" => &key,
        "volume" => "/tmp:/y",
        "mount" => "type=volume,source=v,target=/y,volume-nocopy",
        "tmpfs" => "/y:size=1m,exec,uid=5",
        "secret" => "name=/etc/hostname",
        "network" => "none",
        "publish" => "8080:80",
        "dns" | "ip" | "gateway" => "10.9.0.7",
        "ip6" => "fd00::7",
        "add_host" => "name:10.9.0.7",
        "egress_allow" => "10.0.0.0/8:443",
        "mac_address" => "02:00:00:00:00:07",
        "ulimit" => "nofile=10:20",
        "security_opt" => "no-new-privileges",
        "platform" => "linux/arm64",
        "subnet" => "10.77.0.0/24",
        "opt" => "type=disk",
        "change" => "CMD [\"y\"]",
        "since"
        | "until"
        | "limit"
        | "ttl"
        | "health_interval"
        | "health_timeout"
        | "health_start_period" => "9m",
        "log_opt" => "max-file=3",
        "restart" => "always",
        "signal" | "stop_signal" => "USR1",
        "driver" => return Vec::new(),
        _ => "y",
    };
    vec![long, sample.to_owned()]
}

#[test]
fn every_verb_goes_over_the_api_or_says_why_not() {
    let (recorder, scratch) = (Recorder::new(), tempfile::tempdir().unwrap());
    for (verb, _) in verbs(&Cli::command(), "") {
        if HERE.iter().any(|(here, _)| *here == verb) {
            continue;
        }
        let (asked, done) = recorder.asked(&words(&verb, scratch.path()));
        let told = done.map_err(|error| output::error_text(&error));
        match verb.as_str() {
            "generate systemd" => assert!(told.unwrap_err().contains("names programs")),
            _ => assert!(asked.first().is_some_and(|first| first.contains(" /v1/")), "{verb}: {told:?}"),
        }
    }
}

#[test]
fn every_option_reaches_the_server_or_says_why_not() {
    let (recorder, scratch) = (Recorder::new(), tempfile::tempdir().unwrap());
    std::fs::write(scratch.path().join("environment"), "FROM_FILE=1\n").unwrap();
    std::fs::write(scratch.path().join("key.pem"), KEY).unwrap();
    let mut left_out = Vec::new();
    for (verb, command) in verbs(&Cli::command(), "") {
        if HERE.iter().any(|(here, _)| *here == verb) || verb == "generate systemd" {
            continue;
        }
        let words = words(&verb, scratch.path());
        let (plain, _) = recorder.asked(&words);
        for option in command.get_arguments().filter(|option| !option.is_positional()) {
            let id = option.get_id().as_str();
            let known = SHOWN_HERE.iter().any(|here| *here == id || **here == format!("{id} of {verb}"));
            let given = value(&verb, option, scratch.path());
            if known || given.is_empty() || words.contains(&given[0]) || ["help", "version"].contains(&id) {
                continue;
            }
            // Behind the verb, before what may be a command.
            let mut all = words.clone();
            let at = verb.split(' ').count();
            all.splice(at..at, given);
            let (asked, done) = recorder.asked(&all);
            let told = done.map_err(|error| output::error_text(&error));
            match refused::REFUSED.iter().find(|(other, option, _)| *other == verb && *option == id) {
                Some((_, _, why)) => assert!(told.unwrap_err().contains(why), "{all:?}"),
                None if asked.is_empty() || asked == plain => left_out.push(format!("{all:?}: {told:?}")),
                None => {}
            }
        }
    }
    assert!(left_out.is_empty(), "left out: {left_out:#?}");
}

/// A public key, of no use but to be one.
const KEY: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE4M0dTcRX9zUUjUX1kIi4+wc71IuT\n\
mIWFhrfVuHiJMv2xH9i/bkwyGG3sEKRFsIXpPUE+n/+6gPP5rvba8ZqLKQ==\n\
-----END PUBLIC KEY-----\n";

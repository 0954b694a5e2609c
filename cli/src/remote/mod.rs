//! Verbs over the API of a server, `--host unix://PATH`. What has no meaning there, or is not offered, is refused.

mod create;
#[path = "session.rs"]
mod exec;

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, bail, ensure};
use engine_api::client::{Client, ClientError, encode};
use engine_api::types::{Container, ContainerList, Image, ImageList, Progress, Waited};
use serde_json::{Value, json};

use crate::args::{Command, ContainerCommand, ImageCommand, PullArgs};
use crate::container_args::{EventsArgs, InspectContainerArgs, LogsArgs, PsArgs, RmArgs};
use crate::lifecycle_commands::each;
use crate::output::{self, Format};
use crate::{run_options, stats_command, template_format, times};

/// Verbs that have a way over the API here.
const OFFERED: &str = "create, events, exec, image inspect, images, inspect, kill, logs, pause, ps, pull, rename, \
                       restart, rm, rmi, run -d, start, stats, stop, unpause, version, wait";

/// Does `command` through the server at `host`.
pub fn execute(host: &str, command: Command) -> anyhow::Result<u8> {
    let client = Client::new(host, std::env::var("LIGHTER_TOKEN").ok().filter(|token| !token.is_empty()))?;
    let client = &client;
    match command {
        Command::Ps(args) | Command::Container(ContainerCommand::Ls(args)) => ps(client, &args)?,
        Command::Create(args) => create::create(client, *args, false)?,
        Command::Run(args) if args.detach => create::create(client, *args, true)?,
        Command::Run(_) => bail!(
            "--host: `run` stays here with the container only where it runs: use `run -d`, then `logs -f` or `exec`"
        ),
        Command::Start(args) => {
            ensure!(!args.attach && !args.interactive, "--host: start takes no -a and no -i");
            return each(&args.containers, |name| post(client, name, "start", &json!({})));
        }
        Command::Stop(args) => {
            let body = json!({"signal": args.signal, "timeout": args.time});
            return each(&args.containers, |name| post(client, name, "stop", &body));
        }
        Command::Restart(args) => {
            let body = json!({"signal": args.signal, "timeout": args.time});
            return each(&args.containers, |name| post(client, name, "restart", &body));
        }
        Command::Kill(args) => {
            return each(&args.containers, |name| {
                post(client, name, "kill", &json!({"signal": args.signal}))
            });
        }
        Command::Pause(args) => return each(&args.containers, |name| act(client, name, "pause")),
        Command::Unpause(args) => return each(&args.containers, |name| act(client, name, "unpause")),
        Command::Rename(args) => post(client, &args.container, "rename", &json!({"name": args.name}))?,
        Command::Rm(args) => return remove(client, &args),
        Command::Wait(args) => {
            for name in &args.containers {
                let path = format!("{}/wait", container(name));
                let waited: Waited = client.send("POST", &path, None, &[])?.json()?;
                output::print(&format!("{}\n", waited.exit_code))?;
            }
        }
        Command::Inspect(args) => inspect(client, &args)?,
        Command::Logs(args) => logs(client, &args)?,
        Command::Events(args) => events(client, &args)?,
        Command::Exec(args) => return exec::exec(client, args),
        Command::Stats(args) => stats_command::remote(client, &args)?,
        Command::Images(args) => images(client, args.format, args.quiet)?,
        Command::Image(ImageCommand::Inspect(args)) => {
            let find = |name: &String| client.get::<Image>(&format!("/v1/images/{}", encode(name)));
            let found = args.images.iter().map(find).collect::<Result<Vec<_>, _>>()?;
            output::print_json(&json!({"schema": "lighter.image.v1", "images": found}))?;
        }
        Command::Rmi(args) => {
            for name in &args.images {
                let path = format!("/v1/images/{}?force={}", encode(name), args.force);
                let removed: Value = client.send("DELETE", &path, None, &[])?.json()?;
                output::print(&format!("untagged {}\n", removed["untagged"].as_str().unwrap_or_default()))?;
            }
        }
        Command::Pull(args) => pull(client, &args)?,
        Command::Version(_) => output::print_json(&client.get::<Value>("/v1/version")?)?,
        _ => bail!(
            "this verb does not go over --host; these do: {OFFERED}. Everything else is in the API itself: see GET /v1/openapi.json"
        ),
    }
    Ok(0)
}

fn container(name: &str) -> String {
    format!("/v1/containers/{}", encode(name))
}

fn act(client: &Client, name: &str, verb: &str) -> anyhow::Result<()> {
    Ok(client.tell("POST", &format!("{}/{verb}", container(name)), None::<&()>)?)
}

fn post(client: &Client, name: &str, verb: &str, body: &Value) -> anyhow::Result<()> {
    match body.as_object().is_some_and(serde_json::Map::is_empty) {
        true => act(client, name, verb),
        false => Ok(client.tell("POST", &format!("{}/{verb}", container(name)), Some(body))?),
    }
}

fn remove(client: &Client, args: &RmArgs) -> anyhow::Result<u8> {
    each(&args.containers, |name| {
        let path = format!("{}?force={}&volumes={}", container(name), args.force, args.volumes);
        Ok(client.tell("DELETE", &path, None::<&()>)?)
    })
}

fn ps(client: &Client, args: &PsArgs) -> anyhow::Result<()> {
    let newest = args.last.or(args.latest.then_some(1));
    let mut query = String::from("limit=1000");
    let mut all = args.all || newest.is_some();
    for filter in &args.filter {
        let (key, value) =
            filter.split_once('=').with_context(|| format!("--filter {filter:?}: write KEY=VALUE"))?;
        let key = match key {
            "name" | "label" => key,
            "ancestor" => "image",
            "status" => {
                all = true;
                key
            }
            other => {
                bail!("--filter {other:?} does not go over --host: there are name, label, status, ancestor")
            }
        };
        query += &format!("&{key}={}", encode(value));
    }
    if !all {
        query += "&live=true";
    }
    let mut items = Vec::new();
    let mut cursor = String::new();
    loop {
        let page: ContainerList = client.get(&format!("/v1/containers?{query}{cursor}"))?;
        items.extend(page.items);
        match page.next {
            Some(next) if newest.is_none_or(|newest| items.len() < newest) => {
                cursor = format!("&cursor={}", encode(&next));
            }
            _ => break,
        }
    }
    items.truncate(newest.unwrap_or(usize::MAX));
    if args.quiet {
        return output::print(&items.iter().map(|item| format!("{}\n", item.id)).collect::<String>());
    }
    match args.format.as_str() {
        "json" => output::print_json(&json!({"schema": "lighter.ps.v1", "containers": items})),
        "table" => {
            let mut table = output::table(&["CONTAINER ID", "IMAGE", "COMMAND", "STATUS", "PORTS", "NAMES"]);
            for item in &items {
                let status = serde_json::to_value(item.status)?;
                let command = engine::text::printable(item.command.join(" ").as_bytes());
                table.add_row([
                    item.id.clone(),
                    item.image.clone(),
                    format!("{command:?}"),
                    status.as_str().unwrap_or_default().to_owned(),
                    item.ports.join(", "),
                    item.name.clone(),
                ]);
            }
            output::print_table(&table)
        }
        template => {
            for item in &items {
                output::print(&(template_format::fill(template, &serde_json::to_value(item)?)? + "\n"))?;
            }
            Ok(())
        }
    }
}

fn inspect(client: &Client, args: &InspectContainerArgs) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for name in &args.names {
        found.push(match client.get::<Container>(&container(name)) {
            Ok(found) => serde_json::to_value(found)?,
            Err(ClientError::Problem(missing)) if missing.status == 404 => {
                match client.get::<Image>(&format!("/v1/images/{}", encode(name))) {
                    Ok(image) => serde_json::to_value(image)?,
                    Err(_) => bail!("{}, and no image either", missing.detail),
                }
            }
            Err(error) => return Err(error.into()),
        });
    }
    match &args.format {
        None => output::print_json(&found),
        Some(template) => {
            for value in &found {
                output::print(&(template_format::fill(template, value)? + "\n"))?;
            }
            Ok(())
        }
    }
}

fn logs(client: &Client, args: &LogsArgs) -> anyhow::Result<()> {
    ensure!(!args.timestamps, "--host: logs has times with --format json only");
    let json = args.format == Format::Json;
    let mut query = format!("format={}&follow={}", if json { "events" } else { "frames" }, args.follow);
    for (name, bound) in [("since", &args.since), ("until", &args.until)] {
        if let Some(text) = bound {
            query += &format!("&{name}={}", encode(&times::rfc3339(times::moment(text)?)));
        }
    }
    if args.tail != "all" {
        query += &format!("&tail={}", encode(&args.tail));
    }
    let path = format!("{}/logs?{query}", container(&args.container));
    let mut answer = client.send("GET", &path, None, &[])?;
    if json {
        answer.events(|_, data| Ok(output::print(&format!("{data}\n")).is_ok()))?;
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
        exec::print_frames(&mut bytes)?;
    }
}

fn events(client: &Client, args: &EventsArgs) -> anyhow::Result<()> {
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

fn images(client: &Client, format: Format, quiet: bool) -> anyhow::Result<()> {
    let images: ImageList = client.get("/v1/images")?;
    if quiet {
        return output::print(
            &images.items.iter().map(|image| format!("{}\n", image.id)).collect::<String>(),
        );
    }
    if format == Format::Json {
        return output::print_json(&json!({"schema": "lighter.images.v1", "images": images.items}));
    }
    let mut table = output::table(&["NAME", "ID", "PLATFORM", "SIZE"]);
    for image in &images.items {
        let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        table.add_row([image.name.clone(), id, image.platform.clone(), output::human_size(image.size)]);
    }
    output::print_table(&table)
}

fn pull(client: &Client, args: &PullArgs) -> anyhow::Result<()> {
    let body = json!({"image": args.image, "unpack": args.unpack,
        "registry": run_options::registry(&args.registry, &args.signature)});
    let body = serde_json::to_vec(&body)?;
    let answer = client.send("POST", "/v1/images/pull", Some(&body), &[("accept", "text/event-stream")])?;
    let mut end = None;
    answer.events(|name, data| {
        match name {
            "progress" => {
                let step: Progress = serde_json::from_str(data)?;
                let _ = writeln!(std::io::stderr(), "{} {}", step.step, step.what);
            }
            "done" => end = Some(Ok(serde_json::from_str::<Image>(data)?)),
            "problem" => end = Some(Err(ClientError::Problem(serde_json::from_str(data)?))),
            _ => {}
        }
        Ok(end.is_none())
    })?;
    let image = end.context("the server went away before the image was there")??;
    match args.format {
        Format::Table => output::print(&format!("{}\n", image.name)),
        Format::Json => output::print_json(&json!({"schema": "lighter.pull.v1", "name": image.name,
            "id": image.id, "manifest": image.manifest, "size": image.size})),
    }
}

//! Verbs about images, over the API.

use std::fs::File;
use std::io::{IsTerminal as _, Write, stdin};
use std::path::Path;

use anyhow::{Context as _, ensure};
use engine_api::client::{Client, ClientError, encode};
use engine_api::types::{
    Commit, Compression, History, Image, ImageList, ImageSummary, Loaded, Progress, Pushed, Registry, Removed,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::container;
use crate::args::{InspectArgs, ListArgs, PullArgs, RemoveArgs};
use crate::change_commands::{CommitArgs, archive_out};
use crate::exchange_commands::{
    self, EditArgs, HistoryArgs, ImportArgs, Kind, LoadArgs, Method, PushArgs, SaveArgs, TagArgs,
};
use crate::output::{self, Format};
use crate::run_options;

fn image(name: &str) -> String {
    format!("/v1/images/{}", encode(name))
}

/// Asks for a transfer, tells its progress on stderr, and gives what it ends with.
pub fn told<T: DeserializeOwned>(client: &Client, path: &str, body: &Value) -> anyhow::Result<T> {
    let body = serde_json::to_vec(body)?;
    let answer = client.send("POST", path, Some(&body), &[("accept", "text/event-stream")])?;
    let mut end = None;
    answer.events(|name, data| {
        match name {
            "progress" => {
                let step: Progress = serde_json::from_str(data)?;
                let _ = writeln!(std::io::stderr(), "{} {}", step.step, step.what);
            }
            "done" => end = Some(Ok(serde_json::from_str(data)?)),
            "problem" => end = Some(Err(ClientError::Problem(serde_json::from_str(data)?))),
            _ => {}
        }
        Ok(end.is_none())
    })?;
    Ok(end.context("the server went away before all was there")??)
}

/// `lighter images`
pub fn list(client: &Client, args: &ListArgs) -> anyhow::Result<()> {
    let images: ImageList = client.get("/v1/images")?;
    if args.format == Format::Json {
        return output::print_json(&json!({"schema": "lighter.images.v1", "images": images.items}));
    }
    let id = |image: &ImageSummary| match args.no_trunc {
        true => image.id.clone(),
        false => image.id.trim_start_matches("sha256:").chars().take(12).collect(),
    };
    if args.quiet {
        return output::print(&images.items.iter().map(|image| id(image) + "\n").collect::<String>());
    }
    let mut table = output::table(&["NAME", "ID", "PLATFORM", "SIZE"]);
    for image in &images.items {
        table.add_row([
            image.name.clone(),
            id(image),
            image.platform.clone(),
            output::human_size(image.size),
        ]);
    }
    output::print_table(&table)
}

/// `lighter pull`
pub fn pull(client: &Client, args: &PullArgs) -> anyhow::Result<()> {
    let body = json!({"image": args.image, "unpack": args.unpack,
        "registry": run_options::registry(&args.registry, &args.signature)});
    let image: Image = told(client, "/v1/images/pull", &body)?;
    match args.format {
        Format::Table => output::print(&format!("{}\n", image.name)),
        Format::Json => output::print_json(&json!({"schema": "lighter.pull.v1", "name": image.name,
            "id": image.id, "manifest": image.manifest, "size": image.size})),
    }
}

/// `lighter rmi`
pub fn remove(client: &Client, args: &RemoveArgs) -> anyhow::Result<()> {
    for name in &args.images {
        let path = format!("{}?force={}", image(name), args.force);
        let removed: Removed = client.send("DELETE", &path, None, &[])?.json()?;
        output::print(&format!("untagged {}\n", removed.untagged))?;
    }
    Ok(())
}

/// `lighter image inspect`
pub fn inspect(client: &Client, args: &InspectArgs) -> anyhow::Result<()> {
    let find = |name: &String| client.get::<Image>(&image(name));
    let found = args.images.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    if args.format == Format::Json {
        return output::print_json(&json!({"schema": "lighter.image.v1", "images": found}));
    }
    let mut table = output::table(&["NAME", "ID", "SIZE"]);
    for image in &found {
        table.add_row([image.name.clone(), image.id.clone(), output::human_size(image.size)]);
    }
    output::print_table(&table)
}

/// `lighter tag`
pub fn tag(client: &Client, args: &TagArgs) -> anyhow::Result<()> {
    let body = json!({"name": args.name.to_string()});
    Ok(client.tell("POST", &format!("{}/tag", image(&args.image)), Some(&body))?)
}

/// `lighter history`
pub fn history(client: &Client, args: &HistoryArgs) -> anyhow::Result<()> {
    let history: History = client.get(&format!("{}/history", image(&args.image)))?;
    if args.format == Format::Json {
        return output::print_json(
            &json!({"schema": "lighter.history.v1", "name": args.image, "steps": history.steps}),
        );
    }
    let rows = history.steps.into_iter().map(|step| (step.created, step.created_by, step.size, step.comment));
    exchange_commands::print_history(rows, args.no_trunc)
}

/// `lighter push`
pub fn push(client: &Client, args: &PushArgs) -> anyhow::Result<()> {
    let registry = Registry { insecure: !args.registry.tls_verify, ..Registry::default() };
    let destination = args.destination.as_ref().map(ToString::to_string);
    let body = json!({"destination": destination, "registry": registry});
    let pushed: Pushed = told(client, &format!("{}/push", image(&args.image)), &body)?;
    match (args.format, args.quiet) {
        (Format::Json, _) => output::print_json(&json!({"schema": "lighter.push.v1", "pushed": pushed})),
        (Format::Table, true) => output::print(&format!("{}\n", pushed.digest)),
        (Format::Table, false) => {
            let name = crate::image_commands::familiar(&pushed.name);
            output::print(&format!("{name}: digest: {} size: {}\n", pushed.digest, pushed.size))
        }
    }
}

/// `lighter save`
pub fn save(client: &Client, args: &SaveArgs) -> anyhow::Result<()> {
    let format = match args.format {
        Kind::DockerArchive => "docker",
        Kind::OciArchive => "oci",
    };
    let names: String = args.images.iter().map(|name| format!("&image={}", encode(name))).collect();
    download(client, &format!("/v1/images/archive?format={format}{names}"), args.output.as_deref())
}

/// What the server answers to `path` goes to a file, or to stdout.
pub fn download(client: &Client, path: &str, file: Option<&Path>) -> anyhow::Result<()> {
    let mut answer = client.send("GET", path, None, &[])?;
    let mut out = archive_out(file)?;
    std::io::copy(&mut answer, &mut out).context("the archive broke off")?;
    out.flush().context("cannot write the archive")
}

/// `lighter load`
pub fn load(client: &Client, args: &LoadArgs) -> anyhow::Result<()> {
    let platform =
        args.platform.as_ref().map(|platform| format!("?platform={}", encode(&platform.to_string())));
    let path = format!("/v1/images/load{}", platform.unwrap_or_default());
    let loaded: Loaded = upload(client, &path, args.input.as_deref(), "load: use -i FILE")?;
    if !args.quiet {
        let lines = loaded.names.iter().map(|name| format!("Loaded image: {name}\n"));
        output::print(&lines.collect::<String>())?;
    }
    Ok(())
}

/// Sends a file, or stdin.
fn upload<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    file: Option<&Path>,
    what: &str,
) -> anyhow::Result<T> {
    let mut input: Box<dyn std::io::Read> = match file {
        Some(file) => Box::new(File::open(file).with_context(|| format!("cannot open {}", file.display()))?),
        None => {
            ensure!(!stdin().is_terminal(), "nothing to {what}, or a pipe");
            Box::new(stdin())
        }
    };
    let answer = client.upload("POST", path, |out| {
        std::io::copy(&mut input, out).context("cannot send the archive").map(drop)
    })?;
    Ok(answer.json()?)
}

/// `lighter import`
pub fn import(client: &Client, args: &ImportArgs) -> anyhow::Result<()> {
    let mut query = vec![format!("compression={}", word(args.edit.compression))];
    let mut add = |key: &str, value: Option<String>| {
        query.extend(value.map(|value| format!("{key}={}", encode(&value))));
    };
    add("name", args.name.as_ref().map(ToString::to_string));
    add("platform", args.platform.as_ref().map(ToString::to_string));
    let from = args.file.display().to_string();
    add("message", Some(args.edit.message.clone().unwrap_or_else(|| format!("Imported from {from}"))));
    args.edit.change.iter().for_each(|change| add("change", Some(change.to_string())));
    let url = images::fetch::is_url(&from);
    add("url", url.then(|| from.clone()));
    let path = format!("/v1/images/import?{}", query.join("&"));
    let image: Image = match url {
        true => client.send("POST", &path, None, &[])?.json()?,
        false => {
            let file = Some(args.file.as_path()).filter(|file| *file != Path::new("-"));
            upload(client, &path, file, "import: name a file")?
        }
    };
    output::print(&format!("{}\n", image.id))
}

fn word(method: Method) -> &'static str {
    match method {
        Method::Gzip => "gzip",
        Method::Zstd => "zstd",
    }
}

/// `lighter commit`
pub fn commit(client: &Client, args: CommitArgs) -> anyhow::Result<()> {
    let EditArgs { change, message, compression } = args.edit;
    let body = Commit {
        name: args.name.as_ref().map(ToString::to_string),
        message,
        author: args.author,
        changes: change.iter().map(ToString::to_string).collect(),
        compression: match compression {
            Method::Gzip => Compression::Gzip,
            Method::Zstd => Compression::Zstd,
        },
    };
    let image: Image = client.post(&format!("{}/commit", container(&args.container)), &body)?;
    output::print(&format!("{}\n", image.id))
}

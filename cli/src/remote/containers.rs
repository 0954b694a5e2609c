//! Verbs about containers as a whole, over the API.

use anyhow::{Context as _, bail};
use engine::plan::resources;
use engine_api::client::{Client, ClientError, encode};
use engine_api::types::{Container, ContainerList, Image, Made, Pruned, Security, Update, Waited};
use serde_json::json;

use super::{container, create};
use crate::container_args::{InspectContainerArgs, PruneContainersArgs, PsArgs, RmArgs};
use crate::lifecycle_commands::each;
use crate::output;
use crate::resource_commands::UpdateArgs;
use crate::snapshot_commands::CloneArgs;
use crate::system_commands::confirm;
use crate::{security_command, template_format};

/// `lighter rm`
pub fn remove(client: &Client, args: &RmArgs) -> anyhow::Result<u8> {
    each(&args.containers, |name| {
        let path = format!("{}?force={}&volumes={}", container(name), args.force, args.volumes);
        Ok(client.tell("DELETE", &path, None::<&()>)?)
    })
}

/// `lighter wait`
pub fn wait(client: &Client, names: &[String]) -> anyhow::Result<u8> {
    let mut failed = 0;
    for name in names {
        let path = format!("{}/wait", container(name));
        match client.send("POST", &path, None, &[]).and_then(|answer| answer.json::<Waited>()) {
            Ok(waited) => output::print(&format!("{}\n", waited.exit_code))?,
            Err(error) => {
                output::problem(&output::error_text(&error.into()));
                failed = 1;
            }
        }
    }
    Ok(failed)
}

/// `lighter update`
pub fn update(client: &Client, args: &UpdateArgs) -> anyhow::Result<u8> {
    let body = Update {
        name: None,
        cpus: create::cpus(args.cpus.as_deref(), &args.resources)?,
        memory_mib: args.memory.as_deref().map(resources::parse_memory).transpose()?,
        rates: create::rates(&args.resources),
        restart: args.restart.clone(),
    };
    each(&args.containers, |name| Ok(client.tell("PATCH", &container(name), Some(&body))?))
}

/// `lighter clone`
pub fn clone(client: &Client, args: &CloneArgs) -> anyhow::Result<()> {
    let body = json!({"count": args.number, "name": args.name});
    let made: Made = client.post(&format!("{}/clone", container(&args.container)), &body)?;
    output::print(&made.ids.iter().map(|id| format!("{id}\n")).collect::<String>())
}

/// `lighter container prune`
pub fn prune(client: &Client, args: &PruneContainersArgs) -> anyhow::Result<()> {
    confirm(args.force, "container prune", "Remove all containers that do not run?")?;
    let pruned: Pruned = client.send("POST", "/v1/containers/prune", None, &[])?.json()?;
    crate::system_commands::pruned_containers(&pruned.removed, args.format)
}

/// `lighter ps`
pub fn ps(client: &Client, args: &PsArgs) -> anyhow::Result<()> {
    let newest = args.last.or(args.latest.then_some(1));
    let mut query = String::from("limit=1000");
    let mut all = args.all || newest.is_some();
    for filter in &args.filter {
        let (key, value) =
            filter.split_once('=').with_context(|| format!("--filter {filter:?}: write KEY=VALUE"))?;
        let key = match key {
            "id" | "name" | "label" | "health" | "exited" => key,
            "ancestor" => "image",
            "status" => {
                all = true;
                key
            }
            other => {
                bail!(
                    "--filter {other:?} is unknown: there are id, name, label, status, health, ancestor, exited"
                )
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

/// `lighter inspect`: containers, or else images.
pub fn inspect(client: &Client, args: &InspectContainerArgs) -> anyhow::Result<()> {
    if args.security {
        let report = |name: &String| {
            let found: Security = client.get(&format!("{}/security", container(name)))?;
            Ok(serde_json::from_value(found.report)?)
        };
        let reports = args.names.iter().map(report).collect::<anyhow::Result<Vec<_>>>()?;
        return security_command::print_all(&reports, args.format.as_deref());
    }
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
    match args.format.as_deref() {
        None | Some("json") => output::print_json(&found),
        Some(template) => {
            for value in &found {
                output::print(&(template_format::fill(template, value)? + "\n"))?;
            }
            Ok(())
        }
    }
}

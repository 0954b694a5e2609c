//! `version`, `doctor`, `system` and `compare` over the API.

use anyhow::Context as _;
use engine_api::client::{Client, ClientError};
use engine_api::types::{Compare, DiskUsage, Doctor, IsolationKind as Kind, SystemPruned, Version};
use serde_json::{Value, json};

use crate::args::PruneArgs;
use crate::compare_command::{self, CompareArgs};
use crate::options::isolation::IsolationKind;
use crate::output::{self, Format, human_size};
use crate::{system_commands, times};

/// `lighter version`: the server's.
pub fn version(client: &Client, format: Format) -> anyhow::Result<()> {
    let found: Version = client.get("/v1/version")?;
    match format {
        Format::Json => output::print_json(&json!({"schema": "lighter.version.v1", "version": found.version,
            "agent_protocol": found.agent_protocol, "api": found.api})),
        Format::Table => output::print(&format!(
            "lighter {}, agent protocol {}, API {}\n",
            found.version, found.agent_protocol, found.api
        )),
    }
}

/// `lighter doctor`; gives the exit code.
pub fn doctor(client: &Client, format: Format) -> anyhow::Result<u8> {
    let checks = client.get::<Doctor>("/v1/system/doctor")?.checks;
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let all: &[Value] = checks.as_array().map_or(&[], Vec::as_slice);
    match format {
        Format::Json => output::print_json(&json!({"schema": "lighter.doctor.v1", "checks": all}))?,
        Format::Table => {
            let mut table = output::table(&["STATUS", "WHAT", "FOUND", "FIX"]);
            for check in all {
                table.add_row(["status", "name", "finding", "fix"].map(|key| text(check, key)));
            }
            output::print_table(&table)?;
        }
    }
    let unfit = all.iter().any(|check| text(check, "status").eq_ignore_ascii_case("fail"));
    Ok(u8::from(unfit))
}

/// `lighter system df`
pub fn disk_usage(client: &Client, format: Format) -> anyhow::Result<()> {
    let found: DiskUsage = client.get("/v1/system/df")?;
    if format == Format::Json {
        let (usage, templates) = (found.images, found.templates);
        return output::print_json(
            &json!({"schema": "lighter.df.v1", "usage": usage, "templates": templates}),
        );
    }
    let mut table = output::table(&["TYPE", "FILES", "SIZE", "RECLAIMABLE"]);
    for (kind, usage) in [
        ("Blobs", &found.images["blobs"]),
        ("Unfinished", &found.images["partial"]),
        ("Root filesystems", &found.images["rootfs"]),
        ("Templates", &found.templates),
    ] {
        let number = |key: &str| usage[key].as_u64().unwrap_or_default();
        table.add_row([
            kind.to_owned(),
            number("count").to_string(),
            human_size(number("bytes")),
            human_size(number("reclaimable")),
        ]);
    }
    output::print_table(&table)
}

/// `lighter system prune`
pub fn prune(client: &Client, args: &PruneArgs) -> anyhow::Result<()> {
    system_commands::confirm(args.force, "system prune", system_commands::PRUNE)?;
    let pruned: SystemPruned = client.send("POST", "/v1/system/prune", None, &[])?.json()?;
    if pruned.deferred {
        output::notice("the store is in use, so nothing was removed; try again when no pull runs");
    }
    match args.format {
        Format::Json => output::print_json(&json!({"schema": "lighter.prune.v1",
            "removed": {"files": pruned.files, "bytes": pruned.bytes, "deferred": pruned.deferred},
            "containers": pruned.containers})),
        Format::Table => output::print(&format!(
            "removed {} containers and {} files, {}\n",
            pruned.containers.len(),
            pruned.files,
            human_size(pruned.bytes)
        )),
    }
}

/// `lighter compare`; gives the exit code.
pub fn compare(client: &Client, args: &CompareArgs) -> anyhow::Result<u8> {
    let limit = args.limit.as_deref().map(times::duration).transpose().context("--limit")?;
    let kind = |kind: &IsolationKind| match kind {
        IsolationKind::Vm => Kind::Vm,
        IsolationKind::Container => Kind::Container,
        IsolationKind::Process => Kind::Process,
    };
    let body = Compare {
        image: args.image.clone(),
        command: args.command.clone(),
        runs: args.runs,
        quick: args.quick,
        only: args.only.iter().map(|group| format!("{group:?}").to_ascii_lowercase()).collect(),
        isolation: args.isolation.iter().map(kind).collect(),
        limit: limit.map(|limit| limit.as_secs().max(1)),
    };
    let body = serde_json::to_vec(&body)?;
    let answer = client.send("POST", "/v1/compare", Some(&body), &[("accept", "text/event-stream")])?;
    let mut end = None;
    answer.events(|name, data| {
        match name {
            "progress" => eprintln!("lighter: {}", serde_json::from_str::<String>(data)?),
            "report" => end = Some(Ok(serde_json::from_str(data)?)),
            "problem" => end = Some(Err(ClientError::Problem(serde_json::from_str(data)?))),
            _ => {}
        }
        Ok(end.is_none())
    })?;
    let report = end.context("the server went away before all was measured")??;
    compare_command::show(&report, args)?;
    Ok(0)
}

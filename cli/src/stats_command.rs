//! `lighter stats`: what containers cost the host, and what their guests believe.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use engine::container::record;
use engine::dirs::Dirs;
use engine::stats::{self, Stats, prometheus};
use engine::verbs;
use engine_api::client::{Client, encode};
use engine_api::types::{self as api, ContainerList};
use serde_json::json;

use crate::output::{self, human_size};

/// Between two readings.
const INTERVAL: Duration = Duration::from_secs(1);

/// `lighter stats`
#[derive(Args)]
pub struct StatsArgs {
    /// Print once
    #[arg(long)]
    pub no_stream: bool,
    /// How to print; prometheus prints once
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: StatsFormat,
    /// Names or IDs [default: all that run]
    pub containers: Vec<String>,
}

/// `--format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    /// For people
    #[default]
    Table,
    /// For programs; has a `schema` field
    Json,
    /// For Prometheus, its text exposition format
    Prometheus,
}

/// Prints figures, again and again unless told otherwise.
pub fn stats(dirs: &Dirs, args: &StatsArgs) -> anyhow::Result<()> {
    let mut before = read(dirs, args)?;
    if args.format == StatsFormat::Prometheus {
        return output::print(&prometheus::text(&before.values().collect::<Vec<_>>()));
    }
    loop {
        std::thread::sleep(INTERVAL);
        let now = read(dirs, args)?;
        let lines: Vec<_> = now.values().map(|stats| (stats, before.get(&stats.id))).collect();
        if !args.no_stream && std::io::stdout().is_terminal() {
            // Home, and clear: each reading replaces the one before.
            output::print("\x1b[H\x1b[J")?;
        }
        show(&lines, args.format)?;
        if args.no_stream {
            return Ok(());
        }
        before = now;
    }
}

/// The same over the API.
pub fn remote(client: &Client, args: &StatsArgs) -> anyhow::Result<()> {
    if args.format == StatsFormat::Prometheus {
        let mut text = String::new();
        client.send("GET", "/metrics", None, &[])?.read_to_string(&mut text)?;
        return output::print(&text);
    }
    let names = match args.containers.as_slice() {
        [] => client
            .get::<ContainerList>("/v1/containers?live=true&limit=1000")?
            .items
            .into_iter()
            .map(|item| item.id)
            .collect(),
        names => names.to_vec(),
    };
    let read = |name: &String| client.get::<api::Stats>(&format!("/v1/containers/{}/stats", encode(name)));
    let mut before = names.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    loop {
        std::thread::sleep(INTERVAL);
        let mut now = names.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        for (now, before) in now.iter_mut().zip(&before) {
            let time = now.time_ns.saturating_sub(before.time_ns).max(1);
            now.cpu_percent = Some(now.cpu_ns.saturating_sub(before.cpu_ns) as f64 * 100.0 / time as f64);
        }
        if args.format == StatsFormat::Json {
            output::print_json(&json!({"schema": "lighter.stats.v1", "containers": now}))?;
        } else {
            let mut table = output::table(&["CONTAINER ID", "NAME", "CPU %", "GUEST USED", "HOST GIVES"]);
            for stats in &now {
                let bytes = |value: &serde_json::Value, name: &str| {
                    value.get(name).and_then(serde_json::Value::as_u64).map_or("-".to_owned(), human_size)
                };
                table.add_row([
                    stats.id.clone(),
                    stats.name.clone(),
                    format!("{:.1}", stats.cpu_percent.unwrap_or_default()),
                    bytes(&stats.guest, "used"),
                    bytes(&stats.host, "guest_pss"),
                ]);
            }
            output::print_table(&table)?;
        }
        if args.no_stream {
            return Ok(());
        }
        before = now;
    }
}

fn read(dirs: &Dirs, args: &StatsArgs) -> anyhow::Result<BTreeMap<String, Stats>> {
    let records = match args.containers.as_slice() {
        [] => record::list(dirs).into_iter().filter(record::Record::is_running).collect(),
        names => {
            names.iter().map(|name| Ok(verbs::running(dirs, name)?)).collect::<anyhow::Result<Vec<_>>>()?
        }
    };
    Ok(records.iter().filter_map(stats::read).map(|stats| (stats.id.clone(), stats)).collect())
}

/// Percent of one host CPU since the reading before.
fn cpu_percent(now: &Stats, before: Option<&Stats>) -> f64 {
    let Some(before) = before else { return 0.0 };
    let time = now.time_ns.saturating_sub(before.time_ns).max(1);
    now.cpu_ns.saturating_sub(before.cpu_ns) as f64 * 100.0 / time as f64
}

fn show(lines: &[(&Stats, Option<&Stats>)], format: StatsFormat) -> anyhow::Result<()> {
    if format == StatsFormat::Json {
        let lines: Vec<_> = lines
            .iter()
            .map(|(now, before)| json!({"cpu_percent": cpu_percent(now, *before), "stats": now}))
            .collect();
        return output::print_json(&json!({"schema": "lighter.stats.v1", "containers": lines}));
    }
    let heads = [
        "CONTAINER ID",
        "NAME",
        "CPU %",
        "GUEST USED / HAS",
        "HOST GIVES",
        "OWN",
        "VMM",
        "HELPERS",
        "CACHED TWICE",
        "NET I/O",
        "BLOCK I/O",
    ];
    let mut table = output::table(&heads);
    for (now, before) in lines {
        let twice = now.guest.zip(now.host.disk_cache).map(|(guest, host)| guest.cached.min(host));
        table.add_row([
            now.id.clone(),
            now.name.clone(),
            format!("{:.1}", cpu_percent(now, *before)),
            now.guest.map_or("-".to_owned(), |guest| {
                format!("{} / {}", human_size(guest.used), human_size(guest.total))
            }),
            human_size(now.host.guest_pss),
            human_size(now.host.guest_private),
            human_size(now.host.vmm_pss),
            human_size(now.host.helpers_pss),
            twice.map_or("-".to_owned(), |bytes| format!("at most {}", human_size(bytes))),
            format!("{} / {}", human_size(now.net.input), human_size(now.net.output)),
            format!("{} / {}", human_size(now.block.input), human_size(now.block.output)),
        ]);
    }
    output::print_table(&table)
}

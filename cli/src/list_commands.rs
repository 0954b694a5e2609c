//! Verbs that show containers: `ps`, `inspect`.

use anyhow::{Context as _, bail};
use engine::container::record::{self, Record};
use engine::dirs::Dirs;
use images::Store;
use serde_json::{Value, json};

use crate::container_args::{InspectContainerArgs, PsArgs};
use crate::container_view::{health_name, line, ports, status, whole};
use crate::image_commands::{self, familiar};
use crate::{output, template_format};

/// `lighter ps`
pub fn ps(dirs: &Dirs, args: &PsArgs) -> anyhow::Result<()> {
    let filters = args.filter.iter().map(|text| Filter::parse(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let newest = args.last.or(args.latest.then_some(1));
    let by_status = filters.iter().any(|filter| filter.key == "status");
    let all = args.all || newest.is_some() || by_status;
    let mut records = record::list(dirs);
    // Newest first, as in Docker.
    records.reverse();
    records.retain(|record| (all || record.state.status.is_live()) && Filter::all(&filters, record));
    records.truncate(newest.unwrap_or(usize::MAX));
    if args.quiet {
        return output::print(
            &records.iter().map(|record| format!("{}\n", record.spec.id)).collect::<String>(),
        );
    }
    match args.format.as_str() {
        "json" => {
            let lines: Vec<Value> = records.iter().map(|record| line(record, true)).collect();
            output::print_json(&json!({"schema": "lighter.ps.v1", "containers": lines}))
        }
        "table" => {
            let mut table =
                output::table(&["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
            for record in &records {
                table.add_row([
                    record.spec.id.as_str().to_owned(),
                    familiar(&record.spec.image),
                    crate::container_view::command(record, args.no_trunc),
                    format!("{} ago", crate::times::age(record.spec.created_ns)),
                    status(record),
                    ports(record),
                    record.name.clone(),
                ]);
            }
            output::print_table(&table)
        }
        template => {
            let lines = records.iter().map(|record| {
                template_format::fill(template, &line(record, args.no_trunc)).map(|line| line + "\n")
            });
            output::print(&lines.collect::<anyhow::Result<String>>()?)
        }
    }
}

/// `lighter inspect`: containers, or else images.
pub fn inspect(dirs: &Dirs, args: &InspectContainerArgs) -> anyhow::Result<()> {
    if args.security {
        return crate::security_command::show(dirs, &args.names, args.format.as_deref());
    }
    let mut found = Vec::new();
    for name in &args.names {
        let value = match record::find(dirs, name) {
            Ok(record) => whole(&record),
            Err(missing) => match Store::open(&dirs.data)?.image(name) {
                Ok(image) => image_commands::described(&image),
                Err(_) => bail!("{missing}, and no image either"),
            },
        };
        found.push(value);
    }
    match args.format.as_deref() {
        None | Some("json") => output::print_json(&found),
        Some(template) => {
            let lines =
                found.iter().map(|value| template_format::fill(template, value).map(|line| line + "\n"));
            output::print(&lines.collect::<anyhow::Result<String>>()?)
        }
    }
}

/// One `--filter`.
struct Filter {
    key: String,
    value: String,
}

impl Filter {
    fn parse(text: &str) -> anyhow::Result<Self> {
        const KEYS: [&str; 7] = ["id", "name", "label", "status", "health", "ancestor", "exited"];
        let (key, value) =
            text.split_once('=').with_context(|| format!("--filter {text:?}: write KEY=VALUE"))?;
        if !KEYS.contains(&key) {
            bail!("--filter {key:?} is unknown: lighter has {}", KEYS.join(", "));
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }

    /// Values of one key are alternatives; keys must all fit.
    fn all(filters: &[Self], record: &Record) -> bool {
        filters.iter().all(|filter| {
            filters.iter().filter(|other| other.key == filter.key).any(|other| other.fits(record))
        })
    }

    fn fits(&self, record: &Record) -> bool {
        let value = self.value.as_str();
        match self.key.as_str() {
            "id" => record.spec.id.as_str().starts_with(value),
            "name" => record.name.contains(value),
            "label" => match value.split_once('=') {
                Some((name, value)) => record.spec.labels.get(name).is_some_and(|found| found == value),
                None => record.spec.labels.contains_key(value),
            },
            "status" => record.state.status.name() == value,
            "health" => match record.state.health {
                None => value == "none",
                Some(health) => health_name(health).trim_start_matches("health: ") == value,
            },
            "ancestor" => familiar(&record.spec.image) == value || record.spec.image == value,
            "exited" => {
                record.state.status == engine::container::state::Status::Exited
                    && record.state.exit_code.map(|code| code.to_string()).as_deref() == Some(value)
            }
            _ => false,
        }
    }
}

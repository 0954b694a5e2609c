//! `lighter inspect --security`

use anyhow::Context as _;
use engine::container::record;
use engine::dirs::Dirs;
use engine::security::{self, Report};

use crate::output::{self, Format};

/// Shows what the VMM of each container holds.
pub fn show(dirs: &Dirs, names: &[String], format: Option<&str>) -> anyhow::Result<()> {
    let report = |name: &String| {
        let record = record::find(dirs, name)?;
        security::inspect(&record).with_context(|| format!("cannot inspect {name}"))
    };
    print_all(&names.iter().map(report).collect::<anyhow::Result<Vec<_>>>()?, format)
}

/// Prints what the VMMs of containers hold.
pub fn print_all(reports: &[Report], format: Option<&str>) -> anyhow::Result<()> {
    let format = match format {
        None | Some("table") => Format::Table,
        Some("json") => Format::Json,
        Some(other) => anyhow::bail!("--security shows `table` or `json`, not {other:?}"),
    };
    match format {
        Format::Json => output::print_json(&reports),
        Format::Table => reports.iter().try_for_each(print),
    }
}

fn print(report: &Report) -> anyhow::Result<()> {
    let mut table = output::table(&["WHAT", "FOUND"]);
    let mut row = |what: &str, found: String| {
        table.add_row([what.to_owned(), found]);
    };
    row("container", report.container.clone());
    row("process", report.pid.to_string());
    row("sandbox", if report.sandboxed { "on" } else { "off (--no-sandbox)" }.to_owned());
    row("missing", list(&report.missing));
    row("user, group", format!("{}, {}, {} other groups", report.uid, report.gid, report.groups.len()));
    let by =
        |own: bool| report.namespaces.iter().filter(move |(_, is)| **is == own).map(|(name, _)| name.clone());
    row("own namespaces", list(&by(true).collect::<Vec<_>>()));
    row("host's namespaces", list(&by(false).collect::<Vec<_>>()));
    let held = report.capabilities.iter().filter(|(_, set)| !set.trim_start_matches('0').is_empty());
    row("capabilities", list(&held.map(|(name, set)| format!("{name} {set}")).collect::<Vec<_>>()));
    row("no_new_privs", report.no_new_privs.to_string());
    row("root directory", list(&report.root.iter().map(|file| file.path.clone()).collect::<Vec<_>>()));
    row("mounts", list(&report.mounts));
    for cgroup in &report.cgroups {
        row("cgroup", cgroup.clone());
    }
    for (name, limit) in report.limits.iter().filter(|(_, limit)| *limit != "unlimited") {
        row("limit", format!("{name}: {limit}"));
    }
    for thread in &report.threads {
        row(
            "thread",
            format!(
                "{}: role {}, seccomp {}, {} filters",
                thread.name, thread.role, thread.seccomp, thread.filters
            ),
        );
    }
    for (role, calls) in &report.calls {
        row("system calls", format!("{role}: {}", calls.join(" ")));
    }
    for helper in &report.helpers {
        let own = helper.namespaces.iter().filter(|(_, own)| **own).map(|(name, _)| name.clone());
        let own = list(&own.collect::<Vec<_>>());
        let effective = helper.capabilities.get("effective").map(String::as_str).unwrap_or_default();
        let filter = if helper.filter { "filter" } else { "off" };
        row(
            "helper",
            format!(
                "{}: process {}, user {}, own namespaces {own}, capabilities {effective}, seccomp {filter}, \
                 no_new_privs {}, {} names in its root; missing: {}",
                helper.name,
                helper.pid,
                helper.uid,
                helper.no_new_privs,
                helper.root_entries,
                list(&helper.missing)
            ),
        );
    }
    for file in &report.files {
        let manner = if file.writable { "read, write" } else { "read" };
        row("open file", format!("{} {} ({manner})", file.fd, file.what));
    }
    output::print_table(&table)
}

fn list(entries: &[String]) -> String {
    if entries.is_empty() { "none".to_owned() } else { entries.join(", ") }
}

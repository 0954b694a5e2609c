//! What can be taken to another host, and what it depends on. Nothing is guessed: what can be tried is tried.

use std::collections::BTreeMap;

use crate::lighter::Run;
use crate::report::{Portability, Report};
use crate::{Column, Context};

/// Asks each column for its kernel, and tries to save a running instance.
pub fn measure(context: &Context<'_>, report: &mut Report) {
    let columns = || context.columns.iter().copied().filter(|column| *column != Column::VmCold);
    let mut kernels = BTreeMap::new();
    let mut states = BTreeMap::new();
    for column in columns() {
        if (context.is_over)() {
            return;
        }
        (context.progress)(&format!("portability: {}", column.title()));
        let ran = context.lighter.run(&Run::probe(column, &["isolation", "kernel"]));
        let release = ran.stdout.lines().find_map(|line| line.strip_prefix("kernel held "));
        let own = if column.is_vm() { "its own" } else { "the host's" };
        kernels.insert(column, format!("{own}, Linux {}", release.unwrap_or("unknown")));
        states.insert(column, running_state(context, column));
    }
    let all = |text: &str| columns().map(|column| (column, text.to_owned())).collect::<BTreeMap<_, _>>();
    let by_kind = |vm: &str, other: &str| {
        columns().map(|column| (column, if column.is_vm() { vm } else { other }.to_owned())).collect()
    };
    let mut add =
        |title: &str, answers| report.portability.push(Portability { title: title.to_owned(), answers });
    add("the image (save, push)", all("yes: an OCI archive"));
    add("the running state (snapshot)", states);
    add("kernel it runs on", kernels);
    add("another kernel for the same image (--kernel)", by_kind("yes", "no: the host's"));
}

fn running_state(context: &Context<'_>, column: Column) -> String {
    let name = format!("lighter-compare-{}-state", std::process::id());
    let _held = match context.lighter.hold(column, &name, &["hold"]) {
        Ok(held) => held,
        Err(why) => return format!("not tried: {why}"),
    };
    let saved = context.lighter.command(&["snapshot", "create", &name, &name]);
    if saved.code != Some(0) {
        return format!("no: {}", saved.why());
    }
    context.lighter.command(&["snapshot", "rm", &name]);
    "yes: memory, devices and disk as files".to_owned()
}

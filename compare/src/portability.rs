//! What can be taken to another host, and what it depends on. Nothing is guessed: what can be tried is tried.

use std::collections::BTreeMap;

use crate::lighter::Held;
use crate::report::{Portability, Report};
use crate::{Column, Context};

/// Asks each column for its kernel, and tries to save a running instance.
pub fn measure(context: &Context<'_>, report: &mut Report) {
    let columns = || context.columns.iter().copied().filter(|column| *column != Column::VmCold);
    let (mut images, mut states, mut kernels) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for column in columns() {
        if (context.is_over)() {
            return;
        }
        (context.progress)(&format!("portability: {}", column.title()));
        let name = format!("lighter-compare-{}-state", std::process::id());
        match context.lighter.hold(column, &name, &["hold"]) {
            Ok(held) => {
                images.insert(column, exported(context, &name));
                states.insert(column, running_state(context, &name));
                kernels.insert(column, kernel(&held, column));
            }
            Err(why) => drop(states.insert(column, format!("not tried: {why}"))),
        }
    }
    let by_kind = |vm: &str, other: &str| {
        columns().map(|column| (column, if column.is_vm() { vm } else { other }.to_owned())).collect()
    };
    let mut add =
        |title: &str, answers| report.portability.push(Portability { title: title.to_owned(), answers });
    add("the image (export)", images);
    add("the running state (snapshot)", states);
    add("kernel it runs on", kernels);
    add("another kernel for the same image (--kernel)", by_kind("yes", "no: the host's"));
}

/// `ready RELEASE …`
fn kernel(held: &Held, column: Column) -> String {
    let own = if column.is_vm() { "its own" } else { "the host's" };
    format!("{own}, Linux {}", held.said.split_whitespace().nth(1).unwrap_or("unknown"))
}

/// Of the probe's image, which is small.
fn exported(context: &Context<'_>, name: &str) -> String {
    let Ok(file) = tempfile::NamedTempFile::new() else { return "not tried: no place for it".to_owned() };
    let ran = context.lighter.command(&["export", "-o", &file.path().display().to_string(), name]);
    match (ran.code, file.as_file().metadata()) {
        (Some(0), Ok(metadata)) if metadata.len() > 0 => "yes: a tar archive".to_owned(),
        _ => format!("no: {}", ran.why()),
    }
}

fn running_state(context: &Context<'_>, name: &str) -> String {
    let saved = context.lighter.command(&["snapshot", "create", name, name]);
    if saved.code != Some(0) {
        return format!("no: {}", saved.why());
    }
    context.lighter.command(&["snapshot", "rm", name]);
    "yes: memory, devices and disk as files".to_owned()
}

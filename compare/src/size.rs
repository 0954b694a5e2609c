//! Disk that the image takes, memory that instances take.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::lighter::{Held, rootfs_of};
use crate::report::{Kind, Report, row};
use crate::{Column, Context, host};

/// Instances that are held at once.
const MANY: usize = 10;
/// Where a boot is long fewer have to do.
const QUICK_MANY: usize = 2;
/// Memory that was given back late is counted by nobody.
const SETTLE: Duration = Duration::from_millis(300);
const MIB: f64 = (1 << 20) as f64;

/// One instance, then many.
pub fn measure(context: &Context<'_>, report: &mut Report) {
    let many = if context.options.quick { QUICK_MANY } else { MANY };
    let mut disk: BTreeMap<Column, Vec<f64>> = BTreeMap::new();
    let mut one: BTreeMap<Column, Vec<f64>> = BTreeMap::new();
    let mut free: BTreeMap<Column, Vec<f64>> = BTreeMap::new();
    let mut crowd: BTreeMap<Column, Vec<f64>> = BTreeMap::new();
    let mut fit: BTreeMap<Column, Vec<f64>> = BTreeMap::new();
    for column in context.columns.iter().copied().filter(|column| *column != Column::VmCold) {
        if (context.is_over)() {
            break;
        }
        (context.progress)(&format!("size: {}", column.title()));
        disk.entry(column).or_default().extend(image_bytes(context, column, report));
        let before = host::memory("MemAvailable:");
        let mut held: Vec<Held> = Vec::new();
        for number in 0..many {
            let name = format!("lighter-compare-{}-{number}", std::process::id());
            match context.lighter.hold(column, &name, &["hold"]) {
                Ok(instance) => held.push(instance),
                Err(_) if (context.is_over)() => break,
                Err(why) => {
                    report.notes.push(format!("instance {number} as {}: {why}", column.title()));
                    break;
                }
            }
            if number == 0 {
                std::thread::sleep(SETTLE);
                one.entry(column).or_default().extend(taken(context, &name).map(|bytes| bytes / MIB));
                free.entry(column).or_default().push(used_since(before) / MIB);
            }
        }
        if held.len() == many {
            std::thread::sleep(SETTLE);
            let used = used_since(before) / MIB;
            crowd.entry(column).or_default().push(used);
            // The larger of both: others use and free memory meanwhile, and what clones share is shared by few so far.
            let own = one.get(&column).and_then(|samples| samples.first().copied()).unwrap_or_default();
            let each = own.max(used / many as f64);
            fit.entry(column).or_default().extend((each > 0.0).then(|| (before as f64 / MIB / each).floor()));
        }
        held.iter_mut().for_each(Held::let_go);
    }
    report.add(row(Kind::Size, ("disk", "disk of the image, converted", "MiB"), false, false), disk);
    report.add(
        row(Kind::Size, ("memory", "memory of one instance (PSS, or cgroup)", "MiB"), false, false),
        one,
    );
    report.add(row(Kind::Size, ("free", "the host's free memory, less with one", "MiB"), false, false), free);
    report.add(
        row(Kind::Size, ("crowd", &format!("the host's free memory, less with {many}"), "MiB"), false, false),
        crowd,
    );
    report.add(row(Kind::Size, ("fit", "instances that fit on this host", ""), true, false), fit);
}

fn used_since(before: u64) -> f64 {
    before as f64 - host::memory("MemAvailable:") as f64
}

/// What `lighter stats` says that an instance takes of the host.
fn taken(context: &Context<'_>, name: &str) -> Option<f64> {
    let ran = context.lighter.command(&["stats", "--no-stream", "--format", "json", name]);
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).ok()?;
    let memory = &value["containers"][0]["stats"]["host"];
    Some(memory["guest_pss"].as_f64()? + memory["vmm_pss"].as_f64()?)
}

/// Bytes of the root filesystem of the user's image, as a container of it has it.
fn image_bytes(context: &Context<'_>, column: Column, report: &mut Report) -> Option<f64> {
    let name = format!("lighter-compare-{}-image", std::process::id());
    let options = context.options;
    let mut arguments = vec!["create", "--name", &name];
    arguments.extend(column.options());
    arguments.push(&options.image);
    // An image without a command of its own needs one to be created.
    let default = ["true".to_owned()];
    let command = if options.command.is_empty() { &default[..] } else { &options.command };
    arguments.extend(command.iter().map(String::as_str));
    let made = context.lighter.command(&arguments);
    if made.code != Some(0) {
        report.notes.push(format!("disk of the image as {}: {}", column.title(), made.why()));
        return None;
    }
    let directory = options.root.join("containers").join(made.stdout.trim());
    let bytes =
        rootfs_of(&directory).and_then(|path| path.metadata().ok()).map(|file| file.len() as f64 / MIB);
    context.lighter.command(&["rm", "-f", &name]);
    bytes
}

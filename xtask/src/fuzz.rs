//! `cargo xtask fuzz`: every target with coverage, in turn, when nobody else wants the processor.
//!
//! ```text
//! build with coverage ─► the target with the least time: one turn ─► fuzz/corpus, target/fuzz/NAME ─► its figures ─┐
//!                            ▲                                  until the time is up ◄─────────────────────────────┘
//! ```
//!
//! What was reached stays in the target directory, so that the next session goes on from there; the figures are in
//! `resources/fuzzing.json` and in the table of `docs/security/fuzzing.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{build, step};

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct FuzzArgs {
    /// For how long, in minutes of the clock.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Only these targets.
    targets: Vec<String>,
    /// Leave out the target that needs the engine, which takes long to build.
    #[arg(long)]
    no_dns: bool,
}

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Coverage and AddressSanitizer, as cargo-fuzz has them.
const FLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions=on";
/// Clock time of one turn of one target.
const TURN: Duration = Duration::from_secs(60);
/// What a turn may take longer: a target at its last input, on a busy host.
const GRACE: Duration = Duration::from_secs(120);
/// Where the figures are.
const FIGURES: &str = "resources/fuzzing.json";
/// Where people read them, and between which lines.
const PAGE: &str = "docs/security/fuzzing.md";
const BEGIN: &str = "<!-- figures: cargo xtask fuzz -->";
const END: &str = "<!-- end of figures -->";
/// Minutes of processor time that each target is to have.
const GOAL: f64 = 30.0;

/// What one target has had.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Figures {
    /// What goes through it.
    what: String,
    /// Processor time, user and system, in minutes.
    cpu_minutes: f64,
    /// Inputs that were run.
    inputs: u64,
    /// Edges reached, by the last turn.
    edges: u64,
}

/// What one turn brought.
#[derive(Debug, Default, PartialEq)]
struct Turn {
    inputs: u64,
    edges: u64,
}

/// Runs turns until the time is up.
pub fn run(args: &FuzzArgs) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(args.minutes * 60);
    let repository = build::repository();
    let mut all = load(&repository)?;
    let unknown = args.targets.iter().find(|name| !all.contains_key(*name));
    ensure!(unknown.is_none(), "no target {unknown:?}: {:?}", all.keys());
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
    let built = target.join("fuzz");
    step::step("building the targets with coverage", || compile(&repository, &built, !args.no_dns))?;
    let wanted = |name: &str| {
        (args.targets.is_empty() || args.targets.iter().any(|known| known == name))
            && !(args.no_dns && name == "dns")
    };
    while Instant::now() < end {
        let least = all.iter().filter(|(name, _)| wanted(name));
        let least = least.min_by(|(_, a), (_, b)| a.cpu_minutes.total_cmp(&b.cpu_minutes));
        let name = least.map(|(name, _)| name.clone()).context("no target is left")?;
        let (before, begin) = (children_minutes()?, Instant::now());
        let turn = turn(&repository, &built, &name)?;
        let took = children_minutes()? - before;
        eprintln!(
            "{name}: {took:.2} CPU-minutes of {:.1} min, {turn:?}",
            begin.elapsed().as_secs_f64() / 60.0
        );
        let figures = all.get_mut(&name).context("a target without figures")?;
        figures.cpu_minutes += took;
        figures.inputs += turn.inputs;
        figures.edges = figures.edges.max(turn.edges);
        store(&repository, &all)?;
    }
    Ok(())
}

fn compile(repository: &Path, built: &Path, dns: bool) -> anyhow::Result<()> {
    let mut cargo = build::cargo();
    cargo.current_dir(repository.join("fuzz")).args(["build", "--quiet", "--release", "--target", TRIPLE]);
    cargo.args(dns.then_some(["--features", "dns"]).into_iter().flatten());
    cargo.env("CARGO_TARGET_DIR", built).env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS);
    step::run(&mut cargo)
}

/// One target for a minute, behind everything else that wants a processor.
fn turn(repository: &Path, built: &Path, name: &str) -> anyhow::Result<Turn> {
    let (known, reached) = (repository.join("fuzz/corpus").join(name), built.join("corpus").join(name));
    let findings = built.join("findings");
    fs::create_dir_all(&reached)?;
    fs::create_dir_all(&findings)?;
    let program = built.join(TRIPLE).join("release").join(name);
    let output = Command::new("timeout")
        .arg((TURN + GRACE).as_secs().to_string())
        .args(["nice", "-n", "19", "chrt", "-i", "0"])
        .arg(&program)
        .args(["-max_len=4096", "-rss_limit_mb=2048", "-timeout=60", "-print_final_stats=1"])
        .arg(format!("-max_total_time={}", TURN.as_secs()))
        .arg(format!("-artifact_prefix={}/{name}-", findings.display()))
        .args([&reached, &known])
        .env("TMPDIR", built)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let last: Vec<&str> = said.lines().rev().take(40).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!(
            "{name} ended with {}; its input is in {}\n{}",
            output.status,
            findings.display(),
            last.join("\n")
        );
    }
    Ok(read(&said))
}

/// What libFuzzer says at its end.
fn read(said: &str) -> Turn {
    let number = |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok());
    let inputs = said.lines().find_map(|line| number(line.strip_prefix("stat::number_of_executed_units:")?));
    let edges = said.lines().filter_map(|line| number(line.split_once(" cov: ")?.1)).max();
    Turn { inputs: inputs.unwrap_or_default(), edges: edges.unwrap_or_default() }
}

/// Processor time of all children that have ended, in minutes.
fn children_minutes() -> anyhow::Result<f64> {
    // Fields 16 and 17: user and system time of children that were waited for, in hundredths of a second.
    let text = fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit_once(')').context("an odd /proc/self/stat")?.1.split_whitespace();
    let ticks: Vec<f64> = fields.skip(13).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / 100.0 / 60.0)
}

fn load(repository: &Path) -> anyhow::Result<BTreeMap<String, Figures>> {
    let path = repository.join(FIGURES);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn store(repository: &Path, all: &BTreeMap<String, Figures>) -> anyhow::Result<()> {
    fs::write(repository.join(FIGURES), serde_json::to_string_pretty(all)? + "\n")?;
    let page = repository.join(PAGE);
    let text = fs::read_to_string(&page)?;
    fs::write(&page, with_table(&text, all).context("the page has no place for figures")?)?;
    Ok(())
}

fn with_table(page: &str, all: &BTreeMap<String, Figures>) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    let mut table =
        String::from("| target | what goes through it | CPU-minutes | inputs | edges reached |\n");
    table.push_str("| --- | --- | --- | --- | --- |\n");
    for (name, Figures { what, cpu_minutes, inputs, edges }) in all {
        table.push_str(&format!("| `{name}` | {what} | {cpu_minutes:.1} | {inputs} | {edges} |\n"));
    }
    let reached = all.values().filter(|figures| figures.cpu_minutes >= GOAL).count();
    let least = all.values().map(|figures| figures.cpu_minutes).fold(f64::MAX, f64::min);
    let goal = format!(
        "{reached} of {} targets have had {GOAL:.0} CPU-minutes; the least has had {least:.1}.",
        all.len()
    );
    Some(format!("{before}{BEGIN}\n{goal}\n\n{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_turn_are_read() {
        let said = "#2\tINITED cov: 12 ft: 13 corp: 1/1b\n#99\tDONE   cov: 45 ft: 50 corp: 3/9b\nDone 99 runs in 2 s\n\
                    stat::number_of_executed_units: 99\nstat::peak_rss_mb: 30\n";
        assert_eq!(read(said), Turn { inputs: 99, edges: 45 });
        assert_eq!(read(""), Turn::default());
    }

    #[test]
    fn figures_replace_those_of_the_page() {
        let figures = Figures { what: "frames".into(), cpu_minutes: 31.0, inputs: 5, edges: 6 };
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let text = with_table(&page, &BTreeMap::from([("net".to_owned(), figures)])).unwrap();
        assert!(text.starts_with("a\n") && text.ends_with("\nb\n") && !text.contains("old"), "{text}");
        assert!(text.contains("| `net` | frames | 31.0 | 5 | 6 |") && text.contains("1 of 1"), "{text}");
        assert!(with_table("none", &BTreeMap::new()).is_none());
    }

    #[test]
    fn every_target_has_figures() {
        let targets = build::repository().join("fuzz/corpus");
        let mut names: Vec<_> = fs::read_dir(targets)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(load(&build::repository()).unwrap().into_keys().collect::<Vec<_>>(), names);
    }
}

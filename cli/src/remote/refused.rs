//! What does not go over `--host`, and why.

use clap::ArgMatches;
use clap::parser::ValueSource;

/// Verbs and options, and the reason.
pub const REFUSED: &[(&str, &str, &str)] = &[
    ("run", "trace", "the phases of a start are measured where the container is"),
    ("run", "trace_file", "the phases of a start are measured where the container is"),
    ("create", "trace", "the phases of a start are measured where the container is"),
    ("create", "trace_file", "the phases of a start are measured where the container is"),
];

/// Why `generate systemd` does not.
pub const SYSTEMD: &str =
    "generate systemd names programs and directories of the host where the container is";

/// Refuses what was typed and does not go over the API, rather than to leave it out without a word.
pub fn check(matches: &ArgMatches) -> anyhow::Result<()> {
    let (path, matches) = leaf(matches);
    for (verb, option, why) in REFUSED {
        if *verb == path && matches.value_source(option) == Some(ValueSource::CommandLine) {
            anyhow::bail!("--host: {verb} takes no --{}: {why}", option.replace('_', "-"));
        }
    }
    Ok(())
}

/// The verb with the words before it, and what was typed behind it.
fn leaf(matches: &ArgMatches) -> (String, &ArgMatches) {
    let (mut path, mut matches) = (Vec::new(), matches);
    while let Some((name, below)) = matches.subcommand() {
        path.push(name);
        matches = below;
    }
    (path.join(" "), matches)
}

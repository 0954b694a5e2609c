//! `--format json` and its documentation, verb by verb of the command line's own definition.

use std::collections::BTreeSet;

use clap::CommandFactory as _;

use crate::args::Cli;

/// Names of verbs that list or show.
const SHOWING: &[&str] = &[
    "ps", "ls", "inspect", "stats", "logs", "events", "diff", "images", "history", "df", "doctor", "version",
    "compare", "prune", "pull", "push",
];
/// Two of these names that only move: they print one line with a name and a digest.
const MOVING: &[&str] = &["snapshot push", "snapshot pull"];

fn verbs(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
    let mut below = command.get_subcommands().filter(|command| !command.is_hide_set()).peekable();
    if below.peek().is_none() {
        found.push((path.to_owned(), command.clone()));
    }
    below.for_each(|command| verbs(command, format!("{path} {}", command.get_name()).trim(), found));
}

/// Whether `--format` of the verb is there and takes `json`.
fn takes_json(command: &clap::Command) -> bool {
    let format = command.get_arguments().find(|option| option.get_id() == "format");
    format.is_some_and(|format| {
        let choices = format.get_possible_values();
        choices.is_empty() || choices.iter().any(|choice| choice.get_name() == "json")
    })
}

#[test]
fn every_verb_that_shows_something_takes_format_json_and_its_shape_is_documented() {
    let mut all = Vec::new();
    verbs(&Cli::command(), "", &mut all);
    let showing = all.iter().filter(|(verb, _)| {
        let name = verb.split(' ').next_back().unwrap();
        SHOWING.contains(&name) && !MOVING.contains(&verb.as_str())
    });
    for (verb, command) in showing {
        assert!(takes_json(command), "{verb} has no --format json");
    }
    let with_json: BTreeSet<&str> =
        all.iter().filter(|(_, command)| takes_json(command)).map(|(verb, _)| verb.as_str()).collect();
    let page = include_str!("../../docs/cli.md").split("## JSON").nth(1).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<&str> = rows.filter(|row| *row != "schema").collect();
    assert_eq!(documented, with_json);
}

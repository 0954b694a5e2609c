//! Every operation of the API: a table in each file, and below it what does them.

mod archives;
mod containers;
mod create;
mod images;
mod lifecycle;
mod logs;
mod networks;
mod processes;
mod snapshots;
mod system;
mod transfer_progress;
mod volumes;

use crate::operation::Operation;

/// Tag of what needs no token.
pub const OPEN: &str = "open";

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Operation> {
    [
        system::OPERATIONS,
        containers::OPERATIONS,
        lifecycle::OPERATIONS,
        logs::OPERATIONS,
        processes::OPERATIONS,
        archives::OPERATIONS,
        images::OPERATIONS,
        networks::OPERATIONS,
        volumes::OPERATIONS,
        snapshots::OPERATIONS,
    ]
    .into_iter()
    .flatten()
}

/// An operation with nothing but what every one has.
const fn plain(
    method: &'static hyper::Method,
    path: &'static str,
    id: &'static str,
    tag: &'static str,
    run: crate::operation::Run,
) -> Operation {
    Operation {
        method,
        path,
        id,
        tag,
        summary: "",
        query: &[],
        headers: &[],
        takes: crate::operation::Content::None,
        gives: &[],
        problems: &[],
        run,
    }
}

//! Why a request was refused or failed: RFC 9457 problem details with stable types.

use std::error::Error;

use engine::container::ContainerError;
use engine::container::record::FindError;
use engine::error::RunError;
use engine::files::FilesError;
use engine::keeper::client::AskError;
use engine::network::NetworkError;
use engine::resources::live::UpdateError;
use engine::rewire::RewireError;
use engine::snapshot::SnapshotError;
use engine::snapshot::remote::RemoteError;
use engine::verbs::VerbError;
use engine::volumes::VolumeError;
use images::artifact;
use images::commit::CommitError;
use images::fetch::FetchError;
use images::pull::{Failure, PullError};
use images::push::PushError;
use images::registry::RegistryError;
use images::save::SaveError;
use images::{StoreError, rootfs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the member `type` of a problem begins with.
const TYPES: &str = "/v1/problems/";
/// Longest detail: what a client sent may be in it.
const MAX_DETAIL: usize = 4 << 10;

/// A kind of problem: its name, its status, what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// End of `type`.
    pub name: &'static str,
    /// HTTP status.
    pub status: u16,
    /// The same for every problem of this kind.
    pub title: &'static str,
}

macro_rules! kinds {
    ($($constant:ident = $name:literal, $status:literal, $title:literal;)*) => {
        impl Kind {
            $(#[doc = $title] pub const $constant: Self = Self { name: $name, status: $status, title: $title };)*
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$constant),*];
        }
    };
}

kinds! {
    INVALID = "invalid-request", 400, "The request says something that cannot be.";
    UNAUTHORIZED = "unauthorized", 401, "The request has no token, or one that nobody was given.";
    FORBIDDEN = "forbidden", 403, "This caller may not do that.";
    QUOTA = "quota-exceeded", 403, "The tenant has what it may have.";
    NOT_FOUND = "not-found", 404, "There is no such thing.";
    NO_PATH = "unknown-path", 404, "The API has no such path.";
    METHOD = "method-not-allowed", 405, "The path does not take this method.";
    TIMEOUT = "request-timeout", 408, "The request's body did not come in time.";
    CONFLICT = "conflict", 409, "It is there already, or has another state than this needs.";
    IN_USE = "in-use", 409, "Something else needs it.";
    NOT_STARTED = "not-started", 409, "The process could not be started.";
    CHANGED = "precondition-failed", 412, "It has changed since it was read.";
    TOO_LARGE = "too-large", 413, "The request's body is longer than allowed.";
    MEDIA_TYPE = "unsupported-media-type", 415, "The request's body has another type than this takes.";
    KEY_REUSED = "idempotency-key-reused", 422, "The idempotency key was used for another request.";
    DEPENDENCY = "registry-failed", 424, "A registry could not be reached, or refused.";
    UPGRADE = "upgrade-required", 426, "The connection has to become a stream: send Upgrade: lighter-frames.";
    BUSY = "too-many-requests", 429, "Too much of this happens at once.";
    HOST = "host-failed", 500, "The host, or lighter, failed.";
    UNAVAILABLE = "unavailable", 503, "The server has too many connections, or ends.";
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which.
    pub kind: Kind,
    /// What, why, the fix.
    pub detail: String,
}

/// A problem as JSON, RFC 9457.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename = "Problem")]
pub struct ProblemBody {
    /// Which kind; described at this path.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for every problem of this kind.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What, why, the fix.
    pub detail: String,
    /// The request's ID, as in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl Problem {
    /// A problem of `kind`.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > MAX_DETAIL {
            detail = detail.chars().take(MAX_DETAIL / 4).collect();
        }
        Self { kind, detail }
    }

    /// The request says something that cannot be.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Kind::INVALID, detail)
    }

    /// `kind`, as `error` with its causes says.
    pub fn of(kind: Kind, error: &dyn Error) -> Self {
        Self::new(kind, chain(error))
    }

    /// As JSON.
    pub fn body(&self, request_id: &str) -> ProblemBody {
        ProblemBody {
            kind: format!("{TYPES}{}", self.kind.name),
            title: self.kind.title.to_owned(),
            status: self.kind.status,
            detail: self.detail.clone(),
            request_id: Some(request_id.to_owned()),
        }
    }
}

/// An error with its causes, from the outside in; a cause that is told already is left out.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Makes `From` for errors of the engine, each with the function that says which kind it is.
macro_rules! problems {
    ($($error:ty => $kind:expr;)*) => {
        $(impl From<$error> for Problem {
            fn from(error: $error) -> Self {
                let kind: fn(&$error) -> Kind = $kind;
                Self::of(kind(&error), &error)
            }
        })*
    };
}

problems! {
    FindError => find;
    VerbError => verb;
    RunError => run;
    AskError => ask;
    ContainerError => container;
    NetworkError => network;
    VolumeError => volume;
    SnapshotError => snapshot;
    RemoteError => remote;
    StoreError => store;
    PullError => pull;
    PushError => push;
    FetchError => |error| match error { FetchError::Url(_) => Kind::INVALID, _ => Kind::DEPENDENCY };
    SaveError => |error| match error { SaveError::Store(error) => store(error), _ => Kind::HOST };
    CommitError => commit;
    rootfs::RootfsError => |_| Kind::HOST;
    engine::carried::CarriedError => |_| Kind::HOST;
    engine::dirs::DirsError => |_| Kind::HOST;
    engine::exec::ExecError => exec;
    engine::session::SessionError => |_| Kind::HOST;
    compare::CompareError => |_| Kind::HOST;
    std::io::Error => |_| Kind::HOST;
}

fn find(error: &FindError) -> Kind {
    match error {
        FindError::Missing(_) => Kind::NOT_FOUND,
        FindError::Ambiguous { .. } => Kind::CONFLICT,
    }
}

fn verb(error: &VerbError) -> Kind {
    match error {
        VerbError::Find(error) => find(error),
        VerbError::NotRunning { .. } | VerbError::Running { .. } => Kind::CONFLICT,
        VerbError::Rewire(RewireError::Keeper(error)) => ask(error),
        VerbError::Rewire(RewireError::Network(error)) => network(error),
        VerbError::Rewire(RewireError::Guest { .. }) => Kind::HOST,
        VerbError::NotStarted { .. } => Kind::NOT_STARTED,
        VerbError::Cpus { .. } | VerbError::OwnName => Kind::INVALID,
        VerbError::ImageGone { .. } => Kind::NOT_FOUND,
        VerbError::ImageInUse { .. } => Kind::IN_USE,
        VerbError::Describe(_) => Kind::HOST,
        VerbError::Ask(error) => ask(error),
        VerbError::Run(error) => run(error),
        VerbError::Container(error) => container(error),
        VerbError::Isolation(_) | VerbError::Connect(_) => Kind::CONFLICT,
        VerbError::Update(UpdateError::Memory { .. } | UpdateError::NoBalloon(_)) => Kind::CONFLICT,
        VerbError::Update(_) => Kind::HOST,
        VerbError::Files(error) => files(error),
        VerbError::Store(error) => store(error),
        VerbError::Pull(error) => pull(error),
        VerbError::Snapshot(error) => snapshot(error),
    }
}

fn run(error: &RunError) -> Kind {
    match error {
        RunError::Store(error) => store(error),
        RunError::Pull(error) => pull(error),
        RunError::Container(error) => container(error),
        RunError::Network(error) => network(error),
        RunError::Volume(error) => volume(error),
        RunError::Plan(_) | RunError::Isolation(_) | RunError::Kernel(_) => Kind::INVALID,
        _ => Kind::HOST,
    }
}

fn ask(error: &AskError) -> Kind {
    match error {
        AskError::NotRunning(_) | AskError::Refused { .. } => Kind::CONFLICT,
        AskError::Silent(_) | AskError::Session(_) => Kind::HOST,
    }
}

fn container(error: &ContainerError) -> Kind {
    match error {
        ContainerError::Name(_) => Kind::INVALID,
        ContainerError::NameTaken { .. } | ContainerError::Busy { .. } => Kind::CONFLICT,
        ContainerError::LongPath { .. } | ContainerError::File { .. } => Kind::HOST,
    }
}

fn files(error: &FilesError) -> Kind {
    match error {
        FilesError::NotRunning { .. } => Kind::CONFLICT,
        FilesError::Guest(_) => Kind::NOT_FOUND,
        FilesError::Commit(error) => commit(error),
        FilesError::Archive(_) | FilesError::Changes | FilesError::Transfer(_) => Kind::INVALID,
        FilesError::Connect { .. } | FilesError::Lost(_) => Kind::CONFLICT,
    }
}

fn network(error: &NetworkError) -> Kind {
    match error {
        NetworkError::Unknown { .. } => Kind::NOT_FOUND,
        NetworkError::Exists { .. }
        | NetworkError::SubnetInUse { .. }
        | NetworkError::AddressTaken { .. } => Kind::CONFLICT,
        NetworkError::Fixed { .. } | NetworkError::NotConnected { .. } => Kind::CONFLICT,
        NetworkError::Port { .. } | NetworkError::NoAddress { .. } | NetworkError::NoSubnet => Kind::CONFLICT,
        NetworkError::InUse { .. } | NetworkError::Default => Kind::IN_USE,
        NetworkError::Host { .. } => Kind::HOST,
        _ => Kind::INVALID,
    }
}

fn volume(error: &VolumeError) -> Kind {
    match error {
        VolumeError::Missing(_) => Kind::NOT_FOUND,
        VolumeError::InUse { .. } => Kind::IN_USE,
        VolumeError::File { .. } | VolumeError::Server(_) => Kind::HOST,
        _ => Kind::INVALID,
    }
}

fn snapshot(error: &SnapshotError) -> Kind {
    match error {
        SnapshotError::Missing(_) => Kind::NOT_FOUND,
        SnapshotError::Name(_) => Kind::INVALID,
        SnapshotError::Ask(error) => ask(error),
        SnapshotError::Container(error) => container(error),
        SnapshotError::Save(_) | SnapshotError::File { .. } => Kind::HOST,
        _ => Kind::CONFLICT,
    }
}

fn remote(error: &RemoteError) -> Kind {
    match error {
        RemoteError::Snapshot(error) => snapshot(error),
        RemoteError::Push(error) => push(error),
        RemoteError::Pull(artifact::PullError::Registry(error)) => registry(error),
        RemoteError::Pull(_) | RemoteError::Lacks(_) => Kind::DEPENDENCY,
    }
}

fn store(error: &StoreError) -> Kind {
    match error {
        StoreError::NoSuchImage { .. } => Kind::NOT_FOUND,
        StoreError::AmbiguousId { .. } => Kind::CONFLICT,
        StoreError::NotATag { .. } | StoreError::Manifest { .. } => Kind::INVALID,
        _ => Kind::HOST,
    }
}

fn registry(error: &RegistryError) -> Kind {
    match error {
        RegistryError::NotFound { .. } => Kind::NOT_FOUND,
        _ => Kind::DEPENDENCY,
    }
}

fn pull(error: &PullError) -> Kind {
    match error {
        PullError::Registry(error) => registry(error),
        PullError::Store(error) => store(error),
        PullError::NotPresent { .. } => Kind::NOT_FOUND,
        PullError::Archive(_) | PullError::Manifest { .. } | PullError::Platform { .. } => Kind::INVALID,
        PullError::Directory { .. } => Kind::INVALID,
        PullError::Signature { .. } => Kind::FORBIDDEN,
        PullError::Elsewhere { failure, .. } => match failure {
            Failure::Missing => Kind::NOT_FOUND,
            Failure::Registry => Kind::DEPENDENCY,
            Failure::Unusable => Kind::INVALID,
            Failure::Unsigned => Kind::FORBIDDEN,
            Failure::Host => Kind::HOST,
        },
        PullError::Cancelled => Kind::HOST,
    }
}

fn push(error: &PushError) -> Kind {
    match error {
        PushError::Registry(error) => registry(error),
        PushError::Store(error) => store(error),
        PushError::NoReference(_) | PushError::OtherDigest { .. } => Kind::INVALID,
        PushError::Blob(_) | PushError::Cancelled => Kind::HOST,
    }
}

fn commit(error: &CommitError) -> Kind {
    match error {
        CommitError::Store(error) => store(error),
        _ => Kind::INVALID,
    }
}

fn exec(error: &engine::exec::ExecError) -> Kind {
    use engine::exec::ExecError;
    match error {
        ExecError::NotRunning(_) | ExecError::Paused(_) => Kind::CONFLICT,
        ExecError::Session(_) => Kind::HOST,
        _ => Kind::INVALID,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_of_their_own_and_statuses_of_errors() {
        for (index, kind) in Kind::ALL.iter().enumerate() {
            assert!((400..600).contains(&kind.status), "{}", kind.name);
            assert!(Kind::ALL.iter().skip(index + 1).all(|other| other.name != kind.name), "{}", kind.name);
        }
    }

    #[test]
    fn a_detail_tells_each_cause_once_and_is_bounded() {
        let inner = std::io::Error::other("no space");
        let outer = ContainerError::File { action: "write", path: "/x".into(), source: inner };
        let problem = Problem::from(outer);
        assert_eq!((problem.detail.as_str(), problem.kind), ("cannot write /x: no space", Kind::HOST));
        assert!(Problem::invalid("x".repeat(100_000)).detail.len() < 5000);
    }
}

//! From a request to a [`Call`].
//!
//! As Firecracker does: the path is split at its slashes, leading ones do not count, and what follows a known path
//! is overlooked.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::call::{Call, DeviceKind};
use crate::fault::Fault;
use crate::http::{Method, Request};
use crate::wire::{Machine, MachineUpdate, MmdsConfig, MmdsVersion, SnapshotLoad, VmUpdate, VmUpdateState};

/// A call, and whether it was made in a way that will go away.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    /// What the client wants.
    pub call: Call,
    /// Firecracker calls the way it asked deprecated.
    pub deprecated: bool,
}

impl From<Call> for Routed {
    fn from(call: Call) -> Self {
        Routed { call, deprecated: false }
    }
}

/// What `request` wants.
pub fn route(request: &Request) -> Result<Routed, Fault> {
    let mut words = request.path.trim_start_matches('/').split_terminator('/');
    let path = Path { first: words.next().unwrap_or_default(), second: words.next(), third: words.next() };
    match (request.method, request.body.as_slice()) {
        (Method::Get, []) => get(path),
        (Method::Put, body @ [_, ..]) => put(path, body),
        (Method::Patch, []) if path.first == "balloon" && path.second == Some("hinting") => {
            hinting(path, b"{}")
        }
        (Method::Patch, body @ [_, ..]) => patch(path, body),
        (Method::Delete, []) => delete(path),
        (Method::Get, _) => Err(Fault::new("GET request cannot have a body.")),
        (Method::Put, _) => Err(Fault::new("Empty PUT request.")),
        (Method::Patch, _) => Err(Fault::new("Empty PATCH request.")),
        (Method::Delete, _) => Err(Fault::new("DELETE request cannot have a body.")),
    }
}

/// The words of a path.
#[derive(Clone, Copy)]
struct Path<'a> {
    first: &'a str,
    second: Option<&'a str>,
    third: Option<&'a str>,
}

impl<'a> Path<'a> {
    /// The path is none of the method's.
    fn unknown(self, method: Method) -> Fault {
        let mut path = self.first.to_owned();
        for word in self.second.iter().chain(&self.third) {
            path.push('/');
            path.push_str(word);
        }
        Fault::new(format!("Invalid request method and/or path: {} {path}.", method.name()))
    }

    /// The resource's ID.
    fn id(self) -> Result<&'a str, Fault> {
        match self.second {
            None | Some("") => Err(Fault::new("The ID cannot be empty.")),
            Some(id) if id.chars().all(|character| character == '_' || character.is_alphanumeric()) => Ok(id),
            Some(_) => {
                Err(Fault::new("API Resource IDs can only contain alphanumeric characters and underscores."))
            }
        }
    }
}

fn get(path: Path<'_>) -> Result<Routed, Fault> {
    let call = match (path.first, path.second, path.third) {
        ("", ..) => Call::GetInstance,
        ("version", ..) => Call::GetVersion,
        ("vm", Some("config"), _) => Call::GetConfig,
        ("machine-config", ..) => Call::GetMachine,
        ("mmds", ..) => Call::GetMmds,
        ("hotplug", Some("memory"), _) => Call::GetMemoryHotplug,
        ("balloon", None, _) => Call::GetBalloon,
        ("balloon", Some("statistics"), _) => Call::GetBalloonStats,
        ("balloon", Some("hinting"), Some("status")) => Call::GetHinting,
        ("balloon", Some(word), _) => {
            return Err(Fault::new(format!("Unrecognized GET request path `{word}`.")));
        }
        _ => return Err(path.unknown(Method::Get)),
    };
    Ok(call.into())
}

fn put(path: Path<'_>, body: &[u8]) -> Result<Routed, Fault> {
    let call = match (path.first, path.second) {
        ("actions", _) => action(body)?,
        ("boot-source", _) => Call::SetBootSource(parse(body)?),
        ("machine-config", _) => {
            let Machine { vcpu_count, mem_size_mib, smt, cpu_template, track_dirty_pages, huge_pages } =
                parse(body)?;
            let update = MachineUpdate {
                vcpu_count: Some(vcpu_count),
                mem_size_mib: Some(mem_size_mib),
                smt: Some(smt),
                cpu_template,
                track_dirty_pages: Some(track_dirty_pages),
                huge_pages: Some(huge_pages),
            };
            return Ok(Routed { call: Call::SetMachine(update), deprecated: cpu_template.is_some() });
        }
        ("cpu-config", _) => Call::SetCpu(parse(body)?),
        ("drives", _) => with_id(path, body, |drive| &drive.drive_id, Call::SetDrive)?,
        ("pmem", _) => with_id(path, body, |pmem| &pmem.id, Call::SetPmem)?,
        ("network-interfaces", _) => with_id(path, body, |net| &net.iface_id, Call::SetNet)?,
        ("vsock", _) => {
            let vsock: crate::wire::Vsock = parse(body)?;
            let deprecated = vsock.vsock_id.is_some();
            return Ok(Routed { call: Call::SetVsock(vsock), deprecated });
        }
        ("entropy", _) => Call::SetEntropy(parse(body)?),
        ("serial", _) => Call::SetSerial(parse(body)?),
        ("balloon", _) => Call::SetBalloon(parse(body)?),
        ("hotplug", Some("memory")) => Call::SetMemoryHotplug(parse(body)?),
        ("logger", _) => Call::SetLogger(parse(body)?),
        ("metrics", _) => Call::SetMetrics(parse(body)?),
        ("mmds", None) => Call::PutMmds(parse(body)?),
        ("mmds", Some("config")) => {
            let config: MmdsConfig = parse(body)?;
            let deprecated = config.version == MmdsVersion::V1;
            return Ok(Routed { call: Call::SetMmdsConfig(config), deprecated });
        }
        ("mmds", Some(word)) => {
            return Err(Fault::new(format!("Unrecognized PUT request path `{word}`.")));
        }
        ("snapshot", Some("create")) => Call::CreateSnapshot(parse(body)?),
        ("snapshot", Some("load")) => return load(parse(body)?),
        ("snapshot", None) => return Err(Fault::new("Missing snapshot operation type.")),
        _ => return Err(path.unknown(Method::Put)),
    };
    Ok(call.into())
}

fn patch(path: Path<'_>, body: &[u8]) -> Result<Routed, Fault> {
    let call = match (path.first, path.second) {
        ("balloon", Some("statistics")) => Call::UpdateBalloonStats(parse(body)?),
        ("balloon", Some("hinting")) => return hinting(path, body),
        ("balloon", _) => Call::UpdateBalloon(parse(body)?),
        ("drives", _) => with_id(path, body, |drive| &drive.drive_id, Call::UpdateDrive)?,
        ("pmem", _) => with_id(path, body, |pmem| &pmem.id, Call::UpdatePmem)?,
        ("network-interfaces", _) => with_id(path, body, |net| &net.iface_id, Call::UpdateNet)?,
        ("machine-config", _) => {
            let update: MachineUpdate = parse(body)?;
            if update == MachineUpdate::default() {
                return Err(Fault::new("Empty PATCH request."));
            }
            let deprecated = update.cpu_template.is_some();
            return Ok(Routed { call: Call::SetMachine(update), deprecated });
        }
        ("mmds", None) => Call::PatchMmds(parse(body)?),
        ("vm", None) => match parse::<VmUpdate>(body)?.state {
            VmUpdateState::Paused => Call::Pause,
            VmUpdateState::Resumed => Call::Resume,
        },
        ("hotplug", Some("memory")) => Call::UpdateMemoryHotplug(parse(body)?),
        _ => return Err(path.unknown(Method::Patch)),
    };
    Ok(call.into())
}

fn delete(path: Path<'_>) -> Result<Routed, Fault> {
    let kind = match path.first {
        "drives" => DeviceKind::Drive,
        "pmem" => DeviceKind::Pmem,
        "network-interfaces" => DeviceKind::Net,
        _ => return Err(path.unknown(Method::Delete)),
    };
    Ok(Call::Unplug(kind, path.id()?.to_owned()).into())
}

fn hinting(path: Path<'_>, body: &[u8]) -> Result<Routed, Fault> {
    match path.third {
        Some("start") => Ok(Call::StartHinting(parse(body)?).into()),
        Some("stop") => Ok(Call::StopHinting.into()),
        other => {
            let word = other.unwrap_or_default();
            Err(Fault::new(format!("Unrecognized PATCH request path `/hinting/{word}`.")))
        }
    }
}

fn action(body: &[u8]) -> Result<Call, Fault> {
    #[derive(Deserialize)]
    enum Type {
        FlushMetrics,
        InstanceStart,
        SendCtrlAltDel,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Action {
        action_type: Type,
    }
    Ok(match parse::<Action>(body)?.action_type {
        Type::FlushMetrics => Call::FlushMetrics,
        Type::InstanceStart => Call::Start,
        Type::SendCtrlAltDel => Call::SendCtrlAltDel,
    })
}

fn load(load: SnapshotLoad) -> Result<Routed, Fault> {
    let custom = <serde_json::Error as serde::de::Error>::custom;
    match (&load.mem_backend, &load.mem_file_path) {
        (Some(_), Some(_)) => Err(Fault::from(custom(
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required",
        ))),
        (None, None) => {
            Err(Fault::from(custom("missing field: either `mem_backend` or `mem_file_path` is required")))
        }
        (_, old) => {
            let deprecated = old.is_some() || load.enable_diff_snapshots;
            Ok(Routed { call: Call::LoadSnapshot(load), deprecated })
        }
    }
}

/// A body with an ID, which must be that of the path.
fn with_id<T: DeserializeOwned>(
    path: Path<'_>,
    body: &[u8],
    own: impl Fn(&T) -> &String,
    call: impl Fn(T) -> Call,
) -> Result<Call, Fault> {
    let id = path.id()?;
    let value = parse(body)?;
    let found = own(&value);
    if found != id {
        let message = if path.first == "network-interfaces" {
            format!("The id from the path [{id}] does not match the id from the body [{found}]!")
        } else {
            "The id from the path does not match the id from the body!".to_owned()
        };
        return Err(Fault::new(message));
    }
    Ok(call(value))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    Ok(serde_json::from_slice(body)?)
}

#[cfg(test)]
mod tests;

//! `--isolation`: whether a container is a VM, and what the others need of their host.

use std::path::PathBuf;

use vmm::config::VmConfig;
pub use warden::Isolation;
use warden::{Limits, WardenConfig};

use crate::container::Container;
use crate::container::spec::ContainerSpec;
use crate::network::{Attachment, NetworkMode, NetworkSpec};

/// Why a container cannot have this isolation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsolationError {
    /// Namespaces, mounts and cgroups are root's.
    #[error(
        "--isolation {0} needs root: run lighter as root, or use --isolation vm, which needs no more than /dev/kvm"
    )]
    NotRoot(&'static str),
    /// There is no OCI runtime.
    #[error(
        "--isolation container needs the OCI runtime runc, which is not in PATH: install it (Debian: apt install \
         runc), or use --isolation vm"
    )]
    NoRuntime,
    /// An option that it has no meaning for.
    #[error("--isolation {isolation} cannot hold {option}: {why}")]
    Option {
        /// The isolation.
        isolation: &'static str,
        /// The option.
        option: &'static str,
        /// Why.
        why: &'static str,
    },
    /// Something that only VMs can.
    #[error("{what} needs a VM, and container {name} was made with --isolation {isolation}")]
    VmOnly {
        /// What was asked for.
        what: &'static str,
        /// The container.
        name: String,
        /// The isolation.
        isolation: &'static str,
    },
}

/// Whether this host and process can start a container without a VM.
pub fn check_host(isolation: Isolation) -> Result<(), IsolationError> {
    match isolation {
        Isolation::Vm => Ok(()),
        other if !rustix::process::geteuid().is_root() => Err(IsolationError::NotRoot(other.name())),
        Isolation::Container if warden::runtime().is_none() => Err(IsolationError::NoRuntime),
        _ => Ok(()),
    }
}

/// The network that a container of this isolation gets; refused is what would silently be something else.
pub fn network(isolation: Isolation, mut spec: NetworkSpec) -> Result<NetworkSpec, IsolationError> {
    let refuse = |option, why| Err(IsolationError::Option { isolation: isolation.name(), option, why });
    match isolation {
        Isolation::Vm => {}
        Isolation::Container if spec.mode == NetworkMode::User => {
            return refuse("--network user", "it is for those who may make no bridge; use a bridge or none");
        }
        Isolation::Container => {}
        Isolation::Process if spec.mode != NetworkMode::Auto => {
            return refuse("--network", "a process without namespaces has the host's network");
        }
        Isolation::Process if !spec.publish.is_empty() || spec.publish_all => {
            return refuse("--publish", "a process without namespaces has the host's ports already");
        }
        Isolation::Process if spec.egress.is_some() => {
            return refuse("--egress-allow", "a process without namespaces has the host's network");
        }
        // The host's, of which nothing is made.
        Isolation::Process => spec.mode = NetworkMode::None,
    }
    Ok(spec)
}

/// Refuses what only a VM can.
pub fn vm_only(spec: &ContainerSpec, name: &str, what: &'static str) -> Result<(), IsolationError> {
    match spec.isolation {
        Isolation::Vm => Ok(()),
        other => Err(IsolationError::VmOnly { what, name: name.to_owned(), isolation: other.name() }),
    }
}

/// What the warden of `container` is told.
pub fn warden_config(
    spec: &ContainerSpec,
    container: &Container,
    attachment: Option<&Attachment>,
    shares: Vec<PathBuf>,
) -> WardenConfig {
    use std::os::fd::AsRawFd as _;
    let resources = &spec.resources;
    WardenConfig {
        isolation: spec.isolation,
        id: spec.id.to_string(),
        image: container.data().join(&spec.rootfs),
        layer: spec.plan.writable().then(|| container.data().join("layer")),
        vsock: container.vsock(),
        control: container.control(),
        network: attachment.and_then(Attachment::namespace).map(|namespace| namespace.as_raw_fd()),
        limits: Limits {
            // What was asked for, without what a guest's kernel would need.
            memory: resources.memory.map(|_| u64::from(spec.machine.memory_mib) << 20),
            quota: resources.quota.map(|quota| (quota.quota_us, quota.period_us)),
            shares: resources.shares,
            cpuset: resources.cpuset.clone(),
        },
        shares,
        privileged: spec.plan.is_privileged(),
    }
}

/// What the life of a container is told of its machine where there is none: where sessions and requests are taken.
pub fn no_machine(container: &Container) -> VmConfig {
    serde_json::from_value(serde_json::json!({
        "vcpus": 1, "mem_size_mib": 0, "kernel": {"path": "/"}, "control": container.control(),
        "vsock": {"guest_cid": 3, "uds_path": container.vsock()},
    }))
    .expect("invariant: everything else has a default")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_silently_something_else() {
        let bridge = NetworkSpec { mode: NetworkMode::bridge("bridge"), ..NetworkSpec::default() };
        assert!(network(Isolation::Process, bridge.clone()).unwrap_err().to_string().contains("--network"));
        assert_eq!(network(Isolation::Container, bridge.clone()), Ok(bridge));
        let user = NetworkSpec { mode: NetworkMode::User, ..NetworkSpec::default() };
        assert!(network(Isolation::Container, user).is_err());
        let host = network(Isolation::Process, NetworkSpec::default()).unwrap();
        assert_eq!(host.mode, NetworkMode::None);
    }
}

//! The machine of a container: its configuration, its disks.

use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use images::ext4;
use vmm::config::{BlockEngine, DiskConfig, KernelConfig, NetConfig, RestoreConfig, VmConfig, VsockConfig};

use crate::container::Container;
use crate::error::RunError;
use crate::network::Attachment;
use crate::plan::Plan;
use crate::template::{Ingredients, Template, copy_sparse};

/// Context ID of every guest: each VM has a vsock device of its own, so they need not differ.
const GUEST_CID: u32 = 3;

/// What a machine is made of before it belongs to a container.
pub struct Machine {
    /// The VMM.
    pub program: PathBuf,
    /// The agent's disk.
    pub agent: PathBuf,
    /// The guest's kernel.
    pub kernel: KernelConfig,
    /// The image's root filesystem.
    pub rootfs: PathBuf,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub mem_size_mib: u32,
    /// Has an interface.
    pub network: bool,
}

impl Machine {
    /// What a template of it is made of.
    pub fn ingredients(&self, plan: &Plan) -> Ingredients<'_> {
        Ingredients {
            kernel: &self.kernel,
            vcpus: self.vcpus,
            mem_size_mib: self.mem_size_mib,
            network: self.network,
            rootfs: &self.rootfs,
            writable: plan.writable(),
        }
    }

    /// Makes the container's writable layer, if it gets one.
    pub fn make_layer(
        &self,
        container: &Container,
        plan: &Plan,
        template: Option<&Template>,
    ) -> Result<(), RunError> {
        match template {
            _ if !plan.writable() => Ok(()),
            Some(template) => copy_sparse(&template.layer(), &container.disk())
                .map_err(|source| RunError::Host { action: "copy the template's writable layer", source }),
            None => Ok(ext4::create_writable_layer(&container.disk(), ext4::DEFAULT_SIZE)?),
        }
    }

    /// The VMM's configuration for `container`.
    pub fn config(
        &self,
        container: &Container,
        plan: &Plan,
        attachment: Option<&Attachment>,
        template: Option<&Template>,
    ) -> VmConfig {
        VmConfig {
            vcpus: self.vcpus,
            mem_size_mib: self.mem_size_mib,
            kernel: self.kernel.clone(),
            disks: self.disks(container, plan),
            pmem: Vec::new(),
            net: attachment.and_then(|attachment| {
                Some(NetConfig { tap_fd: attachment.tap()?.as_raw_fd(), mac: attachment.mac })
            }),
            vsock: Some(VsockConfig { guest_cid: GUEST_CID, uds_path: container.vsock() }),
            balloon: false,
            spare_slots: 0,
            plugged: Default::default(),
            console_log: Some(container.console_log()),
            restore: template.map(|template| RestoreConfig { snapshot: template.snapshot() }),
            control: None,
        }
    }

    fn disks(&self, container: &Container, plan: &Plan) -> Vec<DiskConfig> {
        let read_only = |path: &PathBuf, serial: &str| DiskConfig {
            path: path.clone(),
            read_only: true,
            serial: serial.to_owned(),
            engine: BlockEngine::default(),
        };
        let mut disks = vec![read_only(&self.agent, "agent"), read_only(&self.rootfs, "image")];
        if plan.writable() {
            disks.push(DiskConfig {
                path: container.disk(),
                read_only: false,
                serial: "writable".to_owned(),
                engine: BlockEngine::default(),
            });
        }
        disks
    }
}

//! The machine of a container: its configuration, its disks.

use std::io;
use std::path::{Path, PathBuf};

use agent_protocol::mount::SHARES_TAG;
use images::ext4;
use vmm::config::{BlockEngine, DiskConfig, FsConfig, KernelConfig, RestoreConfig, VmConfig, VsockConfig};

use crate::container::Container;
use crate::container::spec::ContainerSpec;
use crate::dirs::Dirs;
use crate::error::RunError;
use crate::network::spec::Interfaces;
use crate::network::{Attachment, Interface};
use crate::plan::{Plan, resources};
use crate::process::Program;
use crate::resources::rates::{DISKS, DeviceRates};
use crate::run::warm::Level;
use crate::template::{Ingredients, Template, copy_sparse};
use crate::volumes::spec::DiskPlaces;
use crate::volumes::{ClaimedDisk, VolumeStore};
use crate::{carried, kernel};

/// Context ID of every guest: each VM has a vsock device of its own, so they need not differ.
const GUEST_CID: u32 = 3;

/// Name of the agent's disk in a container's directory.
pub const AGENT_DISK: &str = "agent.erofs";

/// The kernel's root is the agent's disk.
const ROOT_ARGUMENTS: &str = "root=/dev/vda ro rootfstype=erofs init=/init";

/// Virtio slots for volumes that are disks, and for networks that a running container joins.
const SPARE_SLOTS: u8 = 6;

/// What a machine is made of before it belongs to a container.
pub struct Machine {
    /// The VMM.
    pub program: PathBuf,
    /// The agent's disk.
    pub agent: PathBuf,
    /// The guest's kernel.
    pub kernel: KernelConfig,
    /// It can take virtio slots in that it did not know at its boot: it is lighter's own.
    pub knows_slots_later: bool,
    /// The image's root filesystem.
    pub rootfs: PathBuf,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub mem_size_mib: u32,
    /// Its network interfaces.
    pub interfaces: Interfaces,
    /// It gives memory back that it does not use.
    pub reclaims: bool,
    /// It has a file system device.
    pub shares: bool,
    /// Its VMM is confined.
    pub sandboxed: bool,
}

impl Machine {
    /// The machine of the container that `spec` describes and whose data directory is `data`.
    pub fn of(spec: &ContainerSpec, dirs: &Dirs, data: &Path) -> Result<Self, RunError> {
        let options = &spec.machine;
        let arguments = options.kernel_args.iter().map(String::as_str);
        let kernel = KernelConfig {
            path: kernel::find(options.kernel.as_deref(), dirs)?,
            initrd: options.initrd.as_deref().map(kernel::find_initrd).transpose()?,
            cmdline: std::iter::once(ROOT_ARGUMENTS).chain(arguments).collect::<Vec<_>>().join(" "),
            bare: false,
        };
        Ok(Self {
            program: carried::machine(dirs)?,
            agent: carried::agent_disk(dirs)?,
            kernel,
            knows_slots_later: options.kernel.is_none(),
            rootfs: data.join(&spec.rootfs),
            vcpus: options.vcpus,
            mem_size_mib: resources::vm_memory_mib(options.memory_mib),
            interfaces: spec.network.interfaces(),
            reclaims: options.memory_reclaim,
            shares: spec.mounts.iter().any(|mount| mount.is_share(&VolumeStore::new(dirs))),
            sandboxed: !options.no_sandbox,
        })
    }

    /// What runs it.
    pub fn vmm(&self) -> Program<'_> {
        Program::vmm(&self.program, self.sandboxed)
    }

    /// Links the agent's disk into the container's directory `data`: a snapshot of the container needs it, whatever
    /// lighter's own is by then.
    pub fn keep_agent(&self, data: &Path) {
        let path = data.join(AGENT_DISK);
        let _ = std::fs::remove_file(&path);
        // Without it a snapshot says what is missing.
        let _ = std::fs::hard_link(&self.agent, &path);
    }

    /// What a template of it is made of.
    pub fn ingredients(&self, plan: &Plan, level: Level) -> Ingredients<'_> {
        Ingredients {
            kernel: &self.kernel,
            vcpus: self.vcpus,
            mem_size_mib: self.mem_size_mib,
            interfaces: self.interfaces,
            shares: self.shares,
            rootfs: (level == Level::Image).then_some(&self.rootfs),
            writable: plan.writable(),
            reclaims: self.reclaims,
        }
    }

    /// Makes the container's writable layer, if it gets one and has none yet.
    pub fn make_layer(
        &self,
        container: &Container,
        plan: &Plan,
        template: Option<&Template>,
    ) -> Result<(), RunError> {
        let disk = container.disk();
        if !plan.writable() || disk.exists() {
            return Ok(());
        }
        // Under another name first: half a disk must not be taken for one.
        let partial = disk.with_extension("new");
        let host = |action| move |source| RunError::Host { action, source };
        let _ = std::fs::remove_file(&partial);
        match template.filter(|template| template.layer().exists()) {
            Some(template) => copy_sparse(&template.layer(), &partial)
                .map_err(host("copy the template's writable layer"))?,
            None => ext4::create_writable_layer(&partial, ext4::DEFAULT_SIZE)?,
        }
        std::fs::rename(&partial, &disk).map_err(host("name the writable layer"))
    }

    /// The VMM's configuration for `container`.
    pub fn config(
        &self,
        container: &Container,
        plan: &Plan,
        attachment: Option<&Attachment>,
        template: Option<&Template>,
    ) -> VmConfig {
        let mut config = VmConfig {
            vcpus: self.vcpus,
            mem_size_mib: self.mem_size_mib,
            kernel: self.kernel.clone(),
            disks: self.disks(container, plan),
            pmem: Vec::new(),
            net: attachment.into_iter().flat_map(Attachment::interfaces).map(Interface::config).collect(),
            vsock: Some(VsockConfig { guest_cid: GUEST_CID, uds_path: container.vsock() }),
            balloon: self.reclaims,
            fs: self.shares.then(|| FsConfig { tag: SHARES_TAG.to_owned(), fd: None }),
            balloon_statistics_s: 0,
            keyboard: false,
            spare_slots: 0,
            spare_slots_untold: self.knows_slots_later,
            plugged: Default::default(),
            console_log: Some(container.console_log()),
            restore: template.map(|template| RestoreConfig::full(template.snapshot())),
            control: Some(container.control()),
            rare: Default::default(),
        };
        let left = VmConfig::MAX_SLOTS.saturating_sub(config.fixed_slots());
        config.spare_slots = SPARE_SLOTS.min(u8::try_from(left).unwrap_or(u8::MAX));
        config
    }

    /// Sets what the devices of `config` may carry.
    pub fn limit(config: &mut VmConfig, rates: &DeviceRates) {
        // The first disk is the agent's, without which nothing goes on.
        for (disk, device) in config.disks.iter_mut().skip(1).zip(DISKS) {
            disk.limits = rates.disk(device);
        }
        for interface in &mut config.net {
            interface.limits = rates.interface();
        }
    }

    /// Gives the machine of `config` the volumes that are disks, and says where its guest finds them.
    pub fn add_volumes(config: &mut VmConfig, volumes: &[ClaimedDisk]) -> DiskPlaces {
        let (first_disk, first_slot) = (config.disks.len(), config.fixed_slots());
        config.plugged.disks = volumes
            .iter()
            .map(|volume| DiskConfig {
                path: volume.path.clone(),
                read_only: volume.read_only,
                serial: "volume".to_owned(),
                engine: BlockEngine::default(),
                limits: Default::default(),
            })
            .collect();
        let place = |number: usize| {
            let name = vmm::config::disk_name(first_disk + number);
            (format!("/dev/{name}"), u8::try_from(first_slot + number).unwrap_or(u8::MAX))
        };
        DiskPlaces((0..volumes.len()).map(place).collect())
    }

    /// Empties the drives of `config` that will have a medium of their own in every container.
    pub fn take_media_out(&self, config: &mut VmConfig, container: &Container) -> io::Result<()> {
        for disk in config.disks.iter_mut().filter(|disk| disk.path != self.agent) {
            disk.path = container.data().join(format!("{}.empty", disk.serial));
            std::fs::File::create(&disk.path)?;
        }
        Ok(())
    }

    fn disks(&self, container: &Container, plan: &Plan) -> Vec<DiskConfig> {
        let read_only = |path: &PathBuf, serial: &str| DiskConfig {
            path: path.clone(),
            read_only: true,
            serial: serial.to_owned(),
            engine: BlockEngine::default(),
            limits: Default::default(),
        };
        let mut disks = vec![read_only(&self.agent, "agent"), read_only(&self.rootfs, "image")];
        if plan.writable() {
            disks.push(DiskConfig {
                path: container.disk(),
                read_only: false,
                serial: "writable".to_owned(),
                engine: BlockEngine::default(),
                limits: Default::default(),
            });
        }
        disks
    }
}

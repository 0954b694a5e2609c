//! What a VM is to be made of, as a client said so far, and the [`VmConfig`] that comes of it.

use std::hash::RandomState;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use api_server::Fault;
use api_server::wire::{
    Balloon, BootSource, CpuTemplate as NamedTemplate, Drive, Entropy, HugePages, IoEngine, Machine,
    MachineUpdate, MemoryHotplug, MmdsConfig, NetworkInterface, NetworkInterfaceUpdate, Pmem, PmemUpdate,
    RateLimiter, Serial, TokenBucket, Vsock, WholeConfig,
};
use arch::layout;
use devices::virtio::block::BlockEngine;
use devices::virtio::net::tap::Tap;
use serde::Deserialize as _;

use super::fault::{not_offered, refused};
use super::imds::{DEFAULT_ADDRESS, MetadataService, SharedMetadata};
use super::{files, hotplug};
use crate::config::{
    BucketConfig, DiskConfig, KernelConfig, NetBackend, NetConfig, PluggedConfig, PmemConfig, RareConfig,
    RateLimits, Rates, Service, VmConfig, VsockConfig,
};
use crate::template::CpuTemplate;

/// The command line where a client gives none; Firecracker's.
const DEFAULT_BOOT_ARGS: &str =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";
/// Where the console goes without `/serial`.
const STDOUT: &str = "/dev/stdout";
/// Most devices of a kind: more do not fit into a machine. Stops a client from filling memory.
const MAX_DEVICES: usize = layout::VIRTIO_MMIO_SLOTS;
/// Lowest context ID of a guest (virtio 1.2, section 5.10.4).
const MIN_CID: u32 = 3;
/// Smallest MTU (virtio 1.2, section 5.1.4.1).
const MIN_MTU: u16 = 68;
/// Bytes of a disk's serial number.
const SERIAL_BYTES: usize = 20;

/// What a VM is to be made of.
#[derive(Debug, Default)]
pub struct Resources {
    config: WholeConfig,
    machine: Machine,
    cpu: CpuTemplate,
    serial: Serial,
    /// The interfaces' descriptors, in their order.
    taps: Vec<Link>,
    /// Something was said that belongs to a boot: no snapshot can be loaded any more.
    touched: bool,
}

/// An interface's other end.
#[derive(Debug)]
struct Link {
    fd: OwnedFd,
    backend: NetBackend,
}

impl Resources {
    /// Everything that `config` says.
    pub fn from_config(config: WholeConfig) -> Result<Self, Fault> {
        let mut resources = Resources::default();
        resources.set_boot_source(config.boot_source.clone())?;
        resources.fill(config)?;
        Ok(resources)
    }

    fn fill(&mut self, config: WholeConfig) -> Result<(), Fault> {
        if let Some(machine) = &config.machine_config {
            self.set_machine(&MachineUpdate {
                vcpu_count: Some(machine.vcpu_count),
                mem_size_mib: Some(machine.mem_size_mib),
                smt: Some(machine.smt),
                cpu_template: machine.cpu_template,
                track_dirty_pages: Some(machine.track_dirty_pages),
                huge_pages: Some(machine.huge_pages),
            })?;
        }
        if let Some(template) = &config.cpu_config {
            self.set_cpu(&files::template(template).map_err(|error| refused("CPU config error", &error))?)?;
        }
        config.drives.into_iter().try_for_each(|drive| self.set_drive(drive))?;
        config.pmem.into_iter().try_for_each(|pmem| self.set_pmem(pmem))?;
        config.network_interfaces.into_iter().try_for_each(|net| self.set_net(net))?;
        config.vsock.into_iter().try_for_each(|vsock| self.set_vsock(vsock))?;
        config.balloon.into_iter().try_for_each(|balloon| self.set_balloon(balloon))?;
        config.entropy.into_iter().try_for_each(|entropy| self.set_entropy(entropy))?;
        config.mmds_config.into_iter().try_for_each(|mmds| self.set_mmds(mmds))?;
        config.memory_hotplug.iter().try_for_each(|hotplug| self.set_memory_hotplug(hotplug))
    }

    /// What a snapshot was taken of. Its kernel need not be there any more.
    pub fn for_restore(config: WholeConfig, serial: Serial) -> Result<Self, Fault> {
        let boot = config.boot_source.clone();
        let mut resources = Resources { serial, ..Resources::default() };
        resources.config.boot_source = boot;
        resources.fill(config)?;
        Ok(resources)
    }

    /// What `GET /vm/config` answers.
    pub fn config(&self) -> WholeConfig {
        WholeConfig { machine_config: Some(self.machine.clone()), ..self.config.clone() }
    }

    /// `GET /machine-config`.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// `GET /balloon`.
    pub fn balloon(&self) -> Option<&Balloon> {
        self.config.balloon.as_ref()
    }

    /// Which of the guest's disks has this ID.
    pub fn place_of_drive(&self, id: &str) -> Option<usize> {
        self.config.drives.iter().position(|drive| drive.drive_id == id)
    }

    /// `PATCH /drives/{id}` was done.
    pub fn set_drive_path(&mut self, place: usize, path: &str) {
        if let Some(drive) = self.config.drives.get_mut(place) {
            drive.path_on_host = Some(path.to_owned());
        }
    }

    /// `PATCH /drives/{id}`: the drive's limits with what `change` says of them.
    pub fn change_drive_limits(&mut self, place: usize, change: RateLimiter) -> RateLimits {
        let Some(drive) = self.config.drives.get_mut(place) else { return RateLimits::default() };
        drive.rate_limiter = Some(changed(drive.rate_limiter, change));
        total_limits(drive.rate_limiter.as_ref())
    }

    /// `PATCH /network-interfaces/{id}`: the interface's place and its limits with what `update` says of them.
    pub fn change_net_limits(&mut self, update: &NetworkInterfaceUpdate) -> Option<(usize, RateLimits)> {
        let nets = &mut self.config.network_interfaces;
        let place = nets.iter().position(|net| net.iface_id == update.iface_id)?;
        let net = nets.get_mut(place)?;
        net.rx_rate_limiter = Some(changed(net.rx_rate_limiter, update.rx_rate_limiter.unwrap_or_default()));
        net.tx_rate_limiter = Some(changed(net.tx_rate_limiter, update.tx_rate_limiter.unwrap_or_default()));
        Some((place, net_limits(net.rx_rate_limiter.as_ref(), net.tx_rate_limiter.as_ref())))
    }

    /// `PATCH /pmem/{id}`: the device's place and its limits with what `update` says of them.
    pub fn change_pmem_limits(&mut self, update: &PmemUpdate) -> Option<(usize, RateLimits)> {
        let place = self.config.pmem.iter().position(|pmem| pmem.id == update.id)?;
        let pmem = self.config.pmem.get_mut(place)?;
        pmem.rate_limiter = Some(changed(pmem.rate_limiter, update.rate_limiter.unwrap_or_default()));
        Some((place, total_limits(pmem.rate_limiter.as_ref())))
    }

    /// `PATCH /balloon` was done.
    pub fn set_balloon_amount(&mut self, amount_mib: u32) {
        if let Some(balloon) = &mut self.config.balloon {
            balloon.amount_mib = amount_mib;
        }
    }

    /// `PATCH /balloon/statistics` was done.
    pub fn set_balloon_interval(&mut self, interval_s: u16) {
        if let Some(balloon) = &mut self.config.balloon {
            balloon.stats_polling_interval_s = interval_s;
        }
    }

    /// `/hotplug/memory`, with its defaults.
    pub fn memory_hotplug(&self) -> Option<&MemoryHotplug> {
        self.config.memory_hotplug.as_ref()
    }

    /// Has this in place of what `/hotplug/memory` was.
    pub(super) fn replace_hotplug(&mut self, hotplug: MemoryHotplug) {
        self.config.memory_hotplug = Some(hotplug);
    }

    /// Something is said that belongs to a boot.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    /// Another kind of pages is behind the memory than when it was saved.
    pub fn set_huge_pages(&mut self, huge: bool) {
        self.machine.huge_pages = if huge { HugePages::Hugetlbfs2M } else { HugePages::None };
    }

    /// Where the console goes.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Something was said that belongs to a boot.
    pub fn is_touched(&self) -> bool {
        self.touched
    }

    /// `PUT` and `PATCH /machine-config`.
    pub fn set_machine(&mut self, update: &MachineUpdate) -> Result<(), Fault> {
        self.touched = true;
        let machine = update.apply(&self.machine);
        let fault = |why: &str| Err(Fault::new(format!("Machine config error: {why}")));
        if machine.vcpu_count == 0 || machine.vcpu_count > layout::MAX_VCPUS {
            return fault(&format!(
                "The number of vCPUs must be greater than 0, less than {} and must be 1 or an even number if SMT is \
                 enabled.",
                layout::MAX_VCPUS
            ));
        }
        let (min, max) = (layout::MIN_MEMORY_MIB, layout::MAX_MEMORY_MIB);
        if !(min..=max).contains(&machine.mem_size_mib) {
            return fault(&format!("The memory size (MiB) must be from {min} to {max}."));
        }
        if self.config.balloon.as_ref().is_some_and(|balloon| balloon.amount_mib > machine.mem_size_mib) {
            return fault(
                "The memory size (MiB) is smaller than the previously set balloon device target size.",
            );
        }
        if machine.smt {
            return Err(not_offered("Simultaneous multithreading", "set smt to false"));
        }
        if machine.cpu_template.is_some_and(|template| template != NamedTemplate::None) {
            return Err(not_offered("A CPU template", "leave cpu_template out"));
        }
        match machine.huge_pages {
            HugePages::Transparent => {
                return Err(not_offered(
                    "Memory from transparent huge pages",
                    "set huge_pages to None or 2M",
                ));
            }
            HugePages::Hugetlbfs2M if !machine.mem_size_mib.is_multiple_of(2) => {
                return fault("The memory size (MiB) must be even for huge pages.");
            }
            _ => {}
        }
        self.machine = machine;
        Ok(())
    }

    /// `PUT /cpu-config`.
    pub fn set_cpu(&mut self, template: &serde_json::Value) -> Result<(), Fault> {
        self.touched = true;
        self.cpu = CpuTemplate::deserialize(template).map_err(|error| refused("CPU config error", &error))?;
        self.config.cpu_config = Some(template.clone());
        Ok(())
    }

    /// `PUT /boot-source`.
    pub fn set_boot_source(&mut self, boot: BootSource) -> Result<(), Fault> {
        self.touched = true;
        files::check_readable(Path::new(&boot.kernel_image_path))
            .map_err(|error| refused("Boot source error: The kernel file cannot be opened", &error))?;
        if let Some(path) = &boot.initrd_path {
            let what = "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions.";
            files::check_readable(Path::new(path)).map_err(|error| Fault::new(format!("{what} {error}")))?;
        }
        let line = boot.boot_args.as_deref().unwrap_or_default();
        let printable = |byte: u8| (b' '..=b'~').contains(&byte);
        if !line.bytes().all(printable) || line.len() >= layout::CMDLINE_MAX {
            return Err(Fault::new(format!(
                "Boot source error: The kernel command line is invalid: it takes printable ASCII, fewer than {} bytes",
                layout::CMDLINE_MAX
            )));
        }
        self.config.boot_source = boot;
        Ok(())
    }

    /// `PUT /drives/{id}`; one that is there is replaced.
    pub fn set_drive(&mut self, drive: Drive) -> Result<(), Fault> {
        self.touched = true;
        if drive.socket.is_some() {
            return Err(not_offered("A vhost-user drive", "give path_on_host in place of socket"));
        }
        let what = "Drive config error: Unable to create the virtio block device";
        let Some(path) = &drive.path_on_host else {
            return Err(Fault::new(format!("{what}: path_on_host is missing")));
        };
        files::check_readable(Path::new(path)).map_err(|error| {
            Fault::new(format!("{what}: Error manipulating the backing file: {error} {path}"))
        })?;
        if drive.is_root_device && self.config.pmem.iter().any(|pmem| pmem.root_device) {
            return Err(Fault::new(
                "Drive config error: Attempt to add block as a root device while the root device defined as a pmem \
                 device",
            ));
        }
        let drives = &mut self.config.drives;
        let place = drives.iter().position(|other| other.drive_id == drive.drive_id);
        let root = drives.first().is_some_and(|first| first.is_root_device);
        if drive.is_root_device && root && place != Some(0) {
            return Err(Fault::new("Drive config error: A root block device already exists!"));
        }
        match place {
            Some(place) if drive.is_root_device == drives[place].is_root_device => drives[place] = drive,
            _ => {
                check_count("Drive config error", drives.len())?;
                if let Some(place) = place {
                    drives.remove(place);
                }
                // The root device is the guest's first.
                drives.insert(if drive.is_root_device { 0 } else { drives.len() }, drive);
            }
        }
        Ok(())
    }

    /// `PUT /pmem/{id}`; one that is there is replaced.
    pub fn set_pmem(&mut self, pmem: Pmem) -> Result<(), Fault> {
        self.touched = true;
        let what = "Pmem config error";
        files::check_readable(Path::new(&pmem.path_on_host))
            .map_err(|error| refused("Pmem config error: Error accessing underlying file", &error))?;
        let place = self.config.pmem.iter().position(|other| other.id == pmem.id);
        if pmem.root_device {
            if self.config.drives.iter().any(|drive| drive.is_root_device) {
                return Err(Fault::new(format!(
                    "{what}: Attempt to add pmem as a root device while the root device defined as a block device"
                )));
            }
            if self.config.pmem.iter().any(|other| other.root_device && other.id != pmem.id) {
                return Err(Fault::new(format!("{what}: A root pmem device already exist")));
            }
        }
        match place {
            Some(place) => self.config.pmem[place] = pmem,
            None => {
                check_count(what, self.config.pmem.len())?;
                self.config.pmem.push(pmem);
            }
        }
        Ok(())
    }

    /// `PUT /network-interfaces/{id}`; one that is there is replaced. Opens the TAP.
    pub fn set_net(&mut self, mut net: NetworkInterface) -> Result<(), Fault> {
        self.touched = true;
        if net.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return Err(Fault::new(format!("Network config error: the MTU must be {MIN_MTU} or more")));
        }
        let mac = match &net.guest_mac {
            Some(text) => parse_mac(text)?,
            None => random_mac()?,
        };
        net.guest_mac = Some(mac_text(mac));
        let interfaces = &mut self.config.network_interfaces;
        let in_use =
            |other: &NetworkInterface| other.guest_mac == net.guest_mac && other.iface_id != net.iface_id;
        if interfaces.iter().any(in_use) {
            let mac = mac_text(mac);
            return Err(Fault::new(format!(
                "Network config error: The MAC address is already in use: {mac}"
            )));
        }
        match interfaces.iter().position(|other| other.iface_id == net.iface_id) {
            Some(place) if interfaces[place].host_dev_name == net.host_dev_name => interfaces[place] = net,
            Some(place) => {
                self.taps[place] = open_link(&net.host_dev_name)?;
                interfaces[place] = net;
            }
            None => {
                check_count("Network config error", interfaces.len())?;
                self.taps.push(open_link(&net.host_dev_name)?);
                interfaces.push(net);
            }
        }
        Ok(())
    }

    /// `PUT /vsock`.
    pub fn set_vsock(&mut self, vsock: Vsock) -> Result<(), Fault> {
        self.touched = true;
        if vsock.guest_cid < MIN_CID {
            return Err(Fault::new(format!(
                "Vsock config error: guest_cid {}: it must be {MIN_CID} or more",
                vsock.guest_cid
            )));
        }
        self.config.vsock = Some(vsock);
        Ok(())
    }

    /// `PUT /balloon`.
    pub fn set_balloon(&mut self, balloon: Balloon) -> Result<(), Fault> {
        self.touched = true;
        if balloon.amount_mib > self.machine.mem_size_mib {
            return Err(Fault::new("Balloon config error: Amount of pages requested is too large."));
        }
        self.config.balloon = Some(balloon);
        Ok(())
    }

    /// `PUT /entropy`. There is such a device anyway.
    pub fn set_entropy(&mut self, entropy: Entropy) -> Result<(), Fault> {
        self.touched = true;
        self.config.entropy = Some(entropy);
        Ok(())
    }

    /// `PUT /mmds/config`: after the interfaces that it names.
    pub fn set_mmds(&mut self, config: MmdsConfig) -> Result<(), Fault> {
        self.touched = true;
        // Firecracker's own words, one M too many.
        let fault = |why: &str| Err(Fault::new(format!("MMMDS config error: {why}")));
        if config.ipv4_address.is_some_and(|address| !address.is_link_local()) {
            return fault("The MMDS IPv4 address is not link local.");
        }
        if config.network_interfaces.is_empty() {
            return fault("The list of network interface IDs that allow forwarding MMDS requests is empty.");
        }
        let there = |id: &String| self.config.network_interfaces.iter().any(|net| net.iface_id == *id);
        if !config.network_interfaces.iter().all(there) {
            return fault(
                "The list of network interface IDs provided contains at least one ID that does not correspond to any \
                 existing network interface.",
            );
        }
        self.config.mmds_config = Some(config);
        Ok(())
    }

    fn service(&self, metadata: &SharedMetadata) -> Option<Service> {
        let config = self.config.mmds_config.as_ref()?;
        let service = MetadataService {
            store: metadata.clone(),
            version: config.version,
            imds_compat: config.imds_compat,
            keys: [RandomState::new(), RandomState::new()],
        };
        let address = config.ipv4_address.unwrap_or(DEFAULT_ADDRESS);
        Some(Service::new(address, Arc::new(Mutex::new(service))))
    }

    /// The service on this interface.
    fn service_of(&self, net: &NetworkInterface, service: &Option<Service>) -> Option<Service> {
        let config = self.config.mmds_config.as_ref()?;
        service.clone().filter(|_| config.network_interfaces.contains(&net.iface_id))
    }

    /// `PUT /serial`.
    pub fn set_serial(&mut self, serial: Serial) -> Result<(), Fault> {
        if let Some(path) = &serial.serial_out_path {
            files::open_sink(Path::new(path)).map_err(|error| refused("Serial config error", &error))?;
        }
        self.serial = serial;
        Ok(())
    }

    /// Has another TAP or socket for the interface `id`, before it is opened.
    pub fn redirect(config: &mut WholeConfig, id: &str, host_dev_name: &str) -> Result<(), Fault> {
        let net = config.network_interfaces.iter_mut().find(|net| net.iface_id == id);
        let net = net.ok_or_else(|| {
            Fault::new(format!("Load snapshot error: there is no interface {id} to override"))
        })?;
        net.host_dev_name = host_dev_name.to_owned();
        Ok(())
    }

    /// The VM's configuration. The interfaces' descriptors are this object's, so it must outlive the build.
    pub fn vm_config(&self, metadata: &SharedMetadata) -> Result<VmConfig, Fault> {
        let service = self.service(metadata);
        let boot = &self.config.boot_source;
        let console = self.serial.serial_out_path.as_deref().unwrap_or(STDOUT);
        let net = self.config.network_interfaces.iter().zip(&self.taps);
        Ok(VmConfig {
            vcpus: self.machine.vcpu_count,
            mem_size_mib: self.machine.mem_size_mib,
            kernel: KernelConfig {
                path: boot.kernel_image_path.clone().into(),
                initrd: boot.initrd_path.as_ref().map(PathBuf::from),
                cmdline: self.command_line(),
                bare: true,
            },
            disks: self.config.drives.iter().map(disk).collect(),
            pmem: self.config.pmem.iter().map(pmem).collect(),
            net: net
                .map(|(net, link)| interface(net, link, self.service_of(net, &service)))
                .collect::<Result<_, _>>()?,
            vsock: self.config.vsock.as_ref().map(|vsock| VsockConfig {
                guest_cid: vsock.guest_cid,
                uds_path: vsock.uds_path.clone().into(),
            }),
            balloon: self.config.balloon.is_some(),
            balloon_statistics_s: self
                .config
                .balloon
                .as_ref()
                .map_or(0, |balloon| balloon.stats_polling_interval_s),
            fs: None,
            keyboard: true,
            spare_slots: 0,
            spare_slots_untold: false,
            plugged: PluggedConfig::default(),
            console_log: Some(console.into()),
            restore: None,
            control: None,
            rare: RareConfig {
                hotplug: self.config.memory_hotplug.as_ref().map(hotplug::config),
                huge_pages: self.machine.huge_pages == HugePages::Hugetlbfs2M,
                balloon_hinting: self.config.balloon.as_ref().is_some_and(|it| it.free_page_hinting),
                cpu: self.cpu.clone(),
                entropy_limits: self
                    .config
                    .entropy
                    .as_ref()
                    .and_then(|entropy| entropy.rate_limiter.as_ref())
                    .map(|limiter| total_limits(Some(limiter))),
                // Each has some, so that they can be changed.
                pmem_limits: self
                    .config
                    .pmem
                    .iter()
                    .map(|pmem| total_limits(pmem.rate_limiter.as_ref()))
                    .collect(),
                console_rate: self.serial.rate_limiter.map(bucket),
            },
        })
    }

    /// What the client gave, with the root device before a `--` that begins init's words.
    fn command_line(&self) -> String {
        let line = self.config.boot_source.boot_args.as_deref().unwrap_or(DEFAULT_BOOT_ARGS);
        let root =
            match (self.config.drives.first(), self.config.pmem.iter().position(|pmem| pmem.root_device)) {
                (Some(Drive { is_root_device: true, partuuid, is_read_only, .. }), _) => {
                    let device =
                        partuuid.as_ref().map_or("/dev/vda".to_owned(), |uuid| format!("PARTUUID={uuid}"));
                    Some((device, is_read_only.unwrap_or(false)))
                }
                (_, Some(place)) => Some((format!("/dev/pmem{place}"), self.config.pmem[place].read_only)),
                _ => None,
            };
        let Some((device, read_only)) = root else { return line.to_owned() };
        let root = format!("root={device} {}", if read_only { "ro" } else { "rw" });
        match line.split_once(" -- ") {
            Some((kernel, init)) => format!("{kernel} {root} -- {init}"),
            None => format!("{line} {root}"),
        }
    }
}

fn check_count(what: &str, count: usize) -> Result<(), Fault> {
    if count < MAX_DEVICES {
        return Ok(());
    }
    Err(Fault::new(format!("{what}: {MAX_DEVICES} devices are there, a machine has no room for more")))
}

fn disk(drive: &Drive) -> DiskConfig {
    DiskConfig {
        path: drive.path_on_host.clone().unwrap_or_default().into(),
        read_only: drive.is_read_only.unwrap_or(false),
        // IDs have letters and digits of any script: cut between two of them.
        serial: drive
            .drive_id
            .chars()
            .scan(0, |len, letter| {
                *len += letter.len_utf8();
                (*len <= SERIAL_BYTES).then_some(letter)
            })
            .collect(),
        engine: match drive.io_engine.unwrap_or_default() {
            IoEngine::Async => BlockEngine::IoUring,
            IoEngine::Sync => BlockEngine::Sync,
        },
        limits: total_limits(drive.rate_limiter.as_ref()),
    }
}

/// What an update leaves out stays.
fn changed(old: Option<RateLimiter>, new: RateLimiter) -> RateLimiter {
    let old = old.unwrap_or_default();
    RateLimiter { bandwidth: new.bandwidth.or(old.bandwidth), ops: new.ops.or(old.ops) }
}

/// Those of a device that counts both directions together.
fn total_limits(limiter: Option<&RateLimiter>) -> RateLimits {
    RateLimits { total: rates(limiter), ..RateLimits::default() }
}

/// Those of an interface.
fn net_limits(receive: Option<&RateLimiter>, transmit: Option<&RateLimiter>) -> RateLimits {
    RateLimits { input: rates(receive), output: rates(transmit), total: Rates::default() }
}

fn bucket(bucket: TokenBucket) -> BucketConfig {
    BucketConfig {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst.unwrap_or(0),
        refill_time_ms: bucket.refill_time,
    }
}

fn rates(limiter: Option<&RateLimiter>) -> Rates {
    let limiter = limiter.copied().unwrap_or_default();
    Rates { bandwidth: limiter.bandwidth.map(bucket), ops: limiter.ops.map(bucket) }
}

fn pmem(pmem: &Pmem) -> PmemConfig {
    PmemConfig { path: pmem.path_on_host.clone().into(), read_only: pmem.read_only }
}

fn interface(net: &NetworkInterface, link: &Link, service: Option<Service>) -> Result<NetConfig, Fault> {
    let mac = parse_mac(net.guest_mac.as_deref().unwrap_or_default())?;
    let limits = net_limits(net.rx_rate_limiter.as_ref(), net.tx_rate_limiter.as_ref());
    Ok(NetConfig { fd: link.fd.as_raw_fd(), backend: link.backend, mac, limits, mtu: net.mtu, service })
}

/// A TAP by its name, or a stream socket by `unix:` and its path.
fn open_link(name: &str) -> Result<Link, Fault> {
    let what = "Network config error: Could not create the network device";
    if let Some(path) = name.strip_prefix("unix:") {
        let socket =
            UnixStream::connect(path).map_err(|error| refused(&format!("{what}: {path}"), &error))?;
        return Ok(Link { fd: socket.into(), backend: NetBackend::Stream });
    }
    let fd = Tap::open(name).map_err(|error| refused(&format!("{what}: Open tap device failed"), &error))?;
    Ok(Link { fd, backend: NetBackend::Tap })
}

fn parse_mac(text: &str) -> Result<[u8; 6], Fault> {
    let mut mac = [0; 6];
    let mut bytes = text.split(':');
    let parsed = mac.iter_mut().all(|byte| {
        let word =
            bytes.next().filter(|word| word.len() == 2 && word.bytes().all(|byte| byte.is_ascii_hexdigit()));
        word.and_then(|word| u8::from_str_radix(word, 16).ok()).map(|value| *byte = value).is_some()
    });
    if parsed && bytes.next().is_none() {
        return Ok(mac);
    }
    Err(Fault::new(format!(
        "Network config error: invalid MAC address {text:?}: write it as 06:00:00:00:00:01"
    )))
}

fn random_mac() -> Result<[u8; 6], Fault> {
    let mut mac = [0; 6];
    getrandom::fill(&mut mac)
        .map_err(|error| refused("Network config error: cannot draw a MAC address", &error))?;
    // Locally administered, of one station.
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::NamedTempFile, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        (file, path)
    }

    fn drive(id: &str, root: bool, path: &str) -> Drive {
        Drive {
            drive_id: id.into(),
            is_root_device: root,
            path_on_host: Some(path.into()),
            ..Drive::default()
        }
    }

    fn ids(resources: &Resources) -> Vec<String> {
        resources.config().drives.iter().map(|drive| drive.drive_id.clone()).collect()
    }

    #[test]
    fn the_root_drive_comes_first_and_is_one() {
        let (_file, path) = file();
        let mut resources = Resources::default();
        resources.set_drive(drive("data", false, &path)).unwrap();
        resources.set_drive(drive("root", true, &path)).unwrap();
        assert_eq!(ids(&resources), ["root", "data"]);
        assert!(
            resources.set_drive(drive("other", true, &path)).unwrap_err().message.contains("already exists")
        );
        assert!(resources.set_drive(drive("data", true, &path)).is_err());
        resources.set_drive(drive("root", false, &path)).unwrap();
        resources.set_drive(drive("data", true, &path)).unwrap();
        assert_eq!(ids(&resources), ["data", "root"]);
        let error = resources.set_pmem(Pmem {
            id: "p".into(),
            path_on_host: path,
            root_device: true,
            ..Pmem::default()
        });
        assert!(error.unwrap_err().message.contains("as a block device"));
    }

    #[test]
    fn drives_without_a_usable_file_are_refused() {
        let mut resources = Resources::default();
        assert!(resources.set_drive(drive("a", false, "/missing")).is_err());
        assert!(resources.set_drive(drive("a", false, "/dev/null")).is_err());
        assert!(resources.set_drive(Drive { path_on_host: None, ..drive("a", false, "") }).is_err());
        let (_file, path) = file();
        assert!(resources.set_drive(Drive { socket: Some("s".into()), ..drive("a", false, &path) }).is_err());
        assert!(ids(&resources).is_empty());
        for number in 0..MAX_DEVICES {
            resources.set_drive(drive(&format!("d{number}"), false, &path)).unwrap();
        }
        assert!(resources.set_drive(drive("more", false, &path)).is_err());
        resources.set_drive(drive("d0", false, &path)).unwrap();
    }

    #[test]
    fn the_root_device_stands_in_the_kernels_words() {
        let (_file, path) = file();
        let mut resources = Resources::default();
        let boot = |args: Option<&str>| BootSource {
            kernel_image_path: path.clone(),
            initrd_path: None,
            boot_args: args.map(str::to_owned),
        };
        resources.set_boot_source(boot(None)).unwrap();
        assert_eq!(resources.command_line(), DEFAULT_BOOT_ARGS);
        resources.set_drive(drive("root", true, &path)).unwrap();
        resources.set_boot_source(boot(Some("quiet -- -x"))).unwrap();
        assert_eq!(resources.command_line(), "quiet root=/dev/vda rw -- -x");
        let partition =
            Drive { partuuid: Some("1-2".into()), is_read_only: Some(true), ..drive("root", true, &path) };
        resources.set_drive(partition).unwrap();
        assert_eq!(resources.command_line(), "quiet root=PARTUUID=1-2 ro -- -x");
        assert!(resources.set_boot_source(boot(Some("a\nb"))).is_err());
        assert!(resources.set_boot_source(boot(Some(&"x".repeat(layout::CMDLINE_MAX)))).is_err());
    }

    #[test]
    fn machines_stay_as_they_were_when_an_update_is_refused() {
        let mut resources = Resources::default();
        assert_eq!((resources.machine().vcpu_count, resources.machine().mem_size_mib), (1, 128));
        let update = |vcpus, mib| MachineUpdate {
            vcpu_count: Some(vcpus),
            mem_size_mib: Some(mib),
            ..MachineUpdate::default()
        };
        resources.set_machine(&update(2, 256)).unwrap();
        for (vcpus, mib) in [(0, 128), (33, 128), (1, 0), (1, u32::MAX)] {
            assert!(resources.set_machine(&update(vcpus, mib)).is_err());
        }
        assert!(resources.set_machine(&MachineUpdate { smt: Some(true), ..update(1, 128) }).is_err());
        resources.set_balloon(Balloon { amount_mib: 200, ..Balloon::default() }).unwrap();
        assert!(resources.set_machine(&update(1, 128)).is_err());
        assert!(resources.set_balloon(Balloon { amount_mib: 257, ..Balloon::default() }).is_err());
        assert_eq!((resources.machine().vcpu_count, resources.machine().mem_size_mib), (2, 256));
    }

    #[test]
    fn mac_addresses_are_six_bytes() {
        assert_eq!(parse_mac("06:00:AC:10:00:02").unwrap(), [6, 0, 0xac, 16, 0, 2]);
        for text in ["", "06", "06:00:ac:10:00", "06:00:ac:10:00:02:03", "6:0:ac:10:0:2", "+6:00:ac:10:00:02"]
        {
            assert!(parse_mac(text).is_err(), "{text}");
        }
        let mac = random_mac().unwrap();
        assert_eq!(mac[0] & 3, 2);
        assert_eq!(parse_mac(&mac_text(mac)).unwrap(), mac);
    }
}

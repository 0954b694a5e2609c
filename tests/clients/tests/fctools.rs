//! The crate `fctools`: a VMM that it spawns itself, and one that it has jailed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BalloonDevice, BootSource, CpuTemplate, CreateSnapshot, Drive, DriveIoEngine, EntropyDevice,
    LoggerSystem, MachineConfiguration, MemoryHotplugConfiguration, MetricsSystem, SnapshotType,
    UpdateBalloonDevice, UpdateBalloonStatistics, UpdateDrive, VsockDevice,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::snapshot::PrepareVmFromSnapshotOptions;
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::jailer::JailerArguments;
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::either::EitherVmmExecutor;
use fctools::vmm::executor::jailed::{FlatVirtualPathResolver, JailedVmmExecutor};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{CreatedResourceType, MovedResourceType, Resource, ResourceType};
use lighter_clients::{BOOT_ARGS, jailer, kernel, vmm};
use serde_json::json;

type Executor = EitherVmmExecutor<FlatVirtualPathResolver>;
type TestVm = Vm<Executor, DirectProcessSpawner, TokioRuntime>;
type Resources = ResourceSystem<DirectProcessSpawner, TokioRuntime>;

/// The socket is there by then, or the VMM did not start.
const PATIENCE: Duration = Duration::from_secs(20);
const MOVED: ResourceType = ResourceType::Moved(MovedResourceType::Copied);
const CREATED: ResourceType = ResourceType::Created(CreatedResourceType::File);

#[tokio::test]
async fn a_vm_lives_and_is_cloned() {
    let base = tempfile::tempdir().unwrap();
    let executor = |name: &str| {
        let socket = VmmApiSocket::Enabled(base.path().join(name));
        Executor::Unrestricted(UnrestrictedVmmExecutor::new(VmmArguments::new(socket)))
    };
    life(base.path(), base.path(), VmmOwnershipModel::Shared, executor).await;
}

#[tokio::test]
async fn a_jailed_vm_lives_and_is_cloned() {
    if std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) != 0) {
        eprintln!("skipped: it takes root to jail a program");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let executor = |name: &str| {
        let arguments = JailerArguments::new(name.to_owned().try_into().unwrap())
            .chroot_base_dir(base.path().join("jail"))
            .daemonize()
            .exec_in_new_pid_ns();
        let socket = VmmApiSocket::Enabled(PathBuf::from("/run/api.sock"));
        Executor::Jailed(JailedVmmExecutor::new(
            VmmArguments::new(socket),
            arguments,
            FlatVirtualPathResolver,
        ))
    };
    let owner = VmmOwnershipModel::Downgraded { uid: 71_236, gid: 71_236 };
    life(base.path(), Path::new("/run"), owner, executor).await;
}

/// Configures, starts, changes, saves and clones a VM, which finds the directory `own` wherever it runs.
async fn life(
    base: &Path,
    own: &Path,
    ownership_model: VmmOwnershipModel,
    executor: impl Fn(&str) -> Executor,
) {
    std::fs::write(base.join("disk"), vec![0; 1 << 20]).unwrap();
    let mut resources = Resources::new(DirectProcessSpawner, TokioRuntime, ownership_model);
    let (data, disk) = configuration(base, own, &mut resources);
    let configuration = VmConfiguration::New { init_method: InitMethod::ViaApiCalls, data };
    let installation = VmmInstallation::new(vmm(), jailer(), PathBuf::from("/none"));
    let mut vm = TestVm::prepare(executor("first"), resources, installation, configuration).await.unwrap();
    vm.start(PATIENCE).await.unwrap();
    assert_eq!(vm.get_state(), VmState::Running);
    assert!(!vm.get_info().await.unwrap().is_paused);
    assert!(!vm.get_firecracker_version().await.unwrap().is_empty());
    assert_eq!(vm.get_machine_configuration().await.unwrap().mem_size_mib, 64);
    vm.update_balloon_device(UpdateBalloonDevice { amount_mib: 1 }).await.unwrap();
    assert_eq!(vm.get_balloon_device().await.unwrap().amount_mib, 1);
    vm.update_balloon_statistics(UpdateBalloonStatistics { stats_polling_interval_s: 2 }).await.unwrap();
    assert_eq!(vm.get_balloon_statistics().await.unwrap().target_mib, 1);
    let memory = vm.get_memory_hotplug_status().await.unwrap();
    assert_eq!((memory.total_size_mib, memory.slot_size_mib, memory.plugged_size_mib), (128, 128, 0));
    assert_eq!(vm.get_balloon_free_page_hinting_run_status().await.unwrap().host_cmd, 0);
    let update = UpdateDrive { drive_id: "data".into(), block: Some(disk), rate_limiter: None };
    vm.update_drive(update).await.unwrap();
    vm.flush_metrics().await.unwrap();
    vm.create_mmds(json!({"name":"one"})).await.unwrap();
    vm.update_mmds(json!({"more":1})).await.unwrap();
    assert_eq!(vm.get_mmds_untyped().await.unwrap(), json!({"name":"one","more":1}));
    vm.pause().await.unwrap();
    assert!(vm.get_info().await.unwrap().is_paused);

    let system = vm.get_resource_system_mut();
    let mut produced = |name: &str| system.create_resource(own.join(name), ResourceType::Produced).unwrap();
    let snapshot_type = Some(SnapshotType::Full);
    let create = CreateSnapshot { snapshot_type, snapshot: produced("state"), mem_file: produced("memory") };
    let mut snapshot = vm.create_snapshot(create).await.unwrap();
    // The client makes no such files for a clone, and in a jail there are none.
    (snapshot.configuration_data.logger_system, snapshot.configuration_data.metrics_system) = (None, None);
    // What the first one listens on is in the way of the second, which is the same VM.
    let options = PrepareVmFromSnapshotOptions {
        executor: executor("second"),
        process_spawner: DirectProcessSpawner,
        runtime: TokioRuntime,
        moved_resource_type: MovedResourceType::Copied,
        ownership_model,
        track_dirty_pages: Some(true),
        resume_vm: Some(true),
        network_overrides: Vec::new(),
    };
    let mut clone = snapshot.prepare_vm(&mut vm, options).await.unwrap();
    let stop = |method| VmShutdownAction { method, timeout: Some(PATIENCE), graceful: false };
    vm.resume().await.unwrap();
    vm.shutdown([stop(VmShutdownMethod::PauseThenKill)]).await.unwrap();
    clone.start(PATIENCE).await.unwrap();
    assert!(!clone.get_info().await.unwrap().is_paused);
    clone.shutdown([stop(VmShutdownMethod::Kill)]).await.unwrap();
    clone.cleanup().await.unwrap();
    vm.cleanup().await.unwrap();
}

/// Everything that can be configured without a network, and the second drive.
fn configuration(base: &Path, own: &Path, resources: &mut Resources) -> (VmConfigurationData, Resource) {
    let mut resource = |path: PathBuf, kind: ResourceType| resources.create_resource(path, kind).unwrap();
    let disk = resource(base.join("disk"), MOVED);
    let data = VmConfigurationData {
        boot_source: BootSource {
            kernel_image: resource(kernel(), MOVED),
            boot_args: Some(BOOT_ARGS.to_owned()),
            initrd: None,
        },
        drives: vec![Drive {
            drive_id: "data".into(),
            is_root_device: false,
            cache_type: None,
            partuuid: None,
            is_read_only: Some(false),
            block: Some(disk.clone()),
            rate_limiter: None,
            io_engine: Some(DriveIoEngine::Async),
            socket: None,
        }],
        pmem_devices: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: 1,
            mem_size_mib: 64,
            smt: None,
            track_dirty_pages: Some(true),
            huge_pages: None,
        },
        cpu_template: Some(CpuTemplate::Untyped(json!({"kvm_capabilities":["0"],"msr_modifiers":[]}))),
        network_interfaces: Vec::new(),
        balloon_device: Some(BalloonDevice {
            amount_mib: 0,
            deflate_on_oom: true,
            stats_polling_interval_s: Some(1),
            free_page_reporting: Some(true),
            free_page_hinting: Some(true),
        }),
        vsock_device: Some(VsockDevice {
            guest_cid: 3,
            uds: resource(own.join("vsock"), ResourceType::Produced),
        }),
        logger_system: Some(LoggerSystem {
            logs: Some(resource(own.join("log"), CREATED)),
            ..LoggerSystem::default()
        }),
        metrics_system: Some(MetricsSystem { metrics: resource(own.join("metrics"), CREATED) }),
        memory_hotplug_configuration: Some(MemoryHotplugConfiguration {
            total_size_mib: 128,
            block_size_mib: None,
            slot_size_mib: None,
        }),
        mmds_configuration: None,
        entropy_device: Some(EntropyDevice::default()),
    };
    (data, disk)
}

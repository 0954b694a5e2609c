//! The crate `firepilot`.

use firepilot::builder::drive::DriveBuilder;
use firepilot::builder::executor::FirecrackerExecutorBuilder;
use firepilot::builder::kernel::KernelBuilder;
use firepilot::builder::{Builder, Configuration};
use firepilot::machine::Machine;
use lighter_clients::{BOOT_ARGS, kernel, vmm};

#[tokio::test]
async fn a_machine_is_created_started_paused_resumed_and_killed() {
    let base = tempfile::tempdir().unwrap();
    let disk = base.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let kernel = KernelBuilder::new()
        .with_kernel_image_path(kernel().to_str().unwrap().to_owned())
        .with_boot_args(BOOT_ARGS.to_owned())
        .try_build()
        .unwrap();
    let drive = DriveBuilder::new()
        .with_drive_id("rootfs".to_owned())
        .with_path_on_host(disk)
        .as_read_only()
        .as_root_device()
        .try_build()
        .unwrap();
    let executor = FirecrackerExecutorBuilder::new()
        .with_chroot(base.path().join("machines").to_str().unwrap().to_owned())
        .with_exec_binary(vmm())
        .try_build()
        .unwrap();
    let configuration =
        Configuration::new("pilot".to_owned()).with_kernel(kernel).with_executor(executor).with_drive(drive);
    let mut machine = Machine::new();
    machine.create(configuration).await.unwrap();
    machine.start().await.unwrap();
    machine.pause().await.unwrap();
    machine.resume().await.unwrap();
    machine.stop().await.unwrap();
    machine.kill().await.unwrap();
}

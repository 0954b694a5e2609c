//! The crate `fc-sdk`, whose types are generated from Firecracker's own API description.

use std::time::Duration;

use fc_sdk::process::FirecrackerProcessBuilder;
use lighter_clients::{BOOT_ARGS, kernel, vmm};
use serde_json::json;

/// What the generated types are read from.
fn of<T: for<'de> serde::Deserialize<'de>>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("the client knows these fields")
}

#[tokio::test]
async fn a_vm_is_configured_run_saved_and_restored() {
    let base = tempfile::tempdir().unwrap();
    let path = |name: &str| base.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("disk"), vec![0; 1 << 20]).unwrap();
    std::fs::write(path("other disk"), vec![0; 2 << 20]).unwrap();
    let builder = FirecrackerProcessBuilder::new(vmm(), path("first.sock")).id("sdk-1").boot_timer(true);
    let mut process = builder.log_path(path("log")).log_level("Debug").spawn().await.unwrap();
    let vm = process
        .vm_builder()
        .boot_source(of(json!({"kernel_image_path":kernel(),"boot_args":BOOT_ARGS})))
        .machine_config(of(json!({"vcpu_count":1,"mem_size_mib":64,"track_dirty_pages":true})))
        .drive(of(json!({"drive_id":"data","is_root_device":false,"path_on_host":path("disk")})))
        .vsock(of(json!({"guest_cid":3,"uds_path":path("vsock")})))
        .balloon(of(json!({"amount_mib":0,"deflate_on_oom":true})))
        .entropy(of(json!({})))
        .serial(of(json!({"serial_out_path":path("console")})))
        .metrics(of(json!({"metrics_path":path("metrics")})))
        .mmds_data(of(json!({"name":"one"})))
        .start()
        .await
        .unwrap();
    assert_eq!(vm.describe().await.unwrap().id, "sdk-1");
    assert!(!vm.version().await.unwrap().firecracker_version.is_empty());
    assert_eq!(vm.config().await.unwrap().drives.len(), 1);
    assert_eq!(vm.balloon_config().await.unwrap().amount_mib, 0);
    vm.update_balloon(1).await.unwrap();
    assert_eq!(vm.balloon_stats().await.unwrap().target_mib, 1);
    vm.flush_metrics().await.unwrap();
    vm.patch_mmds(of(json!({"more":1}))).await.unwrap();
    assert_eq!(serde_json::Value::from(vm.get_mmds().await.unwrap()), json!({"name":"one","more":1}));
    vm.update_drive("data", of(json!({"drive_id":"data","path_on_host":path("other disk")}))).await.unwrap();
    assert!(
        vm.update_drive("none", of(json!({"drive_id":"none","path_on_host":path("disk")}))).await.is_err()
    );
    vm.pause().await.unwrap();
    vm.create_snapshot(&path("state"), &path("memory")).await.unwrap();
    vm.resume().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    vm.pause().await.unwrap();
    vm.create_diff_snapshot(&path("state"), &path("memory")).await.unwrap();
    process.kill().await.unwrap();

    let mut second = FirecrackerProcessBuilder::new(vmm(), path("second.sock")).spawn().await.unwrap();
    let load = json!({"snapshot_path":path("state"),"mem_file_path":path("memory"),"resume_vm":true});
    let vm = fc_sdk::restore(second.socket_path(), of(load)).await.unwrap();
    assert_eq!(vm.machine_configuration().await.unwrap().mem_size_mib, 64);
    assert!(second.wait().await.unwrap().unwrap().success());
}

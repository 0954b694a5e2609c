//! A real guest through the API, from its configuration to its power-off in another process: a root drive, a network
//! without a TAP, metadata with tokens, another medium, a snapshot and its clone.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use support::http::Api;
use support::linux::{self, Bench, PATIENCE};

fn main() -> ExitCode {
    let tests: Vec<(&str, fn())> =
        vec![("a_guest_lives_through_the_api_and_ends_in_a_clone", from_configuration_to_power_off)];
    support::main_lacking(tests, linux::kernel().is_none().then(|| "no guest kernel".to_owned()))
}

/// The rest of the line of the console that begins with `start`.
fn wait_for(console: &Path, start: &str) -> String {
    let begin = Instant::now();
    loop {
        let text = std::fs::read_to_string(console).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        if let Some(rest) = whole.lines().find_map(|line| line.strip_prefix(start)) {
            return rest.trim().to_owned();
        }
        assert!(begin.elapsed() < PATIENCE, "no {start:?}; the console said:\n{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the guest has `mib` MiB of the memory that can be plugged.
fn plug(api: &Api, mib: u32) {
    api.done("PATCH", "/hotplug/memory", &json!({ "requested_size_mib": mib }));
    let begin = Instant::now();
    while api.get("/hotplug/memory")["plugged_size_mib"] != mib {
        assert!(begin.elapsed() < PATIENCE, "{}", api.get("/hotplug/memory"));
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{mib} MiB plugged after {:?}", begin.elapsed());
}

/// Lets the guest name its free pages, which takes memory of the VMM away.
fn hint(api: &Api) {
    api.done("PATCH", "/balloon/hinting/start", &json!({"acknowledge_on_stop":false}));
    let begin = Instant::now();
    // It ends with STOP.
    while api.get("/balloon/hinting/status") != json!({"host_cmd":2,"guest_cmd":0}) {
        assert!(begin.elapsed() < PATIENCE, "{}", api.get("/balloon/hinting/status"));
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("free pages named after {:?}", begin.elapsed());
    api.done("PATCH", "/balloon/hinting/stop", &json!({}));
    assert_eq!(api.get("/balloon/hinting/status")["host_cmd"], 1);
}

fn from_configuration_to_power_off() {
    let bench = Bench::new("orchestrated");
    let file = |name: &str| bench.path(name).to_str().unwrap().to_owned();
    std::fs::write(file("small"), [0; 8 * 512]).unwrap();
    std::fs::write(file("large"), [0; 16 * 512]).unwrap();
    // The other ends of the wires, where nobody reads.
    let _wires = ["wire", "other wire"].map(|name| UnixListener::bind(file(name)).unwrap());
    let first = Api::start(&["--id", "first"]);
    first.done("PUT", "/machine-config", &json!({"vcpu_count":1,"mem_size_mib":64}));
    first.done(
        "PUT",
        "/boot-source",
        &json!({
            "kernel_image_path": linux::kernel().unwrap(),
            "boot_args": "console=ttyS0 quiet rootfstype=erofs init=/init panic=-1 reboot=k",
        }),
    );
    let data =
        json!({"drive_id":"data","is_root_device":false,"path_on_host":file("small"),"io_engine":"Async"});
    first.done("PUT", "/drives/data", &data);
    let root =
        json!({"drive_id":"root","is_root_device":true,"is_read_only":true,"path_on_host":file("agent")});
    first.done("PUT", "/drives/root", &root);
    let wire = format!("unix:{}", file("wire"));
    let net = json!({"iface_id":"eth0","host_dev_name":wire,"guest_mac":"06:00:00:00:00:01"});
    first.done("PUT", "/network-interfaces/eth0", &net);
    first.refused("PUT", "/mmds/config", &json!({"version":"V2","network_interfaces":["eth1"]}));
    first.done("PUT", "/mmds/config", &json!({"version":"V2","network_interfaces":["eth0"]}));
    first.done("PUT", "/mmds", &json!({"name":"one"}));
    first.done("PUT", "/vsock", &json!({"guest_cid":3,"uds_path":file("vsock")}));
    first.done(
        "PUT",
        "/balloon",
        &json!({
            "amount_mib":0,"deflate_on_oom":true,"stats_polling_interval_s":1,"free_page_hinting":true
        }),
    );
    first.done("PUT", "/hotplug/memory", &json!({"total_size_mib":128}));
    first.done("PUT", "/serial", &json!({"serial_out_path":file("console")}));
    first.done("PUT", "/actions", &json!({"action_type":"InstanceStart"}));
    let console = bench.path("console");
    assert_eq!(wait_for(&console, "without a token:"), "None");
    assert_eq!(wait_for(&console, "name:"), "one");
    assert_eq!(wait_for(&console, "medium:"), "8");
    first.done("PATCH", "/drives/data", &json!({"drive_id":"data","path_on_host":file("large")}));
    assert_eq!(wait_for(&console, "new medium:"), "16");
    let one_a_second = json!({"ops":{"size":1,"refill_time":1000}});
    first.done("PATCH", "/drives/data", &json!({"drive_id":"data","rate_limiter":one_a_second}));
    first.done(
        "PATCH",
        "/drives/data",
        &json!({"drive_id":"data","rate_limiter":{"bandwidth":{"size":9,"refill_time":8}}}),
    );
    let limits = &first.get("/vm/config")["drives"][1]["rate_limiter"];
    assert_eq!((&limits["ops"]["size"], &limits["bandwidth"]["size"]), (&json!(1), &json!(9)), "{limits}");
    first.refused("PATCH", "/drives/data", &json!({"drive_id":"data"}));
    first.done(
        "PATCH",
        "/network-interfaces/eth0",
        // No limit that this guest feels: it has much to ask still.
        &json!({"iface_id":"eth0","tx_rate_limiter":{"ops":{"size":1000,"refill_time":1000}}}),
    );
    first.refused(
        "PATCH",
        "/network-interfaces/eth9",
        &json!({"iface_id":"eth9","tx_rate_limiter":one_a_second}),
    );
    let statistics = first.get("/balloon/statistics");
    assert_eq!(statistics["target_mib"], 0);
    let total = statistics["total_memory"].as_u64().unwrap();
    assert!(total > 32 << 20 && total < 64 << 20, "{statistics}");
    first.refused("PATCH", "/balloon/statistics", &json!({"stats_polling_interval_s":0}));
    first.done("PATCH", "/balloon/statistics", &json!({"stats_polling_interval_s":2}));
    plug(&first, 128);
    let begin = Instant::now();
    while first.get("/balloon/statistics")["total_memory"].as_u64().unwrap() < total + (120 << 20) {
        assert!(begin.elapsed() < PATIENCE, "{}", first.get("/balloon/statistics"));
        std::thread::sleep(Duration::from_millis(50));
    }
    first.refused("PATCH", "/hotplug/memory", &json!({"requested_size_mib":3}));
    hint(&first);
    plug(&first, 64);
    first.done("PATCH", "/vm", &json!({"state":"Paused"}));
    let paths = json!({"snapshot_path":file("state"),"mem_file_path":file("memory")});
    first.done("PUT", "/snapshot/create", &paths);
    drop(first);

    let mut second = Api::start(&["--id", "second"]);
    second.done("PUT", "/serial", &json!({"serial_out_path":file("other console")}));
    // The store is no part of a snapshot.
    second.done("PUT", "/mmds", &json!({"name":"one"}));
    second.done(
        "PUT",
        "/snapshot/load",
        &json!({
            "snapshot_path": file("state"),
            "mem_backend": {"backend_type":"File","backend_path":file("memory")},
            "network_overrides": [
                {"iface_id":"eth0","host_dev_name":format!("unix:{}", file("other wire"))},
            ],
            "vsock_override": {"uds_path":file("other vsock")},
        }),
    );
    assert_eq!(second.get("/")["state"], "Paused");
    assert_eq!(second.get("/vm/config")["vsock"]["uds_path"], json!(file("other vsock")));
    assert_eq!(second.get("/hotplug/memory")["plugged_size_mib"], 64);
    second.done("PATCH", "/vm", &json!({"state":"Resumed"}));
    // Not all of it, which the guest would take down for long.
    plug(&second, 32);
    second.done("PUT", "/mmds", &json!({"name":"two"}));
    assert_eq!(wait_for(&bench.path("other console"), "new name:"), "two");
    assert_eq!(second.wait().code(), Some(0), "{}", second.output());
}

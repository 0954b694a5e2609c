//! Every call in every phase, and bodies that are not what they should be.

use super::*;
use crate::Phase;

const BEFORE: &[Phase] = &[Phase::BeforeStart];
const STARTED: &[Phase] = &[Phase::Started];
const BOTH: &[Phase] = &[Phase::BeforeStart, Phase::Started];

/// Method, path, a body that is right, and the phases in which Firecracker takes it.
const CALLS: &[(Method, &str, &str, &[Phase])] = &[
    (Method::Get, "/", "", BOTH),
    (Method::Get, "/version", "", BOTH),
    (Method::Get, "/vm/config", "", BOTH),
    (Method::Get, "/machine-config", "", BOTH),
    (Method::Get, "/balloon", "", BOTH),
    (Method::Get, "/balloon/statistics", "", STARTED),
    (Method::Get, "/balloon/hinting/status", "", STARTED),
    (Method::Get, "/mmds", "", BOTH),
    (Method::Get, "/hotplug/memory", "", STARTED),
    (Method::Put, "/boot-source", r#"{"kernel_image_path":"k"}"#, BEFORE),
    (Method::Put, "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#, BEFORE),
    (Method::Patch, "/machine-config", r#"{"vcpu_count":1}"#, BEFORE),
    (Method::Put, "/cpu-config", r#"{"msr_modifiers":[]}"#, BEFORE),
    (Method::Put, "/drives/a", r#"{"drive_id":"a","is_root_device":true,"path_on_host":"p"}"#, BEFORE),
    (Method::Patch, "/drives/a", r#"{"drive_id":"a","path_on_host":"p"}"#, STARTED),
    (Method::Delete, "/drives/a", "", STARTED),
    (Method::Put, "/network-interfaces/a", r#"{"iface_id":"a","host_dev_name":"tap0"}"#, BEFORE),
    (Method::Patch, "/network-interfaces/a", r#"{"iface_id":"a"}"#, STARTED),
    (Method::Delete, "/network-interfaces/a", "", STARTED),
    (Method::Put, "/pmem/a", r#"{"id":"a","path_on_host":"p"}"#, BEFORE),
    (Method::Patch, "/pmem/a", r#"{"id":"a"}"#, STARTED),
    (Method::Delete, "/pmem/a", "", STARTED),
    (Method::Put, "/vsock", r#"{"guest_cid":3,"uds_path":"p"}"#, BEFORE),
    (Method::Put, "/entropy", "{}", BEFORE),
    (Method::Put, "/serial", r#"{"serial_out_path":"p"}"#, BEFORE),
    (Method::Put, "/balloon", r#"{"amount_mib":1,"deflate_on_oom":true}"#, BEFORE),
    (Method::Patch, "/balloon", r#"{"amount_mib":1}"#, STARTED),
    (Method::Patch, "/balloon/statistics", r#"{"stats_polling_interval_s":1}"#, STARTED),
    (Method::Patch, "/balloon/hinting/start", "", STARTED),
    (Method::Patch, "/balloon/hinting/start", r#"{"acknowledge_on_stop":false}"#, STARTED),
    (Method::Patch, "/balloon/hinting/stop", "", STARTED),
    (Method::Put, "/hotplug/memory", r#"{"total_size_mib":1024}"#, BEFORE),
    (Method::Patch, "/hotplug/memory", r#"{"requested_size_mib":1024}"#, STARTED),
    (Method::Put, "/mmds", r#"{"a":1}"#, BOTH),
    (Method::Patch, "/mmds", r#"{"a":1}"#, BOTH),
    (Method::Put, "/mmds/config", r#"{"network_interfaces":["a"],"version":"V2"}"#, BEFORE),
    (Method::Put, "/logger", r#"{"log_path":"p","level":"Warning","show_level":true}"#, BEFORE),
    (Method::Put, "/metrics", r#"{"metrics_path":"p"}"#, BEFORE),
    (Method::Put, "/actions", r#"{"action_type":"InstanceStart"}"#, BEFORE),
    (Method::Put, "/actions", r#"{"action_type":"SendCtrlAltDel"}"#, STARTED),
    (Method::Put, "/actions", r#"{"action_type":"FlushMetrics"}"#, STARTED),
    (Method::Patch, "/vm", r#"{"state":"Paused"}"#, STARTED),
    (Method::Patch, "/vm", r#"{"state":"Resumed"}"#, STARTED),
    (Method::Put, "/snapshot/create", r#"{"snapshot_path":"s","mem_file_path":"m"}"#, STARTED),
    (
        Method::Put,
        "/snapshot/load",
        r#"{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m"}}"#,
        BEFORE,
    ),
];

fn call(method: Method, path: &str, body: &str) -> Result<Routed, Fault> {
    route(&Request { method, path: path.into(), body: body.as_bytes().to_vec(), close: false })
}

fn fault(method: Method, path: &str, body: &str) -> String {
    call(method, path, body).expect_err(path).message
}

#[test]
fn every_call_is_taken_in_its_phases_and_in_no_other() {
    for (method, path, body, phases) in CALLS {
        let routed = call(*method, path, body).unwrap_or_else(|fault| panic!("{path}: {fault}"));
        for phase in BOTH {
            let taken = routed.call.check(*phase);
            assert_eq!(taken.is_ok(), phases.contains(phase), "{method:?} {path} {phase:?}");
        }
    }
}

#[test]
fn unknown_fields_are_refused_by_name() {
    for (method, path, body, _) in CALLS.iter().filter(|(_, path, body, _)| {
        // These two take any object.
        !body.is_empty() && !path.starts_with("/mmds") && !path.starts_with("/cpu")
    }) {
        let mut fields: serde_json::Value = serde_json::from_str(body).unwrap();
        fields["surplus"] = 1.into();
        let message = fault(*method, path, &fields.to_string());
        assert!(message.contains("unknown field `surplus`"), "{path}: {message}");
    }
}

#[test]
fn fields_of_the_wrong_type_are_refused() {
    for (method, path, body, _) in
        CALLS.iter().filter(|(_, path, ..)| !matches!(*path, "/mmds" | "/cpu-config"))
    {
        let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(body) else { continue };
        for name in fields.keys() {
            let mut wrong = fields.clone();
            wrong[name] = serde_json::json!({ "not": ["this"] });
            let message = fault(*method, path, &serde_json::Value::Object(wrong).to_string());
            assert!(message.starts_with("An error occurred when deserializing the json body"), "{message}");
        }
    }
}

#[test]
fn fields_that_are_missing_or_there_twice_are_refused() {
    let message = fault(Method::Put, "/boot-source", "{}");
    assert!(message.contains("missing field `kernel_image_path`"), "{message}");
    let message = fault(Method::Put, "/boot-source", r#"{"kernel_image_path":"a","kernel_image_path":"b"}"#);
    assert!(message.contains("duplicate field"), "{message}");
    for body in ["{", "[]", "null", "1", "\"x\"", "{}{}", "\u{0}"] {
        assert!(call(Method::Put, "/machine-config", body).is_err(), "{body:?}");
    }
    let deep = "[".repeat(20_000);
    assert!(fault(Method::Put, "/mmds", &deep).contains("recursion limit"));
}

#[test]
fn numbers_out_of_range_are_refused() {
    for vcpus in ["-1", "256", "1.5", "\"1\""] {
        let body = format!(r#"{{"vcpu_count":{vcpus},"mem_size_mib":128}}"#);
        assert!(call(Method::Put, "/machine-config", &body).is_err(), "{vcpus}");
    }
}

#[test]
fn paths_that_are_none_are_refused_by_name() {
    assert_eq!(
        fault(Method::Get, "/nothing/here", ""),
        "Invalid request method and/or path: GET nothing/here."
    );
    assert_eq!(fault(Method::Put, "/version", "{}"), "Invalid request method and/or path: PUT version.");
    assert_eq!(
        fault(Method::Put, "/snapshot/take", "{}"),
        "Invalid request method and/or path: PUT snapshot/take."
    );
    assert_eq!(fault(Method::Delete, "/vsock", ""), "Invalid request method and/or path: DELETE vsock.");
    assert_eq!(fault(Method::Get, "/balloon/x", ""), "Unrecognized GET request path `x`.");
}

#[test]
fn bodies_are_where_they_belong() {
    assert_eq!(fault(Method::Get, "/version", "{}"), "GET request cannot have a body.");
    assert_eq!(fault(Method::Put, "/actions", ""), "Empty PUT request.");
    assert_eq!(fault(Method::Patch, "/vm", ""), "Empty PATCH request.");
    assert_eq!(fault(Method::Patch, "/machine-config", "{}"), "Empty PATCH request.");
}

#[test]
fn ids_are_words_and_agree() {
    let drive = |path: &str, id: &str| {
        fault(Method::Put, path, &format!(r#"{{"drive_id":"{id}","is_root_device":false}}"#))
    };
    assert_eq!(drive("/drives", "a"), "The ID cannot be empty.");
    assert_eq!(
        drive("/drives/a-b", "a-b"),
        "API Resource IDs can only contain alphanumeric characters and underscores."
    );
    assert_eq!(drive("/drives/a", "b"), "The id from the path does not match the id from the body!");
    assert_eq!(
        fault(Method::Put, "/network-interfaces/a", r#"{"iface_id":"b","host_dev_name":"t"}"#),
        "The id from the path [a] does not match the id from the body [b]!"
    );
}

#[test]
fn old_ways_work_and_are_called_deprecated() {
    let old = [
        (Method::Put, "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":1,"cpu_template":"None"}"#),
        (Method::Put, "/vsock", r#"{"vsock_id":"v","guest_cid":3,"uds_path":"p"}"#),
        (Method::Put, "/mmds/config", r#"{"network_interfaces":["a"]}"#),
        (Method::Put, "/snapshot/load", r#"{"snapshot_path":"s","mem_file_path":"m"}"#),
    ];
    for (method, path, body) in old {
        assert!(call(method, path, body).unwrap().deprecated, "{path}");
    }
    assert!(CALLS.iter().all(|(method, path, body, _)| !call(*method, path, body).unwrap().deprecated));
}

#[test]
fn a_snapshots_memory_comes_from_one_place() {
    let both = r#"{"snapshot_path":"s","mem_file_path":"m","mem_backend":{"backend_type":"Uffd","backend_path":"m"}}"#;
    assert!(fault(Method::Put, "/snapshot/load", both).contains("exclusively is required"));
    assert!(fault(Method::Put, "/snapshot/load", r#"{"snapshot_path":"s"}"#).contains("is required"));
}

/// What the fuzz target `api` does, on the stable toolchain: a fixed sequence, so that a failure comes again.
#[test]
fn changed_requests_are_taken_or_refused_in_json() {
    use crate::http::{Parsed, Response, parse};
    let mut random = 1_u64;
    let mut draw = move |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below.max(1)
    };
    let (mut taken, mut refused) = (0, 0);
    for (method, path, body, _) in CALLS {
        let length = body.len();
        let request = format!("{} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}", method.name());
        for _ in 0..500 {
            let mut bytes = request.clone().into_bytes();
            for _ in 0..draw(4) {
                let at = draw(bytes.len());
                match draw(4) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, draw(256) as u8),
                    _ => bytes
                        .get_mut(at)
                        .into_iter()
                        .for_each(|byte| *byte = [0, 0xff, b'"', b'{', b' '][draw(5)]),
                }
            }
            let answer = match parse(&bytes, 51_200) {
                Ok(Parsed::Partial { .. }) => continue,
                Ok(Parsed::Complete(request, _)) => match route(&request) {
                    Ok(_) => {
                        taken += 1;
                        continue;
                    }
                    Err(fault) => Response::from(fault),
                },
                Err(error) => Response::from(&error),
            };
            refused += 1;
            let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            assert!(body["fault_message"].is_string());
        }
    }
    assert!(taken > 1000 && refused > 1000, "{taken} {refused}");
}

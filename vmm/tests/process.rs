//! The VMM process's protocol: configuration in, events out, signals.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

use support::{config, kernel};
use vmm::config::{VmEvent, VmExit};
use vmm::process::ProcessArgs;

kvm_tests!(
    a_run_is_reported_from_start_to_exit,
    sigterm_stops_a_running_guest,
    failures_are_one_event_with_all_causes,
);

guest!(power_off: "nop");
guest!(forever: "2: jmp 2b");

/// Runs `process::run` on a thread with `config`; gives what it reports.
fn start(config: &str) -> (JoinHandle<i32>, impl Iterator<Item = VmEvent> + use<>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(config.as_bytes()).unwrap();
    file.rewind().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let (config_fd, event_fd) = (file.into_raw_fd(), writer.into_raw_fd());
    // A filter would be this process's own.
    let args = ProcessArgs { config_fd, event_fd, parent: None, cage: None, no_seccomp: true };
    let thread = std::thread::spawn(move || vmm::process::run(&args));
    let reader = BufReader::new(File::from(std::os::fd::OwnedFd::from(reader)));
    (thread, reader.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()))
}

fn a_run_is_reported_from_start_to_exit() {
    let kernel = kernel(power_off);
    let (thread, events) = start(&serde_json::to_string(&config(&kernel, 1)).unwrap());
    let events: Vec<_> = events.collect();
    let [VmEvent::Started { process_start_ns, built_ns, first_run_ns, .. }, end] = &events[..] else {
        panic!("{events:?}");
    };
    assert!(process_start_ns < built_ns && built_ns < first_run_ns);
    assert_eq!(*end, VmEvent::Exited(VmExit::PowerOff));
    assert_eq!(thread.join().unwrap(), vmm::process::EXIT_OK);
}

fn sigterm_stops_a_running_guest() {
    let kernel = kernel(forever);
    let (thread, mut events) = start(&serde_json::to_string(&config(&kernel, 2)).unwrap());
    assert!(matches!(events.next(), Some(VmEvent::Started { .. })));
    // SAFETY: the thread has not been joined, so its ID is valid; it blocks the signal and reads it.
    assert_eq!(unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGTERM) }, 0);
    assert_eq!(events.next(), Some(VmEvent::Exited(VmExit::Stopped)));
    assert_eq!(thread.join().unwrap(), vmm::process::EXIT_OK);
}

fn failures_are_one_event_with_all_causes() {
    let failure = |text: &str| {
        let (thread, events) = start(text);
        let events: Vec<_> = events.collect();
        assert_eq!(thread.join().unwrap(), vmm::process::EXIT_FAILED);
        match &events[..] {
            [VmEvent::Failed { message }] => message.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert!(failure("{").starts_with("the configuration is invalid: "));
    assert!(failure(r#"{"vcpus":1,"mem_size_mib":32,"kernel":{"path":"/x"},"typo":1}"#).contains("typo"));
    let mut script = tempfile::NamedTempFile::new().unwrap();
    script.write_all(b"#!/bin/sh\n").unwrap();
    let message = failure(&serde_json::to_string(&config(&script, 1)).unwrap());
    assert!(message.starts_with(&format!("cannot boot {}: it is a script", script.path().display())));
    let message = failure(r#"{"vcpus":1,"mem_size_mib":32,"kernel":{"path":"/missing"}}"#);
    assert_eq!(message, "cannot open the kernel /missing: No such file or directory (os error 2)");
}

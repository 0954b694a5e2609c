//! Network namespaces of the tests: the host's own network is never touched.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::image::{busybox_reference, run};
use crate::lighter::{GUEST_DEADLINE, Installation, binary, finish};

/// A network namespace, removed on drop.
pub struct Namespace {
    /// As `ip netns` knows it.
    pub name: String,
}

impl Namespace {
    /// A new one, with its loopback interface up.
    pub fn new() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Namespace { name };
        namespace.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// A command inside the namespace.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(args);
        command
    }

    /// Runs a command inside the namespace, which must succeed.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        run(&mut self.command(args))
    }

    /// `lighter run` with a bridge, inside the namespace.
    pub fn guest(
        &self,
        installation: &Installation,
        options: &[&str],
        script: &str,
    ) -> anyhow::Result<Child> {
        let image = busybox_reference()?;
        let mut args = vec!["run", "--rm"];
        if !options.contains(&"--network") {
            args.extend(["--network", "bridge"]);
        }
        args.extend(options);
        args.extend([image.as_str(), "sh", "-c", script]);
        self.lighter(installation, &args).stdin(Stdio::piped()).spawn().context("cannot run ip netns exec")
    }

    /// `lighter ARGS…` inside the namespace, not yet started.
    pub fn lighter(&self, installation: &Installation, args: &[&str]) -> Command {
        let lighter = binary().display().to_string();
        let mut command = self.command(&[&[lighter.as_str()], args].concat());
        command
            .env("LIGHTER_ROOT", installation.root())
            .env("LIGHTER_RUN", installation.run_directory())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `lighter ARGS…` inside the namespace, which must succeed, and gives its stdout.
    pub fn stdout(&self, installation: &Installation, args: &[&str]) -> anyhow::Result<String> {
        let child = self.lighter(installation, args).spawn().context("cannot run ip netns exec")?;
        let output = finish(child, GUEST_DEADLINE)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lighter {args:?} ended with {}: {stdout}{stderr}", output.status);
        Ok(stdout)
    }

    /// A way out, behind which there is nobody, and this address of the namespace's own on it.
    pub fn add_wire(&self, address: &str) -> anyhow::Result<()> {
        self.run(&["ip", "link", "add", "wire", "type", "bridge"])?;
        self.run(&["ip", "addr", "add", address, "dev", "wire"])?;
        self.run(&["ip", "link", "set", "wire", "up"])?;
        self.run(&["ip", "route", "add", "default", "via", "203.0.113.1", "dev", "wire", "onlink"]).map(drop)
    }

    /// Does `work` in a thread inside the namespace.
    pub fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<T>>> {
        let namespace = File::open(format!("/run/netns/{}", self.name)).context("no network namespace")?;
        Ok(std::thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).context("cannot enter the namespace")?;
            work()
        }))
    }

    /// Interfaces and nftables rules, to compare before and after.
    pub fn inventory(&self) -> anyhow::Result<String> {
        Ok(self.run(&["ip", "-o", "link"])? + &self.run(&["nft", "list", "ruleset"])?)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

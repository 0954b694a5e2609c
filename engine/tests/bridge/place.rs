//! An installation in a network namespace of this thread, which the end of the thread removes.

use std::process::Command;

use anyhow::Context;
use engine::container::id::ContainerId;
use engine::dirs::Dirs;
use engine::network::definition::{Definition, NewNetwork};
use engine::network::{Attachment, NetworkError, NetworkMode, NetworkSpec, Networks, Request};
use lighter_tests::image::run;
use rustix::thread::UnshareFlags;

pub struct Place {
    pub networks: Networks,
    pub dirs: Dirs,
    pub base: tempfile::TempDir,
}

impl Place {
    pub fn new() -> anyhow::Result<Self> {
        // SAFETY: only this thread's network namespace changes, nothing that others share with it.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        let base = tempfile::tempdir()?;
        let path = |name: &str| base.path().join(name);
        let dirs = Dirs { data: path("data"), run: path("run"), cache: path("cache") };
        dirs.create()?;
        Ok(Place { networks: Networks::here(&dirs)?, dirs, base })
    }

    /// A container on the default bridge.
    pub fn attach(&self) -> Result<Attachment, NetworkError> {
        self.attach_as(&NetworkSpec { mode: NetworkMode::bridge("bridge"), ..NetworkSpec::default() })
    }

    pub fn attach_as(&self, spec: &NetworkSpec) -> Result<Attachment, NetworkError> {
        let id = ContainerId::random();
        self.networks.attach(&Request { id: &id, name: "barge", hostname: id.as_str(), spec })
    }

    /// A user-defined network.
    pub fn network(&self, name: &str, ipv6: bool) -> anyhow::Result<Definition> {
        let new = NewNetwork { name: name.into(), ipv6, ..NewNetwork::default() };
        self.networks.definitions().create(new, 0).context("no network")
    }
}

/// Interfaces, rules and switches, to compare before and after.
pub fn inventory() -> anyhow::Result<String> {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let forward = read("/proc/sys/net/ipv4/ip_forward")?;
    let forward6 = read("/proc/sys/net/ipv6/conf/all/forwarding")?;
    let routers = read("/proc/sys/net/ipv6/conf/lo/accept_ra")?;
    Ok(run(Command::new("ip").args(["-o", "link"]))?
        + &run(Command::new("nft").args(["list", "ruleset"]))?
        + &format!("forward {forward}\nforward6 {forward6}\naccept_ra {routers}\n"))
}

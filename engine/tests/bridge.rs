//! The bridge in a network namespace of the test's own: made by the first container, removed with the last, and
//! whatever a crash left is removed by a sweep.

use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use engine::container::id::ContainerId;
use engine::dirs::Dirs;
use engine::network::{Attachment, Network, NetworkError};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::run;
use rustix::thread::UnshareFlags;

const NEEDS: &[Need] = &[Need::Root, Need::Program("ip"), Need::Program("nft")];

fn main() -> ExitCode {
    run_tests(vec![
        test("the_bridge_lives_from_the_first_container_to_the_last", NEEDS, first_to_last),
        test("subnets_that_the_host_uses_are_avoided", NEEDS, used_subnet),
        test("a_sweep_removes_what_a_crash_left", NEEDS, leftovers),
        test("forwarding_that_was_on_stays_on", NEEDS, forwarding),
    ])
}

/// A network of its own in a network namespace of this thread, which the end of the thread removes.
struct Place {
    network: Network,
    _base: tempfile::TempDir,
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        // SAFETY: only this thread's network namespace changes, nothing that others share with it.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        let base = tempfile::tempdir()?;
        let path = |name: &str| base.path().join(name);
        let dirs = Dirs { data: path("data"), run: path("run"), cache: path("cache") };
        dirs.create()?;
        Ok(Place { network: Network::here(&dirs)?, _base: base })
    }

    fn attach(&self) -> Result<Attachment, NetworkError> {
        self.network.attach(&ContainerId::random(), &[])
    }
}

fn inventory() -> anyhow::Result<String> {
    Ok(run(Command::new("ip").args(["-o", "link"]))?
        + &run(Command::new("nft").args(["list", "ruleset"]))?
        + &std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?)
}

fn first_to_last() -> anyhow::Result<()> {
    let place = Place::new()?;
    let before = inventory()?;
    let first = place.attach()?;
    let second = place.attach()?;
    ensure!(first.plan.ipv4 != second.plan.ipv4 && first.mac != second.mac);
    ensure!(first.plan.gateway_v4 == second.plan.gateway_v4);
    let now = inventory()?;
    let bridge = place.network.bridge();
    ensure!(now.contains(bridge) && now.contains("masquerade") && now.ends_with("1\n"), "{now}");
    drop(first);
    let third = place.attach()?;
    ensure!(inventory()?.contains("masquerade"), "the bridge went with the first container");
    drop((second, third));
    let after = inventory()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

fn used_subnet() -> anyhow::Result<()> {
    let place = Place::new()?;
    let by_default = place.attach()?.plan.gateway_v4.context("no gateway")?;
    run(Command::new("ip").args(["link", "add", "other", "type", "bridge"]))?;
    let used = format!("{by_default}/16");
    run(Command::new("ip").args(["addr", "add", &used, "dev", "other"]))?;
    run(Command::new("ip").args(["link", "set", "other", "up"]))?;
    let other = place.attach()?.plan.gateway_v4.context("no gateway")?;
    ensure!(other.octets()[..2] != by_default.octets()[..2], "{other} beside {used}");
    Ok(())
}

fn leftovers() -> anyhow::Result<()> {
    let place = Place::new()?;
    let before = inventory()?;
    let bridge = place.network.bridge();
    let leave = || -> anyhow::Result<()> {
        run(Command::new("ip").args(["link", "add", bridge, "type", "bridge"]))?;
        run(Command::new("nft").args(["add", "table", "ip", bridge])).map(drop)
    };
    leave()?;
    place.network.sweep();
    ensure!(inventory()? == before, "{}", inventory()?);
    // A container that comes before any sweep is not disturbed by it either.
    leave()?;
    let attachment = place.attach()?;
    place.network.sweep();
    ensure!(inventory()?.contains("masquerade"), "the sweep took a living container's network");
    drop(attachment);
    ensure!(inventory()? == before, "{}", inventory()?);
    Ok(())
}

fn forwarding() -> anyhow::Result<()> {
    let place = Place::new()?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1\n")?;
    drop(place.attach()?);
    ensure!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() == "1");
    Ok(())
}

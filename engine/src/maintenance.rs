//! The files of a container that does not run: its disks in a machine of their own, in which nothing of the container
//! runs, for as long as somebody works on them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_protocol::AGENT_PORT;
use agent_protocol::message::HostMessage;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::container::Container;
use crate::container::record::Record;
use crate::dirs::Dirs;
use crate::error::RunError;
use crate::isolation::vm_only;
use crate::network;
use crate::process::VmProcess;
use crate::process::events::Read;
use crate::run::machine::Machine;
use crate::run::warm::{Level, Warmer};
use crate::session::link::Link;
use crate::session::signals::Signals;
use crate::template::{Maker, Template};

/// What the guest gets to unmount the disks in.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A machine with a container's disks; the container cannot be started meanwhile.
pub struct Maintenance {
    vm: VmProcess,
    container: Container,
    _template: Option<Template>,
    _interfaces: Vec<network::Interface>,
}

impl Maintenance {
    /// Brings up the machine of `record`, which does not run.
    pub fn open(dirs: &Dirs, record: &Record, notice: &dyn Fn(&str)) -> Result<Self, RunError> {
        let host = |action| move |source| RunError::Host { action, source };
        vm_only(&record.spec, &record.name, "reaching the files of what does not run")?;
        let container = Container::open(dirs, &record.spec.id)?;
        let signals = Signals::block().map_err(host("watch signals"))?;
        let machine = Machine::of(&record.spec, dirs, container.data())?;
        let plan = &record.spec.plan;
        let warmer = Warmer { dirs, machine: &machine, plan, signals: &signals, notice };
        let template = match record.spec.machine.cold {
            true => None,
            false => warmer.template(Level::Machine)?,
        };
        machine.make_layer(&container, plan, None)?;
        let interfaces = network::detached(&container.id, machine.interfaces)?;
        let config = machine.config(&container, plan, None, template.as_ref());
        let mut maker = Maker {
            container: &container,
            program: machine.vmm(),
            config,
            interfaces,
            root: Some(plan.root()),
            signals: &signals,
        };
        let vm = maker.bring_up()?;
        let interfaces = maker.interfaces;
        Ok(Self { vm, container, _template: template, _interfaces: interfaces })
    }

    /// The socket of its vsock device.
    pub fn vsock(&self) -> PathBuf {
        self.container.vsock()
    }

    /// Leaves the disks in order. Without it they are as after a power cut.
    pub fn close(mut self) {
        let Ok(mut link) = Link::<HostMessage>::dial(&self.container.vsock(), AGENT_PORT) else { return };
        if link.send(&HostMessage::PowerOff).is_err() {
            return;
        }
        let end = Instant::now() + CLOSE_TIMEOUT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::OUT, link.is_waiting());
            let events = PollFd::from_borrowed_fd(self.vm.events_fd(), PollFlags::IN);
            let _ = poll(&mut [events, PollFd::new(&link, flags)], Timespec::try_from(left).ok().as_ref());
            let _ = link.flush();
            if matches!(self.vm.events().read(), Read::End) {
                return;
            }
        }
    }
}

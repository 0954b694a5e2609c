//! `--isolation`

use anyhow::ensure;
use clap::ValueEnum;
use engine::container::spec::MachineSpec;
use engine::isolation::Isolation;

/// `--isolation`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum IsolationKind {
    /// A machine with a kernel of its own
    #[default]
    Vm,
    /// Namespaces, cgroups, capabilities and a system call filter, by runc; needs root
    Container,
    /// Another root directory and nothing else: no protection; needs root
    Process,
}

impl IsolationKind {
    /// For the engine. Refused is what the isolation cannot hold.
    pub fn isolation(
        self,
        machine: &MachineSpec,
        (limited, rated): (bool, bool),
        confined: bool,
    ) -> anyhow::Result<Isolation> {
        let isolation = match self {
            Self::Vm => return Ok(Isolation::Vm),
            Self::Container => Isolation::Container,
            Self::Process => Isolation::Process,
        };
        let name = isolation.name();
        ensure!(
            machine.kernel.is_none() && machine.initrd.is_none() && machine.kernel_args.is_empty(),
            "--isolation {name} has the host's kernel: --kernel, --initrd and --kernel-arg need --isolation vm"
        );
        ensure!(
            !rated,
            "--isolation {name} has no devices of its own: --device-read-bps and its companions and --network-rate \
             need --isolation vm"
        );
        let bare = isolation == Isolation::Process;
        ensure!(
            !(bare && limited),
            "--isolation process limits nothing: --memory, --cpus, --pids-limit and their like need --isolation container or vm"
        );
        ensure!(
            !(bare && confined),
            "--isolation process confines nothing: --cap-add, --cap-drop and --privileged need --isolation container \
             or vm"
        );
        Ok(isolation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_isolation_cannot_hold_is_refused() {
        let machine = |kernel: Option<&str>| MachineSpec {
            memory_mib: 64,
            vcpus: 1,
            kernel: kernel.map(Into::into),
            initrd: None,
            kernel_args: Vec::new(),
            cold: false,
            next_memory_mib: None,
            memory_reclaim: false,
            no_sandbox: false,
        };
        assert!(IsolationKind::Container.isolation(&machine(None), (false, true), false).is_err());
        assert_eq!(
            IsolationKind::Vm.isolation(&machine(Some("/k")), (true, true), true).unwrap(),
            Isolation::Vm
        );
        assert!(IsolationKind::Container.isolation(&machine(Some("/k")), (false, false), false).is_err());
        assert!(IsolationKind::Container.isolation(&machine(None), (true, false), true).is_ok());
        for (limited, confined) in [(true, false), (false, true)] {
            assert!(IsolationKind::Process.isolation(&machine(None), (limited, false), confined).is_err());
        }
    }
}

//! The kernel command line that the VMM makes: console, power, devices, and what this host's KVM needs.

use arch::cmdline::Cmdline;

/// Only errors on the console; LOCK prefixes stay where there is one vCPU, as removing them one by one is a
/// quarter of a boot; no 64 MiB of bounce buffers above 4 GiB; power off through the power port; where to
/// hear of a restore; no thread that feeds the random generator from virtio-rng all the time: the agent and
/// the processor seed it; reset through the i8042, at once after a panic. The rest of the machine is found by MP table and CPUID.
const MACHINE: &str = "quiet noreplace-smp swiotlb=noforce poweroff_port=0x600 \
                       vm_generation=0x610 rng_core.default_quality=0 reboot=k panic=-1";
/// The part of it that a guest cannot power off, restore or find its devices without.
const BARE: &str = "noreplace-smp swiotlb=noforce poweroff_port=0x600 vm_generation=0x610";
/// The serial port as console; not on the fast path, each byte is an exit.
const CONSOLE: &str = "console=ttyS0";
/// What a kernel must leave alone where KVM emulates ring 0, see `docs/kernel.md`. The kernel reads the
/// host's own CPUID there, so features are turned off here. A second `clearcpuid` would replace this one.
const EMULATED_RING0: &str = include_str!("../../resources/kernel/emulated-ring0.cmdline").trim_ascii();

/// Memory that is plugged is used at once, and so that it can be unplugged.
const HOTPLUG: &str = "memhp_default_state=online_movable";

/// What the command line depends on.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// There is a serial port.
    pub console: bool,
    /// Nothing but what the guest cannot run without.
    pub bare: bool,
    /// This host's KVM emulates guest ring 0.
    pub emulated_ring0: bool,
    /// Memory can be plugged.
    pub hotplug: bool,
    /// Virtio devices, in slots 0 and up.
    pub virtio_devices: usize,
}

/// Builds the command line; `own` is the configuration's part and comes last, so that it prevails.
pub fn build(machine: Machine, own: &str) -> Cmdline {
    let mut line = Cmdline::default();
    if machine.console && !machine.bare {
        line.push(CONSOLE);
    }
    line.push(if machine.bare { BARE } else { MACHINE });
    if machine.emulated_ring0 {
        line.push(EMULATED_RING0);
    }
    if machine.hotplug {
        line.push(HOTPLUG);
    }
    for slot in 0..machine.virtio_devices {
        line.push_virtio_mmio(slot);
    }
    line.push(own);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configurations_words_come_last() {
        let machine =
            Machine { console: true, bare: false, emulated_ring0: false, hotplug: false, virtio_devices: 1 };
        assert_eq!(
            build(machine, "root=/dev/vda").as_str(),
            "console=ttyS0 quiet noreplace-smp swiotlb=noforce poweroff_port=0x600 \
             vm_generation=0x610 rng_core.default_quality=0 reboot=k panic=-1 virtio_mmio.device=4K@0xd0000000:5 root=/dev/vda"
        );
    }

    #[test]
    fn only_emulating_hosts_get_their_quirks() {
        let line = |emulated_ring0| {
            build(
                Machine { console: false, bare: false, emulated_ring0, hotplug: false, virtio_devices: 0 },
                "",
            )
            .as_str()
            .to_owned()
        };
        assert_eq!(line(false), MACHINE);
        assert!(line(true).contains("clearcpuid=151,"));
    }

    #[test]
    fn a_bare_line_leaves_the_console_to_the_configuration() {
        let machine =
            Machine { console: true, bare: true, emulated_ring0: false, hotplug: false, virtio_devices: 0 };
        assert_eq!(build(machine, "console=ttyS0").as_str(), format!("{BARE} console=ttyS0"));
        assert!(BARE.split(' ').all(|word| MACHINE.contains(word)));
    }
}

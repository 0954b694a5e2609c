//! KVM, and the kernel for guests.

use std::path::Path;

use super::{Check, Status, with_causes};
use crate::dirs::Dirs;
use crate::kernel;

/// `kvm` and `ring0`.
pub fn checks() -> Vec<Check> {
    const MEANING: &str = "KVM runs the virtual machines";
    match vmm::host::emulates_ring0() {
        Ok(emulated) => vec![Check::ok("kvm", "/dev/kvm works", MEANING), ring0(emulated)],
        Err(error) => {
            let found = with_causes(&error);
            vec![Check::bad("kvm", Status::Fail, found, "no container can run without KVM", kvm_fix())]
        }
    }
}

fn ring0(emulated: bool) -> Check {
    match emulated {
        false => Check::ok(
            "ring0",
            "guest kernels run on the hardware",
            "a guest starts in milliseconds and runs at full speed",
        ),
        true => Check::bad(
            "ring0",
            Status::Warn,
            "this KVM emulates guest kernels",
            "programs run at full speed, but system calls and boots are about a thousand times slower",
            "use a host with VT-x or AMD-V, or switch on nested virtualization on this host's own host",
        ),
    }
}

fn kvm_fix() -> String {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let module = match (flags.contains(" vmx"), flags.contains(" svm")) {
        (true, _) => "kvm_intel",
        (_, true) => "kvm_amd",
        _ => {
            return "the CPU shows neither VT-x nor AMD-V: enable virtualization in the firmware, or nested \
                    virtualization on this host's own host, then load the KVM module"
                .to_owned();
        }
    };
    if Path::new("/dev/kvm").exists() {
        "add your user to the group of /dev/kvm: `usermod -aG kvm $USER`, then log in again".to_owned()
    } else {
        format!("load the module: `modprobe {module}`")
    }
}

/// `guest_kernel`
pub fn guest_kernel(dirs: &Dirs) -> Check {
    const MEANING: &str = "every container boots it";
    match kernel::find(None, dirs) {
        Ok(path) => Check::ok("guest_kernel", path.display().to_string(), MEANING),
        Err(error) => Check::bad(
            "guest_kernel",
            Status::Warn,
            with_causes(&error),
            "containers run only with --kernel",
            "build it: `cargo xtask kernel`",
        ),
    }
}

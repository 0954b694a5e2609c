//! `/boot-source`.

use serde::{Deserialize, Serialize};

/// `PUT /boot-source`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// ELF `vmlinux` or `bzImage`.
    pub kernel_image_path: String,
    /// Initial RAM file system.
    pub initrd_path: Option<String>,
    /// Kernel command line, in place of the default one.
    pub boot_args: Option<String>,
}

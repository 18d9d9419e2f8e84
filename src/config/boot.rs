//! What to boot.

use std::path::PathBuf;

use cofferdam_boot::CommandLine;
use serde::{Deserialize, Serialize};

use super::{ConfigError, not_empty};

/// What to boot, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootConfig {
    /// An ELF `vmlinux` or a `bzImage`. The default guest's, where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The user's part of the kernel command line; ours comes before it, so this has the last word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// How the kernel is entered; chosen by the kernel's format where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// How the kernel and the initrd come into guest memory.
    pub pages: Pages,
    /// Whether hardware is described by ACPI, or by the command line and an MP table.
    pub hardware: Hardware,
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Linux's 64-bit entry (vmlinux) or hand-over (bzImage).
    Linux,
    /// The PVH entry of a vmlinux.
    Pvh,
}

/// How file pages come into guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Pages {
    /// Read into huge pages: fewest page faults.
    #[default]
    Copy,
    /// Mapped privately from the file: VMs share what none of them writes.
    Map,
}

/// How the guest learns of its hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Hardware {
    /// ACPI tables.
    #[default]
    Acpi,
    /// For kernels without ACPI: an MP table, and virtio devices on the command line.
    Cmdline,
}

impl BootConfig {
    /// Checks all that can be said without touching the host.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        not_empty("kernel", self.kernel.as_deref())?;
        not_empty("initrd", self.initrd.as_deref())?;
        if let Some(text) = &self.cmdline {
            // How much of it there may be depends on the kernel.
            CommandLine::new(text, usize::MAX)?;
        }
        Ok(())
    }
}

//! Where things are: guest physical addresses, I/O ports and interrupt lines of every VM.
//!
//! ```text
//! 0            low RAM, up to 3 GiB
//! 0xc000_0000  the MMIO hole
//! 0xd000_0000    virtio-mmio registers, 4 KiB a device
//! 0xfec0_0000    I/O APIC
//! 0xfee0_0000    local APICs
//! 0xfffb_d000    KVM's task-state segment, for Intel CPUs that need one
//! 4 GiB        RAM goes on here
//! above RAM    files mapped as pmem, each at a multiple of 128 MiB
//! ```

pub use cofferdam_boot::layout::{MMIO_HOLE_END as HIGH_RAM, MMIO_HOLE_START as MMIO_HOLE};

/// Registers of the first virtio-mmio device.
pub const VIRTIO_MMIO: u32 = 0xd000_0000;
/// Bytes from one virtio-mmio device's registers to the next's.
pub const VIRTIO_MMIO_SIZE: u32 = 0x1000;
/// Registers of the I/O APIC, as KVM has them.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Registers of each vCPU's local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel hosts without unrestricted guests.
pub const TSS: usize = 0xfffb_d000;

/// Interrupt line of COM1.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt line of the ACPI generic event device: the power button.
pub const EVENT_GSI: u32 = 5;
/// First interrupt line that a virtio device may have.
const VIRTIO_GSI: u32 = 6;
/// Interrupt lines for virtio devices: what the I/O APIC's 24 leave.
pub const VIRTIO_GSI_COUNT: usize = 18;
/// First interrupt line that no 8259 has.
const IO_APIC_GSI: u32 = 16;

/// Interrupt line of the virtio device with number `at`, below [`VIRTIO_GSI_COUNT`]. If ACPI says so,
/// those from [`IO_APIC_GSI`] on come first: KVM brings each change of another one to its 8259, too. A
/// kernel that is told on its command line can have those only that an 8259 has.
pub fn virtio_gsi(at: u32, has_acpi: bool) -> u32 {
    match has_acpi {
        true => VIRTIO_GSI + (at + IO_APIC_GSI - VIRTIO_GSI) % 18,
        false => VIRTIO_GSI + at,
    }
}

/// What the start of each pmem device's memory is a multiple of: a section of Linux's memory map, so
/// that none shares one with RAM.
pub const PMEM_ALIGNMENT: u64 = 128 << 20;

/// Where the memory of pmem devices starts in a guest whose RAM ends at `last`, its last byte.
pub fn pmem_start(last: u64) -> u64 {
    last.max(HIGH_RAM).next_multiple_of(PMEM_ALIGNMENT)
}

/// First of the I/O ports that drivers may kick virtio devices with, 4 each.
pub const KICK_PORT: u16 = 0x700;

/// Splits `size` bytes of RAM into what lies below the MMIO hole and what lies from 4 GiB on.
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(MMIO_HOLE);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((HIGH_RAM, size - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, RAM lies over the devices or part of it is lost.
    #[test]
    fn ram_leaves_the_hole_free() {
        assert_eq!(ram_ranges(1 << 30), [(0, 1 << 30)]);
        assert_eq!(ram_ranges(MMIO_HOLE), [(0, MMIO_HOLE)]);
        assert_eq!(
            ram_ranges(6 << 30),
            [(0, MMIO_HOLE), (HIGH_RAM, (6 << 30) - MMIO_HOLE)]
        );
    }

    /// If it fails, pmem lies over RAM or over the devices.
    #[test]
    fn pmem_lies_above_all_else() {
        assert_eq!(pmem_start((256 << 20) - 1), HIGH_RAM);
        assert_eq!(pmem_start(MMIO_HOLE - 1), HIGH_RAM);
        assert_eq!(pmem_start(HIGH_RAM + (1 << 20)), HIGH_RAM + (128 << 20));
        assert_eq!(pmem_start((8 << 30) - 1), 8 << 30);
    }

    /// If it fails, two devices share an interrupt line or one has a line that is not there.
    #[test]
    fn interrupt_lines_fit_the_io_apic() {
        const { assert!(SERIAL_GSI < EVENT_GSI && EVENT_GSI < VIRTIO_GSI) }
        for (has_acpi, first) in [(true, [16, 17]), (false, [6, 7])] {
            let mut lines: Vec<_> = (0..18).map(|at| virtio_gsi(at, has_acpi)).collect();
            assert_eq!(lines[..2], first);
            lines.sort_unstable();
            assert_eq!(lines, (VIRTIO_GSI..24).collect::<Vec<_>>());
            assert_eq!(lines.len(), VIRTIO_GSI_COUNT);
        }
    }
}

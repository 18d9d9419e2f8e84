//! The boot GDT: flat segments, at the selectors the Linux boot protocol names.
//!
//! Linux boot protocol, '64-bit boot protocol': `__BOOT_CS` is 0x10, `__BOOT_DS` is 0x18. PVH
//! wants flat 32-bit segments and a 32-bit TSS of base 0 and limit 0x67; any selectors do, so both
//! protocols have the same.

use crate::Protocol;

/// Selector of the code segment.
pub const CODE: u16 = 0x10;
/// Selector of the data segments (DS, ES, FS, GS, SS).
pub const DATA: u16 = 0x18;
/// Selector of the busy TSS.
pub const TSS: u16 = 0x20;

/// Entries of the table.
pub const ENTRIES: usize = 6;
/// Limit of the table: its size in bytes − 1.
pub const LIMIT: u16 = 8 * 6 - 1;

/// Present, ring 0, code, execute/read, accessed, 4 KiB granular, limit 4 GiB, long mode.
const CODE64: u64 = 0x00af_9b00_0000_ffff;
/// The same in 32-bit protected mode.
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
/// Present, ring 0, data, read/write, accessed, 4 KiB granular, limit 4 GiB.
const FLAT_DATA: u64 = 0x00cf_9300_0000_ffff;
/// Present, busy 32/64-bit TSS, base 0, limit 0x67.
const BUSY_TSS: u64 = 0x0000_8b00_0000_0067;

/// The table for `protocol`. The last entry is the upper half of the TSS, which is 16 bytes in
/// long mode.
#[must_use]
pub fn table(protocol: Protocol) -> [u64; ENTRIES] {
    let code = match protocol {
        Protocol::Linux64 => CODE64,
        Protocol::Pvh => CODE32,
    };
    [0, 0, code, FLAT_DATA, BUSY_TSS, 0]
}

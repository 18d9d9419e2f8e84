//! Registers of a vCPU at its first instruction, and of its local APIC.

use cofferdam_boot::{EntryState, Protocol, gdt};
use kvm_bindings::{kvm_fpu, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_FIXED: u64 = 2;

/// Registers of the local APIC's local interrupt lines.
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 4;
const APIC_MODE_EXTINT: u32 = 7;

/// General registers at the kernel's entry.
pub fn general(entry: &EntryState) -> kvm_regs {
    let mut regs = kvm_regs {
        rflags: RFLAGS_FIXED,
        rip: entry.rip,
        rsp: entry.stack,
        ..Default::default()
    };
    match entry.protocol {
        // Documentation/arch/x86/boot.rst, "64-bit boot protocol".
        Protocol::Linux64 => regs.rsi = entry.boot_data,
        // The x86/HVM direct boot ABI of Xen (PVH).
        Protocol::Pvh => regs.rbx = entry.boot_data,
    }
    regs
}

/// System registers at the kernel's entry, from those that a new vCPU has.
pub fn system(entry: &EntryState, mut sregs: kvm_sregs) -> kvm_sregs {
    let segment = |selector: u16| {
        let descriptor = entry.gdt_table.get(usize::from(selector / 8)).copied();
        from_descriptor(selector, descriptor.unwrap_or_default())
    };
    let data = segment(gdt::DATA);
    sregs.cs = segment(gdt::CODE);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(gdt::TSS);
    sregs.gdt.base = entry.gdt;
    sregs.gdt.limit = entry.gdt_limit;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET;
    if let Some(root) = entry.page_tables {
        sregs.cr3 = root;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    sregs
}

/// A segment register as loading `descriptor` fills it (Intel SDM volume 3, section 3.4.5).
fn from_descriptor(selector: u16, descriptor: u64) -> kvm_segment {
    let bits = |shift: u32, count: u32| descriptor >> shift & ((1 << count) - 1);
    // None of these fields is wider than the register's.
    #[allow(clippy::cast_possible_truncation)]
    let (bit, field) = (
        |shift| bits(shift, 1) as u8,
        |shift, count| bits(shift, count) as u32,
    );
    let limit = field(0, 16) | field(48, 4) << 16;
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: if bit(55) == 1 {
            limit << 12 | 0xfff
        } else {
            limit
        },
        selector,
        type_: bit(40) | bit(41) << 1 | bit(42) << 2 | bit(43) << 3,
        s: bit(44),
        dpl: bit(45) | bit(46) << 1,
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g: bit(55),
        unusable: 0,
        padding: 0,
    }
}

/// The FPU as `FNINIT` leaves it, with SSE exceptions masked.
pub fn fpu() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}

/// Sets the local interrupt lines as firmware does: LINT0 takes the old interrupt controller's
/// line, LINT1 is NMI (MultiProcessor Specification 1.4, section 3.6.2.2).
pub fn local_interrupts(lapic: &mut kvm_lapic_state) {
    set_mode(lapic, APIC_LVT0, APIC_MODE_EXTINT);
    set_mode(lapic, APIC_LVT1, APIC_MODE_NMI);
}

fn set_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let mut bytes = [0; 4];
    for (byte, reg) in bytes.iter_mut().zip(&lapic.regs[register..register + 4]) {
        *byte = reg.cast_unsigned();
    }
    let value = u32::from_le_bytes(bytes) & !0x700 | mode << 8;
    for (reg, byte) in lapic.regs[register..register + 4]
        .iter_mut()
        .zip(value.to_le_bytes())
    {
        *reg = byte.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a vCPU starts with segments that its first far return reloads otherwise.
    #[test]
    fn segments_are_those_of_the_table() {
        let table = gdt::table(Protocol::Linux64);
        let code = from_descriptor(gdt::CODE, table[usize::from(gdt::CODE / 8)]);
        assert_eq!((code.base, code.limit, code.type_), (0, 0xffff_ffff, 0xb));
        assert_eq!(
            (code.l, code.db, code.g, code.s, code.present),
            (1, 0, 1, 1, 1)
        );
        let task = from_descriptor(gdt::TSS, table[usize::from(gdt::TSS / 8)]);
        assert_eq!((task.limit, task.type_, task.s), (0x67, 0xb, 0));
    }

    /// If it fails, a kernel finds its interrupt lines as no firmware leaves them.
    #[test]
    fn only_the_delivery_mode_changes() {
        let mut lapic = kvm_lapic_state::default();
        // Masked, mode 0: what KVM resets to.
        lapic.regs[APIC_LVT0 + 2] = 1;
        local_interrupts(&mut lapic);
        assert_eq!(lapic.regs[APIC_LVT0..APIC_LVT0 + 4], [0, 7, 1, 0]);
        assert_eq!(lapic.regs[APIC_LVT1..APIC_LVT1 + 4], [0, 4, 0, 0]);
    }
}

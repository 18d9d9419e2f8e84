//! The test guest: a page of machine code of our own that does, step by step, what every Linux
//! guest does, and tells the host each step it reached by a write to an I/O port.
//!
//! Guest-physical memory is [`MEMORY_LEN`] bytes from 0 and identity mapped:
//!
//! | address | what |
//! |---|---|
//! | 0x1000 | PML4, then the page-directory pointers, then two page directories |
//! | 0x5000 | interrupt descriptors |
//! | 0x6000 | segment descriptors, and at 0x6100 the task state segment |
//! | 0x8000 | the code |
//! | 0xa000, 0xb000 | tops of the stacks of ring 0 and ring 3 |

use std::fmt;

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Bytes of guest memory, from guest-physical address 0.
pub const MEMORY_LEN: usize = 0x1_0000;
/// The I/O port on which the guest reports.
pub const REPORT_PORT: u16 = 0xd0;
/// The I/O port that is an ioeventfd.
pub const DOORBELL_PORT: u16 = 0xd8;
/// The guest-physical address that is an ioeventfd.
pub const DOORBELL_GPA: u64 = 0xd000_0000;
/// The interrupt line the guest waits for: an IOAPIC pin that is not wired to the old PIC too.
pub const IRQ_GSI: u32 = 20;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD_LOW: u64 = 0x3000;
const PD_HIGH: u64 = 0x4000;
const IDT: u64 = 0x5000;
const GDT: u64 = 0x6000;
const TSS: u64 = 0x6100;
const CODE: u64 = 0x8000;
const CODE_LEN: usize = 0x400;
const KERNEL_STACK: u64 = 0xa000;
const USER_STACK: u64 = 0xb000;

// Where the parts of the code start. The assembler fails where a part outgrows its place.
const LONG_MODE: u64 = 0x40;
const USER: u64 = 0x200;
const ON_SYSCALL: u64 = 0x280;
const ON_IRQ: u64 = 0x300;
const ON_FAULT: u64 = 0x380;

// Selectors. SYSCALL and SYSRET want code and data next to each other in just this order.
const KERNEL_CS: u16 = 0x08;
const KERNEL_DS: u16 = 0x10;
const USER_DS: u16 = 0x18 | 3;
const USER_CS: u16 = 0x20 | 3;
const TASK: u16 = 0x28;
const PROTECTED_CS: u16 = 0x38;

const IRQ_VECTOR: u8 = 0x40;
const TASK_LEN: u32 = 0x68;

/// A step of the test guest, in the order in which they are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Nothing ran yet.
    Nothing,
    /// The first instructions ran, in 32-bit protected mode.
    Protected,
    /// The guest turned paging and long mode on and runs 64-bit code.
    LongMode,
    /// The time stamp counter advances.
    Tsc,
    /// The guest wrote to both doorbells; the host counts what arrived.
    Kicked,
    /// The guest halts and waits for the host to raise the interrupt.
    AwaitIrq,
    /// The interrupt was taken in ring 0.
    Irq,
    /// Code runs in ring 3.
    User,
    /// SYSCALL arrived in ring 0.
    Syscall,
    /// SYSRET went back to ring 3, which spins until the host raises the interrupt again.
    AwaitUserIrq,
    /// The interrupt was taken in ring 3.
    UserIrq,
    /// Ring 3 goes on after the interrupt: all is well.
    Done,
}

impl Stage {
    const ALL: [Self; 12] = [
        Self::Nothing,
        Self::Protected,
        Self::LongMode,
        Self::Tsc,
        Self::Kicked,
        Self::AwaitIrq,
        Self::Irq,
        Self::User,
        Self::Syscall,
        Self::AwaitUserIrq,
        Self::UserIrq,
        Self::Done,
    ];

    /// The stage with this number, if there is one.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The stage that comes after this one; none after the last.
    pub fn next(self) -> Option<Self> {
        Self::from_u8(self as u8 + 1)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "no instruction",
            Self::Protected => "32-bit protected mode",
            Self::LongMode => "64-bit mode",
            Self::Tsc => "a TSC that advances",
            Self::Kicked => "the ioeventfd kicks",
            Self::AwaitIrq => "the wait for an interrupt",
            Self::Irq => "an interrupt in ring 0",
            Self::User => "ring 3",
            Self::Syscall => "a system call",
            Self::AwaitUserIrq => "the return from a system call",
            Self::UserIrq => "an interrupt in ring 3",
            Self::Done => "the end",
        })
    }
}

// What the guest reports instead of a stage when something is wrong.

/// The TSC did not move.
pub const REPORT_TSC_STUCK: u8 = 0xf0;
/// SYSCALL arrived at its handler, but in ring 3.
pub const REPORT_NO_RING_SWITCH: u8 = 0xf1;
/// What should be ring 3 is another ring.
pub const REPORT_NOT_RING_3: u8 = 0xf2;
/// An exception that nothing in this code raises.
pub const REPORT_FAULT: u8 = 0xff;

unsafe extern "C" {
    /// The guest's code, as assembled below: read-only data to the host.
    safe static cofferdam_doctor_guest: [u8; CODE_LEN];
}

// The guest runs from a copy at CODE: everything in it is relative, or made from CODE.
core::arch::global_asm!(
    ".pushsection .rodata.cofferdam_doctor_guest, \"a\"",
    ".globl cofferdam_doctor_guest",
    "cofferdam_doctor_guest:",
    // 32-bit protected mode, no paging, as a PVH kernel starts.
    ".code32",
    "mov al, {protected}",
    "out {report}, al",
    "mov eax, cr4",
    "or eax, 0x20", // PAE
    "mov cr4, eax",
    "mov eax, {pml4}",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER
    "rdmsr",
    "or eax, 0x101", // LME, and SCE for SYSCALL
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000000", // PG
    "mov cr0, eax",
    "push {kernel_cs}",
    "push {code} + {long_mode}",
    "retf",
    ".org cofferdam_doctor_guest + {long_mode}",
    ".code64",
    "mov al, {in_long_mode}",
    "out {report}, al",
    // The TSC: it may be coarse where it is emulated, but not stand still.
    "mov esi, 1000",
    "rdtsc",
    "mov ebx, eax",
    "mov edi, edx",
    "2: dec esi",
    "jz 3f",
    "rdtsc",
    "cmp edx, edi",
    "ja 4f",
    "cmp eax, ebx",
    "jbe 2b",
    "4: mov al, {tsc}",
    "jmp 5f",
    "3: mov al, {tsc_stuck}",
    "5: out {report}, al",
    // Both doorbells.
    "mov edi, {doorbell_gpa}",
    "mov dword ptr [rdi], 1",
    "mov edx, {doorbell_port}",
    "out dx, eax",
    "mov al, {kicked}",
    "out {report}, al",
    // An interrupt in ring 0: enable the local APIC, point the IOAPIC's pin at it, halt.
    "mov edi, 0xfee00000",
    "mov dword ptr [rdi + 0xf0], 0x1ff", // spurious vector register: enabled
    "mov edi, 0xfec00000",
    "mov dword ptr [rdi], {pin} + 1",
    "mov dword ptr [rdi + 0x10], 0", // to APIC 0
    "mov dword ptr [rdi], {pin}",
    "mov dword ptr [rdi + 0x10], {irq_vector}", // edge, fixed, unmasked
    "mov al, {await_irq}",
    "out {report}, al",
    "sti",
    "hlt",
    "cli",
    // To ring 3, which may do port I/O (IOPL 3) to report.
    "mov ecx, 0xc0000081", // STAR
    "xor eax, eax",
    "mov edx, {star_high}",
    "wrmsr",
    "mov ecx, 0xc0000082", // LSTAR
    "mov eax, {code} + {on_syscall}",
    "xor edx, edx",
    "wrmsr",
    "mov ecx, 0xc0000084", // SFMASK: IF, DF and TF
    "mov eax, 0x700",
    "wrmsr",
    "push {user_ds}",
    "push {user_stack}",
    "push 0x3202", // IOPL 3, IF
    "push {user_cs}",
    "push {code} + {user}",
    "iretq",
    ".org cofferdam_doctor_guest + {user}",
    "xor r15d, r15d",
    "mov ecx, cs",
    "and ecx, 3",
    "cmp ecx, 3",
    "mov al, {in_user}",
    "je 2f",
    "mov al, {not_ring_3}",
    "2: out {report}, al",
    "syscall",
    "mov al, {await_user_irq}",
    "out {report}, al",
    // The interrupt's handler sets r15.
    "3: pause",
    "test r15d, r15d",
    "jz 3b",
    "mov al, {done}",
    "out {report}, al",
    "4: jmp 4b",
    ".org cofferdam_doctor_guest + {on_syscall}",
    // RCX and R11 hold the way back; the stack is still ring 3's.
    "mov edx, cs",
    "test dl, 3",
    "jnz 2f",
    "mov rdx, cr3", // a fault, were this not ring 0
    "mov al, {in_syscall}",
    "out {report}, al",
    "sysretq",
    "2: mov al, {no_ring_switch}",
    "out {report}, al",
    "3: jmp 3b",
    ".org cofferdam_doctor_guest + {on_irq}",
    "mov r15d, 1",
    "mov edi, 0xfee00000",
    "mov dword ptr [rdi + 0xb0], 0", // end of interrupt
    "test byte ptr [rsp + 8], 3",    // the ring it came from
    "mov al, {irq}",
    "jz 2f",
    "mov al, {user_irq}",
    "2: out {report}, al",
    "iretq",
    ".org cofferdam_doctor_guest + {on_fault}",
    "mov al, {fault}",
    "out {report}, al",
    "2: hlt",
    "jmp 2b",
    ".org cofferdam_doctor_guest + {code_len}",
    ".popsection",
    report = const REPORT_PORT,
    doorbell_port = const DOORBELL_PORT,
    doorbell_gpa = const DOORBELL_GPA,
    pml4 = const PML4,
    code = const CODE,
    code_len = const CODE_LEN,
    long_mode = const LONG_MODE,
    user = const USER,
    on_syscall = const ON_SYSCALL,
    on_irq = const ON_IRQ,
    on_fault = const ON_FAULT,
    kernel_cs = const KERNEL_CS,
    user_ds = const USER_DS,
    user_cs = const USER_CS,
    user_stack = const USER_STACK,
    // SYSRET loads CS from 16 and SS from 8 above the upper half.
    star_high = const ((KERNEL_DS as u32 | 3) << 16) | KERNEL_CS as u32,
    pin = const 0x10 + 2 * IRQ_GSI,
    irq_vector = const IRQ_VECTOR,
    protected = const Stage::Protected as u8,
    in_long_mode = const Stage::LongMode as u8,
    tsc = const Stage::Tsc as u8,
    kicked = const Stage::Kicked as u8,
    await_irq = const Stage::AwaitIrq as u8,
    irq = const Stage::Irq as u8,
    in_user = const Stage::User as u8,
    in_syscall = const Stage::Syscall as u8,
    await_user_irq = const Stage::AwaitUserIrq as u8,
    user_irq = const Stage::UserIrq as u8,
    done = const Stage::Done as u8,
    tsc_stuck = const REPORT_TSC_STUCK,
    no_ring_switch = const REPORT_NO_RING_SWITCH,
    not_ring_3 = const REPORT_NOT_RING_3,
    fault = const REPORT_FAULT,
);

/// Writes code, page tables and descriptors into guest memory.
///
/// # Errors
/// Where `memory` does not hold [`MEMORY_LEN`] bytes from 0.
pub fn load(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_slice(&cofferdam_doctor_guest, GuestAddress(CODE))?;
    load_page_tables(memory)?;
    load_descriptors(memory)
}

/// Identity maps, in pages of 2 MiB (Intel SDM 3A, 4.5.4), all that the guest touches.
fn load_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const TABLE: u64 = 0x7; // present, writable, user
    const PAGE: u64 = 0x83; // present, writable, large
    const USER_PAGE: u64 = PAGE | 0x4;
    const DEVICE_PAGE: u64 = PAGE | 0x10; // uncached

    let slot = |gpa: u64, shift: u32| (gpa >> shift & 0x1ff) * 8;
    let entry = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at));
    entry(PML4, PDPT | TABLE)?;
    entry(PDPT, PD_LOW | TABLE)?;
    entry(PD_LOW, USER_PAGE)?;
    entry(PDPT + slot(DOORBELL_GPA, 30), PD_HIGH | TABLE)?;
    for gpa in [DOORBELL_GPA, 0xfec0_0000, 0xfee0_0000] {
        entry(PD_HIGH + slot(gpa, 21), gpa | DEVICE_PAGE)?;
    }
    Ok(())
}

/// Segments, the task state with ring 0's stack, and the interrupt gates (Intel SDM 3A, 3.4.5,
/// 8.7 and 7.14.1).
fn load_descriptors(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let segments: [(u16, u64); 7] = [
        (KERNEL_CS, 0x00af_9b00_0000_ffff),
        (KERNEL_DS, 0x00cf_9300_0000_ffff),
        (USER_DS, 0x00cf_f300_0000_ffff),
        (USER_CS, 0x00af_fb00_0000_ffff),
        (
            TASK,
            0x0000_8b00_0000_0000 | TSS << 16 | u64::from(TASK_LEN - 1),
        ),
        (TASK + 8, 0), // the task's base above 4 GiB
        (PROTECTED_CS, 0x00cf_9b00_0000_ffff),
    ];
    for (selector, descriptor) in segments {
        memory.write_obj(descriptor, GuestAddress(GDT + u64::from(selector & !7)))?;
    }
    memory.write_obj(KERNEL_STACK, GuestAddress(TSS + 4))?;

    let gate = |vector: u64, handler: u64| {
        let at = CODE + handler;
        let low = at & 0xffff | u64::from(KERNEL_CS) << 16 | 0x8e00 << 32 | at >> 16 << 48;
        memory.write_obj(low, GuestAddress(IDT + vector * 16))
    };
    for vector in 0..32 {
        gate(vector, ON_FAULT)?;
    }
    gate(u64::from(IRQ_VECTOR), ON_IRQ)
}

/// The special registers for the guest's first instruction: flat 32-bit protected mode without
/// paging. What is not set here stays as in `reset`.
pub fn special_registers(reset: &kvm_sregs) -> kvm_sregs {
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: KERNEL_DS,
        type_: 3,
        ..flat
    };
    kvm_sregs {
        cs: kvm_segment {
            selector: PROTECTED_CS,
            type_: 11,
            ..flat
        },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: kvm_segment {
            base: TSS,
            limit: TASK_LEN - 1,
            selector: TASK,
            type_: 11,
            present: 1,
            ..Default::default()
        },
        gdt: kvm_dtable {
            base: GDT,
            limit: 0x3f,
            ..Default::default()
        },
        idt: kvm_dtable {
            base: IDT,
            limit: 0xfff,
            ..Default::default()
        },
        cr0: 0x11, // protected mode; the ET bit is always one
        ..*reset
    }
}

/// The general registers for the guest's first instruction.
pub fn registers() -> kvm_regs {
    kvm_regs {
        rip: CODE,
        rsp: KERNEL_STACK,
        rflags: 2,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded() -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap();
        load(&memory).unwrap();
        memory
    }

    /// If this fails, the host and the guest mean different steps by the same number.
    #[test]
    fn stages_are_numbered_in_order() {
        for (number, stage) in (0..).zip(Stage::ALL) {
            assert_eq!(stage as u8, number);
            assert_eq!(Stage::from_u8(number), Some(stage));
        }
        assert_eq!(Stage::from_u8(Stage::Done as u8 + 1), None);
        assert_eq!(Stage::Done.next(), None);
        assert_eq!(Stage::User.next(), Some(Stage::Syscall));
    }

    /// If this fails, the code that the guest runs is not the code above (a part moved, or the
    /// linker dropped it).
    #[test]
    fn the_code_is_there_and_each_part_in_its_place() {
        let code = &cofferdam_doctor_guest;
        // mov al, imm8
        assert_eq!(code[0], 0xb0);
        assert_eq!(code[1], Stage::Protected as u8);
        let at = |part: u64| &code[usize::try_from(part).unwrap()..];
        assert_eq!(at(LONG_MODE)[..2], [0xb0, Stage::LongMode as u8]);
        assert_eq!(at(ON_FAULT)[..2], [0xb0, REPORT_FAULT]);
        // mov edx, cs
        assert_eq!(at(ON_SYSCALL)[..2], [0x8c, 0xca]);
    }

    /// If this fails, the guest faults at its first instruction with paging, or at a device.
    #[test]
    fn page_tables_map_memory_and_the_devices() {
        let memory = loaded();
        let walk = |gpa: u64| {
            let mut table = PML4;
            for shift in [39, 30, 21] {
                let entry: u64 = memory
                    .read_obj(GuestAddress(table + (gpa >> shift & 0x1ff) * 8))
                    .unwrap();
                assert_eq!(entry & 1, 1, "{gpa:#x} is not mapped at level {shift}");
                table = entry & !0xfff;
            }
            table | gpa & 0x1f_ffff
        };
        for gpa in [CODE, USER_STACK - 8, DOORBELL_GPA, 0xfec0_0010, 0xfee0_00b0] {
            assert_eq!(walk(gpa), gpa);
        }
    }

    /// If this fails, interrupts go nowhere: a gate or ring 0's stack is not where the CPU looks.
    #[test]
    fn gates_and_the_task_point_into_the_guest() {
        let memory = loaded();
        let gate: u64 = memory
            .read_obj(GuestAddress(IDT + u64::from(IRQ_VECTOR) * 16))
            .unwrap();
        assert_eq!(gate & 0xffff | gate >> 48 << 16, CODE + ON_IRQ);
        assert_eq!(gate >> 16 & 0xffff, u64::from(KERNEL_CS));
        let rsp0: u64 = memory.read_obj(GuestAddress(TSS + 4)).unwrap();
        assert_eq!(rsp0, KERNEL_STACK);
    }

    /// If this fails, a memory too small for the guest is a panic instead of an error.
    #[test]
    fn too_little_memory_is_an_error() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        assert!(load(&memory).is_err());
    }
}

//! Model-specific registers as a kernel expects to find them.

use kvm_bindings::kvm_msr_entry;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MISC_ENABLE_FAST_STRING: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// What firmware would have set: fast string instructions, and memory that is write-back.
pub fn boot() -> Vec<kvm_msr_entry> {
    [
        (IA32_MISC_ENABLE, IA32_MISC_ENABLE_FAST_STRING),
        (IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    })
    .into()
}

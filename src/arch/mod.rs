//! What is particular to x86-64: memory map, CPUID, MSRs, registers. Nothing outside asks for the
//! architecture.

pub mod cpuid;
pub mod layout;
pub mod msr;
pub mod regs;
pub mod template;

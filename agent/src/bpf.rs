//! Small BPF programs that the kernel runs for what the processes of a cgroup do.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// An instruction, as in linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// Destination in the low half, source in the high half.
    pub registers: u8,
    /// Of an address or a jump.
    pub offset: i16,
    /// The constant.
    pub value: i32,
}

/// To a register from memory: `BPF_LDX | BPF_MEM | BPF_W`.
pub const LOAD_WORD: u8 = 0x61;
/// A constant to a register: `BPF_ALU64 | BPF_MOV | BPF_K`.
pub const MOVE: u8 = 0xb7;
/// The end; the answer is in r0.
pub const EXIT: u8 = 0x95;

/// An instruction between two registers.
pub fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        value,
    }
}

/// What a program is for, in the numbers of linux/bpf.h.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its type.
    pub program: u32,
    /// The occasion that it is run at.
    pub attach: u32,
}

/// What becomes of programs that a cgroup has for the same occasion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// The new one takes their place.
    Replaced,
    /// All are run.
    Kept,
}

/// What bpf(2) takes to load a program, as far as it is needed.
#[repr(C)]
#[derive(Debug, Default)]
struct Load {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// What bpf(2) takes to attach one.
#[repr(C)]
#[derive(Debug, Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Calls bpf(2).
///
/// # Safety
/// The attributes are those of the command, and what they point to lives.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: as the caller says; the size is that of the attributes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives a cgroup a program.
pub fn attach(
    cgroup: &Path,
    kind: Kind,
    program: &[Instruction],
    others: Others,
) -> io::Result<()> {
    let load = Load {
        program_type: kind.program,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        attach_type: kind.attach,
        ..Load::default()
    };
    // SAFETY: it points to `count` instructions and to a string, which outlive the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &load) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
    let directory = File::open(cgroup)?;
    let number = |fd: i32| u32::try_from(fd).unwrap_or(u32::MAX);
    let attach = Attach {
        target: number(directory.as_raw_fd()),
        program: number(loaded.as_raw_fd()),
        kind: kind.attach,
        flags: match others {
            Others::Replaced => 0,
            Others::Kept => BPF_F_ALLOW_MULTI,
        },
    };
    // SAFETY: it points to nothing.
    unsafe { bpf(BPF_PROG_ATTACH, &attach) }?;
    Ok(())
}

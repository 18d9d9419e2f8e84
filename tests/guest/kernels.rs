//! Kernels of a few instructions, for what no Linux does on purpose.

use std::fs;
use std::path::PathBuf;

use crate::harness::TempDir;

/// Where they are loaded.
const ADDRESS: u64 = 1 << 20;

/// `cli; hlt`, again and again: deaf to the power button.
pub const STAY: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];
/// Resets by the i8042: `mov al, 0xfe; out 0x64, al`.
pub const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
/// An exception without a handler: `push 0; push 0; lidt [rsp]; ud2`.
pub const TRIPLE_FAULT: &[u8] = &[0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b];
/// Reads 256 MiB, where there is no memory, with an instruction that KVM cannot emulate:
/// `fld dword [0x10000000]`.
pub const NOT_EMULATED: &[u8] = &[0xd9, 0x04, 0x25, 0, 0, 0, 0x10];

/// A kernel that says "ready" on the serial port and goes on with `code`.
pub fn kernel(dir: &TempDir, name: &str, code: &[u8]) -> PathBuf {
    // mov dx, 0x3f8
    let mut text = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in *b"ready\n" {
        // mov al, byte; out dx, al
        text.extend([0xb0, byte, 0xee]);
    }
    text.extend(code);
    let path = dir.join(name);
    fs::write(&path, elf(&text)).unwrap();
    path
}

/// An ELF file of one segment that starts with its first byte of code.
fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend(value.to_le_bytes());
    // Executable, x86-64, version 1, entry point, program headers, no sections.
    half(&mut file, 2);
    half(&mut file, 62);
    word(&mut file, 1);
    long(&mut file, ADDRESS);
    long(&mut file, 64);
    long(&mut file, 0);
    word(&mut file, 0);
    // Sizes: this header, a program header (one of them), a section header (none).
    for value in [64, 56, 1, 64, 0, 0] {
        half(&mut file, value);
    }
    // A segment to load, readable and executable: offset, addresses, sizes, alignment.
    word(&mut file, 1);
    word(&mut file, 5);
    let len = code.len() as u64;
    for value in [HEADERS, ADDRESS, ADDRESS, len, len, 1] {
        long(&mut file, value);
    }
    file.extend(code);
    file
}

//! Which devices the processes of a cgroup may use: a small BPF program, as cgroup v2 has it.

use std::path::Path;

use crate::bpf::{self, EXIT, Instruction, Kind, LOAD_WORD, MOVE, Others, instruction};
use crate::error::{Context, Error, Result};
use crate::spec::DeviceRule;

const MOVE_REGISTER: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const AND: u8 = 0x57; // BPF_ALU64 | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x77; // BPF_ALU64 | BPF_RSH | BPF_K
const JUMP_UNLESS: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const JUMP_IF: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K

/// Registers of the program: its context is r1; the result goes to r0.
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// What every container may use: the specification's default devices, terminals, and making nodes.
const ALWAYS: [(&str, Option<i64>, Option<i64>, &str); 12] = [
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", Some(1), Some(3), "rwm"),
    ("c", Some(1), Some(5), "rwm"),
    ("c", Some(1), Some(7), "rwm"),
    ("c", Some(1), Some(8), "rwm"),
    ("c", Some(1), Some(9), "rwm"),
    ("c", Some(5), Some(0), "rwm"),
    ("c", Some(5), Some(1), "rwm"),
    ("c", Some(5), Some(2), "rwm"),
    ("c", Some(136), None, "rwm"),
    ("c", Some(10), Some(200), "rwm"),
];

/// Whether the rules allow everything, as those of privileged containers do.
pub fn allow_all(rules: &[DeviceRule]) -> bool {
    let any = |number: Option<i64>| number.is_none_or(|number| number < 0);
    let mut last = rules.iter().rev().take_while(|rule| rule.allow);
    last.any(|rule| {
        let access = rule.access.as_deref().unwrap_or("rwm");
        matches!(rule.kind.as_deref(), None | Some("a" | ""))
            && any(rule.major)
            && any(rule.minor)
            && "rwm".chars().all(|letter| access.contains(letter))
    })
}

/// The program for the rules, of which the last one that matches counts.
fn program(rules: &[DeviceRule]) -> Result<Vec<Instruction>> {
    let mut all = vec![
        // struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor.
        instruction(LOAD_WORD, TYPE, 1, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        instruction(AND, TYPE, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, 1, 4, 0),
        instruction(LOAD_WORD, MINOR, 1, 8, 0),
    ];
    let always = ALWAYS
        .iter()
        .map(|(kind, major, minor, access)| DeviceRule {
            allow: true,
            kind: Some((*kind).to_owned()),
            major: *major,
            minor: *minor,
            access: Some((*access).to_owned()),
        });
    let mut rules = rules.to_vec();
    rules.extend(always);
    for rule in rules.iter().rev() {
        let block = block(rule)?;
        let always = !block
            .iter()
            .any(|one| [JUMP_IF, JUMP_UNLESS].contains(&one.code));
        all.extend(block);
        if always {
            // The kernel takes no program with instructions that are never reached.
            return Ok(all);
        }
    }
    all.extend([instruction(MOVE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    Ok(all)
}

/// One rule: its checks, and the answer if all hold.
fn block(rule: &DeviceRule) -> Result<Vec<Instruction>> {
    let invalid = |why: String| Error::invalid("linux.resources.devices", why);
    let mut checks = Vec::new();
    match rule.kind.as_deref() {
        None | Some("a" | "") => {}
        Some("b") => checks.push((TYPE, 1)),
        Some("c") => checks.push((TYPE, 2)),
        Some(kind) => return Err(invalid(format!("type {kind} is none of a, b, c"))),
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number.filter(|number| *number >= 0) {
            let number = i32::try_from(number);
            checks.push((
                register,
                number.map_err(|_| invalid("a number is too large".into()))?,
            ));
        }
    }
    let mut code: Vec<_> = checks
        .into_iter()
        .map(|(register, value)| instruction(JUMP_UNLESS, register, 0, 0, value))
        .collect();
    // BPF_DEVCG_ACC_*.
    let mut access = 0;
    for letter in rule.access.as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'm' => 1,
            'r' => 2,
            'w' => 4,
            _ => return Err(invalid(format!("access {letter} is none of r, w, m"))),
        };
    }
    if access != 7 && access != 0 {
        // An allowing rule has to cover all of the access; a denying one some of it.
        let outside = if rule.allow { !access & 7 } else { access };
        code.push(instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
        code.push(instruction(AND, SCRATCH, 0, 0, outside));
        if rule.allow {
            code.push(instruction(JUMP_UNLESS, SCRATCH, 0, 0, 0));
        } else {
            // Jump over the answer if nothing of it is denied.
            code.push(instruction(JUMP_IF, SCRATCH, 0, 0, 0));
        }
    }
    code.push(instruction(MOVE, 0, 0, 0, i32::from(rule.allow)));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    let length = code.len();
    for (at, one) in code.iter_mut().enumerate() {
        if one.code == JUMP_UNLESS || one.code == JUMP_IF {
            one.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
        }
    }
    Ok(code)
}

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// Makes the rules those of the cgroup, in place of the ones it had.
pub fn attach(cgroup: &Path, rules: &[DeviceRule]) -> Result<()> {
    let kind = Kind {
        program: BPF_PROG_TYPE_CGROUP_DEVICE,
        attach: BPF_CGROUP_DEVICE,
    };
    bpf::attach(cgroup, kind, &program(rules)?, Others::Replaced)
        .context(|| "set the device rules of the container's cgroup".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program for an access, as the kernel does.
    fn run(program: &[Instruction], kind: u64, major: u64, minor: u64, access: u64) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let one = program[at];
            let (to, from) = (
                usize::from(one.registers & 15),
                usize::from(one.registers >> 4),
            );
            let value = u64::try_from(one.value).unwrap();
            at += 1;
            match one.code {
                LOAD_WORD => registers[to] = context[usize::try_from(one.offset).unwrap() / 4],
                MOVE => registers[to] = value,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                JUMP_UNLESS if registers[to] != value => at += usize::try_from(one.offset).unwrap(),
                JUMP_IF if registers[to] == value => at += usize::try_from(one.offset).unwrap(),
                JUMP_UNLESS | JUMP_IF => {}
                EXIT => return registers[0] != 0,
                code => panic!("{code:#x}"),
            }
        }
    }

    /// If it fails, a container uses devices that it was denied, or lacks some it was given.
    #[test]
    fn the_last_rule_that_matches_counts() {
        let rules: Vec<DeviceRule> = serde_json::from_str(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":254,"access":"r"},
            {"allow":true,"type":"c","major":10,"minor":-1},
            {"allow":false,"type":"c","major":10,"minor":5,"access":"w"}]"#,
        )
        .unwrap();
        let program = program(&rules).unwrap();
        let (block, character) = (1, 2);
        assert!(run(&program, block, 254, 3, 2));
        assert!(!run(&program, block, 254, 3, 6));
        assert!(!run(&program, block, 8, 0, 2));
        assert!(run(&program, character, 10, 7, 6));
        assert!(!run(&program, character, 10, 5, 6));
        assert!(run(&program, character, 10, 5, 2));
        assert!(run(&program, character, 1, 3, 6));
        assert!(run(&program, block, 8, 0, 1));
        let odd = |text: &str| program_of(text).is_err();
        assert!(odd(r#"[{"allow":true,"type":"x"}]"#) && odd(r#"[{"allow":true,"access":"q"}]"#));
    }

    /// If it fails, a privileged container lacks the guest's devices, or another one has them.
    #[test]
    fn what_allows_all_is_told_from_what_allows_much() {
        for (rules, expected) in [
            (r#"[{"allow":true,"access":"rwm"}]"#, true),
            (
                r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"a","major":-1,"access":"rwm"}]"#,
                true,
            ),
            (
                r#"[{"allow":true},{"allow":true,"type":"c","major":1,"minor":3,"access":"r"}]"#,
                true,
            ),
            (
                r#"[{"allow":true},{"allow":false,"type":"b","access":"rwm"}]"#,
                false,
            ),
            (r#"[{"allow":true,"access":"rm"}]"#, false),
            (r#"[{"allow":true,"type":"c","access":"rwm"}]"#, false),
            (r#"[{"allow":true,"major":10,"access":"rwm"}]"#, false),
            (r#"[{"allow":false,"access":"rwm"}]"#, false),
            ("[]", false),
        ] {
            let read = serde_json::from_str::<Vec<DeviceRule>>(rules).unwrap();
            assert_eq!(allow_all(&read), expected, "{rules}");
        }
    }

    fn program_of(rules: &str) -> Result<Vec<Instruction>> {
        program(&serde_json::from_str::<Vec<DeviceRule>>(rules).unwrap())
    }
}

//! The system-call filter of a container.
//!
//! One filter has two actions: what happens to calls it names, and to others. So the configuration
//! becomes one for its default action, which allows all calls that any rule names, and one for each
//! action of the rules. The kernel runs them all and takes the strictest answer.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use syscalls::Sysno;

use crate::error::{Context, Error, Result};
use crate::spec::{Seccomp, SeccompArg};

/// The rules of each call; none: it is named without conditions.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Filters that are ready to be loaded.
#[derive(Debug)]
pub struct Filters {
    programs: Vec<BpfProgram>,
    flags: libc::c_ulong,
}

fn invalid(why: impl ToString) -> Error {
    Error::invalid("linux.seccomp", why)
}

fn action(name: &str, errno: Option<u32>) -> Result<SeccompAction> {
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(errno),
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        _ => return Err(invalid(format!("the action {name} is not supported"))),
    })
}

fn condition(arg: &SeccompArg) -> Result<SeccompCondition> {
    let (op, value) = match arg.op.as_str() {
        "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, arg.value),
        "SCMP_CMP_GE" => (SeccompCmpOp::Ge, arg.value),
        "SCMP_CMP_GT" => (SeccompCmpOp::Gt, arg.value),
        "SCMP_CMP_LE" => (SeccompCmpOp::Le, arg.value),
        "SCMP_CMP_LT" => (SeccompCmpOp::Lt, arg.value),
        "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(arg.value), arg.value_two),
        "SCMP_CMP_NE" => (SeccompCmpOp::Ne, arg.value),
        op => return Err(invalid(format!("the comparison {op} is not known"))),
    };
    SeccompCondition::new(arg.index, SeccompCmpArgLen::Qword, op, value).map_err(invalid)
}

/// The rules that the arguments of an entry make. Several for one argument are alternatives, as
/// libseccomp's users write them; for different ones they hold together.
fn conditions(args: &[SeccompArg]) -> Result<Vec<SeccompRule>> {
    if args.is_empty() {
        return Ok(Vec::new());
    }
    let repeated = args
        .iter()
        .enumerate()
        .any(|(n, arg)| args.iter().take(n).any(|other| other.index == arg.index));
    let all: Vec<_> = args.iter().map(condition).collect::<Result<_>>()?;
    let groups = if repeated {
        all.into_iter().map(|one| vec![one]).collect()
    } else {
        vec![all]
    };
    groups
        .into_iter()
        .map(|group| SeccompRule::new(group).map_err(invalid))
        .collect()
}

fn add(rules: &mut Rules, call: i64, new: &[SeccompRule]) {
    match rules.get_mut(&call) {
        // Without conditions; it cannot become more.
        Some(old) if old.is_empty() => {}
        Some(old) if new.is_empty() => old.clear(),
        Some(old) => old.extend_from_slice(new),
        None => drop(rules.insert(call, new.to_vec())),
    }
}

impl Filters {
    /// Makes the filters of a configuration. Calls that this kernel does not have are passed over.
    pub fn new(seccomp: &Seccomp) -> Result<Self> {
        let default = action(&seccomp.default_action, seccomp.default_errno_ret)?;
        let mut named = Rules::new();
        let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
        for entry in seccomp.syscalls.iter().flatten() {
            let action = action(&entry.action, entry.errno_ret)?;
            if action == default {
                continue;
            }
            let new = conditions(entry.args.as_deref().unwrap_or_default())?;
            let position = by_action.iter().position(|(known, _)| *known == action);
            let position = position.unwrap_or_else(|| {
                by_action.push((action, Rules::new()));
                by_action.len() - 1
            });
            for name in &entry.names {
                let Ok(call) = name.parse::<Sysno>() else {
                    continue;
                };
                let call = i64::from(call.id());
                add(&mut named, call, &new);
                if let Some((_, rules)) = by_action.get_mut(position) {
                    add(rules, call, &new);
                }
            }
        }
        let mut programs = Vec::new();
        if default != SeccompAction::Allow {
            programs.push(compile(named, default, SeccompAction::Allow)?);
        }
        for (action, rules) in by_action {
            if action != SeccompAction::Allow && !rules.is_empty() {
                programs.push(compile(rules, SeccompAction::Allow, action)?);
            }
        }
        let mut flags = 0;
        for flag in seccomp.flags.iter().flatten() {
            flags |= match flag.as_str() {
                "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                "SECCOMP_FILTER_FLAG_TSYNC" => libc::SECCOMP_FILTER_FLAG_TSYNC,
                _ => return Err(invalid(format!("the flag {flag} is not supported"))),
            };
        }
        Ok(Self { programs, flags })
    }

    /// Loads them. Takes no_new_privs or CAP_SYS_ADMIN.
    pub fn load(&self) -> Result<()> {
        for program in &self.programs {
            load(program, self.flags).context(|| "load the seccomp filter".into())?;
        }
        Ok(())
    }
}

fn compile(rules: Rules, other: SeccompAction, named: SeccompAction) -> Result<BpfProgram> {
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(invalid)?;
    let filter = SeccompFilter::new(rules, other, named, arch).map_err(invalid)?;
    filter.try_into().map_err(invalid)
}

fn load(program: &[sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let too_long = |_| io::Error::from_raw_os_error(libc::EINVAL);
    /// As in linux/filter.h.
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const sock_filter,
    }
    let program = Program {
        len: u16::try_from(program.len()).map_err(too_long)?,
        filter: program.as_ptr(),
    };
    // SAFETY: the kernel reads `len` instructions at `filter`, which are there.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Filters> {
        Filters::new(&serde_json::from_str(text).unwrap())
    }

    /// If it fails, a filter of several actions loses one, or calls this kernel does not have make
    /// the configuration useless.
    #[test]
    fn one_program_for_each_action() {
        let filters = parse(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86"],
            "syscalls":[{"names":["read","no_such_call","write"],"action":"SCMP_ACT_ALLOW"},
            {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,
            "op":"SCMP_CMP_EQ"},{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,
            "valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
            {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":1},
            {"names":["bpf"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
        );
        assert_eq!(filters.unwrap().programs.len(), 3);
        let open = parse(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        assert!(open.programs.is_empty());
    }

    /// If it fails, a filter is loaded that allows more than was asked for.
    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
            r#"{"defaultAction":""}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","flags":["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":
                "SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":
                "SCMP_ACT_ALLOW","args":[{"index":1,"value":0,"op":"EQ"}]}]}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}

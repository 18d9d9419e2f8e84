//! The system calls that serving files takes. Any other ends the process: the guest then gets I/O
//! errors.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Why system calls cannot be filtered.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The filter cannot be made.
    #[error("cannot make the filter of system calls")]
    Make(#[source] seccompiler::BackendError),
    /// The kernel does not take it.
    #[error("cannot filter system calls")]
    Apply(#[source] seccompiler::Error),
}

/// Allowed with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // Files, by what virtiofsd's passthrough file system calls.
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
    // The users whose files they are.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    // The monitor, and the guest's kicks.
    libc::SYS_accept4,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    // Threads, memory and the end.
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Answered with ENOSYS by the second filter.
    libc::SYS_clone3,
];

/// From here on, for all threads started after it, other system calls end the process.
pub fn apply() -> Result<(), FilterError> {
    for program in [without_clone3()?, allow_list(SeccompAction::KillProcess)?] {
        seccompiler::apply_filter(&program).map_err(FilterError::Apply)?;
    }
    Ok(())
}

/// What is on the list, and some calls with the right arguments. Others meet `otherwise`.
fn allow_list(otherwise: SeccompAction) -> Result<BpfProgram, FilterError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|&number| (number, Vec::new())).collect();
    let bits = |value: libc::c_int| u64::from(value.unsigned_abs());
    let executable = SeccompCmpOp::MaskedEq(bits(libc::PROT_EXEC));
    for (number, argument, operation, value) in [
        // Threads, and no processes.
        (
            libc::SYS_clone,
            0,
            SeccompCmpOp::MaskedEq(bits(libc::CLONE_THREAD)),
            bits(libc::CLONE_THREAD),
        ),
        // No new code.
        (libc::SYS_mmap, 2, executable.clone(), 0),
        (libc::SYS_mprotect, 2, executable, 0),
        // Names of threads.
        (
            libc::SYS_prctl,
            0,
            SeccompCmpOp::Eq,
            bits(libc::PR_SET_NAME),
        ),
    ] {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operation, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(FilterError::Make)?;
        rules.insert(number, vec![condition]);
    }
    program(rules, otherwise, SeccompAction::Allow)
}

/// The arguments of clone3 lie in memory, where no filter sees them; the C library then falls back
/// to clone.
fn without_clone3() -> Result<BpfProgram, FilterError> {
    let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    program(rules, SeccompAction::Allow, refuse)
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, FilterError> {
    SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(FilterError::Make)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::thread;

    use super::*;

    /// Runs `call` in a thread that has the filter, with EPERM in place of the end.
    fn filtered(call: impl FnOnce() -> i64 + Send + 'static) -> Result<i64, Option<i32>> {
        thread::spawn(move || {
            let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
            for program in [without_clone3().unwrap(), allow_list(refuse).unwrap()] {
                seccompiler::apply_filter(&program).unwrap();
            }
            match call() {
                -1 => Err(io::Error::last_os_error().raw_os_error()),
                result => Ok(result),
            }
        })
        .join()
        .unwrap()
    }

    /// If it fails, a process that a guest has taken over reaches more of the host than files.
    #[test]
    fn only_what_files_take_gets_through() {
        let denied = Err(Some(libc::EPERM));
        // SAFETY: each call is refused by the filter; if not, it harms nobody.
        unsafe {
            let call = |number: i64, a: i64, b: i64, c: i64| {
                filtered(move || libc::syscall(number, a, b, c))
            };
            assert_eq!(call(libc::SYS_socket, 1, 1, 0), denied);
            assert_eq!(call(libc::SYS_execve, 0, 0, 0), denied);
            assert_eq!(call(libc::SYS_ptrace, 0, 0, 0), denied);
            assert_eq!(call(libc::SYS_kill, 0, 0, 0), denied);
            assert_eq!(call(libc::SYS_unshare, 0, 0, 0), denied);
            assert_eq!(call(libc::SYS_clone, 0, 0, 0), denied);
            assert_eq!(call(libc::SYS_mprotect, 0, 0, 4), denied);
            assert_eq!(call(libc::SYS_prctl, 38, 0, 0), denied);
            assert_eq!(call(libc::SYS_clone3, 0, 0, 0), Err(Some(libc::ENOSYS)));
            assert!(call(libc::SYS_getpid, 0, 0, 0).is_ok());
            assert_eq!(call(libc::SYS_close, 12345, 0, 0), Err(Some(libc::EBADF)));
        }
        assert!(filtered(|| i64::from(thread::spawn(|| 7).join().unwrap())).is_ok());
    }
}

//! Starts a program that is in its cgroup from its first instruction on.
//!
//! Who joins a cgroup by writing to its `cgroup.procs` makes the kernel wait until every CPU has come
//! by (`cgroup_threadgroup_rwsem`), which is several milliseconds of a container's start. A process
//! that is born there (clone3(2), `CLONE_INTO_CGROUP`) waits for nobody.

use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::set_parent_process_death_signal;

/// linux/sched.h, where it is wider than what the libc crate makes of it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Where a process is, if not where who starts it is.
#[derive(Debug, Default)]
pub struct Place<'a> {
    /// The directory of a cgroup (version 2).
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A network namespace.
    pub netns: Option<File>,
    /// CPUs, of which it and all that it starts get no others.
    pub cpus: Option<CpuSet>,
}

/// Where what a process prints goes.
#[derive(Debug)]
pub struct Outputs {
    /// Its standard output.
    pub stdout: File,
    /// Its standard error.
    pub stderr: File,
}

/// What the child is made of. All is there before it is: it can allocate nothing.
struct Child<'a> {
    program: &'a CString,
    argv: &'a [*const c_char],
    stdin: BorrowedFd<'a>,
    stdout: BorrowedFd<'a>,
    stderr: BorrowedFd<'a>,
    parent: Option<rustix::process::Pid>,
    place: &'a Place<'a>,
}

/// Starts `program` with `args`, with nothing to read, and with `outputs` to print to. It dies with
/// the thread that calls this, and inherits its environment, but neither descriptors nor blocked
/// signals.
pub fn spawn(program: &Path, args: &[&[u8]], outputs: &Outputs, place: &Place) -> io::Result<Pid> {
    let name = CString::new(program.as_os_str().as_bytes())?;
    let args: Vec<_> = args
        .iter()
        .map(|arg| CString::new(*arg))
        .collect::<Result<_, _>>()?;
    let argv: Vec<_> = std::iter::once(&name)
        .chain(&args)
        .map(|arg| arg.as_ptr())
        .chain([ptr::null()])
        .collect();
    let null = File::open("/dev/null")?;
    // Closed by a program that runs; else it says why none does.
    let (mut said, says) = pipe_with(PipeFlags::CLOEXEC).map(|(r, w)| (File::from(r), w))?;
    let child = Child {
        program: &name,
        argv: &argv,
        stdin: null.as_fd(),
        stdout: outputs.stdout.as_fd(),
        stderr: outputs.stderr.as_fd(),
        parent: Some(rustix::process::getpid()),
        place,
    };
    let pid = match fork_into(place.cgroup)? {
        Forked::Parent(pid) => pid,
        Forked::Child { joined } => child.become_program(joined, &says),
    };
    drop::<OwnedFd>(says);
    let mut number = [0; 4];
    match said.read_exact(&mut number) {
        Ok(()) => {
            let _ = waitpid(pid, None);
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number)))
        }
        Err(_) => Ok(pid),
    }
}

/// On which side of a fork we are.
enum Forked {
    Parent(Pid),
    /// Whether it is in the cgroup.
    Child {
        joined: bool,
    },
}

/// Forks, if it can be into a cgroup. In the child only what is safe in a signal handler may be done.
fn fork_into(cgroup: Option<BorrowedFd>) -> io::Result<Forked> {
    // SAFETY: the structure is numbers alone, for which zero means nothing.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or_default();
    }
    // SAFETY: without CLONE_VM and with no stack this is fork: the child has a copy of all memory, and
    // only this thread. What the caller does in it allocates nothing and takes no lock.
    let mut pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    let mut joined = cgroup.is_some();
    let error = io::Error::last_os_error();
    // Before Linux 5.7, or in a container whose rules do not know the call.
    if pid < 0
        && matches!(
            error.raw_os_error(),
            Some(libc::ENOSYS | libc::E2BIG | libc::EINVAL)
        )
    {
        joined = false;
        // SAFETY: as above.
        pid = unsafe { libc::fork() }.into();
    }
    match i32::try_from(pid) {
        Ok(0) => Ok(Forked::Child { joined }),
        Ok(pid @ 1..) => Ok(Forked::Parent(Pid::from_raw(pid))),
        _ => Err(error),
    }
}

impl Child<'_> {
    /// Becomes the program, or says why not and ends. Makes system calls and nothing else.
    fn become_program(&self, joined: bool, says: &OwnedFd) -> ! {
        let error = match self.prepare(joined) {
            Ok(()) => {
                // SAFETY: all pointers are to strings that end with a zero, the last is none.
                unsafe { libc::execv(self.program.as_ptr(), self.argv.as_ptr()) };
                io::Error::last_os_error()
            }
            Err(error) => error,
        };
        let number = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
        let _ = rustix::io::write(says, &number);
        // SAFETY: ends the process at once; nothing of the parent's is flushed or run twice.
        unsafe { libc::_exit(127) }
    }

    fn prepare(&self, joined: bool) -> io::Result<()> {
        set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have died before the wish was heard.
        if rustix::process::getppid() != self.parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        if let (Some(cgroup), false) = (self.place.cgroup, joined) {
            let procs = openat(
                cgroup,
                c"cgroup.procs",
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            rustix::io::write(procs, b"0")?;
        }
        if let Some(netns) = &self.place.netns {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(cpus) = &self.place.cpus {
            sched_setaffinity(Pid::from_raw(0), cpus)?;
        }
        rustix::stdio::dup2_stdin(self.stdin)?;
        rustix::stdio::dup2_stdout(self.stdout)?;
        rustix::stdio::dup2_stderr(self.stderr)?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        // SAFETY: sets no handler. Rust ignores the signal, which a program would inherit.
        unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::WaitStatus;

    fn outputs() -> Outputs {
        let file = || {
            let fd = rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            File::from(fd)
        };
        Outputs {
            stdout: file(),
            stderr: file(),
        }
    }

    fn said(file: &File) -> String {
        let mut text = vec![0; 4096];
        let count = std::os::unix::fs::FileExt::read_at(file, &mut text, 0).unwrap();
        String::from_utf8_lossy(&text[..count]).into_owned()
    }

    /// If it fails, a monitor gets other arguments, descriptors or signals than it should.
    #[test]
    fn a_program_has_what_it_was_given_and_nothing_else() {
        let outputs = outputs();
        let script = b"read x || echo end; echo $0 $1 >&2; \
            grep -E 'SigBlk|SigIgn' /proc/self/status >&2; exit 7";
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGUSR1);
        blocked.thread_block().unwrap();
        let args: [&[u8]; 4] = [b"-c", script, b"zero", b"one"];
        let pid = spawn(Path::new("/bin/sh"), &args, &outputs, &Place::default()).unwrap();
        blocked.thread_unblock().unwrap();
        assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 7));
        assert_eq!(said(&outputs.stdout), "end\n");
        let text = said(&outputs.stderr);
        assert!(text.starts_with("zero one\n"), "{text}");
        let signals = |field: &str| {
            let (_, rest) = text.split_once(field).unwrap();
            u64::from_str_radix(rest.split_whitespace().next().unwrap(), 16).unwrap()
        };
        assert_eq!(signals("SigBlk:"), 0);
        // Others may be ignored by who started us.
        assert_eq!(signals("SigIgn:") & 1 << (Signal::SIGPIPE as i32 - 1), 0);
    }

    /// If it fails, a program that cannot be run looks like one that runs, or leaves a zombie.
    #[test]
    fn what_cannot_be_run_is_an_error() {
        let place = Place::default();
        let error = spawn(Path::new("/nowhere/at/all"), &[], &outputs(), &place).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = spawn(Path::new("/proc"), &[], &outputs(), &place).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}

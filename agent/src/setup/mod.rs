//! The process that becomes a container's. The agent runs itself under another name: a process with
//! one thread and no memory of others, which takes its order from a socket, makes namespaces, forks
//! into them, sets itself up and executes the program.

mod devices;
mod init;
mod mounts;
mod network;
mod options;
mod privileges;
mod program;
mod schedule;
mod seccomp;
mod sources;
mod time;
mod userns;
mod users;

pub use devices::resize;

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::exit;

use cofferdam_root::RootDir;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, chdir, fork, sethostname, setsid};

use crate::cgroup;
use crate::channel::{Channel, Go, Order, Reply, Task};
use crate::error::{Context, Error, Result};
use crate::spec::{Process, Spec};
use devices::{Terminal, be_stdio};
use program::Program;
use seccomp::Filters;

/// Runs with the socket as standard input; what it prints goes to the console.
pub fn main() -> ! {
    // A descriptor of its own, closed by exec; standard input will be another.
    let socket = match devices::out_of_the_way(std::io::stdin().as_fd()) {
        Ok(socket) => UnixStream::from(socket),
        Err(_) => exit(1),
    };
    let mut channel = Channel::new(socket);
    let Err(error) = run(&mut channel);
    let reply = Reply::Error {
        code: error.code() as i32,
        text: error.text(),
    };
    // If the agent does not listen there is nobody to tell.
    let _ = channel.send(&reply, &[]);
    exit(1)
}

fn run(channel: &mut Channel) -> Result<Infallible> {
    let order: Order = channel
        .receive()
        .context(|| "understand the agent".into())?
        .ok_or_else(|| Error::invalid("order", "there is none"))?;
    let stdio = channel.take_fds();
    let stdio = devices::place(stdio, &order.descriptors)?;
    umask(Mode::empty());
    let affinity = match &order.task {
        Task::Create { .. } => None,
        Task::Exec { .. } => order.process.exec_cpu_affinity.as_ref(),
    };
    if let Some(cpus) = affinity {
        schedule::bind(cpus.initial.as_deref())?;
    }
    cgroup::join(&order.cgroup, &order.task)?;
    if let Some(cpus) = affinity {
        schedule::bind(cpus.r#final.as_deref())?;
    }
    set_oom_score(&order.process)?;
    privileges::allow_limits(&order.process)?;
    match &order.task {
        Task::Create { spec, .. } => {
            network::set_sysctls(spec)?;
            mounts::prepare(spec)?;
            create_namespaces(channel, spec)?;
        }
        Task::Exec {
            init, namespaces, ..
        } => enter_namespaces(channel, *init, namespaces)?,
    }
    setsid().context(|| "start a session".into())?;
    match &order.task {
        Task::Create { spec, rootfs, .. } => become_container(channel, &order, spec, rootfs, stdio),
        Task::Exec { seccomp, .. } => {
            let filters = seccomp.as_ref().map(Filters::new).transpose()?;
            let process = users::resolved(&order.process)?;
            let terminal = open_terminal(&order, &process)?;
            become_process(channel, &process, filters, terminal, stdio, false)
        }
    }
}

fn set_oom_score(process: &Process) -> Result<()> {
    let Some(score) = process.oom_score_adj else {
        return Ok(());
    };
    fs::write("/proc/self/oom_score_adj", score.to_string())
        .context(|| format!("set process.oomScoreAdj to {score}"))
}

/// The flag of a namespace's kind. The network is the guest's own.
fn flag_of(kind: &str) -> Result<CloneFlags> {
    Ok(match kind {
        "pid" => CloneFlags::CLONE_NEWPID,
        "mount" => CloneFlags::CLONE_NEWNS,
        "uts" => CloneFlags::CLONE_NEWUTS,
        "ipc" => CloneFlags::CLONE_NEWIPC,
        "cgroup" => CloneFlags::CLONE_NEWCGROUP,
        "user" => CloneFlags::CLONE_NEWUSER,
        "time" => time::NEWTIME,
        "network" => CloneFlags::empty(),
        _ => {
            return Err(Error::invalid(
                "linux.namespaces",
                format!("{kind} is not supported"),
            ));
        }
    })
}

/// The namespaces of a configuration. A container without a mount namespace has one all the same.
pub fn flags_of(spec: &Spec) -> Result<CloneFlags> {
    let mut flags = CloneFlags::CLONE_NEWNS;
    for namespace in spec.linux.namespaces.iter().flatten() {
        if namespace.path.is_some() && namespace.kind != "network" {
            let why = format!(
                "the {} namespace has a path, which is the host's",
                namespace.kind
            );
            return Err(Error::invalid("linux.namespaces", why));
        }
        flags |= flag_of(&namespace.kind)?;
    }
    Ok(flags)
}

fn create_namespaces(channel: &mut Channel, spec: &Spec) -> Result<()> {
    let mut flags = flags_of(spec)?;
    time::create(spec)?;
    flags.remove(time::NEWTIME);
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        userns::create(&spec.linux)?;
        flags.remove(CloneFlags::CLONE_NEWUSER);
    }
    unshare(flags).context(|| "make namespaces".into())?;
    go_on_in_child(channel)
}

fn enter_namespaces(channel: &mut Channel, init: i32, kinds: &[String]) -> Result<()> {
    let mut flags = CloneFlags::CLONE_NEWNS;
    for kind in kinds {
        flags |= flag_of(kind)?;
    }
    // SAFETY: no pointers; the kernel gives a new descriptor or an error.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, init, 0) };
    let pidfd = i32::try_from(pidfd).unwrap_or(-1);
    if pidfd < 0 {
        return Err(Errno::last()).context(|| format!("find the container's process {init}"));
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    let pidfd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(pidfd) };
    setns(&pidfd, flags).context(|| "enter the container's namespaces".into())?;
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        userns::be_root()?;
    }
    go_on_in_child(channel)
}

/// Forks; the child goes on, in the new PID namespace, and the parent ends when it has told the agent
/// the child's number.
fn go_on_in_child(channel: &mut Channel) -> Result<()> {
    // SAFETY: this process has one thread, so the child's memory is as consistent as its own.
    match unsafe { fork() }.context(|| "make a process in the container".into())? {
        ForkResult::Child => Ok(()),
        ForkResult::Parent { child } => {
            let told = channel.send(&Reply::Pid(child.as_raw()), &[]);
            exit(i32::from(told.is_err()));
        }
    }
}

fn open_terminal(order: &Order, process: &Process) -> Result<Option<Terminal>> {
    if !process.terminal {
        return Ok(None);
    }
    let configured = process.console_size.map(|size| (size.height, size.width));
    let size = order.size.or(configured);
    Terminal::new(size, process.user.uid).map(Some)
}

fn become_container(
    channel: &mut Channel,
    order: &Order,
    spec: &Spec,
    rootfs: &str,
    stdio: Vec<OwnedFd>,
) -> Result<Infallible> {
    let filters = spec.linux.seccomp.as_ref().map(Filters::new).transpose()?;
    refuse_what_is_not_there(spec)?;
    if spec.has_namespace("uts") {
        set_names(spec)?;
    } else if !spec.hostname.is_empty() {
        return Err(Error::invalid(
            "hostname",
            "there is no uts namespace of its own",
        ));
    }
    let all = spec.linux.sysctl.iter().flatten();
    for (name, value) in all.filter(|(name, _)| !network::is_sysctl(name)) {
        set_sysctl(name, value)?;
    }
    let spec = &devices::with_the_guests(spec)?;
    let mut sources = mounts::enter(spec, rootfs)?;
    let root = RootDir::open("/".as_ref()).context(|| "open the container's root".into())?;
    mounts::mount_all(spec, &root, &mut sources)?;
    devices::make(spec, &root, &mut sources)?;
    let process = users::resolved(&order.process)?;
    let terminal = open_terminal(order, &process)?;
    if let Some(terminal) = &terminal {
        terminal.be_console(&root)?;
    }
    let cwd = &order.process.cwd;
    if !cwd.is_empty() && fs::metadata(cwd).is_err() {
        root.make_directory(cwd)
            .context(|| format!("make the working directory {cwd}"))?;
    }
    mounts::restrict(spec)?;
    let init = matches!(order.task, Task::Create { init: true, .. });
    become_process(channel, &process, filters, terminal, stdio, init)
}

fn set_names(spec: &Spec) -> Result<()> {
    if !spec.hostname.is_empty() {
        sethostname(&spec.hostname).context(|| format!("set the host name {}", spec.hostname))?;
    }
    if !spec.domainname.is_empty() {
        fs::write("/proc/sys/kernel/domainname", &spec.domainname)
            .context(|| format!("set the domain name {}", spec.domainname))?;
    }
    Ok(())
}

fn refuse_what_is_not_there(spec: &Spec) -> Result<()> {
    if spec
        .linux
        .mount_label
        .as_ref()
        .is_some_and(|label| !label.is_empty())
    {
        return Err(Error::invalid(
            "linux.mountLabel",
            "the guest's kernel has no SELinux",
        ));
    }
    if let Some(personality) = &spec.linux.personality {
        let why = match personality.domain.as_str() {
            // The specification has none yet.
            "LINUX" if personality.flags.iter().flatten().count() == 0 => return Ok(()),
            "LINUX" => "there are no flags".to_owned(),
            domain => format!("the guest's kernel does not run {domain}"),
        };
        return Err(Error::invalid("linux.personality", why));
    }
    Ok(())
}

/// Sets a sysctl, named with dots or with slashes.
fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let path = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    if path.split('/').any(|step| step.is_empty() || step == "..") {
        return Err(Error::invalid(
            "linux.sysctl",
            format!("{name} is no name of one"),
        ));
    }
    fs::write(format!("/proc/sys/{path}"), value)
        .context(|| format!("set sysctl {name} to {value}"))
}

/// What every process does in the end, first or not.
fn become_process(
    channel: &mut Channel,
    process: &Process,
    filters: Option<Filters>,
    terminal: Option<Terminal>,
    stdio: Vec<OwnedFd>,
    init: bool,
) -> Result<Infallible> {
    refuse_labels(process)?;
    if let Some(terminal) = terminal {
        let master = terminal.control()?;
        channel
            .send(&Reply::Terminal, &[master.as_fd()])
            .context(|| "hand out the terminal".into())?;
    } else {
        let [stdin, stdout, stderr] = stdio.as_slice() else {
            return Err(Error::invalid(
                "order",
                "there are no standard streams with it",
            ));
        };
        for fd in [stdin, stdout, stderr] {
            // So that the user can open /dev/stdout; what cannot be given away stays as it is.
            let _ = std::os::unix::fs::fchown(fd, Some(process.user.uid), None);
        }
        be_stdio([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
    }
    privileges::set_limits(process)?;
    schedule::set(process)?;
    let cwd = if process.cwd.is_empty() {
        "/"
    } else {
        &process.cwd
    };
    if !cwd.starts_with('/') {
        return Err(Error::invalid(
            "process.cwd",
            format!("{cwd} is not absolute"),
        ));
    }
    // Root may enter what the user may not; who knows a share that only the user may enter?
    let entered = chdir(cwd);
    if process.no_new_privileges {
        privileges::set_no_new_privileges()?;
    } else if let Some(filters) = &filters {
        // Only root may do that.
        filters.load()?;
    }
    privileges::become_user(process)?;
    if entered.is_err() {
        chdir(cwd).context(|| format!("enter the working directory {cwd}"))?;
    }
    let program = Program::find(process)?;
    umask(Mode::from_bits_truncate(
        process.user.umask.unwrap_or(0o022) & 0o777,
    ));
    channel
        .send(&Reply::Ready, &[])
        .context(|| "tell the agent".into())?;
    let go: Option<Go> = channel
        .receive()
        .context(|| "understand the agent".into())?;
    if go.is_none() {
        // Deleted before it was started.
        exit(0);
    }
    if let Some(filters) = filters.filter(|_| process.no_new_privileges) {
        filters.load()?;
    }
    if init {
        init::stay_behind(process.terminal)?;
    }
    program.execute()
}

fn refuse_labels(process: &Process) -> Result<()> {
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if is_set(&process.apparmor_profile)
        && process.apparmor_profile.as_deref() != Some("unconfined")
    {
        return Err(Error::invalid(
            "process.apparmorProfile",
            "the guest's kernel has no AppArmor",
        ));
    }
    if is_set(&process.selinux_label) {
        return Err(Error::invalid(
            "process.selinuxLabel",
            "the guest's kernel has no SELinux",
        ));
    }
    Ok(())
}

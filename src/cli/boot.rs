//! `cofferdam boot`: boots a kernel and a root file system.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{fail, print};
use crate::config::{
    BalloonConfig, ConfigError, ConsoleConfig, DiskConfig, FsConfig, Grace, Hardware, HugePages,
    LogLevel, MAX_CPUS, MemorySize, NetConfig, Pages, PmemConfig, Protocol, RngConfig, RootConfig,
    Switch, VmConfig, VsockConfig, parse_options,
};
use crate::descriptors;
use crate::guest;
use crate::telemetry;
use crate::vm::{self, EXIT_MONITOR, EXIT_USAGE};

const EXAMPLES: &str = "\
Examples:
  The default guest, to its shell:
    cofferdam boot
  Your own kernel and root file system, two vCPUs, 1 GiB:
    cofferdam boot --kernel vmlinux --rootfs disk.ext4 --cpus 2 --memory 1G
  A distribution's kernel with its initrd and a data disk:
    cofferdam boot --kernel vmlinuz --initrd initrd.img --disk path=data.img,id=data
  With a network that takes no privilege, and port 8080 of the host for the guest's port 80:
    cofferdam boot --net passt,publish=8080:80
  On a tap (it is made if it is not there):
    cofferdam boot --net tap=tap0,mac=02:00:00:00:00:01
  With a directory of the host (in the guest: mount -t virtiofs data /mnt):
    cofferdam boot --fs tag=data,path=/srv/data
  What the guest frees goes back to the host:
    cofferdam boot --memory 2G --balloon
  One command in the guest; its exit status is ours:
    cofferdam boot --cmdline 'quiet -- uname -a'
  What the options amount to, as a file for --config:
    cofferdam boot --cpus 4 --print-config

On a terminal, Ctrl-a x leaves the VM and Ctrl-a h lists the other keys.

Exit codes:
  0        the guest powered off (or the status that it left at port 0x605)
  1        the monitor failed while the VM ran
  2        usage or configuration: an option, a kernel, a file is wrong
  3        the host cannot: no KVM, no permission, no memory, a disk or tap in use
  80       the guest asked for a reset (reboot)
  81       the guest's kernel panicked
  82       triple fault
  83       KVM could not go on with a vCPU; its registers are in the log
  84       the guest did not power off in the grace period after SIGTERM or SIGINT
  85       left by Ctrl-a x
  128+n    stopped at once by a second signal n";

/// Boot a Linux guest and stay with it until it ends
///
/// Options of `cofferdam boot`. Each has its place in the configuration file, too.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Kernel: an ELF vmlinux or a bzImage [default: the default guest's]
    #[arg(long, value_name = "FILE", help_heading = GUEST)]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", help_heading = GUEST)]
    initrd: Option<PathBuf>,
    /// Kernel command line, put after our own part; what follows ' -- ' goes to init
    /// [default: quiet]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = GUEST)]
    cmdline: Option<String>,
    /// vCPUs, 1 to 32 [default: 1]
    #[arg(long, value_name = "N", value_parser = cpu_count(), help_heading = GUEST)]
    cpus: Option<u8>,
    /// Memory: 512 (MiB), 512M, 2G, then [,prefault=on|off] [default: 256M]
    #[arg(long, value_name = "SIZE[,…]", value_parser = memory, help_heading = GUEST)]
    memory: Option<Memory>,

    /// Root file system: PATH[,ro][,…], options as of --disk; or PATH,pmem[,ro], mapped as of --pmem
    #[arg(long, value_name = "PATH[,…]", value_parser = root, help_heading = DEVICES)]
    rootfs: Option<RootConfig>,
    /// Another disk (repeatable): path=FILE[,ro][,id=NAME][,cache=writeback|unsafe][,engine=auto|sync|io_uring][,queues=N][,iothread=on][,rate_limit.read.bytes_per_second=BYTES,…]
    #[arg(long = "disk", value_name = "path=FILE[,…]", value_parser = disk, help_heading = DEVICES)]
    disks: Vec<DiskConfig>,
    /// Image whose pages the guest maps (repeatable): file=PATH[,ro]
    #[arg(long = "pmem", value_name = "file=PATH[,ro]", value_parser = pmem, help_heading = DEVICES)]
    pmems: Vec<PmemConfig>,
    /// Network interface (repeatable): passt[,publish=HOST:GUEST[/udp][+…]], tap=NAME or fd=N, then
    /// [,queues=N][,mac=ADDRESS][,mtu=BYTES][,rate_limit.rx|tx.bytes_per_second=BYTES]
    #[arg(long = "net", value_name = "passt|tap=NAME[,…]", value_parser = net, help_heading = DEVICES)]
    nets: Vec<NetConfig>,
    /// Directory that the guest mounts by its tag (repeatable): tag=NAME,path=DIR[,ro][,name=NAME][,suid]
    /// [,dev], or tag=NAME,socket=PATH for another file-system daemon. Warning: with suid the guest can
    /// leave programs there that run as root on the host, with dev nodes of the host's devices
    #[arg(long = "fs", value_name = "tag=NAME,path=DIR[,…]", value_parser = fs, help_heading = DEVICES)]
    fs: Vec<FsConfig>,
    /// Sockets between guest and host: cid=ADDRESS (3 or more),uds=PATH of the host's socket
    #[arg(long, value_name = "cid=N,uds=PATH", value_parser = vsock, help_heading = DEVICES)]
    vsock: Option<VsockConfig>,
    /// Serial console: stdio, off, pty, file=PATH or socket=PATH [default: stdio]
    #[arg(long, value_name = "WHERE", help_heading = DEVICES)]
    console: Option<ConsoleConfig>,
    /// Entropy device, which is there anyway, with options: rate_limit.bytes_per_second=BYTES,…
    #[arg(long, value_name = "OPTION=…", value_parser = rng, help_heading = DEVICES)]
    rng: Option<RngConfig>,
    /// Leave out the entropy device
    #[arg(long, conflicts_with = "rng", help_heading = DEVICES)]
    no_rng: bool,
    /// Balloon: memory that the guest frees comes back. Alone, or with
    /// [size=SIZE][,deflate_on_oom][,reporting=off][,hinting=SECONDS][,stats=SECONDS]
    #[arg(long, value_name = "OPTION,…", num_args = 0..=1, default_missing_value = "reporting",
          value_parser = balloon, help_heading = DEVICES)]
    balloon: Option<BalloonConfig>,

    /// Configuration file (JSON); options given beside it win, disks, networks and directories are added
    #[arg(long, value_name = "FILE", help_heading = MONITOR)]
    config: Option<PathBuf>,
    /// Print the configuration that all of this makes, and do nothing else
    #[arg(long, help_heading = MONITOR)]
    print_config: bool,
    /// Seconds that the guest has to power off after SIGTERM or SIGINT [default: 10]
    #[arg(long, value_name = "SECONDS", help_heading = MONITOR)]
    grace: Option<u32>,
    /// What is logged: off, error, warn, info, debug or trace [default: warn]
    #[arg(long, value_name = "LEVEL", hide_possible_values = true, help_heading = MONITOR)]
    log_level: Option<LogLevel>,
    /// Where the log is appended [default: standard error]
    #[arg(long, value_name = "FILE", help_heading = MONITOR)]
    log_file: Option<PathBuf>,

    /// CPU template (JSON) that sets CPUID and MSR bits
    #[arg(long, value_name = "FILE", help_heading = TUNING)]
    cpu_template: Option<PathBuf>,
    /// Back guest memory with huge pages that the host has set aside: 2M
    #[arg(long, value_name = "SIZE", hide_possible_values = true, help_heading = TUNING)]
    hugepages: Option<HugePages>,
    /// How kernel and initrd get into memory: copy (fewest page faults), or map (VMs share the
    /// pages that none of them writes) [default: copy]
    #[arg(long, value_name = "HOW", hide_possible_values = true, help_heading = TUNING)]
    pages: Option<Pages>,
    /// How the kernel is entered: linux, or pvh (a vmlinux with a PVH note) [default: linux]
    #[arg(long, value_name = "HOW", hide_possible_values = true, help_heading = TUNING)]
    protocol: Option<Protocol>,
    /// How the guest learns of its hardware: acpi, or cmdline (for kernels without ACPI)
    /// [default: acpi]
    #[arg(long, value_name = "HOW", hide_possible_values = true, help_heading = TUNING)]
    hardware: Option<Hardware>,
    /// Add the old interval timer, for kernels that cannot do without
    #[arg(long, help_heading = TUNING)]
    pit: bool,
}

const GUEST: &str = "Guest";
const DEVICES: &str = "Devices";
const MONITOR: &str = "Monitor";
const TUNING: &str = "Tuning and old kernels";

fn cpu_count() -> impl clap::builder::TypedValueParser<Value = u8> {
    clap::value_parser!(u8).range(1..=i64::from(MAX_CPUS))
}

/// What `--memory` says. Huge pages have an option of their own.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    size: Option<MemorySize>,
    prefault: Option<bool>,
}

fn memory(text: &str) -> Result<Memory, String> {
    parse_options(text, Some("size")).map_err(|error| error.to_string())
}

fn root(text: &str) -> Result<RootConfig, String> {
    parse_options(text, Some("path")).map_err(|error| error.to_string())
}

fn disk(text: &str) -> Result<DiskConfig, String> {
    parse_options(text, None).map_err(|error| error.to_string())
}

fn pmem(text: &str) -> Result<PmemConfig, String> {
    parse_options(text, None).map_err(|error| error.to_string())
}

fn fs(text: &str) -> Result<FsConfig, String> {
    parse_options(text, None).map_err(|error| error.to_string())
}

fn net(text: &str) -> Result<NetConfig, String> {
    parse_options(text, None).map_err(|error| error.to_string())
}

fn vsock(text: &str) -> Result<VsockConfig, String> {
    parse_options(text, None).map_err(|error| error.to_string())
}

fn rng(text: &str) -> Result<RngConfig, String> {
    parse_options(text, None).map_err(|error| error.to_string())
}

fn balloon(text: &str) -> Result<BalloonConfig, String> {
    parse_options(text, None).map_err(|error| error.to_string())
}

impl Args {
    /// The configuration file, if there is one, with the options over it.
    fn into_config(self) -> Result<VmConfig, ConfigError> {
        let mut config = match &self.config {
            Some(path) => VmConfig::from_file(path)?,
            None => VmConfig::default(),
        };
        let boot = &mut config.boot;
        boot.kernel = self.kernel.or(boot.kernel.take());
        boot.initrd = self.initrd.or(boot.initrd.take());
        boot.cmdline = self.cmdline.or(boot.cmdline.take());
        boot.protocol = self.protocol.or(boot.protocol);
        boot.pages = self.pages.unwrap_or(boot.pages);
        boot.hardware = self.hardware.unwrap_or(boot.hardware);
        config.rootfs = self.rootfs.or(config.rootfs.take());
        config.disks.extend(self.disks);
        config.pmems.extend(self.pmems);
        config.nets.extend(self.nets);
        config.fs.extend(self.fs);
        config.vsock = self.vsock.or(config.vsock.take());
        config.cpus.count = self.cpus.unwrap_or(config.cpus.count);
        config.cpus.template = self.cpu_template.or(config.cpus.template.take());
        config.cpus.pit |= self.pit;
        if let Some(memory) = self.memory {
            config.memory.size = memory.size.unwrap_or(config.memory.size);
            config.memory.prefault = memory.prefault.unwrap_or(config.memory.prefault);
        }
        config.memory.hugepages = self.hugepages.or(config.memory.hugepages);
        config.console = self.console.unwrap_or(config.console);
        if self.no_rng {
            config.rng = Switch::Off;
        }
        config.rng = self.rng.map_or(config.rng, Switch::On);
        config.balloon = self.balloon.or(config.balloon);
        config.grace = self.grace.map_or(config.grace, Grace);
        config.log.level = self.log_level.unwrap_or(config.log.level);
        config.log.file = self.log_file.or(config.log.file.take());
        config.validate()?;
        Ok(config)
    }
}

/// Runs the VM to its end. The exit code says how it came.
pub fn run(args: Args) -> ExitCode {
    descriptors::close_on_exec();
    let prints = args.print_config;
    let mut config = match args.into_config() {
        Ok(config) => config,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    if prints {
        return print_config(&config);
    }
    if let Err(error) = guest::complete(&mut config) {
        return fail(&error, EXIT_USAGE);
    }
    if let Err(error) = telemetry::init(&config.log) {
        return fail(&error, EXIT_USAGE);
    }
    let vm = match vm::build(&config) {
        Ok(vm) => vm,
        Err(error) => {
            let code = fail(&error, error.exit_code());
            error
                .help()
                .into_iter()
                .for_each(|help| eprintln!("{help}"));
            return code;
        }
    };
    match vm.run() {
        Ok(end) => {
            log::info!("{}", end.reason);
            ExitCode::from(end.exit_code())
        }
        Err(error) => fail(&error, EXIT_MONITOR),
    }
}

fn print_config(config: &VmConfig) -> ExitCode {
    match serde_json::to_string_pretty(config) {
        Ok(text) => print((text + "\n").as_bytes()),
        Err(error) => fail(&error, EXIT_MONITOR),
    }
}

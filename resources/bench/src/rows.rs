//! The monitors, and the command lines that start them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Memory of each guest, MiB.
pub const GUEST_MEMORY_MIB: u32 = 128;
/// The row that the budgets of a quiet boot are for.
pub const DEFAULT_ROW: &str = "cofferdam";
/// The row with a disk and a network interface.
pub const DEVICES_ROW: &str = "cofferdam-devices";
/// The row with a device of each kind.
pub const ALL_ROW: &str = "cofferdam-all";
/// The rows whose root is an image on a disk, and the same image on a pmem device.
pub const ROOT_ROWS: [&str; 3] = [
    "cofferdam-blk-root",
    "cofferdam-pmem-root",
    "qemu-microvm-blk-root",
];
/// The peer's rows.
pub const PEER_ROWS: [&str; 2] = ["qemu-microvm", "qemu-microvm-acpi"];

/// What Cofferdam adds to a kernel's command line by itself, so that the peer's kernel gets the
/// same.
const COFFERDAM_ADDS: &str = "panic=-1 console=ttyS0 8250.nr_uarts=1";
/// What it adds if the root is a disk.
const COFFERDAM_ADDS_FOR_ROOT: &str = "panic=-1 console=ttyS0 8250.nr_uarts=1 root=/dev/vda ro";

/// Where things are in the lab.
#[derive(Clone, Debug)]
pub struct Places {
    /// Our program.
    pub cofferdam: PathBuf,
    /// The same as an OCI runtime.
    pub runtime: PathBuf,
    /// QEMU's.
    pub qemu: PathBuf,
    /// The kernel that all boot, an ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The initramfs that all boot.
    pub initrd: PathBuf,
    /// A root file system with the initramfs's init, as an image.
    pub root: PathBuf,
    /// The directory with what containers' VMs boot.
    pub guest: PathBuf,
    /// The peer's file-system process.
    pub virtiofsd: PathBuf,
    /// A disk for the rows that have one.
    pub disk: PathBuf,
    /// An image for the row with a pmem device: a disk locks its own.
    pub pmem: PathBuf,
}

/// What the guest is told beyond how to find its console.
#[derive(Clone, Copy, Debug)]
pub enum Guest {
    /// To be quiet until init, which then idles.
    Quiet,
    /// To talk from the first line on.
    Chatty,
    /// To be quiet, and to power off from init.
    PowerOff,
}

impl Guest {
    fn cmdline(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Chatty => "earlycon=uart,io,0x3f8,115200n8",
            Self::PowerOff => "quiet -- poweroff",
        }
    }
}

/// A monitor in one configuration.
#[derive(Clone, Debug)]
pub struct RowSpec {
    /// Stable name, as in the JSON.
    pub id: &'static str,
    /// What people call it.
    pub label: &'static str,
    /// Whether the guest can end the machine.
    pub powers_off: bool,
    program: PathBuf,
    args: Vec<String>,
    /// The option for the kernel's command line, and what its value begins with.
    cmdline: (&'static str, &'static str),
}

impl RowSpec {
    /// The command that boots the guest.
    pub fn command(&self, guest: Guest) -> Command {
        self.command_with(guest.cmdline())
    }

    /// The command that boots a guest whose kernel gets this command line, beside what is needed
    /// to find its console.
    pub fn command_with(&self, cmdline: &str) -> Command {
        let (option, prefix) = self.cmdline;
        let cmdline = format!("{prefix} {cmdline}");
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .arg(option)
            .arg(cmdline.trim_start());
        command
    }

    /// The quiet run's command as one could type it, with file names for paths.
    pub fn shown(&self) -> String {
        let command = self.command(Guest::Quiet);
        let mut shown = base(&self.program);
        for arg in command.get_args() {
            let arg = arg.to_string_lossy();
            let _ = if arg.starts_with('/') {
                write!(shown, " {}", base(Path::new(&*arg)))
            } else if arg.contains(' ') {
                write!(shown, " '{arg}'")
            } else {
                write!(shown, " {arg}")
            };
        }
        shown
    }
}

fn base(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// All rows, in the order in which they are shown.
pub fn all(places: &Places) -> Vec<RowSpec> {
    let ours = |id, label, more: &[&str]| cofferdam(places, id, label, more);
    let disk = format!("path={}", places.disk.display());
    let pmem = format!("file={},ro", places.pmem.display());
    let net = "tap=bench0,mac=02:00:00:00:00:01";
    let devices = ["--no-rng", "--disk", &disk, "--net", net];
    // The entropy device is there unless left out.
    let all = [
        "--balloon",
        "--disk",
        &disk,
        "--net",
        net,
        "--vsock",
        "cid=3,uds=/tmp/vsock",
        "--pmem",
        &pmem,
    ];
    let mut rows = vec![
        ours(DEFAULT_ROW, "Cofferdam", &["--no-rng"]),
        ours(
            "cofferdam-map",
            "Cofferdam, pages mapped",
            &["--no-rng", "--pages", "map"],
        ),
        ours(DEVICES_ROW, "Cofferdam, disk and net", &devices),
        ours(ALL_ROW, "Cofferdam, all devices", &all),
        qemu(places, PEER_ROWS[0], "QEMU microvm", "acpi=off", &[]),
        qemu(places, PEER_ROWS[1], "QEMU microvm, ACPI", "acpi=on", &[]),
    ];
    rows.extend(roots(places));
    rows
}

/// Without an initramfs: the root is an image.
fn roots(places: &Places) -> [RowSpec; 3] {
    let image = path(&places.root);
    let ours = |id, label, device: &str| {
        let source = ["--no-rng", "--rootfs", &format!("{image}{device},ro")];
        cofferdam_from(places, id, label, &source)
    };
    let source = [
        "-global",
        "virtio-mmio.force-legacy=false",
        "-drive",
        &format!("if=none,id=root,format=raw,readonly=on,file={image}"),
        "-device",
        "virtio-blk-device,drive=root",
    ];
    [
        ours(ROOT_ROWS[0], "Cofferdam, root on blk", ""),
        ours(ROOT_ROWS[1], "Cofferdam, root on pmem", ",pmem"),
        RowSpec {
            cmdline: ("-append", COFFERDAM_ADDS_FOR_ROOT),
            ..qemu_from(
                places,
                ROOT_ROWS[2],
                "QEMU microvm, root on blk",
                "acpi=off",
                &source,
            )
        },
    ]
}

/// Cofferdam with the initramfs and more options.
pub fn cofferdam(places: &Places, id: &'static str, label: &'static str, more: &[&str]) -> RowSpec {
    let initrd = path(&places.initrd);
    let more: Vec<_> = ["--initrd", &initrd].iter().chain(more).copied().collect();
    cofferdam_from(places, id, label, &more)
}

/// Cofferdam with options that say where init is, and more.
fn cofferdam_from(
    places: &Places,
    id: &'static str,
    label: &'static str,
    more: &[&str],
) -> RowSpec {
    let memory = format!("{GUEST_MEMORY_MIB}M");
    let kernel = path(&places.kernel);
    let args = ["boot", "--kernel", &kernel, "--memory", &memory];
    RowSpec {
        id,
        label,
        powers_off: true,
        program: places.cofferdam.clone(),
        args: args
            .iter()
            .chain(more)
            .map(|arg| (*arg).to_owned())
            .collect(),
        cmdline: ("--cmdline", ""),
    }
}

/// QEMU's `microvm` machine with the initramfs, and all left out that can be: option ROMs, PIT, PIC,
/// RTC, default devices. With ACPI its guest can power off; without, it starts sooner.
pub fn qemu(
    places: &Places,
    id: &'static str,
    label: &'static str,
    acpi: &str,
    more: &[&str],
) -> RowSpec {
    let initrd = path(&places.initrd);
    let more: Vec<_> = ["-initrd", &initrd].iter().chain(more).copied().collect();
    qemu_from(places, id, label, acpi, &more)
}

/// The same with options that say where init is, and more.
fn qemu_from(
    places: &Places,
    id: &'static str,
    label: &'static str,
    acpi: &str,
    more: &[&str],
) -> RowSpec {
    let machine = format!("microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,{acpi}");
    let memory = GUEST_MEMORY_MIB.to_string();
    let kernel = path(&places.kernel);
    let args = [
        "-M",
        &machine,
        "-enable-kvm",
        "-cpu",
        "host",
        "-m",
        &memory,
        "-smp",
        "1",
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
        "-serial",
        "stdio",
        "-kernel",
        &kernel,
    ];
    RowSpec {
        id,
        label,
        powers_off: acpi == "acpi=on",
        program: places.qemu.clone(),
        args: args
            .iter()
            .chain(more)
            .map(|arg| (*arg).to_owned())
            .collect(),
        cmdline: ("-append", COFFERDAM_ADDS),
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<RowSpec> {
        all(&Places {
            cofferdam: "/bench/cofferdam".into(),
            runtime: "/bench/cofferdam-runc".into(),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            kernel: "/bench/vmlinux".into(),
            initrd: "/bench/bench.cpio".into(),
            root: "/bench/bench.erofs".into(),
            guest: "guest".into(),
            virtiofsd: "/usr/lib/qemu/virtiofsd".into(),
            disk: "/tmp/disk".into(),
            pmem: "/tmp/pmem".into(),
        })
    }

    /// If it fails, the rows do not boot the same guest, and comparing them means nothing.
    #[test]
    fn all_boot_the_same_guest() {
        for row in rows() {
            let shown = row.shown();
            for part in ["vmlinux", "bench", "128", "quiet"] {
                assert!(shown.contains(part), "{shown}");
            }
            let has_root = shown.contains("bench.erofs");
            assert_eq!(has_root, ROOT_ROWS.contains(&row.id), "{shown}");
        }
    }

    /// If it fails, init gets no order to power off, or the kernel is not told where it ends.
    #[test]
    fn the_command_line_is_one_argument() {
        let command = rows()[4].command(Guest::PowerOff);
        let last = command
            .get_args()
            .last()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        assert_eq!(
            last,
            "panic=-1 console=ttyS0 8250.nr_uarts=1 quiet -- poweroff"
        );
        let command = rows()[0].command(Guest::PowerOff);
        assert_eq!(command.get_args().last().unwrap(), "quiet -- poweroff");
    }
}

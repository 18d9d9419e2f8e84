//! The part that runs in the lab: makes an image and a bundle of the same files, and runs them.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{
    BOOT_ROW, IMAGE, PROCESS_ROW, RUN_ROW, WRITES, cofferdam, idle, shown, with_environment,
};
use crate::boot::Boot;
use crate::measure::{MeasureError, read, run_at_once, version};
use crate::report::{ContainerRow, Containers, Figure, ImageSize};
use crate::rows::Places;

/// What containers and the bare guest say first.
const WORD: &str = "init";
/// The size that a container's VM has if nothing is said, MiB.
const VM_MEMORY: &str = "578M";

/// A way to run something.
struct Way {
    id: &'static str,
    label: &'static str,
    /// Says [`WORD`] and ends; a bare guest idles then.
    speaks: Command,
    /// Ends at once.
    ends: Option<Command>,
}

/// Runs all of them.
pub fn measure(places: &Places, runs: u32) -> Result<Containers, MeasureError> {
    run_at_once();
    fs::create_dir_all(WRITES).map_err(|error| MeasureError::File(WRITES.into(), error))?;
    // As any host has.
    fs::create_dir_all("/etc")
        .and_then(|()| fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n"))
        .map_err(|error| MeasureError::File("/etc/resolv.conf".into(), error))?;
    for runtime in runtimes(places) {
        bundles(&runtime, places)
            .map_err(|error| MeasureError::File(runtime.name.into(), error))?;
    }
    let mut rows = Vec::new();
    for mut way in ways(places) {
        rows.push(measure_way(&mut way, runs)?);
    }
    Ok(Containers {
        kernel: read("/proc/sys/kernel/osrelease")?,
        runtimes: ["runc", "crun"]
            .iter()
            .map(|name| version(Path::new(name)))
            .collect::<Result<_, _>>()?,
        runs,
        rows,
        image: image_size()?,
        idle: idle::measure(places)?,
    })
}

/// An OCI runtime.
struct Runtime {
    name: &'static str,
    label: &'static str,
    program: PathBuf,
}

fn runtimes(places: &Places) -> [Runtime; 3] {
    let all = [
        ("cofferdam-runc", "`cofferdam-runc run`"),
        ("runc", "`runc run`"),
        (PROCESS_ROW, "`crun run`"),
    ];
    all.map(|(name, label)| Runtime {
        name,
        label,
        program: match name {
            "cofferdam-runc" => places.runtime.clone(),
            _ => name.into(),
        },
    })
}

fn ways(places: &Places) -> Vec<Way> {
    let mut boot = Command::new(&places.cofferdam);
    boot.arg("boot").arg("--kernel").arg(&places.kernel);
    boot.arg("--initrd").arg(&places.initrd);
    boot.args(["--memory", VM_MEMORY, "--cmdline", "quiet"]);
    let run = |args: &[&str]| {
        let all = [&["run", "--rm", "--network", "none", IMAGE], args].concat();
        cofferdam(places, &all)
    };
    let oci = |runtime: &Runtime, args: &[&str]| {
        let mut command = with_environment(&runtime.program, places);
        // The lab's root is an initramfs, which nothing can take the place of.
        command.arg("run").arg("--no-pivot").arg("--bundle");
        command.arg(bundle(runtime, args)).arg("bench");
        command
    };
    let word = ["echo", WORD];
    let mut ways = vec![
        Way {
            id: BOOT_ROW,
            label: "bare boot, to init's first output",
            speaks: boot,
            ends: None,
        },
        Way {
            id: RUN_ROW,
            label: "`cofferdam run --rm`",
            speaks: run(&word),
            ends: Some(run(&["true"])),
        },
    ];
    ways.extend(runtimes(places).iter().map(|runtime| Way {
        id: runtime.name,
        label: runtime.label,
        speaks: oci(runtime, &word),
        ends: Some(oci(runtime, &["true"])),
    }));
    ways
}

fn measure_way(way: &mut Way, runs: u32) -> Result<ContainerRow, MeasureError> {
    let failed = |source| MeasureError::Boot {
        row: way.id,
        source,
    };
    let mut first = Vec::new();
    // The first one of each finds cold caches; it counts for nothing.
    for _ in 0..=runs {
        let mut boot = Boot::start(&mut way.speaks).map_err(failed)?;
        first.push(boot.wait_for(WORD).map_err(failed)?);
        if way.ends.is_some() {
            boot.wait_for_end().map_err(failed)?;
        }
    }
    let mut whole = Vec::new();
    let command = way.ends.as_ref().map_or_else(|| shown(&way.speaks), shown);
    if let Some(ends) = &mut way.ends {
        for _ in 0..=runs {
            let boot = Boot::start(ends).map_err(failed)?;
            whole.push(boot.wait_for_end().map_err(failed)?);
        }
    }
    let figure = |nanos: &[u64]| Figure::from_nanos(nanos.get(1..).unwrap_or_default());
    Ok(ContainerRow {
        id: way.id.into(),
        label: way.label.into(),
        command,
        first_output_ms: figure(&first).ok_or(MeasureError::NoEntry(way.id))?,
        whole_ms: figure(&whole),
    })
}

/// Where a runtime's bundle is that runs a program.
fn bundle(runtime: &Runtime, args: &[&str]) -> PathBuf {
    Path::new(WRITES).join(runtime.name).join(args.join("-"))
}

/// Makes a runtime's bundles of the image's files.
fn bundles(runtime: &Runtime, places: &Places) -> io::Result<()> {
    for args in [&["echo", WORD][..], &["true"]] {
        let bundle = bundle(runtime, args);
        let rootfs = bundle.join("rootfs");
        for directory in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
            fs::create_dir_all(rootfs.join(directory))?;
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox"))?;
        for name in ["sh", "true", "echo"] {
            symlink("busybox", rootfs.join("bin").join(name))?;
        }
        let status = with_environment(&runtime.program, places)
            .arg("spec")
            .current_dir(&bundle)
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!("spec: {status}")));
        }
        let path = bundle.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        let process = &mut config["process"];
        process["terminal"] = false.into();
        process["args"] = args.into();
        fs::write(&path, serde_json::to_vec(&config)?)?;
    }
    Ok(())
}

/// What the store has of the image.
fn image_size() -> Result<ImageSize, MeasureError> {
    let images = Path::new(WRITES).join("data/images");
    let size = |directory: &str, is_wanted: fn(&str) -> bool| -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(images.join(directory))? {
            let entry = entry?;
            if is_wanted(&entry.file_name().to_string_lossy()) {
                bytes += std::os::unix::fs::MetadataExt::blocks(&entry.metadata()?) * 512;
            }
        }
        Ok(bytes / 1024)
    };
    let failed = |error| MeasureError::File(images.display().to_string(), error);
    let erofs_kib = size("layers", |name| name.ends_with(".erofs")).map_err(failed)?;
    Ok(ImageSize {
        files_kib: files().map_err(failed)?,
        erofs_kib,
        beside_kib: size("layers", |name| !name.ends_with(".erofs")).map_err(failed)?,
        blobs_kib: size("blobs/sha256", |_| true).map_err(failed)?,
    })
}

/// KiB of the layer's tar, which has each file of the image in whole blocks of 512 bytes. There is one
/// layer; it is not compressed, so the largest blob is it.
fn files() -> io::Result<u64> {
    let blobs = Path::new(WRITES).join("data/images/blobs/sha256");
    let mut largest = 0;
    for entry in fs::read_dir(blobs)? {
        largest = largest.max(entry?.metadata()?.len());
    }
    Ok(largest / 1024)
}

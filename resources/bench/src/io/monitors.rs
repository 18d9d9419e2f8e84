//! The monitors of each set, and the command lines that start them.

use super::Set;
use super::serve::{SHARE, TAP, VIRTIOFSD, VSOCK};
use crate::rows::{self, GUEST_MEMORY_MIB, Places, RowSpec};

/// The guest's address.
const MAC: &str = "02:00:00:00:00:01";

/// All rows of a set, in the order in which they are shown: ours first.
pub fn all(set: Set, places: &Places) -> Vec<RowSpec> {
    match set {
        Set::Block => block(places),
        Set::Net => net(places),
        Set::Vsock => vsock(places),
        Set::Fs => fs(places),
    }
}

/// The peer without ACPI, its faster form, with its virtio in the form of version 1, as ours.
fn qemu(places: &Places, id: &'static str, label: &'static str, more: &[&str]) -> RowSpec {
    let modern = ["-global", "virtio-mmio.force-legacy=false"];
    let more: Vec<_> = modern.iter().chain(more).copied().collect();
    rows::qemu(places, id, label, "acpi=off", &more)
}

fn block(places: &Places) -> Vec<RowSpec> {
    let disk = places.disk.display();
    let (ours, thread) = (format!("path={disk}"), format!("path={disk},iothread=on"));
    let drive = format!("if=none,id=disk,format=raw,cache=writeback,aio=threads,file={disk}");
    vec![
        rows::cofferdam(
            places,
            "cofferdam",
            "Cofferdam",
            &["--no-rng", "--disk", &ours],
        ),
        rows::cofferdam(
            places,
            "cofferdam-iothread",
            "Cofferdam, iothread",
            &["--no-rng", "--disk", &thread],
        ),
        qemu(
            places,
            "qemu-microvm",
            "QEMU microvm",
            &["-drive", &drive, "-device", "virtio-blk-device,drive=disk"],
        ),
        qemu(
            places,
            "qemu-microvm-iothread",
            "QEMU microvm, iothread",
            &[
                "-drive",
                &drive,
                "-object",
                "iothread,id=thread",
                "-device",
                "virtio-blk-device,drive=disk,iothread=thread",
            ],
        ),
    ]
}

fn net(places: &Places) -> Vec<RowSpec> {
    let ours = format!("tap={TAP},mac={MAC}");
    let tap = |vhost| format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost={vhost}");
    let device = format!("virtio-net-device,netdev=net,mac={MAC}");
    let peer = |id, label, vhost| {
        qemu(
            places,
            id,
            label,
            &["-netdev", &tap(vhost), "-device", &device],
        )
    };
    vec![
        rows::cofferdam(
            places,
            "cofferdam",
            "Cofferdam",
            &["--no-rng", "--net", &ours],
        ),
        peer("qemu-microvm", "QEMU microvm", "off"),
        peer("qemu-microvm-vhost", "QEMU microvm, vhost", "on"),
    ]
}

fn vsock(places: &Places) -> Vec<RowSpec> {
    let ours = format!("cid=3,uds={VSOCK}");
    vec![
        rows::cofferdam(
            places,
            "cofferdam",
            "Cofferdam",
            &["--no-rng", "--vsock", &ours],
        ),
        qemu(
            places,
            "qemu-microvm",
            "QEMU microvm, vhost",
            &["-device", "vhost-vsock-device,guest-cid=3"],
        ),
    ]
}

fn fs(places: &Places) -> Vec<RowSpec> {
    let ours = format!("tag=bench,path={SHARE}");
    let memory = format!("memory-backend-memfd,id=memory,share=on,size={GUEST_MEMORY_MIB}M");
    vec![
        rows::cofferdam(
            places,
            "cofferdam",
            "Cofferdam",
            &["--no-rng", "--fs", &ours],
        ),
        qemu(
            places,
            "qemu-microvm",
            "QEMU microvm, virtiofsd",
            &[
                "-object",
                &memory,
                "-machine",
                "memory-backend=memory",
                "-chardev",
                &format!("socket,id=fs,path={VIRTIOFSD}"),
                "-device",
                "vhost-user-fs-device,chardev=fs,tag=bench",
            ],
        ),
    ]
}

//! The DSDT. The guest interprets it while it boots, so it has no method that could be data.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

use super::{
    AcpiConfig, AcpiError, OEM_ID, OEM_REVISION, OEM_TABLE_ID, SLP_TYP_S5, Serial, VirtioMmio,
};

/// Devices that `V000` and so on can name.
const VIRTIO_MAX: usize = 0x1000;
/// Size of a table header, in bytes.
const HEADER_SIZE: u32 = 36;
/// From this revision on AML integers have 64 bits.
const REVISION: u8 = 2;
/// `Notify` value: the button was pressed (ACPI 5.6.6).
const BUTTON_PRESSED: u8 = 0x80;

pub(super) fn table(config: &AcpiConfig) -> Result<Vec<u8>, AcpiError> {
    let count = config.virtio.len();
    if count > VIRTIO_MAX {
        let max = VIRTIO_MAX;
        return Err(AcpiError::TooManyDevices { count, max });
    }
    let mut devices = Vec::new();
    for (index, device) in config.virtio.iter().enumerate() {
        virtio(&mut devices, index, device);
    }
    if let Some(serial) = &config.serial {
        com1(&mut devices, serial);
    }
    power_button(&mut devices, config.ged_gsi);
    if let Some(port) = config.pvpanic_port {
        let resources: [&dyn Aml; 1] = [&IO::new(port, port, 1, 1)];
        device(&mut devices, "PVPA", &"QEMU0001", &[], &resources);
    }
    if let Some(address) = config.vmgenid {
        vmgenid(&mut devices, address.0);
    }

    let mut aml = Scope::raw(Path::new("\\_SB_"), devices);
    Name::new(Path::new("\\_S5_"), &Package::new(vec![&SLP_TYP_S5])).to_aml_bytes(&mut aml);
    let mut table = Sdt::new(
        *b"DSDT",
        HEADER_SIZE,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&aml);
    Ok(table.as_slice().to_vec())
}

/// Appends a device with its `_HID`, other objects, and `_CRS` if it has resources.
fn device(
    aml: &mut Vec<u8>,
    name: &str,
    hid: &dyn Aml,
    objects: &[&dyn Aml],
    resources: &[&dyn Aml],
) {
    let hid = Name::new(Path::new("_HID"), hid);
    let crs = Name::new(
        Path::new("_CRS"),
        &ResourceTemplate::new(resources.to_vec()),
    );
    let mut children: Vec<&dyn Aml> = vec![&hid];
    children.extend(objects);
    if !resources.is_empty() {
        children.push(&crs);
    }
    Device::new(Path::new(name), children).to_aml_bytes(aml);
}

/// An edge-triggered interrupt of its own, which is what an irqfd makes.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// A virtio-mmio device (virtio 1.2, 4.2.1). Without `_CCA`: on x86 all DMA is coherent.
fn virtio(aml: &mut Vec<u8>, index: usize, config: &VirtioMmio) {
    let uid = Name::new(Path::new("_UID"), &index);
    let registers = Memory32Fixed::new(true, config.base, config.len);
    let resources: [&dyn Aml; 2] = [&registers, &interrupt(config.gsi)];
    let name = format!("V{index:03X}");
    device(aml, &name, &"LNRO0005", &[&uid], &resources);
}

fn com1(aml: &mut Vec<u8>, config: &Serial) {
    let uid = Name::new(Path::new("_UID"), &1_u8);
    let ports = IO::new(config.port, config.port, 1, 8);
    let resources: [&dyn Aml; 2] = [&ports, &interrupt(config.gsi)];
    device(aml, "COM1", &EISAName::new("PNP0501"), &[&uid], &resources);
}

/// The power button, and the generic event device (ACPI 5.6.9) whose one interrupt presses it.
fn power_button(aml: &mut Vec<u8>, gsi: u32) {
    device(aml, "PWRB", &EISAName::new("PNP0C0C"), &[], &[]);
    let button = Path::new("PWRB");
    let press = Notify::new(&button, &BUTTON_PRESSED);
    let event = Method::new(Path::new("_EVT"), 1, false, vec![&press]);
    device(aml, "GED0", &"ACPI0013", &[&event], &[&interrupt(gsi)]);
}

/// The VM generation ID (Microsoft's 'Virtual Machine Generation ID'); `ADDR` is where it lies,
/// low and high half.
fn vmgenid(aml: &mut Vec<u8>, address: u64) {
    let [low, high] = [address & 0xffff_ffff, address >> 32];
    let cid = Name::new(Path::new("_CID"), &"VM_Gen_Counter");
    let addr = Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high]));
    device(aml, "VGEN", &"QEMUVGID", &[&cid, &addr], &[]);
}

//! ACPI tables (ACPI 6.5): RSDP, XSDT, FADT, MADT and DSDT of a hardware-reduced machine.

mod dsdt;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::GuestMemory;
use crate::layout::{ACPI_TABLES, ACPI_TABLES_SIZE};

const OEM_ID: [u8; 6] = *b"COFFER";
const OEM_TABLE_ID: [u8; 8] = *b"COFFRDAM";
const OEM_REVISION: u32 = 1;

/// `IAPC_BOOT_ARCH` (ACPI 5.2.9.3): no VGA, no CMOS RTC. The bits for legacy devices and for an
/// i8042 stay clear, so that kernels do not probe for them.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;

/// `SLP_TYP` of soft-off.
const SLP_TYP_S5: u8 = 5;
/// What a guest writes to the sleep control register to power off (ACPI 4.8.3.7): `SLP_EN` and
/// `SLP_TYP` 5.
pub const SLEEP_CONTROL_S5: u8 = 1 << 5 | SLP_TYP_S5 << 2;

/// A virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Base of its registers.
    pub base: u32,
    /// Size of its registers in bytes.
    pub len: u32,
    /// Its interrupt, edge-triggered.
    pub gsi: u32,
}

/// A 16550 serial port (eight I/O ports).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial {
    /// First port.
    pub port: u16,
    /// Its interrupt, edge-triggered.
    pub gsi: u32,
}

/// The machine to describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Number of CPUs; APIC IDs are 0 and up.
    pub cpus: u8,
    /// Base address of the local APICs.
    pub lapic_address: u32,
    /// Base address of the I/O APIC (ID 0, as KVM's is after reset, and GSI base 0).
    pub ioapic_address: u32,
    /// virtio-mmio devices.
    pub virtio: Vec<VirtioMmio>,
    /// COM1, if there is one.
    pub serial: Option<Serial>,
    /// Interrupt of the generic event device: one edge means 'power button pressed'.
    pub ged_gsi: u32,
    /// Where the VM generation ID is, if there is one.
    pub vmgenid: Option<GuestAddress>,
    /// Port of the sleep control register; the guest writes [`SLEEP_CONTROL_S5`] to power off.
    pub sleep_control_port: u16,
    /// Port of the sleep status register.
    pub sleep_status_port: u16,
    /// Port of the reset register.
    pub reset_port: u16,
    /// What the guest writes to the reset register.
    pub reset_value: u8,
    /// Port of a pvpanic device, if there is one.
    pub pvpanic_port: Option<u16>,
}

/// Why the tables could not be written.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// There are too many devices.
    #[error("the ACPI tables have {size} bytes, there is room for {ACPI_TABLES_SIZE}")]
    TooLarge {
        /// Size of the tables in bytes.
        size: usize,
    },
    /// More devices than there are names for.
    #[error("{count} virtio-mmio devices cannot be described, at most {max} can")]
    TooManyDevices {
        /// Their number.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// Guest memory has no room for them.
    #[error("the ACPI tables cannot be written to guest memory")]
    Write(#[source] GuestMemoryError),
}

/// Writes the tables at [`crate::layout::ACPI_TABLES`] and returns the address of the RSDP.
///
/// # Errors
/// If there are more devices than fit, or guest memory does not reach that far.
pub fn write(mem: &GuestMemory, config: &AcpiConfig) -> Result<GuestAddress, AcpiError> {
    let tables = tables(config)?;
    if tables.len() as u64 > ACPI_TABLES_SIZE {
        let size = tables.len();
        return Err(AcpiError::TooLarge { size });
    }
    mem.write_slice(&tables, ACPI_TABLES)
        .map_err(AcpiError::Write)?;
    Ok(ACPI_TABLES)
}

/// All tables as they lie at [`ACPI_TABLES`], the RSDP first.
fn tables(config: &AcpiConfig) -> Result<Vec<u8>, AcpiError> {
    let mut bytes = vec![0; Rsdp::len()];
    let mut append = |table: &dyn Aml| {
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        let address = ACPI_TABLES.0 + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        address
    };
    let dsdt = append(&Bytecode(&dsdt::table(config)?));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(append(&fadt(config, dsdt).finalize()));
    xsdt.add_entry(append(&madt(config)));
    let rsdp = Rsdp::new(OEM_ID, append(&xsdt));

    let mut first = Vec::new();
    rsdp.to_aml_bytes(&mut first);
    bytes[..first.len()].copy_from_slice(&first);
    Ok(bytes)
}

/// A table that is bytes already.
struct Bytecode<'a>(&'a [u8]);

impl Aml for Bytecode<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}

fn fadt(config: &AcpiConfig, dsdt: u64) -> FADTBuilder {
    let port = |port: u16| {
        let access = AccessSize::ByteAccess;
        GAS::new(AddressSpace::SystemIo, 8, 0, access, port.into())
    };
    // The buttons' bits say that there are no fixed ones but devices, if any.
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(config.reset_port);
    fadt.reset_value = config.reset_value;
    fadt.sleep_control_reg = port(config.sleep_control_port);
    fadt.sleep_status_reg = port(config.sleep_status_port);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    fadt
}

fn madt(config: &AcpiConfig) -> MADT {
    let lapic = LocalInterruptController::Address(config.lapic_address);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for cpu in 0..config.cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, config.ioapic_address, 0));
    madt
}

#[cfg(test)]
mod tests;

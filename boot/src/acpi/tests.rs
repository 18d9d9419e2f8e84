use vm_memory::GuestMemoryBackend;

use super::*;
use crate::layout::VMGENID;

fn config() -> AcpiConfig {
    AcpiConfig {
        cpus: 3,
        lapic_address: 0xfee0_0000,
        ioapic_address: 0xfec0_0000,
        virtio: (0..4)
            .map(|i| VirtioMmio {
                base: 0xd000_0000 + i * 0x1000,
                len: 0x1000,
                gsi: 5 + i,
            })
            .collect(),
        serial: Some(Serial {
            port: 0x3f8,
            gsi: 4,
        }),
        ged_gsi: 9,
        vmgenid: Some(VMGENID),
        sleep_control_port: 0x600,
        sleep_status_port: 0x601,
        reset_port: 0x602,
        reset_value: 1,
        pvpanic_port: Some(0x505),
    }
}

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
}

fn read<const N: usize>(mem: &GuestMemory, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    mem.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

/// The table at `address`, whose length and checksum are right.
fn table(mem: &GuestMemory, address: u64) -> Vec<u8> {
    let length = u32::from_le_bytes(read(mem, address + 4));
    assert!(mem.check_range(GuestAddress(address), length as usize));
    let mut bytes = vec![0; length as usize];
    mem.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    assert_eq!(sum(&bytes), 0, "{}", String::from_utf8_lossy(&bytes[..4]));
    bytes
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Follows the RSDP to FADT, MADT and DSDT.
fn walk(mem: &GuestMemory, rsdp: GuestAddress) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let rsdp: [u8; 36] = read(mem, rsdp.0);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let address = u64::from_le_bytes(rsdp[24..32].try_into().unwrap());
    let xsdt = table(mem, address);
    assert_eq!(&xsdt[..4], b"XSDT");
    let entries: Vec<Vec<u8>> = xsdt[36..]
        .chunks(8)
        .map(|entry| table(mem, u64::from_le_bytes(entry.try_into().unwrap())))
        .collect();
    let [fadt, madt] = entries.try_into().unwrap();
    assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
    let dsdt = table(mem, u64::from_le_bytes(fadt[140..148].try_into().unwrap()));
    assert_eq!(&dsdt[..4], b"DSDT");
    (fadt, madt, dsdt)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

/// If this fails, the kernel finds no ACPI, or only a part of the tables.
#[test]
fn tables_are_linked_and_sound() {
    let mem = memory();
    let rsdp = write(&mem, &config()).unwrap();
    assert_eq!(rsdp, ACPI_TABLES);
    walk(&mem, rsdp);
}

/// If this fails, the guest cannot reset or power off, or probes for hardware that is not there.
#[test]
fn fadt_is_hardware_reduced() {
    let mem = memory();
    let (fadt, _, _) = walk(&mem, write(&mem, &config()).unwrap());
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_eq!(flags, 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20);
    assert_eq!(fadt[109..111], [0x24, 0]);
    assert_eq!(fadt[116..128], [1, 8, 0, 1, 2, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[128], 1);
    assert_eq!(fadt[244..256], [1, 8, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[256..268], [1, 8, 0, 1, 1, 6, 0, 0, 0, 0, 0, 0]);
}

/// If this fails, the guest sees other CPUs than it has, or no I/O APIC.
#[test]
fn madt_lists_cpus_and_ioapic() {
    let mem = memory();
    let (_, madt, _) = walk(&mem, write(&mem, &config()).unwrap());
    assert_eq!(madt[36..40], 0xfee0_0000_u32.to_le_bytes());
    let structures = &madt[44..];
    for cpu in 0..3_u8 {
        let entry = &structures[usize::from(cpu) * 8..][..8];
        assert_eq!(entry, [0, 8, cpu, cpu, 1, 0, 0, 0]);
    }
    assert_eq!(
        structures[24..],
        [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]
    );
}

/// If this fails, the guest misses a device, or sees one that is not there.
#[test]
fn dsdt_has_what_is_configured() {
    let names: [&[u8]; 9] = [
        b"V000",
        b"V003",
        b"LNRO0005",
        b"COM1",
        b"ACPI0013",
        b"PWRB",
        b"QEMU0001",
        b"QEMUVGID",
        b"\\_S5_",
    ];
    let mem = memory();
    let mut config = config();
    let (_, _, dsdt) = walk(&mem, write(&mem, &config).unwrap());
    for name in names {
        assert!(contains(&dsdt, name), "{}", String::from_utf8_lossy(name));
    }
    assert!(!contains(&dsdt, b"V004"));
    assert!(contains(&dsdt, &0xd000_3000_u32.to_le_bytes()));

    config.virtio.clear();
    (config.serial, config.vmgenid, config.pvpanic_port) = (None, None, None);
    let (_, _, dsdt) = walk(&mem, write(&mem, &config).unwrap());
    for name in names {
        let always = [&b"ACPI0013"[..], b"PWRB", b"\\_S5_"].contains(&name);
        assert_eq!(
            contains(&dsdt, name),
            always,
            "{}",
            String::from_utf8_lossy(name)
        );
    }
}

/// If this fails, too many devices overwrite what lies behind the tables, or panic.
#[test]
fn room_is_bounded() {
    let mem = memory();
    let mut config = config();
    let device = config.virtio[0];
    config.cpus = 255;
    config.virtio = vec![device; 500];
    walk(&mem, write(&mem, &config).unwrap());
    config.virtio = vec![device; 2000];
    let error = write(&mem, &config).unwrap_err();
    assert!(matches!(error, AcpiError::TooLarge { .. }), "{error}");
    config.virtio = vec![device; 5000];
    let error = write(&mem, &config).unwrap_err();
    assert!(matches!(error, AcpiError::TooManyDevices { .. }), "{error}");
    let small = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    config.virtio.clear();
    let error = write(&small, &config).unwrap_err();
    assert!(matches!(error, AcpiError::Write(_)), "{error}");
}

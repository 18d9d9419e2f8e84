//! CPUID as a vCPU sees it: what KVM supports, with each vCPU's own identity and a topology of one
//! socket, `cpus` cores, one thread a core.
//!
//! Follows Intel's SDM volume 2A and AMD's APM volume 3, appendix E; the KVM leaves follow the
//! kernel's Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// AMD: more than one core, legacy numbering.
const EXT1_ECX_CMP_LEGACY: u32 = 1 << 1;
/// AMD: the leaves 0x8000_001d and 0x8000_001e are there.
const EXT1_ECX_TOPOLOGY: u32 = 1 << 22;

/// Whether the CPU is from AMD, or Hygon, whose CPUs describe themselves in the same way.
fn is_amd(base: &CpuId) -> bool {
    let vendor = base.as_slice().iter().find(|entry| entry.function == 0);
    vendor.is_some_and(|leaf| {
        let name = [leaf.ebx, leaf.edx, leaf.ecx]
            .map(u32::to_le_bytes)
            .concat();
        name == b"AuthenticAMD" || name == b"HygonGenuine"
    })
}

/// The CPUID of vCPU `id` of `cpus`, from what KVM supports on this host.
/// `tsc_deadline` says whether KVM has the APIC timer's deadline mode.
pub fn for_vcpu(supported: &CpuId, id: u8, cpus: u8, tsc_deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    add_level_of_cores(&mut cpuid);
    let amd = is_amd(supported);
    // Bits of the APIC id that tell cores apart.
    let core_bits = u32::from(cpus).next_power_of_two().trailing_zeros();
    let view = View {
        id: id.into(),
        cpus: cpus.into(),
        core_bits,
    };
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => view.leaf_1(entry, tsc_deadline),
            0x4 if !amd => view.leaf_4(entry),
            0xb | 0x1f => view.topology(entry),
            0x8000_0001 if amd => {
                entry.ecx |= EXT1_ECX_TOPOLOGY;
                set(&mut entry.ecx, EXT1_ECX_CMP_LEGACY, cpus > 1);
            }
            0x8000_0008 if amd => view.amd_size(entry),
            0x8000_001d if amd => view.amd_cache(entry),
            0x8000_001e if amd => view.amd_identity(entry),
            _ => {}
        }
    }
    cpuid
}

/// Newer KVMs leave the extended topology to us: they name its leaves with the level of threads
/// only. A guest that found no level of cores in them would take each vCPU for a socket.
fn add_level_of_cores(cpuid: &mut CpuId) {
    for function in [0xb, 0x1f] {
        let has = |index| {
            let mut entries = cpuid.as_slice().iter();
            entries.any(|entry| entry.function == function && entry.index == index)
        };
        if has(0) && !has(1) {
            let level = kvm_cpuid_entry2 {
                function,
                index: 1,
                ..Default::default()
            };
            // Fails only if the list is full already; the topology is then as KVM left it.
            let _ = cpuid.push(level);
        }
    }
}

struct View {
    id: u32,
    cpus: u32,
    core_bits: u32,
}

impl View {
    fn leaf_1(&self, entry: &mut kvm_cpuid_entry2, tsc_deadline: bool) {
        // EBX: APIC id, logical CPUs in the package, CLFLUSH line in units of 8 bytes.
        let line = if entry.ebx & 0xff00 == 0 {
            8 << 8
        } else {
            entry.ebx & 0xff00
        };
        entry.ebx = self.id << 24 | self.cpus.next_power_of_two() << 16 | line | entry.ebx & 0xff;
        entry.ecx |= LEAF1_ECX_HYPERVISOR | LEAF1_ECX_X2APIC;
        set(&mut entry.ecx, LEAF1_ECX_TSC_DEADLINE, tsc_deadline);
        set(&mut entry.edx, LEAF1_EDX_HTT, self.cpus > 1);
    }

    /// Intel: which CPUs share each cache (EAX 25:14, less one), and cores in the package (31:26).
    fn leaf_4(&self, entry: &mut kvm_cpuid_entry2) {
        if entry.eax & 0x1f == 0 {
            return;
        }
        let level = entry.eax >> 5 & 7;
        let sharing = if level >= 3 {
            (1 << self.core_bits) - 1
        } else {
            0
        };
        let cores = (1 << self.core_bits) - 1;
        entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
    }

    /// Extended topology: a level of threads (one), then one of cores.
    fn topology(&self, entry: &mut kvm_cpuid_entry2) {
        const THREADS: u32 = 1;
        const CORES: u32 = 2;
        let (bits, count, kind) = match entry.index {
            0 => (0, 1, THREADS),
            1 => (self.core_bits, self.cpus, CORES),
            _ => (0, 0, 0),
        };
        entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        entry.eax = bits;
        entry.ebx = count;
        entry.ecx = kind << 8 | entry.index & 0xff;
        entry.edx = self.id;
    }

    /// AMD: cores in the package, less one (ECX 7:0), bits of the APIC id for them (15:12).
    fn amd_size(&self, entry: &mut kvm_cpuid_entry2) {
        entry.ecx = entry.ecx & !0xf0ff | (self.cpus - 1) | self.core_bits << 12;
    }

    /// AMD: which CPUs share each cache (EAX 25:14, less one).
    fn amd_cache(&self, entry: &mut kvm_cpuid_entry2) {
        if entry.eax & 0x1f == 0 {
            return;
        }
        let level = entry.eax >> 5 & 7;
        let sharing = if level >= 3 { self.cpus - 1 } else { 0 };
        entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
    }

    /// AMD: extended APIC id, core id with one thread a core, one node.
    fn amd_identity(&self, entry: &mut kvm_cpuid_entry2) {
        entry.eax = self.id;
        entry.ebx = self.id;
        entry.ecx = 0;
        entry.edx = 0;
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on {
        *register | bit
    } else {
        *register & !bit
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported(vendor: &[u8; 12], leaves: &[(u32, u32)]) -> CpuId {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let mut entries = vec![kvm_cpuid_entry2 {
            ebx: word(0),
            edx: word(4),
            ecx: word(8),
            ..Default::default()
        }];
        entries.extend(leaves.iter().map(|&(function, index)| kvm_cpuid_entry2 {
            function,
            index,
            // A level 3 cache where the leaf is one of caches.
            eax: if matches!(function, 4 | 0x8000_001d) {
                0x63
            } else {
                0
            },
            ..Default::default()
        }));
        CpuId::from_entries(&entries).unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut entries = cpuid.as_slice().iter();
        *entries
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    /// If it fails, an Intel guest sees the host's topology or warns of APIC ids that differ.
    #[test]
    fn intel_guests_see_one_socket_of_cores() {
        let host = supported(
            b"GenuineIntel",
            &[(1, 0), (4, 0), (0xb, 0), (0xb, 1), (0xb, 2)],
        );
        let cpuid = for_vcpu(&host, 2, 3, true);
        let one = leaf(&cpuid, 1, 0);
        assert_eq!(one.ebx >> 24, 2);
        assert_eq!(one.ebx >> 16 & 0xff, 4);
        assert_ne!(one.ecx & LEAF1_ECX_HYPERVISOR, 0);
        assert_ne!(one.ecx & LEAF1_ECX_TSC_DEADLINE, 0);
        assert_eq!(leaf(&cpuid, 4, 0).eax >> 14 & 0xfff, 3);
        let cores = leaf(&cpuid, 0xb, 1);
        assert_eq!(
            (cores.eax, cores.ebx, cores.ecx, cores.edx),
            (2, 3, 0x201, 2)
        );
        assert_eq!(leaf(&cpuid, 0xb, 0).ebx, 1);
        assert_eq!(leaf(&cpuid, 0xb, 2).ecx, 2);
    }

    /// If it fails, an AMD guest sees the host's topology.
    #[test]
    fn amd_guests_see_one_socket_of_cores() {
        let leaves = [
            (1, 0),
            (0x8000_0001, 0),
            (0x8000_0008, 0),
            (0x8000_001d, 3),
            (0x8000_001e, 0),
        ];
        let cpuid = for_vcpu(&supported(b"AuthenticAMD", &leaves), 1, 2, false);
        assert_eq!(leaf(&cpuid, 1, 0).ecx & LEAF1_ECX_TSC_DEADLINE, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 1 << 12 | 1);
        assert_eq!(leaf(&cpuid, 0x8000_001d, 3).eax >> 14, 1);
        assert_eq!(leaf(&cpuid, 0x8000_001e, 0).eax, 1);
        assert_ne!(leaf(&cpuid, 0x8000_0001, 0).ecx & EXT1_ECX_TOPOLOGY, 0);
    }

    /// If it fails, guests of newer KVMs, which name the first level only, see a socket a vCPU.
    #[test]
    fn the_level_of_cores_is_there_if_kvm_left_it_out() {
        let host = supported(b"AuthenticAMD", &[(1, 0), (0xb, 0)]);
        let cpuid = for_vcpu(&host, 1, 4, true);
        let cores = leaf(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (2, 4, 0x201));
        let leaves = cpuid.as_slice().iter();
        assert_eq!(leaves.filter(|leaf| leaf.function == 0x1f).count(), 0);
    }

    /// If it fails, a guest of one vCPU looks for siblings.
    #[test]
    fn one_vcpu_has_no_siblings() {
        let host = supported(b"GenuineIntel", &[(1, 0), (0xb, 1)]);
        let cpuid = for_vcpu(&host, 0, 1, true);
        assert_eq!(leaf(&cpuid, 1, 0).edx & LEAF1_EDX_HTT, 0);
        assert_eq!((leaf(&cpuid, 0xb, 1).eax, leaf(&cpuid, 0xb, 1).ebx), (0, 1));
    }
}

//! CPU templates: which CPUID and MSR bits a guest sees, so that VMs look the same on hosts that
//! differ. The format is Firecracker's custom CPU template, so that those at hand serve here too.

use std::path::{Path, PathBuf};

use kvm_bindings::{CpuId, kvm_msr_entry};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A CPU template.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuTemplate {
    cpuid_modifiers: Vec<CpuidModifier>,
    msr_modifiers: Vec<MsrModifier>,
}

/// Why a CPU template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file cannot be read.
    #[error("cannot read the CPU template {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what a template looks like.
    #[error("the CPU template {path} is not valid")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A leaf that this host's KVM does not have.
    #[error("the CPU template changes the CPUID leaf {leaf:#x}.{subleaf:#x}, which KVM lacks here")]
    Leaf {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
    },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CpuidModifier {
    leaf: Number,
    subleaf: Number,
    /// KVM's flags of the leaf; it has them already, so they are read and not used.
    #[serde(default, rename = "flags")]
    _flags: u32,
    modifiers: Vec<RegisterModifier>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegisterModifier {
    register: Register,
    #[serde(deserialize_with = "register_bitmap")]
    bitmap: Bitmap,
}

/// A bitmap that forces no bit that a register does not have.
fn register_bitmap<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bitmap, D::Error> {
    let bitmap = Bitmap::deserialize(deserializer)?;
    if bitmap.filter >> 32 != 0 {
        return Err(D::Error::custom("the bitmap has more bits than a register"));
    }
    Ok(bitmap)
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MsrModifier {
    addr: Number,
    bitmap: Bitmap,
}

/// A 32-bit number written as text, `0x1` or `1`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Number(u32);

impl TryFrom<String> for Number {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        parsed
            .map(Self)
            .map_err(|_| format!("{text:?} is no 32-bit number such as 0x1"))
    }
}

/// Bits to force: `0b` and one of `0`, `1` or `x` (leave) a bit, most significant first; `_` may
/// stand between them. Bits left of the first one are left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Bitmap {
    filter: u64,
    value: u64,
}

impl TryFrom<String> for Bitmap {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is no bitmap of 0, 1 and x such as 0bxx01");
        let digits = text.strip_prefix("0b").ok_or_else(bad)?;
        let (mut filter, mut value, mut count) = (0u64, 0u64, 0);
        for digit in digits.chars().filter(|&digit| digit != '_') {
            let (force, bit) = match digit {
                '0' => (1, 0),
                '1' => (1, 1),
                'x' => (0, 0),
                _ => return Err(bad()),
            };
            filter = filter << 1 | force;
            value = value << 1 | bit;
            count += 1;
        }
        if (1..=64).contains(&count) {
            Ok(Self { filter, value })
        } else {
            Err(bad())
        }
    }
}

impl Bitmap {
    fn apply(self, bits: u64) -> u64 {
        bits & !self.filter | self.value
    }

    fn apply_low(self, bits: u32) -> u32 {
        let [a, b, c, d, ..] = self.apply(bits.into()).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

impl CpuTemplate {
    /// Reads a template from a JSON file.
    pub fn from_file(path: &Path) -> Result<Self, TemplateError> {
        let text = std::fs::read(path).map_err(|source| TemplateError::Read {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| TemplateError::Json {
            path: path.to_owned(),
            source,
        })
    }

    /// Forces the template's bits in `cpuid`.
    pub fn apply_cpuid(&self, cpuid: &mut CpuId) -> Result<(), TemplateError> {
        for modifier in &self.cpuid_modifiers {
            let (leaf, subleaf) = (modifier.leaf.0, modifier.subleaf.0);
            let mut entries = cpuid.as_mut_slice().iter_mut();
            let entry = entries
                .find(|entry| entry.function == leaf && entry.index == subleaf)
                .ok_or(TemplateError::Leaf { leaf, subleaf })?;
            for change in &modifier.modifiers {
                let register = match change.register {
                    Register::Eax => &mut entry.eax,
                    Register::Ebx => &mut entry.ebx,
                    Register::Ecx => &mut entry.ecx,
                    Register::Edx => &mut entry.edx,
                };
                *register = change.bitmap.apply_low(*register);
            }
        }
        Ok(())
    }

    /// The MSRs that the template changes.
    pub fn msrs(&self) -> impl Iterator<Item = u32> {
        self.msr_modifiers.iter().map(|modifier| modifier.addr.0)
    }

    /// Forces the template's bits in `msrs`, which hold what KVM has.
    pub fn apply_msrs(&self, msrs: &mut [kvm_msr_entry]) {
        for modifier in &self.msr_modifiers {
            for msr in msrs.iter_mut().filter(|msr| msr.index == modifier.addr.0) {
                msr.data = modifier.bitmap.apply(msr.data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    const TEMPLATE: &str = r#"{
        "cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [
            {"register": "ecx", "bitmap": "0b0000_xxxx_1"}
        ]}],
        "msr_modifiers": [{"addr": "0x10a", "bitmap": "0bx1"}]
    }"#;

    fn template() -> CpuTemplate {
        serde_json::from_str(TEMPLATE).unwrap()
    }

    /// If it fails, a template masks other bits than it says.
    #[test]
    fn only_the_named_bits_change() {
        let mut cpuid = CpuId::from_entries(&[kvm_cpuid_entry2 {
            function: 1,
            ecx: 0xffff_fffe,
            edx: 7,
            ..Default::default()
        }])
        .unwrap();
        template().apply_cpuid(&mut cpuid).unwrap();
        assert_eq!(cpuid.as_slice()[0].ecx, 0xffff_fe1f);
        assert_eq!(cpuid.as_slice()[0].edx, 7);
        let mut msrs = [kvm_msr_entry {
            index: 0x10a,
            data: 2,
            ..Default::default()
        }];
        template().apply_msrs(&mut msrs);
        assert_eq!((msrs[0].data, template().msrs().next()), (3, Some(0x10a)));
    }

    /// If it fails, a template that cannot hold on this host is silently dropped.
    #[test]
    fn a_leaf_that_is_not_there_is_an_error() {
        let mut cpuid = CpuId::from_entries(&[]).unwrap();
        let error = template().apply_cpuid(&mut cpuid).unwrap_err();
        assert!(error.to_string().contains("0x1.0x0"), "{error}");
    }

    /// If it fails, nonsense in a template is read as some mask.
    #[test]
    fn bad_bitmaps_are_refused() {
        let wide = format!("0b{}", "x".repeat(65));
        for text in ["", "0b", "01", "0b2", "0x1", &wide] {
            assert!(Bitmap::try_from(text.to_owned()).is_err(), "{text}");
        }
        let wide = TEMPLATE.replace("0000_xxxx_1", &format!("1{}", "x".repeat(32)));
        let error = serde_json::from_str::<CpuTemplate>(&wide).unwrap_err();
        assert!(error.to_string().contains("than a register"), "{error}");
    }
}

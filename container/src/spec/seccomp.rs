//! Docker's seccomp profiles: what they say of this machine and this container, as the OCI runtime
//! specification has it.

use std::fs;
use std::path::Path;

use oci_spec::runtime::LinuxSeccomp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::SpecError;

/// The names that profiles have for what a guest is.
const ARCHITECTURES: [&str; 2] = ["amd64", "SCMP_ARCH_X86_64"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Rule>,
    flags: Option<Value>,
    // `architectures` and `archMap` name others than the guest's, which has one.
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// Of old profiles, which have one for each rule.
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

/// When a rule counts. `minKernel` always holds: no guest's kernel is that old.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    arches: Option<Vec<String>>,
    caps: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// The profile in a file, for a container with these capabilities (`CAP_…`).
pub fn load(path: &Path, capabilities: &[String]) -> Result<LinuxSeccomp, SpecError> {
    let text = fs::read(path).map_err(|source| SpecError::Profile {
        path: path.to_owned(),
        source,
    })?;
    parse(&text, capabilities).map_err(|error| SpecError::Profile {
        path: path.to_owned(),
        source: error.into(),
    })
}

fn parse(text: &[u8], capabilities: &[String]) -> serde_json::Result<LinuxSeccomp> {
    let profile: Profile = crate::json::from_slice(text)?;
    let mut rules = Vec::new();
    for rule in profile.syscalls {
        if !rule.includes.holds(capabilities) || rule.excludes.applies(capabilities) {
            continue;
        }
        let names: Vec<String> = rule.names.into_iter().flatten().chain(rule.name).collect();
        let mut made = json!({ "names": names, "action": rule.action });
        if let Some(number) = rule.errno_ret {
            made["errnoRet"] = number.into();
        }
        if let Some(args) = rule.args.filter(|args| !args.is_empty()) {
            made["args"] = args.into();
        }
        rules.push(made);
    }
    let mut all = json!({ "defaultAction": profile.default_action, "syscalls": rules });
    if let Some(number) = profile.default_errno_ret {
        all["defaultErrnoRet"] = number.into();
    }
    if let Some(flags) = profile.flags {
        all["flags"] = flags;
    }
    crate::json::from_value(all)
}

impl Filter {
    fn is_arch(&self) -> bool {
        let arches = self.arches.iter().flatten();
        arches
            .clone()
            .any(|arch| ARCHITECTURES.contains(&arch.as_str()))
    }

    /// All that it asks for is so.
    fn holds(&self, capabilities: &[String]) -> bool {
        let arches = self
            .arches
            .as_ref()
            .is_none_or(|all| all.is_empty() || self.is_arch());
        let mut caps = self.caps.iter().flatten();
        arches && caps.all(|cap| capabilities.contains(cap))
    }

    /// Something that it names is so.
    fn applies(&self, capabilities: &[String]) -> bool {
        let mut caps = self.caps.iter().flatten();
        self.is_arch() || caps.any(|cap| capabilities.contains(cap)) || self.min_kernel.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a profile forbids or allows other calls here than with Docker.
    #[test]
    fn profiles_are_dockers() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}],
            "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 5,
                "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
                "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390"]}},
            {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
            {"names": ["arm_only"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm"]}},
            {"name": "old", "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
        let made = parse(text.as_bytes(), &["CAP_SYS_CHROOT".to_owned()]).unwrap();
        let made = serde_json::to_value(made).unwrap();
        let rules = made["syscalls"].as_array().unwrap().iter();
        let names: Vec<_> = rules
            .map(|rule| rule["names"][0].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["read", "ptrace", "chroot", "clone", "arch_prctl", "old"]
        );
        assert_eq!(made["defaultErrnoRet"], 1);
        assert_eq!(made["syscalls"][3]["args"][0]["value"], 5);
        assert_eq!(made["syscalls"][5]["errnoRet"], 38);
        assert!(parse(b"{}", &[]).is_err());
    }
}

//! Devices of the host's for a container on its kernel, and the right to use all.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use cofferdam_agent_protocol::devices;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Spec};
use rustix::fs::{major, minor};

use super::SpecError;
use crate::options::Device;

/// A rule for all devices.
fn rule_for_all(allow: bool) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_access(Some("rwm".to_owned()));
    rule
}

/// Gives the right to use all devices, as a privileged container has it. What devices there are only the
/// kernel's machine knows: the guest, or the host when the container is started.
pub fn allow_all(resources: &mut LinuxResources) {
    resources.set_devices(Some(vec![rule_for_all(true)]));
}

/// Adds device nodes of the host's and the right to use them; what else there is of devices is then refused.
/// Who may use all has all that there are.
pub fn add(spec: &mut Spec, devices: &[Device]) -> Result<(), SpecError> {
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    let resources = linux.resources_mut().get_or_insert_default();
    let may_use_all = *resources.devices() == Some(vec![rule_for_all(true)]);
    if devices.is_empty() && !may_use_all {
        return Ok(());
    }
    let (mut nodes, mut rules) = (Vec::new(), vec![rule_for_all(may_use_all)]);
    if may_use_all {
        nodes = all().map_err(|source| SpecError::Device {
            path: DEV.into(),
            source,
        })?;
        let is_named = |node: &LinuxDevice| {
            let mut named = devices.iter();
            named.any(|device| Path::new(&device.target) == node.path())
        };
        nodes.retain(|node| !is_named(node));
    }
    for device in devices {
        let node = node(device).map_err(|source| SpecError::Device {
            path: device.source.clone(),
            source,
        })?;
        let mut rule = LinuxDeviceCgroup::from(&node);
        rule.set_access(Some(device.access.clone()));
        nodes.push(node);
        rules.push(rule);
    }
    resources.set_devices(Some(rules));
    linux.set_devices(Some(nodes));
    Ok(())
}

/// All of the host's.
fn all() -> io::Result<Vec<LinuxDevice>> {
    let as_device = |found: devices::Node| {
        let kind = match found.is_block {
            true => LinuxDeviceType::B,
            false => LinuxDeviceType::C,
        };
        let owner = (found.uid, found.gid);
        of(found.path, kind, found.number, found.mode, owner)
    };
    let found = devices::all(Path::new(DEV))?;
    Ok(found.into_iter().map(as_device).collect())
}

/// Where the host has its devices.
const DEV: &str = "/dev";

/// As it is on the host now, with owner and mode.
fn node(device: &Device) -> io::Result<LinuxDevice> {
    let about = fs::metadata(&device.source)?;
    let kind = match about.file_type() {
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_char_device() => LinuxDeviceType::C,
        _ => return Err(io::Error::other("it is no device")),
    };
    let (mode, owner) = (about.mode() & 0o777, (about.uid(), about.gid()));
    let path = device.target.clone().into();
    Ok(of(path, kind, about.rdev(), mode, owner))
}

fn of(
    path: PathBuf,
    kind: LinuxDeviceType,
    number: u64,
    mode: u32,
    (uid, gid): (u32, u32),
) -> LinuxDevice {
    let mut node = LinuxDevice::default();
    node.set_path(path);
    node.set_typ(kind);
    node.set_major(major(number).into());
    node.set_minor(minor(number).into());
    node.set_file_mode(Some(mode));
    node.set_uid(Some(uid)).set_gid(Some(gid));
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a process gets another device of the host's than was said, or more rights to it.
    #[test]
    fn devices_become_nodes_and_rules() {
        let mut spec = Spec::default();
        add(&mut spec, &["/dev/zero:/dev/own:r".parse().unwrap()]).unwrap();
        let spec = serde_json::to_value(&spec).unwrap();
        let linux = &spec["linux"];
        let node = &linux["devices"][0];
        assert_eq!(
            (&node["path"], &node["type"]),
            (&"/dev/own".into(), &"c".into())
        );
        assert_eq!((&node["major"], &node["minor"]), (&1.into(), &5.into()));
        let rules = &linux["resources"]["devices"];
        assert_eq!(
            (&rules[0]["allow"], &rules[0]["access"]),
            (&false.into(), &"rwm".into())
        );
        assert_eq!(
            (&rules[1]["allow"], &rules[1]["access"]),
            (&true.into(), &"r".into())
        );
        assert_eq!(
            (&rules[1]["major"], &rules[1]["minor"]),
            (&1.into(), &5.into())
        );
        let mut privileged = Spec::default();
        let linux = privileged.linux_mut().get_or_insert_default();
        allow_all(linux.resources_mut().get_or_insert_default());
        add(&mut privileged, &["/dev/zero:/dev/null".parse().unwrap()]).unwrap();
        let spec = serde_json::to_value(&privileged).unwrap();
        let nodes = spec["linux"]["devices"].as_array().unwrap();
        let minors = |path: &str| {
            let of_path = nodes.iter().filter(|node| node["path"] == path);
            of_path
                .map(|node| node["minor"].as_i64().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (minors("/dev/full"), minors("/dev/null")),
            (vec![7], vec![5])
        );
        assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], true);
        for bad in ["/dev/null/none", "/etc"] {
            assert!(
                add(&mut Spec::default(), &[bad.parse().unwrap()]).is_err(),
                "{bad}"
            );
        }
    }
}

//! Devices of the host's for a container on its kernel.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use rustix::fs::{major, minor};

use super::SpecError;
use crate::options::Device;

/// Adds device nodes and the right to use them; what else there is of devices is then refused.
pub fn add(spec: &mut Spec, devices: &[Device]) -> Result<(), SpecError> {
    let Some(linux) = spec.linux_mut().as_mut().filter(|_| !devices.is_empty()) else {
        return Ok(());
    };
    let mut all_others = LinuxDeviceCgroup::default();
    all_others.set_allow(false);
    all_others.set_access(Some("rwm".to_owned()));
    let (mut nodes, mut rules) = (Vec::new(), vec![all_others]);
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
    linux.set_devices(Some(nodes));
    let resources = linux.resources_mut().get_or_insert_default();
    resources.set_devices(Some(rules));
    Ok(())
}

/// As it is on the host now, with owner and mode.
fn node(device: &Device) -> io::Result<LinuxDevice> {
    let about = fs::metadata(&device.source)?;
    let kind = match about.file_type() {
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_char_device() => LinuxDeviceType::C,
        _ => return Err(io::Error::other("it is no device")),
    };
    let mut node = LinuxDevice::default();
    node.set_path(device.target.clone().into());
    node.set_typ(kind);
    node.set_major(major(about.rdev()).into());
    node.set_minor(minor(about.rdev()).into());
    node.set_file_mode(Some(about.mode() & 0o777));
    node.set_uid(Some(about.uid())).set_gid(Some(about.gid()));
    Ok(node)
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
        for bad in ["/dev/null/none", "/etc"] {
            assert!(
                add(&mut Spec::default(), &[bad.parse().unwrap()]).is_err(),
                "{bad}"
            );
        }
    }
}

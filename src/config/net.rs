//! Network interfaces.

use cofferdam_devices::virtio::net::MacAddress;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::ConfigError;

/// A virtio-net interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetConfig {
    /// The tap's name: attached to if it exists, else made (and gone with the monitor). A `%d` in
    /// it is filled in by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// An open tap that the monitor inherits, by descriptor number, instead of a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// The guest's MAC address; a random, locally administered one where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The MTU that the guest is told.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "mtu")]
    pub mtu: Option<u16>,
}

/// An MTU; what does not fit 16 bits is refused like all that is out of range.
fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let Some(mtu) = Option::<u64>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let mtu = u16::try_from(mtu).map_err(|_| D::Error::custom(ConfigError::Mtu(mtu)))?;
    Ok(Some(mtu))
}

impl NetConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.tap.is_some() == self.fd.is_some() {
            return Err(ConfigError::Tap);
        }
        self.mac_address()?;
        match self.mtu {
            Some(mtu) if mtu < 68 => Err(ConfigError::Mtu(mtu.into())),
            _ => Ok(()),
        }
    }

    /// The MAC address, if one is given. It must be that of one host, not of a group.
    pub fn mac_address(&self) -> Result<Option<MacAddress>, ConfigError> {
        Ok(self.mac.as_deref().map(str::parse).transpose()?)
    }
}

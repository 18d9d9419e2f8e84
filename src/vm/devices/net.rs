//! Network interfaces.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use cofferdam_devices::virtio::net::{MacAddress, Net, Tap, TapError};

use super::{DeviceError, Devices};
use crate::config::{ConfigError, NetConfig};

impl Devices<'_> {
    pub(super) fn add_net(&mut self, config: &NetConfig) -> Result<(), DeviceError> {
        let tap = match (&config.tap, config.fd) {
            (Some(name), _) => match Tap::attach(name) {
                Err(TapError::Missing(_)) => Tap::create(name, config.mtu)?,
                tap => tap?,
            },
            (None, Some(fd)) => Tap::from_fd(inherited(fd)?).map_err(|error| match error {
                // The user knows the descriptor that was copied, not the copy.
                TapError::Inherited(_) => TapError::Inherited(fd),
                error => error,
            })?,
            (None, None) => return Err(ConfigError::Tap.into()),
        };
        let mac = match config.mac_address()? {
            Some(mac) => mac,
            None => MacAddress::random().map_err(DeviceError::Random)?,
        };
        log::info!("net: tap {}, the guest's MAC address is {mac}", tap.name());
        self.add_virtio("net", Arc::new(Mutex::new(Net::new(tap, mac, config.mtu))))
    }
}

/// A copy of a descriptor that whoever started us has left open for us. A copy, since nothing
/// proves that the number is not one of our own files.
fn inherited(number: i32) -> Result<OwnedFd, DeviceError> {
    if number < 0 {
        return Err(DeviceError::Descriptor(number));
    }
    // SAFETY: the borrow ends with the statement, in which nobody closes a descriptor; that it is
    // not open at all is an error of the call.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(|_| DeviceError::Descriptor(number))
}

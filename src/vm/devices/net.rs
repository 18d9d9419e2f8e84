//! Network interfaces.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use cofferdam_devices::virtio::net::{Backend, MacAddress, Net, NetOptions, Tap, TapError};

use super::{DeviceError, Devices};
use crate::config::{ConfigError, NetConfig, PASST_MTU};
use crate::vm::passt::Passt;

impl Devices<'_> {
    pub(super) fn add_net(&mut self, config: &NetConfig) -> Result<(), DeviceError> {
        let mac = match config.mac_address()? {
            Some(mac) => mac,
            None => MacAddress::random().map_err(DeviceError::Random)?,
        };
        let (backends, mtu) = match config.passt {
            true => {
                let mtu = config.mtu.unwrap_or(PASST_MTU);
                let (passt, stream) = Passt::start(&config.publish, mtu)?;
                self.subscribers.push(Arc::new(Mutex::new(passt)));
                (vec![stream.into()], Some(mtu))
            }
            false => {
                let taps = taps(config)?.into_iter();
                (taps.map(Backend::from).collect(), config.mtu)
            }
        };
        if let Some(backend) = backends.first() {
            log::info!("net: {backend}, the guest's MAC address is {mac}");
        }
        let options = NetOptions {
            mac,
            mtu,
            limits: config.rate_limit.limits()?,
        };
        let net = Net::new(backends, &options).map_err(DeviceError::Timer)?;
        self.add_virtio("net", Arc::new(Mutex::new(net)))
    }
}

/// The interface's tap, once for each queue.
fn taps(config: &NetConfig) -> Result<Vec<Tap>, DeviceError> {
    let queues = config.queues.unwrap_or(1);
    let attach = |name| match queues {
        1 => Tap::attach(name).map(|tap| vec![tap]),
        _ => Tap::attach_queues(name, queues),
    };
    let create = |name| match queues {
        1 => Tap::create(name, config.mtu).map(|tap| vec![tap]),
        _ => Tap::create_queues(name, config.mtu, queues),
    };
    match (&config.tap, config.fd) {
        (Some(name), _) => match attach(name) {
            Err(TapError::Missing(_)) => Ok(create(name)?),
            taps => Ok(taps?),
        },
        (None, Some(fd)) => match Tap::from_fd(inherited(fd)?) {
            // The user knows the descriptor that was copied, not the copy.
            Err(TapError::Inherited(_)) => Err(TapError::Inherited(fd).into()),
            tap => Ok(vec![tap?]),
        },
        (None, None) => Err(ConfigError::Net.into()),
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

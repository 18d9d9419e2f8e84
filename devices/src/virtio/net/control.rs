//! The control queue (virtio 1.2, section 5.1.6.5): how many queue pairs the driver uses.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::virtio::{Buffers, Chain, QueueError};

/// Carries out the command in `chain`; `set_pairs` is told how many pairs the driver uses from now
/// on, and says whether that can be. Returns the bytes written.
pub(super) fn serve(
    chain: &mut Chain,
    set_pairs: impl FnOnce(u16) -> bool,
) -> Result<u32, QueueError> {
    let ack = match pairs(&mut chain.readable).is_some_and(set_pairs) {
        true => VIRTIO_NET_OK,
        false => VIRTIO_NET_ERR,
    };
    match chain.writable.write(&ack.to_le_bytes()[..1]) {
        1 => Ok(1),
        _ => Err(QueueError::Request("a command without room for an answer")),
    }
}

/// The number that the only command we know carries.
fn pairs(command: &mut Buffers) -> Option<u16> {
    let [class, what]: [u8; 2] = command.read_obj()?;
    let known = (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
    if (u32::from(class), u32::from(what)) != known {
        return None;
    }
    command.read_obj().map(u16::from_le_bytes)
}

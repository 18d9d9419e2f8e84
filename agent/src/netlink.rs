//! The few messages of rtnetlink(7) that set an interface up.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A socket of the kernel's routing.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A message that grows.
#[derive(Debug)]
struct Message(Vec<u8>);

fn cast<T: TryInto<u16>>(number: T) -> u16 {
    number.try_into().unwrap_or(u16::MAX)
}

impl Message {
    fn new(kind: u16, flags: libc::c_int, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(cast(flags).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend(cast(value.len() + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self
    }
}

/// The bytes of an address, and its family.
fn address_bytes(address: IpAddr) -> (u8, Vec<u8>) {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    (u8::try_from(family).unwrap_or_default(), bytes)
}

/// `struct ifinfomsg`.
fn link_body(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let words = [0, index, flags, change];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl Netlink {
    /// Opens one.
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a message; gives the bodies of what is answered, each with its kind.
    fn request(&mut self, mut message: Message) -> io::Result<Vec<(u16, Vec<u8>)>> {
        self.sequence += 1;
        let length = u32::try_from(message.0.len()).unwrap_or(u32::MAX);
        if let Some(place) = message.0.get_mut(..4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        if let Some(place) = message.0.get_mut(8..12) {
            place.copy_from_slice(&self.sequence.to_ne_bytes());
        }
        send(self.socket.as_raw_fd(), &message.0, MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 32 << 10];
        loop {
            let count = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..count).unwrap_or_default();
            while let Some((kind, body, next)) = split(rest) {
                rest = next;
                match i32::from(kind) {
                    libc::NLMSG_ERROR => {
                        let code = body
                            .first_chunk()
                            .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                        return match code {
                            0 => Ok(answers),
                            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                        };
                    }
                    libc::NLMSG_DONE => return Ok(answers),
                    _ => answers.push((kind, body.to_vec())),
                }
            }
        }
    }

    fn change(&mut self, message: Message) -> io::Result<()> {
        self.request(message).map(drop)
    }

    /// Brings an interface up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let up_flag = libc::IFF_UP.unsigned_abs();
        let body = link_body(index, if up { up_flag } else { 0 }, up_flag);
        self.change(Message::new(libc::RTM_NEWLINK, ACKNOWLEDGED, &body))
    }

    /// Names an interface that is down.
    pub fn rename(&mut self, index: u32, name: &str) -> io::Result<()> {
        let message = Message::new(libc::RTM_NEWLINK, ACKNOWLEDGED, &link_body(index, 0, 0));
        let name = [name.as_bytes(), &[0]].concat();
        self.change(message.attribute(libc::IFLA_IFNAME, &name))
    }

    /// Sets the largest packet of an interface.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        let message = Message::new(libc::RTM_NEWLINK, ACKNOWLEDGED, &link_body(index, 0, 0));
        self.change(message.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes()))
    }

    /// Sets the address of an interface on its link.
    pub fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        let message = Message::new(libc::RTM_NEWLINK, ACKNOWLEDGED, &link_body(index, 0, 0));
        self.change(message.attribute(libc::IFLA_ADDRESS, &mac))
    }

    /// Takes all addresses from an interface, but those that it made itself.
    pub fn remove_addresses(&mut self, index: u32) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        let all = self.request(Message::new(libc::RTM_GETADDR, flags, &[0; 8]))?;
        for (kind, body) in all {
            // struct ifaddrmsg: family, length of the prefix, flags, scope, index.
            let [_, _, _, scope, a, b, c, d, ..] = *body else {
                continue;
            };
            let of = u32::from_ne_bytes([a, b, c, d]);
            if kind == libc::RTM_NEWADDR && of == index && scope != libc::RT_SCOPE_LINK {
                self.change(Message::new(libc::RTM_DELADDR, ACKNOWLEDGED, &body))?;
            }
        }
        Ok(())
    }

    /// Gives an interface an address.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let (family, bytes) = address_bytes(address);
        let mut body = vec![family, prefix, 0, libc::RT_SCOPE_UNIVERSE];
        body.extend(index.to_ne_bytes());
        let flags = ACKNOWLEDGED | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let message = Message::new(libc::RTM_NEWADDR, flags, &body)
            .attribute(libc::IFA_LOCAL, &bytes)
            .attribute(libc::IFA_ADDRESS, &bytes)
            // The host knows whose it is: nobody else is asked.
            .attribute(libc::IFA_FLAGS, &libc::IFA_F_NODAD.to_ne_bytes());
        self.change(message)
    }

    /// Adds a route to `destination`, by a gateway or on the link.
    pub fn add_route(
        &mut self,
        (destination, prefix): (IpAddr, u8),
        gateway: Option<IpAddr>,
        index: Option<u32>,
        metric: u32,
    ) -> io::Result<()> {
        let (family, bytes) = address_bytes(destination);
        let scope = if gateway.is_some() {
            libc::RT_SCOPE_UNIVERSE
        } else {
            libc::RT_SCOPE_LINK
        };
        // struct rtmsg.
        let mut body = vec![
            family,
            prefix,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            scope,
        ];
        body.push(libc::RTN_UNICAST);
        body.extend([0; 4]);
        let flags = ACKNOWLEDGED | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut message = Message::new(libc::RTM_NEWROUTE, flags, &body);
        if prefix != 0 {
            message = message.attribute(libc::RTA_DST, &bytes);
        }
        if let Some(gateway) = gateway {
            message = message.attribute(libc::RTA_GATEWAY, &address_bytes(gateway).1);
        }
        if let Some(index) = index {
            message = message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
        }
        if metric != 0 {
            message = message.attribute(libc::RTA_PRIORITY, &metric.to_ne_bytes());
        }
        self.change(message)
    }
}

const ACKNOWLEDGED: libc::c_int = libc::NLM_F_REQUEST | libc::NLM_F_ACK;

/// The first of several messages: its kind, its body, the others.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, the kernel is misunderstood, or believed about the lengths of messages.
    #[test]
    fn messages_are_split() {
        let mut bytes = Message::new(2, 0, &[7; 5]).0;
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let one = bytes.clone();
        bytes.extend(&one);
        let (kind, body, rest) = split(&bytes).unwrap();
        assert_eq!((kind, body, rest), (2, &[7; 5][..], &one[..]));
        assert!(split(&one[..20]).is_none());
        assert!(split(&[]).is_none());
        assert!(split(&[0; 20]).is_none());
    }

    /// If it fails, attributes run into each other.
    #[test]
    fn attributes_are_aligned() {
        let message = Message::new(1, 0, &[])
            .attribute(3, &[1])
            .attribute(4, &[2, 2]);
        let attributes = &message.0[HEADER..];
        assert_eq!(attributes, [5, 0, 3, 0, 1, 0, 0, 0, 6, 0, 4, 0, 2, 2]);
    }
}

//! Ethernet addresses.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};

/// An Ethernet address that one network interface may have: not a group's, and not all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

/// Why a text is not the address of a network interface.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six pairs of hexadecimal digits with colons between them.
    #[error("{0:?} is not a MAC address; one looks like 02:00:00:12:34:56")]
    Syntax(String),
    /// The address of a group, or none.
    #[error("{0} is a group's MAC address or none; make the first byte 02, for example")]
    NotOne(String),
}

impl MacAddress {
    /// A random address, marked as locally administered.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        // So few bytes come all at once, or not at all.
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        bytes[0] = bytes[0] & !0b01 | 0b10;
        Ok(Self(bytes))
    }

    /// The bytes, first on the wire first.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let syntax = || MacError::Syntax(text.to_owned());
        let mut parts = text.split(':');
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let digits = parts.next().ok_or_else(syntax)?;
            if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(syntax());
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| syntax())?;
        }
        if parts.next().is_some() {
            return Err(syntax());
        }
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(MacError::NotOne(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, the user's address is refused or changed, or one that no switch learns is taken.
    #[test]
    fn addresses_are_read_and_written() {
        let text = "02:00:5e:ab:cd:0f";
        let address: MacAddress = text.parse().unwrap();
        assert_eq!(address.bytes(), [2, 0, 0x5e, 0xab, 0xcd, 0x0f]);
        assert_eq!(address.to_string(), text);
        for wrong in ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "2:0:0:0:0:0"] {
            assert!(matches!(
                wrong.parse::<MacAddress>(),
                Err(MacError::Syntax(_))
            ));
        }
        for group in [
            "01:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(matches!(
                group.parse::<MacAddress>(),
                Err(MacError::NotOne(_))
            ));
        }
    }

    /// If it fails, two guests without a configured address have the same, or a maker's.
    #[test]
    fn random_addresses_differ_and_are_local() {
        let (a, b) = (MacAddress::random().unwrap(), MacAddress::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.bytes()[0] & 0b11, 0b10);
        assert_eq!(a.to_string().parse::<MacAddress>(), Ok(a));
    }
}

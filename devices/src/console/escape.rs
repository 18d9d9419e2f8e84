//! The keys that are for the monitor and not for the guest.

/// Ctrl-a, after which the next key is for the monitor.
const PREFIX: u8 = 1;

/// What the user wants of the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Ctrl-a x.
    Quit,
    /// Ctrl-a h.
    Help,
}

/// What Ctrl-a h prints. The terminal is raw, so lines end in both characters.
pub(super) const HELP: &[u8] = b"\r\n\
    Ctrl-a x  stop the VM and quit\r\n\
    Ctrl-a a  send Ctrl-a to the guest\r\n\
    Ctrl-a h  this help\r\n";

/// Picks the monitor's keys out of what is typed. A key that means nothing after Ctrl-a goes to the
/// guest, Ctrl-a first.
#[derive(Debug, Default)]
pub(super) struct Escape {
    prefixed: bool,
}

impl Escape {
    /// Calls `send` with each byte of `typed` that is the guest's, and `command` with each command.
    pub(super) fn filter(
        &mut self,
        typed: &[u8],
        mut send: impl FnMut(u8),
        mut command: impl FnMut(Command),
    ) {
        for &key in typed {
            match (std::mem::take(&mut self.prefixed), key) {
                (false, PREFIX) => self.prefixed = true,
                (false, _) => send(key),
                (true, b'x' | b'X') => command(Command::Quit),
                (true, b'h' | b'H' | b'?') => command(Command::Help),
                (true, b'a' | b'A' | PREFIX) => send(PREFIX),
                (true, _) => {
                    send(PREFIX);
                    send(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Command>) {
        let (mut sent, mut commands) = (Vec::new(), Vec::new());
        let mut escape = Escape::default();
        for piece in pieces {
            escape.filter(piece, |byte| sent.push(byte), |c| commands.push(c));
        }
        (sent, commands)
    }

    /// If it fails, the user cannot leave, or the guest does not get what was typed.
    #[test]
    fn commands_are_picked_out_and_the_rest_passes() {
        assert_eq!(filter(&[b"ls\n"]), (b"ls\n".to_vec(), vec![]));
        assert_eq!(
            filter(&[b"q\x01", b"xr"]),
            (b"qr".to_vec(), vec![Command::Quit])
        );
        assert_eq!(
            filter(&[b"\x01h\x01a\x01\x01"]),
            (b"\x01\x01".to_vec(), vec![Command::Help])
        );
        assert_eq!(filter(&[b"\x01b"]), (b"\x01b".to_vec(), vec![]));
    }
}

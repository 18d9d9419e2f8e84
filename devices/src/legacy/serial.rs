//! A 16550A UART with a line of unlimited speed: the transmitter is always empty, and what the
//! guest sends is at the host at once.
//!
//! It is our own rather than vm-superio's because a console under load needs what that leaves out:
//! one interrupt source at a time in IIR, a received byte that stays pending until it is read, FIFO
//! control, and output that is written by the line instead of by the byte.

use std::collections::VecDeque;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::console::ConsoleOutput;

// Register offsets. DATA and IER are the divisor latch while LCR_DLAB is set.
const DATA: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_RECEIVED_DATA: u8 = 1 << 0;
const IER_THR_EMPTY: u8 = 1 << 1;
/// The interrupts that a 16550A knows; a driver tells newer chips by the other bits.
const IER_MASK: u8 = 0x0f;

const IIR_NONE: u8 = 0b0001;
const IIR_THR_EMPTY: u8 = 0b0010;
const IIR_RECEIVED_DATA: u8 = 0b0100;
const IIR_FIFO_ENABLED: u8 = 0b1100_0000;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RX: u8 = 1 << 1;

const LCR_DLAB: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
/// Transmitter holding register empty, and shift register too.
const LSR_TX_EMPTY: u8 = 0b0110_0000;

const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;

/// Bytes in the receive FIFO. The chip has 16; a driver reads until it is empty and cannot tell,
/// except that Linux takes at most 256 bytes before it looks around, so more gains nothing.
const RX_FIFO: usize = 256;

/// A 16550A: eight ports or bytes of memory, one interrupt, a line to the host.
///
/// Input has flow control: the host offers bytes with [`Serial::receive`], which takes what fits
/// while the driver listens, and [`Serial::room`] says when to offer the rest.
#[derive(Debug)]
pub struct Serial {
    divisor: [u8; 2],
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    fifo_enabled: bool,
    /// The transmitter became empty since the driver last saw that in IIR.
    thr_empty_pending: bool,
    rx: VecDeque<u8>,
    /// Level of the interrupt output. The irqfd is an edge, so it is rung when this rises.
    line: bool,
    irq: EventFd,
    output: ConsoleOutput,
    room: EventFd,
    /// The host has bytes that did not fit; `room` is rung when they do.
    host_waits: bool,
    /// The driver has used RTS, so it is taken at its word from then on.
    rts_used: bool,
}

impl Serial {
    /// First port of the PC's first serial line.
    pub const COM1_BASE: u64 = 0x3f8;
    /// Number of ports.
    pub const LEN: u64 = 8;
    /// Interrupt line of the PC's first serial line.
    pub const COM1_GSI: u32 = 4;

    /// A UART that rings `irq` (an irqfd of an edge-triggered line, in non-blocking mode) and sends
    /// to `output`. Fails where the host is out of file descriptors.
    pub fn new(irq: EventFd, output: ConsoleOutput) -> std::io::Result<Self> {
        Ok(Self {
            // 9600 baud, as on a PC after power-on.
            divisor: [12, 0],
            ier: 0,
            lcr: 0b11,
            mcr: 0,
            scr: 0,
            fifo_enabled: false,
            thr_empty_pending: false,
            rx: VecDeque::new(),
            line: false,
            irq,
            output,
            room: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            host_waits: false,
            rts_used: false,
        })
    }

    /// Rung when a driver that [`Self::receive`] left bytes behind for can take more.
    pub fn room(&self) -> &EventFd {
        &self.room
    }

    /// Where the guest's output goes.
    pub fn output(&mut self) -> &mut ConsoleOutput {
        &mut self.output
    }

    /// Takes the first bytes of `bytes` that fit, none while the driver does not listen, and says
    /// how many. If that is not all of them, [`Self::room`] is rung when the driver has read what
    /// there is.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let depth = if self.fifo_enabled { RX_FIFO } else { 1 };
        let taken = if self.listens() {
            bytes.len().min(depth.saturating_sub(self.rx.len()))
        } else {
            0
        };
        self.rx.extend(&bytes[..taken]);
        self.host_waits = taken < bytes.len();
        self.update_interrupt();
        taken
    }

    /// Whether bytes that arrive now reach a reader. While it probes and opens a port, a driver
    /// throws away what it finds there; a wire would lose that, we need not. RTS says that the
    /// driver is ready. One that never touches RTS is ready when its FIFO and interrupt are on.
    fn listens(&self) -> bool {
        let ready = if self.rts_used {
            self.mcr & MCR_RTS != 0
        } else {
            self.fifo_enabled && self.ier & IER_RECEIVED_DATA != 0
        };
        ready && self.mcr & MCR_LOOP == 0
    }

    /// Rings `room` if the host has more and the driver has read everything. Waiting until then
    /// gives a driver that reads to the end a chance to get there and do something else.
    fn wake_host(&mut self) {
        if self.host_waits && self.rx.is_empty() && self.listens() {
            self.host_waits = false;
            // Non-blocking: it fails only if it is rung already.
            let _ = self.room.write(1);
        }
    }

    /// The source of interrupt with the highest priority, as IIR shows it.
    fn interrupt_source(&self) -> u8 {
        if self.ier & IER_RECEIVED_DATA != 0 && !self.rx.is_empty() {
            IIR_RECEIVED_DATA
        } else if self.ier & IER_THR_EMPTY != 0 && self.thr_empty_pending {
            IIR_THR_EMPTY
        } else {
            IIR_NONE
        }
    }

    fn update_interrupt(&mut self) {
        let line = self.interrupt_source() != IIR_NONE;
        if line && !self.line {
            // It fails only if the counter is full, and then an interrupt is pending anyway.
            let _ = self.irq.write(1);
        }
        self.line = line;
    }

    fn transmit(&mut self, byte: u8) {
        if self.mcr & MCR_LOOP == 0 {
            self.output.push(byte);
        } else if self.rx.len() < RX_FIFO {
            self.rx.push_back(byte);
        }
        self.thr_empty_pending = true;
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let dlab = self.lcr & LCR_DLAB != 0;
        match offset {
            DATA if dlab => self.divisor[0] = value,
            IER if dlab => self.divisor[1] = value,
            DATA => self.transmit(value),
            IER => {
                let enabled = value & IER_MASK & !self.ier;
                self.ier = value & IER_MASK;
                // Enabling the interrupt while the transmitter is empty raises it: this is how a
                // driver starts to send.
                self.thr_empty_pending |= enabled & IER_THR_EMPTY != 0;
            }
            IIR_FCR => {
                let enable = value & FCR_ENABLE != 0;
                if enable != self.fifo_enabled || value & FCR_CLEAR_RX != 0 {
                    self.rx.clear();
                }
                self.fifo_enabled = enable;
            }
            LCR => self.lcr = value,
            MCR => {
                self.mcr = value & MCR_MASK;
                self.rts_used |= self.mcr & (MCR_RTS | MCR_LOOP) == MCR_RTS;
            }
            SCR => self.scr = value,
            _ => {}
        }
        self.update_interrupt();
        self.wake_host();
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let dlab = self.lcr & LCR_DLAB != 0;
        match offset {
            DATA if dlab => self.divisor[0],
            IER if dlab => self.divisor[1],
            DATA => {
                let byte = self.rx.pop_front().unwrap_or(0);
                self.update_interrupt();
                self.wake_host();
                byte
            }
            IER => self.ier,
            IIR_FCR => {
                let source = self.interrupt_source();
                if source == IIR_THR_EMPTY {
                    self.thr_empty_pending = false;
                    self.update_interrupt();
                }
                source
                    | if self.fifo_enabled {
                        IIR_FIFO_ENABLED
                    } else {
                        0
                    }
            }
            LCR => self.lcr,
            MCR => self.mcr,
            LSR if self.rx.is_empty() => LSR_TX_EMPTY,
            LSR => LSR_TX_EMPTY | LSR_DATA_READY,
            MSR => self.modem_status(),
            SCR => self.scr,
            _ => 0xff,
        }
    }

    /// The modem's inputs: a line that is always up, or in loopback our own outputs.
    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        [
            (MCR_RTS, MSR_CTS),
            (MCR_DTR, MSR_DSR),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        ]
        .iter()
        .filter(|(output, _)| self.mcr & output != 0)
        .fold(0, |status, (_, input)| status | input)
    }
}

/// The registers are a byte wide; of a wider access only the first byte counts.
impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(byte) = data.first_mut() {
            *byte = self.read_register(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(&byte) = data.first() {
            self.write_register(offset, byte);
        }
    }
}

#[cfg(test)]
mod tests;

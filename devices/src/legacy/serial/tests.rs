use super::*;

fn serial() -> Serial {
    let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    Serial::new(irq, ConsoleOutput::new().unwrap()).unwrap()
}

/// A port as a driver leaves it that has opened it.
fn opened() -> Serial {
    let mut serial = serial();
    serial.write_register(IIR_FCR, FCR_ENABLE);
    serial.write_register(IER, IER_RECEIVED_DATA);
    serial.write_register(MCR, MCR_DTR | MCR_RTS | MCR_OUT2);
    serial
}

/// Whether the interrupt was raised since the last call.
fn interrupted(serial: &Serial) -> bool {
    serial.irq.read().is_ok()
}

/// If it fails, Linux does not recognize a 16550A, or takes it for a better chip that it is not.
#[test]
fn a_probing_driver_finds_a_16550a() {
    let mut serial = serial();
    serial.write_register(IER, 0xff);
    assert_eq!(serial.read_register(IER), 0x0f);
    serial.write_register(IER, 0);
    serial.write_register(MCR, MCR_LOOP | MCR_OUT2 | MCR_RTS);
    assert_eq!(serial.read_register(MSR) & 0xf0, MSR_DCD | MSR_CTS);
    serial.write_register(MCR, 0);
    serial.write_register(IIR_FCR, FCR_ENABLE | 0x20);
    assert_eq!(serial.read_register(IIR_FCR), 0xc1);
    serial.write_register(IIR_FCR, 0);
    assert_eq!(serial.read_register(IIR_FCR), 0x01);
    serial.write_register(LCR, LCR_DLAB | 3);
    serial.write_register(DATA, 1);
    serial.write_register(IER, 2);
    assert_eq!(
        (serial.read_register(DATA), serial.read_register(IER)),
        (1, 2)
    );
    serial.write_register(LCR, 3);
    assert_eq!(serial.read_register(IER), 0);
    serial.write_register(SCR, 0xa5);
    assert_eq!(serial.read_register(SCR), 0xa5);
}

/// If it fails, what a driver writes with interrupts stalls (no interrupt), or interrupts storm.
#[test]
fn the_transmitter_interrupts_once_each_time_it_becomes_empty() {
    let mut serial = opened();
    serial.write_register(DATA, b'x');
    assert!(!interrupted(&serial), "not enabled");
    serial.write_register(IER, IER_THR_EMPTY);
    assert!(interrupted(&serial));
    assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_THR_EMPTY);
    assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_NONE);
    for _ in 0..16 {
        serial.write_register(DATA, b'y');
    }
    assert_eq!(serial.irq.read().unwrap(), 1, "one edge for a full FIFO");
    assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_THR_EMPTY);
    // Linux's test for chips that do not raise the interrupt again.
    serial.write_register(IER, 0);
    serial.write_register(IER, IER_THR_EMPTY);
    assert!(interrupted(&serial));
    assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_THR_EMPTY);
}

/// If it fails, input that arrives while the driver sends, or while it has masked its interrupts to
/// print a kernel message, is never noticed.
#[test]
fn received_data_stays_pending_until_it_is_read() {
    let mut serial = opened();
    serial.write_register(IER, IER_RECEIVED_DATA | IER_THR_EMPTY);
    assert!(interrupted(&serial));
    assert_eq!(serial.receive(b"ab"), 2);
    for _ in 0..3 {
        assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_RECEIVED_DATA);
    }
    serial.write_register(IER, 0);
    assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_NONE);
    interrupted(&serial);
    serial.write_register(IER, IER_RECEIVED_DATA);
    assert!(interrupted(&serial), "enabling raises what is pending");
    assert_eq!(serial.read_register(DATA), b'a');
    assert_eq!(serial.read_register(LSR), LSR_TX_EMPTY | LSR_DATA_READY);
    assert_eq!(serial.read_register(DATA), b'b');
    assert_eq!(serial.read_register(LSR), LSR_TX_EMPTY);
    assert_eq!(serial.read_register(IIR_FCR) & 0xf, IIR_NONE);
    assert_eq!(serial.receive(b"c"), 1);
    assert!(interrupted(&serial));
}

/// If it fails, bytes of a paste are lost or come twice.
#[test]
fn the_fifo_takes_what_fits_and_asks_for_the_rest() {
    let mut serial = opened();
    let input: Vec<u8> = (0..1000u32).map(|i| i.to_le_bytes()[0]).collect();
    let mut sent = serial.receive(&input);
    assert_eq!(sent, RX_FIFO);
    let mut output = Vec::new();
    while output.len() < input.len() {
        assert!(serial.room.read().is_err(), "asks before it is empty");
        while serial.read_register(LSR) & LSR_DATA_READY != 0 {
            output.push(serial.read_register(DATA));
        }
        if sent < input.len() {
            assert_eq!(serial.room.read().unwrap(), 1);
            sent += serial.receive(&input[sent..]);
        }
    }
    assert_eq!(output, input);
    assert!(serial.room.read().is_err(), "nothing is left to ask for");
}

/// If it fails, the first bytes of a piped script are thrown away by the driver that probes and
/// opens the port, or a guest that stops its sender with RTS is sent more.
#[test]
fn nothing_is_sent_to_a_driver_that_is_not_ready() {
    let mut serial = serial();
    assert_eq!(serial.receive(b"x"), 0);
    serial.write_register(IER, 0x0f);
    assert_eq!(serial.receive(b"x"), 0, "a probe of the register");
    serial.write_register(IER, IER_RECEIVED_DATA);
    serial.write_register(MCR, MCR_LOOP | MCR_RTS);
    assert_eq!(serial.receive(b"x"), 0, "loopback");
    serial.write_register(MCR, 0);
    assert!(serial.room.read().is_err());
    serial.write_register(IIR_FCR, FCR_ENABLE);
    assert!(serial.room.read().is_ok());
    assert_eq!(serial.receive(b"xy"), 2);
    serial.write_register(MCR, MCR_RTS);
    serial.write_register(MCR, 0);
    assert_eq!(serial.receive(b"z"), 0, "RTS was dropped");
    serial.write_register(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RX);
    serial.write_register(MCR, MCR_RTS);
    assert!(serial.room.read().is_ok());
    assert_eq!(serial.receive(b"z"), 1);
    assert_eq!(serial.read_register(DATA), b'z', "the FIFO was cleared");
}

/// If it fails, a driver's self-test of the port fails, or prints on the console.
#[test]
fn loopback_returns_what_is_sent_and_is_bounded() {
    let mut serial = opened();
    serial.write_register(MCR, MCR_LOOP);
    for _ in 0..2 * RX_FIFO {
        serial.write_register(DATA, b'l');
    }
    assert!(interrupted(&serial));
    assert_eq!(serial.rx.len(), RX_FIFO);
    assert_eq!(serial.read_register(DATA), b'l');
    assert_eq!(serial.output().buffered(), 0);
}

/// If it fails, an odd access panics the monitor.
#[test]
fn any_access_of_any_size_is_harmless() {
    let mut serial = opened();
    for offset in 0..=16 {
        for len in 0..=8 {
            serial.read(offset, &mut vec![0; len]);
            serial.write(offset, &vec![0xff; len]);
        }
    }
}

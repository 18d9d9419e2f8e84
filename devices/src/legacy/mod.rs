//! Devices at fixed ports: serial, i8042 reset, boot timer, power.

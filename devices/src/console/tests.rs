use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use event_manager::{EventManager, SubscriberOps};

use super::*;
use crate::bus::BusDevice;

type Loop = EventManager<Console>;

fn irq() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

/// A UART that its driver has opened, and the loop that looks after its host side.
fn running(console: Console) -> (Loop, Arc<Mutex<Serial>>) {
    let serial = console.serial();
    for (register, value) in [(2, 1), (1, 1), (4, 0x0b)] {
        lock(&serial).write(register, &[value]);
    }
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(console);
    (events, serial)
}

/// Runs the loop until it has nothing to do. How many events it took.
fn settle(events: &mut Loop) -> usize {
    let mut count = 0;
    loop {
        match events.run_with_timeout(10).unwrap() {
            0 => return count,
            n => count += n,
        }
        assert!(count < 100_000, "the loop is busy with nothing");
    }
}

/// What a guest finds in the UART now.
fn guest_reads(serial: &Mutex<Serial>, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let register = |offset| {
        let mut data = [0];
        lock(serial).read(offset, &mut data);
        data[0]
    };
    while bytes.len() < limit && register(5) & 1 != 0 {
        bytes.push(register(0));
    }
    bytes
}

fn guest_writes(serial: &Mutex<Serial>, bytes: &[u8]) {
    for byte in bytes {
        lock(serial).write(0, &[*byte]);
    }
}

fn paste() -> Vec<u8> {
    (0..64u32 << 10).map(|i| (i % 251) as u8).collect()
}

/// Lets the guest read, `step` bytes at a time, until nothing more comes.
fn read_all(events: &mut Loop, serial: &Mutex<Serial>, step: usize) -> Vec<u8> {
    let mut seen = Vec::new();
    let mut idle = 0;
    while idle < 3 {
        events.run_with_timeout(1).unwrap();
        let bytes = guest_reads(serial, step);
        idle = if bytes.is_empty() { idle + 1 } else { 0 };
        seen.extend(bytes);
    }
    seen
}

fn with_input(input: Input) -> Console {
    let output = ConsoleOutput::new().unwrap();
    Console::new(irq(), output, Host::Plain, Some(input)).unwrap()
}

/// If it fails, a paste loses bytes, or a guest that does not read makes the monitor hold it all.
#[test]
fn a_paste_of_64_kib_arrives_whole_at_a_slow_guest() {
    for step in [usize::MAX, 256, 61] {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (mut events, serial) = running(with_input(Input::own(ours)));
        let sender = std::thread::spawn(move || theirs.write_all(&paste()));
        std::thread::sleep(Duration::from_millis(20));
        assert!(settle(&mut events) < 100);
        assert_eq!(read_all(&mut events, &serial, step), paste(), "step {step}");
        sender.join().unwrap().unwrap();
    }
}

/// If it fails, `cofferdam boot < script` or `</dev/null` loops, ends, or loses the script.
#[test]
fn a_file_and_dev_null_are_inputs_that_end() {
    let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    file.write_all(&paste()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let (mut events, serial) = running(with_input(Input::shared(file.as_fd()).unwrap()));
    assert!(settle(&mut events) < 10);
    assert_eq!(read_all(&mut events, &serial, 1000), paste());
    assert_eq!(settle(&mut events), 0);

    let null = std::fs::File::open("/dev/null").unwrap();
    let (mut events, serial) = running(with_input(Input::shared(null.as_fd()).unwrap()));
    assert!(settle(&mut events) < 10);
    assert!(guest_reads(&serial, 1).is_empty());
}

/// If it fails, what comes before the end of a pipe is lost, or its end keeps the loop busy.
#[test]
fn a_pipe_that_is_closed_early_is_read_to_its_end() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&writer, &paste()[..60_000]).unwrap();
    drop(writer);
    let (mut events, serial) = running(with_input(Input::shared(reader.as_fd()).unwrap()));
    assert!(settle(&mut events) < 100);
    assert_eq!(read_all(&mut events, &serial, 100), paste()[..60_000]);
    assert_eq!(settle(&mut events), 0);
}

fn socket_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("cofferdam-{name}-{}.sock", std::process::id()))
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

fn received(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

/// If it fails, a client sees nothing of the boot, cannot come back, or two share one line.
#[test]
fn clients_of_a_socket_come_and_go_one_at_a_time() {
    let path = socket_path("clients");
    let (mut events, serial) = running(Console::socket(irq(), &path).unwrap());
    guest_writes(&serial, b"early\n");
    let mut first = connect(&path);
    settle(&mut events);
    assert_eq!(received(&mut first), b"early\n");
    let mut second = connect(&path);
    settle(&mut events);
    assert!(received(&mut second).starts_with(b"another client"));
    first.write_all(b"ls\n").unwrap();
    settle(&mut events);
    assert_eq!(guest_reads(&serial, 9), b"ls\n");

    // The last words of a client that is gone at once still count.
    first.write_all(b"exit\n").unwrap();
    drop(first);
    settle(&mut events);
    assert_eq!(guest_reads(&serial, 9), b"exit\n");
    guest_writes(&serial, b"late\n");
    settle(&mut events);
    let mut third = connect(&path);
    settle(&mut events);
    assert_eq!(received(&mut third), b"late\n");

    // One that has nothing more to say may still listen.
    third.shutdown(std::net::Shutdown::Write).unwrap();
    settle(&mut events);
    guest_writes(&serial, b"still here\n");
    assert_eq!(received(&mut third), b"still here\n");
    drop(third);
    let mut fourth = connect(&path);
    settle(&mut events);
    guest_writes(&serial, b"next\n");
    assert_eq!(received(&mut fourth), b"next\n");
    drop(events);
    assert!(!path.exists());
}

/// If it fails, a client that does not read stops the guest, or never gets the rest.
#[test]
fn a_client_that_is_slow_gets_the_rest_later() {
    let path = socket_path("slow");
    let (mut events, serial) = running(Console::socket(irq(), &path).unwrap());
    let mut client = connect(&path);
    settle(&mut events);
    let line = [[b'.'; 99].as_slice(), b"\n"].concat();
    for _ in 0..10_000 {
        guest_writes(&serial, &line);
    }
    assert!(settle(&mut events) < 100);
    let mut seen = 0;
    loop {
        let bytes = received(&mut client);
        seen += bytes.len();
        if settle(&mut events) == 0 && bytes.is_empty() {
            break;
        }
    }
    let lost = lock(&serial).output().dropped();
    assert_eq!(seen as u64 + lost, 1_000_000);
    assert!(lost > 0 && lock(&serial).output().buffered() == 0);
}

/// If it fails, a second VM takes the first one's console away, or a crash blocks the path.
#[test]
fn a_socket_in_use_is_refused_and_a_stale_one_is_replaced() {
    let path = socket_path("stale");
    let first = Console::socket(irq(), &path).unwrap();
    let error = Console::socket(irq(), &path).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()));
    drop(first);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(Console::socket(irq(), &path).unwrap());
    std::fs::write(&path, b"precious").unwrap();
    Console::socket(irq(), &path).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
}

/// If it fails, a pty that nobody opens stops the guest or keeps the loop busy, or one that is
/// opened and closed does.
#[test]
fn a_pty_works_whether_or_not_somebody_has_it_open() {
    let console = Console::pty(irq()).unwrap();
    let path = console.pty_path().unwrap().to_owned();
    let (mut events, serial) = running(console);
    let line = [[b'.'; 99].as_slice(), b"\n"].concat();
    for _ in 0..1000 {
        guest_writes(&serial, &line);
    }
    assert!(settle(&mut events) < 100);
    assert!(guest_reads(&serial, 1).is_empty(), "an echo");
    for _ in 0..2 {
        let mut user = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&path)
            .unwrap();
        assert_eq!(user.read(&mut [0; 64]).unwrap(), 64);
        user.write_all(b"hello\r").unwrap();
        settle(&mut events);
        assert_eq!(guest_reads(&serial, 9), b"hello\r");
    }
    let before = Instant::now();
    drop(events);
    assert!(before.elapsed() < LAST_WORDS);
}

/// If it fails, a log is overwritten that was to be kept, or a mistyped path has no explanation.
#[test]
fn a_file_takes_output_at_its_start_or_end() {
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
    for (append, expected) in [(false, "new\n"), (true, "new\nnew\n"), (false, "new\n")] {
        let console = Console::file(irq(), file.as_path(), append).unwrap();
        guest_writes(&console.serial(), b"new\n");
        drop(console);
        assert_eq!(std::fs::read_to_string(file.as_path()).unwrap(), expected);
    }
    let error = Console::file(irq(), Path::new("/nowhere/log"), false).unwrap_err();
    assert!(error.to_string().contains("/nowhere/log"));
}

/// If it fails, a prompt waits for its end of line, or a console for nobody fills memory.
#[test]
fn a_prompt_appears_and_nobody_keeps_nothing() {
    let (mut theirs, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let console = Console::with_sink(irq(), Sink::own(ours), Host::Plain, None).unwrap();
    let (mut events, serial) = running(console);
    guest_writes(&serial, b"# ");
    settle(&mut events);
    assert_eq!(received(&mut theirs), b"# ");

    let (mut events, serial) = running(Console::null(irq()).unwrap());
    guest_writes(&serial, b"# ");
    assert_eq!(settle(&mut events), 0);
    assert_eq!(lock(&serial).output().buffered(), 0);
}

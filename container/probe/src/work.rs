//! Work that is timed: for a while each, so that slow machines end, too.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::say;

/// What is written to a file, and read back, in one piece.
const BLOCK: usize = 1 << 20;
/// Files are not larger than this many blocks.
const BLOCKS: u32 = 64;
const PAGE: usize = 4096;

/// Does all of it, each for `time`, files in `directory`, and says how much came of it in a second.
pub fn work(directory: &Path, time: Duration) -> io::Result<()> {
    // Whatever is done for the first time is done now.
    let warm = time / 10;
    let each = |name: &str, job: &mut dyn FnMut() -> io::Result<()>| -> io::Result<()> {
        rate(warm, job)?;
        say(name, rate(time, job)?)
    };
    let mut state = 1_u64;
    each("cpu", &mut || {
        state = black_box(count(state));
        Ok(())
    })?;
    each("syscall", &mut || {
        for _ in 0..100 {
            // SAFETY: getppid takes nothing and only returns a number.
            black_box(unsafe { libc::syscall(libc::SYS_getppid) });
        }
        Ok(())
    })?;
    each("process", &mut || spawn())?;
    each("memory", &mut || touch())?;
    let path = directory.join("cofferdam-probe");
    each("file", &mut || {
        fs::write(&path, [0_u8; PAGE])?;
        fs::remove_file(&path)
    })?;
    // Not zeros, of which no disk is needed.
    let block: Vec<u8> = (0..=250).cycle().take(BLOCK).collect();
    say("write", write(&path, &block, time)?)?;
    say("read", read(&path, time)?)?;
    fs::remove_file(&path)
}

/// Sends to a port of the default gateway's for a while, and says MiB a second.
pub fn send(port: &str, time: Duration) -> io::Result<()> {
    let port = port.parse().map_err(io::Error::other)?;
    let routes = fs::read_to_string("/proc/net/route")?;
    let gateway = gateway(&routes).ok_or_else(|| io::Error::other("there is no default route"))?;
    let mut stream = TcpStream::connect(SocketAddrV4::new(gateway, port))?;
    let block = vec![0; BLOCK / 8];
    let started = Instant::now();
    let mut sent = 0_u32;
    while started.elapsed() < time {
        stream.write_all(&block)?;
        sent += 1;
    }
    // What is on its way counts when it has arrived.
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    let mib = f64::from(sent) / 8.0;
    say("network", mib / started.elapsed().as_secs_f64())
}

/// The default gateway in the text of /proc/net/route.
fn gateway(routes: &str) -> Option<Ipv4Addr> {
    routes.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let address = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000" && address != 0).then(|| Ipv4Addr::from(address.to_le_bytes()))
    })
}

/// How often a job is done in a second.
fn rate(time: Duration, job: &mut dyn FnMut() -> io::Result<()>) -> io::Result<f64> {
    let started = Instant::now();
    let mut done = 0_u32;
    while started.elapsed() < time {
        job()?;
        done += 1;
    }
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

/// Some thousand operations on numbers (xorshift), each of which needs the one before.
fn count(mut state: u64) -> u64 {
    for _ in 0..10_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    state
}

/// A process that is born and dies.
pub fn spawn() -> io::Result<()> {
    // SAFETY: the child ends at once, whatever other threads were about.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: it never returns.
        0 => unsafe { libc::_exit(0) },
        child => {
            // SAFETY: no status is asked for.
            match unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        }
    }
}

/// A mebibyte of fresh memory, written to and given back.
fn touch() -> io::Result<()> {
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            BLOCK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for offset in (0..BLOCK).step_by(PAGE) {
        // SAFETY: the offset lies in the mapping, which is ours and writable.
        unsafe { memory.cast::<u8>().add(offset).write_volatile(1) };
    }
    // SAFETY: the whole of the mapping, which nobody uses any more.
    match unsafe { libc::munmap(memory, BLOCK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes blocks one after the other, and with fsync to the disk: MiB a second.
fn write(path: &Path, block: &[u8], time: Duration) -> io::Result<f64> {
    let mut file = File::create(path)?;
    let started = Instant::now();
    let mut done = 0;
    while done < BLOCKS && (done == 0 || started.elapsed() < time) {
        file.write_all(block)?;
        done += 1;
    }
    file.sync_all()?;
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

/// Reads what was written, after the kernel here was told to forget it: MiB a second.
fn read(path: &Path, time: Duration) -> io::Result<f64> {
    let mut file = File::open(path)?;
    // SAFETY: the descriptor is open; advice takes no pointer. That it is not taken does no harm.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let mut block = vec![0; BLOCK];
    let started = Instant::now();
    let mut done = 0;
    while done == 0 || started.elapsed() < time {
        match file.read_exact(&mut block) {
            Ok(()) => done += 1,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    black_box(&block);
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, the throughput of the network is that to a wrong address.
    #[test]
    fn the_gateway_is_that_of_the_default_route() {
        let routes = "Iface\tDestination\tGateway\tFlags\n\
                      eth0\t0000580A\t00000000\t0001\n\
                      eth0\t00000000\t0100580A\t0003\n";
        assert_eq!(gateway(routes), Some(Ipv4Addr::new(10, 88, 0, 1)));
        assert_eq!(gateway("Iface\n"), None);
    }

    /// If it fails, a kind of work does not end, or leaves something behind.
    #[test]
    fn work_ends() {
        let dir = std::env::temp_dir().join(format!("cofferdam-work-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        work(&dir, Duration::from_millis(2)).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir(dir).unwrap();
    }
}

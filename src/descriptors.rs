//! Descriptors that whoever started us left open.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// The first that is no standard stream.
const FIRST: u32 = 3;

/// Has all of them close when a child of ours executes its program, but the standard streams. Our own
/// do from birth; and whatever of these we use, our children are not to have it. To be called before
/// there is a second thread or a child.
pub fn close_on_exec() {
    // SAFETY: the call takes three numbers, and sets a flag of descriptors without closing any.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if done != 0 {
        one_by_one();
    }
}

/// Has one of them stay open when a child executes its program: the child is to have it.
pub fn pass_on(number: RawFd) -> io::Result<()> {
    // SAFETY: the borrow ends with the statement. One that is closed is an error of the call.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(fcntl_setfd(fd, FdFlags::empty())?)
}

/// As a kernel before Linux 5.11 has it.
fn one_by_one() {
    let names = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for number in numbers.filter(|number: &i32| number.unsigned_abs() >= FIRST) {
        // SAFETY: the borrow ends with the statement. One that is closed by now is an error of the call.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::io::fcntl_getfd;
    use rustix::pipe::pipe;

    use super::*;

    /// If it fails, passt, the file-system process and runtimes get a tap, or whatever a careless parent
    /// left open, and keep it.
    #[test]
    fn children_get_none_of_what_we_were_given() {
        for close in [close_on_exec, one_by_one] {
            let (reader, writer) = pipe().unwrap();
            let stderr = fcntl_getfd(rustix::stdio::stderr()).unwrap();
            assert!(
                reader.as_raw_fd() >= 3
                    && !fcntl_getfd(&reader).unwrap().contains(FdFlags::CLOEXEC)
            );
            close();
            for fd in [&reader, &writer] {
                assert!(fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC));
            }
            assert_eq!(fcntl_getfd(rustix::stdio::stderr()).unwrap(), stderr);
            pass_on(reader.as_raw_fd()).unwrap();
            assert!(!fcntl_getfd(&reader).unwrap().contains(FdFlags::CLOEXEC));
        }
    }
}

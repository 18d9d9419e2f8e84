//! The file-system process at work, with a guest that sends what no kernel sends. Needs no KVM; who
//! is not root needs user namespaces. `tests/run lab` runs it once more where the root is an initramfs.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::config::FsConfig;
use cofferdam::vm::fsd::Daemon;
use cofferdam_devices::GuestMemory;
use cofferdam_devices::virtio::ring::Ring;
use cofferdam_devices::virtio::vhost_user::Backend;
use cofferdam_devices::virtio::{Interrupt, Registers, VirtQueue};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Numbers of FUSE requests.
mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const CREATE: u32 = 35;
    pub const BATCH_FORGET: u32 = 42;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// The root of what is mounted.
const ROOT: u64 = 1;
const MEMORY: usize = 1 << 20;
/// Where a request lies, and where its answer goes.
const REQUEST: u64 = 0x1_0000;
const ANSWER: u64 = 0x2_0000;
const ANSWER_LEN: u32 = 0x8000;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_cofferdam-fsd");

/// A directory of a test's own, gone when dropped.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cofferdam-fsd-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A directory `shared` with some files in it, and a file beside it that nobody shares.
fn tree() -> (TempDir, PathBuf) {
    let dir = TempDir::new();
    let shared = dir.0.join("shared");
    fs::create_dir_all(shared.join("inner")).unwrap();
    fs::write(dir.0.join("secret"), "the host's").unwrap();
    fs::write(shared.join("file"), "the guest's").unwrap();
    (dir, shared)
}

/// A directory as the monitor's configuration has it.
fn share(path: &Path, name: Option<&str>, ro: bool) -> FsConfig {
    FsConfig {
        path: Some(path.to_owned()),
        name: name.map(str::to_owned),
        ro,
        ..FsConfig::default()
    }
}

/// A guest's kernel that speaks FUSE to a process of ours, one request at a time.
struct Guest {
    daemon: Option<Daemon>,
    _backend: Backend,
    mem: GuestMemory,
    kick: Arc<EventFd>,
    avail: u16,
    unique: u64,
}

impl Guest {
    fn new(shares: &[&FsConfig]) -> Self {
        let daemon = Daemon::start(Path::new(PROGRAM), shares).unwrap();
        let backend = Backend::new(daemon.socket.try_clone().unwrap()).unwrap();
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        let file = Arc::new(File::from(file));
        file.set_len(MEMORY as u64).unwrap();
        let range = (GuestAddress(0), MEMORY, Some(FileOffset::from_arc(file, 0)));
        let mem = GuestMemory::from_ranges_with_files([range]).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let kicks = [Arc::new(event()), Arc::new(event())];
        let interrupt = Interrupt::new(event(), Registers::new());
        let queues = [0, 1].map(|queue: usize| {
            let base = 0x4000 * queue as u64;
            let mut ring = Queue::new(16).unwrap();
            ring.try_set_desc_table_address(GuestAddress(base)).unwrap();
            ring.try_set_avail_ring_address(GuestAddress(base + 0x1000))
                .unwrap();
            ring.try_set_used_ring_address(GuestAddress(base + 0x2000))
                .unwrap();
            let (mem, kick) = (mem.clone(), kicks[queue].clone());
            let ring = Ring::find(&ring, &mem).unwrap();
            VirtQueue::new("queue".into(), ring, mem, kick, interrupt.clone())
        });
        backend.start(&mem, 1 << 32, &queues, &interrupt).unwrap();
        let mut guest = Self {
            daemon: Some(daemon),
            _backend: backend,
            mem,
            kick: kicks[1].clone(),
            avail: 0,
            unique: 0,
        };
        let mut init = [0u32; 16];
        (init[0], init[1], init[2]) = (7, 38, 1 << 16);
        // FUSE_SUBMOUNTS: as Linux, it wants to know where another file system begins.
        init[3] = 1 << 27;
        guest.call(op::INIT, ROOT, &words(&init)).unwrap();
        guest
    }

    /// One directory, writable.
    fn sharing(path: &Path) -> Self {
        Self::new(&[&share(path, None, false)])
    }

    /// Sends a request and returns what was answered, without its header, or the error number.
    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.try_call(opcode, node, body).unwrap()
    }

    /// As [`Self::call`]; `None` if no answer comes.
    fn try_call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        self.unique += 1;
        let len = u32::try_from(40 + body.len()).unwrap();
        let mut request = words(&[len, opcode]);
        request.extend(self.unique.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        let table = 0x4000;
        let mem = &self.mem;
        let write = |index: u64, descriptor: Descriptor| {
            let at = GuestAddress(table + 16 * index);
            mem.write_obj(descriptor, at).unwrap();
        };
        mem.write_slice(&request, GuestAddress(REQUEST)).unwrap();
        write(0, Descriptor::new(REQUEST, len, 1, 1));
        write(1, Descriptor::new(ANSWER, ANSWER_LEN, 2, 0));
        let slot = table + 0x1004 + 2 * u64::from(self.avail % 16);
        mem.write_obj(0u16, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        mem.store(self.avail, GuestAddress(table + 0x1002), Ordering::Release)
            .unwrap();
        self.kick.write(1).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        let used = GuestAddress(table + 0x2002);
        while mem.load::<u16>(used, Ordering::Acquire).unwrap() != self.avail {
            if Instant::now() > until {
                return None;
            }
            thread::sleep(Duration::from_micros(50));
        }
        let mut answer = vec![0; 16];
        mem.read_slice(&mut answer, GuestAddress(ANSWER)).unwrap();
        let (len, error) = (word(&answer, 0), word(&answer, 4).cast_signed());
        if error != 0 {
            return Some(Err(-error));
        }
        answer.resize(len as usize, 0);
        mem.read_slice(&mut answer, GuestAddress(ANSWER)).unwrap();
        Some(Ok(answer.split_off(16)))
    }

    /// Looks a name up; returns its node and its mode.
    fn lookup(&mut self, parent: u64, name: &str) -> Result<(u64, u32), i32> {
        let entry = self.call(op::LOOKUP, parent, &zero_ended(&[name]))?;
        Ok((long(&entry, 0), word(&entry, 40 + 60)))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let open = self.call(op::OPEN, node, &words(&[flags.cast_unsigned(), 0]))?;
        Ok(long(&open, 0))
    }

    fn read(&mut self, node: u64) -> Result<String, i32> {
        let handle = self.open(node, libc::O_RDONLY)?;
        let mut body = handle.to_le_bytes().to_vec();
        body.extend(0u64.to_le_bytes());
        body.extend(words(&[4096, 0, 0, 0, 0, 0]));
        let data = self.call(op::READ, node, &body)?;
        Ok(String::from_utf8(data).unwrap())
    }

    fn write(&mut self, node: u64, text: &str) -> Result<(), i32> {
        let len = u32::try_from(text.len()).unwrap();
        let body = [
            vec![0; 16],
            words(&[len, 0, 0, 0, 0, 0]),
            text.as_bytes().to_vec(),
        ];
        self.call(op::WRITE, node, &body.concat()).map(drop)
    }

    /// Looks a name up; returns its node, and whether the guest mounts there what is a file system of its own.
    fn look_for_mounts(&mut self, parent: u64, name: &str) -> (u64, bool) {
        let entry = self.call(op::LOOKUP, parent, &zero_ended(&[name])).unwrap();
        (long(&entry, 0), word(&entry, 40 + 84) & 1 == 1)
    }

    /// Makes a file without a name; returns its node.
    fn make_unnamed(&mut self, directory: u64) -> Result<u64, i32> {
        let flags = libc::O_TMPFILE | libc::O_RDWR;
        let body = [
            words(&[flags.cast_unsigned(), 0o4640, 0, 0]),
            zero_ended(&["/"]),
        ];
        let entry = self.call(op::TMPFILE, directory, &body.concat())?;
        Ok(long(&entry, 0))
    }

    /// Gives a file one more name.
    fn link(&mut self, node: u64, directory: u64, name: &str) -> Result<u64, i32> {
        let body = [node.to_le_bytes().to_vec(), zero_ended(&[name])];
        let entry = self.call(op::LINK, directory, &body.concat())?;
        Ok(long(&entry, 0))
    }

    fn mkdir(&mut self, parent: u64, name: &str) -> Result<Vec<u8>, i32> {
        let body = [words(&[0o755, 0]), zero_ended(&[name])].concat();
        self.call(op::MKDIR, parent, &body)
    }

    /// The process in the sandbox: the child of the one that was started.
    fn process(&self) -> u32 {
        let parent = self.daemon.as_ref().unwrap().child.id();
        let children = format!("/proc/{parent}/task/{parent}/children");
        fs::read_to_string(children)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.child.kill();
            let _ = daemon.child.wait();
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn word(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
}

fn long(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().unwrap())
}

fn zero_ended(names: &[&str]) -> Vec<u8> {
    names
        .iter()
        .flat_map(|name| name.bytes().chain([0]))
        .collect()
}

/// If it fails, the guest cannot read, write or list what it was given.
#[test]
fn a_directory_is_served() {
    let (_dir, shared) = tree();
    let mut guest = Guest::sharing(&shared);
    let (file, mode) = guest.lookup(ROOT, "file").unwrap();
    assert_eq!(mode & libc::S_IFMT, libc::S_IFREG);
    assert_eq!(guest.read(file).unwrap(), "the guest's");
    guest.mkdir(ROOT, "new").unwrap();
    let (new, _) = guest.lookup(ROOT, "new").unwrap();
    let create = [
        words(&[libc::O_RDWR.cast_unsigned(), 0o600, 0, 0]),
        zero_ended(&["made"]),
    ];
    guest.call(op::CREATE, new, &create.concat()).unwrap();
    assert!(shared.join("new/made").is_file());
    guest
        .call(op::UNLINK, ROOT, &zero_ended(&["file"]))
        .unwrap();
    assert!(!shared.join("file").exists());
    assert_eq!(guest.lookup(ROOT, "file"), Err(libc::ENOENT));
}

/// If it fails, programs that write to a file before it has a name (O_TMPFILE) do not work on a volume, or
/// what they wrote is lost, seen too early, or another file's.
#[test]
fn a_file_without_a_name_gets_one() {
    let (_dir, shared) = tree();
    let mut guest = Guest::sharing(&shared);
    let (inner, _) = guest.lookup(ROOT, "inner").unwrap();
    let file = guest.make_unnamed(inner).unwrap();
    let other = guest.make_unnamed(inner).unwrap();
    guest.write(file, "one and more").unwrap();
    guest.write(other, "other").unwrap();
    assert_eq!(guest.read(file).unwrap(), "one and more");
    assert_eq!(guest.read(other).unwrap(), "other");
    let size_and_mode = 1 | 1 << 3;
    let mut attributes = words(&[size_and_mode, 0]);
    attributes.extend(words(&[
        0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o4600, 0, 0, 0, 0,
    ]));
    guest.call(op::SETATTR, file, &attributes).unwrap();
    guest.call(op::FSYNC, file, &[0; 16]).unwrap();
    let about = guest.call(op::GETATTR, file, &[0; 16]).unwrap();
    let of_attr = |at: usize| word(&about, 16 + at);
    assert_eq!((of_attr(8), of_attr(60), of_attr(64)), (3, 0o100_600, 0));
    let data = [0u64.to_le_bytes(), 0u64.to_le_bytes()].concat();
    let data = [data, words(&[libc::SEEK_HOLE.cast_unsigned(), 0])].concat();
    assert_eq!(long(&guest.call(op::LSEEK, file, &data).unwrap(), 0), 3);
    let copy = [vec![0; 16], file.to_le_bytes().to_vec(), vec![0; 32]];
    let (named, _) = guest.lookup(ROOT, "file").unwrap();
    for from in [named, file] {
        let copied = guest.call(op::COPY_FILE_RANGE, from, &copy.concat());
        assert_eq!(copied, Err(libc::EXDEV));
    }
    assert_eq!(fs::read_dir(shared.join("inner")).unwrap().count(), 0);

    for name in ["../x", "..", "", "a/b"] {
        assert_eq!(guest.link(file, ROOT, name), Err(libc::EINVAL), "{name:?}");
    }
    assert_eq!(guest.link(file, ROOT, "file"), Err(libc::EEXIST));
    assert_eq!(guest.link(file, named, "x"), Err(libc::ENOTDIR));
    let linked = guest.link(file, ROOT, "made").unwrap();
    assert_eq!(guest.read(linked).unwrap(), "one");
    assert_eq!(guest.lookup(ROOT, "made").unwrap(), (linked, 0o100_600));
    guest.link(file, inner, "again").unwrap();
    let on_host = fs::metadata(shared.join("inner/again")).unwrap();
    assert_eq!((on_host.nlink(), on_host.mode()), (2, 0o100_600));

    // No answers come to these.
    guest.try_call(op::FORGET, file, &1u64.to_le_bytes());
    assert_eq!(guest.call(op::GETATTR, file, &[0; 16]), Err(libc::EBADF));
    let mut many = words(&[1, 0]);
    many.extend([other.to_le_bytes(), 1u64.to_le_bytes()].concat());
    guest.try_call(op::BATCH_FORGET, 0, &many);
    assert_eq!(guest.link(other, ROOT, "late"), Err(libc::EBADF));
    assert_eq!(guest.read(linked).unwrap(), "one");
}

/// If it fails, a guest writes to a file system that it may only read.
#[test]
fn no_file_without_a_name_is_made_where_none_may_be() {
    let (_dir, shared) = tree();
    let mut guest = Guest::new(&[&share(&shared, None, true)]);
    assert_eq!(guest.make_unnamed(ROOT), Err(libc::EROFS));
    let mut guest = Guest::sharing(&shared);
    let (file, _) = guest.lookup(ROOT, "file").unwrap();
    assert_eq!(guest.make_unnamed(file), Err(libc::ENOTDIR));
    assert_eq!(guest.make_unnamed(7 << 32), Err(libc::EBADF));
}

/// If it fails, a guest reads the host's files by names that no kernel sends.
#[test]
fn no_name_leaves_the_shared_root() {
    let (dir, shared) = tree();
    let secret = dir.0.join("secret");
    let mut guest = Guest::sharing(&shared);
    let (inner, _) = guest.lookup(ROOT, "inner").unwrap();
    let secret_name = secret.to_str().unwrap();
    for name in [
        "../secret",
        "inner/../../secret",
        secret_name,
        "/etc/passwd",
        "inner/",
        "",
        ".",
        "..",
    ] {
        for node in [ROOT, inner] {
            guest.lookup(node, name).unwrap_err();
            guest.mkdir(node, &format!("{name}/x")).unwrap_err();
            guest
                .call(op::UNLINK, node, &zero_ended(&[name]))
                .unwrap_err();
            let body = [ROOT.to_le_bytes().to_vec(), zero_ended(&["file", name])];
            let renamed = guest.call(op::RENAME, node, &body.concat());
            assert!(renamed.is_err(), "{name:?} of node {node}");
        }
    }
    // Nodes and handles that nobody gave it.
    for node in [0, 2 << 32, u64::MAX] {
        guest.lookup(node, "file").unwrap_err();
        guest.open(node, libc::O_RDONLY).unwrap_err();
    }
    assert!(secret.is_file());
    assert!(shared.join("file").is_file());
}

/// If it fails, a link that the guest makes, or that somebody swaps meanwhile, leads it out.
#[test]
fn no_link_is_followed() {
    let (dir, shared) = tree();
    let secret = dir.0.join("secret");
    for (name, target) in [
        ("absolute", secret.as_path()),
        ("relative", Path::new("../secret")),
        ("root", Path::new("/")),
        ("proc", Path::new("/proc/self/root")),
    ] {
        symlink(target, shared.join(name)).unwrap();
    }
    let mut guest = Guest::sharing(&shared);
    for name in ["absolute", "relative", "root", "proc"] {
        let (link, mode) = guest.lookup(ROOT, name).unwrap();
        assert_eq!(mode & libc::S_IFMT, libc::S_IFLNK);
        guest.open(link, libc::O_RDONLY).unwrap_err();
        guest.call(op::OPENDIR, link, &words(&[0, 0])).unwrap_err();
        guest.lookup(link, "etc").unwrap_err();
        guest.mkdir(link, "x").unwrap_err();
        guest.call(op::READLINK, link, &[]).unwrap();
    }
    // A link of the guest's own, and a hard link to it.
    let body = zero_ended(&["own", secret.to_str().unwrap()]);
    guest.call(op::SYMLINK, ROOT, &body).unwrap();
    let (own, _) = guest.lookup(ROOT, "own").unwrap();
    guest.open(own, libc::O_RDONLY).unwrap_err();
    let body = [own.to_le_bytes().to_vec(), zero_ended(&["hard"])].concat();
    guest.call(op::LINK, ROOT, &body).unwrap();
    let hard = fs::symlink_metadata(shared.join("hard")).unwrap();
    assert!(hard.file_type().is_symlink());

    // Directory and link trade places while the guest looks.
    let (swapped, spare) = (shared.join("swapped"), shared.join("spare"));
    fs::create_dir(&swapped).unwrap();
    fs::write(swapped.join("secret"), "the guest's").unwrap();
    symlink(&dir.0, &spare).unwrap();
    let stop = Arc::new(AtomicU32::new(0));
    let swapper = thread::spawn({
        let stop = stop.clone();
        move || {
            while stop.load(Ordering::Relaxed) == 0 {
                let (a, b) = (&swapped, &spare);
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    a,
                    rustix::fs::CWD,
                    b,
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
            }
        }
    });
    let mut found = 0;
    for _ in 0..1000 {
        let Ok((node, _)) = guest.lookup(ROOT, "swapped") else {
            continue;
        };
        if let Ok((file, _)) = guest.lookup(node, "secret") {
            assert_eq!(guest.read(file).unwrap(), "the guest's");
            found += 1;
        }
    }
    stop.store(1, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(found > 0);
}

/// If it fails, a guest opens a device or a pipe of the host, or makes a device that somebody can.
#[test]
fn only_files_and_directories_are_opened() {
    let (_dir, shared) = tree();
    let pipe = shared.join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o666.into()).unwrap();
    let mut guest = Guest::sharing(&shared);
    let (pipe, _) = guest.lookup(ROOT, "pipe").unwrap();
    guest.open(pipe, libc::O_RDONLY).unwrap_err();
    // Memory of the host: made if that was allowed, opened never.
    let number = 1 << 8 | 1;
    let body = |number| {
        let numbers = words(&[libc::S_IFCHR | 0o666, number, 0, 0]);
        [numbers, zero_ended(&["mem"])].concat()
    };
    let made = guest.call(op::MKNOD, ROOT, &body(number));
    assert_eq!(made, Err(libc::EPERM));
    // What an overlay hides files with is no device.
    guest.call(op::MKNOD, ROOT, &body(0)).unwrap();
    fs::remove_file(shared.join("mem")).unwrap();
    drop(guest);
    let mut guest = Guest::new(&[&FsConfig {
        dev: true,
        ..share(&shared, None, false)
    }]);
    if guest.call(op::MKNOD, ROOT, &body(number)).is_ok() {
        assert!(
            fs::symlink_metadata(shared.join("mem"))
                .unwrap()
                .file_type()
                .is_char_device()
        );
        let (node, _) = guest.lookup(ROOT, "mem").unwrap();
        guest.open(node, libc::O_RDWR).unwrap_err();
    }
}

/// If it fails, a guest's root makes any user of the host root of the host, or users of set-ID programs in
/// shared directories lose them.
#[test]
fn programs_get_rights_only_where_that_is_allowed() {
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let set_mode = |guest: &mut Guest, node: u64, mode: u32| {
        let mut body = vec![0; 88];
        body[..4].copy_from_slice(&1u32.to_le_bytes());
        body[68..72].copy_from_slice(&mode.to_le_bytes());
        guest.call(op::SETATTR, node, &body).map(drop)
    };
    let is_root = rustix::process::geteuid().is_root();
    for suid in [false, true] {
        let kept = |mode: u32| if suid { mode } else { mode & 0o777 };
        let (_dir, shared) = tree();
        let existing = shared.join("existing");
        fs::write(&existing, "old").unwrap();
        if is_root {
            // The bit is kept although the directory's group is none of the process's.
            std::os::unix::fs::chown(shared.join("inner"), None, Some(1234)).unwrap();
        }
        chmod(&existing, 0o6755);
        let mut guest = Guest::new(&[&FsConfig {
            suid,
            ..share(&shared, None, false)
        }]);
        let regular = libc::S_IFREG | 0o6755;
        let body = [words(&[0o2, regular, 0, 0]), zero_ended(&["created"])].concat();
        guest.call(op::CREATE, ROOT, &body).unwrap();
        let body = [words(&[regular, 0, 0, 0]), zero_ended(&["made"])].concat();
        guest.call(op::MKNOD, ROOT, &body).unwrap();
        let (file, _) = guest.lookup(ROOT, "file").unwrap();
        set_mode(&mut guest, file, regular).unwrap();
        for name in ["created", "made", "file"] {
            assert_eq!(mode(&shared.join(name)), kept(0o6755), "{name}");
        }
        let (inner, _) = guest.lookup(ROOT, "inner").unwrap();
        set_mode(&mut guest, inner, libc::S_IFDIR | 0o2775).unwrap();
        assert_eq!(mode(&shared.join("inner")), 0o2775);

        // A program that is there already does not become another.
        let (node, _) = guest.lookup(ROOT, "existing").unwrap();
        let handle = guest.open(node, libc::O_RDWR).unwrap();
        let mut body = handle.to_le_bytes().to_vec();
        body.extend(words(&[0, 0, 3, 0, 0, 0, 0, 0]));
        body.extend(b"new");
        guest.call(op::WRITE, node, &body).unwrap();
        assert_eq!(fs::read(&existing).unwrap(), b"new");
        assert_eq!(mode(&existing), kept(0o6755));

        let value = words(&[0x0200_0001, 1 << 10, 0, 0, 0]);
        let size = u32::try_from(value.len()).unwrap();
        let name = zero_ended(&["security.capability"]);
        let body = [words(&[size, 0]), name, value].concat();
        let given = guest.call(op::SETXATTR, file, &body).map(drop);
        match suid {
            false => assert_eq!(given, Err(libc::EPERM)),
            true => assert_eq!(given, Ok(())),
        }
    }
}

/// If it fails, what is shared for reading is written, or one directory's rights are the other's.
#[test]
fn several_directories_share_a_root() {
    let (_dirs, writable) = tree();
    let (_others, other) = tree();
    let shares = [
        &share(&writable, Some("w"), false),
        &share(&other, Some("r"), true),
    ];
    let mut guest = Guest::new(&shares);
    let (w, _) = guest.lookup(ROOT, "w").unwrap();
    let (r, _) = guest.lookup(ROOT, "r").unwrap();
    guest.mkdir(w, "new").unwrap();
    assert_eq!(guest.mkdir(r, "new"), Err(libc::EROFS));
    assert_eq!(guest.mkdir(ROOT, "new"), Err(libc::EROFS));
    let (file, _) = guest.lookup(r, "file").unwrap();
    assert_eq!(guest.open(file, libc::O_RDWR), Err(libc::EROFS));
    assert_eq!(guest.read(file).unwrap(), "the guest's");
    assert_eq!(guest.lookup(ROOT, "secret"), Err(libc::ENOENT));

    let mut guest = Guest::new(&[&share(&other, None, true)]);
    assert_eq!(guest.mkdir(ROOT, "new"), Err(libc::EROFS));
    let (file, _) = guest.lookup(ROOT, "file").unwrap();
    assert_eq!(guest.open(file, libc::O_RDWR), Err(libc::EROFS));
    assert!(!other.join("new").exists());
}

/// If it fails, a bind in a container shows another root in /proc/self/mountinfo than its source's name, or
/// files of two directories are taken for one.
#[test]
fn a_share_may_lie_in_a_directory_of_its_own() {
    let (_dirs, writable) = tree();
    let (_others, other) = tree();
    let file = other.join("file");
    let shares = [
        &share(&writable, Some("0/data"), false),
        &share(&other, Some("1/data"), true),
        &share(&file, Some("2/a file"), true),
    ];
    let mut guest = Guest::new(&shares);
    for (holder, name) in [("0", "data"), ("1", "data"), ("2", "a file")] {
        let (node, is_announced) = guest.look_for_mounts(ROOT, holder);
        assert!(is_announced, "{holder}");
        let (held, is_announced) = guest.look_for_mounts(node, name);
        assert!(!is_announced, "{holder}/{name}");
        assert_eq!(guest.mkdir(node, "new"), Err(libc::EROFS));
        if holder == "0" {
            guest.mkdir(held, "new").unwrap();
        } else {
            assert!(guest.mkdir(held, "new").is_err());
        }
    }
    assert!(writable.join("new").is_dir() && !other.join("new").exists());
}

/// If it fails, a process that a guest has taken over is no prisoner.
#[test]
fn the_process_can_do_nothing_else() {
    let (_dir, shared) = tree();
    let mut guest = Guest::sharing(&shared);
    guest.lookup(ROOT, "file").unwrap();
    let process = guest.process();
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("CapBnd:"), "0000000000000000");
    // CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID; not FSETID, MKNOD, SETFCAP.
    assert_eq!(field("CapEff:"), "00000000000000cb");
    assert_eq!(field("CapPrm:"), "00000000000000cb");
    // A dump of it has none of the guest's memory, which is shared.
    let core = fs::read_to_string(format!("/proc/{process}/coredump_filter")).unwrap();
    assert_eq!(core.trim(), "00000031");
    assert!(field("NSpid:").ends_with("\t1"));
    for namespace in ["mnt", "pid", "net", "ipc", "uts"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
        assert_ne!(of("self"), of(&process.to_string()), "{namespace}");
    }
    // Its root is the directory, without devices or set-user-ID programs.
    let root = fs::metadata(format!("/proc/{process}/root/")).unwrap();
    let expected = fs::metadata(&shared).unwrap();
    assert_eq!((root.dev(), root.ino()), (expected.dev(), expected.ino()));
    let mounts = fs::read_to_string(format!("/proc/{process}/mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains("nosuid,nodev,noexec"), "{mounts}");
    // Of the host's files it holds nothing but its own descriptors' directory, as a root.
    for file in fs::read_dir(format!("/proc/{process}/fd")).unwrap() {
        let target = fs::read_link(file.unwrap().path()).unwrap();
        let target = target.to_str().unwrap();
        let is_known = [
            "/",
            "/file",
            "/dev/null",
            "/memfd:",
            "socket:",
            "anon_inode:",
            "pipe:",
        ]
        .iter()
        .any(|known| target == *known || known.ends_with(':') && target.starts_with(known));
        assert!(is_known || target == stderr(), "{target}");
    }
}

/// What our standard error leads to, which the process's does too.
fn stderr() -> String {
    fs::read_link("/proc/self/fd/2")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

/// If it fails, processes are left behind when the monitor ends, or go on when one half is killed.
#[test]
fn it_ends_with_the_monitor() {
    let (_dir, shared) = tree();
    let gone = |process: u32| {
        let until = Instant::now() + Duration::from_secs(10);
        while Path::new(&format!("/proc/{process}")).exists() {
            assert!(Instant::now() < until, "process {process} is still there");
            thread::sleep(Duration::from_millis(10));
        }
    };
    // The connection ends.
    let mut guest = Guest::sharing(&shared);
    let process = guest.process();
    let mut daemon = guest.daemon.take().unwrap();
    daemon.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(daemon.child.wait().unwrap().success());
    gone(process);
    // The parent is killed.
    let mut guest = Guest::sharing(&shared);
    let process = guest.process();
    guest.daemon.as_mut().unwrap().child.kill().unwrap();
    guest.daemon.as_mut().unwrap().child.wait().unwrap();
    gone(process);
}

/// If it fails, whoever shares what cannot be shared is not told why.
#[test]
fn what_cannot_be_shared_is_said() {
    let (_dir, shared) = tree();
    let nothing = share(&shared.join("nothing"), None, false);
    let program = Path::new(PROGRAM);
    let error = Daemon::start(program, &[&nothing]).unwrap_err().to_string();
    assert!(error.contains("nothing"), "{error}");
    assert!(error.contains("No such file"), "{error}");
    let output = std::process::Command::new(program)
        .args(["--share", "path=/"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("standard input is not"), "{text}");
    let permissions = fs::metadata(&shared).unwrap().permissions();
    assert_eq!(permissions.mode() & 0o777, 0o755);
}

/// If it fails, who asks `cofferdam fsd` what it is gets no answer, or a wrong name for it.
#[test]
fn the_program_says_what_it_is() {
    let run = |args: &[&str]| {
        let output = std::process::Command::new(PROGRAM)
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for part in [
        "Usage: cofferdam fsd",
        "--share",
        "[name=NAME,][ro,]path=DIR",
    ] {
        assert!(help.contains(part), "no {part}: {help}");
    }
    let (code, _, refusal) = run(&["--share", "/srv"]);
    assert_eq!(code, Some(2));
    assert!(refusal.contains("expected [name=NAME,]"), "{refusal}");
}

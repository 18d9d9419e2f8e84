//! The vhost-user back end: takes the guest's requests from the queues, one at a time, and answers them in
//! their order. That is how the monitor knows what is left to answer when this process dies.
//!
//! virtiofsd's server of requests answers them, of files with names or of those without. What it has no way
//! for is done here: a file without a name is made, and gets one.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use log::{error, warn};
use rustix::fs::{AtFlags, OFlags, linkat};
use rustix::io::Errno;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackend, VringMutex, VringState, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue_017::{DescriptorChain, QueueOwnedT};
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::{Context, FileSystem, ZeroCopyWriter};
use virtiofsd::fuse::{
    CopyfilerangeIn, CreateIn, EntryOut, InHeader, LinkIn, Opcode, OpenOut, OutHeader,
};
use virtiofsd::oslib::ReadvFlags;
use virtiofsd::server::Server;
use vm_memory_017::{
    ByteValued, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::checked::{self, Checked};
use crate::unnamed::{self, Unnamed};

type Memory = GuestMemoryAtomic<GuestMemoryMmap<BitmapMmapRegion>>;
type Loaded = GuestMemoryLoadGuard<GuestMemoryMmap<BitmapMmapRegion>>;
type Answered<T> = Result<T, Box<dyn std::error::Error>>;

/// One for urgent requests, one for all others.
const QUEUES: usize = 2;
/// The longest queue of a vhost-user device.
const QUEUE_SIZE: usize = 1 << 15;
/// A name and the zero behind it are not longer.
const MAX_NAME: u64 = 256;

/// The back end.
pub struct Backend<F: Named> {
    /// The files with names.
    fs: Checked<F>,
    named: Server<Checked<F>>,
    /// Those without.
    files: Unnamed,
    unnamed: Server<Unnamed>,
    /// This process's `/proc/self/fd`.
    descriptors: File,
    memory: RwLock<Option<Memory>>,
    event_idx: AtomicBool,
}

/// A file system of files with names.
pub trait Named: FileSystem<Inode = u64, Handle = u64> + Send + Sync + 'static {}

impl<F: FileSystem<Inode = u64, Handle = u64> + Send + Sync + 'static> Named for F {}

impl<F: Named> Backend<F> {
    /// Nothing is served yet.
    pub fn new(fs: Checked<F>, files: Unnamed, descriptors: File) -> Self {
        Self {
            named: Server::new(fs.clone()),
            fs,
            unnamed: Server::new(files.clone()),
            files,
            descriptors,
            memory: RwLock::default(),
            event_idx: AtomicBool::new(false),
        }
    }

    /// Answers what is in a queue.
    fn serve(&self, vring: &mut VringState<Memory>) -> Answered<()> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let memory = memory.as_ref().ok_or("there is no memory yet")?.memory();
        let chains: Vec<_> = vring.get_queue_mut().iter(memory.clone())?.collect();
        for chain in chains {
            let head = chain.head_index();
            let length = self.answer(&memory, chain).unwrap_or_else(|error| {
                // The guest is told by the device's death.
                error!("a request that is none: {error}");
                process::exit(1);
            });
            vring.add_used(head, u32::try_from(length)?)?;
            if !self.event_idx.load(Ordering::Relaxed) || vring.needs_notification()? {
                vring.signal_used_queue()?;
            }
        }
        Ok(())
    }

    fn answer(&self, memory: &Loaded, chain: DescriptorChain<Loaded>) -> Answered<usize> {
        let reader = Reader::new(memory, chain.clone())?;
        let writer = Writer::new(memory, chain)?;
        let mut ahead = reader.clone();
        let header: InHeader = ahead.read_obj()?;
        let none = None::<&mut ()>;
        let done = match Opcode::try_from(header.opcode) {
            Ok(Opcode::TmpFile) => {
                let made = self.make(header, ahead);
                return reply(writer, header.unique, made);
            }
            Ok(Opcode::Link) if unnamed::has(ahead.clone().read_obj::<LinkIn>()?.oldnodeid) => {
                let linked = self.name(header, ahead);
                return reply(writer, header.unique, linked);
            }
            // The guest's kernel copies by itself then.
            Ok(Opcode::CopyFileRange)
                if unnamed::has(ahead.read_obj::<CopyfilerangeIn>()?.nodeid_out) =>
            {
                return reply(writer, header.unique, Err(Errno::XDEV.into()));
            }
            Ok(Opcode::BatchForget) => {
                // Each has its own of them.
                self.unnamed
                    .handle_message(reader.clone(), writer.clone(), None::<&mut ()>)?;
                self.named.handle_message(reader, writer, none)
            }
            Ok(Opcode::Init | Opcode::Destroy) => {
                self.files.clear();
                self.named.handle_message(reader, writer, none)
            }
            _ if unnamed::has(header.nodeid) => self.unnamed.handle_message(reader, writer, none),
            _ => self.named.handle_message(reader, writer, none),
        };
        Ok(done?)
    }

    /// Makes a file without a name in a directory.
    fn make(&self, header: InHeader, mut reader: Reader<'_>) -> io::Result<Vec<u8>> {
        let asked: CreateIn = reader.read_obj()?;
        let ctx = Context::from(header);
        let directory = self.directory(ctx, header.nodeid)?;
        let made = self.files.make(ctx, &directory, asked.mode, asked.flags)?;
        let (entry, open) = (EntryOut::from(made), OpenOut::default());
        Ok([entry.as_slice(), open.as_slice()].concat())
    }

    /// Gives one a name.
    fn name(&self, header: InHeader, mut reader: Reader<'_>) -> io::Result<Vec<u8>> {
        let asked: LinkIn = reader.read_obj()?;
        let mut name = Vec::new();
        reader.take(MAX_NAME).read_to_end(&mut name)?;
        let name = CStr::from_bytes_until_nul(&name).map_err(|_| Errno::NAMETOOLONG)?;
        checked::check(name)?;
        let ctx = Context::from(header);
        let directory = self.directory(ctx, header.nodeid)?;
        let file = self.files.file(asked.oldnodeid)?;
        let number = file.as_raw_fd().to_string();
        let follow = AtFlags::SYMLINK_FOLLOW;
        linkat(&self.descriptors, number, &directory, name, follow)?;
        let entry = self.fs.lookup(ctx, header.nodeid, name)?;
        Ok(EntryOut::from(entry).as_slice().to_vec())
    }

    /// The host's descriptor of a directory, which the file system lends to whoever reads from it.
    fn directory(&self, ctx: Context, inode: u64) -> io::Result<File> {
        let flags = OFlags::DIRECTORY.bits();
        let (handle, _) = self.fs.opendir(ctx, inode, flags)?;
        let handle = handle.ok_or(Errno::BADF)?;
        let mut lent = Lent(None);
        let read = self.fs.read(ctx, inode, handle, &mut lent, 0, 0, None, 0);
        self.fs.releasedir(ctx, inode, flags, handle)?;
        read?;
        Ok(lent.0.ok_or(Errno::BADF)?)
    }
}

/// Takes no bytes of a file, but the file.
struct Lent(Option<File>);

impl ZeroCopyWriter for Lent {
    fn read_from_file_at(
        &mut self,
        file: &File,
        _: usize,
        _: u64,
        _: Option<ReadvFlags>,
    ) -> io::Result<usize> {
        self.0 = Some(file.try_clone()?);
        Ok(0)
    }
}

/// Answers a request.
fn reply(mut writer: Writer<'_>, unique: u64, body: io::Result<Vec<u8>>) -> Answered<usize> {
    let (error, body) = match body {
        Ok(body) => (0, body),
        Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
    };
    let length = size_of::<OutHeader>() + body.len();
    let header = OutHeader {
        len: u32::try_from(length)?,
        error,
        unique,
    };
    writer.write_all(header.as_slice())?;
    writer.write_all(&body)?;
    Ok(length)
}

impl<F: Named> VhostUserBackend for Backend<F> {
    type Bitmap = BitmapMmapRegion;
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        self.files.clear();
        self.named.destroy();
    }

    fn set_event_idx(&self, enabled: bool) {
        self.event_idx.store(enabled, Ordering::Relaxed);
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &self,
        queue: u16,
        _: EventSet,
        vrings: &[Self::Vring],
        _: usize,
    ) -> io::Result<()> {
        let vring = vrings.get(usize::from(queue)).ok_or(Errno::INVAL)?;
        let mut vring = vring.get_mut();
        // What comes while nobody is told of it is seen by looking once more.
        loop {
            let served = (|| {
                vring.disable_notification()?;
                self.serve(&mut vring)?;
                Answered::Ok(vring.enable_notification()?)
            })();
            match served {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                // It may have been stopped meanwhile.
                Err(error) => {
                    warn!("queue {queue} cannot be served: {error}");
                    return Ok(());
                }
            }
        }
    }
}

//! Workers: threads with an event loop of their own, for lanes of devices.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Subscriber;

/// A worker that is to serve a lane, and does not run yet.
pub struct Worker {
    name: String,
    lane: Subscriber,
}

/// A worker's thread. Dropped, it has ended.
#[derive(Debug)]
pub struct WorkerThread {
    end: Arc<End>,
    thread: Option<JoinHandle<()>>,
}

/// How a worker learns that it is to end.
#[derive(Debug)]
struct End {
    is_near: AtomicBool,
    news: EventFd,
}

impl Worker {
    /// A worker for `lane`. Of the name the kernel keeps 15 bytes.
    pub fn new(name: String, lane: Subscriber) -> Self {
        Self { name, lane }
    }

    /// Starts the thread.
    pub fn start(self) -> io::Result<WorkerThread> {
        let failed = |error: event_manager::Error| io::Error::other(error.to_string());
        let end = Arc::new(End {
            is_near: AtomicBool::new(false),
            news: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        });
        let mut events = EventManager::<Subscriber>::new().map_err(failed)?;
        events.add_subscriber(Arc::new(Mutex::new(Watch(end.clone()))));
        events.add_subscriber(self.lane);
        let (name, watched) = (self.name.clone(), end.clone());
        let thread = thread::Builder::new().name(self.name).spawn(move || {
            while !watched.is_near.load(Ordering::Acquire) {
                if let Err(error) = events.run() {
                    log::error!("{name}: the worker cannot wait for events: {error}");
                    return;
                }
            }
        })?;
        Ok(WorkerThread {
            end,
            thread: Some(thread),
        })
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Worker({})", self.name)
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        self.end.is_near.store(true, Ordering::Release);
        let _ = self.end.news.write(1);
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            log::error!("a worker panicked");
        }
    }
}

/// Wakes the worker for its end.
struct Watch(Arc<End>);

impl MutEventSubscriber for Watch {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.news.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.0.news, EventSet::IN)) {
            log::error!("a worker will not see the VM's end: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Tells the test of the thread that it runs on.
    struct Probe(EventFd, mpsc::Sender<Option<String>>);

    impl MutEventSubscriber for Probe {
        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            let _ = self.0.read();
            self.1
                .send(thread::current().name().map(str::to_owned))
                .unwrap();
        }

        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    /// If it fails, a lane is served by the main loop, or by nobody, or its thread never ends.
    #[test]
    fn a_worker_serves_its_lane_until_it_is_dropped() {
        let (sender, served) = mpsc::channel();
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let lane = Arc::new(Mutex::new(Probe(kick.try_clone().unwrap(), sender)));
        let worker = Worker::new("block0".into(), lane).start().unwrap();
        kick.write(1).unwrap();
        assert_eq!(served.recv().unwrap().as_deref(), Some("block0"));
        drop(worker);
        assert!(served.recv().is_err());
    }
}

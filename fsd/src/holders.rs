//! Directories of the root that hold one shared directory each, by its own name.
//!
//! The guest gives each file system that it is told of one of its own (`announce_submounts`), and in
//! its /proc/self/mountinfo the root of that has no name. So it is told of the holder, and not of what
//! the holder holds: a bind of that shows its name, and file numbers are those of one share alone.

use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtiofsd::filesystem::{Entry, ROOT_ID};
use virtiofsd::fuse::ATTR_SUBMOUNT;

use crate::share::Share;

/// No node has this number.
const UNKNOWN: u64 = 0;

/// The names of all of them, and their nodes as they were last looked up.
#[derive(Clone, Debug, Default)]
pub struct Holders(Arc<[(CString, AtomicU64)]>);

impl Holders {
    /// Those that hold these.
    pub fn of(shares: &[Share]) -> Self {
        let names = shares.iter().filter_map(|share| share.place()?.0);
        let names = names.filter_map(|name| CString::new(name).ok());
        Self(names.map(|name| (name, AtomicU64::new(UNKNOWN))).collect())
    }

    /// Looks at what was found below a node.
    pub fn see(&self, parent: u64, name: &CStr, found: &mut Entry) {
        for (holder, node) in self.0.iter() {
            if parent == ROOT_ID && holder.as_c_str() == name {
                node.store(found.inode, Ordering::Relaxed);
            } else if parent != ROOT_ID && node.load(Ordering::Relaxed) == parent {
                found.attr.flags &= !ATTR_SUBMOUNT;
            }
        }
    }
}

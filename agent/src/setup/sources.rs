//! What a container has of the guest's file systems. It is taken before the container's root is the root,
//! and put in place when nothing else is in reach any more.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, fstat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::{Context, Error, Result};
use crate::setup::devices;
use crate::setup::options::Options;
use crate::spec::{Mount, Spec};

/// A mount that is nowhere yet, with what is mounted below it.
#[derive(Debug)]
pub struct Tree {
    mount: OwnedFd,
    /// It goes on a directory.
    pub is_directory: bool,
}

impl Tree {
    /// A copy of what is mounted at a path; `recursive`: and below.
    pub fn of(path: &str, recursive: bool) -> io::Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        Self::new(open_tree(CWD, path, flags)?)
    }

    /// A new proc of this process's namespaces.
    fn proc(data: &[String]) -> io::Result<Self> {
        let kind = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for option in data {
            match option.split_once('=') {
                Some((name, value)) => fsconfig_set_string(kind.as_fd(), name, value)?,
                None => fsconfig_set_flag(kind.as_fd(), option.as_str())?,
            }
        }
        fsconfig_create(kind.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Self::new(fsmount(kind.as_fd(), flags, MountAttrFlags::empty())?)
    }

    fn new(mount: OwnedFd) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(fstat(&mount)?.st_mode);
        let is_directory = kind == FileType::Directory;
        Ok(Self {
            mount,
            is_directory,
        })
    }

    /// Mounts it on what is there.
    pub fn attach(self, target: &str) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&self.mount, "", CWD, target, flags)?)
    }
}

/// All of it.
#[derive(Debug)]
pub struct Sources {
    /// For each mount of the configuration, in its order.
    mounts: Vec<Option<Tree>>,
    /// Devices of the guest's, by path, for who may not make any.
    devices: BTreeMap<String, Tree>,
}

impl Sources {
    /// Takes what a configuration needs. `sysfs` is a directory with one that has nothing mounted in it.
    pub fn take(spec: &Spec, sysfs: &str) -> Result<Self> {
        let is_mapped = spec.has_user_namespace();
        let take = |item: &Mount| match item.kind.as_deref() {
            // Only who owns the network namespace, which is the guest's, makes one.
            Some("sysfs") if is_mapped => tree(sysfs, item, true).map(Some),
            // Root of a user namespace makes one only where another is in sight.
            Some("proc") if is_mapped => {
                let options = Options::of(item);
                let made = Tree::proc(&options.data);
                let doing = || format!("make a proc for {}", item.destination);
                made.context(doing).map(Some)
            }
            _ => bind(item).transpose(),
        };
        let mounts = spec.mounts.iter().map(take).collect::<Result<_>>()?;
        let paths = is_mapped.then(|| devices::paths(spec));
        let device = |path: &str| Some((path.to_owned(), Tree::of(path, false).ok()?));
        let devices = paths.into_iter().flatten().filter_map(device).collect();
        Ok(Self { mounts, devices })
    }

    /// What the mount of that number in the configuration is of, if that is the guest's.
    pub fn mount(&mut self, number: usize) -> Option<Tree> {
        self.mounts.get_mut(number)?.take()
    }

    /// The guest's device at a path.
    pub fn device(&mut self, path: &str) -> Option<Tree> {
        self.devices.remove(path)
    }
}

fn bind(item: &Mount) -> Option<Result<Tree>> {
    let options = Options::of(item);
    if item.kind.as_deref() != Some("bind") && options.bind.is_none() {
        return None;
    }
    let source = item.source.as_deref().unwrap_or_default();
    if !source.starts_with('/') {
        let what = format!("source of the mount on {}", item.destination);
        return Some(Err(Error::invalid(what, "no absolute path")));
    }
    Some(tree(source, item, options.bind.unwrap_or(true)))
}

fn tree(source: &str, item: &Mount, recursive: bool) -> Result<Tree> {
    Tree::of(source, recursive).context(|| format!("find {source} for {}", item.destination))
}

//! The files of a layer, or of several on top of each other, in memory: names and attributes; content
//! lies elsewhere.
//!
//! Whatever an archive says, nothing but this tree changes: links lead nowhere but into it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use super::Error;
use super::budget::Budget;
use crate::image::erofs::Data;

/// A name in a directory: at most 255 bytes, no slash.
pub type Name = Box<[u8]>;
/// Index of an inode.
pub type Id = usize;

/// The root directory.
pub const ROOT: Id = 0;

/// As Linux resolves paths.
const MAX_LINKS: usize = 40;
const MAX_NAME: usize = 255;
/// Linux takes paths of at most 4 KiB; deeper trees than any path could name are an attack.
const MAX_DEPTH: usize = 1024;
/// Nor is a longer path one.
const MAX_PATH: usize = 4096;
/// More files than this in one image are an attack on memory.
const MAX_INODES: usize = 1 << 21;
/// What a file takes in memory beside its texts.
const INODE: usize = 192;
/// The same of a name or an attribute.
const TEXT: usize = 64;

/// Who owns a file, what it may do, when it changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permissions, with set-id and sticky bits, without the type.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Modified: seconds since 1970.
    pub mtime: i64,
    /// Modified: nanoseconds on top.
    pub mtime_nsec: u32,
    /// Extended attributes: whole names and values, by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Attributes {
    /// What they take in memory beyond an inode.
    fn size(&self) -> usize {
        let text = |(name, value): (&Vec<u8>, &Vec<u8>)| 2 * TEXT + name.len() + value.len();
        self.xattrs.iter().map(text).sum()
    }
}

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Directory {
        /// What is in it.
        children: BTreeMap<Name, Id>,
        /// Hides the directory of the same name in lower layers, rather than merging with it.
        opaque: bool,
    },
    /// A regular file.
    File(Data),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A character device, major and minor.
    Character(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// Hides what lower layers have by this name.
    Whiteout,
}

/// A file, under one name or several.
#[derive(Debug)]
pub struct Inode {
    /// Its attributes.
    pub attributes: Attributes,
    /// What it is.
    pub content: Content,
    /// How many names it has; 0: it is gone.
    pub names: u32,
    /// The layer that it came with.
    layer: usize,
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
    layer: usize,
    merged: bool,
    implicit: bool,
    /// Content that no file has any more.
    garbage: Vec<Data>,
    budget: Budget,
}

impl Tree {
    /// An empty root directory. With `merged`, layers come one after another, and what one hides is gone;
    /// else it is one layer, and what it hides of others is part of it.
    pub fn new(merged: bool) -> Self {
        Self {
            inodes: vec![Inode {
                attributes: implied(),
                content: directory(),
                names: 1,
                layer: 0,
            }],
            layer: 0,
            merged,
            implicit: false,
            garbage: Vec::new(),
            budget: Budget::default(),
        }
    }

    /// What comes now is the next layer's.
    pub fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// An inode of this tree.
    pub fn inode(&self, id: Id) -> &Inode {
        &self.inodes[id]
    }

    /// How many inodes there are, with those that are gone.
    pub fn inodes(&self) -> usize {
        self.inodes.len()
    }

    /// The content of a directory; nothing for other files.
    pub fn children(&self, id: Id) -> Option<&BTreeMap<Name, Id>> {
        match &self.inodes[id].content {
            Content::Directory { children, .. } => Some(children),
            _ => None,
        }
    }

    /// Whether the layer says less than overlayfs needs to put it on others: there are directories that no
    /// entry described (their attributes, or whether they are symbolic links, only lower layers know),
    /// or the root hides all that is below.
    pub fn needs_lower(&self) -> bool {
        self.implicit
    }

    /// Content that no file has any more, since the last call.
    pub fn take_garbage(&mut self) -> Vec<Data> {
        std::mem::take(&mut self.garbage)
    }

    /// Splits an entry's path into its parent directory, made if need be, and the name in it; no name
    /// for the root itself.
    pub fn locate(&mut self, path: &[u8]) -> Result<(Id, Option<Name>), Error> {
        let mut parts = normalize(path)?;
        let Some(name) = parts.pop() else {
            return Ok((ROOT, None));
        };
        let name = valid(name)?;
        let parent = self.walk(&parts, true)?.ok_or(Error::Depth)?;
        Ok((parent, Some(name)))
    }

    /// The file of a path, its last part not followed.
    pub fn find(&mut self, path: &[u8]) -> Result<Option<Id>, Error> {
        let mut parts = normalize(path)?;
        let Some(name) = parts.pop() else {
            return Ok(Some(ROOT));
        };
        let parent = self.walk(&parts, false)?;
        Ok(parent
            .and_then(|parent| self.children(parent)?.get(name))
            .copied())
    }

    /// Sets the root's attributes.
    pub fn set_root(&mut self, attributes: Attributes) {
        self.inodes[ROOT].attributes = attributes;
    }

    /// Puts a file into a directory, in place of what is there by that name; a directory on top of a
    /// directory only changes its attributes.
    pub fn put(
        &mut self,
        parent: Id,
        name: Name,
        attributes: Attributes,
        content: Content,
    ) -> Result<(), Error> {
        let mut content = content;
        if let Content::File(data) = &content {
            self.budget.earn(data.size());
        }
        self.budget.keep(name.len() + attributes.size())?;
        if let Some(&old) = self.children(parent).and_then(|entries| entries.get(&name)) {
            let layer = self.layer;
            let inode = &mut self.inodes[old];
            match (&inode.content, &mut content) {
                (Content::Directory { .. }, Content::Directory { .. }) => {
                    inode.attributes = attributes;
                    inode.layer = layer;
                    return Ok(());
                }
                (Content::Whiteout, Content::Directory { opaque, .. }) => *opaque = true,
                _ => {}
            }
        }
        let id = self.allocate(attributes, content)?;
        self.insert(parent, name, id);
        Ok(())
    }

    /// Gives a file another name.
    pub fn link(&mut self, parent: Id, name: Name, target: Id) -> Result<(), Error> {
        let inode = &mut self.inodes[target];
        if matches!(inode.content, Content::Directory { .. } | Content::Whiteout) {
            return Err(Error::LinkToDirectory);
        }
        inode.layer = self.layer;
        if self.children(parent).and_then(|entries| entries.get(&name)) == Some(&target) {
            return Ok(());
        }
        self.budget.keep(TEXT + name.len())?;
        let inode = &mut self.inodes[target];
        inode.names = inode.names.checked_add(1).ok_or(Error::Inodes)?;
        self.insert(parent, name, target);
        Ok(())
    }

    /// Hides what lower layers have by this name; what this layer has stays.
    pub fn whiteout(&mut self, parent: Id, name: Name) -> Result<(), Error> {
        valid(&name)?;
        let old = self
            .children(parent)
            .and_then(|entries| entries.get(&name))
            .copied();
        if self.merged {
            if let Some(old) = old
                && !self.keep_new(old)
            {
                self.remove(parent, &name);
            }
            return Ok(());
        }
        match old.map(|old| &mut self.inodes[old].content) {
            Some(Content::Directory { opaque, .. }) => *opaque = true,
            Some(_) => {}
            None => {
                self.budget.keep(name.len())?;
                let id = self.allocate(Attributes::default(), Content::Whiteout)?;
                self.insert(parent, name, id);
            }
        }
        Ok(())
    }

    /// Hides all that lower layers have in this directory; what this layer has stays.
    pub fn opaque(&mut self, id: Id) {
        if self.merged {
            self.keep_new_children(id);
        } else if let Content::Directory { opaque, .. } = &mut self.inodes[id].content {
            *opaque = true;
            // overlayfs does not ask the roots of its layers.
            self.implicit |= id == ROOT;
        }
    }

    fn allocate(&mut self, attributes: Attributes, content: Content) -> Result<Id, Error> {
        if self.inodes.len() >= MAX_INODES {
            return Err(Error::Inodes);
        }
        let target = match &content {
            Content::Symlink(target) => TEXT + target.len(),
            _ => 0,
        };
        self.budget.keep(INODE + target)?;
        self.inodes.push(Inode {
            attributes,
            content,
            names: 1,
            layer: self.layer,
        });
        Ok(self.inodes.len() - 1)
    }

    fn insert(&mut self, parent: Id, name: Name, id: Id) {
        if let Content::Directory { children, .. } = &mut self.inodes[parent].content {
            let old = match children.entry(name) {
                Slot::Vacant(slot) => {
                    slot.insert(id);
                    None
                }
                Slot::Occupied(mut slot) => Some(slot.insert(id)),
            };
            if let Some(old) = old {
                self.forget(old);
            }
        }
    }

    fn remove(&mut self, parent: Id, name: &[u8]) {
        if let Content::Directory { children, .. } = &mut self.inodes[parent].content
            && let Some(old) = children.remove(name)
        {
            self.forget(old);
        }
    }

    /// One name less for a file and, if it was the last, for all that is in it.
    fn forget(&mut self, id: Id) {
        let mut doomed = vec![id];
        while let Some(id) = doomed.pop() {
            let inode = &mut self.inodes[id];
            inode.names -= 1;
            if inode.names > 0 {
                continue;
            }
            match std::mem::replace(&mut inode.content, Content::Whiteout) {
                Content::Directory { children, .. } => doomed.extend(children.into_values()),
                Content::File(data) => self.garbage.push(data),
                _ => {}
            }
            inode.attributes.xattrs = BTreeMap::new();
        }
    }

    /// Whether anything of the current layer is left after all else under `id` is removed.
    fn keep_new(&mut self, id: Id) -> bool {
        let current = self.inodes[id].layer == self.layer;
        match self.keep_new_children(id) {
            Some(children) => current || children > 0,
            None => current,
        }
    }

    /// Removes all that is not the current layer's from a directory. Gives how many files are left
    /// directly in it, nothing if it is no directory.
    fn keep_new_children(&mut self, id: Id) -> Option<usize> {
        self.children(id)?;
        // Parents come before their children in this list, so that backwards a directory is looked at
        // when it has lost what it loses.
        let mut directories = vec![id];
        let mut next = 0;
        while let Some(&directory) = directories.get(next) {
            next += 1;
            if let Some(children) = self.children(directory) {
                let below = children.values().copied();
                directories.extend(below.filter(|id| self.children(*id).is_some()));
            }
        }
        for directory in directories.into_iter().rev() {
            let doomed: Vec<Name> = self
                .children(directory)?
                .iter()
                .filter(|(_, id)| {
                    self.inodes[**id].layer != self.layer
                        && self.children(**id).is_none_or(BTreeMap::is_empty)
                })
                .map(|(name, _)| name.clone())
                .collect();
            for name in doomed {
                self.remove(directory, &name);
            }
        }
        self.children(id).map(BTreeMap::len)
    }

    /// Follows a path to a directory, through symbolic links, never out of the root. With `make`, what
    /// is missing is made.
    fn walk(&mut self, parts: &[&[u8]], make: bool) -> Result<Option<Id>, Error> {
        let mut pending: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        // Each with the length of its path.
        let mut path = vec![(ROOT, 0)];
        let mut links = 0;
        while let Some(part) = pending.pop() {
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    path.truncate(path.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let (here, length) = path.last().copied().unwrap_or((ROOT, 0));
            let length = length + 1 + part.len();
            if path.len() >= MAX_DEPTH || length >= MAX_PATH {
                return Err(Error::Depth);
            }
            let found = self
                .children(here)
                .and_then(|entries| entries.get(&part[..]));
            let id = match found {
                Some(&id) => id,
                None if make => self.imply(here, &part)?,
                None => return Ok(None),
            };
            match &self.inodes[id].content {
                Content::Directory { .. } => path.push((id, length)),
                Content::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Error::Links);
                    }
                    if target.starts_with(b"/") {
                        path.truncate(1);
                    }
                    pending.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Content::Whiteout if make => path.push((self.imply(here, &part)?, length)),
                Content::Whiteout => return Ok(None),
                _ => return Err(Error::NotADirectory),
            }
        }
        Ok(path.pop().map(|(id, _)| id))
    }

    fn imply(&mut self, parent: Id, name: &[u8]) -> Result<Id, Error> {
        self.implicit = true;
        let name = valid(name)?;
        self.put(parent, name.clone(), implied(), directory())?;
        let id = self.children(parent).and_then(|entries| entries.get(&name));
        id.copied().ok_or(Error::NotADirectory)
    }
}

/// An empty directory.
pub fn directory() -> Content {
    Content::Directory {
        children: BTreeMap::new(),
        opaque: false,
    }
}

/// What a directory has that no entry described.
fn implied() -> Attributes {
    Attributes {
        mode: 0o755,
        ..Attributes::default()
    }
}

/// The parts of a path; one that leads out of the root is refused, as Docker does.
fn normalize(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or(Error::Escape)?;
            }
            _ => parts.push(part),
        }
    }
    match parts.len() < MAX_DEPTH {
        true => Ok(parts),
        false => Err(Error::Depth),
    }
}

fn valid(name: &[u8]) -> Result<Name, Error> {
    let wrong = name.is_empty()
        || name.len() > MAX_NAME
        || name == b"."
        || name == b".."
        || name.iter().any(|byte| matches!(byte, 0 | b'/'));
    match wrong {
        true => Err(Error::Name),
        false => Ok(name.into()),
    }
}

//! A file and its way into guest memory.

/// How the pages of a file get into guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageMode {
    /// Whole pages are mapped privately from the file where alignment allows, so that all VMs
    /// share the host's page cache until they write; the rest is copied.
    #[default]
    Map,
    /// Everything is copied.
    Copy,
}

//! Stands in for the `capng` crate, which binds the C library libcap-ng, where virtiofsd asks for
//! it: the same names, on the system calls themselves. What virtiofsd does not use is not here.
//!
//! Changes are collected for the calling thread, and take effect with [`apply`].

use std::cell::Cell;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

thread_local! {
    /// What [`apply`] will set.
    static PENDING: Cell<Option<CapabilitySets>> = const { Cell::new(None) };
}

/// A capability's number.
pub type Capability = u32;

/// Why capabilities cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No capability has this name.
    #[error("there is no capability {0}")]
    Name(String),
    /// The kernel does not say what the thread has.
    #[error("cannot read the thread's capabilities")]
    Read(#[source] rustix::io::Errno),
    /// The kernel does not give what was asked for.
    #[error("cannot set the thread's capabilities")]
    Set(#[source] rustix::io::Errno),
}

/// As elsewhere.
pub type Result<T> = std::result::Result<T, Error>;

/// Which of a thread's sets.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// What it may do now.
    EFFECTIVE,
}

/// What a call is about.
#[derive(Clone, Copy, Debug)]
pub enum Set {
    /// The thread's capabilities.
    CAPS,
    /// As well as the bounding set, which stays as it is here: fsd has emptied its own.
    BOTH,
}

/// What to do with a capability.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Take it away.
    DROP,
    /// Give it.
    ADD,
}

/// One change.
#[derive(Clone, Copy, Debug)]
pub struct CUpdate {
    /// What to do.
    pub action: Action,
    /// To which set.
    pub cap_type: Type,
    /// With which capability.
    pub capability: Capability,
}

fn current() -> Result<CapabilitySets> {
    capabilities(None).map_err(Error::Read)
}

fn bit(capability: Capability) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1u64.checked_shl(capability).unwrap_or(0))
}

/// Collects the loss of everything.
pub fn clear(_set: Set) {
    PENDING.set(Some(CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    }));
}

/// Begins anew with what the thread has.
pub fn get_caps_process() -> Result<()> {
    PENDING.set(Some(current()?));
    Ok(())
}

/// Collects changes.
pub fn update(updates: Vec<CUpdate>) -> Result<()> {
    let mut sets = PENDING.take().map_or_else(current, Ok)?;
    for CUpdate {
        action, capability, ..
    } in updates
    {
        match action {
            Action::DROP => sets.effective.remove(bit(capability)),
            Action::ADD => sets.effective.insert(bit(capability)),
        }
    }
    PENDING.set(Some(sets));
    Ok(())
}

/// Makes the collected changes.
pub fn apply(_set: Set) -> Result<()> {
    match PENDING.take() {
        Some(sets) => set_capabilities(None, sets).map_err(Error::Set),
        None => Ok(()),
    }
}

/// Whether the thread has a capability.
pub fn have_capability(_which: Type, capability: Capability) -> bool {
    current().is_ok_and(|sets| sets.effective.contains(bit(capability)))
}

/// The number of a capability by its name, without `CAP_`.
pub fn name_to_capability(name: &str) -> Result<Capability> {
    CapabilitySet::from_name(name)
        .map(|set| set.bits().trailing_zeros())
        .ok_or_else(|| Error::Name(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a guest's write to a setuid file of the host leaves the bit on it.
    #[test]
    fn a_capability_goes_and_comes_back() {
        let fsetid = name_to_capability("FSETID").unwrap();
        assert_eq!(fsetid, 4);
        assert!(name_to_capability("NONESUCH").is_err());
        if !have_capability(Type::EFFECTIVE, fsetid) {
            return;
        }
        let change = |action| {
            update(vec![CUpdate {
                action,
                cap_type: Type::EFFECTIVE,
                capability: fsetid,
            }])
            .and_then(|()| apply(Set::CAPS))
            .unwrap();
            have_capability(Type::EFFECTIVE, fsetid)
        };
        assert!(!change(Action::DROP));
        assert!(change(Action::ADD));
    }
}

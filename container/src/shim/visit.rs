//! A container that does not run, set up in its VM without being started: for who wants to see or
//! change its files, which nobody but its own kernel looks at.

use std::io::{self, Read};

use super::session::{Plan, Session};
use super::{ShimError, make_run, say_ready};
use crate::create;
use crate::state::Containers;

/// Sets the container up, says so, and takes it down again when who started us lets go. Its state stays
/// what it was.
pub(super) fn run(id: &str) -> Result<(), ShimError> {
    let container = Containers::open()?.find(id)?;
    let _lock = container.lock()?;
    let _volumes = create::hold_volumes(&container)?;
    make_run(&container)?;
    let (mut plan, _) = create::plan(&container)?;
    if let Plan::Vm(machine, guest) = &mut plan {
        // Nobody in it runs, so nobody needs a network, nor the host's ports.
        machine.uplink = None;
        machine.ports.clear();
        guest.network.interfaces.clear();
        guest.network.routes.clear();
    }
    let (session, _streams) = Session::boot(plan)?;
    say_ready();
    let _ = io::stdin().read(&mut [0]);
    session.end(true);
    let _ = std::fs::remove_file(container.vsock());
    Ok(())
}

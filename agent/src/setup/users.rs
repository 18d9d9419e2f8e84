//! Users by name, as the container's own files know them.

use cofferdam_agent_protocol::users;
use cofferdam_root::RootDir;

use crate::error::{Context, Error, Result};
use crate::spec::Process;

/// The process with numbers in the place of `user.username`, which is `USER[:GROUP]` as an image or a
/// user of Docker writes it, names or numbers. Who turns out not to be root has no capabilities in
/// effect.
pub fn resolved(process: &Process) -> Result<Process> {
    let mut process = process.clone();
    let name = process.user.username.take();
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(process);
    };
    let root = RootDir::open("/".as_ref()).context(|| "open the container's root".into())?;
    let found = users::find(&name, &root.text("/etc/passwd"), &root.text("/etc/group"))
        .map_err(|unknown| Error::invalid("process.user", unknown))?;
    process.user.uid = found.uid;
    process.user.gid = found.gid;
    let groups = process.user.additional_gids.get_or_insert_default();
    groups.extend(found.groups);
    if found.uid != 0
        && let Some(capabilities) = &mut process.capabilities
    {
        capabilities.effective = None;
        capabilities.permitted = None;
    }
    Ok(process)
}

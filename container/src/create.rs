//! Containers are made, planned and removed: from options and an image to a record, from a record to
//! a VM.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cofferdam_agent_protocol::{ETC, api};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Spec;

use crate::disk::{self, DiskError, Purpose};
use crate::image::store::Error as ImageError;
use crate::image::{Image, Store, registry};
use crate::limits::{self, Limits};
use crate::network::{self, NetworkError};
use crate::networks;
use crate::options::{
    Health, Isolation, Kind, Mount, Network, Options, OptionsError, Port, Pull, Rights, Systemd,
};
use crate::paths;
use crate::shim::{self, Bundle, Guest, HOSTNAME, HOSTS, Plan, RESOLV_CONF, ROOTFS};
use crate::spec::{self, Bind, SpecError};
use crate::state::{
    self, Container, Containers, Events, Lock, Now, Record, Share, StateError, new_id,
};
use crate::vm::{Machine, Root, Shared, disk_path, storage_path};
use crate::volume::{self, Type, VolumeError, Volumes};

/// Why a container cannot be made, or run.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image, which is not in the store, from its registry.
    #[error(transparent)]
    Pull(#[from] registry::Error),
    /// The options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The container's directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The writable layer.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// What is to be mounted is not there.
    #[error("cannot mount {path}")]
    Source {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Neither a file nor a directory.
    #[error("cannot mount {0}: only directories and regular files can be shared with a VM")]
    Kind(PathBuf),
    /// No device that a VM can have.
    #[error(
        "cannot give {0} to a VM: block devices of the host's can be its disks, /dev/fuse and \
         /dev/net/tun are its own kernel's, and there is no other way yet"
    )]
    Device(PathBuf),
    /// The guest's kernel has it whole.
    #[error("{0} cannot be read-only: it is the VM's own kernel's")]
    ReadOnly(PathBuf),
    /// A network of our own.
    #[error(transparent)]
    Link(#[from] networks::LinkError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] crate::vm::VmError),
    /// An option that a container on the host's kernel cannot have.
    #[error("--isolation=process: {0}")]
    Process(&'static str),
    /// Neither a container nor rights.
    #[error("--volumes-from {0:?}: expected CONTAINER, CONTAINER:ro or CONTAINER:rw")]
    VolumesFrom(String),
    /// A runtime for what needs none.
    #[error("--runtime goes with --isolation=process")]
    Runtimes,
    /// The host's runtime.
    #[error(transparent)]
    Runtime(#[from] shim::ProcessError),
}

/// Makes a container, which does not run yet.
pub fn create(containers: &Containers, mut options: Options) -> Result<Container, CreateError> {
    // Before anything is made, what can be refused.
    match options.isolation {
        Isolation::Vm if options.runtime.is_some() => return Err(CreateError::Runtimes),
        Isolation::Vm => {}
        Isolation::Process => {
            check_process(&options)?;
            let default = || Network::Named(networks::DEFAULT.into());
            options.network.get_or_insert_with(default);
        }
    }
    networks::check(&options)?;
    network::uplink(&options).map(drop)?;
    let store = Store::open_default()?;
    let image = image(&store, &options)?;
    let health = Health::of(&options, &image.raw_config)?;
    match options.isolation {
        Isolation::Vm => check_devices(&options)?,
        Isolation::Process => spec::add_devices(&mut Spec::default(), &options.device)?,
    }
    add_volumes_from(containers, &mut options)?;
    add_volumes(&mut options, &image.config);
    add_systemd(&mut options, &image.config)?;
    let id = new_id();
    let shares = shares(&options)?;
    let run = containers.run_of(&id);
    let binds = match options.isolation {
        Isolation::Vm => guest_binds(&shares, &options),
        Isolation::Process => host_binds(&shares, &run),
    };
    let mut spec = spec::build(&id, &options, &image.config, &run.join(ROOTFS), &binds)?;
    if options.isolation == Isolation::Process
        && let Some(Network::Named(_)) = options.network
    {
        spec::join_network(&mut spec, &networks::netns(&run));
    }
    store.hold(&image, &id)?;
    let record = Record {
        id: id.clone(),
        name: options.name.clone().unwrap_or_default(),
        created: Now::text(),
        image: image.id.to_string(),
        image_config: image.config,
        layers: image.layers,
        shares,
        health,
        options,
    };
    let made = containers.create(record, |container| -> Result<(), CreateError> {
        let bundle = container.bundle();
        fs::create_dir(&bundle).map_err(|source| CreateError::Source {
            path: bundle.clone(),
            source,
        })?;
        state::save(&bundle.join("config.json"), &spec)?;
        let options = &container.record.options;
        if !options.read_only && options.isolation == Isolation::Vm {
            let (size, upper) = (options.disk_size()?, container.upper());
            disk::make(&paths::data(), Purpose::Layer, size, &upper)?;
        }
        Ok(())
    });
    match made {
        Ok(container) => {
            Events::write(&container.record, "create", None);
            Ok(container)
        }
        Err(error) => {
            let _ = store.release(&id);
            Err(error)
        }
    }
}

/// The image, from its registry if need be.
fn image(store: &Store, options: &Options) -> Result<Image, CreateError> {
    let (name, how) = (&options.image, registry::Options::default());
    match options.pull {
        Pull::Never => store.resolve(name).map_err(|error| match error {
            ImageError::NotFound(name) => store.absent(&name).into(),
            other => other.into(),
        }),
        Pull::Always => {
            let name = name.parse().map_err(ImageError::from)?;
            Ok(registry::pull(store, &name, &how)?.image)
        }
        Pull::Missing => Ok(registry::get(store, name, &how, |name| {
            eprintln!("Unable to find image '{name}' locally");
        })?),
    }
}

/// A VM can have disks of the host's, and what its own kernel has.
fn check_devices(options: &Options) -> Result<(), CreateError> {
    use std::os::unix::fs::FileTypeExt;
    for device in &options.device {
        if device.is_of_the_guest() {
            match device.is_read_only() {
                true => return Err(CreateError::ReadOnly(device.source.clone())),
                false => continue,
            }
        }
        let kind = fs::metadata(&device.source).map_err(|source| CreateError::Source {
            path: device.source.clone(),
            source,
        })?;
        if !kind.file_type().is_block_device() {
            return Err(CreateError::Device(device.source.clone()));
        }
    }
    Ok(())
}

/// What a container on the host's kernel has of the options; the others are refused.
fn check_process(options: &Options) -> Result<(), CreateError> {
    let refuse = |why| Err(CreateError::Process(why));
    if !rustix::process::geteuid().is_root() {
        return refuse("it takes root, to mount the image");
    }
    if options.network == Some(Network::Passt) {
        return refuse(
            "--network passt is for VMs; give none, bridge, or what 'network create' made",
        );
    }
    if options.kernel.is_some() || !options.storage_opt.is_empty() {
        return refuse("--kernel and --storage-opt are about VMs");
    }
    if options.systemd == Systemd::Always {
        return refuse("--systemd=always is for VMs, which have cgroups of their own");
    }
    if options.init {
        shim::find_init()?;
    }
    Ok(shim::find_runtime(options.runtime).map(drop)?)
}

/// What is mounted from outside, where the host's runtime finds it; `run` is the directory of the
/// container's mounts.
fn host_binds(shares: &[Share], run: &Path) -> Vec<Bind> {
    let etc = |name: &str| Bind {
        source: run.join(name),
        target: format!("/etc/{name}"),
        read_only: false,
    };
    let shares = shares.iter().map(|share| Bind {
        source: share.source.clone(),
        target: share.target.clone(),
        read_only: share.read_only,
    });
    // The user's own files win.
    [etc(RESOLV_CONF), etc(HOSTS), etc(HOSTNAME)]
        .into_iter()
        .chain(shares)
        .collect()
}

/// What other containers have from outside, where the options mount nothing else.
fn add_volumes_from(containers: &Containers, options: &mut Options) -> Result<(), CreateError> {
    for from in std::mem::take(&mut options.volumes_from) {
        let (name, rights) = from.rsplit_once(':').unwrap_or((&from, "rw"));
        let read_only = match rights {
            "ro" => true,
            "rw" => false,
            _ => return Err(CreateError::VolumesFrom(from)),
        };
        for share in containers.find(name)?.record.shares {
            let is_here = |mount: &Mount| mount.target == share.target;
            if options.mounts().any(is_here) {
                continue;
            }
            options.volume.push(Mount {
                kind: match share.volume {
                    Some(volume) => Kind::Volume(Some(volume)),
                    None => Kind::Bind {
                        path: share.source,
                        create: false,
                    },
                },
                target: share.target,
                read_only: read_only || share.read_only,
                rights: share.rights,
            });
        }
    }
    Ok(())
}

/// Where the image declares volumes, a container that cannot write to its root has some of its own.
fn add_volumes(options: &mut Options, config: &ImageConfiguration) {
    let config = config.config().as_ref();
    let declared = config.and_then(|config| config.volumes().clone());
    for target in declared.into_iter().flatten() {
        let is_here = |other: &str| Path::new(other) == Path::new(&target);
        let is_mounted = options.mounts().any(|mount| is_here(&mount.target))
            || options.tmpfs.iter().any(|tmpfs| is_here(&tmpfs.target));
        // What is no place to mount on is the image's mistake, and nobody's volume.
        if options.read_only && !is_mounted && target.starts_with('/') && !is_here("/") {
            options.volume.push(Mount {
                kind: Kind::Volume(None),
                target,
                read_only: false,
                rights: Rights::default(),
            });
        }
    }
}

/// Where the program is systemd, it has what that needs: in a VM, whose cgroups are its own kernel's.
fn add_systemd(options: &mut Options, config: &ImageConfiguration) -> Result<(), CreateError> {
    let config = config.config().clone().unwrap_or_default();
    let command = spec::command(options, &config)?;
    if options.isolation == Isolation::Vm {
        let env = config.env().as_deref().unwrap_or_default();
        let program = command.first().map_or("", String::as_str);
        options.prepare_for_systemd(program, env, config.stop_signal().is_some());
    }
    Ok(())
}

/// What is shared with the container: binds and volumes, which are made as needed.
fn shares(options: &Options) -> Result<Vec<Share>, CreateError> {
    let volumes = Volumes::at(&paths::data());
    let mut shares = Vec::new();
    for mount in options.mounts() {
        let (source, volume, anonymous) = match &mount.kind {
            Kind::Tmpfs(_) => continue,
            Kind::Bind { path, create } => (bind_source(path, *create)?, None, false),
            Kind::Volume(name) => {
                let anonymous = name.is_none();
                let name = name.clone().unwrap_or_else(new_id);
                let new = match options.isolation {
                    Isolation::Vm => Type::Image,
                    Isolation::Process => Type::Shared,
                };
                let volume = volumes.make(&name, &[], volume::Options::of(new))?;
                if (options.isolation, volume.options.kind) == (Isolation::Process, Type::Image) {
                    return Err(VolumeError::Image(name).into());
                }
                (volume.mountpoint, Some(name), anonymous)
            }
        };
        shares.push(Share {
            source,
            target: mount.target.clone(),
            read_only: mount.read_only,
            rights: mount.rights,
            volume,
            anonymous,
        });
    }
    Ok(shares)
}

/// Whether it gets what the image has at its place, if it is new.
fn is_filled(share: &Share) -> bool {
    share.volume.is_some() && !share.read_only
}

fn bind_source(path: &Path, create: bool) -> Result<PathBuf, CreateError> {
    let error = |source| CreateError::Source {
        path: path.to_owned(),
        source,
    };
    if create && !path.exists() {
        fs::create_dir_all(path).map_err(error)?;
    }
    let kind = fs::metadata(path).map_err(error)?.file_type();
    if !kind.is_dir() && !kind.is_file() {
        return Err(CreateError::Kind(path.to_owned()));
    }
    // What links lead to now: not to something else at the next start.
    path.canonicalize().map_err(error)
}

/// What is mounted from outside, where the agent finds it.
fn guest_binds(shares: &[Share], options: &Options) -> Vec<Bind> {
    let etc = |name: &str| Bind {
        source: Path::new(ETC).join(name),
        target: format!("/etc/{name}"),
        read_only: false,
    };
    let shares = shares.iter().enumerate().map(|(number, share)| Bind {
        source: storage_path(number),
        target: share.target.clone(),
        read_only: share.read_only,
    });
    // Behind the writable layer, which is the first disk.
    let mut disk = usize::from(!options.read_only);
    let devices = options.device.iter().map(|device| Bind {
        source: match device.is_of_the_guest() {
            true => device.source.clone(),
            false => {
                disk += 1;
                disk_path(disk - 1)
            }
        },
        target: device.target.clone(),
        read_only: device.is_read_only(),
    });
    // The user's own files win.
    [etc("resolv.conf"), etc("hosts"), etc("hostname")]
        .into_iter()
        .chain(shares)
        .chain(devices)
        .collect()
}

/// What a runtime of the host's needs to know.
fn bundle(
    container: &Container,
    hosts: String,
    resolv_conf: String,
) -> Result<Bundle, CreateError> {
    let Record {
        id,
        options,
        layers,
        shares,
        ..
    } = &container.record;
    let filled = shares.iter().filter(|share| is_filled(share));
    Ok(Bundle {
        runtime: shim::find_runtime(options.runtime)?,
        id: id.clone(),
        dir: container.bundle(),
        layers: layers.clone(),
        upper: container.dir.join("process"),
        run: container.run.clone(),
        hosts,
        resolv_conf,
        interactive: options.interactive,
        tty: options.tty,
        volumes: filled
            .map(|share| (share.source.clone(), share.target.clone()))
            .collect(),
        devices: options.device.clone(),
        init: options.init.then(shim::find_init).transpose()?,
        directories: container.record.volumes_of_image(),
    })
}

/// What the VM of a container has of a share; a volume is what it is now.
fn shared(share: &Share) -> Result<Shared, VolumeError> {
    let mut shared = Shared {
        source: share.source.clone(),
        is_image: false,
        read_only: share.read_only,
        rights: share.rights,
        fill_from: is_filled(share).then(|| share.target.clone()),
        copy_of: None,
    };
    if let Some(name) = &share.volume {
        let volume = Volumes::at(&paths::data()).find(name)?;
        shared.is_image = volume.options.kind == Type::Image;
        shared.source = volume.mountpoint;
    }
    Ok(shared)
}

/// Takes a container's volumes in hand, for as long as it runs.
pub fn hold_volumes(container: &Container) -> Result<Vec<Lock>, CreateError> {
    let volumes = Volumes::at(&paths::data());
    let mut names = std::collections::BTreeMap::new();
    for share in &container.record.shares {
        if let Some(name) = &share.volume {
            *names.entry(name).or_insert(false) |= !share.read_only;
        }
    }
    let mut locks = Vec::new();
    for (name, writes) in names {
        let volume = volumes.find(name)?;
        let is_image = volume.options.kind == Type::Image;
        if is_image && container.record.options.isolation == Isolation::Process {
            return Err(VolumeError::Image(volume.name).into());
        }
        // Who only reads cannot put in its place what a killed VM left in the journal.
        if is_image
            && !writes
            && volume.is_dirty().map_err(VolumeError::from)?
            && let Some(_alone) = volumes.hold(&volume, true)?
        {
            volume::visit::recover(&volume)
                .map_err(|error| VolumeError::Recover(name.clone(), Box::new(error)))?;
        }
        let lock = volumes.hold(&volume, is_image && writes)?;
        locks.push(lock.ok_or_else(|| VolumeError::Held {
            holder: holder(name),
            volume: volume.name,
        })?);
    }
    Ok(locks)
}

/// Who has a volume, for people: a container that runs, or else one of our own commands.
pub fn holder(volume: &str) -> String {
    let has = |container: &Container| {
        let is_live = container.state().is_ok_and(|state| state.status.is_live());
        is_live && container.has_volume(volume)
    };
    let all = Containers::open().and_then(|containers| containers.list());
    let found = all.unwrap_or_default().into_iter().find(has);
    match found {
        Some(container) => format!("container {}", container.record.name),
        None => "a command that looks at its files".into(),
    }
}

/// What it takes to run a container, and the ports that lead to it.
pub fn plan(container: &Container) -> Result<(Plan, Vec<Port>), CreateError> {
    let Record { id, options, .. } = &container.record;
    let none = Vec::new();
    let config = container.record.image_config.config().as_ref();
    let exposed = config.and_then(|config| config.exposed_ports().as_ref());
    let ports = network::ports(options, exposed.unwrap_or(&none))?;
    let uplink = network::uplink(options)?;
    let hostname = spec::hostname(id, options);
    let address = uplink.as_ref().map(|uplink| uplink.address);
    let hosts = network::hosts(&options.add_host, &hostname, address);
    let resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let gateway = uplink.as_ref().map(|uplink| uplink.gateway);
    let resolv_conf = network::resolv_conf(options, &resolv_conf, gateway);
    if options.isolation == Isolation::Process {
        let bundle = bundle(container, hosts, resolv_conf)?;
        return Ok((Plan::Process(bundle), ports));
    }
    let shares = &container.record.shares;
    let mut machine = Machine {
        kernel: options.kernel.clone(),
        cpus: options.cpus,
        cpuset: options.cpuset_cpus.clone(),
        memory: options.memory,
        root: Root::Layers {
            layers: container.record.layers.clone(),
            upper: (!options.read_only).then(|| container.upper()),
            is_temporary: options.rm,
        },
        shares: shares.iter().map(shared).collect::<Result<_, _>>()?,
        disks: options
            .device
            .iter()
            .filter(|device| !device.is_of_the_guest())
            .map(|device| (device.source.clone(), device.is_read_only()))
            .collect(),
        uplink,
        ports: ports.clone(),
        taps: Vec::new(),
        netns: None,
        limits: None,
        run: container.run.clone(),
    };
    machine.limits = Some(Limits {
        name: id.clone(),
        memory: machine.memory()?.bytes(),
        cpus: options.cpus,
        cpu_shares: options.cpu_shares,
    });
    let path = container.bundle().join("config.json");
    let spec = fs::read(&path).map_err(|source| CreateError::Source { path, source })?;
    let mut streams = api::Streams::new();
    streams.token = new_id();
    streams.stdin = options.interactive;
    streams.stdout = true;
    streams.stderr = !options.tty;
    let guest = Guest {
        id: id.clone(),
        spec,
        streams,
        size: options.tty.then_some((24, 80)),
        network: machine.network(&hostname, hosts, resolv_conf),
        init: options.init,
        directories: container.record.volumes_of_image(),
    };
    Ok((Plan::Vm(Box::new(machine), guest), ports))
}

/// Removes a container that does not run, with the volumes that are its own, and with what a shim that was
/// killed left. `lock` is its.
pub fn remove(container: &Container, lock: &Lock) -> Result<(), CreateError> {
    if let Some(path) = container.state()?.cgroup {
        limits::remove(&path);
    }
    forget(container, lock)
}

/// Removes a container whose VM is taken care of. `lock` is its.
pub fn forget(container: &Container, lock: &Lock) -> Result<(), CreateError> {
    let options = &container.record.options;
    if options.isolation == Isolation::Process
        && let Ok(runtime) = shim::find_runtime(options.runtime)
    {
        shim::delete_process(runtime, &container.record.id);
    }
    networks::disconnect(container);
    container.remove(lock)?;
    let volumes = Volumes::at(&paths::data());
    for share in container
        .record
        .shares
        .iter()
        .filter(|share| share.anonymous)
    {
        // Others may have it by --volumes-from; then `volume prune` removes it after them.
        if let Some(name) = &share.volume
            && !Containers::open()?
                .list()?
                .iter()
                .any(|one| one.has_volume(name))
        {
            volumes.remove(name, None)?;
        }
    }
    Store::open_default()?.release(&container.record.id)?;
    Events::write(&container.record, "destroy", None);
    Ok(())
}

/// What an image says of its labels and the like, for who shows it.
pub fn labels(record: &Record) -> std::collections::BTreeMap<String, String> {
    let image: &ImageConfiguration = &record.image_config;
    spec::labels(&record.options, image)
}

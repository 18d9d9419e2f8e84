//! Images from and to registries.

use clap::Args;

use super::Outcome;
use crate::image::Store;
use crate::image::reference::Reference;
use crate::image::registry::{self, Options};
use crate::image::store::oci::Platform;

#[derive(Debug, Args)]
pub(in crate::cli) struct Pull {
    /// Names
    #[arg(required = true, value_name = "NAME[:TAG|@DIGEST]")]
    images: Vec<String>,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    /// Which image to take of one for several
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Take any certificate, or plain HTTP, as always from this machine
    #[arg(long)]
    insecure: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Push {
    /// The name there, which an image has here
    #[arg(value_name = "NAME[:TAG]")]
    image: String,
    /// Only the name
    #[arg(short, long)]
    quiet: bool,
    /// Take any certificate, or plain HTTP, as always to this machine
    #[arg(long)]
    insecure: bool,
}

/// `cofferdam pull`.
pub(super) fn pull(wanted: &Pull) -> Outcome {
    let store = Store::open_default()?;
    let options = Options {
        insecure: wanted.insecure,
        platform: wanted.platform.clone().unwrap_or_default(),
        quiet: wanted.quiet,
    };
    for image in &wanted.images {
        let name: Reference = image.parse()?;
        if !wanted.quiet {
            let tag = name.tag.as_deref().unwrap_or_default();
            println!("{tag}: Pulling from {}", name.repository);
        }
        let pulled = registry::pull(&store, &name, &options)?;
        if !wanted.quiet {
            let status = match pulled.new {
                true => "Downloaded newer image for",
                false => "Image is up to date for",
            };
            println!("Digest: {}", pulled.digest);
            println!("Status: {status} {}", name.familiar());
        }
        println!("{name}");
    }
    Ok(())
}

/// `cofferdam push`.
pub(super) fn push(wanted: &Push) -> Outcome {
    let store = Store::open_default()?;
    let name: Reference = wanted.image.parse()?;
    let record = store.find(&name.to_string())?;
    let options = Options {
        insecure: wanted.insecure,
        quiet: wanted.quiet,
        ..Options::default()
    };
    if !wanted.quiet {
        println!(
            "The push refers to repository [{}/{}]",
            name.registry, name.repository
        );
    }
    let digest = registry::push(&store, &record, &name, &options)?;
    match wanted.quiet {
        true => println!("{name}"),
        false => println!(
            "{}: digest: {digest}",
            name.tag.as_deref().unwrap_or_default()
        ),
    }
    Ok(())
}

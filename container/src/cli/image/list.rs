//! What there is: lists for people, JSON for programs.

use std::collections::BTreeSet;
use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Outcome;
use super::filter::{About, Filter, moment, times};
use crate::cli::format::{Template, documents, list};
use crate::image::reference::Reference;
use crate::image::store::{Error, Record};
use crate::image::{Store, digest::Digest};

const NONE: &str = "<none>";

#[derive(Debug, Args)]
pub(in crate::cli) struct Images {
    /// Only images of this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    /// As Docker: nothing is hidden here anyway
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Also digests, as registries have them
    #[arg(long)]
    digests: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Only those with: reference=PATTERN, dangling=true|false, label=NAME[=VALUE], before=IMAGE,
    /// since=IMAGE
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// `json`, or a template such as '{{.Repository}}:{{.Tag}}' or 'table {{.ID}}\t{{.Size}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<Template>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct History {
    /// A name or an id
    image: String,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Whole commands
    #[arg(long)]
    no_trunc: bool,
    /// `json`, or a template such as '{{.CreatedBy}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<Template>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Inspect {
    /// A template such as '{{.Config.Env}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Template>,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// `cofferdam images`.
pub(super) fn images(wanted: &Images) -> Outcome {
    let store = Store::open_default()?;
    let mut rows = Vec::new();
    let mut seen = Vec::new();
    let times = times(&store, &wanted.filter)?;
    for record in store.list()? {
        let id = record.manifest.config.digest;
        let names: Vec<Option<&String>> = match record.names.is_empty() {
            true => vec![None],
            false => record.names.iter().map(Some).collect(),
        };
        let config = store.config(&record)?;
        let created = config["created"].as_str().unwrap_or_default();
        let about = About {
            named: !record.names.is_empty(),
            config: &config["config"],
            created: moment(created),
        };
        if !wanted
            .filter
            .iter()
            .all(|filter| filter.lets(&about, &times))
        {
            continue;
        }
        for name in names {
            let (repository, tag) = split(name.map(String::as_str));
            let fits = |filter: &Filter| filter.fits(&repository, &tag);
            if !matches(wanted.name.as_deref(), &repository, &tag)
                || !wanted.filter.iter().all(fits)
            {
                continue;
            }
            if wanted.quiet && seen.contains(&id) {
                continue;
            }
            seen.push(id);
            rows.push(json!({
                "Repository": repository,
                "Tag": tag,
                "Digest": record.descriptor.digest,
                "ID": shown(id, wanted.no_trunc),
                "CreatedAt": created,
                "CreatedSince": since(created),
                "Size": size(store.size(&record)),
            }));
        }
    }
    let mut columns = vec![("REPOSITORY", "Repository"), ("TAG", "Tag")];
    if wanted.digests {
        columns.push(("DIGEST", "Digest"));
    }
    columns.extend([
        ("IMAGE ID", "ID"),
        ("CREATED", "CreatedSince"),
        ("SIZE", "Size"),
    ]);
    write(&rows, &columns, wanted.quiet, wanted.format.as_ref())
}

/// `cofferdam history`.
pub(super) fn history(wanted: &History) -> Outcome {
    let store = Store::open_default()?;
    let record = store.find(&wanted.image)?;
    let config = store.config(&record)?;
    let mut layers = record.manifest.layers.iter();
    let mut rows = Vec::new();
    for entry in config["history"].as_array().into_iter().flatten() {
        let text = |key: &str| entry[key].as_str().unwrap_or_default();
        let empty = entry["empty_layer"].as_bool().unwrap_or(false);
        let layer = if empty { None } else { layers.next() };
        let mut by = text("created_by").replace(['\n', '\t'], " ");
        if !wanted.no_trunc && wanted.format.is_none() && by.chars().count() > 45 {
            by = by.chars().take(44).chain(['…']).collect();
        }
        rows.push(json!({
            "ID": "<missing>",
            "CreatedAt": text("created"),
            "CreatedSince": since(text("created")),
            "CreatedBy": by,
            "Size": size(layer.map_or(0, |layer| layer.size)),
            "Comment": text("comment"),
        }));
    }
    rows.reverse();
    // Layers have no ids; the last one stands for the image.
    if let Some(last) = rows.first_mut() {
        last["ID"] = shown(record.manifest.config.digest, wanted.no_trunc).into();
    }
    let columns = [
        ("IMAGE", "ID"),
        ("CREATED", "CreatedSince"),
        ("CREATED BY", "CreatedBy"),
        ("SIZE", "Size"),
        ("COMMENT", "Comment"),
    ];
    write(&rows, &columns, wanted.quiet, wanted.format.as_ref())
}

/// `cofferdam image inspect`.
pub(super) fn inspect(wanted: &Inspect) -> Outcome {
    let store = Store::open_default()?;
    let mut found = Vec::new();
    for name in &wanted.images {
        found.push(describe(&store, &store.find(name)?)?);
    }
    let text = documents(found, wanted.format.as_ref())?;
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// All there is to know about an image, if there is one of that name or ID.
pub(in crate::cli) fn known(name: &str) -> Result<Option<Value>, Box<dyn std::error::Error>> {
    let store = Store::open_default()?;
    match store.find(name) {
        Ok(record) => Ok(Some(describe(&store, &record)?)),
        Err(Error::NotFound(_) | Error::Name(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn describe(store: &Store, record: &Record) -> Result<Value, Box<dyn std::error::Error>> {
    let config = store.config(record)?;
    let references = || {
        record
            .names
            .iter()
            .filter_map(|name| name.parse::<Reference>().ok())
    };
    let digest = record.descriptor.digest;
    Ok(json!({
        "Id": record.manifest.config.digest,
        "RepoTags": references()
            .filter(|name| name.tag.is_some())
            .map(|name| name.familiar())
            .collect::<Vec<_>>(),
        "RepoDigests": references()
            .map(|name| format!("{}@{digest}", name.familiar_repository()))
            .collect::<BTreeSet<_>>(),
        "Created": config["created"],
        "Author": config["author"],
        "Architecture": config["architecture"],
        "Variant": config["variant"],
        "Os": config["os"],
        "Config": config["config"],
        "Size": store.size(record),
        "RootFS": { "Type": "layers", "Layers": config["rootfs"]["diff_ids"] },
        "Manifest": record.manifest,
    }))
}

/// A whole name as Docker shows it.
pub(super) fn familiar(name: &str) -> String {
    name.parse::<Reference>()
        .map_or_else(|_| name.to_owned(), |name| name.familiar())
}

fn split(name: Option<&str>) -> (String, String) {
    match name.and_then(|name| name.parse::<Reference>().ok()) {
        None => (NONE.to_owned(), NONE.to_owned()),
        Some(name) => (
            name.familiar_repository(),
            name.tag.unwrap_or_else(|| NONE.to_owned()),
        ),
    }
}

/// Whether an image is of the name that was asked for; without a tag, any of the repository.
fn matches(wanted: Option<&str>, repository: &str, tag: &str) -> bool {
    let Some(wanted) = wanted else { return true };
    match wanted.parse::<Reference>() {
        Ok(name) => {
            let any = !wanted.ends_with(":latest") && name.tag.as_deref() == Some("latest");
            name.familiar_repository() == repository && (any || name.tag.as_deref() == Some(tag))
        }
        Err(_) => false,
    }
}

fn shown(id: Digest, whole: bool) -> String {
    if whole { id.to_string() } else { id.short() }
}

/// Bytes for people, as Docker: three digits, powers of 1000.
pub(in crate::cli) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB"].iter();
    let mut unit = units.next();
    while value >= 1000.0 {
        let Some(next) = units.next() else { break };
        unit = Some(next);
        value /= 1000.0;
    }
    let digits = match value {
        _ if value.fract() == 0.0 || value >= 100.0 => 0,
        _ if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{}", unit.unwrap_or(&""))
}

/// How long ago, for people.
fn since(time: &str) -> String {
    let Ok(time) = OffsetDateTime::parse(time, &Rfc3339) else {
        return "N/A".to_owned();
    };
    let seconds = (OffsetDateTime::now_utc() - time).whole_seconds().max(0);
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

fn write(
    rows: &[Value],
    columns: &[(&str, &str)],
    quiet: bool,
    format: Option<&Template>,
) -> Outcome {
    let text = list(rows, columns, quiet.then_some("ID"), format)?;
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, sizes and ages in lists are wrong or not as Docker writes them.
    #[test]
    fn sizes_and_ages_are_for_people() {
        let sizes = [0, 999, 1000, 4_256_000, 55_300_000, 1_234_000_000, 999_999];
        let shown = ["0B", "999B", "1kB", "4.26MB", "55.3MB", "1.23GB", "1000kB"];
        assert_eq!(sizes.map(size), shown);
        assert_eq!(since(""), "N/A");
        assert!(since("1970-01-01T00:00:00Z").ends_with(" years ago"));
        assert_eq!(since("9999-01-01T00:00:00.5+01:00"), "0 seconds ago");
    }

    /// If it fails, `cofferdam images NAME` shows other images, or not all.
    #[test]
    fn lists_are_narrowed_by_name() {
        assert!(matches(None, "a", "1"));
        assert!(matches(Some("a"), "a", "1"));
        assert!(matches(Some("docker.io/library/a"), "a", "1"));
        assert!(!matches(Some("a:latest"), "a", "1"));
        assert!(!matches(Some("b"), "a", "1"));
        assert!(!matches(Some("?"), "a", "1"));
    }
}

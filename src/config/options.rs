//! Option strings of the command line, `path=disk.img,ro,id=data`, read as the JSON form of the
//! same thing, so that both have the same fields and the same errors.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Fields that are numbers.
const NUMBERS: &[&str] = &[
    "cid",
    "fd",
    "hinting",
    "mtu",
    "ops_burst",
    "ops_per_second",
    "queues",
    "stats",
];
/// Fields that are on or off.
const SWITCHES: &[&str] = &[
    "deflate_on_oom",
    "dev",
    "iothread",
    "prefault",
    "reporting",
    "pmem",
    "ro",
    "suid",
];

/// Why an option string is refused.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Nothing between two commas.
    #[error("there is an empty option; expected key=value,key,…")]
    Empty,
    /// The same key twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A value that is not what the key takes.
    #[error("{key}={value}: expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// An unknown key, or a value that does not fit it.
    #[error(transparent)]
    Field(#[from] serde_json::Error),
}

/// Reads `key=value,flag,…` as a `T`. If `first` is given, the first item may be that key's bare
/// value: with `path`, `disk.img,ro` is `path=disk.img,ro`. A field of an object in it is written
/// `object.field=value`.
pub fn parse_options<T: DeserializeOwned>(
    text: &str,
    first: Option<&str>,
) -> Result<T, OptionsError> {
    let mut fields = Map::new();
    for (at, item) in text.split(',').enumerate() {
        let (key, value) = match (item.split_once('='), first) {
            (Some((key, value)), _) => (key, value_of(key, value)?),
            (None, Some(first)) if at == 0 => (first, Value::String(item.to_owned())),
            (None, _) => (item, Value::Bool(true)),
        };
        if item.is_empty() || key.is_empty() {
            return Err(OptionsError::Empty);
        }
        let before = match item.contains('=') {
            true => insert(&mut fields, key, value),
            // A file's name, more likely, than an object's field.
            false => fields.insert(key.to_owned(), value),
        };
        if before.is_some() {
            return Err(OptionsError::Twice(key.to_owned()));
        }
    }
    Ok(serde_json::from_value(Value::Object(fields))?)
}

/// Puts `value` where `key` says: `a.b` is field `b` of object `a`. Returns what was in its way.
fn insert(fields: &mut Map<String, Value>, key: &str, value: Value) -> Option<Value> {
    let Some((object, field)) = key.split_once('.') else {
        return fields.insert(key.to_owned(), value);
    };
    let object = fields
        .entry(object)
        .or_insert_with(|| Value::Object(Map::new()));
    match object.as_object_mut() {
        Some(object) => insert(object, field, value),
        None => Some(object.take()),
    }
}

/// Numbers are numbers only where the field is one: a file may be called `7`.
fn value_of(key: &str, value: &str) -> Result<Value, OptionsError> {
    let bad = |expected| OptionsError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        expected,
    };
    let (_, field) = key.rsplit_once('.').unwrap_or(("", key));
    match (field, value) {
        (key, _) if NUMBERS.contains(&key) => match value.parse::<u64>() {
            Ok(number) => Ok(number.into()),
            Err(_) => Err(bad("a number")),
        },
        (key, _) if SWITCHES.contains(&key) => match value {
            "on" | "true" => Ok(true.into()),
            "off" | "false" => Ok(false.into()),
            _ => Err(bad("on or off")),
        },
        ("cid" | "fd" | "mtu" | "queues" | "ops_per_second" | "ops_burst", _) => {
            match value.parse::<u64>() {
                Ok(number) => Ok(number.into()),
                Err(_) => Err(bad("a number")),
            }
        }
        ("ro" | "iothread", "on" | "true") => Ok(true.into()),
        ("ro" | "iothread", "off" | "false") => Ok(false.into()),
        ("ro" | "iothread", _) => Err(bad("on or off")),
        (_, "") => Err(bad("something behind the =")),
        // The one list there is.
        ("publish", _) => Ok(value.split('+').collect()),
        _ => Ok(value.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ByteSize, Cache, DiskConfig, Engine, NetConfig, RngConfig};

    /// If it fails, an option on the command line is lost or lands in another field.
    #[test]
    fn options_fill_their_fields() {
        let disk: DiskConfig = parse_options("path=7,ro,id=a=b,cache=unsafe", None).unwrap();
        let wanted = DiskConfig {
            path: "7".into(),
            ro: true,
            id: Some("a=b".into()),
            cache: Cache::Unsafe,
            ..DiskConfig::default()
        };
        assert_eq!(disk, wanted);
        let text = "path=d,engine=io_uring,queues=4,iothread=on,rate_limit.read.ops_per_second=9";
        let disk: DiskConfig = parse_options(text, None).unwrap();
        let limit = disk.rate_limit.read.ops_per_second;
        assert_eq!(
            (disk.engine, disk.queues, disk.iothread, limit),
            (Engine::IoUring, Some(4), true, Some(9))
        );
        let short: DiskConfig = parse_options("disk.img,ro=off", Some("path")).unwrap();
        assert_eq!(
            (short.path.to_str().unwrap(), short.ro),
            ("disk.img", false)
        );
        let net: NetConfig = parse_options("fd=3,mtu=1400", None).unwrap();
        assert_eq!((net.fd, net.mtu), (Some(3), Some(1400)));
        let text = "rate_limit.bytes_per_second=1K,rate_limit.ops_burst=7";
        let limit = parse_options::<RngConfig>(text, None).unwrap().rate_limit;
        let bytes = limit.bytes_per_second.map(ByteSize::bytes);
        assert_eq!((bytes, limit.ops_burst), (Some(1024), Some(7)));
        let net: NetConfig = parse_options("passt,publish=8080:80+53:5353/udp", None).unwrap();
        let ports: Vec<_> = net.publish.iter().map(ToString::to_string).collect();
        assert!(net.passt);
        assert_eq!(ports, ["8080:80/tcp", "53:5353/udp"]);
    }

    /// If it fails, a misspelt option is ignored.
    #[test]
    fn bad_options_are_named() {
        let error = |text: &str| {
            parse_options::<DiskConfig>(text, None)
                .unwrap_err()
                .to_string()
        };
        assert!(error("path=a,readonly").contains("readonly"));
        assert!(error("path=a,path=b").contains("twice"));
        assert!(error("path=a,,ro").contains("empty"));
        assert!(error("path=a,path.b=c").contains("twice"));
        assert!(error("path=a,x.y=1").contains("`x`"));
        assert!(error("ro").contains("path"));
        assert!(error("path=").contains("expected something"));
        assert!(error("path=a,ro=maybe").contains("on or off"));
        assert!(error("path=a,cache=none").contains("writeback"));
    }
}

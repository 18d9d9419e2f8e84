//! `--filter` of `images`.

use std::str::FromStr;

use glob::Pattern;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::image::Store;
use crate::image::store::{Error, Record};

/// What an image must be to be listed.
#[derive(Clone, Debug)]
pub(super) enum Filter {
    /// Its name, or its name and tag, is like this.
    Reference(Pattern),
    /// It has no name, or it has one.
    Dangling(bool),
    /// It has this label, and if one is given with this value.
    Label(String, Option<String>),
    /// It is older than this image.
    Before(String),
    /// It is younger than this image.
    Since(String),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or("a filter is KEY=VALUE, such as label=NAME")?;
        Ok(match key {
            "reference" => Self::Reference(Pattern::new(value).map_err(|error| error.to_string())?),
            "dangling" => Self::Dangling(
                value
                    .parse()
                    .map_err(|_| "dangling is true or false".to_owned())?,
            ),
            "label" => match value.split_once('=') {
                Some((name, value)) => Self::Label(name.into(), Some(value.into())),
                None => Self::Label(value.into(), None),
            },
            "before" => Self::Before(value.into()),
            "since" => Self::Since(value.into()),
            other => {
                return Err(format!(
                    "there is no filter {other:?}; there are reference, dangling, label, before and since"
                ));
            }
        })
    }
}

/// What a filter looks at.
#[derive(Debug)]
pub(super) struct About<'a> {
    pub named: bool,
    /// How it is to be run.
    pub config: &'a Value,
    pub created: Option<OffsetDateTime>,
}

impl Filter {
    /// Whether it lets an image through; `times` are those of the images that filters name.
    pub(super) fn lets(&self, image: &About<'_>, times: &Times) -> bool {
        match self {
            Self::Reference(_) => true,
            Self::Dangling(dangling) => image.named != *dangling,
            Self::Label(name, wanted) => {
                let found = image.config["Labels"][name].as_str();
                found.is_some_and(|found| wanted.as_deref().is_none_or(|wanted| wanted == found))
            }
            Self::Before(name) => image.created < times.of(name),
            Self::Since(name) => image.created > times.of(name),
        }
    }

    /// Whether it lets a name of an image through.
    pub(super) fn fits(&self, repository: &str, tag: &str) -> bool {
        match self {
            Self::Reference(pattern) => {
                pattern.matches(repository) || pattern.matches(&format!("{repository}:{tag}"))
            }
            _ => true,
        }
    }
}

/// When the images that filters name were made.
#[derive(Debug)]
pub(super) struct Times(Vec<(String, Option<OffsetDateTime>)>);

impl Times {
    fn of(&self, name: &str) -> Option<OffsetDateTime> {
        let mut all = self.0.iter();
        all.find(|(of, _)| of == name).and_then(|(_, time)| *time)
    }
}

/// Looks them up.
pub(super) fn times(store: &Store, filters: &[Filter]) -> Result<Times, Error> {
    let named = filters.iter().filter_map(|filter| match filter {
        Filter::Before(name) | Filter::Since(name) => Some(name),
        _ => None,
    });
    let time = |name: &String| {
        let record: Record = store.find(name)?;
        let config = store.config(&record)?;
        let created = config["created"].as_str().unwrap_or_default();
        Ok((name.clone(), moment(created)))
    };
    named.map(time).collect::<Result<_, _>>().map(Times)
}

/// When an image says that it was made.
pub(super) fn moment(created: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(created, &Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// If it fails, `images --filter` shows others, and `rmi $(images -q --filter …)` removes them.
    #[test]
    fn filters_let_through_what_they_say() {
        let config = json!({"Labels": {"a": "1"}});
        let image = About {
            named: true,
            config: &config,
            created: moment("2026-01-02T00:00:00Z"),
        };
        let times = Times(vec![("old".into(), moment("2025-01-01T00:00:00Z"))]);
        for (text, expected) in [
            ("dangling=false", true),
            ("dangling=true", false),
            ("label=a", true),
            ("label=a=1", true),
            ("label=a=2", false),
            ("label=b", false),
            ("since=old", true),
            ("before=old", false),
        ] {
            let filter: Filter = text.parse().unwrap();
            assert_eq!(filter.lets(&image, &times), expected, "{text}");
        }
        for (text, expected) in [
            ("reference=busy*", true),
            ("reference=busybox:1.*", true),
            ("reference=*:2", false),
            ("label=a", true),
        ] {
            let filter: Filter = text.parse().unwrap();
            assert_eq!(filter.fits("busybox", "1.36"), expected, "{text}");
        }
        for bad in ["label", "dangling=maybe", "colour=red", "reference=["] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }
}

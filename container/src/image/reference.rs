//! Names of images, as Docker reads them.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

const HUB: &str = "docker.io";

/// `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`. What is left out is what Docker takes for it: the registry is
/// `docker.io`, a repository there without a slash begins with `library/`, and the tag is `latest` if
/// there is no digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The registry, with its port.
    pub registry: String,
    /// The path there.
    pub repository: String,
    /// The tag, if there is one or no digest.
    pub tag: Option<String>,
    /// The digest of a manifest or an index of them.
    pub digest: Option<Digest>,
}

/// Text that names no image.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name:?} is no image name: {why}; names are like alpine, alpine:3.20, quay.io/fedora/fedora or localhost:5000/own:v1"
)]
pub struct NotAReference {
    name: String,
    why: &'static str,
}

impl Reference {
    /// As Docker shows it: without what is left out by default, but with the tag.
    pub fn familiar(&self) -> String {
        let mut name = self.familiar_repository();
        if let Some(tag) = &self.tag {
            name = format!("{name}:{tag}");
        }
        if let Some(digest) = &self.digest {
            name = format!("{name}@{digest}");
        }
        name
    }

    /// The registry and the repository, as Docker shows them.
    pub fn familiar_repository(&self) -> String {
        match (&self.registry[..], self.repository.strip_prefix("library/")) {
            (HUB, Some(name)) => name.to_owned(),
            (HUB, None) => self.repository.clone(),
            _ => format!("{}/{}", self.registry, self.repository),
        }
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| "its digest is none of SHA-256")?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            // The colon of a port comes before a slash.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(
                "its tag has other than letters, digits, '_', '.' and '-', or more than 128",
            );
        }
        let is_registry = |part: &str| {
            part == "localhost"
                || part.contains(['.', ':'])
                || part.chars().any(|c| c.is_ascii_uppercase())
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest.to_owned()),
            _ => (HUB, name.to_owned()),
        };
        let registry = match registry {
            "index.docker.io" => HUB,
            other => other,
        };
        let host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
        let first = |c: char| c.is_ascii_alphanumeric() || c == '[';
        if !registry.starts_with(first) || !registry.chars().all(host) {
            return Err("its registry is no host");
        }
        if !repository.split('/').all(is_component) || repository.len() > 255 {
            return Err(
                "its repository has other than lower-case letters, digits and single separators",
            );
        }
        let repository = match registry == HUB && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository,
        };
        let tag = match (tag, digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

impl FromStr for Reference {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        Self::parse(text).map_err(|why| NotAReference {
            name: text.to_owned(),
            why,
        })
    }
}

/// The whole name.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=128).contains(&tag.len())
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

/// Lower-case letters and digits, and between them `.`, `_`, `__` or any number of `-`.
fn is_component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && part
            .split(alphanumeric)
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.chars().all(|c| c == '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, names mean other images than with Docker.
    #[test]
    fn names_mean_what_they_mean_to_docker() {
        let digest = Digest::of(b"");
        for (text, whole, familiar) in [
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            (
                "alpine:3.20",
                "docker.io/library/alpine:3.20",
                "alpine:3.20",
            ),
            ("me/app", "docker.io/me/app:latest", "me/app:latest"),
            (
                "index.docker.io/library/a",
                "docker.io/library/a:latest",
                "a:latest",
            ),
            ("localhost/app:v1", "localhost/app:v1", "localhost/app:v1"),
            (
                "host:5000/a/b/c",
                "host:5000/a/b/c:latest",
                "host:5000/a/b/c:latest",
            ),
            (
                "quay.io/a__b/c--d.e",
                "quay.io/a__b/c--d.e:latest",
                "quay.io/a__b/c--d.e:latest",
            ),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), whole);
            assert_eq!(reference.familiar(), familiar);
        }
        let pinned: Reference = format!("a:1@{digest}").parse().unwrap();
        assert_eq!(
            pinned.to_string(),
            format!("docker.io/library/a:1@{digest}")
        );
        let untagged: Reference = format!("a@{digest}").parse().unwrap();
        assert_eq!(untagged.tag, None);
    }

    /// If it fails, text that names nothing (or a path) is looked for, or sent to a registry.
    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            ":",
            "a:",
            "a:b:c",
            "Alpine",
            "-a",
            "a-",
            "a..b",
            "a//b",
            "/a",
            "a/",
            "../a",
            "a b",
            "a@",
            "a@sha256:12",
            "ho st.x/a",
            "a:-x",
            "a___b",
            "a.b/c?",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}

//! Containers whose program is systemd: what it needs beyond Docker's defaults. Podman looks for the same
//! programs, and gives them the same.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Options, Tmpfs};

/// Whether a container is given what systemd needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Systemd {
    /// If its program is an init system by its name.
    #[default]
    True,
    /// No.
    False,
    /// Whatever its program is: a script that ends in systemd, say.
    Always,
}

/// Memory file systems, with what the image has at their places.
const MEMORY: [(&str, &str); 4] = [
    ("/run", "mode=755"),
    ("/run/lock", "mode=1777"),
    ("/tmp", "mode=1777"),
    ("/var/log/journal", "mode=755"),
];
/// What it takes for the order to shut down.
const STOP: &str = "SIGRTMIN+3";

impl Systemd {
    fn applies(self, program: &str) -> bool {
        const INITS: [&str; 3] = ["/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init"];
        match self {
            Self::False => false,
            Self::Always => true,
            Self::True => INITS.contains(&program) || program.rsplit('/').next() == Some("systemd"),
        }
    }
}

impl Options {
    /// Adds what systemd needs, if `program` is one. What the user or the image says otherwise counts.
    /// `stops_by`: the image names a signal.
    pub fn prepare_for_systemd(&mut self, program: &str, env_of_image: &[String], stops_by: bool) {
        self.is_systemd = self.systemd.applies(program);
        if !self.is_systemd {
            return;
        }
        // It says what it does, and what keeps it from it, on a terminal and nowhere else.
        self.tty = true;
        if !stops_by {
            self.stop_signal.get_or_insert_with(|| STOP.to_owned());
        }
        let is_container = |variable: &String| variable.starts_with("container=");
        if !self.env.iter().chain(env_of_image).any(is_container) {
            self.env.push("container=cofferdam".into());
        }
        for (target, mode) in MEMORY {
            let is_here = |other: &str| other.trim_end_matches('/') == target;
            let is_mounted = self.mounts().any(|mount| is_here(&mount.target))
                || self.tmpfs.iter().any(|tmpfs| is_here(&tmpfs.target));
            if !is_mounted {
                self.tmpfs.push(Tmpfs {
                    target: target.to_owned(),
                    options: ["exec", "tmpcopyup", mode].map(str::to_owned).to_vec(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(systemd: Systemd, program: &str) -> Options {
        let mut options = Options {
            systemd,
            ..Options::default()
        };
        options.prepare_for_systemd(program, &[], false);
        options
    }

    /// If it fails, systemd lacks what it needs, or other programs have another terminal, signal or /tmp than
    /// with Docker.
    #[test]
    fn systemd_is_known_by_its_name() {
        for program in ["/sbin/init", "/lib/systemd/systemd", "systemd"] {
            assert!(prepared(Systemd::True, program).is_systemd, "{program}");
        }
        for program in ["sh", "/init", "/lib/systemd/systemd-networkd", ""] {
            assert_eq!(prepared(Systemd::True, program), Options::default());
        }
        assert!(!prepared(Systemd::False, "/sbin/init").tty);
        assert!(prepared(Systemd::Always, "/start").tty);
    }

    /// If it fails, what the user or the image says of a systemd container is overruled.
    #[test]
    fn users_and_images_know_better() {
        let mut options = Options {
            tmpfs: vec!["/tmp/:size=1m".parse().unwrap()],
            stop_signal: Some("INT".into()),
            ..Options::default()
        };
        options.prepare_for_systemd("/sbin/init", &["container=oci".into()], false);
        let targets: Vec<_> = options.tmpfs.iter().map(|one| &*one.target).collect();
        assert_eq!(targets, ["/tmp/", "/run", "/run/lock", "/var/log/journal"]);
        assert_eq!(options.stop_signal.as_deref(), Some("INT"));
        assert!(options.env.is_empty());
        let mut options = Options::default();
        options.prepare_for_systemd("/sbin/init", &[], true);
        assert_eq!(options.stop_signal, None);
        assert_eq!(options.env, ["container=cofferdam"]);
        let mut options = Options::default();
        options.prepare_for_systemd("/sbin/init", &[], false);
        assert_eq!(options.stop_signal.as_deref(), Some(STOP));
    }
}

//! Whether a container is well: the command that says so, by Docker's rules.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Options, OptionsError, as_text};

/// A time as Go writes it: `1m30s`, `500ms`, `1.5h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period(pub Duration);

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no time such as 30s, 1m30s or 500ms");
        let mut rest = text;
        let mut seconds = 0.0;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
            let (number, behind) = rest.split_at(end.ok_or_else(bad)?);
            let end = behind.find(|c: char| c.is_ascii_digit() || c == '.');
            let (unit, behind) = behind.split_at(end.unwrap_or(behind.len()));
            let unit = match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" => 1e-6,
                _ => return Err(bad()),
            };
            seconds += number.parse::<f64>().map_err(|_| bad())? * unit;
            rest = behind;
        }
        match Duration::try_from_secs_f64(seconds) {
            Ok(period) if !text.is_empty() && seconds < 1e9 => Ok(Self(period)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_micros() {
            0 => write!(f, "{}s", self.0.as_secs()),
            _ => write!(f, "{}us", self.0.as_micros()),
        }
    }
}

as_text!(Period);

/// How a container is asked whether it is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The command, with its arguments; well is who ends it with 0.
    pub command: Vec<String>,
    /// From the end of one question to the next, and from the start to the first.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long from the start failures do not count.
    pub start_period: Duration,
    /// How many failures in a row make it unwell.
    pub retries: u32,
}

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u32 = 3;
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

impl Health {
    /// What the options say, and where they say nothing the image (its whole configuration, as it came);
    /// none if neither has a command.
    pub fn of(options: &Options, image: &Value) -> Result<Option<Self>, OptionsError> {
        let times = [
            options.health_interval,
            options.health_timeout,
            options.health_start_period,
        ];
        let refined = times.iter().any(Option::is_some) || options.health_retries.is_some();
        if options.no_healthcheck {
            return match refined || options.health_cmd.is_some() {
                true => Err(OptionsError::Health(
                    "--no-healthcheck and other --health options contradict each other",
                )),
                false => Ok(None),
            };
        }
        let of_image = &image["config"]["Healthcheck"];
        let Some(command) = command(options.health_cmd.as_deref(), image) else {
            return match refined {
                true => Err(OptionsError::Health(
                    "--health options need --health-cmd, as the image has no command for it",
                )),
                false => Ok(None),
            };
        };
        // Of the image they are in nanoseconds; 0 says nothing, here as there.
        let time = |option: Option<Period>, name: &str, default| {
            let nanoseconds = of_image[name].as_u64().filter(|time| *time > 0);
            let of_image = nanoseconds.map(Duration::from_nanos);
            option
                .map(|period| period.0)
                .or(of_image)
                .unwrap_or(default)
        };
        let retries = of_image["Retries"].as_u64().filter(|count| *count > 0);
        let retries = retries.and_then(|count| u32::try_from(count).ok());
        Ok(Some(Self {
            command,
            interval: time(options.health_interval, "Interval", INTERVAL),
            timeout: time(options.health_timeout, "Timeout", TIMEOUT),
            start_period: time(options.health_start_period, "StartPeriod", Duration::ZERO),
            retries: options.health_retries.or(retries).unwrap_or(RETRIES).max(1),
        }))
    }
}

fn command(option: Option<&str>, image: &Value) -> Option<Vec<String>> {
    let texts = |value: &Value| -> Vec<String> {
        let texts = value.as_array().into_iter().flatten();
        texts
            .filter_map(|text| Some(text.as_str()?.to_owned()))
            .collect()
    };
    let by_shell = |line: &str| {
        let mut all = texts(&image["config"]["Shell"]);
        if all.is_empty() {
            all = SHELL.map(str::to_owned).to_vec();
        }
        all.push(line.to_owned());
        Some(all)
    };
    if let Some(line) = option {
        return by_shell(line);
    }
    let test = texts(&image["config"]["Healthcheck"]["Test"]);
    match test.split_first() {
        Some((kind, [line])) if kind == "CMD-SHELL" => by_shell(line),
        Some((kind, command)) if kind == "CMD" && !command.is_empty() => Some(command.to_vec()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// If it fails, containers are asked at other times than their users said.
    #[test]
    fn times_are_gos() {
        for (text, millis) in [
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("5ms", 5),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.0, Duration::from_millis(millis), "{text}");
            assert_eq!(period.to_string().parse(), Ok(period));
        }
        for text in ["", "5", "s", "-1s", "1x", "1s2", "9e9s", "99999999999h"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }

    /// If it fails, another command says whether a container is well than its maker or user meant.
    #[test]
    fn the_users_word_counts_before_the_images() {
        let image = json!({"config": {"Healthcheck": {
            "Test": ["CMD", "probe", "-x"], "Interval": 5_000_000_000_u64, "Retries": 2}}});
        let mut options = Options::default();
        let of_image = Health::of(&options, &image).unwrap().unwrap();
        assert_eq!(of_image.command, ["probe", "-x"]);
        assert_eq!((of_image.interval.as_secs(), of_image.retries), (5, 2));
        assert_eq!(of_image.timeout, TIMEOUT);
        options.health_timeout = Some(Period(Duration::from_secs(1)));
        let both = Health::of(&options, &image).unwrap().unwrap();
        assert_eq!((both.interval.as_secs(), both.timeout.as_secs()), (5, 1));
        options.health_cmd = Some("a b".into());
        let own = Health::of(&options, &image).unwrap().unwrap();
        assert_eq!(own.command, ["/bin/sh", "-c", "a b"]);
        options.no_healthcheck = true;
        assert!(Health::of(&options, &image).is_err());
        let none = json!({"config": {"Healthcheck": {"Test": ["NONE"]}}});
        assert_eq!(Health::of(&Options::default(), &none).unwrap(), None);
        let only_time = Options {
            health_timeout: Some(Period(TIMEOUT)),
            ..Options::default()
        };
        assert!(Health::of(&only_time, &none).is_err());
    }
}
